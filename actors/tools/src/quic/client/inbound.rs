//! What a client hears.

use std::sync::{Arc, atomic::Ordering};

use quinn::{RecvStream, SendStream};
use rmcp::{
    RoleClient,
    model::{GetExtensions as _, JsonRpcMessage, RequestId, ServerResult},
    service::{InboundStreamOrigin, RxJsonRpcMessage},
};
use tokio::sync::oneshot;

use super::{
    super::{
        MAX_MESSAGE, Reset, STREAMS, STRIKES,
        close::Ended,
        lines::Lines,
        message::{self, Envelope, Kind, LOST, Refusal},
    },
    Inner, unanswered,
};

/// Reads the first stream until it ends, and with it the session.
pub(super) async fn first(inner: Arc<Inner>, receive: RecvStream) {
    let mut lines = Lines::new(receive, inner.options.stalled);
    lines.allow(MAX_MESSAGE, inner.large.clone());
    let mut strikes = 0;
    while let Ok(Some(line)) = lines.next().await {
        match read(&inner, &line, None) {
            Ok(message) => {
                strikes = 0;
                if inner.inbox.send(message).await.is_err() {
                    return;
                }
            }
            Err(refusal) => {
                tracing::debug!(code = refusal.code, what = %refusal.message, "the server said something else");
                strikes += 1;
                if strikes >= STRIKES {
                    break;
                }
            }
        }
    }
    if inner.connection.close_reason().is_none() {
        // A server that ends the stream closes the connection next and says why; one that does not is left.
        let closed = inner.connection.closed();
        if tokio::time::timeout(std::time::Duration::from_secs(1), closed).await.is_err() {
            Ended::violation("the session's stream ended").close(&inner.connection);
        }
    }
}

/// Reads what comes for one request on its stream.
pub(super) async fn answer(inner: Arc<Inner>, id: RequestId, mut send: SendStream, receive: RecvStream, stop: oneshot::Receiver<()>) {
    let mut lines = Lines::new(receive, inner.options.stalled);
    lines.allow(MAX_MESSAGE, inner.large.clone());
    let heard = async {
        loop {
            let line = match lines.next().await {
                Ok(Some(line)) => line,
                Ok(None) => return Err("the server ended the stream without an answer; the outcome is unknown"),
                Err(_) => return Err("the answer did not come whole; the outcome is unknown"),
            };
            match read(&inner, &line, Some(&id)) {
                Ok(message) => {
                    let last = matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_));
                    if inner.inbox.send(message).await.is_err() || last {
                        return Ok(());
                    }
                }
                Err(refusal) => {
                    tracing::debug!(code = refusal.code, what = %refusal.message, "the server said something else");
                    return Err("the server answered with something else; the outcome is unknown");
                }
            }
        }
    };
    let heard = tokio::select! {
        heard = heard => heard,
        Ok(()) = stop => {
            inner.pending.lock().remove(&id);
            lines.stop(Reset::Cancelled);
            let _ = send.reset(Reset::Cancelled.code());
            return;
        }
    };
    if let Err(what) = heard
        && inner.pending.lock().remove(&id).is_some()
        && inner.connection.close_reason().is_none()
    {
        lines.stop(Reset::Cancelled);
        // It fails when nobody waits any more.
        let _ = inner.inbox.send(unanswered(id, LOST, what)).await;
    }
}

/// A message of the server's; on a request's stream, of `request`'s.
fn read(inner: &Inner, line: &[u8], request: Option<&RequestId>) -> Result<RxJsonRpcMessage<RoleClient>, Refusal> {
    let envelope = Envelope::read(line)?;
    // On its own stream it is clear which request is meant, though the server could not tell its id.
    let id = request.cloned().or_else(|| envelope.answers());
    let pending = match &envelope.kind {
        Kind::Answer { .. } => id.as_ref().and_then(|id| inner.pending.lock().remove(id)),
        Kind::Request { .. } | Kind::Notification { .. } => None,
    };
    let mut message = message::of_server(&envelope, id, pending.is_some_and(|pending| pending.call))?;
    match &mut message {
        JsonRpcMessage::Response(response) => agreed(inner, &response.result),
        JsonRpcMessage::Request(asked) => {
            if let Some(request) = request {
                asked.request.extensions_mut().insert(InboundStreamOrigin::OutboundRequest(request.clone()));
            }
        }
        JsonRpcMessage::Notification(_) | JsonRpcMessage::Error(_) => {}
    }
    Ok(message)
}

/// Notes whether the server agrees to streams.
fn agreed(inner: &Inner, result: &ServerResult) {
    let capabilities = match result {
        ServerResult::InitializeResult(result) => &result.capabilities,
        ServerResult::DiscoverResult(result) => &result.capabilities,
        _ => return,
    };
    let agreed = capabilities.experimental.as_ref().is_some_and(|experimental| experimental.contains_key(STREAMS));
    if agreed && inner.options.streams {
        inner.streams.store(true, Ordering::Relaxed);
    }
}
