//! Streamable HTTP by `egress`: rmcp has the protocol, this has the requests.
//!
//! Every request goes by the rules of [`Egress`]: each address is checked where it is connected to, redirects are not followed, and
//! whatever comes has a largest size. A redirect is therefore an answer like any other, and none that is a tool's.
//!
//! rmcp hands a message over and hears whether it was taken; it has no word for what a failure means. That is in [`HttpError`], which
//! it passes on as it is. An answer whose id is not the request's would have rmcp wait for another that never comes, so that ids are
//! looked at here: what comes back on the request's own exchange is its answer, or none.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use horos_egress::{BodyError, BreakerOptions, Egress, EgressError, Limits, Options as EgressOptions, ResponseBody};
use horos_router::strategy::answer;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt as _, Full, Limited};
use rmcp::{
    ErrorData,
    model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage, RequestId, ServerJsonRpcMessage},
    transport::streamable_http_client::{
        AuthRequiredError, SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
    },
};
use sse_stream::Sse;
use tokio::sync::{Notify, watch};

use super::{
    MAX_MESSAGE,
    authorize::{Authorize, Challenge, MAX_CHALLENGES},
    error::{HttpError, cut},
    sse,
};

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// Longest body of an answer without success that is read: of a longer one the status is heard.
const MAX_ERROR: usize = 64 * 1024;
/// How long the end of a session may take to be told; rmcp gives up after 5 s.
const FAREWELL: Duration = Duration::from_secs(5);
/// What is said to be as long as it takes: who waits has a deadline of his own, and drops the request.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The options of an [`Egress`] for MCP, where `options` are those for short requests: a stream of notifications says nothing for
/// hours, and a tool may work for as long as a call may wait, which ends it.
pub fn patient(options: EgressOptions) -> EgressOptions {
    let mut options = options;
    options.timeouts.head = Duration::from_millis(horos_router::config::MAX_TIMEOUT_MS);
    options.timeouts.idle = Duration::from_millis(horos_router::config::MAX_TIMEOUT_MS);
    options.timeouts.total = LONGEST;
    // Each endpoint has a wait of its own between attempts, which grows; beside that this one is to be short.
    options.breaker = BreakerOptions { open: Duration::from_secs(1), ..options.breaker };
    options
}

/// The requests of one endpoint. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Http(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    egress: Egress,
    /// HTTP/3, or whatever TLS agrees on.
    version: Version,
    authorize: Option<Arc<dyn Authorize>>,
    /// Counts handshakes: whoever holds what a session was told looks again after another.
    handshakes: watch::Sender<u64>,
    /// Told of a stream that cannot be had: whether the server is there at all is found out by whoever keeps the session.
    suspected: Arc<Notify>,
}

type Failure = StreamableHttpError<HttpError>;

impl Http {
    pub(super) fn new(egress: Egress, version: Version, authorize: Option<Arc<dyn Authorize>>, suspected: Arc<Notify>) -> Self {
        Self(Arc::new(Inner { egress, version, authorize, handshakes: watch::Sender::new(0), suspected }))
    }

    pub(super) fn handshakes(&self) -> watch::Receiver<u64> {
        self.0.handshakes.subscribe()
    }

    /// Sends a request, again where the server wants to know who asks. What comes back is whatever is no such challenge.
    async fn send(&self, method: Method, uri: &Arc<str>, headers: HeaderMap, body: Bytes) -> Result<Response<ResponseBody>, HttpError> {
        let within = if method == Method::DELETE { FAREWELL } else { LONGEST };
        let mut shown = match &self.0.authorize {
            Some(authorize) => authorize.authorization().await?,
            None => None,
        };
        let parsed: Uri = uri.parse().map_err(|error: http::uri::InvalidUri| HttpError::Nonsense(error.to_string().into()))?;
        for _ in 0..MAX_CHALLENGES {
            let response = self.once(&method, &parsed, &headers, shown.as_ref(), body.clone(), within).await?;
            let status = response.status();
            let www_authenticate: Vec<String> =
                response.headers().get_all(WWW_AUTHENTICATE).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
            let challenges = status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && !www_authenticate.is_empty();
            let Some(authorize) = self.0.authorize.as_ref().filter(|_| challenges) else { return Ok(response) };
            drop(response);
            let challenge = Challenge { url: uri.clone(), status, www_authenticate, shown: shown.take() };
            match authorize.challenged(challenge).await? {
                Some(other) => shown = Some(other),
                None => return Err(HttpError::Status { status, retry_after: None }),
            }
        }
        self.once(&method, &parsed, &headers, shown.as_ref(), body, within).await
    }

