//! How a token is asked for, and what is proved in doing so.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use horos_egress::Egress;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

use super::{
    Browse, Grant, Registration, Who,
    metadata::{Issuer, failed, post},
};
use crate::client::authorize::AuthorizeError;

const FORM: &str = "application/x-www-form-urlencoded";
/// How long an assertion of this client's own holds (RFC 7523 §3): one request, and clocks that differ.
const ASSERTION: i64 = 300;
/// Random bytes of a verifier and of a state (RFC 7636 §7.1: 256 bits).
const RANDOM: usize = 32;
/// A token that does not say when it ends is taken for one of this age.
const UNSAID: Duration = Duration::from_secs(3600);

/// What this client is to one authorization server.
#[derive(Clone)]
pub(super) struct Registered {
    id: Box<str>,
    secret: Option<Box<str>>,
    key: Option<(Box<str>, Box<str>)>,
    /// As the server has said.
    method: Option<String>,
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Registered {
    pub(super) fn before(known: &Registration) -> Self {
        Self { id: known.client_id.clone(), secret: known.client_secret.clone(), key: known.key.clone(), method: None }
    }

    pub(super) fn public(id: &str) -> Self {
        Self { id: id.into(), secret: None, key: None, method: Some("none".to_owned()) }
    }

    /// By what it proves itself: as was agreed, or else by the first of what it has that the server takes.
    fn method(&self, issuer: &Issuer) -> &'static str {
        // RFC 8414 §2: who does not say takes `client_secret_basic`.
        let takes =
            |method: &str| issuer.methods.as_ref().map_or(method == "client_secret_basic", |all| all.iter().any(|one| one == method));
        match self.method.as_deref() {
            Some("client_secret_basic") if self.secret.is_some() => "client_secret_basic",
            Some("client_secret_post") if self.secret.is_some() => "client_secret_post",
            Some("none") => "none",
            _ if self.key.is_some() => "private_key_jwt",
            _ if self.secret.is_none() => "none",
            _ if takes("client_secret_basic") => "client_secret_basic",
            _ if takes("client_secret_post") => "client_secret_post",
            _ if takes("none") => "none",
            _ => "client_secret_basic",
        }
    }

    /// Adds the proof to a request for a token.
    fn prove(&self, issuer: &Issuer, form: &mut form_urlencoded::Serializer<'_, String>) -> Result<Option<HeaderValue>, AuthorizeError> {
        let method = self.method(issuer);
        match (method, &self.secret, &self.key) {
            ("client_secret_basic", Some(secret), _) => {
                let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = format!("{}:{}", encoded(&self.id), encoded(secret));
                let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(pair)))
                    .map_err(|_| failed("no field can hold the secret"))?;
                value.set_sensitive(true);
                return Ok(Some(value));
            }
            ("client_secret_post", Some(secret), _) => {
                form.append_pair("client_id", &self.id).append_pair("client_secret", secret);
            }
            ("private_key_jwt", _, Some(key)) => {
                let assertion = assertion(&self.id, &issuer.id, key)?;
                form.append_pair("client_id", &self.id)
                    .append_pair("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
                    .append_pair("client_assertion", &assertion);
            }
            _ => {
                form.append_pair("client_id", &self.id);
            }
        }
        Ok(None)
    }
}

/// A client's own word, signed (RFC 7523 §3).
fn assertion(id: &str, issuer: &str, (pem, algorithm): &(Box<str>, Box<str>)) -> Result<String, AuthorizeError> {
    #[derive(Serialize)]
    struct Claims<'a> {
        iss: &'a str,
        sub: &'a str,
        aud: &'a str,
        jti: String,
        iat: i64,
        exp: i64,
    }
    let unsigned = |_| failed("the client's key cannot sign");
    let (algorithm, key) = match &**algorithm {
        "ES256" => (Algorithm::ES256, EncodingKey::from_ec_pem(pem.as_bytes()).map_err(unsigned)?),
        "RS256" => (Algorithm::RS256, EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(unsigned)?),
        _ => return Err(failed("the client's key signs by ES256 or RS256")),
    };
    let iat = jiff::Timestamp::now().as_second();
    let claims = Claims { iss: id, sub: id, aud: issuer, jti: random(), iat, exp: iat + ASSERTION };
    jsonwebtoken::encode(&Header::new(algorithm), &claims, &key).map_err(unsigned)
}

