//! Tokens for a server that wants OAuth, and the attempts to have one given to somebody else.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_egress::{Egress, Limits, Options as EgressOptions, Roots};
use horos_tools::client::{
    Authorize as _, AuthorizeError, Challenge, Client, ClientError, Options, Times,
    oauth::{Browse, Grant, OAuth, Registration, Who},
    patient,
};
use horos_wire::NoEffect;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    client::call,
    client_world::{Age, Body, Book, Instead, Server, World, full, times},
};

const REDIRECT: &str = "http://127.0.0.1:1/callback";

/// How the servers deviate from what is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    Not,
    OtherResource,
    ElsewhereMetadata,
    OtherIssuer,
    NoPkce,
    OtherState,
    OtherIss,
    NoIss,
    TwoCodes,
    Denied,
    /// Not odd: clients may describe themselves by a document.
    Documents,
}

/// What the authorization server has seen.
#[derive(Default)]
struct Seen {
    authorized: Mutex<Vec<HashMap<String, String>>>,
    tokens: Mutex<Vec<HashMap<String, String>>>,
    proofs: Mutex<Vec<Option<String>>>,
    registered: AtomicUsize,
}

fn pairs(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

fn json(status: u16, value: &Value) -> Response<Body> {
    full(status, "application/json", value.to_string())
}

/// Follows nothing, and gives back where it is sent.
struct Browser(Egress);

impl Browse for Browser {
    fn authorize(&self, url: String) -> BoxFuture<'_, Result<String, AuthorizeError>> {
        Box::pin(async move {
            let mut request = Request::new(Full::<Bytes>::default());
            *request.uri_mut() = url.parse().unwrap();
            let response = self.0.send(request, &Limits::within(Duration::from_secs(10))).await.unwrap();
            assert_eq!(response.status(), 302);
            Ok(response.headers()["location"].to_str().unwrap().to_owned())
        })
    }
}

struct Scene {
    seen: Arc<Seen>,
    world: World,
    resource: Server,
    authority: Server,
    egress: Egress,
}

async fn authority(odd: Odd, seen: Arc<Seen>, lives: u64) -> Server {
    Server::answering("127.0.0.1:0", move |request: Request<Bytes>| {
        let seen = seen.clone();
        Box::pin(async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let issuer = format!("http://{host}/tenant");
            match request.uri().path() {
                "/.well-known/oauth-authorization-server/tenant" => {
                    let methods = if odd == Odd::NoPkce { json!(["plain"]) } else { json!(["plain", "S256"]) };
                    let said = if odd == Odd::OtherIssuer { "http://evil.example.org".to_owned() } else { issuer.clone() };
                    json(200, &json!({
                        "issuer": said, "authorization_endpoint": format!("{issuer}/authorize"), "token_endpoint": format!("{issuer}/token"),
                        "registration_endpoint": format!("{issuer}/register"), "code_challenge_methods_supported": methods,
                        "token_endpoint_auth_methods_supported": ["client_secret_basic"], "scopes_supported": ["tools", "more", "offline_access"],
                        "authorization_response_iss_parameter_supported": true,
                        "client_id_metadata_document_supported": odd == Odd::Documents,
                    }))
                }
                "/tenant/register" => {
                    seen.registered.fetch_add(1, SeqCst);
                    let asked: Value = serde_json::from_slice(request.body()).unwrap();
                    assert_eq!(asked["redirect_uris"], json!([REDIRECT]));
                    json(201, &json!({"client_id": "us", "client_secret": "hush hush", "token_endpoint_auth_method": "client_secret_basic"}))
                }
                "/tenant/authorize" => {
                    let asked = pairs(request.uri().query().unwrap());
                    let state = if odd == Odd::OtherState { "another" } else { &asked["state"] };
                    let mut back: url::Url = REDIRECT.parse().unwrap();
                    back.query_pairs_mut().append_pair("state", state);
                    match odd {
                        Odd::Denied => back.query_pairs_mut().append_pair("error", "access_denied"),
                        _ => back.query_pairs_mut().append_pair("code", "c-1"),
                    };
                    match odd {
                        Odd::NoIss => {}
                        Odd::OtherIss => drop(back.query_pairs_mut().append_pair("iss", &format!("{issuer}/"))),
                        _ => drop(back.query_pairs_mut().append_pair("iss", &issuer)),
                    }
                    if odd == Odd::TwoCodes {
                        back.query_pairs_mut().append_pair("code", "c-2");
                    }
                    seen.authorized.lock().push(asked);
                    let mut response = full(302, "text/plain", "");
                    response.headers_mut().insert("location", back.as_str().parse().unwrap());
                    response
                }
                "/tenant/token" => {
                    let asked = pairs(std::str::from_utf8(request.body()).unwrap());
                    let proof = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
                    seen.proofs.lock().push(proof);
                    if let Some(verifier) = asked.get("code_verifier") {
                        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
                        assert_eq!(seen.authorized.lock().last().unwrap()["code_challenge"], challenge);
                    }
                    let mut tokens = seen.tokens.lock();
                    tokens.push(asked);
                    let number = tokens.len();
                    json(200, &json!({"access_token": format!("t-{number}"), "token_type": "Bearer", "expires_in": lives, "refresh_token": format!("r-{number}")}))
                }
                _ => full(404, "text/plain", ""),
            }
        })
    })
    .await
}

