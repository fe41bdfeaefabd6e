//! OAuth, for servers that want it: MCP's "Authorization" (2025-11-25, and 2026-07-28), by the hook [`Authorize`].
//!
//! Asked for a token by a challenge, it finds the resource's metadata (RFC 9728), the authorization server's (RFC 8414, OpenID Connect
//! Discovery), becomes known there (as registered before, by a client id metadata document, or dynamically, RFC 7591), and gets a token
//! for this resource (RFC 8707): by a user's authorization code with PKCE (RFC 7636, S256), by its own credentials, or by an assertion
//! (RFC 7523). A token that ends is renewed by its refresh token; one with too few scopes is got again with more.
//!
//! What it promises:
//! - Everything is fetched by [`Egress`], so that nobody's metadata lead inside, and no redirect is followed.
//! - A resource that is not the server's, an issuer that is not the one that was asked, metadata without S256, a state that is not ours,
//!   or an `iss` that is another (RFC 9207), end the matter; each is compared letter by letter.
//! - What was registered with one authorization server is shown to no other.
//! - No loop: [`MAX_FLOWS`] in [`FLOWS_WITHIN`].
//! - No secret and no token is in any text. Tokens are in memory only.

mod metadata;
mod token;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use horos_egress::Egress;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use url::Url;

use self::{
    metadata::{Issuer, Resource},
    token::{Asked, Registered, Token},
};
use super::authorize::{Authorize, AuthorizeError, Challenge};

/// Tokens got anew, at most, within [`FLOWS_WITHIN`]: each may ask a person.
pub const MAX_FLOWS: usize = 5;
/// See [`MAX_FLOWS`].
pub const FLOWS_WITHIN: Duration = Duration::from_secs(60);
/// Authorization servers with which registrations are remembered.
const MAX_ISSUERS: usize = 8;
/// A token is renewed so long before its end: what a request takes to arrive.
const BEFORE_END: Duration = Duration::from_secs(30);

/// Has a person authorize.
pub trait Browse: Send + Sync + 'static {
    /// Shows `url` to the person, and gives the URL to which the authorization server sent the browser then, which begins with the
    /// redirect URI. For as long as the request that needs it may take.
    fn authorize(&self, url: String) -> BoxFuture<'_, Result<String, AuthorizeError>>;
}

/// Has an assertion: a workload's own token, or one that the enterprise's identity provider has given.
pub trait Assert: Send + Sync + 'static {
    /// One for `issuer`, about `resource`.
    fn assertion<'a>(&'a self, issuer: &'a str, resource: &'a str) -> BoxFuture<'a, Result<String, AuthorizeError>>;
}

/// By what a token is got.
#[derive(Clone)]
pub enum Grant {
    /// A person's authorization code, which comes to this redirect URI.
    Code {
        /// Where the browser is sent back to.
        redirect_uri: Box<str>,
        /// Who is asked.
        browse: Arc<dyn Browse>,
    },
    /// The client's own credentials.
    ClientCredentials,
    /// An assertion (RFC 7523 §2.1).
    Assertion(Arc<dyn Assert>),
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code { .. } => "Code",
            Self::ClientCredentials => "ClientCredentials",
            Self::Assertion(_) => "Assertion",
        })
    }
}

/// What this client is registered as beforehand.
#[derive(Clone)]
pub struct Registration {
    /// Its id.
    pub client_id: Box<str>,
    /// Its secret, if it has one.
    pub client_secret: Option<Box<str>>,
    /// Its key in PEM (PKCS #8) and what it signs by, `ES256` or `RS256`, for `private_key_jwt`.
    pub key: Option<(Box<str>, Box<str>)>,
    /// With whom; with whichever server there is if that is not said.
    pub issuer: Option<Box<str>>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("client_id", &self.client_id).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// Who this client is.
#[derive(Clone, Debug)]
pub struct Who {
    /// What people are shown.
    pub name: Box<str>,
    /// As what it is registered already.
    pub registration: Option<Registration>,
    /// The URL of its metadata document, which is its id where servers take one (SEP-991).
    pub document: Option<Box<str>>,
    /// How tokens are got.
    pub grant: Grant,
}

/// Gets tokens for one server.
pub struct OAuth {
    egress: Egress,
    who: Who,
    /// One at a time gets a token; the others find it there.
    flow: tokio::sync::Mutex<Flow>,
    token: Mutex<Option<Arc<Token>>>,
}

#[derive(Default)]
struct Flow {
    /// By issuer.
    registered: HashMap<String, Registered>,
    began: Vec<Instant>,
    /// What was asked for, so that more is asked for with it.
    scopes: BTreeSet<String>,
}

impl fmt::Debug for OAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth").field("who", &self.who).finish_non_exhaustive()
    }
}

impl OAuth {
    /// No token yet; `egress` is where it is got by.
    pub fn new(egress: Egress, who: Who) -> Self {
        Self { egress, who, flow: tokio::sync::Mutex::default(), token: Mutex::new(None) }
    }

    fn token(&self) -> Option<Arc<Token>> {
        self.token.lock().clone()
    }

    fn keep(&self, token: Token) -> HeaderValue {
        let header = token.header.clone();
        *self.token.lock() = Some(Arc::new(token));
        header
    }

