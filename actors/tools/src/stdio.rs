//! A bridge of a pipe to a node's door: `horos mcp`, for hosts that start a program and talk MCP with it over stdin and stdout.
//!
//! Lines go both ways as they are, over the first stream of a connection ([`crate::quic`]). What the bridge adds:
//!
//! - A line that is no message, or too large, is answered here in JSON-RPC's words; a host shows those, and not what stands on stderr.
//! - A node that restarts is dialled again. The session is opened anew as the host had opened it. What was asked and not answered is
//!   asked again where that does no harm; a call of a tool is not, and is answered with an error that says that its outcome is unknown.
//!   After it the host is told that the list of tools may have changed.
//! - While there is no node, each request waits a while and is then answered with an error that says that nothing was done.
//!
//! At the end of the input it waits for the answers that are due, and ends in good order.

mod host;
mod upstream;

use std::{collections::HashMap, io, time::Duration};

use bytes::Bytes;
use quinn::Connection;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use self::{
    host::Line,
    upstream::{Heard, Upstream},
};
use crate::{
    Credential,
    quic::{Refusal, SendError, message},
};

/// Lines on their way to or from the host.
const QUEUE: usize = 64;
/// The first wait before a node is dialled again; it doubles up to [`SLOWEST`].
const SOONEST: Duration = Duration::from_millis(50);
/// The longest.
const SLOWEST: Duration = Duration::from_secs(5);

/// How a bridge behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shown in the first request of each session; none where the certificate proves who this is.
    pub credential: Option<Credential>,
    /// How long a request waits for a node that is not there. Default 15 s: a restart, within what hosts wait for an answer.
    pub patience: Duration,
    /// How long answers are waited for once the input has ended. Default 60 s.
    pub parting: Duration,
    /// For the rest of a message once its beginning is there, and for the node to take what is written. Default 60 s.
    pub stalled: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { credential: None, patience: Duration::from_secs(15), parting: Duration::from_secs(60), stalled: Duration::from_secs(60) }
    }
}

/// Why a bridge ended before its input did.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The host's input cannot be read.
    #[error("cannot read from the host: {0}")]
    Input(#[source] io::Error),
    /// The host takes no more.
    #[error("cannot write to the host: {0}")]
    Output(#[source] io::Error),
    /// The node does not admit whoever this is. To start again does not help.
    #[error(transparent)]
    Refused(SendError),
}

/// Why a node was not reached, in words for the host's user.
pub type DialFailed = Box<dyn std::error::Error + Send + Sync>;

/// Bridges `input` and `output` to the node that `dial` reaches, until the input ends.
///
/// `dial` is called at the first line and whenever the connection was lost; its connection is of one of [`crate::quic::ALPNS`], and is
/// closed when the bridge ends.
///
/// # Errors
/// [`BridgeError`].
///
/// # Cancel safety
/// Dropped, it closes the connection; calls that are in hand are given up.
pub async fn bridge<D, F, R, W>(dial: D, input: R, output: W, options: Options) -> Result<(), BridgeError>
where
    D: Fn() -> F,
    F: Future<Output = Result<Connection, DialFailed>>,
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (said, mut lines) = mpsc::channel(QUEUE);
    let reader = Task(tokio::spawn(host::read(input, said)));
    let (out, outgoing) = mpsc::channel(QUEUE);
    let mut writer = Task(tokio::spawn(host::write(output, outgoing)));
    let bridge = Bridge { dial, options, out, upstream: None, opened: None, pending: HashMap::new() };
    let bridged = tokio::select! {
        bridged = bridge.run(&mut lines) => bridged,
        // Nobody hears what is said: there is nothing left to do.
        failed = &mut writer.0 => return Err(BridgeError::Output(failed.map_or_else(io::Error::other, |failed| failed.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))),
    };
    drop(reader);
    // The bridge is gone, and with it the way to the writer, which writes what it has and ends.
    let written = (&mut writer.0).await;
    bridged?;
    written.map_err(io::Error::other).flatten().map_err(BridgeError::Output)
}

/// A task that ends with its owner.
struct Task<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A request that the node has and has not answered.
struct Pending {
    /// To ask again, where that does no harm.
    again: Option<Bytes>,
}

/// How the host has opened the session, to open it again.
struct Opened {
    initialize: Bytes,
    /// Whether the host has said `notifications/initialized`.
    done: bool,
}

struct Bridge<D> {
    dial: D,
    options: Options,
    out: mpsc::Sender<Vec<u8>>,
    upstream: Option<Upstream>,
    opened: Option<Opened>,
    /// By id as it was written. Bounded by what the node takes.
    pending: HashMap<Box<str>, Pending>,
}

