//! Users' HTTP services: each is opened by an actor of its own, and served as long as that lives.
//!
//! Started under `root/data/http`, behind the databases and services: what was opened on a store that is started anew is
//! opened anew with it. A node does not start with a service that cannot be opened; one that cannot be opened anew later is
//! tried again, as any actor is, and meanwhile its place answers 503.

use std::{convert::Infallible, future::Ready, marker::PhantomData, sync::Arc, task::Poll, time::Duration};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Either, Map},
};
use horos_dbsync::proxy::{ByMethod, ReadLimits, WaitForPosition};
use horos_edge::{Access, Body, BoxError, Mount, MountError, Plane};
use horos_router::gateway::Gateway;
use horos_supervision::{ChildSpec, Context, OpenError, Vitals};
use horos_wire::{ActorName, tree::Kind};
use http::{HeaderValue, Request, Response, StatusCode, header};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tower::{Layer as _, Service, ServiceExt as _, util::Oneshot};

use crate::{
    app::Parts,
    sync::{OwnerError, owner},
};

/// Users' endpoints are the public's; administration alone is on the cluster's address, where the two differ.
const PLANE: Plane = Plane::Public;

/// What opens a service; shared by all lives of its actor.
pub(crate) type Open<S> = Arc<dyn Fn(Context) -> BoxFuture<'static, Result<S, OpenError>> + Send + Sync>;

/// The place of one service in the router, and the actor that fills it.
pub(crate) fn lay<S, B>(parts: &Parts, prefix: &str, access: Access, open: Open<S>) -> Result<(Mount, Vec<ChildSpec>), LayError>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let place = Place::<S>::default();
    let mount = match parts.sync.stamps() {
        Some(stamps) => Mount::new(prefix, access, PLANE, stamps.layer(place.clone()))?,
        None => Mount::new(prefix, access, PLANE, place.clone())?,
    };
    Ok((mount, vec![opener(parts, prefix, place, open)]))
}

/// The actor that fills `place`.
fn opener<S: Send + Sync + 'static>(parts: &Parts, prefix: &str, place: Place<S>, open: Open<S>) -> ChildSpec {
    let name = name(prefix);
    let vitals = Vitals::new(&name, Kind::Worker, Duration::from_secs(5));
    vitals.set_protocol(&format!("http {prefix}"));
    let context = Context::new(parts.exchange.clone(), format!("http:{prefix}"));
    ChildSpec::actor(vitals, Some(parts.http.clone()), move |start| {
        (Opener(PhantomData), Args { place: place.clone(), open: open.clone(), context: context.clone(), vitals: start.vitals.clone() })
    })
}

/// Reads here, once the replicas of `publications` have what the client wrote; whatever else there is goes on to the owner.
pub(crate) fn lay_reads<S, B>(
    parts: &Parts,
    prefix: &str,
    access: Access,
    publications: &[ActorName],
    open: Open<S>,
) -> Result<(Mount, Vec<ChildSpec>), LayError>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let place = Place::<S>::default();
    let owner = parts.owner.proxy(prefix)?;
    let (positions, client) = (Arc::new(parts.sync.replicas.clone()), owner.config().client.clone());
    let waits = WaitForPosition::new(positions, publications.iter().cloned(), owner.clone(), client, ReadLimits::default());
    let both = ByMethod::new(waits.layer(place.clone()), owner.clone());
    let mount = Mount::new(prefix, access, PLANE, both)?.keeping_credentials();
    Ok((mount, vec![opener(parts, prefix, place, open), owner::watch(&owner_name(prefix), owner)]))
}

/// Whatever comes goes on to the owner.
pub(crate) fn lay_pass_on(parts: &Parts, prefix: &str, access: Access) -> Result<(Mount, Vec<ChildSpec>), LayError> {
    let owner = parts.owner.proxy(prefix)?;
    let mount = Mount::new(prefix, access, PLANE, owner.clone())?.keeping_credentials();
    Ok((mount, vec![owner::watch(&owner_name(prefix), owner)]))
}

