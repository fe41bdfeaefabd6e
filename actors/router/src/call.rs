//! Calls by route: which endpoint, how often, and what comes of it.
//!
//! One loop for all kinds of calls, typed, as JSON and as bytes. Each call takes the route that is in force when it begins, each
//! further attempt the one that is in force then. What was admitted by a route is finished by it: whoever holds it keeps it.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use horos_supervision::{Context, Deadline, Ref};
use horos_wire::{
    ActorName, Address, CallContext, CallError, Format, NoEffect, Protocol, Request, Scope, Unknown, codec, protocol::bytes::Content,
};
use tokio::time::{sleep_until, timeout, timeout_at};

use crate::{
    breaker::Outcome,
    config::Payload,
    policy::{Call, Ended},
    router::Router,
    service::{Admission, Entered, Service},
    strategy::{Answer, Failure, Message, Target, Transport},
};

/// A caller who waits less than this says nothing of the endpoint when it gives up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes set aside for what is kept of a request: most are smaller, and need no second piece of memory.
const SPARE: usize = 256;

/// A service, called by its route and typed by its protocol.
///
/// Without a route it is the actor of that name, here or on whichever node offers it.
pub struct Routed<P> {
    router: Router,
    context: Context,
    service: Box<str>,
    bound: ArcSwapOption<Bound<P>>,
}

impl<P> fmt::Debug for Routed<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Routed({})", self.service)
    }
}

/// A route with the references that its endpoints were reached by before.
struct Bound<P> {
    generation: u64,
    service: Arc<Service>,
    references: Box<[OnceLock<Ref<P>>]>,
}

impl<P: Protocol> Routed<P> {
    pub(crate) fn new(router: Router, context: Context, service: &str) -> Self {
        Self { router, context, service: service.into(), bound: ArcSwapOption::empty() }
    }

    /// Calls the service, until `deadline`, the context's or what its route gives, whichever comes first.
    ///
    /// # Errors
    /// As [`Ref::call`], and [`NoEffect::CircuitOpen`] when every endpoint is to be left alone, [`NoEffect::Overloaded`] when the
    /// route's rate or concurrency is exhausted.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the call: a callee that has not begun will not. It counts against no endpoint.
    pub async fn call<R: Request<Protocol = P>>(&self, request: R, deadline: impl Into<Deadline>) -> Result<R::Reply, CallError<R::Error>> {
        drive(&Typed { routed: self, request: std::marker::PhantomData }, request, deadline.into()).await
    }
}

/// One kind of call.
pub(crate) trait Kind: Sync {
    type Work: Send;
    /// What another attempt is made of, cheaply kept.
    type Spare: Send + Sync;
    type Reply: Send;
    type Error: Send;
    /// A route, with whatever makes calling by it quick.
    type Bound: Send + Sync;
    fn context(&self) -> &Context;
    /// The route in force.
    fn bind(&self) -> Result<Arc<Self::Bound>, NoEffect>;
    fn service(bound: &Arc<Self::Bound>) -> &Arc<Service>;
    /// By the name that its route knows it by.
    fn method<'a>(&'a self, work: &'a Self::Work) -> &'a str;
    /// Keeps what the same can be made of once more; none if it can be made only once.
    fn spare(&self, work: &Self::Work) -> Option<Self::Spare>;
    /// The same once more.
    fn again(&self, spare: &Self::Spare) -> Option<Self::Work>;
    fn attempt(
        &self,
        bound: &Arc<Self::Bound>,
        place: usize,
        work: Self::Work,
        until: Instant,
    ) -> impl Future<Output = Result<Self::Reply, Attempted<Self::Error>>> + Send;
    /// Calls the service called `name` in place of this one.
    fn elsewhere(
        &self,
        name: &str,
        work: Self::Work,
        until: Instant,
    ) -> impl Future<Output = Result<Self::Reply, CallError<Self::Error>>> + Send;
    /// Takes along the call's place among those in hand, where a reply is not yet all there is.
    fn keep(&self, _reply: &mut Self::Reply, _entered: Entered) {}
}

