//! Services: what a user writes, and the actor that hosts it.
//!
//! ```
//! use horos_supervision::{Context, Handle, Service};
//! # use horos_wire::protocol;
//! # use schemars::JsonSchema;
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Debug, Serialize, Deserialize, JsonSchema)] pub struct Add { pub n: u64 }
//! # protocol! { pub Counting = "counting" v1 { 1 add: Add => u64; } }
//! struct Counter { total: u64 }
//!
//! impl Service for Counter { type Protocol = Counting; }
//!
//! impl Handle<Add> for Counter {
//!     async fn handle(&mut self, add: Add, _: &Context) -> Result<u64, horos_wire::Never> {
//!         self.total += add.n;
//!         Ok(self.total)
//!     }
//! }
//! ```

use std::{any::TypeId, fmt, sync::Arc, time::Duration, time::Instant};

use futures_util::future::BoxFuture;
use horos_wire::{
    ActorName, Format, Methods, NoEffect, Protocol, Request, Unknown, Visit, codec,
    protocol::Method,
    tree::{Kind, Outcome, State},
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::runtime::Handle as Runtime;

use crate::{
    context::Context,
    exchange::{Exchange, Inbox, RegisterError},
    mailbox::{Attached, DEFAULT_CAPACITY, Mailbox, Post, Returned, Wake, Work},
    reference::{LocalCall, LocalCast},
    supervisor::{ChildSpec, OnStuck, Restart},
    vitals::{Incoming, Vitals},
};

/// Messages handled between two looks at the supervisor's signals: at a microsecond each, well under the
/// 500 µs that one actor may hold a runtime's worker.
const BATCH: usize = 128;

/// What answers a [`Protocol`]; a [`Handle`] for each of its requests.
pub trait Service: Send + Sized + 'static {
    /// What it answers.
    type Protocol: Protocol;

    /// Called once when the service is stopped in good order, after the messages that waited were handled.
    fn stopping(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Handles one request of the service's protocol.
///
/// `Err` is an *answer*: the caller receives it as itself. A broken state is no answer: panic, and the
/// supervisor opens the service anew.
pub trait Handle<R: Request>: Service {
    /// Handles `request`; nothing else of this service runs meanwhile.
    fn handle(&mut self, request: R, cx: &Context) -> impl Future<Output = Result<R::Reply, R::Error>> + Send;
}

/// Why a service could not be opened; its supervisor tries again.
pub type OpenError = Box<dyn std::error::Error + Send + Sync>;

/// How a service is run.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its name, unique on the node.
    pub name: ActorName,
    /// When it is started again. Default [`Restart::Permanent`].
    pub restart: Restart,
    /// What happens when it is stuck. Default [`OnStuck::Report`].
    pub on_stuck: OnStuck,
    /// At one message for longer than this, it is stuck. Default 5 s.
    pub stuck_after: Duration,
    /// How long it may take to stop. Default 5 s.
    pub shutdown: Duration,
    /// Messages that may wait. Default [`DEFAULT_CAPACITY`].
    pub capacity: usize,
}

impl ServiceSpec {
    /// The defaults, for `name`.
    pub fn new(name: ActorName) -> Self {
        Self {
            name,
            restart: Restart::Permanent,
            on_stuck: OnStuck::Report,
            stuck_after: Duration::from_secs(5),
            shutdown: Duration::from_secs(5),
            capacity: DEFAULT_CAPACITY,
        }
    }
}

/// Registers a service's name on the node and returns the child that its supervisor is to start.
///
/// The actor runs on `runtime`; `open` is called there, at each start.
///
/// # Errors
/// [`RegisterError`] when the name is taken.
pub fn service<S, O, F>(exchange: &Exchange, runtime: &Runtime, spec: ServiceSpec, open: O) -> Result<ChildSpec, RegisterError>
where
    S: Service,
    S::Protocol: Methods<Table<S>>,
    O: Fn(Context) -> F + Send + Sync + 'static,
    F: Future<Output = Result<S, OpenError>> + Send + 'static,
{
    let vitals = Vitals::new(spec.name.as_str(), Kind::Service, spec.stuck_after);
    vitals.set_protocol(&format!("{}/{}", S::Protocol::NAME, S::Protocol::VERSION));
    let mailbox = Mailbox::new(spec.capacity, &vitals);
    let waiting = Arc::downgrade(&mailbox);
    vitals.on_retirement(move || {
        if let Some(mailbox) = waiting.upgrade() {
            mailbox.close();
        }
    });
    exchange.register(
        spec.name.clone(),
        Arc::new(ServiceInbox::<S::Protocol> { mailbox: mailbox.clone(), vitals: vitals.clone(), protocol: std::marker::PhantomData }),
    )?;
    let mut table = Table { methods: Vec::new() };
    S::Protocol::visit(&mut table);
    let table = Arc::new(table);
    let open: Open<S> = Arc::new(move |context| Box::pin(open(context)));
    let (exchange, name) = (exchange.clone(), spec.name);
    let child = ChildSpec::actor(vitals, Some(runtime.clone()), move |start| {
        let args = HostArgs {
            context: Context::for_actor(exchange.clone(), &name),
            open: open.clone(),
            table: table.clone(),
            mailbox: mailbox.clone(),
            vitals: start.vitals.clone(),
        };
        (Host::<S>::new(), args)
    });
    Ok(child.restart(spec.restart).shutdown(spec.shutdown).on_stuck(spec.on_stuck))
}

/// The receiving end that the directory knows.
struct ServiceInbox<P> {
    mailbox: Arc<Mailbox>,
    vitals: Arc<Vitals>,
    protocol: std::marker::PhantomData<fn() -> P>,
}

impl<P: Protocol> Inbox for ServiceInbox<P> {
    fn post(&self, post: Box<Post>) -> Result<(), Box<Returned>> {
        // Between lives messages wait; after the last there is nobody to wait for.
        let taken = if self.is_closed() {
            Err(Returned::boxed(post, NoEffect::NoSuchActor(self.vitals.name().into())))
        } else {
            self.mailbox.push(post)
        };
        if taken.is_ok() && self.is_closed() {
            // Closed between the look and the push: whoever closed it did not see this message.
            self.mailbox.close();
        }
        taken.inspect_err(|returned| {
            // A cast that finds no room is not refused: it waits, and whoever gives up waiting says so.
            if !(returned.post.work.is_cast() && matches!(returned.why, NoEffect::Overloaded(_))) {
                self.vitals.refuse();
            }
        })
    }
    fn protocol(&self) -> (&'static str, u16) {
        (P::NAME, P::VERSION)
    }
    fn protocol_type(&self) -> TypeId {
        TypeId::of::<P>()
    }
    fn methods(&self) -> &'static [Method] {
        P::methods()
    }
    fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }
    fn is_closed(&self) -> bool {
        matches!(self.vitals.state(), State::Stopped | State::Failed)
    }
    fn room(&self) -> BoxFuture<'static, ()> {
        let mailbox = self.mailbox.clone();
        Box::pin(async move { mailbox.room().await })
    }
}

