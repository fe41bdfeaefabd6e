//! Whom a server trusts to give out tokens, and how that is asked.

use std::time::Duration;

use bytes::Bytes;
use horos_egress::{Egress, Limits};
use http::{
    Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body_util::Full;
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::client::authorize::AuthorizeError;

/// Largest document or answer that is read.
const MAX_DOCUMENT: u64 = 256 * 1024;
/// For one request to an authorization server.
const PATIENCE: Duration = Duration::from_secs(15);
/// Most scopes that are asked for because a document lists them.
const MAX_SCOPES: usize = 64;

pub(super) fn failed(what: impl std::fmt::Display) -> AuthorizeError {
    AuthorizeError::new(crate::client::error::cut(&what.to_string()))
}

/// What a challenge by `Bearer` says (RFC 6750 §3, RFC 9728 §5.1).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) error: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) resource_metadata: Option<String>,
}

impl Bearer {
    /// Of the first field that is of that scheme.
    pub(super) fn of(fields: &[String]) -> Self {
        let Some(rest) = fields.iter().find_map(|field| {
            let (scheme, rest) = field.trim().split_once(' ').unwrap_or((field.trim(), ""));
            scheme.eq_ignore_ascii_case("bearer").then_some(rest)
        }) else {
            return Self::default();
        };
        let mut bearer = Self::default();
        for (name, value) in parameters(rest) {
            let place = match &*name.to_ascii_lowercase() {
                "error" => &mut bearer.error,
                "scope" => &mut bearer.scope,
                "resource_metadata" => &mut bearer.resource_metadata,
                _ => continue,
            };
            place.get_or_insert(value);
        }
        bearer
    }
}

/// `name=token` and `name="quoted \"text\""`, with commas between (RFC 9110 §11.2). Stops at what is neither.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',', '\t']);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim();
        if name.is_empty() || name.contains(' ') {
            break;
        }
        let after = after.trim_start();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut chars = quoted.char_indices();
                let end = loop {
                    match chars.next() {
                        Some((_, '\\')) => value.extend(chars.next().map(|(_, escaped)| escaped)),
                        Some((at, '"')) => break Some(at),
                        Some((_, other)) => value.push(other),
                        None => break None,
                    }
                };
                let Some(end) = end else { break };
                (value, &quoted[end + 1..])
            }
            None => {
                let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        found.push((name.to_owned(), value));
        rest = left.trim_start_matches([' ', ',', '\t']);
    }
    found
}

/// The resource that tokens are for.
#[derive(Debug)]
pub(super) struct Resource {
    /// What it calls itself (RFC 8707).
    pub(super) id: String,
    /// Whom it trusts: the first that it names.
    pub(super) issuer: String,
    pub(super) scopes: Vec<String>,
    /// Whether it says so itself; servers of 2025-03-26 did not.
    described: bool,
}

#[derive(Deserialize)]
struct ResourceDocument {
    resource: String,
    #[serde(default)]
    authorization_servers: Vec<String>,
    #[serde(default)]
    scopes_supported: Vec<String>,
}

impl Resource {
    /// The metadata of `server`: where the challenge says, or else at the well-known places, of its path and of its root.
    pub(super) async fn find(egress: &Egress, server: &Url, named: Option<&str>) -> Result<Self, AuthorizeError> {
        let mut places = Vec::new();
        match named {
            Some(named) => {
                let url: Url = named.parse().map_err(|_| failed("the challenge's resource_metadata is no URL"))?;
                // Whoever may write the header could else have anything fetched, and be believed.
                if url.origin() != server.origin() {
                    return Err(failed("the challenge's resource_metadata is another server's"));
                }
                places.push(url);
            }
            None => {
                let path = server.path().trim_end_matches('/');
                let well_known = "/.well-known/oauth-protected-resource";
                if !path.is_empty() {
                    places.push(at(server, &format!("{well_known}{path}")));
                }
                places.push(at(server, well_known));
            }
        }
        for place in places {
            let Some(document) = get::<ResourceDocument>(egress, &place).await? else { continue };
            if !is_of(&document.resource, server) {
                return Err(failed("the resource's metadata are of another resource"));
            }
            let issuer =
                document.authorization_servers.into_iter().next().ok_or_else(|| failed("the resource names no authorization server"))?;
            let scopes = document.scopes_supported.into_iter().take(MAX_SCOPES).collect();
            return Ok(Self { id: document.resource, issuer, scopes, described: true });
        }
        if named.is_some() {
            return Err(failed("the resource's metadata are not where its challenge says"));
        }
        // 2025-03-26, "Authorization Base URL": the server's own, without its path.
        let mut id = server.clone();
        id.set_query(None);
        id.set_fragment(None);
        let issuer = server.origin().ascii_serialization();
        Ok(Self { id: id.to_string(), issuer, scopes: Vec::new(), described: false })
    }
}