/// An attempt that came to nothing.
pub(crate) struct Attempted<E> {
    pub(crate) error: CallError<E>,
    pub(crate) retry_after: Option<Duration>,
}

impl<E> From<CallError<E>> for Attempted<E> {
    fn from(error: CallError<E>) -> Self {
        Self { error, retry_after: None }
    }
}

impl Failure {
    /// With the callee's own error as it came.
    pub(crate) fn attempted(self) -> Attempted<Bytes> {
        Attempted { error: self.error, retry_after: self.retry_after }
    }

    /// With the callee's own error read by `read`.
    fn read<E>(self, read: impl FnOnce(&Bytes) -> Result<E, Unknown>) -> Attempted<E> {
        let error = match self.error {
            CallError::NoEffect(why) => why.into(),
            CallError::Unknown(why) => why.into(),
            CallError::Failed(body) => read(&body).map_or_else(CallError::Unknown, CallError::Failed),
        };
        Attempted { error, retry_after: self.retry_after }
    }
}

/// How a call ended, and when: a look at the clock is a twentieth of a call on one node.
struct Ending<K: Kind> {
    result: Result<K::Reply, CallError<K::Error>>,
    at: Instant,
}

impl<K: Kind> Ending<K> {
    fn failed(error: impl Into<CallError<K::Error>>, at: Instant) -> Self {
        Self { result: Err(error.into()), at }
    }
}

/// Calls, and if that fails calls the route's fallback, where that does no harm.
pub(crate) async fn drive<K: Kind>(kind: &K, work: K::Work, deadline: Deadline) -> Result<K::Reply, CallError<K::Error>> {
    let bound = kind.bind()?;
    if K::service(&bound).fallback().is_none() {
        return once(kind, bound, work, deadline).await;
    }
    let latest = deadline.instant(Instant::now());
    let (service, kept) = (K::service(&bound).clone(), kind.spare(&work));
    let idempotent = service.is_idempotent(kind.method(&work), kind.context().call());
    match once(kind, bound, work, latest.into()).await {
        Err(error) if may_be_repeated(&error, idempotent) && Instant::now() < latest => {
            match (service.fallback(), kept.and_then(|kept| kind.again(&kept))) {
                (Some(fallback), Some(work)) => {
                    service.counters().fell_back();
                    kind.elsewhere(fallback, work, latest).await.map_err(|last| at_worst(Some(error), last))
                }
                _ => Err(error),
            }
        }
        result => result,
    }
}

/// Calls, and calls again what may be called again.
pub(crate) async fn once<K: Kind>(
    kind: &K,
    bound: Arc<K::Bound>,
    work: K::Work,
    deadline: Deadline,
) -> Result<K::Reply, CallError<K::Error>> {
    let began = Instant::now();
    let context = kind.context().call();
    let service = K::service(&bound);
    let until = deadline.instant(began).min(began + service.timeout());
    let until = context.deadline.map_or(until, |ours| ours.min(until));
    let idempotent = service.is_idempotent(kind.method(&work), context);
    let Ending { result, at } = if until <= began {
        Ending::<K>::failed(NoEffect::Expired, began)
    } else {
        match service.enter(began, until).await {
            Ok(entered) => {
                let mut outcome = if service.policies().is_empty() {
                    // Only for a place among those in hand it may have waited.
                    let now = if service.limit().is_some() { Instant::now() } else { began };
                    attempts(kind, &bound, work, idempotent, until, now).await
                } else {
                    within(kind, &bound, work, idempotent, until).await
                };
                if let Ok(reply) = &mut outcome.result {
                    kind.keep(reply, entered);
                }
                outcome
            }
            Err(refused) => Ending::failed(refused, Instant::now()),
        }
    };
    service.counters().ended(&result, at.saturating_duration_since(began));
    result
}