/// A server of tools that takes the tokens `good` knows, and an authority that gives some out.
async fn scene(odd: Odd, lives: u64, good: impl Fn(&str, bool) -> Result<(), u16> + Send + Sync + 'static) -> Scene {
    let seen = Arc::new(Seen::default());
    let authority = authority(odd, seen.clone(), lives).await;
    let issuer = format!("http://{}/tenant", authority.address);
    let elsewhere = authority.address;
    let instead: Instead = Arc::new(move |request| {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let response = if request.uri().path() == "/.well-known/oauth-protected-resource/mcp" {
            let resource = if odd == Odd::OtherResource { "http://evil.example.org/mcp".to_owned() } else { format!("http://{host}/mcp") };
            json(200, &json!({"resource": resource, "authorization_servers": [issuer], "scopes_supported": ["tools"]}))
        } else {
            let shown = request.headers().get("authorization").map_or("", |value| value.to_str().unwrap());
            let is_call = super::client_world::asks(request, "tools/call").is_some();
            let status = good(shown, is_call).err()?;
            let from = if odd == Odd::ElsewhereMetadata { elsewhere.to_string() } else { host };
            let scope = if status == 403 { "error=\"insufficient_scope\", scope=\"more\", " } else { "" };
            let said = format!("Bearer {scope}resource_metadata=\"http://{from}/.well-known/oauth-protected-resource/mcp\"");
            let mut response = full(status, "text/plain", "");
            response.headers_mut().insert("www-authenticate", said.parse().unwrap());
            response
        };
        Some(Box::pin(std::future::ready(response)))
    });
    let resource = Server::start("127.0.0.1:0", &Book::new(Age::New), false, Some(instead)).await;
    let addresses = [resource.address, authority.address];
    let trusted = addresses.iter().map(|address| address.to_string().parse().unwrap()).collect();
    let egress = Egress::new(patient(EgressOptions { trusted, roots: Roots::Files, ..EgressOptions::default() })).unwrap();
    Scene { seen, world: World::new(&addresses).await, resource, authority, egress }
}

/// That a token is wanted.
fn challenge(scene: &Scene) -> Challenge {
    let www_authenticate =
        vec![format!("Bearer resource_metadata=\"http://{}/.well-known/oauth-protected-resource/mcp\"", scene.resource.address)];
    let shown = Some("Bearer t-1".parse().unwrap());
    Challenge { url: scene.resource.url().into(), status: StatusCode::UNAUTHORIZED, www_authenticate, shown }
}

impl Scene {
    /// A person's client, which describes itself at that URL.
    fn described(&self, at: &str) -> (Client, Arc<OAuth>) {
        let grant = Grant::Code { redirect_uri: REDIRECT.into(), browse: Arc::new(Browser(self.egress.clone())) };
        self.of(Who { name: "Horos".into(), registration: None, document: Some(at.into()), grant })
    }

    fn client(&self, registration: Option<Registration>, by_code: bool) -> (Client, Arc<OAuth>) {
        let grant = match by_code {
            true => Grant::Code { redirect_uri: REDIRECT.into(), browse: Arc::new(Browser(self.egress.clone())) },
            false => Grant::ClientCredentials,
        };
        self.of(Who { name: "Horos".into(), registration, document: None, grant })
    }

    fn of(&self, who: Who) -> (Client, Arc<OAuth>) {
        let oauth = Arc::new(OAuth::new(self.egress.clone(), who));
        let times = Times { grace: Duration::ZERO, backoff: Duration::from_secs(60), backoff_cap: Duration::from_secs(60), ..times() };
        (self.world.with(&self.resource.url(), Options { authorize: Some(oauth.clone()), times, ..Options::default() }), oauth)
    }
}