    async fn once(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        shown: Option<&HeaderValue>,
        body: Bytes,
        within: Duration,
    ) -> Result<Response<ResponseBody>, HttpError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        *request.version_mut() = self.0.version;
        *request.headers_mut() = headers.clone();
        if let Some(shown) = shown {
            let mut shown = shown.clone();
            shown.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, shown);
        }
        // A redirect is no answer of MCP's, and what proves this node is for nobody else.
        let limits = Limits { response_bytes: u64::MAX, redirects: 0, ..Limits::within(within) };
        Ok(self.0.egress.send(request, &limits).await?)
    }

    async fn post(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        custom: HashMap<HeaderName, HeaderValue>,
        max_event: usize,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let body = serde_json::to_vec(&message)?;
        if body.len() > MAX_MESSAGE {
            return Err(StreamableHttpError::Client(HttpError::MessageTooLarge { limit: MAX_MESSAGE }));
        }
        if matches!(&message, JsonRpcMessage::Request(request) if matches!(request.request, ClientRequest::InitializeRequest(_))) {
            self.0.handshakes.send_modify(|count| *count += 1);
        }
        let mut headers = head(custom, session.as_deref(), const { HeaderValue::from_static("application/json, text/event-stream") })?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        let response = self.send(Method::POST, &uri, headers, body.into()).await.map_err(StreamableHttpError::Client)?;
        let (parts, body) = response.into_parts();
        let request = match &message {
            JsonRpcMessage::Request(request) => Some(&request.id),
            _ => None,
        };
        if matches!(parts.status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if parts.status == StatusCode::NOT_FOUND && session.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        if !parts.status.is_success() {
            let is_discovery = session.is_none()
                && matches!(&message, JsonRpcMessage::Request(request) if matches!(request.request, ClientRequest::DiscoverRequest(_)));
            return refused(parts.status, &parts.headers, body, request, is_discovery).await;
        }
        let id = parts.headers.get(SESSION).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let kind = media_type(&parts.headers);
        let Some(request) = request else {
            // "MUST return 202" (MCP 2025-11-25, "Sending Messages to the Server"), and whatever else is said is of no use to anybody.
            return Ok(StreamableHttpPostResponse::Accepted);
        };
        match &*kind {
            EVENTS => Ok(StreamableHttpPostResponse::Sse(sse::events(body, max_event), id)),
            JSON => Ok(StreamableHttpPostResponse::Json(answer(body, request).await.map_err(StreamableHttpError::Client)?, id)),
            other => Err(StreamableHttpError::Client(HttpError::Nonsense(format!("its type is {:?}", cut(other)).into()))),
        }
    }

    async fn get(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        custom: HashMap<HeaderName, HeaderValue>,
        max_event: usize,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        let mut headers = head(custom, session.as_deref(), HeaderValue::from_static(EVENTS))?;
        if let Some(last) = last_event.and_then(|last| HeaderValue::try_from(last).ok()) {
            headers.insert(LAST_EVENT, last);
        }
        let response = self.send(Method::GET, &uri, headers, Bytes::new()).await.map_err(|error| {
            self.0.suspected.notify_one();
            StreamableHttpError::Client(error)
        })?;
        let status = response.status();
        match status {
            // rmcp asks no more then.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(StreamableHttpError::AuthRequired(AuthRequiredError::new(format!("it answered {status}"))))
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                let retry_after = answer::retry_after(response.headers(), jiff::Timestamp::now());
                Err(StreamableHttpError::Client(HttpError::Status { status, retry_after }))
            }
            // There is no such stream (405), or no such session or event (404, 400): asking again does not bring it about, and that the
            // session is gone is found out by the next message.
            status if status.is_client_error() => Err(StreamableHttpError::ServerDoesNotSupportSse),
            status if !status.is_success() => {
                let retry_after = answer::retry_after(response.headers(), jiff::Timestamp::now());
                Err(StreamableHttpError::Client(HttpError::Status { status, retry_after }))
            }
            _ if media_type(response.headers()) == EVENTS => Ok(sse::events(response.into_body(), max_event)),
            _ => Err(StreamableHttpError::ServerDoesNotSupportSse),
        }
    }
}