/// The same within the program's own policies.
async fn within<K: Kind>(kind: &K, bound: &Arc<K::Bound>, work: K::Work, idempotent: bool, until: Instant) -> Ending<K> {
    let service = K::service(bound);
    let method = Box::<str>::from(kind.method(&work));
    let call = Call { service: service.name(), method: &method, context: kind.context().call(), until, idempotent };
    let inside = match service.policies().enter(&call).await {
        Ok(inside) => inside,
        Err(refused) => return Ending::failed(refused, Instant::now()),
    };
    let outcome = attempts(kind, bound, work, idempotent, until, Instant::now()).await;
    let how = Ended::of(&outcome.result);
    inside.into_iter().rev().for_each(|one| one.ended(how));
    outcome
}

async fn attempts<K: Kind>(
    kind: &K,
    first: &Arc<K::Bound>,
    work: K::Work,
    idempotent: bool,
    until: Instant,
    mut now: Instant,
) -> Ending<K> {
    let spare = if K::service(first).repeats() { kind.spare(&work) } else { None };
    let (mut work, mut tried, mut made) = (work, 0_u32, 0_u32);
    // Held while the retry that it pays for lasts, its wait included.
    let mut _paid = None;
    let mut newest = None;
    let mut earlier = None;
    loop {
        let bound = newest.as_ref().unwrap_or(first);
        let service = K::service(bound);
        let admission = match service.admit(now, tried) {
            Ok(admission) => admission,
            Err(refused) => return Ending::failed(at_worst(earlier, refused.into()), now),
        };
        let place = admission.place();
        let given = if idempotent { until.min(now + service.attempt_timeout()) } else { until };
        let attempt = kind.attempt(bound, place, work, given);
        let hedge = service.hedge().filter(|after| idempotent && now + *after < given);
        let (outcome, at) = match hedge.zip(spare.as_ref()) {
            Some((after, spare)) => (hedged(kind, bound, attempt, admission, spare, after, given).await, Instant::now()),
            None => {
                let outcome = attempt.await;
                let at = Instant::now();
                admission.ended(&outcome, now, given, at);
                (outcome, at)
            }
        };
        let Attempted { error, retry_after } = match outcome {
            Ok(reply) => return Ending { result: Ok(reply), at },
            Err(failed) => failed,
        };
        now = at;
        let may = service.retry().is_some_and(|retry| made < retry.retries) && may_be_repeated(&error, idempotent);
        let Some(next) = spare.as_ref().filter(|_| may).and_then(|spare| kind.again(spare)) else {
            return Ending::failed(at_worst(earlier, error), now);
        };
        let Some(mut withdrawal) = service.withdraw(now) else { return Ending::failed(at_worst(earlier, error), now) };
        tried |= 1 << place;
        let asked = retry_after.or(match &error {
            CallError::NoEffect(NoEffect::CircuitOpen { retry_after }) => Some(*retry_after),
            _ => None,
        });
        // Another endpoint has done nothing that it should be spared for.
        let wait = if service.has_untried(tried) { Duration::ZERO } else { service.wait(made, asked) };
        let error = at_worst(earlier, error);
        if now + wait >= until {
            return Ending::failed(error, now);
        }
        earlier = Some(error);
        if !wait.is_zero() {
            sleep_until((now + wait).into()).await;
            now = Instant::now();
        }
        made += 1;
        withdrawal.sent(now);
        _paid = Some(withdrawal);
        service.counters().retried();
        // The route may have been changed because of what just failed.
        if let Ok(other) = kind.bind()
            && !Arc::ptr_eq(K::service(&other), service)
        {
            newest = Some(other);
            tried = 0;
        }
        work = next;
    }
}

