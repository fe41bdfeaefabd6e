//! One port for every protocol: each connection reaches what it asked for, whatever certificate it shows, and nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use horos_link::identity::{Authority, CERTIFICATE, Validity};
use horos_nodes::Operator;
use horos_nodes::cli::{Remote as _, Via};
use horos_wire::NodeId;
use horos_wire::policy::Policy;
use jiff::{SignedDuration, Timestamp};
use quinn::ConnectionError;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{metrics, served};
use crate::harness::http::{Ask, Session, Speaks, metric};
use crate::harness::node::text;
use crate::harness::site::{HANDSHAKE, dialer};
use crate::harness::{Cluster, Node, Site, poll_state, scale, seed};

/// How a connection comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// TCP, ALPN `http/1.1`.
    Http1,
    /// TCP, no ALPN: HTTP/1.1, as clients older than ALPN speak (RFC 7301 §3.1).
    Bare,
    /// TCP, ALPN `h2`.
    Http2,
    /// TCP, both, as browsers come.
    Browser,
    /// UDP, ALPN `h3`.
    Http3,
    /// UDP, ALPN `horos/1`, an operator.
    Horos,
    /// UDP, ALPN `horos/1`, nobody.
    HorosKeyless,
    /// TCP, an ALPN nobody serves.
    TcpUnknown,
    /// TCP, ALPN `h3` or `horos/1`, which are served on UDP alone.
    TcpAstray,
    /// UDP, an ALPN nobody serves.
    QuicUnknown,
    /// UDP, ALPN `h2` or `http/1.1`, which are served on TCP alone.
    QuicAstray,
    /// UDP without ALPN, which QUIC does not have (RFC 9001 §8.1).
    QuicBare,
    /// TCP, HTTP/1.1 without TLS.
    Plain,
    /// TCP, opened and closed.
    Silent,
}

impl Comes {
    const ALL: [Self; 14] = [
        Self::Http1,
        Self::Bare,
        Self::Http2,
        Self::Browser,
        Self::Http3,
        Self::Horos,
        Self::HorosKeyless,
        Self::TcpUnknown,
        Self::TcpAstray,
        Self::QuicUnknown,
        Self::QuicAstray,
        Self::QuicBare,
        Self::Plain,
        Self::Silent,
    ];
}

/// Everything that many connections share.
struct World {
    site: Site,
    via: Via,
    key: String,
    tls: Vec<(&'static str, Arc<ClientConfig>)>,
    /// Hosts that come over QUIC: what fails holds its address's place for a while.
    endpoints: Vec<quinn::Endpoint>,
}

impl World {
    fn new(node: &Node, key: &str, hosts: u64) -> Self {
        let site = node.site();
        let offers = ["", "http/1.1", "h2", "h2 http/1.1", "h3", "horos/1", "spdy/3", "mcp-quic-v9"];
        let tls = offers.map(|offer| {
            let alpn: Vec<&str> = offer.split(' ').filter(|it| !it.is_empty()).collect();
            (offer, Arc::new(site.tls(&alpn, None)))
        });
        let via = Via { endpoint: site.address.into(), identity: node.operator.clone() };
        let endpoints = (0..hosts).map(|host| dialer([127, 0, 0, 50 + host as u8])).collect();
        Self { endpoints, site, via, key: key.to_owned(), tls: tls.into() }
    }

    fn tls(&self, offer: &str) -> &Arc<ClientConfig> {
        &self.tls.iter().find(|(name, _)| *name == offer).expect("one of those made").1
    }

    /// Asks as connection `number`, and is answered as such.
    async fn echoes(&self, mut session: Session, number: u64, version: &str) -> Result<()> {
        let answer = session.ask(&Ask::get(format!("/drill/echo?n={number}")).key(&self.key)).await?;
        ensure!(answer.status == 200, "{answer:?}");
        let seen = answer.json();
        ensure!(seen["version"] == version && seen["query"] == format!("n={number}"), "meant {version} and {number}: {seen}");
        Ok(())
    }

    async fn tcp_refuses(&self, offer: &str) -> Result<()> {
        match self.site.stream(self.tls(offer)).await {
            Ok(_) => bail!("{offer} was served over TCP"),
            // The alert, unless the reset that follows it was quicker.
            Err(error) if is_alert(&error, AlertDescription::NoApplicationProtocol) || is_reset(&error) => Ok(()),
            Err(error) => Err(error).context("another refusal than that of the protocol"),
        }
    }

    fn endpoint(&self, number: u64) -> &quinn::Endpoint {
        &self.endpoints[number as usize % self.endpoints.len()]
    }

