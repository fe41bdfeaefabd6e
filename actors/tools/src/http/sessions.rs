//! Sessions of the protocol's earlier versions: whose each is, and how many there may be.
//!
//! rmcp keeps a session's streams and ends one that is idle; it knows no owners and no bounds. Those are kept here. A principal at its
//! bound gets a new session for the one that it has left alone longest, so clients that never end theirs do not shut themselves out; when
//! there are too many in all, a principal without any gets none.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use ::http::{HeaderValue, Response, StatusCode, header::RETRY_AFTER};
use futures_util::Stream;
use parking_lot::Mutex;
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::streamable_http_server::{
        SessionId, SessionManager,
        session::{
            ServerSseMessage,
            local::{LocalSessionManager, LocalSessionManagerError, SessionConfig},
        },
    },
};
use tokio_util::sync::CancellationToken;

use super::{Body, bare, proof::Proofs};
use crate::Credential;

tokio::task_local! {
    /// The visit that the task is at: rmcp asks for a session without saying for whom.
    static VISIT: Arc<Visit>;
}

/// A session that is ended has this long to take notice; then it is forgotten, and ends with its connection.
const ENDING: Duration = Duration::from_secs(5);

/// One request, while rmcp has it.
pub(super) struct Visit {
    owner: Arc<str>,
    shown: Option<Credential>,
    /// There was no room for its session.
    refused: AtomicBool,
}

impl Visit {
    pub(super) fn new(owner: Arc<str>, shown: Option<Credential>) -> Arc<Self> {
        Arc::new(Self { owner, shown, refused: AtomicBool::new(false) })
    }

    /// Waits for `answer`, to which this visit is known.
    pub(super) async fn accompany(self: Arc<Self>, answer: impl Future<Output = Response<Body>>) -> Response<Body> {
        let answer = VISIT.scope(self.clone(), answer).await;
        if !self.refused.load(Relaxed) {
            return answer;
        }
        let mut refusal = bare(StatusCode::SERVICE_UNAVAILABLE);
        refusal.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
        refusal
    }
}

pub(super) struct Sessions {
    rmcp: Arc<LocalSessionManager>,
    most: usize,
    most_of_one: usize,
    proofs: Option<Proofs>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<SessionId, Held>,
    /// How many each has; nobody is in it who has none.
    owners: HashMap<Arc<str>, usize>,
}

struct Held {
    owner: Arc<str>,
    last: Instant,
    /// What was shown last for it.
    shown: Option<Credential>,
    /// Ends its streams, when it is forgotten at the latest.
    over: CancellationToken,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("there are too many sessions")]
    Full,
    #[error("a session was asked for by nobody")]
    Nobody,
    #[error("the session cannot do this now")]
    Rmcp(#[from] LocalSessionManagerError),
}

impl Sessions {
    pub(super) fn new(config: SessionConfig, most: usize, most_of_one: usize, proofs: Option<Proofs>) -> Self {
        let mut rmcp = LocalSessionManager::default();
        rmcp.session_config = config;
        Self { rmcp: Arc::new(rmcp), most, most_of_one, proofs, table: Arc::default() }
    }

    pub(super) fn count(&self) -> usize {
        self.table.lock().sessions.len()
    }

    /// The session called `id` and what tells its end, if it is `owner`'s; it has been used then, and `shown` for it.
    pub(super) fn of(&self, id: &str, owner: &str, shown: Option<&Credential>) -> Option<(SessionId, CancellationToken)> {
        let mut table = self.table.lock();
        let (known, _) = table.sessions.get_key_value(id)?;
        let known = known.clone();
        let held = table.sessions.get_mut(id).filter(|held| *held.owner == *owner)?;
        held.last = Instant::now();
        held.shown = shown.cloned();
        Some((known, held.over.clone()))
    }

    /// Ends the session called `id` when what was shown for it proves nobody any more; ends with the session.
    fn watch(&self, id: SessionId, over: CancellationToken) {
        let Some(proofs) = self.proofs.clone() else { return };
        let (table, rmcp) = (self.table.clone(), self.rmcp.clone());
        tokio::spawn(async move {
            let shown = || table.lock().sessions.get(&id).and_then(|held| held.shown.clone());
            tokio::select! {
                () = proofs.lost(shown) => {}
                () = over.cancelled() => return,
            }
            table.lock().remove(&id);
            drop(tokio::time::timeout(ENDING, rmcp.close_session(&id)).await);
        });
    }

    /// Room for one more of `owner`'s: at once, or for one that has to go.
    fn make_room(&self, owner: &Arc<str>) -> Result<Option<SessionId>, SessionError> {
        let mut table = self.table.lock();
        let own = table.owners.get(owner).copied().unwrap_or(0);
        if own < self.most_of_one && table.sessions.len() < self.most {
            return Ok(None);
        }
        let owned = table.sessions.iter().filter(|(_, held)| held.owner == *owner);
        let idlest = owned.min_by_key(|(_, held)| held.last).map(|(id, _)| id.clone()).ok_or(SessionError::Full)?;
        table.remove(&idlest);
        Ok(Some(idlest))
    }
}

impl Table {
    fn insert(&mut self, id: SessionId, visit: &Visit, over: CancellationToken) {
        let (owner, shown) = (visit.owner.clone(), visit.shown.clone());
        *self.owners.entry(owner.clone()).or_default() += 1;
        self.sessions.insert(id, Held { owner, last: Instant::now(), shown, over });
    }

    fn remove(&mut self, id: &str) {
        let Some(held) = self.sessions.remove(id) else { return };
        if let Some(count) = self.owners.get_mut(&held.owner) {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(&held.owner);
            }
        }
    }
}

impl SessionManager for Sessions {
    type Error = SessionError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionError> {
        let visit = VISIT.try_with(Arc::clone).map_err(|_| SessionError::Nobody)?;
        let over = self.make_room(&visit.owner).inspect_err(|_| visit.refused.store(true, Relaxed))?;
        if let Some(over) = over {
            let rmcp = self.rmcp.clone();
            // Beside the new one: it may have a client that reads nothing, and is waited for.
            tokio::spawn(async move { drop(tokio::time::timeout(ENDING, rmcp.close_session(&over)).await) });
        }
        let (id, transport) = self.rmcp.create_session().await?;
        // Two at once may both have found the last room; the bound is passed by as many as that.
        let over = CancellationToken::new();
        self.table.lock().insert(id.clone(), &visit, over.clone());
        self.watch(id.clone(), over);
        Ok((id, transport))
    }

    async fn initialize_session(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<ServerJsonRpcMessage, SessionError> {
        Ok(self.rmcp.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionError> {
        Ok(self.rmcp.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionError> {
        self.table.lock().remove(id);
        Ok(self.rmcp.close_session(id).await?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        Ok(self.rmcp.create_stream(id, message).await?)
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), SessionError> {
        Ok(self.rmcp.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        Ok(self.rmcp.create_standalone_stream(id).await?)
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionError> {
        Ok(self.rmcp.resume(id, last_event_id).await?)
    }
}
