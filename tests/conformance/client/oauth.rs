//! What a program that logs its user in hands to our client: an [`Authorize`] that gets tokens by OAuth 2.1 as MCP has it ("Authorization").
//! There is nobody at a browser: the suite's authorization servers say yes at once, and the answer is read off their redirect.
//!
//! Our client brings the challenge here, sends the request again with what comes of it, and bounds how often.

mod exchange;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use axum::http::{HeaderValue, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use horos_tools::client::{Authorize, AuthorizeError, Challenge};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use url::Url;

use exchange::{get, get_json, post_form, post_json, random};

/// Where the authorization server sends the browser back to; nobody listens there.
const REDIRECT: &str = "http://localhost:3000/callback";
/// What the client is known by at servers that read its description from a URL (the suite's own).
const DESCRIBED_AT: &str = "https://conformance-test.local/client-metadata.json";

/// Gets tokens for one server.
#[derive(Debug)]
pub(super) struct OAuth {
    server: String,
    /// What the user was given beforehand: `client_id`, `client_secret`.
    given: Value,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    token: Option<HeaderValue>,
    /// What was asked for so far: who needs more does not lose what there is.
    scopes: Vec<String>,
    /// By issuer: what one has given out is shown to no other.
    registered: BTreeMap<String, Registered>,
}

/// What the client is to an authorization server.
#[derive(Clone, Debug)]
struct Registered {
    id: String,
    secret: Option<String>,
    /// How it shows the secret (RFC 7591 §2).
    method: String,
}

/// The resource and who lets in to it.
struct Resource {
    /// Its own name (RFC 8707).
    name: String,
    scopes: Option<Vec<String>>,
    issuer: String,
    metadata: Value,
}

impl OAuth {
    pub(super) fn new(server: &str, given: Value) -> Self {
        Self { server: server.to_owned(), given, state: Mutex::default() }
    }

    /// A token that answers `challenge`.
    async fn obtain(&self, state: &mut State, challenge: &Challenge) -> Result<HeaderValue> {
        let told = |name: &str| challenge.www_authenticate.iter().find_map(|field| parameter(field, name));
        let resource = self.resource(told("resource_metadata")).await?;
        let wanted = told("scope").map(|scope| words(&scope)).or_else(|| resource.scopes.clone());
        let mut scopes = wanted.unwrap_or_default();
        if challenge.status == StatusCode::FORBIDDEN {
            scopes.splice(0..0, state.scopes.iter().cloned());
        }
        let known = strings(&resource.metadata["scopes_supported"]);
        if known.iter().any(|scope| scope == "offline_access") && !scopes.is_empty() {
            scopes.push("offline_access".to_owned());
        }
        let mut once = Vec::new();
        for scope in scopes {
            if !once.contains(&scope) {
                once.push(scope);
            }
        }
        let client = self.client(state, &resource).await?;
        let granted = self.granted(&resource, &client, &once).await?;
        let token = granted["access_token"].as_str().context("a token")?;
        state.scopes = once;
        Ok(HeaderValue::from_str(&format!("Bearer {token}"))?)
    }