#[tokio::test]
async fn a_person_authorizes_once_and_more_scopes_are_asked_for_with_those_there_are() {
    let scene = scene(Odd::Not, 3600, |shown, is_call| match shown {
        "Bearer t-1" if is_call => Err(403),
        "Bearer t-1" | "Bearer t-2" => Ok(()),
        _ => Err(401),
    })
    .await;
    let (client, oauth) = scene.client(None, true);
    assert_eq!(call(&client, "add", json!({"a": 1})).await.unwrap().structured_content, Some(json!({"sum": 1})));
    call(&client, "add", json!({"a": 1})).await.unwrap();
    let authorized = scene.seen.authorized.lock().clone();
    let scopes: Vec<&str> = authorized.iter().map(|asked| &*asked["scope"]).collect();
    assert_eq!(scopes, ["offline_access tools", "more offline_access tools"]);
    assert_eq!(scene.seen.registered.load(SeqCst), 1);
    for asked in &authorized {
        assert_eq!((&*asked["resource"], &*asked["code_challenge_method"]), (&*scene.resource.url(), "S256"));
    }
    let tokens = scene.seen.tokens.lock().clone();
    assert!(tokens.iter().all(|asked| asked["resource"] == scene.resource.url() && asked["redirect_uri"] == REDIRECT));
    // RFC 6749 §2.3.1: both are encoded before they are joined.
    let proof = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("us:hush+hush"));
    assert!(scene.seen.proofs.lock().iter().all(|shown| shown.as_deref() == Some(&*proof)));
    let shown = format!("{oauth:?} {client:?}");
    assert!(!["t-2", "hush", "r-1"].iter().any(|secret| shown.contains(secret)), "{shown}");
}

#[tokio::test]
async fn a_token_that_ends_is_renewed_and_nobody_asked_again() {
    let scene = scene(Odd::Not, 0, |shown, _| if shown.starts_with("Bearer t-") { Ok(()) } else { Err(401) }).await;
    let (client, _) = scene.client(None, true);
    for _ in 0..3 {
        call(&client, "add", json!({})).await.unwrap();
    }
    assert_eq!(scene.seen.authorized.lock().len(), 1);
    let tokens = scene.seen.tokens.lock().clone();
    assert!(tokens.len() >= 4 && tokens[1]["grant_type"] == "refresh_token" && tokens[1]["refresh_token"] == "r-1", "{tokens:?}");
    assert_eq!(tokens[2]["refresh_token"], "r-2", "each is used once");
}

#[tokio::test]
async fn a_program_gets_a_token_by_its_own_credentials_where_it_is_registered_and_nowhere_else() {
    let scene = scene(Odd::Not, 3600, |shown, _| if shown == "Bearer t-1" { Ok(()) } else { Err(401) }).await;
    let registration = |issuer: Option<String>| Registration {
        client_id: "us".into(),
        client_secret: Some("hush".into()),
        key: None,
        issuer: issuer.map(Into::into),
    };
    let (client, _) = scene.client(Some(registration(Some("http://other.example.org".into()))), false);
    let refused = call(&client, "add", json!({})).await.unwrap_err();
    assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NotAllowed(_), .. }), "{refused:?}");
    assert_eq!(scene.seen.tokens.lock().len(), 0);
    drop(client);
    let (client, _) = scene.client(Some(registration(Some(format!("http://{}/tenant", scene.authority.address)))), false);
    call(&client, "add", json!({})).await.unwrap();
    let tokens = scene.seen.tokens.lock().clone();
    assert_eq!((tokens.len(), &*tokens[0]["grant_type"], &*tokens[0]["scope"]), (1, "client_credentials", "tools"));
    assert_eq!(scene.seen.registered.load(SeqCst), 0);
}

#[tokio::test]
async fn no_code_and_no_token_is_got_from_who_is_not_who_he_says() {
    for odd in [
        Odd::OtherResource,
        Odd::ElsewhereMetadata,
        Odd::OtherIssuer,
        Odd::NoPkce,
        Odd::OtherState,
        Odd::OtherIss,
        Odd::NoIss,
        Odd::TwoCodes,
        Odd::Denied,
    ] {
        let scene = scene(odd, 3600, |_, _| Err(401)).await;
        let (client, _) = scene.client(None, true);
        let refused = call(&client, "add", json!({})).await.unwrap_err();
        assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NotAllowed(_), .. }), "{odd:?} {refused:?}");
        assert_eq!(scene.seen.tokens.lock().len(), 0, "{odd:?}: no token was asked for");
        let asked_person = matches!(odd, Odd::OtherState | Odd::OtherIss | Odd::NoIss | Odd::TwoCodes | Odd::Denied);
        assert_eq!(scene.seen.authorized.lock().len(), usize::from(asked_person), "{odd:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_every_token_does_not_have_a_person_asked_for_ever() {
    let scene = scene(Odd::Not, 3600, |_, _| Err(401)).await;
    let (client, _) = scene.client(None, true);
    for _ in 0..3 {
        call(&client, "add", json!({})).await.unwrap_err();
    }
    assert!(scene.seen.authorized.lock().len() <= horos_tools::client::oauth::MAX_FLOWS);
}