fn random() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; RANDOM]>())
}

/// Becomes known to `issuer` (RFC 7591).
pub(super) async fn register(egress: &Egress, issuer: &Issuer, who: &Who) -> Result<Registered, AuthorizeError> {
    #[derive(Deserialize)]
    struct Answer {
        client_id: String,
        client_secret: Option<String>,
        token_endpoint_auth_method: Option<String>,
    }
    let endpoint = issuer.registration.as_ref().ok_or_else(|| failed("this client is not registered there, and cannot be"))?;
    let (redirects, grants) = match &who.grant {
        Grant::Code { redirect_uri, .. } => (vec![&**redirect_uri], vec!["authorization_code", "refresh_token"]),
        Grant::ClientCredentials => (Vec::new(), vec!["client_credentials"]),
        Grant::Assertion(_) => (Vec::new(), vec!["urn:ietf:params:oauth:grant-type:jwt-bearer"]),
    };
    let mut told = serde_json::json!({"client_name": who.name, "redirect_uris": redirects, "grant_types": grants});
    if !redirects.is_empty() {
        told["response_types"] = serde_json::json!(["code"]);
        // Of loopback or a scheme of its own (OpenID Connect Dynamic Registration, "application_type"), or of the web.
        let web = redirects.iter().all(|one| one.starts_with("https://"));
        told["application_type"] = if web { "web" } else { "native" }.into();
    }
    let known = ["client_secret_basic", "client_secret_post", "none"];
    let method = issuer.methods.as_ref().and_then(|all| known.into_iter().find(|method| all.iter().any(|one| one == method)));
    told["token_endpoint_auth_method"] = method.unwrap_or("client_secret_basic").into();
    let answer: Answer = post(egress, endpoint, "application/json", None, told.to_string()).await?;
    Ok(Registered {
        id: answer.client_id.into(),
        secret: answer.client_secret.filter(|secret| !secret.is_empty()).map(Into::into),
        key: None,
        method: answer.token_endpoint_auth_method,
    })
}

/// A token.
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) issuer: Box<str>,
    ends: Instant,
    renewal: Option<Renewal>,
}

struct Renewal {
    refresh: Box<str>,
    endpoint: Url,
    resource: Box<str>,
    /// As whom; and the server, as far as that is needed.
    registered: Registered,
    methods: Option<Vec<String>>,
}

impl Token {
    pub(super) fn ends_within(&self, span: Duration) -> bool {
        self.ends <= Instant::now() + span
    }

    /// The next one, if it can be had by this; none if there is nothing to renew it by.
    pub(super) async fn refresh(&self, egress: &Egress) -> Option<Result<Token, AuthorizeError>> {
        let renewal = self.renewal.as_ref()?;
        let issuer = Issuer {
            id: self.issuer.clone(),
            authorization: None,
            token: renewal.endpoint.clone(),
            registration: None,
            scopes: Vec::new(),
            methods: renewal.methods.clone(),
            takes_documents: false,
            names_itself: false,
        };
        let scopes = BTreeSet::new();
        let asked = Asked { egress, issuer: &issuer, resource: &renewal.resource, registered: &renewal.registered, scopes: &scopes };
        let pairs = [("grant_type", "refresh_token"), ("refresh_token", &*renewal.refresh)];
        Some(asked.token(&pairs, Some(renewal.refresh.clone())).await)
    }
}

/// A token that is asked for.
pub(super) struct Asked<'a> {
    pub(super) egress: &'a Egress,
    pub(super) issuer: &'a Issuer,
    pub(super) resource: &'a str,
    pub(super) registered: &'a Registered,
    pub(super) scopes: &'a BTreeSet<String>,
}