/// Services by route, for outsiders.
pub(crate) fn lay_gateway(parts: &Parts, prefix: &str) -> Result<(Mount, Vec<ChildSpec>), LayError> {
    let gateway = Gateway::new(parts.router.clone(), &parts.exchange);
    Ok((Mount::new(prefix, Access::PerRequest, PLANE, gateway)?, Vec::new()))
}

fn owner_name(prefix: &str) -> String {
    format!("owner-{}", name(prefix))
}

/// Why something cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Owner(#[from] OwnerError),
}

/// Whether something could be mounted so.
pub(crate) fn check(prefix: &str) -> Result<(), MountError> {
    let nobody = tower::service_fn(|_: Request<Body>| std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty()))));
    Mount::new(prefix, Access::Public, PLANE, nobody).map(drop)
}

/// `/shop/v1` as a name in the tree, where slashes part names.
fn name(prefix: &str) -> String {
    if prefix == "/" { "rest".to_owned() } else { prefix.trim_start_matches('/').replace('/', ".") }
}

/// Where a service is while it is open.
struct Place<S>(Arc<ArcSwapOption<S>>);

impl<S> Clone for Place<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Default for Place<S> {
    fn default() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }
}

type Answer = Result<Response<Body>, Infallible>;
type Asked<S, B> = Map<Oneshot<S, Request<Body>>, fn(Result<Response<B>, Infallible>) -> Answer>;

impl<S, B> Service<Request<Body>> for Place<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Asked<S, B>, Ready<Answer>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        // Whether the service is, its own clone is asked for each request.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match &*self.0.load() {
            Some(service) => {
                let shown: fn(Result<Response<B>, Infallible>) -> Answer = |answer| answer.map(|response| response.map(Body::new));
                Either::Left(S::clone(service).oneshot(request).map(shown))
            }
            None => Either::Right(std::future::ready(Ok(closed()))),
        }
    }
}

/// There is no service here at this moment; the port adds the rest.
fn closed() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Opens a service, and takes it out of its place when it ends.
struct Opener<S>(PhantomData<fn() -> S>);

struct Args<S> {
    place: Place<S>,
    open: Open<S>,
    context: Context,
    vitals: Arc<Vitals>,
}

/// A service in its place.
struct Filled<S>(Place<S>);

impl<S> Drop for Filled<S> {
    fn drop(&mut self) {
        self.0.0.store(None);
    }
}

impl<S: Send + Sync + 'static> Actor for Opener<S> {
    type Msg = ();
    type State = Filled<S>;
    type Arguments = Args<S>;

    async fn pre_start(&self, _: ActorRef<()>, args: Args<S>) -> Result<Filled<S>, ActorProcessingErr> {
        let service = (args.open)(args.context).await?;
        args.place.0.store(Some(Arc::new(service)));
        args.vitals.started();
        Ok(Filled(args.place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send + Sync {
        tower::service_fn(|_: Request<Body>| std::future::ready(Ok::<_, Infallible>(Response::new(Body::from("hello")))))
    }

    async fn status<S, B>(place: &Place<S>) -> StatusCode
    where
        S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let Ok(answer) = place.clone().oneshot(Request::new(Body::empty())).await;
        answer.status()
    }

    #[tokio::test]
    async fn a_place_answers_503_before_its_service_is_open_and_after_its_end() {
        let place = Place::default();
        // Which service it is for is said by what is put there.
        let filled = |service| {
            place.0.store(Some(Arc::new(service)));
            Filled(place.clone())
        };
        let filled = filled(hello());
        assert_eq!(status(&place).await, StatusCode::OK);
        drop(filled);
        assert_eq!(status(&place).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(closed().headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_prefix_is_a_name_in_the_tree() {
        assert_eq!((name("/shop/v1"), name("/")), ("shop.v1".to_owned(), "rest".to_owned()));
        assert!(check("/shop").is_ok() && check("shop/").is_err());
    }
}