type Open<S> = Arc<dyn Fn(Context) -> BoxFuture<'static, Result<S, OpenError>> + Send + Sync>;

/// How each request of a protocol is handled by `S`; built by [`Methods::visit`].
pub struct Table<S> {
    methods: Vec<Entry<S>>,
}

impl<S> fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.methods.iter().map(|entry| entry.name)).finish()
    }
}

struct Entry<S> {
    number: u16,
    name: &'static str,
    run: for<'a> fn(&'a mut S, Work, &'a Context) -> BoxFuture<'a, Outcome>,
}

impl<S, R> Visit<R> for Table<S>
where
    S: Handle<R>,
    R: Request,
{
    fn visit(&mut self) {
        self.methods.push(Entry { number: R::METHOD, name: R::NAME, run: |service, work, cx| Box::pin(run::<S, R>(service, work, cx)) });
    }
}

impl<S> Table<S> {
    fn find(&self, number: u16) -> Option<&Entry<S>> {
        // Numbers rise (checked at compile time) and mostly run from 1.
        match self.methods.get(usize::from(number).wrapping_sub(1)) {
            Some(entry) if entry.number == number => Some(entry),
            _ => self.methods.iter().find(|entry| entry.number == number),
        }
    }
}

async fn run<S: Handle<R>, R: Request>(service: &mut S, work: Work, cx: &Context) -> Outcome {
    match work {
        Work::LocalCall(call) => {
            let Ok(mut call) = call.downcast::<LocalCall<R>>() else { return Outcome::Refused };
            let Some(request) = call.begin() else { return Outcome::Refused };
            let answer = service.handle(request, cx).await;
            let outcome = if answer.is_ok() { Outcome::Done } else { Outcome::Failed };
            call.end(answer);
            outcome
        }
        Work::LocalCast(cast) => {
            let request = cast.downcast::<LocalCast<R>>().ok().and_then(|mut cast| cast.begin());
            let Some(request) = request else { return Outcome::Refused };
            cast_outcome(service.handle(request, cx).await)
        }
        Work::Encoded { answer: Some(answer), .. } if answer.is_abandoned() => {
            answer.refuse(NoEffect::Expired);
            Outcome::Refused
        }
        Work::Encoded { format, body, answer } => {
            let request = match codec::decode::<R>(format, &body) {
                Ok(request) => request,
                Err(error) => {
                    if let Some(answer) = answer {
                        answer.refuse(NoEffect::Malformed(malformed::<R>(format, &error).into()));
                    }
                    return Outcome::Refused;
                }
            };
            drop(body);
            match answer {
                Some(mut answer) => {
                    answer.begin(Unknown::ActorDied);
                    match service.handle(request, cx).await {
                        Ok(reply) => {
                            answer.reply(&reply);
                            Outcome::Done
                        }
                        Err(error) => {
                            answer.fail(&error);
                            Outcome::Failed
                        }
                    }
                }
                None => cast_outcome(service.handle(request, cx).await),
            }
        }
    }
}

