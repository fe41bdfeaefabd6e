//! Server-side request forgery: every attempt is refused before anything is connected to.
//!
//! The proof is a canary: whatever address is connected to that is not a known public one's ends there, and it counts. For what could
//! reach this machine as it is, the same is done again with the operating system's own resolver and TCP.

mod table;

use std::{collections::HashSet, net::IpAddr};

use bytes::Bytes;
use horos_egress::{Egress, EgressError, Kind, Limits, Options, PlainHttp, RedirectError, Refusal, Roots, Target, TcpConnector, UrlError};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Empty;

use self::table::{ADDRESSES, ANSWERS, REDIRECTS, URLS};
use super::{
    server::{full, plain},
    world::{Canary, Internet, get, limits, read},
};

/// What must be said of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Url(UrlError),
    Name,
    Port,
    Is(Kind),
    Unresolved,
    TooMany,
}

fn said(error: &EgressError) -> Option<Want> {
    Some(match error {
        EgressError::Url(why) => Want::Url(*why),
        EgressError::Refused { why: Refusal::Name, .. } => Want::Name,
        EgressError::Refused { why: Refusal::Port(_), .. } => Want::Port,
        EgressError::Refused { why: Refusal::Address { why, .. }, .. } => Want::Is(why.kind),
        EgressError::Unresolved { .. } => Want::Unresolved,
        EgressError::Redirect { source, .. } => match &**source {
            RedirectError::Hop(error) => return said(error),
            RedirectError::TooMany { .. } => Want::TooMany,
            _ => return None,
        },
        _ => return None,
    })
}

/// How an attempt came out.
struct Attempt {
    name: String,
    want: Want,
    said: Option<Want>,
    outcome: Result<(), EgressError>,
}

impl Attempt {
    fn new<T>(name: &str, want: Want, outcome: Result<T, EgressError>) -> Self {
        let outcome = outcome.map(|_| ());
        Self { name: name.to_owned(), want, said: outcome.as_ref().err().and_then(said), outcome }
    }
}

/// Fails with the names of all attempts that came out otherwise.
fn judge(attempts: &[Attempt]) {
    let wrong = attempts.iter().filter(|it| it.said != Some(it.want));
    let wrong: Vec<_> = wrong.map(|it| format!("{}: wanted {:?}, was {:?}", it.name, it.want, it.outcome)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), attempts.len(), wrong.join("\n"));
}

fn url_of(address: &str) -> String {
    match address.parse().unwrap() {
        IpAddr::V4(address) => format!("http://{address}/"),
        IpAddr::V6(address) => format!("http://[{address}]/"),
    }
}

#[test]
fn the_corpus_has_two_hundred_attempts_each_with_a_name() {
    let names: Vec<&str> = URLS
        .iter()
        .map(|it| it.0)
        .chain(ADDRESSES.iter().map(|it| it.0))
        .chain(ANSWERS.iter().map(|it| it.0))
        .chain(REDIRECTS.iter().map(|it| it.0))
        .collect();
    assert!(names.len() >= 200, "{}", names.len());
    let mut seen = HashSet::new();
    let twice: Vec<_> = names.iter().filter(|name| !seen.insert(**name)).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test]
async fn no_url_leads_inside() {
    let internet = Internet::new().await;
    internet.name("good.example", &[&["93.184.216.34"]]);
    let egress = internet.egress();
    let mut outcomes = Vec::new();
    for (name, url, want) in URLS {
        let outcome = get(&egress, url, &limits()).await;
        outcomes.push(Attempt::new(name, *want, outcome));
        // And as a caller does it who never heard of `Target`.
        if let Ok(uri) = url.parse::<Uri>() {
            let outcome = egress.send(Request::get(uri).body(Empty::<Bytes>::new()).unwrap(), &limits()).await;
            let error = outcome.expect_err(name);
            assert!(said(&error).is_some() && !error.may_have_been_sent(), "{name}: {error}");
        }
    }
    judge(&outcomes);
    assert_eq!(*internet.connected.lock(), []);
    assert_eq!(internet.canary.seen(), 0);
}

#[tokio::test]
async fn no_address_inside_is_reached_be_it_written_or_resolved() {
    let internet = Internet::new().await;
    let egress = internet.egress();
    let mut outcomes = Vec::new();
    for (index, (name, address, kind)) in ADDRESSES.iter().enumerate() {
        let host = format!("host-{index}.example");
        internet.name(&host, &[&[address]]);
        for url in [format!("http://{host}/"), format!("https://{host}/"), url_of(address)] {
            let outcome = get(&egress, &url, &limits()).await;
            outcomes.push(Attempt::new(&format!("{name} by {url}"), Want::Is(*kind), outcome));
        }
    }
    judge(&outcomes);
    assert_eq!(*internet.connected.lock(), []);
    assert_eq!(internet.canary.seen(), 0);
}

/// A site that closes each connection, so that every request looks its name up again.
#[tokio::test]
async fn no_answer_of_dns_leads_inside_at_whichever_look_up() {
    let internet = Internet::new().await;
    let site = plain(async |_| full(Response::builder().header("connection", "close").body("good").unwrap())).await;
    internet.server("93.184.216.34", site.address);
    let egress = internet.egress();
    let mut outcomes = Vec::new();
    for (index, (name, answers, want)) in ANSWERS.iter().enumerate() {
        let url = format!("http://host-{index}.example/");
        internet.name(&format!("host-{index}.example"), answers);
        for _ in 1..answers.len() {
            assert_eq!(read(&egress, &url, &limits()).await.unwrap(), "good", "{name}");
        }
        let outcome = get(&egress, &url, &limits()).await;
        outcomes.push(Attempt::new(name, *want, outcome));
    }
    judge(&outcomes);
    assert!(internet.connected.lock().iter().all(|address| address.ip() == IpAddr::from([93, 184, 216, 34])));
    assert_eq!(internet.canary.seen(), 0);
}