/// The first answer of two attempts, the second begun when the first has taken long.
async fn hedged<K: Kind>(
    kind: &K,
    bound: &Arc<K::Bound>,
    first: impl Future<Output = Result<K::Reply, Attempted<K::Error>>> + Send,
    admission: Admission<'_>,
    spare: &K::Spare,
    after: Duration,
    given: Instant,
) -> Result<K::Reply, Attempted<K::Error>> {
    let service = K::service(bound);
    let began = Instant::now();
    tokio::pin!(first);
    if let Ok(outcome) = timeout(after, &mut first).await {
        admission.ended(&outcome, began, given, Instant::now());
        return outcome;
    }
    let now = Instant::now();
    let paid = service.withdraw(now);
    let second = paid.and_then(|paid| Some((paid, service.admit(now, 1 << admission.place()).ok()?, kind.again(spare)?)));
    let Some((mut paid, beside, again)) = second else {
        let outcome = first.await;
        admission.ended(&outcome, began, given, Instant::now());
        return outcome;
    };
    paid.sent(now);
    service.counters().hedged();
    let second = kind.attempt(bound, beside.place(), again, given);
    tokio::pin!(second);
    // Whichever is not waited for any longer is given up, and that counts against nobody.
    tokio::select! {
        outcome = &mut first => {
            admission.ended(&outcome, began, given, Instant::now());
            if is_an_answer(&outcome) {
                return outcome;
            }
            let other = second.await;
            beside.ended(&other, now, given, Instant::now());
            last_of(outcome, other)
        }
        outcome = &mut second => {
            beside.ended(&outcome, now, given, Instant::now());
            if is_an_answer(&outcome) {
                service.counters().hedge_won();
                return outcome;
            }
            let other = first.await;
            admission.ended(&other, began, given, Instant::now());
            last_of(outcome, other)
        }
    }
}

/// What two failed attempts come to: the later one's error, as [`at_worst`] has it.
fn last_of<T, E>(one: Result<T, Attempted<E>>, other: Result<T, Attempted<E>>) -> Result<T, Attempted<E>> {
    other.map_err(|Attempted { error, retry_after }| Attempted { error: at_worst(one.err().map(|one| one.error), error), retry_after })
}

/// The error of a call whose attempts failed first with `earlier` and then with `last`: that the last had no effect does not say
/// that none had one.
fn at_worst<E>(earlier: Option<CallError<E>>, last: CallError<E>) -> CallError<E> {
    match (earlier, last) {
        (Some(CallError::Unknown(why)), CallError::NoEffect(_)) => CallError::Unknown(why),
        (_, last) => last,
    }
}

fn is_an_answer<T, E>(outcome: &Result<T, Attempted<E>>) -> bool {
    matches!(outcome, Ok(_) | Err(Attempted { error: CallError::Failed(_), .. }))
}

/// Whether trying again can help, and can do no harm.
fn may_be_repeated<E>(error: &CallError<E>, idempotent: bool) -> bool {
    match error {
        CallError::Failed(_) => false,
        CallError::Unknown(_) => idempotent,
        CallError::NoEffect(why) => is_of_the_endpoint(why),
    }
}

/// Whether another endpoint, or the same one later, may answer otherwise.
fn is_of_the_endpoint(why: &NoEffect) -> bool {
    matches!(
        why,
        NoEffect::NoSuchActor(_)
            | NoEffect::Overloaded(_)
            | NoEffect::CircuitOpen { .. }
            | NoEffect::NoRoute(_)
            | NoEffect::ActorDied
            | NoEffect::Stopping
    )
}