    async fn quic_refuses(&self, number: u64, offer: &str) -> Result<()> {
        match self.site.quic(self.endpoint(number), self.tls(offer)).await {
            Ok(_) => bail!("{offer:?} was served over QUIC"),
            Err(error) => match cause(&error) {
                // 120 is no_application_protocol; QUIC carries alerts as 0x100 and up (RFC 9001 §4.8).
                Some(ConnectionError::ConnectionClosed(close)) if u64::from(close.error_code) == 0x178 => Ok(()),
                // Without any offer our own end may be the first to say so.
                Some(ConnectionError::TransportError(error)) if u64::from(error.code) == 0x178 => Ok(()),
                _ => Err(error).context("another refusal than that of the protocol"),
            },
        }
    }

    async fn comes(&self, comes: Comes, number: u64) -> Result<()> {
        let site = &self.site;
        let astray = number.is_multiple_of(2);
        match comes {
            Comes::Http1 => self.echoes(Session::open_with(site, Speaks::Http1, self.tls("http/1.1")).await?, number, "HTTP/1.1").await,
            Comes::Bare => self.echoes(Session::open_with(site, Speaks::Http1, self.tls("")).await?, number, "HTTP/1.1").await,
            Comes::Http2 => self.echoes(Session::open_with(site, Speaks::Http2, self.tls("h2")).await?, number, "HTTP/2.0").await,
            Comes::Browser => {
                let stream = site.stream(self.tls("h2 http/1.1")).await?;
                let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                ensure!(agreed.as_deref() == Some(b"h2"), "agreed on {agreed:?}");
                self.echoes(Session::http2(site, stream).await?, number, "HTTP/2.0").await
            }
            Comes::Http3 => {
                let connection = site.quic(self.endpoint(number), self.tls("h3")).await?;
                self.echoes(Session::http3(site, connection, self.endpoint(number).clone()).await?, number, "HTTP/3.0").await
            }
            Comes::Horos => {
                let until = Instant::now() + HANDSHAKE;
                let mut operator = Operator::connect(&self.via, Policy::builtin(), until).await?;
                let status = operator.status().await?;
                ensure!(status.node.node.name.as_str() == "bo-1", "{status:?}");
                operator.close().await;
                Ok(())
            }
            Comes::HorosKeyless => keyless_is_closed(site, self.endpoint(number), self.tls("horos/1")).await,
            Comes::TcpUnknown => self.tcp_refuses("spdy/3").await,
            Comes::TcpAstray => self.tcp_refuses(if astray { "h3" } else { "horos/1" }).await,
            Comes::QuicUnknown => self.quic_refuses(number, if astray { "spdy/3" } else { "mcp-quic-v9" }).await,
            Comes::QuicAstray => self.quic_refuses(number, if astray { "h2" } else { "http/1.1" }).await,
            Comes::QuicBare => self.quic_refuses(number, "").await,
            Comes::Plain => {
                let mut stream = site.tcp(None).await?;
                stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await?;
                let mut said = Vec::new();
                // A TLS alert, or nothing; never HTTP.
                let _ = timeout(HANDSHAKE, stream.read_to_end(&mut said)).await.context("it is not ended")?;
                ensure!(!said.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&said));
                Ok(())
            }
            Comes::Silent => {
                site.tcp(None).await?;
                Ok(())
            }
        }
    }
}

fn cause(error: &std::io::Error) -> Option<&ConnectionError> {
    error.get_ref()?.downcast_ref()
}

fn is_alert(error: &std::io::Error, alert: AlertDescription) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::AlertReceived(seen)) if *seen == alert)
}

fn is_reset(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::UnexpectedEof)
}

/// `horos/1` without a certificate that counts: closed before a byte of it is read.
async fn keyless_is_closed(site: &Site, endpoint: &quinn::Endpoint, tls: &ClientConfig) -> Result<()> {
    let ended = match site.quic(endpoint, tls).await {
        Err(error) => cause(&error).cloned().context("no word of why")?,
        // TLS ends before it is looked at who came: the connection is closed right after.
        Ok(connection) => timeout(HANDSHAKE, connection.closed()).await.context("it is left open")?,
    };
    match ended {
        ConnectionError::ApplicationClosed(_) | ConnectionError::ConnectionClosed(_) => Ok(()),
        other => bail!("not closed but {other}"),
    }
}