    /// Finds out who lets in (RFC 9728, RFC 8414).
    async fn resource(&self, told: Option<String>) -> Result<Resource> {
        let server = Url::parse(&self.server)?;
        let origin = server.origin().ascii_serialization();
        let path = server.path().trim_end_matches('/');
        let well_known = format!("{origin}/.well-known/oauth-protected-resource");
        let places = match told {
            Some(told) => vec![told],
            None => vec![format!("{well_known}{path}"), well_known],
        };
        let Some(described) = first_of(&places).await else {
            // As it was in 2025-03-26: the server itself lets in, and where it does not say how, by paths that everybody knows.
            let metadata = first_of(&[format!("{origin}/.well-known/oauth-authorization-server")]).await;
            let metadata = metadata.unwrap_or_else(|| {
                json!({
                    "authorization_endpoint": format!("{origin}/authorize"),
                    "token_endpoint": format!("{origin}/token"),
                    "registration_endpoint": format!("{origin}/register"),
                    "code_challenge_methods_supported": ["S256"],
                })
            });
            return Ok(Resource { name: self.server.clone(), scopes: None, issuer: origin, metadata });
        };
        let name = described["resource"].as_str().context("a resource has a name")?.to_owned();
        let named = Url::parse(&name)?;
        let covers = server.origin() == named.origin() && {
            let below = named.path().trim_end_matches('/');
            server.path() == named.path() || path == below || server.path().starts_with(&format!("{below}/"))
        };
        ensure!(covers, "{} says that it is {name}", self.server);
        let issuer = described["authorization_servers"][0].as_str().context("somebody lets in")?.to_owned();
        let at = Url::parse(&issuer)?;
        let (origin, path) = (at.origin().ascii_serialization(), at.path().trim_end_matches('/'));
        let mut places = vec![
            format!("{origin}/.well-known/oauth-authorization-server{path}"),
            format!("{origin}/.well-known/openid-configuration{path}"),
        ];
        if !path.is_empty() {
            places.push(format!("{origin}{path}/.well-known/openid-configuration"));
        }
        let metadata = first_of(&places).await.with_context(|| format!("{issuer} does not describe itself"))?;
        // RFC 8414 §3.3: letter by letter.
        ensure!(metadata["issuer"] == *issuer, "{issuer} calls itself {}", metadata["issuer"]);
        let scopes = described["scopes_supported"].is_array().then(|| strings(&described["scopes_supported"]));
        Ok(Resource { name, scopes, issuer, metadata })
    }

    /// What this client is to the resource's authorization server: as it was told, as it describes itself, or registered now.
    async fn client(&self, state: &mut State, resource: &Resource) -> Result<Registered> {
        let Resource { issuer, metadata, .. } = resource;
        let methods = match strings(&metadata["token_endpoint_auth_methods_supported"]) {
            none if none.is_empty() => vec!["client_secret_basic".to_owned()],
            methods => methods,
        };
        let pick = |among: &[&str]| among.iter().find(|method| methods.iter().any(|known| known == *method)).map(|it| (*it).to_owned());
        let text = |value: &Value, name: &str| value[name].as_str().map(str::to_owned);
        if let Some(id) = text(&self.given, "client_id") {
            let secret = text(&self.given, "client_secret");
            let method = pick(if secret.is_some() { &["client_secret_basic", "client_secret_post"] } else { &["none"] });
            return Ok(Registered { id, secret, method: method.unwrap_or_else(|| "none".to_owned()) });
        }
        if metadata["client_id_metadata_document_supported"] == true {
            return Ok(Registered { id: DESCRIBED_AT.to_owned(), secret: None, method: "none".to_owned() });
        }
        if let Some(known) = state.registered.get(issuer) {
            return Ok(known.clone());
        }
        let at = metadata["registration_endpoint"].as_str().with_context(|| format!("{issuer} registers nobody"))?;
        let method = pick(&["client_secret_basic", "client_secret_post", "none"]).context("a way to show a secret")?;
        let about = json!({
            "client_name": "horos",
            "application_type": "native",
            "redirect_uris": [REDIRECT],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": method,
        });
        let given = post_json(at, &about).await?;
        let registered = Registered {
            id: text(&given, "client_id").context("an id")?,
            secret: text(&given, "client_secret"),
            method: text(&given, "token_endpoint_auth_method").unwrap_or(method),
        };
        state.registered.insert(issuer.clone(), registered.clone());
        Ok(registered)
    }

