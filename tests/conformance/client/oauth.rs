//! What a program that logs its user in hands to our client: the crate's own [`OAuth`], with whom it has beside it. There is nobody at a
//! browser: the suite's authorization servers say yes at once, and the answer is read off their redirect.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, Request, Response, header};
use futures_util::future::BoxFuture;
use horos_egress::{Egress, Limits};
use horos_tools::client::oauth::{Assert, Browse, Grant, OAuth, Registration, Who};
use horos_tools::client::{Authorize, AuthorizeError, Challenge};
use http_body_util::Full;
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::Scenario;

/// Where the authorization server sends the browser back to; nobody listens there.
const REDIRECT: &str = "http://localhost:3000/callback";
/// What the client is known by at servers that read its description from a URL (the suite's own).
const DESCRIBED_AT: &str = "https://conformance-test.local/client-metadata.json";
/// For one request of the program's own.
const WITHIN: Duration = Duration::from_secs(10);

/// Gets tokens in the way in which a scenario is to be played.
#[derive(Debug)]
pub(super) struct Program {
    oauth: OAuth,
    /// What the server is called, whatever the way to it.
    server: Arc<str>,
}

impl Program {
    /// With what the scenario's context says that there is.
    pub(super) fn new(scenario: &Scenario, egress: Egress) -> Self {
        let context = &scenario.context;
        let text = |key: &str| context[key].as_str().map(Box::<str>::from);
        let grant = if let Some(token) = text("valid_jwt") {
            Grant::Assertion(Arc::new(Workload(token)))
        } else if context["idp_id_token"].is_string() {
            Grant::Assertion(Arc::new(Enterprise { context: context.clone(), egress: egress.clone() }))
        } else if scenario.name.contains("client-credentials") {
            Grant::ClientCredentials
        } else {
            Grant::Code { redirect_uri: REDIRECT.into(), browse: Arc::new(Browser(egress.clone())) }
        };
        let registration = text("client_id").map(|client_id| Registration {
            client_id,
            client_secret: text("client_secret"),
            key: text("private_key_pem").map(|pem| (pem, text("signing_algorithm").unwrap_or_else(|| "ES256".into()))),
            issuer: None,
        });
        let who = Who { name: "horos".into(), registration, document: Some(DESCRIBED_AT.into()), grant };
        Self { oauth: OAuth::new(egress, who), server: scenario.url.as_str().into() }
    }
}

impl Authorize for Program {
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        self.oauth.authorization()
    }

    fn challenged(&self, challenge: Challenge) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        self.oauth.challenged(Challenge { url: self.server.clone(), ..challenge })
    }
}

fn failed(what: impl std::fmt::Display) -> AuthorizeError {
    AuthorizeError::new(what.to_string())
}

async fn send(egress: &Egress, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, AuthorizeError> {
    // A redirect is what the browser is asked for.
    let limits = Limits { redirects: 0, ..Limits::within(WITHIN) };
    let (parts, body) = egress.send(request, &limits).await.map_err(failed)?.into_parts();
    Ok(Response::from_parts(parts, body.bytes().await.map_err(failed)?))
}

/// Follows nothing, and gives back where it is sent.
struct Browser(Egress);

impl Browse for Browser {
    fn authorize(&self, url: String) -> BoxFuture<'_, Result<String, AuthorizeError>> {
        Box::pin(async move {
            let answer = send(&self.0, Request::get(url).body(Full::default()).map_err(failed)?).await?;
            let back = answer.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
            back.map(str::to_owned).ok_or_else(|| failed(format!("nobody is sent back: {}", answer.status())))
        })
    }
}

/// A workload, whose platform has given it a token.
struct Workload(Box<str>);

impl Assert for Workload {
    fn assertion<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<String, AuthorizeError>> {
        Box::pin(async { Ok(self.0.as_ref().to_owned()) })
    }
}

/// A user's program in an enterprise, whose identity provider says who he is to whoever he wants to go to (SEP-990).
struct Enterprise {
    context: Value,
    egress: Egress,
}

impl Assert for Enterprise {
    fn assertion<'a>(&'a self, issuer: &'a str, resource: &'a str) -> BoxFuture<'a, Result<String, AuthorizeError>> {
        Box::pin(async move {
            let text = |key: &str| self.context[key].as_str().unwrap_or_default();
            // RFC 8693 §2.1.
            let form = Serializer::new(String::new())
                .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
                .append_pair("requested_token_type", "urn:ietf:params:oauth:token-type:id-jag")
                .append_pair("subject_token", text("idp_id_token"))
                .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:id_token")
                .append_pair("audience", issuer)
                .append_pair("resource", resource)
                .append_pair("client_id", text("idp_client_id"))
                .finish();
            let request = Request::post(text("idp_token_endpoint")).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            let answer = send(&self.egress, request.body(Full::from(form)).map_err(failed)?).await?;
            let given: Value = serde_json::from_slice(answer.body()).map_err(failed)?;
            given["access_token"].as_str().map(str::to_owned).ok_or_else(|| failed(format!("the identity provider refuses: {given}")))
        })
    }
}