/// Numbers that one seed decides (SplitMix64, Steele et al. 2014): the order of a test, not a secret.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_mixed_connections_none_is_misrouted() {
    // More at once than two cores can use, fewer than the handshakes from one address that need no proof of it.
    const AT_ONCE: u64 = 24;
    let (_cluster, mut bo) = served(|bo| {
        bo.set("HTTP_LIMITS__PER_ADDRESS", "0");
        bo.set("HTTP_LIMITS__PER_IDENTITY", "0");
    })
    .await;
    let keys = bo.key(&["drill", "metrics"]).await;
    let world = Arc::new(World::new(&bo, &keys, AT_ONCE));
    let before = bo.process().rss();
    let (seed, count) = (seed(), scale(1_000, 100_000));
    let began = Instant::now();
    let tasks = (0..AT_ONCE).map(|task| {
        let world = world.clone();
        tokio::spawn(async move {
            let (mut draw, mut wrong) = (Draw(seed ^ task), Vec::new());
            let mut sent = vec![0_u64; Comes::ALL.len()];
            for number in (task..count).step_by(AT_ONCE as usize) {
                let kind = (draw.next() % Comes::ALL.len() as u64) as usize;
                sent[kind] += 1;
                if let Err(error) = world.comes(Comes::ALL[kind], number).await {
                    wrong.push(format!("{number} as {:?}: {error:#}", Comes::ALL[kind]));
                }
            }
            (sent, wrong)
        })
    });
    let (mut sent, mut wrong) = (vec![0; Comes::ALL.len()], Vec::new());
    for task in tasks.collect::<Vec<_>>() {
        let (more, errors) = task.await.unwrap();
        sent.iter_mut().zip(more).for_each(|(sum, count)| *sum += count);
        wrong.extend(errors);
    }
    eprintln!("{count} connections in {:?}: {:?}", began.elapsed(), Comes::ALL.iter().zip(&sent).collect::<Vec<_>>());
    assert!(wrong.is_empty(), "{} of {count} misrouted, such as {:#?}", wrong.len(), &wrong[..wrong.len().min(10)]);
    assert!(bo.process().ended().is_none());
    let of = |kind: Comes| sent[Comes::ALL.iter().position(|it| *it == kind).unwrap()] as f64;
    // Each refusal is counted, by its reason.
    let page = metrics(&bo, &keys).await;
    for (name, label, least) in [
        ("horos_refused_total", "reason=\"unknown_protocol\"", of(Comes::TcpUnknown) + of(Comes::TcpAstray)),
        ("horos_refused_total", "reason=\"handshake_failed\"", of(Comes::Plain)),
        ("horos_quic_connections_total", "outcome=\"unknown_protocol\"", of(Comes::QuicUnknown) + of(Comes::QuicAstray)),
        ("horos_peers_refused_total", "kind=\"no_certificate\"", of(Comes::HorosKeyless)),
    ] {
        let counted = metric(&page, name, &[label]);
        assert!(counted >= least, "{name} {label}: {counted} of {least}");
    }
    // Whoever has gone leaves nothing behind.
    let grown = bo.process().rss().saturating_sub(before);
    eprintln!("{} KiB more than before", grown / 1024);
    assert!(grown < 64 << 20, "{} KiB more after {count} connections", grown / 1024);
}

/// Certificates that prove nobody here, beside one that does: identity directories.
struct Shown {
    own: PathBuf,
    foreign: PathBuf,
    expired: PathBuf,
    _stranger: Cluster,
}

async fn certificates(cluster: &Cluster) -> Shown {
    let stranger = Cluster::of(crate::harness::outside::drill().await);
    stranger.first("bo-1", [127, 0, 0, 1]).await;
    let (expired, id) = (cluster.path().join("expired"), "spiffe://shop/operator/edgar");
    let args = ["identity", "request", "--as", "shop/operator/edgar", "--dir", text(&expired)];
    let request = cluster.run(&args).await.expect_code(0).stdout;
    let (now, hours) = (Timestamp::now(), SignedDuration::from_hours);
    let validity = Validity { not_before: now - hours(48), not_after: now - hours(24) };
    let (certificate, _) = Authority::load(&cluster.authority()).unwrap().sign(&request, &NodeId::from_uri(id).unwrap(), validity).unwrap();
    std::fs::write(expired.join(CERTIFICATE), certificate).unwrap();
    Shown { own: cluster.operator(), foreign: stranger.operator(), expired, _stranger: stranger }
}