/// What an attempt says of its endpoint.
pub(crate) fn judged<T, E>(outcome: &Result<T, Attempted<E>>, given: Duration) -> Outcome {
    match outcome {
        Ok(_) => Outcome::Success,
        Err(Attempted { error, .. }) => match error {
            // It has answered. What it thinks of the request is not its state.
            CallError::Failed(_) => Outcome::Success,
            CallError::NoEffect(NoEffect::NoSuchActor(_) | NoEffect::NoRoute(_) | NoEffect::ActorDied | NoEffect::Stopping) => {
                Outcome::Failure
            }
            CallError::NoEffect(_) => Outcome::Ignored,
            CallError::Unknown(Unknown::DeadlinePassed) if given < PATIENCE => Outcome::Ignored,
            CallError::Unknown(Unknown::ReplyTooLarge(_)) => Outcome::Ignored,
            CallError::Unknown(_) => Outcome::Failure,
        },
    }
}

/// Typed calls.
struct Typed<'a, P, R> {
    routed: &'a Routed<P>,
    request: std::marker::PhantomData<fn(R)>,
}

impl<P: Protocol, R: Request<Protocol = P>> Kind for Typed<'_, P, R> {
    type Work = R;
    /// Encoded: it is not known to be [`Clone`], and read again only where that is needed.
    type Spare = Vec<u8>;
    type Reply = R::Reply;
    type Error = R::Error;
    type Bound = Bound<P>;

    fn context(&self) -> &Context {
        &self.routed.context
    }

    fn bind(&self) -> Result<Arc<Bound<P>>, NoEffect> {
        let Routed { router, service, bound, .. } = self.routed;
        let generation = router.generation();
        let known = match bound.load_full() {
            Some(known) if known.generation == generation => return Ok(known),
            known => known,
        };
        let found = router.service(service)?;
        let references = std::iter::repeat_with(OnceLock::new).take(found.places()).collect::<Box<[OnceLock<Ref<P>>]>>();
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.service, &found)) {
            for (new, old) in references.iter().zip(&known.references) {
                if let Some(reference) = old.get() {
                    // Empty until here.
                    let _ = new.set(reference.clone());
                }
            }
        }
        let found = Arc::new(Bound { generation, service: found, references });
        bound.store(Some(found.clone()));
        Ok(found)
    }

    fn service(bound: &Arc<Bound<P>>) -> &Arc<Service> {
        &bound.service
    }

    fn method<'a>(&'a self, _: &'a R) -> &'a str {
        R::NAME
    }

    fn spare(&self, work: &R) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(SPARE);
        codec::encode(Format::Bincode, work, &mut bytes).ok()?;
        Some(bytes)
    }

    fn again(&self, spare: &Vec<u8>) -> Option<R> {
        codec::decode(Format::Bincode, spare).ok()
    }

    async fn attempt(&self, bound: &Arc<Bound<P>>, place: usize, work: R, until: Instant) -> Result<R::Reply, Attempted<R::Error>> {
        let context = &self.routed.context;
        if let Some(reference) = bound.references[place].get() {
            return reference.call(work, until).await.map_err(Attempted::from);
        }
        let address = match bound.service.target(place) {
            Target::Nobody(reply) => {
                return serde_json::from_value((**reply).clone()).map_err(|error| {
                    let service = &self.routed.service;
                    let why = format!("{service} is routed to nobody, and the reply that its route has is none of {}: {error}", R::NAME);
                    Attempted::from(CallError::NoEffect(NoEffect::VersionNotSpoken(why.into())))
                });
            }
            Target::Transport(transport) => {
                let message = in_json(&work, self.idempotent(&bound.service)).map_err(|why| Attempted::from(CallError::NoEffect(why)))?;
                drop(work);
                return over::<R>(&**transport, context, message, until).await;
            }
            Target::Here(name) => here(context, name),
            Target::Actor(address) => address.clone(),
        };
        let reference = bound.references[place].get_or_init(|| context.reach(address));
        reference.call(work, until).await.map_err(Attempted::from)
    }

    async fn elsewhere(&self, name: &str, work: R, until: Instant) -> Result<R::Reply, CallError<R::Error>> {
        let other = Routed::<P>::new(self.routed.router.clone(), self.routed.context.clone(), name);
        let kind = Typed { routed: &other, request: std::marker::PhantomData };
        let bound = kind.bind()?;
        // Not with the fallback's own fallback: a ring of them would go round until the deadline.
        once(&kind, bound, work, until.into()).await
    }
}