/// Whether `resource` is `server`, or what it lies below (RFC 9728 §3.3, and as MCP's own clients take it).
fn is_of(resource: &str, server: &Url) -> bool {
    let Ok(resource) = resource.parse::<Url>() else { return false };
    let above = resource.path().trim_end_matches('/');
    let below = server.path().strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    resource.origin() == server.origin() && below && resource.query().is_none_or(|query| server.query() == Some(query))
}

/// An authorization server.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) id: Box<str>,
    pub(super) authorization: Option<Url>,
    pub(super) token: Url,
    pub(super) registration: Option<Url>,
    pub(super) scopes: Vec<String>,
    /// By which it lets clients prove themselves; none where it does not say.
    pub(super) methods: Option<Vec<String>>,
    pub(super) takes_documents: bool,
    /// Whether its answers name it (RFC 9207).
    pub(super) names_itself: bool,
}

#[derive(Deserialize)]
struct IssuerDocument {
    issuer: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    registration_endpoint: Option<String>,
    #[serde(default)]
    scopes_supported: Vec<String>,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    code_challenge_methods_supported: Vec<String>,
    #[serde(default)]
    client_id_metadata_document_supported: bool,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
}

impl Issuer {
    /// The metadata of the one that `resource` trusts.
    pub(super) async fn find(egress: &Egress, resource: &Resource) -> Result<Self, AuthorizeError> {
        let id = &resource.issuer;
        let base: Url = id.parse().map_err(|_| failed("the authorization server's issuer is no URL"))?;
        if !matches!(base.scheme(), "http" | "https") || base.query().is_some() || base.fragment().is_some() {
            return Err(failed("the authorization server's issuer is no URL that may be one"));
        }
        let path = base.path().trim_end_matches('/');
        let mut places = vec![at(&base, &format!("/.well-known/oauth-authorization-server{path}"))];
        places.push(at(&base, &format!("/.well-known/openid-configuration{path}")));
        if !path.is_empty() {
            places.push(at(&base, &format!("{path}/.well-known/openid-configuration")));
        }
        for place in places {
            let Some(document) = get::<IssuerDocument>(egress, &place).await? else { continue };
            // RFC 8414 §3.3: identical, or it speaks for somebody else. A slash at the end is not told by every resource.
            let same = document.issuer == *id || document.issuer.trim_end_matches('/') == id.trim_end_matches('/') && path.is_empty();
            // Where nobody has named it, it names itself: below the server that tokens are for, and nowhere else.
            let own = !resource.described && document.issuer.parse::<Url>().is_ok_and(|named| named.origin() == base.origin());
            if !same && !own {
                return Err(failed("the authorization server's metadata are another's"));
            }
            return Self::of(document, &base);
        }
        if resource.described {
            return Err(failed("the authorization server has no metadata"));
        }
        // 2025-03-26, "Fallbacks for Servers without Metadata Discovery".
        Ok(Self {
            id: id.as_str().into(),
            authorization: Some(at(&base, "/authorize")),
            token: at(&base, "/token"),
            registration: Some(at(&base, "/register")),
            scopes: Vec::new(),
            methods: None,
            takes_documents: false,
            names_itself: false,
        })
    }

    fn of(document: IssuerDocument, base: &Url) -> Result<Self, AuthorizeError> {
        let url = |text: Option<String>| match text {
            None => Ok(None),
            Some(text) => text.parse::<Url>().map(Some).map_err(|_| failed("an endpoint of the authorization server is no URL")),
        };
        let authorization = url(document.authorization_endpoint)?;
        // Without S256 a code that is stolen on its way is as good as a token (MCP, "Authorization Code Protection").
        if authorization.is_some() && !document.code_challenge_methods_supported.iter().any(|method| method == "S256") {
            return Err(failed("the authorization server does not take PKCE by S256"));
        }
        Ok(Self {
            id: document.issuer.into(),
            authorization,
            token: url(document.token_endpoint)?.unwrap_or_else(|| at(base, "/token")),
            registration: url(document.registration_endpoint)?,
            scopes: document.scopes_supported,
            methods: document.token_endpoint_auth_methods_supported,
            takes_documents: document.client_id_metadata_document_supported,
            names_itself: document.authorization_response_iss_parameter_supported,
        })
    }
}