    /// Renews a token whose end has come.
    async fn renewed(&self) -> Result<Option<HeaderValue>, AuthorizeError> {
        let Some(token) = self.token() else { return Ok(None) };
        if !token.ends_within(BEFORE_END) {
            return Ok(Some(token.header.clone()));
        }
        let _flow = self.flow.lock().await;
        match self.token() {
            // Another has been faster.
            Some(other) if !other.ends_within(BEFORE_END) => Ok(Some(other.header.clone())),
            Some(old) => match self.refresh(&old).await {
                Some(new) => Ok(Some(self.keep(new))),
                // The server will say that it wants another.
                None => Ok(None),
            },
            None => Ok(None),
        }
    }

    async fn refresh(&self, old: &Token) -> Option<Token> {
        match old.refresh(&self.egress).await? {
            Ok(new) => Some(new),
            Err(error) => {
                tracing::debug!(%error, "a token is not renewed");
                None
            }
        }
    }

    async fn answer(&self, challenge: Challenge) -> Result<Option<HeaderValue>, AuthorizeError> {
        let mut flow = self.flow.lock().await;
        let known = self.token();
        if let Some(known) = &known
            && challenge.shown.as_ref() != Some(&known.header)
        {
            return Ok(Some(known.header.clone()));
        }
        let said = metadata::Bearer::of(&challenge.www_authenticate);
        let wanted: BTreeSet<String> = said.scope.iter().flat_map(|scope| scope.split_ascii_whitespace()).map(str::to_owned).collect();
        if challenge.status == StatusCode::FORBIDDEN {
            // What was asked for already was given, or will not be.
            if said.error.as_deref() != Some("insufficient_scope") || known.is_some() && wanted.is_subset(&flow.scopes) {
                return Ok(None);
            }
        }
        flow.begin()?;
        let server: Url = challenge.url.parse().map_err(|_| AuthorizeError::new("the server's URL is none"))?;
        let resource = Resource::find(&self.egress, &server, said.resource_metadata.as_deref()).await?;
        let issuer = Issuer::find(&self.egress, &resource).await?;
        if challenge.status == StatusCode::UNAUTHORIZED
            && let Some(known) = known.as_ref().filter(|known| *known.issuer == *issuer.id)
            && let Some(new) = self.refresh(known).await
        {
            return Ok(Some(self.keep(new)));
        }
        *self.token.lock() = None;
        if known.as_ref().is_some_and(|known| *known.issuer != *issuer.id) {
            flow.scopes.clear();
        }
        let scopes = flow.scopes(wanted, &resource, &issuer, &self.who.grant);
        let registered = self.register(&mut flow, &issuer).await?;
        let asked = Asked { egress: &self.egress, issuer: &issuer, resource: &resource.id, registered: &registered, scopes: &scopes };
        let token = match &self.who.grant {
            Grant::Code { redirect_uri, browse } => asked.by_code(redirect_uri, &**browse).await?,
            Grant::ClientCredentials => asked.by_credentials().await?,
            Grant::Assertion(assert) => asked.by_assertion(assert.assertion(&issuer.id, &resource.id).await?).await?,
        };
        flow.scopes = scopes;
        Ok(Some(self.keep(token)))
    }

    /// What this client is to `issuer`.
    async fn register(&self, flow: &mut Flow, issuer: &Issuer) -> Result<Registered, AuthorizeError> {
        if let Some(known) = &self.who.registration {
            if known.issuer.as_deref().is_some_and(|of| of.trim_end_matches('/') != issuer.id.trim_end_matches('/')) {
                return Err(AuthorizeError::new("this client is registered with another authorization server"));
            }
            return Ok(Registered::before(known));
        }
        if let Some(document) = self.who.document.as_ref().filter(|_| issuer.takes_documents) {
            return Ok(Registered::public(document));
        }
        if let Some(known) = flow.registered.get(&*issuer.id) {
            return Ok(known.clone());
        }
        let registered = token::register(&self.egress, issuer, &self.who).await?;
        if flow.registered.len() >= MAX_ISSUERS {
            flow.registered.clear();
        }
        flow.registered.insert(issuer.id.to_string(), registered.clone());
        Ok(registered)
    }
}

impl Flow {
    fn begin(&mut self) -> Result<(), AuthorizeError> {
        self.began.retain(|began| began.elapsed() < FLOWS_WITHIN);
        if self.began.len() >= MAX_FLOWS {
            return Err(AuthorizeError::new("the server has refused too many tokens of late"));
        }
        self.began.push(Instant::now());
        Ok(())
    }

    /// What is asked for: what the challenge names, with what was asked for before; else what the resource names; else nothing.
    fn scopes(&self, wanted: BTreeSet<String>, resource: &Resource, issuer: &Issuer, grant: &Grant) -> BTreeSet<String> {
        let mut scopes = if wanted.is_empty() { resource.scopes.iter().cloned().collect() } else { wanted };
        scopes.extend(self.scopes.iter().cloned());
        // To be renewed without asking the person again, where that is to be had (SEP-2207).
        if matches!(grant, Grant::Code { .. }) && issuer.scopes.iter().any(|scope| scope == "offline_access") {
            scopes.insert("offline_access".to_owned());
        }
        scopes
    }
}

impl Authorize for OAuth {
    fn authorization(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        Box::pin(self.renewed())
    }

    fn challenged(&self, challenge: Challenge) -> BoxFuture<'_, Result<Option<HeaderValue>, AuthorizeError>> {
        Box::pin(self.answer(challenge))
    }
}
