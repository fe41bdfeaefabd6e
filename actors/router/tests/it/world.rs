//! A node with a router and counters for services.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use horos_router::{
    Router,
    breaker::Breakers,
    spec::Row,
    strategy::{Answer, Failure, Message, Strategies, Strategy, Target, Transport},
};
use horos_supervision::{
    Context, Exchange, Handle, Service, ServiceSpec, Supervisor, SupervisorSpec, service, supervisor::Strategy as Restarts,
};
use horos_wire::{CallContext, CallError, Incarnation, Never, NoEffect, NodeId, Unknown, protocol};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Counts a call, and answers who counted.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Count {
    pub(crate) number: u64,
}
/// Who counted which number.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Counted {
    pub(crate) by: String,
    pub(crate) number: u64,
}
/// Never answers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Hang {}
/// Panics.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Panic {}
/// Refuses with an error of its own.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Refuse {}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{left} left")]
pub(crate) struct Refusal {
    pub(crate) left: u32,
}

protocol! {
    pub(crate) Counting = "counting" v1 {
        1 count: Count => Option<Counted>;
        2 hang: Hang => ();
        3 panic: Panic => ();
        4 refuse: Refuse => (), Refusal;
    }
}

/// Every number that any counter has counted, with who did.
pub(crate) type Book = Arc<Mutex<Vec<(String, u64)>>>;

struct Counter {
    name: String,
    book: Book,
}

impl Service for Counter {
    type Protocol = Counting;
}
impl Handle<Count> for Counter {
    async fn handle(&mut self, count: Count, _: &Context) -> Result<Option<Counted>, Never> {
        self.book.lock().push((self.name.clone(), count.number));
        Ok(Some(Counted { by: self.name.clone(), number: count.number }))
    }
}
impl Handle<Hang> for Counter {
    async fn handle(&mut self, _: Hang, _: &Context) -> Result<(), Never> {
        std::future::pending().await
    }
}
impl Handle<Panic> for Counter {
    async fn handle(&mut self, _: Panic, _: &Context) -> Result<(), Never> {
        panic!("as a test wants it")
    }
}
impl Handle<Refuse> for Counter {
    async fn handle(&mut self, _: Refuse, _: &Context) -> Result<(), Refusal> {
        Err(Refusal { left: 3 })
    }
}

pub(crate) struct World {
    pub(crate) router: Router,
    pub(crate) context: Context,
    pub(crate) book: Book,
    _root: horos_supervision::SupervisorHandle,
}

impl World {
    /// A node that runs `names`, without routes, whose strategy `wire` is `transport`.
    pub(crate) async fn new(names: &[&str], transport: Option<Arc<dyn Transport>>) -> Self {
        Self::with(names, |strategies| match transport {
            Some(transport) => strategies.register("wire", Arc::new(Wire(transport))),
            None => strategies,
        })
        .await
    }

    /// The same with the strategies that `more` makes of the builtin ones.
    pub(crate) async fn with(names: &[&str], more: impl FnOnce(Strategies) -> Strategies) -> Self {
        let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
        let book = Book::default();
        let runtime = tokio::runtime::Handle::current();
        let children = names.iter().map(|name| {
            let (own, book) = ((*name).to_owned(), book.clone());
            let open = move |_: Context| {
                let counter = Counter { name: own.clone(), book: book.clone() };
                async move { Ok(counter) }
            };
            service(&exchange, &runtime, ServiceSpec::new(name.parse().unwrap()), open).unwrap()
        });
        let spec = SupervisorSpec::new("root", Restarts::OneForOne, children.collect()).intensity(1_000, Duration::from_secs(1));
        let root = Supervisor::start(spec, None).await.unwrap();
        let strategies = more(Strategies::builtin());
        let router = Router::new(exchange.clone(), strategies, Breakers::new(None, Arc::new(|_, _| {})));
        exchange.attach(Arc::new(router.clone()));
        Self { router, context: Context::new(exchange, "test"), book, _root: root }
    }

    /// Puts these routes in force: service, strategy, endpoint, configuration.
    pub(crate) fn routes(&self, rows: &[(&str, &str, &str, &str)]) -> horos_router::Taken {
        self.router.take_up(rows.iter().map(|(service, strategy, endpoint, config)| row(service, strategy, endpoint, config)).collect())
    }
}

pub(crate) fn row(service: &str, strategy: &str, endpoint: &str, config: &str) -> Row {
    let endpoint = (!endpoint.is_empty()).then(|| endpoint.into());
    Row { service: service.into(), strategy: strategy.into(), endpoint, config: Some(config.into()), updated_at: 0 }
}

/// A strategy of a program's own.
struct Wire(Arc<dyn Transport>);

impl Strategy for Wire {
    fn check(&self, _: &str, _: &str, _: &horos_router::config::Config) -> Result<(), String> {
        Ok(())
    }
    fn open(&self, _: &str, endpoint: &str, _: &Arc<horos_router::config::Config>) -> Result<Target, String> {
        Ok(Target::Transport(Arc::new(To { endpoint: endpoint.into(), transport: self.0.clone() })))
    }
}

struct To {
    endpoint: String,
    transport: Arc<dyn Transport>,
}

impl Transport for To {
    fn call(
        &self,
        mut message: Message,
        context: CallContext,
        until: std::time::Instant,
    ) -> futures_util::future::BoxFuture<'_, Result<Answer, Failure>> {
        message.content_type = self.endpoint.clone().into();
        self.transport.call(message, context, until)
    }
}

/// A transport whose endpoints (told in the content type) do what the closure says, by the number of the call.
pub(crate) struct Scripted<F> {
    calls: AtomicU64,
    script: F,
}

/// What an endpoint does with a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    Answers,
    AnswersAfter(Duration),
    IsLost,
    IsOverloaded { retry_after: Option<Duration> },
}

impl<F: Fn(u64, &str) -> Does + Send + Sync + 'static> Scripted<F> {
    pub(crate) fn new(script: F) -> Arc<Self> {
        Arc::new(Self { calls: AtomicU64::new(0), script })
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl<F: Fn(u64, &str) -> Does + Send + Sync + 'static> Transport for Scripted<F> {
    fn call(
        &self,
        message: Message,
        _: CallContext,
        _: std::time::Instant,
    ) -> futures_util::future::BoxFuture<'_, Result<Answer, Failure>> {
        let does = (self.script)(self.calls.fetch_add(1, Ordering::Relaxed), &message.content_type);
        Box::pin(async move {
            let answer = || {
                let counted = Counted { by: message.content_type.to_string(), number: 0 };
                Ok(Answer { content_type: None, body: serde_json::to_vec(&counted).unwrap().into() })
            };
            match does {
                Does::Answers => answer(),
                Does::AnswersAfter(wait) => {
                    tokio::time::sleep(wait).await;
                    answer()
                }
                Does::IsLost => Err(CallError::Unknown(Unknown::PeerLost(message.content_type)).into()),
                Does::IsOverloaded { retry_after } => {
                    Err(Failure { error: NoEffect::Overloaded(message.content_type).into(), retry_after })
                }
            }
        })
    }
}
