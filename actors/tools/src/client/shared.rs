//! What an endpoint's actor and those who call share: the session, the list, and counts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use horos_router::strategy::mcp::Endpoint;
use horos_wire::NoEffect;
use http::Version;
use parking_lot::Mutex;
use rmcp::model::Tool;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use super::{
    Answers, Authorize, IN_FLIGHT, Lifecycle, Options, Status, Times, Ways,
    error::ClientError,
    http::Http,
    session::{NotOpened, Session},
};
use crate::Credential;

/// One endpoint.
pub(super) struct Shared {
    /// What it is called, in the tree and in errors.
    pub(super) name: Arc<str>,
    endpoint: Endpoint,
    /// Where rmcp posts.
    url: String,
    ways: Ways,
    authorize: Option<Arc<dyn Authorize>>,
    answers: Arc<dyn Answers>,
    lifecycle: Lifecycle,
    pub(super) times: Times,
    pub(super) state: watch::Sender<State>,
    /// The server says that its list is another.
    pub(super) changed: Arc<Notify>,
    /// A call, or a broken stream, has found something wrong with the connection.
    pub(super) suspected: Arc<Notify>,
    places: Semaphore,
    /// Callers without a session.
    waiting: AtomicU32,
    called: Notify,
    listed: ArcSwapOption<Box<[Tool]>>,
    told: watch::Sender<u64>,
    moments: Mutex<Moments>,
    connections: AtomicU64,
    last_error: Mutex<Option<String>>,
    /// Told at the first call.
    first: std::sync::Once,
    on_first: Box<dyn Fn() + Send + Sync>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    used: Option<Instant>,
    answered: Option<Instant>,
}

/// Whether there is a session.
#[derive(Clone)]
pub(super) enum State {
    /// None, and nobody wants one.
    Idle,
    /// It is being made; after a failed attempt, what that failed with.
    Connecting { before: Option<ClientError> },
    /// There is.
    Connected(Arc<Session>),
    /// It could not be made, and is tried again at `until`, or after `afresh` if somebody calls.
    Waiting { error: ClientError, afresh: Instant, until: Instant },
}

impl Shared {
    pub(super) fn new(
        name: Arc<str>,
        endpoint: Endpoint,
        ways: Ways,
        options: Options,
        on_first: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let Options { authorize, answers, lifecycle, times } = options;
        Self {
            name,
            url: match &endpoint {
                Endpoint::Http3(url) => url.to_string(),
                other => other.to_string(),
            },
            endpoint,
            ways,
            authorize,
            answers,
            lifecycle,
            times,
            state: watch::Sender::new(State::Idle),
            changed: Arc::default(),
            suspected: Arc::default(),
            places: Semaphore::new(IN_FLIGHT),
            waiting: AtomicU32::new(0),
            called: Notify::new(),
            listed: ArcSwapOption::empty(),
            told: watch::Sender::new(0),
            moments: Mutex::default(),
            connections: AtomicU64::new(0),
            last_error: Mutex::default(),
            first: std::sync::Once::new(),
            on_first: Box::new(on_first),
        }
    }