#[tokio::test]
async fn no_redirect_leads_inside() {
    let internet = Internet::new().await;
    let site = plain(async |request: Request<_>| {
        let uri: &Uri = request.uri();
        let query = uri.query().unwrap_or("");
        let (status, location) = match uri.path() {
            "/then" => (302, format!("http://{query}/")),
            "/count" => match query.parse::<u32>().unwrap() {
                1 => (302, "http://127.0.0.1/".to_owned()),
                left => (302, format!("/count?{}", left - 1)),
            },
            path => {
                let index: usize = path.trim_start_matches('/').parse().unwrap();
                (REDIRECTS[index].1, REDIRECTS[index].2.to_owned())
            }
        };
        full(Response::builder().status(StatusCode::from_u16(status).unwrap()).header("location", location).body("").unwrap())
    })
    .await;
    internet.site("good.example", "93.184.216.34", site.address);
    internet.site("other.example", "93.184.216.35", site.address);
    internet.name("private.example", &[&["10.0.0.1"]]);
    internet.name("mixed.example", &[&["93.184.216.34", "10.0.0.1"]]);
    internet.name("trusted.example", &[&["10.0.0.1"]]);
    internet.name("stock.internal", &[&["10.0.0.1"]]);
    let trusted = ["10.9.9.9:9999", "10.9.9.8:80", "trusted.example:80", "stock.internal:9999"];
    let options = Options { trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(), ..internet.options() };
    let egress = Egress::new(options).unwrap();
    let mut outcomes = Vec::new();
    for (index, (name, _, _, want)) in REDIRECTS.iter().enumerate() {
        let limits = Limits { redirects: 10, ..limits() };
        let outcome = get(&egress, &format!("http://good.example/{index}"), &limits).await;
        outcomes.push(Attempt::new(name, *want, outcome));
    }
    judge(&outcomes);
    let public = |address: IpAddr| ["93.184.216.34", "93.184.216.35"].iter().any(|text| address.to_string() == *text);
    assert!(internet.connected.lock().iter().all(|address| public(address.ip())));
    assert_eq!(internet.canary.seen(), 0);
}

#[tokio::test]
async fn without_asking_for_them_a_redirect_is_the_response() {
    let internet = Internet::new().await;
    let site = plain(async |_| full(Response::builder().status(302).header("location", "http://127.0.0.1/").body("there").unwrap())).await;
    internet.site("good.example", "93.184.216.34", site.address);
    let response = get(&internet.egress(), "http://good.example/", &limits()).await.unwrap();
    assert_eq!((response.status(), &response.headers()["location"]), (StatusCode::FOUND, "http://127.0.0.1/".parse().as_ref().unwrap()));
    assert_eq!(response.into_body().bytes().await.unwrap(), "there");
    assert_eq!(internet.canary.seen(), 0);
}

/// The canary works: what is public and unknown ends there.
#[tokio::test]
async fn the_canary_sees_what_is_let_through() {
    let internet = Internet::new().await;
    internet.name("good.example", &[&["93.184.216.34"]]);
    let error = get(&internet.egress(), "http://good.example/", &limits()).await.unwrap_err();
    assert!(matches!(error, EgressError::Lost { .. } | EgressError::NotTaken { .. }), "{error:?}");
    assert_eq!(internet.connected.lock().first().copied(), Some("93.184.216.34:80".parse().unwrap()));
    super::world::until("the canary", || (internet.canary.seen() > 0, internet.canary.seen())).await;
}

/// As it is in production: `getaddrinfo`, TCP, and a listener on this machine, on a port that is permitted.
#[tokio::test]
async fn this_machine_is_not_reached_by_any_of_its_names() {
    let mut canaries = vec![Canary::at("127.0.0.1:0").await.unwrap()];
    let port = canaries[0].address.port();
    // Where there is IPv6.
    canaries.extend(Canary::at(&format!("[::1]:{port}")).await.ok());
    let options = Options {
        plain_http: PlainHttp::Anywhere,
        ports: vec![port..=port],
        roots: Roots::Files,
        connector: std::sync::Arc::new(TcpConnector),
        ..Options::default()
    };
    let egress = Egress::new(options).unwrap();
    let mut tried = 0;
    for (name, url, _) in URLS.iter().filter(|(_, url, _)| url.starts_with("http")) {
        let Ok(target) = url.parse::<Target>() else { continue };
        let host = &target.origin().host;
        // Whether somebody else answers for those names is not our affair.
        if host.to_string().contains("example") {
            continue;
        }
        let error = get(&egress, &format!("http://{host}:{port}/"), &limits()).await.expect_err(name);
        assert!(!error.may_have_been_sent(), "{name}: {error}");
        tried += 1;
    }
    assert!(tried > 50, "{tried}");
    assert!(canaries.iter().all(|canary| canary.seen() == 0));
    // It can be reached: by somebody whom the owner trusts.
    let trusted = vec![format!("127.0.0.1:{port}").parse().unwrap()];
    let egress = Egress::new(Options { trusted, roots: Roots::Files, ..Options::default() }).unwrap();
    let _ = get(&egress, &format!("http://127.0.0.1:{port}/"), &limits()).await;
    super::world::until("the canary", || (canaries[0].seen() > 0, canaries[0].seen())).await;
}