/// The same server, elsewhere.
fn at(server: &Url, path: &str) -> Url {
    let mut url = server.clone();
    url.set_path(path);
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// A document, if there is one.
async fn get<T: DeserializeOwned>(egress: &Egress, url: &Url) -> Result<Option<T>, AuthorizeError> {
    let mut request = Request::new(Full::default());
    *request.method_mut() = Method::GET;
    let response = send(egress, request, url).await?;
    if !response.status().is_success() {
        return Ok(None);
    }
    serde_json::from_slice(response.body()).map(Some).map_err(|error| failed(format!("{}: {error}", url.host_str().unwrap_or_default())))
}

/// Sends one request, and reads its whole answer.
pub(super) async fn send(egress: &Egress, mut request: Request<Full<Bytes>>, url: &Url) -> Result<Response<Bytes>, AuthorizeError> {
    let uri: Uri = url.as_str().parse().map_err(|_| failed("a URL that is none"))?;
    *request.uri_mut() = uri;
    request.headers_mut().insert(ACCEPT, http::HeaderValue::from_static("application/json"));
    let limits = Limits { response_bytes: MAX_DOCUMENT, ..Limits::within(PATIENCE) };
    let response = egress.send(request, &limits).await.map_err(failed)?;
    let (parts, body) = response.into_parts();
    Ok(Response::from_parts(parts, body.bytes().await.map_err(failed)?))
}

/// Posts a form or JSON, and reads the answer.
pub(super) async fn post<T: DeserializeOwned>(
    egress: &Egress,
    url: &Url,
    kind: &'static str,
    authorization: Option<http::HeaderValue>,
    body: String,
) -> Result<T, AuthorizeError> {
    let mut request = Request::new(Full::from(body));
    *request.method_mut() = Method::POST;
    request.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    if let Some(authorization) = authorization {
        request.headers_mut().insert(http::header::AUTHORIZATION, authorization);
    }
    let response = send(egress, request, url).await?;
    let status = response.status();
    if status != StatusCode::OK && status != StatusCode::CREATED {
        // RFC 6749 §5.2: a word for machines, which names no secret.
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let word = serde_json::from_slice::<Refusal>(response.body()).map_or_else(|_| "no reason".to_owned(), |refusal| refusal.error);
        return Err(failed(format!("the authorization server answered {status}: {word}")));
    }
    serde_json::from_slice(response.body()).map_err(|_| failed("the authorization server's answer is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_as_it_is_written() {
        let of = |text: &str| Bearer::of(&[text.to_owned()]);
        let full = of(
            r#"Bearer error="insufficient_scope", scope="a b", resource_metadata="https://h/x", error_description="say \"please\", first""#,
        );
        assert_eq!(full.error.as_deref(), Some("insufficient_scope"));
        assert_eq!(full.scope.as_deref(), Some("a b"));
        assert_eq!(full.resource_metadata.as_deref(), Some("https://h/x"));
        assert_eq!(of("bearer scope=one,error=invalid_token").scope.as_deref(), Some("one"));
        assert_eq!(of(r#"Bearer realm="scope=\"evil\"", scope="good""#).scope.as_deref(), Some("good"), "what is quoted is no parameter");
        for none in ["", "Bearer", "Basic realm=\"x\"", "Bearer scope=\"open", "Bearer , = ,", "Bearer \u{e9}=\u{e9}"] {
            assert_eq!(of(none).scope, None, "{none}");
        }
        assert_eq!(Bearer::of(&["Basic realm=x".into(), "Bearer scope=a".into()]).scope.as_deref(), Some("a"));
    }

    #[test]
    fn a_resource_is_the_servers_or_not_believed() {
        let server: Url = "https://tools.example.org/a/mcp".parse().unwrap();
        for (resource, is) in [
            ("https://tools.example.org/a/mcp", true),
            ("https://tools.example.org/a/mcp/", true),
            ("https://tools.example.org/a", true),
            ("https://tools.example.org", true),
            ("https://tools.example.org:443/a/mcp", true),
            ("https://tools.example.org/a/mc", false),
            ("https://tools.example.org/b", false),
            ("https://tools.example.org:444/a/mcp", false),
            ("http://tools.example.org/a/mcp", false),
            ("https://evil.example.org/a/mcp", false),
            ("https://tools.example.org.evil.org/a/mcp", false),
            ("https://tools.example.org@evil.org/a/mcp", false),
            ("", false),
        ] {
            assert_eq!(is_of(resource, &server), is, "{resource}");
        }
    }
}
