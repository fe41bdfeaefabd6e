//! An MCP client: other people's tools, over HTTP (HTTP/3 too, where the endpoint says `h3://`), QUIC and the pipes of programs, as
//! actors.
//!
//! ```text
//! Clients ── Client ──▶ Shared ◀── life, an actor for each endpoint: greets, keeps the list, notices the end
//!    (one a node)  (one a user)      │
//!                                    ▼
//!                                 Session ── rmcp ── http: requests by egress
//!                                                 ├─ quic: streams, to nodes of the cluster and to others
//!                                                 └─ program: the pipes of one that this node starts
//! ```
//!
//! [`Clients`] are a node's: `nodes` makes them and starts their supervisor. [`Clients::client`] gives out a [`Client`] for an endpoint;
//! all who name the same one, with the same authorization, share its actor, which starts at the first call and ends when the last
//! [`Client`] is dropped.
//!
//! What it promises:
//! - A call ends by its deadline. Its error says whether it had no effect, or whether nobody knows: what was never written, and what
//!   the server says that it did not look at, had none.
//! - A server that goes away is found again, by attempts that come later and later, with jitter; calls meanwhile are told at once.
//! - Both generations of the protocol are spoken, each as the server has it: a session that it forgot is made again, and its list is
//!   kept by what it tells of, by its subscription or by looking.
//! - Everything from a server has a largest size, and a stranger's text goes nowhere longer than a line.
//! - Nobody is asked anything on a server's behalf, unless the program [answers](Answers).

mod authorize;
mod clients;
mod error;
mod handler;
mod http;
mod life;
pub mod oauth;
mod program;
mod quic;
mod session;
mod shared;
mod sse;

use std::{fmt, sync::Arc, time::Instant};

use horos_wire::{NoEffect, Unknown};
use rmcp::model::{CallToolResult, JsonObject, RequestMetaObject, Tool};
use serde::Serialize;

pub use self::{
    authorize::{Authorize, AuthorizeError, Challenge, FromFile, MAX_CHALLENGES},
    clients::{Clients, MAX_CLIENTS, TooMany, Ways},
    error::ClientError,
    handler::{Answers, Nobody},
    http::patient,
    life::Times,
    program::{INHERITED, NoProgram, Program, Programs},
    session::Lifecycle,
};
use self::{
    error::cut,
    session::params,
    shared::{Shared, State},
};

/// Largest message, either way, in bytes: the Go system's figure (`MaxMessageSize`), and an event's or an answer's over HTTP.
pub const MAX_MESSAGE: usize = 10 << 20;
/// Calls of one endpoint at once, of all who use it; more are refused. Half of what `egress` lets go to one host.
pub const IN_FLIGHT: usize = 64;
/// Tools of one server that are kept: as many as a node of ours may have.
pub const MAX_TOOLS: usize = 10_000;

/// What is asked of one endpoint. The endpoint's actor lives for as long as anybody holds one of these. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<clients::Held>);

/// What it is about, and how it is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// What proves this node there.
    pub authorize: Option<Arc<dyn Authorize>>,
    /// Who answers what servers ask.
    pub answers: Arc<dyn Answers>,
    /// Which versions are spoken.
    pub lifecycle: Lifecycle,
    /// How long.
    pub times: Times,
}

impl fmt::Debug for dyn Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answers")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { authorize: None, answers: Arc::new(Nobody), lifecycle: Lifecycle::default(), times: Times::default() }
    }
}

/// How an endpoint stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Which one, without what may be a secret in a URL's query.
    pub endpoint: Box<str>,
    /// `idle`, `connecting`, `connected` or `waiting`.
    pub state: &'static str,
    /// The version of the protocol, when connected.
    pub version: Option<String>,
    /// What the server calls itself, when it does.
    pub server: Option<String>,
    /// How many tools it lists, where that is known.
    pub tools: Option<usize>,
    /// Calls in flight.
    pub in_flight: u32,
    /// Connections so far.
    pub connections: u64,
    /// What went wrong last, if that has not passed.
    pub last_error: Option<String>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.shared().name)
    }
}

impl Client {
    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// Calls `tool`, until `until`. What it says, be it an error of its own, is its result.
    ///
    /// # Errors
    /// [`ClientError`] says whether it can have had an effect.
    ///
    /// # Cancel safety
    /// Dropped, the server is told that nobody waits any more; it may have done it.
    pub async fn call(
        &self,
        tool: &str,
        arguments: Option<JsonObject>,
        meta: RequestMetaObject,
        until: Instant,
    ) -> Result<CallToolResult, ClientError> {
        let shared = self.shared();
        let _place = shared.enter()?;
        let params = params(tool, arguments, meta);
        let mut again = true;
        loop {
            let session = shared.session(until).await?;
            let asked = tokio::time::timeout_at(until.into(), session.call(params.clone(), shared.lists(tool)));
            let failure = match asked.await {
                Ok(Ok(result)) => {
                    shared.answered();
                    return Ok(result);
                }
                Ok(Err(failure)) => failure,
                Err(_) => {
                    shared.suspected.notify_one();
                    return Err(Unknown::DeadlinePassed.into());
                }
            };
            if failure.headers_differ && again {
                // It was not looked at, for want of fields that the server's list says to send.
                again = false;
                let listed = tokio::time::timeout_at(until.into(), session.tools()).await.map_err(|_| NoEffect::Expired)?;
                shared.list(listed.map_err(ClientError::before)?);
                continue;
            }
            shared.judge(&session, &failure.error);
            return Err(failure.error);
        }
    }

    /// The server's list as it was last told, once there is one.
    ///
    /// # Errors
    /// [`ClientError::NoEffect`]: there is no connection, or no list in time.
    pub async fn tools(&self, until: Instant) -> Result<Arc<[Tool]>, ClientError> {
        self.shared().tools(until).await
    }

    /// Waits until the server has been greeted.
    ///
    /// # Errors
    /// Why it was not.
    pub async fn connected(&self, until: Instant) -> Result<(), ClientError> {
        self.shared().session(until).await.map(drop)
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.shared().status()
    }
}

impl ClientError {
    /// The same, of something that was asked before what it is about: that had no effect.
    fn before(self) -> Self {
        match self {
            Self::Unknown { why, retry_after } => Self::NoEffect { why: NoEffect::NoRoute(cut(&why.to_string()).into()), retry_after },
            known @ Self::NoEffect { .. } => known,
        }
    }
}
