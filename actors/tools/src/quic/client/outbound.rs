//! What a client says: requests on streams of their own where the server agrees, all else on the first.

use std::sync::{Arc, atomic::Ordering};

use rmcp::{
    RoleClient,
    model::{
        CancelledNotification, ClientNotification, ClientRequest, GetExtensions as _, GetMeta as _, JsonRpcMessage, JsonRpcRequest,
        RequestId, RequestMetaObject,
    },
    service::TxJsonRpcMessage,
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{
    super::{KEY, MAGIC, MAX_MESSAGE, META_CAPABILITIES, STREAMS, message},
    Inner, Pending, SendError, inbound, lost,
};

pub(super) async fn send(inner: &Arc<Inner>, message: TxJsonRpcMessage<RoleClient>) -> Result<(), SendError> {
    match message {
        JsonRpcMessage::Request(JsonRpcRequest { id, mut request, .. }) => {
            prepare(inner, &mut request);
            let call = matches!(request, ClientRequest::CallToolRequest(_));
            // The one that opens the session belongs to it.
            let own = inner.streams.load(Ordering::Relaxed) && !matches!(request, ClientRequest::InitializeRequest(_));
            let message = TxJsonRpcMessage::<RoleClient>::request(request, id.clone());
            if own { on_its_own(inner, id, call, &message).await } else { on_the_first(inner, id, call, &message).await }
        }
        JsonRpcMessage::Notification(notification) => {
            if let ClientNotification::CancelledNotification(cancelled) = &notification.notification
                && stop(inner, cancelled)
            {
                return Ok(());
            }
            say(inner, &JsonRpcMessage::Notification(notification)).await
        }
        answer => say(inner, &answer).await,
    }
}

/// Offers streams, and shows the key in the first request.
fn prepare(inner: &Inner, request: &mut ClientRequest) {
    if inner.options.streams && !inner.streams.load(Ordering::Relaxed) {
        match &mut *request {
            ClientRequest::InitializeRequest(initialize) => {
                let capabilities = &mut initialize.params.capabilities;
                capabilities.experimental.get_or_insert_default().entry(STREAMS.to_owned()).or_default();
            }
            request => {
                // Clients of the stateless generation say what they can with each request.
                let meta = request.extensions_mut().get_mut::<RequestMetaObject>();
                let capabilities = meta.and_then(|meta| meta.get_mut(META_CAPABILITIES)).and_then(Value::as_object_mut);
                if let Some(capabilities) = capabilities
                    && let Some(experimental) = capabilities.entry("experimental").or_insert_with(|| json!({})).as_object_mut()
                {
                    experimental.entry(STREAMS).or_insert_with(|| json!({}));
                }
            }
        }
    }
    if !inner.shown.swap(true, Ordering::Relaxed)
        && let Some(credential) = &inner.options.credential
    {
        request.get_meta_mut().insert(KEY.to_owned(), Value::String(credential.0.as_ref().to_owned()));
    }
}

/// A message as a line, within the limit.
fn line(message: &TxJsonRpcMessage<RoleClient>, before: &[u8]) -> Result<Vec<u8>, SendError> {
    let line = message::line_after(before, message).map_err(|error| SendError::Message(error.to_string().into()))?;
    if line.len() - before.len() > MAX_MESSAGE + 1 {
        return Err(SendError::Message(format!("larger than {MAX_MESSAGE} bytes").into()));
    }
    Ok(line)
}

async fn on_the_first(inner: &Arc<Inner>, id: RequestId, call: bool, message: &TxJsonRpcMessage<RoleClient>) -> Result<(), SendError> {
    inner.pending.lock().insert(id.clone(), Pending { call, stop: None });
    let said = say(inner, message).await;
    if said.is_err() {
        inner.pending.lock().remove(&id);
    }
    said
}

async fn say(inner: &Inner, message: &TxJsonRpcMessage<RoleClient>) -> Result<(), SendError> {
    let line = line(message, &[])?;
    let out = inner.unread.out(line, None).map_err(|_| SendError::Limit("the server does not read".into()))?;
    inner.first.send(out).await.map_err(|_| lost(&inner.connection, "the first stream has ended"))
}

async fn on_its_own(inner: &Arc<Inner>, id: RequestId, call: bool, message: &TxJsonRpcMessage<RoleClient>) -> Result<(), SendError> {
    let line = line(message, &MAGIC)?;
    let (stop, stopped) = oneshot::channel();
    inner.pending.lock().insert(id.clone(), Pending { call, stop: Some(stop) });
    let opening = async {
        let (mut send, receive) = inner.connection.open_bi().await.map_err(SendError::from)?;
        // Nobody else knows the stream: what is dropped half written is reset.
        send.write_all(&line).await.map_err(|error| lost(&inner.connection, &error.to_string()))?;
        let _ = send.finish();
        Ok((send, receive))
    };
    match opening.await {
        Ok((send, receive)) => {
            tokio::spawn(inbound::answer(inner.clone(), id, send, receive, stopped));
            Ok(())
        }
        Err(error) => {
            inner.pending.lock().remove(&id);
            Err(error)
        }
    }
}

/// Forgets a request that is cancelled, and gives up its stream. Whether it has one.
fn stop(inner: &Inner, cancelled: &CancelledNotification) -> bool {
    let Some(id) = &cancelled.params.request_id else { return false };
    let pending = inner.pending.lock().remove(id);
    // It fails for a request that has just been answered.
    pending.and_then(|pending| pending.stop).map(|stop| stop.send(())).is_some()
}