/// What the bridge is told next.
enum Event {
    Said(Option<Result<Line, io::Error>>),
    Heard(Heard),
    Redial,
}

impl<D, F> Bridge<D>
where
    D: Fn() -> F,
    F: Future<Output = Result<Connection, DialFailed>>,
{
    async fn run(mut self, lines: &mut mpsc::Receiver<Result<Line, io::Error>>) -> Result<(), BridgeError> {
        let mut wait = SOONEST;
        let mut redial = Instant::now();
        loop {
            let has_session = self.upstream.is_some();
            // Whoever has a session is told of changes, and so wants it back though it asks for nothing.
            let wanted = !has_session && (self.opened.is_some() || !self.pending.is_empty());
            let event = tokio::select! {
                said = lines.recv() => Event::Said(said),
                heard = Upstream::heard(&mut self.upstream) => Event::Heard(heard),
                () = sleep_until(redial), if wanted => Event::Redial,
            };
            match event {
                Event::Said(Some(Ok(Line::Message(line)))) => self.said(line).await?,
                Event::Said(Some(Ok(Line::TooLarge))) => self.refuse(&crate::quic::too_large()).await,
                Event::Said(Some(Err(error))) => return Err(BridgeError::Input(error)),
                Event::Said(None) => return self.part().await,
                Event::Heard(Heard::Line(line)) => self.heard(line).await,
                Event::Heard(Heard::Lost(why)) => {
                    self.lost(why).await?;
                    redial = Instant::now() + wait;
                }
                Event::Redial => match self.open(Instant::now() + SLOWEST).await {
                    Ok(()) => wait = SOONEST,
                    Err(error) => {
                        tracing::debug!(%error, "the node was not reached");
                        wait = (wait * 2).min(SLOWEST);
                        redial = Instant::now() + wait;
                    }
                },
            }
        }
    }

    /// Passes on what the host has said.
    async fn said(&mut self, line: Bytes) -> Result<(), BridgeError> {
        let envelope = match message::Envelope::read(&line) {
            Ok(envelope) => envelope,
            Err(refusal) => {
                self.refuse(&refusal).await;
                return Ok(());
            }
        };
        let mut asked = None;
        match &envelope.kind {
            message::Kind::Request { id, method } => {
                if self.pending.contains_key(*id) {
                    self.refuse(&Refusal::new(message::INVALID, "invalid request: the id is in use").of(id)).await;
                    return Ok(());
                }
                asked = Some((Box::<str>::from(*id), Pending { again: repeatable(method).then(|| line.clone()) }));
                if method == "initialize" {
                    self.opened = None;
                }
            }
            message::Kind::Notification { method } if method == "notifications/initialized" => {
                if let Some(opened) = &mut self.opened {
                    opened.done = true;
                }
            }
            message::Kind::Notification { method } if method == "notifications/cancelled" => {
                // The node does not answer what is cancelled.
                if let Some(id) = envelope.cancelled() {
                    self.pending.remove(id);
                }
            }
            message::Kind::Notification { .. } | message::Kind::Answer { .. } => {}
        }
        let initialize = matches!(&envelope.kind, message::Kind::Request { method, .. } if method == "initialize").then(|| line.clone());
        if self.upstream.is_none() {
            // A notification alone opens no session, and means nothing to another one.
            let Some((id, _)) = &asked else { return Ok(()) };
            if let Err(error) = self.open(Instant::now() + self.options.patience).await {
                let what = format!("the node cannot be reached; nothing was done: {error}");
                self.refuse(&Refusal::new(message::BUSY, what).of(id)).await;
                return Ok(());
            }
        }
        if let Some(initialize) = initialize {
            self.opened = Some(Opened { initialize, done: false });
        }
        if let Some((id, pending)) = asked {
            self.pending.insert(id, pending);
        }
        if let Some(upstream) = &mut self.upstream {
            // It fails when the connection is lost, which is heard next, and then what is pending is dealt with.
            upstream.say(line).await;
        }
        Ok(())
    }

    /// Passes on what the node has said.
    async fn heard(&mut self, line: Bytes) {
        if let Ok(envelope) = message::Envelope::read(&line)
            && let message::Kind::Answer { id: Some(id), .. } = &envelope.kind
        {
            self.pending.remove(*id);
        }
        let mut line = Vec::from(line);
        line.push(b'\n');
        self.tell(line).await;
    }

    /// The connection is gone.
    async fn lost(&mut self, why: SendError) -> Result<(), BridgeError> {
        self.upstream = None;
        tracing::debug!(%why, "the connection to the node is lost");
        let lasting = matches!(why, SendError::Unauthenticated(_) | SendError::Violation(_));
        let lost: Vec<_> = self.pending.extract_if(|_, pending| lasting || pending.again.is_none()).map(|(id, _)| id).collect();
        for id in lost {
            let what = format!("the connection to the node was lost; the outcome is unknown: {why}");
            self.refuse(&Refusal::new(message::LOST, what).of(&id)).await;
        }
        if matches!(why, SendError::Unauthenticated(_)) { Err(BridgeError::Refused(why)) } else { Ok(()) }
    }

    /// Opens a session, until `until`; as the host had opened the last one, if it had, and with what is still to be answered.
    async fn open(&mut self, until: Instant) -> Result<(), DialFailed> {
        let mut wait = SOONEST;
        let upstream = loop {
            let error: DialFailed = match timeout_at(until, self.up()).await {
                Ok(Ok(upstream)) => break upstream,
                Ok(Err(error)) => error,
                Err(_) => "no session in time".into(),
            };
            if Instant::now() + wait >= until {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SLOWEST);
        };
        let again = self.upstream.insert(upstream);
        let mut lines: Vec<_> = self.pending.values().filter_map(|pending| pending.again.clone()).collect();
        // What opens the session comes before what is asked in it.
        lines.sort_by_key(|line| self.opened.as_ref().is_none_or(|opened| opened.initialize != *line));
        for line in lines {
            again.say(line).await;
        }
        if self.opened.as_ref().is_some_and(|opened| opened.done) {
            let changed = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
            self.tell(format!("{changed}\n").into_bytes()).await;
        }
        Ok(())
    }

    async fn up(&self) -> Result<Upstream, DialFailed> {
        let connection = (self.dial)().await?;
        let mut upstream = Upstream::open(connection, &self.options).await?;
        // One that is still to be answered is asked again with the rest.
        if let Some(opened) = &self.opened
            && !self.is_pending(&opened.initialize)
        {
            upstream.say(opened.initialize.clone()).await;
            upstream.swallow().await?;
            if opened.done {
                let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
                upstream.say(done.to_string().into()).await;
            }
        }
        Ok(upstream)
    }

    fn is_pending(&self, request: &[u8]) -> bool {
        let envelope = message::Envelope::read(request);
        matches!(envelope.map(|envelope| envelope.kind), Ok(message::Kind::Request { id, .. }) if self.pending.contains_key(id))
    }

    /// Ends in good order: what is due is answered first.
    async fn part(mut self) -> Result<(), BridgeError> {
        let until = Instant::now() + self.options.parting;
        if let Some(upstream) = &mut self.upstream {
            upstream.finish();
        }
        while self.upstream.is_some() && !self.pending.is_empty() {
            match timeout_at(until, Upstream::heard(&mut self.upstream)).await {
                Ok(Heard::Line(line)) => self.heard(line).await,
                Ok(Heard::Lost(why)) => {
                    for pending in self.pending.values_mut() {
                        pending.again = None;
                    }
                    self.lost(why).await?;
                }
                Err(_) => break,
            }
        }
        for (id, _) in std::mem::take(&mut self.pending) {
            self.refuse(&Refusal::new(message::LOST, "not answered before the end; the outcome is unknown").of(&id)).await;
        }
        Ok(())
    }

    async fn refuse(&self, refusal: &Refusal) {
        self.tell(refusal.line()).await;
    }

    async fn tell(&self, line: Vec<u8>) {
        // It fails when the host hears nothing more, which ends the bridge.
        let _ = self.out.send(line).await;
    }
}

/// Whether a request that may have been carried out can be made again: all that ask. What calls a tool does not.
fn repeatable(method: &str) -> bool {
    let asks = ["ping", "initialize", "server/discover", "completion/complete"].contains(&method);
    asks || method.ends_with("/list") || method.ends_with("/get") || method.ends_with("/read") || method == "logging/setLevel"
}

/// The same request with a key in its `_meta`.
fn with_key(line: &[u8], credential: &Credential) -> Option<Vec<u8>> {
    let mut request: Value = serde_json::from_slice(line).ok()?;
    let params = request.as_object_mut()?.entry("params").or_insert_with(|| json!({}));
    let meta = params.as_object_mut()?.entry("_meta").or_insert_with(|| json!({}));
    meta.as_object_mut()?.insert(crate::quic::KEY.to_owned(), Value::String(credential.0.as_ref().to_owned()));
    serde_json::to_vec(&request).ok()
}