fn cast_outcome<T, E: fmt::Debug>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(error) => {
            // Nobody waits for it, so it is said here or nowhere.
            tracing::debug!(?error, "a cast failed");
            Outcome::Failed
        }
    }
}

fn malformed<R: Request>(format: Format, error: &codec::CodecError) -> String {
    match format {
        Format::Bincode => error.to_string(),
        Format::Json => format!("{}: {error}", R::NAME),
    }
}

struct Host<S>(std::marker::PhantomData<fn() -> S>);

impl<S> Host<S> {
    fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

struct HostArgs<S> {
    context: Context,
    open: Open<S>,
    table: Arc<Table<S>>,
    mailbox: Arc<Mailbox>,
    vitals: Arc<Vitals>,
}

struct HostState<S> {
    service: S,
    context: Context,
    table: Arc<Table<S>>,
    mailbox: Arc<Mailbox>,
    vitals: Arc<Vitals>,
    attached: Attached,
}

impl<S: Service> Actor for Host<S> {
    type Msg = Wake;
    type State = HostState<S>;
    type Arguments = HostArgs<S>;

    async fn pre_start(&self, me: ActorRef<Wake>, args: HostArgs<S>) -> Result<HostState<S>, ActorProcessingErr> {
        let service = (args.open)(args.context.clone()).await?;
        args.vitals.started();
        Ok(HostState {
            service,
            context: args.context,
            table: args.table,
            attached: args.mailbox.attach(me),
            mailbox: args.mailbox,
            vitals: args.vitals,
        })
    }

    async fn handle(&self, _: ActorRef<Wake>, _: Wake, state: &mut HostState<S>) -> Result<(), ActorProcessingErr> {
        let mut now = Instant::now();
        for _ in 0..BATCH {
            let Some(post) = state.mailbox.pop() else { break };
            now = state.handle(post, now).await;
        }
        state.mailbox.rest();
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Wake>, state: &mut HostState<S>) -> Result<(), ActorProcessingErr> {
        // Stopped in good order: what waits is still served. The supervisor bounds how long this may take.
        let mut now = Instant::now();
        while let Some(post) = state.mailbox.pop() {
            now = state.handle(post, now).await;
        }
        state.service.stopping().await;
        state.attached.let_go();
        Ok(())
    }
}

impl<S: Service> HostState<S> {
    /// Handles one message; returns when it ended, which is when the next one begins.
    async fn handle(&mut self, post: Box<Post>, now: Instant) -> Instant {
        if post.context.deadline.is_some_and(|deadline| deadline <= now) {
            self.vitals.refuse();
            post.refuse(NoEffect::Expired);
            return now;
        }
        let Some(entry) = self.table.find(post.method) else {
            self.vitals.refuse();
            let why = NoEffect::VersionNotSpoken(format!("{} has no method {}", S::Protocol::NAME, post.method).into());
            post.refuse(why);
            return now;
        };
        let Post { work, context, caller, size, received, hold, .. } = *post;
        self.vitals.begin(
            now,
            Incoming {
                method: entry.name,
                sender: caller.label(),
                size,
                trace: context.trace,
                waited: now.saturating_duration_since(received),
            },
        );
        self.context.call = context;
        self.context.caller = caller;
        let outcome = (entry.run)(&mut self.service, work, &self.context).await;
        drop(hold);
        let now = Instant::now();
        self.vitals.end(now, outcome);
        now
    }
}