impl<P: Protocol, R: Request<Protocol = P>> Typed<'_, P, R> {
    fn idempotent(&self, service: &Service) -> bool {
        service.is_idempotent(R::NAME, self.routed.context.call())
    }
}

/// A typed request as an actor would be asked in JSON.
fn in_json<R: Request>(request: &R, idempotent: bool) -> Result<Message, NoEffect> {
    let mut body = Vec::new();
    codec::encode(Format::Json, &std::collections::BTreeMap::from([(R::NAME, request)]), &mut body)
        .map_err(|error| NoEffect::TooLarge(error.to_string().into()))?;
    Ok(Message { content_type: JSON.into(), body: body.into(), idempotent })
}

/// Carries a typed request in bytes.
async fn over<R: Request>(
    transport: &dyn Transport,
    context: &Context,
    message: Message,
    until: Instant,
) -> Result<R::Reply, Attempted<R::Error>> {
    let answer =
        carried(transport, message, context.call(), until).await.map_err(|failure| failure.read(|body| decode::<R::Error>(body)))?;
    decode::<R::Reply>(&answer.body).map_err(|error| Attempted::from(CallError::Unknown(error)))
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Unknown> {
    codec::decode(Format::Json, body).map_err(|error| Unknown::MalformedReply(error.to_string().into()))
}

/// What a transport answers, until `until` whatever it makes of that.
async fn carried(transport: &dyn Transport, message: Message, context: &CallContext, until: Instant) -> Result<Answer, Failure> {
    let context = CallContext { deadline: Some(until), ..context.onward() };
    match timeout_at(until.into(), transport.call(message, context, until)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError::Unknown(Unknown::DeadlinePassed).into()),
    }
}

/// The media type of what actors are asked in by those who were not compiled with them.
pub(crate) const JSON: &str = "application/json";

/// Calls in JSON and in bytes, by whoever was not compiled with the protocol.
pub(crate) struct Untyped<'a> {
    pub(crate) router: &'a Router,
    pub(crate) context: &'a Context,
    pub(crate) service: &'a str,
    pub(crate) payload: Payload,
}

impl Kind for Untyped<'_> {
    /// Shared by all attempts.
    type Work = Message;
    type Spare = Message;
    type Reply = Answer;
    /// As the callee wrote it.
    type Error = Bytes;
    type Bound = Service;

    fn context(&self) -> &Context {
        self.context
    }

    fn bind(&self) -> Result<Arc<Service>, NoEffect> {
        self.router.service(self.service)
    }

    fn service(bound: &Arc<Service>) -> &Arc<Service> {
        bound
    }

    fn method<'a>(&'a self, work: &'a Message) -> &'a str {
        match self.payload {
            Payload::Json => method(&work.body).unwrap_or_default(),
            Payload::Bytes => "handle",
        }
    }

    fn spare(&self, work: &Message) -> Option<Message> {
        Some(work.clone())
    }

    fn again(&self, spare: &Message) -> Option<Message> {
        Some(spare.clone())
    }

    async fn attempt(&self, bound: &Arc<Service>, place: usize, work: Message, until: Instant) -> Result<Answer, Attempted<Bytes>> {
        let address = match bound.target(place) {
            Target::Nobody(reply) => {
                return Ok(match self.payload {
                    Payload::Json => Answer { content_type: Some(JSON.into()), body: reply.to_string().into() },
                    Payload::Bytes => Answer { content_type: None, body: Bytes::new() },
                });
            }
            Target::Transport(transport) => {
                let mut work = work;
                work.idempotent = bound.is_idempotent(self.method(&work), self.context.call());
                return carried(&**transport, work, self.context.call(), until).await.map_err(Failure::attempted);
            }
            Target::Here(name) => here(self.context, name),
            Target::Actor(address) => address.clone(),
        };
        match self.payload {
            Payload::Json => {
                let body = self.context.call_json_bytes(address, work.body, until).await?;
                Ok(Answer { content_type: Some(JSON.into()), body })
            }
            Payload::Bytes => {
                let content = Content { content_type: Some(work.content_type), body: work.body, stream: None };
                match self.context.reach::<horos_wire::protocol::bytes::ByteService>(address).call(content, until).await {
                    Ok(Content { content_type, body, .. }) => Ok(Answer { content_type, body }),
                    Err(error) => Err(error.map(|refused| Bytes::from(serde_json::to_vec(&refused).unwrap_or_default())).into()),
                }
            }
        }
    }

    async fn elsewhere(&self, name: &str, work: Message, until: Instant) -> Result<Answer, CallError<Bytes>> {
        let kind = Untyped { service: name, ..*self };
        let bound = kind.bind()?;
        once(&kind, bound, work, until.into()).await
    }
}