    /// A token, by the code of a user who agrees (OAuth 2.1 §4.1, with PKCE), or by the client's own secret where users have no part.
    async fn granted(&self, resource: &Resource, client: &Registered, scopes: &[String]) -> Result<Value> {
        let Resource { name, issuer, metadata, .. } = resource;
        let endpoint = |name: &str| metadata[name].as_str().with_context(|| format!("{issuer} has no {name}"));
        let mut form = vec![("resource", name.clone())];
        let grants = strings(&metadata["grant_types_supported"]);
        let has = |grant: &str| grants.iter().any(|known| known == grant);
        if has("client_credentials") && !has("authorization_code") {
            form.extend([("grant_type", "client_credentials".to_owned()), ("scope", scopes.join(" "))]);
            return post_form(endpoint("token_endpoint")?, client, form).await;
        }
        let challenges = strings(&metadata["code_challenge_methods_supported"]);
        ensure!(challenges.iter().any(|method| method == "S256"), "{issuer} does not say that it does PKCE");
        let (verifier, shown) = (random(), random());
        let mut at = Url::parse(endpoint("authorization_endpoint")?)?;
        at.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &client.id),
            ("redirect_uri", REDIRECT),
            ("code_challenge", &BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()))),
            ("code_challenge_method", "S256"),
            ("state", &shown),
            ("resource", name),
        ]);
        if !scopes.is_empty() {
            at.query_pairs_mut().append_pair("scope", &scopes.join(" "));
        }
        let answer = get(at.as_str()).await?;
        let back = answer.location.with_context(|| format!("{issuer} sends nobody back: {}", answer.status))?;
        let back = Url::parse(&back)?;
        let said = |name: &str| back.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        ensure!(said("state").as_deref() == Some(&*shown), "another request was answered");
        // RFC 9207 §2.4: who has said that it names itself has to, and who names itself has to be who was asked.
        match said("iss") {
            Some(named) => ensure!(named == *issuer, "{named} answers for {issuer}"),
            None if metadata["authorization_response_iss_parameter_supported"] == true => bail!("{issuer} does not name itself"),
            None => {}
        }
        let code = said("code").with_context(|| format!("{issuer} refuses: {}", said("error").unwrap_or_default()))?;
        form.extend([("grant_type", "authorization_code".to_owned()), ("code", code), ("code_verifier", verifier)]);
        form.push(("redirect_uri", REDIRECT.to_owned()));
        post_form(endpoint("token_endpoint")?, client, form).await
    }
}

impl Authorize for OAuth {
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        Box::pin(async { Ok(self.state.lock().await.token.clone()) })
    }

    fn challenged(&self, challenge: Challenge) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        Box::pin(async move {
            let mut state = self.state.lock().await;
            if state.token.is_some() && state.token != challenge.shown {
                return Ok(state.token.clone());
            }
            let short = challenge.www_authenticate.iter().any(|field| parameter(field, "error").as_deref() == Some("insufficient_scope"));
            if challenge.status == StatusCode::FORBIDDEN && !short {
                return Ok(None);
            }
            let token = self.obtain(&mut state, &challenge).await.map_err(|error| AuthorizeError::new(format!("{error:#}")))?;
            state.token = Some(token.clone());
            Ok(Some(token))
        })
    }
}

/// The first of `places` that describes itself.
async fn first_of(places: &[String]) -> Option<Value> {
    for place in places {
        if let Ok(found) = get_json(place).await {
            return Some(found);
        }
    }
    None
}

/// `name="value"` of a challenge (RFC 9110 §11.6.1).
fn parameter(field: &str, name: &str) -> Option<String> {
    let mut rest = field;
    loop {
        let at = rest.find(name)?;
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        let begins = before.is_empty() || before.ends_with([' ', ',']);
        if let Some(value) = after.strip_prefix("=\"").filter(|_| begins) {
            return value.split('"').next().map(str::to_owned);
        }
        if let Some(value) = after.strip_prefix('=').filter(|_| begins) {
            return value.split([',', ' ']).next().map(str::to_owned);
        }
        rest = after;
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(str::to_owned)).collect()
}