    /// A place among the calls.
    pub(super) fn enter(&self) -> Result<SemaphorePermit<'_>, NoEffect> {
        self.places.try_acquire().map_err(|_| NoEffect::Overloaded(format!("{}: {IN_FLIGHT} calls are in flight", self.name).into()))
    }

    pub(super) fn in_flight(&self) -> u32 {
        u32::try_from(IN_FLIGHT.saturating_sub(self.places.available_permits())).unwrap_or(u32::MAX)
    }

    /// The session: the one there is, or the one that is being made. Who comes when an attempt has just failed is told so, unless the next
    /// is within the grace; who comes later brings the next about.
    pub(super) async fn session(&self, until: Instant) -> Result<Arc<Session>, ClientError> {
        self.moments.lock().used = Some(Instant::now());
        self.first.call_once(|| (self.on_first)());
        if let State::Connected(session) = &*self.state.borrow()
            && !session.has_ended()
        {
            return Ok(session.clone());
        }
        let _waiting = Waiting::new(self);
        let mut states = self.state.subscribe();
        let graced = until.min(Instant::now() + self.times.grace);
        loop {
            let (latest, otherwise) = match &*states.borrow_and_update() {
                State::Connected(session) if !session.has_ended() => return Ok(session.clone()),
                State::Connected(_) | State::Idle | State::Connecting { before: None } => (until, None),
                State::Connecting { before: Some(error) } => (graced, Some(self.refusal(error, Instant::now()))),
                State::Waiting { error, afresh, until: again } if *again > graced && *afresh > Instant::now() => {
                    return Err(self.refusal(error, *afresh));
                }
                State::Waiting { error, afresh, .. } => (graced, Some(self.refusal(error, *afresh))),
            };
            match tokio::time::timeout_at(latest.into(), states.changed()).await {
                Ok(Ok(())) => {}
                // Nobody knows why, but nothing was sent.
                _ => return Err(otherwise.unwrap_or_else(|| NoEffect::Expired.into())),
            }
        }
    }

    fn refusal(&self, error: &ClientError, again: Instant) -> ClientError {
        let wait = again.saturating_duration_since(Instant::now());
        match error.clone().before() {
            ClientError::NoEffect { why, retry_after } => {
                ClientError::NoEffect { why, retry_after: Some(retry_after.unwrap_or(wait).max(wait)) }
            }
            other @ ClientError::Unknown { .. } => other,
        }
    }

    /// Resolves when somebody wants a session: waits for one, or has used one lately.
    pub(super) async fn wanted(&self) {
        loop {
            let called = self.called.notified();
            let used = self.moments.lock().used;
            if self.waiting.load(Relaxed) > 0 || used.is_some_and(|used| used.elapsed() < self.times.idle) {
                return;
            }
            called.await;
        }
    }

    /// Resolves when a call waits for a session.
    pub(super) async fn called_for(&self) {
        loop {
            let called = self.called.notified();
            if self.waiting.load(Relaxed) > 0 {
                return;
            }
            called.await;
        }
    }

    /// Resolves when nobody has used it for so long.
    pub(super) async fn unused(&self, span: Duration) {
        loop {
            let used = self.moments.lock().used.unwrap_or_else(Instant::now);
            let left = span.saturating_sub(used.elapsed());
            if left.is_zero() && self.in_flight() == 0 {
                return;
            }
            tokio::time::sleep(left.max(Duration::from_millis(10))).await;
        }
    }

    /// Greets the server, as of old where it says that it is.
    pub(super) async fn connect(&self) -> Result<Session, ClientError> {
        match self.greet(self.lifecycle).await {
            Ok(session) => Ok(session),
            Err(NotOpened { is_old: true, .. }) if self.lifecycle == Lifecycle::Auto => {
                self.greet(Lifecycle::Initialize).await.map_err(|not| not.error)
            }
            Err(not) => Err(not.error),
        }
    }

    async fn greet(&self, lifecycle: Lifecycle) -> Result<Session, NotOpened> {
        let (answers, changed) = (self.answers.clone(), self.changed.clone());
        match &self.endpoint {
            Endpoint::Http(_) | Endpoint::Http3(_) => {
                let version = if matches!(self.endpoint, Endpoint::Http3(_)) { Version::HTTP_3 } else { Version::default() };
                let http = Http::new(self.ways.egress.clone(), version, self.authorize.clone(), self.suspected.clone());
                Session::over_http(http, &self.url, &self.name, lifecycle, self.times, answers, changed).await
            }
            Endpoint::Quic { host, port } => {
                let credential = self.credential().await?;
                let transport = self.ways.quic.host(&self.ways.egress, host, *port, credential).await?;
                Session::open(transport, &self.name, lifecycle, answers, changed, None).await
            }
            Endpoint::Node(node) => {
                let transport = self.ways.quic.node(node).await?;
                Session::open(transport, &self.name, lifecycle, answers, changed, None).await
            }
            Endpoint::Program(program) => {
                let started = self.ways.programs.start(program, self.times.parting).await;
                let started = started.map_err(|error| self.no_route(&error.to_string()))?;
                let transport = started.map_err(|error| self.no_route(&error.to_string()))?;
                Session::with_program(transport, &self.name, lifecycle, answers, changed).await
            }
            _ => Err(self.no_route("this node does not know the way").into()),
        }
    }

    /// What is shown where there are no fields: a key or a token as it is.
    async fn credential(&self) -> Result<Option<Credential>, ClientError> {
        let Some(authorize) = &self.authorize else { return Ok(None) };
        let refused = |what: &str| ClientError::from(NoEffect::NotAllowed(format!("{}: {what}", self.name).into()));
        let shown = authorize.authorization().await.map_err(|error| refused(&error.to_string()))?;
        let Some(shown) = shown else { return Ok(None) };
        let line = shown.to_str().map_err(|_| refused("its authorization is no text"))?;
        let key =
            line.strip_prefix("Bearer ").ok_or_else(|| refused("over QUIC a key or a token is shown, so its file says \"Bearer …\""))?;
        Ok(Some(Credential(key.trim().into())))
    }

    pub(super) fn connected(&self, session: &Arc<Session>) {
        self.connections.fetch_add(1, Relaxed);
        *self.last_error.lock() = None;
        self.answered();
        self.state.send_replace(State::Connected(session.clone()));
    }

    pub(super) fn failed(&self, error: ClientError, afresh: Instant, until: Instant) {
        *self.last_error.lock() = Some(error.to_string());
        self.state.send_replace(State::Waiting { error, afresh, until });
    }

    pub(super) fn no_route(&self, why: &str) -> ClientError {
        NoEffect::NoRoute(format!("{}: {why}", self.name).into()).into()
    }

    /// The server has answered something.
    pub(super) fn answered(&self) {
        self.moments.lock().answered = Some(Instant::now());
    }

    pub(super) fn last_answer(&self) -> Instant {
        self.moments.lock().answered.unwrap_or_else(Instant::now)
    }

    /// What a failed call says of the connection.
    pub(super) fn judge(&self, session: &Session, error: &ClientError) {
        if matches!(error, ClientError::NoEffect { why: NoEffect::VersionNotSpoken(_), .. }) && session.doubt()
            || error.is_the_connections()
        {
            self.suspected.notify_one();
        }
        if !error.is_the_connections() {
            self.answered();
        }
    }

    pub(super) fn list(&self, tools: Vec<Tool>) {
        self.listed.store(Some(Arc::new(tools.into())));
        self.told.send_modify(|count| *count += 1);
    }

    /// Whether the server lists `tool`, where that is known.
    pub(super) fn lists(&self, tool: &str) -> Option<bool> {
        self.listed.load().as_ref().map(|listed| listed.iter().any(|one| one.name == tool))
    }

    pub(super) async fn tools(&self, until: Instant) -> Result<Arc<[Tool]>, ClientError> {
        let mut told = self.told.subscribe();
        self.session(until).await?;
        loop {
            told.mark_unchanged();
            if let Some(listed) = &*self.listed.load() {
                return Ok(listed.iter().cloned().collect());
            }
            match tokio::time::timeout_at(until.into(), told.changed()).await {
                Ok(Ok(())) => {}
                _ => return Err(self.no_route("it has not told what tools it has")),
            }
        }
    }

    /// What the tree shows of it.
    pub(super) fn told(&self, session: &Session) -> String {
        let tools = self.listed.load().as_ref().map_or(0, |listed| listed.len());
        format!("mcp/{} {tools} tools", session.version())
    }

    pub(super) fn status(&self) -> Status {
        let state = self.state.borrow().clone();
        let (word, session) = match &state {
            State::Idle => ("idle", None),
            State::Connecting { .. } => ("connecting", None),
            State::Connected(session) => ("connected", Some(session)),
            State::Waiting { .. } => ("waiting", None),
        };
        Status {
            endpoint: (*self.name).into(),
            state: word,
            version: session.map(|session| session.version()),
            server: session.and_then(|session| session.server()),
            tools: self.listed.load().as_ref().map(|listed| listed.len()),
            in_flight: self.in_flight(),
            connections: self.connections.load(Relaxed),
            last_error: self.last_error.lock().clone(),
        }
    }
}

/// Somebody waits for a session.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Relaxed);
        shared.called.notify_one();
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