/// The actor of that name on this node, and on no other.
pub(crate) fn here(context: &Context, name: &ActorName) -> Address {
    Address { name: name.clone(), scope: Scope::Node(context.node().name.clone()) }
}

/// The method that `{"method": {…}}` names.
fn method(body: &[u8]) -> Option<&str> {
    let start = body.iter().position(|b| !b.is_ascii_whitespace()).filter(|at| body[*at] == b'{')? + 1;
    let rest = &body[start..];
    let open = rest.iter().position(|b| !b.is_ascii_whitespace()).filter(|at| rest[*at] == b'"')? + 1;
    // No method has a name that needs escapes.
    let name = rest[open..].split(|b| *b == b'"').next()?;
    std::str::from_utf8(name).ok().filter(|name| !name.contains('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_method_of_a_message_is_read_without_the_rest() {
        assert_eq!(method(br#" { "reserve" : {"sku": "tea"}}"#), Some("reserve"));
        for odd in ["", "{", "[]", "{\"", "\"levels\"", "{\"a\\u0062\": 1}"] {
            assert!(method(odd.as_bytes()).is_none_or(|name| name.is_empty() || name == "\""), "{odd}");
        }
    }

    #[test]
    fn what_is_unknown_is_repeated_only_where_that_is_harmless() {
        let unknown: CallError<()> = Unknown::ActorDied.into();
        assert!(may_be_repeated(&unknown, true) && !may_be_repeated(&unknown, false));
        let refused: CallError<()> = NoEffect::ActorDied.into();
        assert!(may_be_repeated(&refused, false));
        for final_answer in [NoEffect::NotAllowed("x".into()), NoEffect::Malformed("x".into()), NoEffect::Expired, NoEffect::TooManyHops] {
            assert!(!may_be_repeated(&CallError::<()>::NoEffect(final_answer), true));
        }
        assert!(!may_be_repeated(&CallError::Failed(()), true));
    }

    #[test]
    fn an_endpoint_is_judged_by_its_own_failures_and_not_by_its_callers_impatience() {
        let judge = |error: CallError<()>, given: u64| judged::<(), ()>(&Err(error.into()), Duration::from_millis(given));
        assert_eq!(judge(Unknown::DeadlinePassed.into(), 5_000), Outcome::Failure);
        assert_eq!(judge(Unknown::DeadlinePassed.into(), 5), Outcome::Ignored);
        assert_eq!(judge(Unknown::PeerLost("x".into()).into(), 5), Outcome::Failure);
        assert_eq!(judge(CallError::Failed(()), 5), Outcome::Success);
        assert_eq!(judge(NoEffect::Overloaded("x".into()).into(), 5), Outcome::Ignored);
        assert_eq!(judge(NoEffect::NoRoute("x".into()).into(), 5), Outcome::Failure);
    }
}