#[tokio::test]
async fn a_certificate_opens_the_nodes_protocol_alone_and_a_bad_one_opens_nothing() {
    let (cluster, bo) = served(|_| ()).await;
    let shown = certificates(&cluster).await;
    let (site, key) = (bo.site(), bo.key(&["drill"]).await);
    let endpoint = dialer(site.address.ip());
    for (what, identity) in
        [("none", None), ("foreign", Some(&shown.foreign)), ("expired", Some(&shown.expired)), ("own", Some(&shown.own))]
    {
        let identity = identity.map(PathBuf::as_path);
        // HTTP over TCP never asks for one; over QUIC one is allowed and says nothing. What opens a page is a key.
        for speaks in [Speaks::Http1, Speaks::Http2] {
            let tls = Arc::new(site.tls(&[speaks.alpn()], identity));
            let mut session = Session::open_with(&site, speaks, &tls).await.unwrap();
            assert_eq!(session.ask(&Ask::get("/drill/echo")).await.unwrap().status, 401, "{what} {speaks:?}");
            assert_eq!(session.ask(&Ask::get("/drill/echo").key(&key)).await.unwrap().status, 200, "{what} {speaks:?}");
        }
        let tls = site.tls(&["h3"], identity);
        match (site.quic(&endpoint, &tls).await, what) {
            (Ok(connection), "none" | "own") => {
                let mut session = Session::http3(&site, connection, endpoint.clone()).await.unwrap();
                assert_eq!(session.ask(&Ask::get("/drill/echo")).await.unwrap().status, 401, "{what} h3");
                assert_eq!(session.ask(&Ask::get("/drill/echo").key(&key)).await.unwrap().status, 200, "{what} h3");
            }
            // A certificate that does not hold ends the handshake, whatever it was to be for. It is checked after the
            // client's end of it (RFC 8446 §4.4.2.4), so that the client may see the connection open and close.
            (Ok(connection), _) => {
                let ended = timeout(HANDSHAKE, connection.closed()).await.unwrap();
                assert!(matches!(ended, ConnectionError::ConnectionClosed(_)), "{what} h3: {ended}");
            }
            (Err(error), "foreign" | "expired") => {
                assert!(matches!(cause(&error), Some(ConnectionError::ConnectionClosed(_))), "{what} h3: {error}");
            }
            (Err(error), _) => panic!("{what} h3: {error}"),
        }
        let tls = site.tls(&["horos/1"], identity);
        if what == "own" {
            bo.ask(&["call", "faulty@bo", r#"{"echo":{"n":1}}"#]).await.expect_code(0);
        } else {
            keyless_is_closed(&site, &endpoint, &tls).await.unwrap_or_else(|error| panic!("{what} horos/1: {error:#}"));
        }
        // Nobody's protocol stays nobody's.
        for offer in ["spdy/3", "mcp-quic-v9"] {
            assert!(site.stream(&Arc::new(site.tls(&[offer], identity))).await.is_err(), "{what} {offer} over TCP");
            assert!(site.quic(&endpoint, &site.tls(&[offer], identity)).await.is_err(), "{what} {offer} over QUIC");
        }
    }
}

#[tokio::test]
async fn with_two_addresses_administration_is_on_the_clusters_alone() {
    let public = crate::harness::free_address([127, 0, 0, 9]);
    let (_cluster, bo) = served(|bo| bo.set("LISTEN__PUBLIC", public.to_string())).await;
    let key = bo.key(&["drill", "metrics"]).await;
    let cluster = bo.site();
    let site = Site { address: public, ..cluster.clone() };
    for speaks in Speaks::ALL {
        let mut outside = Session::open(&site, speaks).await.unwrap();
        let mut inside = Session::open(&cluster, speaks).await.unwrap();
        assert_eq!(outside.ask(&Ask::get("/drill/echo").key(&key)).await.unwrap().status, 200, "{speaks:?}");
        assert_eq!(outside.ask(&Ask::get("/metrics").key(&key)).await.unwrap().status, 404, "{speaks:?}");
        assert_eq!(inside.ask(&Ask::get("/metrics").key(&key)).await.unwrap().status, 200, "{speaks:?}");
    }
    // The nodes' protocol is not spoken to the public, whoever comes.
    let endpoint = dialer(public.ip());
    let tls = site.tls(&["horos/1"], Some(&bo.operator));
    let error = site.quic(&endpoint, &tls).await.expect_err("horos/1 on the public's address");
    assert!(matches!(cause(&error), Some(ConnectionError::ConnectionClosed(close)) if u64::from(close.error_code) == 0x178), "{error}");
    bo.ask(&["call", "faulty@bo", r#"{"echo":{"n":1}}"#]).await.expect_code(0);
}

#[tokio::test]
async fn port_zero_is_one_number_for_tcp_and_udp_and_is_reported() {
    let (_cluster, bo) = served(|_| ()).await;
    let address = bo.address();
    assert_ne!(address.port(), 0);
    for speaks in Speaks::ALL {
        let mut session = Session::open(&bo.site(), speaks).await.unwrap();
        assert_eq!(session.ask(&Ask::get("/livez")).await.unwrap().status, 200, "{speaks:?}");
    }
    poll_state("ready says so", Duration::from_secs(5), async || {
        let mut session = Session::open(&bo.site(), Speaks::Http1).await.unwrap();
        let answer = session.ask(&Ask::get("/readyz?verbose")).await.unwrap();
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    })
    .await;
}