/// A key as people make them, and what proves that it signed.
fn signer() -> (Box<str>, Vec<u8>) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    (pair.serialize_pem().into(), pair.public_key_raw().to_vec())
}

#[tokio::test]
async fn a_program_proves_itself_by_a_word_that_it_signs_for_one_server_and_never_twice_the_same() {
    let scene = scene(Odd::Not, 0, |shown, _| if shown.starts_with("Bearer t-") { Ok(()) } else { Err(401) }).await;
    let (pem, public) = signer();
    let registration = Registration { client_id: "us".into(), client_secret: None, key: Some((pem.clone(), "ES256".into())), issuer: None };
    let shown = format!("{registration:?}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
    let (client, oauth) = scene.client(Some(registration), false);
    let call_of = |client: Client| async move { call(&client, "add", json!({})).await };
    call_of(client.clone()).await.unwrap();
    let refused = oauth.challenged(challenge(&scene)).await.unwrap();
    assert!(refused.is_some());
    let issuer = format!("http://{}/tenant", scene.authority.address);
    let tokens = scene.seen.tokens.lock().clone();
    let mut numbers = std::collections::HashSet::new();
    let signed: Vec<_> = tokens.iter().filter_map(|asked| asked.get("client_assertion")).collect();
    assert!(signed.len() >= 2, "{tokens:?}");
    for word in signed {
        let key = jsonwebtoken::DecodingKey::from_ec_der(&public);
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        rules.set_audience(&[&issuer]);
        let claims = jsonwebtoken::decode::<Value>(word, &key, &rules).unwrap().claims;
        assert_eq!((&claims["iss"], &claims["sub"], &claims["aud"]), (&json!("us"), &json!("us"), &json!(issuer)));
        let lives = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
        assert!((1..=300).contains(&lives), "{lives} s");
        assert!(numbers.insert(claims["jti"].to_string()), "each word is said once");
    }
    assert!(tokens.iter().all(|asked| asked["client_id"] == "us" && !asked.contains_key("client_secret")));
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    assert!(tokens.iter().all(|asked| asked["client_assertion_type"] == kind));
    assert!(scene.seen.proofs.lock().iter().all(Option::is_none), "and shows nothing besides");
}

#[tokio::test]
async fn a_key_that_cannot_sign_is_told_without_what_is_in_it() {
    for (pem, by) in [("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "ES256"), (&*signer().0, "HS256")] {
        let scene = scene(Odd::Not, 3600, |_, _| Err(401)).await;
        let registration = Registration { client_id: "us".into(), client_secret: None, key: Some((pem.into(), by.into())), issuer: None };
        let (client, _) = scene.client(Some(registration), false);
        let refused = call(&client, "add", json!({})).await.unwrap_err();
        assert!(matches!(&refused, ClientError::NoEffect { why: NoEffect::NotAllowed(_), .. }), "{refused:?}");
        assert!(!refused.to_string().contains("c2VjcmV0") && scene.seen.tokens.lock().is_empty(), "{refused}");
    }
}

#[tokio::test]
async fn a_client_that_describes_itself_is_known_by_that_where_it_is_taken_and_registers_elsewhere() {
    const AT: &str = "https://horos.example.org/client.json";
    for (odd, id, registered) in [(Odd::Documents, AT, 0), (Odd::Not, "us", 1)] {
        let scene = scene(odd, 3600, |shown, _| if shown == "Bearer t-1" { Ok(()) } else { Err(401) }).await;
        let (client, _) = scene.described(AT);
        call(&client, "add", json!({})).await.unwrap();
        let authorized = scene.seen.authorized.lock().clone();
        assert_eq!((authorized.len(), &*authorized[0]["client_id"]), (1, id), "{odd:?}");
        assert_eq!(scene.seen.registered.load(SeqCst), registered, "{odd:?}");
        if odd == Odd::Documents {
            // It is public: the code is worth nothing without the verifier, and there is nothing else to show.
            let tokens = scene.seen.tokens.lock().clone();
            assert_eq!((&*tokens[0]["client_id"], tokens[0].contains_key("client_secret")), (AT, false));
            assert!(scene.seen.proofs.lock().iter().all(Option::is_none));
        }
    }
}
