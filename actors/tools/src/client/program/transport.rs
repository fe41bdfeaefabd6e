//! rmcp's side of a program: lines to its input, lines from its output.

use std::{collections::HashMap, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use rmcp::{
    ErrorData, RoleClient,
    model::{ClientNotification, ClientRequest, ErrorCode, JsonRpcMessage, RequestId},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport as RmcpTransport,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    process::ChildStdout,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::DropGuard;

use super::{
    lines::{Line, Lines},
    process::Started,
};
use crate::{
    client::{
        MAX_MESSAGE,
        error::{TOO_LARGE, cut},
        session::Why,
    },
    quic::{
        Refusal, STRIKES,
        message::{self, Envelope, INVALID, Kind, LOST},
    },
};

/// Messages on their way to the program, and between its reader and rmcp's loop: each call that may be in flight, and its cancellation.
const QUEUE: usize = 256;
/// Bytes of them that the program has not read.
const UNREAD: usize = 64 << 20;
/// The program has to read something of what is written to it within this.
const STALLED: Duration = Duration::from_secs(60);
/// For the end of a program to be seen behind that of its output.
const SOON: Duration = Duration::from_millis(500);
/// How much of a line that is no message is shown, in bytes.
const SHOWN: usize = 80;

/// A message was not sent.
#[derive(Debug, thiserror::Error)]
pub(in crate::client) enum NotSent {
    /// It cannot be: nothing of it was written.
    #[error("the message is larger than {MAX_MESSAGE} bytes, or none")]
    TooLarge,
    /// Too much waits to be read by the program: nothing of it was written.
    #[error("the program does not read what it is sent")]
    Busy,
    /// Never as a whole, and nobody is there to read the rest.
    #[error("the program has ended")]
    Ended,
    /// In part, perhaps.
    #[error("the program reads nothing")]
    Stalled,
}

/// A line on its way.
struct Out {
    line: Bytes,
    written: oneshot::Sender<Result<(), NotSent>>,
    _unread: OwnedSemaphorePermit,
}

/// What the parts of a session with a program share.
struct Inner {
    name: Arc<str>,
    /// Requests that are not answered, and whether they call a tool, whose answer is read without trying all shapes.
    pending: Mutex<HashMap<RequestId, bool>>,
    why: watch::Sender<Option<Arc<str>>>,
}

/// MCP's client transport over a program's input and output. Dropped, the program is brought to its end.
pub(in crate::client) struct Transport {
    inner: Arc<Inner>,
    /// None when nothing more is said; the program's input then ends behind what was.
    out: Option<mpsc::Sender<Out>>,
    unread: Arc<Semaphore>,
    inbox: mpsc::Receiver<RxJsonRpcMessage<RoleClient>>,
    wanted: Option<DropGuard>,
    ended: watch::Receiver<Option<Arc<str>>>,
}

impl Transport {
    pub(super) fn new(started: Started) -> Self {
        let Started { name, stdin, stdout, wanted, ended } = started;
        let (out, queue) = mpsc::channel(QUEUE);
        let (sender, inbox) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner { name, pending: Mutex::default(), why: watch::Sender::new(None) });
        // They end with the program, at the latest, and that is brought about when this is dropped.
        tokio::spawn(write(stdin, queue));
        tokio::spawn(read(stdout, inner.clone(), sender, ended.clone()));
        Self { inner, out: Some(out), unread: Arc::new(Semaphore::new(UNREAD)), inbox, wanted: Some(wanted), ended }
    }

    /// Why it has ended, once it has by itself.
    pub(in crate::client) fn why(&self) -> Why {
        self.inner.why.subscribe()
    }

    /// Puts a message in line, in the order in which rmcp has them.
    fn queue(&self, message: TxJsonRpcMessage<RoleClient>) -> Result<oneshot::Receiver<Result<(), NotSent>>, NotSent> {
        let out = self.out.as_ref().ok_or(NotSent::Ended)?;
        let line = message::line(&message).map_err(|_| NotSent::TooLarge)?;
        if line.len() > MAX_MESSAGE {
            return Err(NotSent::TooLarge);
        }
        let length = u32::try_from(line.len()).map_err(|_| NotSent::TooLarge)?;
        let unread = self.unread.clone().try_acquire_many_owned(length).map_err(|_| NotSent::Busy)?;
        let mut asks = None;
        match message {
            JsonRpcMessage::Request(asked) => {
                let call = matches!(asked.request, ClientRequest::CallToolRequest(_));
                self.inner.pending.lock().insert(asked.id.clone(), call);
                asks = Some(asked.id);
            }
            JsonRpcMessage::Notification(told) => {
                if let ClientNotification::CancelledNotification(cancelled) = told.notification
                    && let Some(id) = cancelled.params.request_id
                {
                    self.inner.pending.lock().remove(&id);
                }
            }
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {}
        }
        let (written, done) = oneshot::channel();
        let sent = out.try_send(Out { line: line.into(), written, _unread: unread });
        sent.map(|()| done).map_err(|error| {
            if let Some(id) = asks {
                self.inner.pending.lock().remove(&id);
            }
            match error {
                mpsc::error::TrySendError::Full(_) => NotSent::Busy,
                mpsc::error::TrySendError::Closed(_) => NotSent::Ended,
            }
        })
    }
}

impl RmcpTransport<RoleClient> for Transport {
    type Error = NotSent;

    fn send(&mut self, message: TxJsonRpcMessage<RoleClient>) -> impl Future<Output = Result<(), NotSent>> + Send + 'static {
        let queued = self.queue(message);
        async move {
            // The writer says what became of every line that it has taken, and takes no more when the program has ended.
            queued?.await.unwrap_or(Err(NotSent::Ended))
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        self.inbox.recv().await
    }

    async fn close(&mut self) -> Result<(), NotSent> {
        self.out = None;
        self.wanted = None;
        self.inbox.close();
        // It is as long as the keeper gives the program; it fails when that is gone with the runtime.
        let _ = self.ended.wait_for(Option::is_some).await;
        Ok(())
    }
}

/// Writes lines until there are no more, or nobody reads them; then the input ends. Whoever waits behind that is told by the queue's end.
async fn write<W: AsyncWrite + Unpin>(mut stdin: W, mut queue: mpsc::Receiver<Out>) {
    while let Some(out) = queue.recv().await {
        let written = write_all(&mut stdin, &out.line).await;
        let failed = written.is_err();
        // It fails when nobody waits for that any more.
        let _ = out.written.send(written);
        if failed {
            return;
        }
    }
}

async fn write_all<W: AsyncWrite + Unpin>(stdin: &mut W, mut line: &[u8]) -> Result<(), NotSent> {
    while !line.is_empty() {
        match timeout(STALLED, stdin.write(line)).await {
            Ok(Ok(written)) if written > 0 => line = &line[written..],
            Ok(_) => return Err(NotSent::Ended),
            Err(_) => return Err(NotSent::Stalled),
        }
    }
    Ok(())
}

/// Reads what the program writes, until there is no more of it or it is none. What nobody wants is read all the same, so that the program
/// comes to its end.
async fn read(
    stdout: ChildStdout,
    inner: Arc<Inner>,
    inbox: mpsc::Sender<RxJsonRpcMessage<RoleClient>>,
    mut ended: watch::Receiver<Option<Arc<str>>>,
) {
    let mut lines = Lines::new(stdout, MAX_MESSAGE);
    let mut strikes = 0;
    let mut over = ended.clone();
    // Who has left the program's group may hold its output for ever.
    let mut late = pin!(async {
        let _ = over.wait_for(Option::is_some).await;
        sleep(SOON).await;
    });
    let wrong = loop {
        let line = tokio::select! {
            line = lines.next() => line,
            () = &mut late => break None,
        };
        let Ok(Some(line)) = line else { break None };
        if inbox.is_closed() {
            continue;
        }
        match inner.heard(&line) {
            Ok(message) => {
                strikes = 0;
                // It fails when nobody wants it any more.
                let _ = inbox.send(message).await;
            }
            Err(refusal) => {
                tracing::debug!(program = %inner.name, what = %refusal.message, "it wrote something else");
                strikes += 1;
                if strikes >= STRIKES {
                    let shown = String::from_utf8_lossy(&line.text[..line.text.len().min(SHOWN)]).into_owned();
                    break Some(format!("what it writes is no message: {}", cut(&shown)));
                }
            }
        }
    };
    let why = match wrong {
        Some(wrong) => wrong,
        None => match timeout(SOON, ended.wait_for(Option::is_some)).await {
            Ok(Ok(how)) => format!("the program has ended: {}", how.as_deref().unwrap_or_default()),
            _ => "the program has closed its output".to_owned(),
        },
    };
    // Told before the inbox ends, so that whoever hears of the end knows why.
    inner.why.send_replace(Some(why.into()));
}

impl Inner {
    /// A message that a line is.
    fn heard(&self, line: &Line) -> Result<RxJsonRpcMessage<RoleClient>, Refusal> {
        if let Some(id) = &line.cut {
            let id = self.answered(id.as_deref().and_then(message::id_of), false);
            let (id, _) = id.ok_or_else(|| Refusal::new(INVALID, "a line that is too long"))?;
            let error = ErrorData::new(TOO_LARGE, format!("its answer is larger than {MAX_MESSAGE} bytes"), None);
            return Ok(JsonRpcMessage::error(error, Some(id)));
        }
        let envelope = Envelope::read(&line.text)?;
        let known = match &envelope.kind {
            Kind::Answer { result, .. } => self.answered(envelope.answers(), result.is_err()),
            Kind::Request { .. } | Kind::Notification { .. } => None,
        };
        let (id, call) = known.unzip();
        let heard = message::of_server(&envelope, id.clone().or_else(|| envelope.answers()), call == Some(true));
        match (heard, id) {
            // Nothing else will come for this one.
            (Err(refusal), Some(id)) => {
                tracing::debug!(program = %self.name, what = %refusal.message, "it answered with something else");
                let error = ErrorData::new(ErrorCode(LOST), "its answer is none; the outcome is unknown", None);
                Ok(JsonRpcMessage::error(error, Some(id)))
            }
            (heard, _) => heard,
        }
    }

    /// Which request is answered by what names `told`, and whether it calls a tool. Some servers make texts of numbers; and an error of
    /// none is of the only one that there is, whose id the server could not read.
    fn answered(&self, told: Option<RequestId>, error: bool) -> Option<(RequestId, bool)> {
        let mut pending = self.pending.lock();
        let id = match told {
            Some(told) if pending.contains_key(&told) => told,
            Some(told) => pending.keys().find(|id| id.to_string() == told.to_string())?.clone(),
            None if error && pending.len() == 1 => pending.keys().next()?.clone(),
            None => return None,
        };
        let call = pending.remove(&id)?;
        Some((id, call))
    }
}