impl Asked<'_> {
    fn scope(&self) -> Option<String> {
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| &**scope).collect();
        (!scopes.is_empty()).then(|| scopes.join(" "))
    }

    /// By a person's authorization.
    pub(super) async fn by_code(&self, redirect_uri: &str, browse: &dyn Browse) -> Result<Token, AuthorizeError> {
        let endpoint = self.issuer.authorization.as_ref().ok_or_else(|| failed("the authorization server has no way to authorize"))?;
        let (verifier, state) = (random(), random());
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier));
        let mut url = endpoint.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.registered.id)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("state", &state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256")
            .append_pair("resource", self.resource);
        if let Some(scope) = self.scope() {
            url.query_pairs_mut().append_pair("scope", &scope);
            if self.scopes.contains("offline_access") {
                // OpenID Connect Core §11: without it the scope is ignored.
                url.query_pairs_mut().append_pair("prompt", "consent");
            }
        }
        let back: Url = browse.authorize(url.to_string()).await?.parse().map_err(|_| failed("the browser came back to no URL"))?;
        let code = self.code(&back, &state)?;
        let pairs = [("grant_type", "authorization_code"), ("code", &*code), ("redirect_uri", redirect_uri), ("code_verifier", &*verifier)];
        self.token(&pairs, None).await
    }

    /// What came back with the browser, if it is ours and the server's.
    fn code(&self, back: &Url, state: &str) -> Result<String, AuthorizeError> {
        let one = |name: &str| {
            let mut all = back.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned());
            let first = all.next();
            // Said twice, it is not known which was meant (RFC 6749 §3.1).
            if all.next().is_some() { None } else { first }
        };
        if one("state").as_deref() != Some(state) {
            return Err(failed("what came back is not the answer to what was asked"));
        }
        // RFC 9207 §2.4: letter by letter, and before anything else of it is believed.
        match one("iss") {
            Some(iss) if *iss != *self.issuer.id => return Err(failed("another authorization server has answered")),
            None if self.issuer.names_itself => return Err(failed("the authorization server did not say that it has answered")),
            _ => {}
        }
        if let Some(error) = one("error") {
            return Err(failed(format!("not authorized: {error}")));
        }
        one("code").ok_or_else(|| failed("no code came back"))
    }

    /// By what the client is.
    pub(super) async fn by_credentials(&self) -> Result<Token, AuthorizeError> {
        self.token(&[("grant_type", "client_credentials")], None).await
    }

    /// By somebody else's word.
    pub(super) async fn by_assertion(&self, assertion: String) -> Result<Token, AuthorizeError> {
        self.token(&[("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &*assertion)], None).await
    }

    /// The body of a request for a token, and what stands in its head to prove who asks.
    fn form(&self, pairs: &[(&str, &str)]) -> Result<(String, Option<HeaderValue>), AuthorizeError> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs).append_pair("resource", self.resource);
        // A code was authorized with its scopes, and says them itself.
        let says_scope = !pairs.iter().any(|(name, _)| matches!(*name, "code" | "refresh_token"));
        if let Some(scope) = self.scope().filter(|_| says_scope) {
            form.append_pair("scope", &scope);
        }
        let proof = self.registered.prove(self.issuer, &mut form)?;
        Ok((form.finish(), proof))
    }

    async fn token(&self, pairs: &[(&str, &str)], refresh: Option<Box<str>>) -> Result<Token, AuthorizeError> {
        #[derive(Deserialize)]
        struct Answer {
            access_token: String,
            token_type: Option<String>,
            expires_in: Option<u64>,
            refresh_token: Option<String>,
        }
        let (form, proof) = self.form(pairs)?;
        let answer: Answer = post(self.egress, &self.issuer.token, FORM, proof, form).await?;
        if answer.token_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err(failed("the token is of a type that is not spoken"));
        }
        let mut header =
            HeaderValue::try_from(format!("Bearer {}", answer.access_token)).map_err(|_| failed("no field can hold the token"))?;
        header.set_sensitive(true);
        let refresh = answer.refresh_token.map(Into::into).or(refresh);
        let renewal = refresh.map(|refresh| Renewal {
            refresh,
            endpoint: self.issuer.token.clone(),
            resource: self.resource.into(),
            registered: self.registered.clone(),
            methods: self.issuer.methods.clone(),
        });
        let lives = answer.expires_in.map_or(UNSAID, |seconds| Duration::from_secs(seconds.min(365 * 86_400)));
        Ok(Token { header, issuer: self.issuer.id.clone(), ends: Instant::now() + lives, renewal })
    }
}
