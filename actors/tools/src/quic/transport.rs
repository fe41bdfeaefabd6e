//! rmcp's side of a session: what it asks for comes from the streams' readers, and what it says goes where it belongs.

use std::sync::Arc;

use rmcp::{
    RoleServer,
    model::{
        ErrorCode, ErrorData, GetExtensions as _, GetMeta as _, JsonRpcError, JsonRpcMessage, JsonRpcNotification, JsonRpcRequest,
        JsonRpcResponse, ServerCapabilities, ServerNotification, ServerResult,
    },
    service::{OriginatingRequestId, RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    MAX_MESSAGE, STREAMS,
    close::Ended,
    message,
    session::{In, Session},
    table::{Place, Way, number},
};

/// The server's transport of a session.
pub(super) struct ServerTransport {
    pub(super) session: Arc<Session>,
    pub(super) inbox: mpsc::Receiver<In>,
}

/// A message was not said.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSaid {
    #[error("the session is over")]
    Over,
    #[error("the client has too many questions to answer")]
    TooManyQuestions,
    #[error("a message could not be written: {0}")]
    Unwritable(#[from] serde_json::Error),
}

impl Transport<RoleServer> for ServerTransport {
    type Error = NotSaid;

    fn send(&mut self, message: TxJsonRpcMessage<RoleServer>) -> impl Future<Output = Result<(), NotSaid>> + Send + 'static {
        let session = self.session.clone();
        async move { session.say(message).await }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        self.inbox.recv().await.flatten()
    }

    async fn close(&mut self) -> Result<(), NotSaid> {
        self.inbox.close();
        Ok(())
    }
}

impl Session {
    async fn say(&self, message: TxJsonRpcMessage<RoleServer>) -> Result<(), NotSaid> {
        match message {
            JsonRpcMessage::Response(JsonRpcResponse { id, mut result, .. }) => {
                // Whoever cancelled it is told nothing.
                let Some(entry) = number(&id).and_then(|number| self.table.lock().leave(number)) else { return Ok(()) };
                match &mut result {
                    ServerResult::InitializeResult(result) => self.offered_too(&mut result.capabilities),
                    ServerResult::DiscoverResult(result) => self.offered_too(&mut result.capabilities),
                    ServerResult::SubscriptionsListenResult(result) => {
                        if let Some(id) = message::id_of(&entry.id) {
                            result.meta.set_subscription_id(id);
                        }
                    }
                    _ => {}
                }
                let mut line = message::result_line(&entry.id, &result)?;
                if line.len() > MAX_MESSAGE {
                    let error = ErrorData::new(ErrorCode::INTERNAL_ERROR, format!("the result is larger than {MAX_MESSAGE} bytes"), None);
                    line = message::error_line(Some(&entry.id), &error);
                }
                self.push(&entry.way, line, Some(entry.place)).await
            }
            JsonRpcMessage::Error(JsonRpcError { id, error, .. }) => {
                let Some(entry) = id.as_ref().and_then(number).and_then(|number| self.table.lock().leave(number)) else { return Ok(()) };
                self.push(&entry.way, message::error_line(Some(&entry.id), &error), Some(entry.place)).await
            }
            JsonRpcMessage::Notification(JsonRpcNotification { mut notification, .. }) => {
                let way = self.way(&mut notification);
                self.push(&way, message::line(&TxJsonRpcMessage::<RoleServer>::notification(notification))?, None).await
            }
            JsonRpcMessage::Request(JsonRpcRequest { id, request, .. }) => {
                let origin = request.extensions().get::<OriginatingRequestId>();
                let way = origin.and_then(|origin| self.table.lock().get(&origin.0).map(|entry| entry.way.clone()));
                if !self.ask(id.clone()) {
                    return Err(NotSaid::TooManyQuestions);
                }
                let line = message::line(&TxJsonRpcMessage::<RoleServer>::request(request, id))?;
                self.push(&way.unwrap_or(Way::First), line, None).await
            }
        }
    }

    /// Says that streams for requests are agreed on, if they were offered.
    fn offered_too(&self, capabilities: &mut ServerCapabilities) {
        if self.agree() {
            let streams = json!({ "max": self.shared.options.bounds.streams });
            let streams = streams.as_object().cloned().unwrap_or_default();
            capabilities.experimental.get_or_insert_default().insert(STREAMS.to_owned(), streams);
        }
    }

    /// Where a notification belongs: to the request that it names, by its subscription, its progress token or the mark of rmcp; else to
    /// the first stream. A subscription's id becomes the client's again.
    fn way(&self, notification: &mut ServerNotification) -> Way {
        let table = self.table.lock();
        let subscription = notification.get_meta().subscription_id();
        let entry = match (&subscription, &*notification) {
            (Some(id), _) => table.get(id),
            (None, ServerNotification::ProgressNotification(progress)) => table.by_token(&progress.params.progress_token),
            (None, notification) => notification.extensions().get::<OriginatingRequestId>().and_then(|origin| table.get(&origin.0)),
        };
        let Some(entry) = entry else { return Way::First };
        let way = entry.way.clone();
        if subscription.is_some()
            && let Some(id) = message::id_of(&entry.id)
        {
            drop(table);
            notification.get_meta_mut().set_subscription_id(id);
        }
        way
    }

    /// Has a line written.
    pub(super) async fn push(&self, way: &Way, line: Vec<u8>, place: Option<Arc<Place>>) -> Result<(), NotSaid> {
        let out = self.unread.out(line, place).map_err(|ended| {
            self.cut(ended);
            NotSaid::Over
        })?;
        match way {
            Way::First => self.first.send(out).await.map_err(|_| NotSaid::Over),
            // A stream that is gone was cancelled.
            Way::Own(stream) => {
                let _ = stream.send(out).await;
                Ok(())
            }
        }
    }

    /// Closes the connection at once.
    pub(super) fn cut(&self, ended: Ended) {
        ended.close(&self.connection);
    }
}
