//! Endpoints inside that the owner trusts, and TLS, which trusts whoever the owner names.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use horos_egress::{Egress, EgressError, Kind, Options, PlainHttp, Refusal, Roots};
use http::{Request, Response, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{
    server::{Answer, Authority, full, plain, serve},
    world::{Internet, get, limits, post, read},
};

/// What it was sent, and by which version.
async fn echo(request: Request<Incoming>) -> Answer {
    let version = format!("{:?} {} {} ", request.version(), request.method(), request.uri().path());
    let host = request.uri().authority().map(ToString::to_string);
    let host = host.unwrap_or_else(|| request.headers()["host"].to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    full(Response::new(Bytes::from([version.as_bytes(), host.as_bytes(), b" ", &body].concat())))
}

fn by(trusted: &str, authority: &Authority) -> (Egress, tempfile::NamedTempFile) {
    let file = authority.file();
    let options = Options {
        trusted: vec![trusted.parse().unwrap()],
        roots: Roots::Files,
        ca_files: vec![file.path().to_owned()],
        ..Options::default()
    };
    (Egress::new(options).unwrap(), file)
}

#[tokio::test]
async fn a_trusted_endpoint_is_reached_by_both_versions_under_an_authority_of_its_own() {
    let authority = Authority::new();
    for (alpn, version) in [(&["h2", "http/1.1"][..], Version::HTTP_2), (&["http/1.1"], Version::HTTP_11), (&[], Version::HTTP_11)] {
        let server = serve(Some(authority.acceptor("127.0.0.1", alpn)), echo).await;
        let (egress, _file) = by(&server.address.to_string(), &authority);
        for _ in 0..3 {
            let url = format!("https://{}/x?y", server.address);
            let response = post(&egress, &url, "body", &limits()).await.unwrap();
            assert_eq!(response.version(), version);
            let body = response.into_body().bytes().await.unwrap();
            assert_eq!(body, format!("{version:?} POST /x {} body", server.address));
        }
        assert_eq!(server.connections(), 1, "one connection carries one request after the other: {alpn:?}");
    }
}

#[tokio::test]
async fn a_trusted_endpoint_may_speak_without_tls_and_nobody_else_may() {
    let server = plain(echo).await;
    let egress = Egress::new(Options { trusted: vec![server.address.to_string().parse().unwrap()], ..Options::default() }).unwrap();
    let url = format!("http://{}/", server.address);
    assert!(read(&egress, &url, &limits()).await.is_ok());
    let error = get(&egress, "http://good.example/", &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused { why: Refusal::Plain, .. }), "{error}");
    // Trust is for that port.
    let other = plain(echo).await;
    let error = get(&egress, &format!("http://{}/", other.address), &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused { why: Refusal::Plain, .. }), "{error}");
    assert_eq!(other.connections(), 0);
    let never = Options { trusted: vec![server.address.to_string().parse().unwrap()], plain_http: PlainHttp::Never, ..Options::default() };
    let error = get(&Egress::new(never).unwrap(), &url, &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Refused { why: Refusal::Plain, .. }), "{error}");
}

#[tokio::test]
async fn a_trusted_name_may_be_inside_but_is_no_way_to_metadata() {
    let internet = Internet::new().await;
    let server = plain(echo).await;
    internet.site("stock.internal", "10.0.0.7", server.address);
    internet.name("rebound.internal", &[&["169.254.169.254"]]);
    let trusted = ["stock.internal:8080", "rebound.internal:8080"].map(|text| text.parse().unwrap()).to_vec();
    let egress = Egress::new(Options { trusted, ..internet.options() }).unwrap();
    assert_eq!(read(&egress, "http://stock.internal:8080/", &limits()).await.unwrap(), "HTTP/1.1 GET / stock.internal:8080 ");
    assert_eq!(internet.lookups.lock()[0], "stock.internal", "as the owner writes it, so that his search list and hosts file count");
    let error = get(&egress, "http://rebound.internal:8080/", &limits()).await.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Address { why, .. }) if why.kind == Kind::Metadata), "{error}");
    assert_eq!(internet.canary.seen(), 0);
}

#[tokio::test]
async fn a_strangers_name_is_looked_up_as_an_absolute_one() {
    let internet = Internet::new().await;
    let server = plain(echo).await;
    internet.site("good.example", "93.184.216.34", server.address);
    read(&internet.egress(), "http://GOOD.example/", &limits()).await.unwrap();
    assert_eq!(*internet.lookups.lock(), ["good.example."]);
}

/// A connection that trust has opened is not there for those whom a stranger sends.
#[tokio::test]
async fn an_open_connection_inside_is_no_way_round_the_check() {
    let internet = Internet::new().await;
    let inside = plain(echo).await;
    let site = plain(async |_| full(Response::builder().status(302).header("location", "http://trusted.example/").body("").unwrap())).await;
    internet.site("good.example", "93.184.216.34", site.address);
    internet.site("trusted.example", "10.0.0.7", inside.address);
    let egress = Egress::new(Options { trusted: vec!["trusted.example:80".parse().unwrap()], ..internet.options() }).unwrap();
    read(&egress, "http://trusted.example/", &limits()).await.unwrap();
    assert_eq!(egress.status().hosts[0].idle, 1);
    let following = horos_egress::Limits { redirects: 3, ..limits() };
    let error = get(&egress, "http://good.example/", &following).await.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Address { why, .. }) if why.kind == Kind::Private), "{error}");
    assert!(error.may_have_been_sent(), "the first hop was");
    assert_eq!(inside.requests(), 1);
}

#[tokio::test]
async fn a_host_without_the_right_certificate_gets_nothing() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for (acceptor, what) in [
        (stranger.acceptor("127.0.0.1", &["h2"]), "by another authority"),
        (authority.acceptor("127.0.0.2", &["h2"]), "for another address"),
        (authority.acceptor("localhost", &["h2"]), "for a name"),
    ] {
        let server = serve(Some(acceptor), echo).await;
        let (egress, _file) = by(&server.address.to_string(), &authority);
        let error = get(&egress, &format!("https://{}/", server.address), &limits()).await.unwrap_err();
        assert!(matches!(error, EgressError::Untrusted { .. }), "{what}: {error}");
        assert!(!error.may_have_been_sent());
        assert_eq!(server.requests.load(SeqCst), 0, "{what}");
    }
}

#[tokio::test]
async fn what_is_no_certificate_is_said_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = Options { roots: Roots::Files, ca_files: vec![file.path().to_owned()], ..Options::default() };
    let error = Egress::new(options).unwrap_err();
    assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
}

/// RFC 8305 §5: an address that does not answer keeps nobody waiting for long.
#[tokio::test]
async fn the_next_address_is_tried_beside_one_that_is_silent() {
    let internet = Internet::new().await;
    let server = plain(echo).await;
    internet.name("good.example", &[&["2606:4700::1", "2606:4700::2", "93.184.216.34"]]);
    internet.server("93.184.216.34", server.address);
    // Nobody listens there.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    internet.server("2606:4700::1", nobody);
    internet.silent("2606:4700::2");
    let body = post(&internet.egress(), "http://good.example/", "x", &limits()).await.unwrap().into_body().collect().await.unwrap();
    assert!(body.to_bytes().ends_with(b"good.example x"));
    let tried: Vec<_> = internet.connected.lock().iter().map(|address| address.ip().to_string()).collect();
    assert_eq!(tried, ["2606:4700::1", "2606:4700::2", "93.184.216.34"]);
}