impl StreamableHttpClient for Http {
    type Error = HttpError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        self.post(uri, message, session_id, custom_headers, MAX_MESSAGE).await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
        max_sse_event_size: usize,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        self.post(uri, message, session_id, custom_headers, max_sse_event_size).await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure> {
        let headers = head(custom_headers, Some(&session_id), HeaderValue::from_static(JSON))?;
        let response = self.send(Method::DELETE, &uri, headers, Bytes::new()).await.map_err(StreamableHttpError::Client)?;
        match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => Err(StreamableHttpError::ServerDoesNotSupportDeleteSession),
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            status => Err(StreamableHttpError::Client(HttpError::Status { status, retry_after: None })),
        }
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        self.get(uri, session_id, last_event_id, custom_headers, MAX_MESSAGE).await
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
        max_sse_event_size: usize,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        self.get(uri, session_id, last_event_id, custom_headers, max_sse_event_size).await
    }
}

/// The head of a request. A session's id is the server's, which may be anything; one that is no field's value is none.
fn head(custom: HashMap<HeaderName, HeaderValue>, session: Option<&str>, accept: HeaderValue) -> Result<HeaderMap, Failure> {
    let mut headers: HeaderMap = custom.into_iter().collect();
    headers.insert(ACCEPT, accept);
    if let Some(session) = session {
        let session = HeaderValue::try_from(session)
            .map_err(|_| StreamableHttpError::Client(HttpError::Nonsense("its session has an id that no field can hold".into())))?;
        headers.insert(SESSION, session);
    }
    Ok(headers)
}

fn media_type(headers: &HeaderMap) -> String {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What an answer without success is: the server's own error, where it has one, or its status.
async fn refused(
    status: StatusCode,
    headers: &HeaderMap,
    body: ResponseBody,
    request: Option<&RequestId>,
    is_discovery: bool,
) -> Result<StreamableHttpPostResponse, Failure> {
    let retry_after = answer::retry_after(headers, jiff::Timestamp::now());
    let by_status = StreamableHttpError::Client(HttpError::Status { status, retry_after });
    let auth = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    // "Come back later" says more than whatever error stands beside it.
    let later = status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE && retry_after.is_some();
    let Some(id) = request.filter(|_| !auth && !later) else { return Err(by_status) };
    let told = match Limited::new(body, MAX_ERROR).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let own = match serde_json::from_slice(&told) {
        Ok(ServerJsonRpcMessage::Error(error)) => Some(error.error),
        _ => None,
    };
    match own {
        // Of this request, whatever id it names: who could not read the request could not read its id either.
        Some(error) => Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(id.clone())), None)),
        // A server of before 2026-07-28 has any of 4xx for it; rmcp takes an error as one to fall back from.
        None if is_discovery && status.is_client_error() => {
            let error = ErrorData::invalid_request(format!("it answered {status}"), None);
            Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(id.clone())), None))
        }
        None => Err(by_status),
    }
}

/// The answer to `request` that stands in a body.
async fn answer(body: ResponseBody, request: &RequestId) -> Result<ServerJsonRpcMessage, HttpError> {
    let body = match Limited::new(body, MAX_MESSAGE).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return Err(match error.downcast::<BodyError>() {
                Ok(error) => HttpError::Egress(EgressError::Response(*error)),
                Err(_) => HttpError::AnswerTooLarge { limit: MAX_MESSAGE },
            });
        }
    };
    let message = serde_json::from_slice(&body).map_err(|error| HttpError::Nonsense(cut(&error.to_string()).into()))?;
    match message {
        ServerJsonRpcMessage::Response(mut response) if is_of(request, &response.id) => {
            response.id = request.clone();
            Ok(ServerJsonRpcMessage::Response(response))
        }
        ServerJsonRpcMessage::Error(error) if error.id.as_ref().is_none_or(|id| is_of(request, id)) => {
            Ok(ServerJsonRpcMessage::error(error.error, Some(request.clone())))
        }
        ServerJsonRpcMessage::Response(_) | ServerJsonRpcMessage::Error(_) => Err(HttpError::Nonsense("it answers another request".into())),
        _ => Err(HttpError::Nonsense("it is no response".into())),
    }
}

/// Whether both are one id; some servers make texts of numbers.
fn is_of(request: &RequestId, answered: &RequestId) -> bool {
    request == answered || request.to_string() == answered.to_string()
}
