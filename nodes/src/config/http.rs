//! What a node serves over HTTP, and who owns the keys that open it.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use horos_edge::{Cors, Forwarded, Limits, Timeouts};
use horos_wire::NodeName;

use super::{
    ByteSize, ms,
    reader::{Leaf, choice, section},
    secs,
};

/// Where certificates by ACME come from unless said otherwise.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

choice! {
    /// Where the certificate of HTTPS comes from.
    pub enum HttpTls {
        /// The node's own, from the cluster's authority: for clients that have that authority's certificate.
        Cluster = "cluster",
        /// `http.certificate` and `http.key`, read again when they change.
        Files = "files",
        /// An ACME authority such as Let's Encrypt (RFC 8555); needs a program built with the feature `acme`.
        Acme = "acme",
        /// One that the node signs itself at each start. On loopback only, and said loudly.
        Development = "development",
        /// None over TCP: plain HTTP. On loopback only.
        Plain = "plain",
    }
}

choice! {
    /// Where a trusted proxy says whom it speaks for.
    pub enum HttpForwarded {
        /// In `X-Forwarded-For`, as most do.
        XForwardedFor = "x-forwarded-for",
        /// In `Forwarded` (RFC 7239).
        Forwarded = "forwarded",
    }
}

section! {
    /// HTTP on the node's one port: HTTP/1.1 and HTTP/2 over TCP, HTTP/3 over UDP.
    pub struct Http = "http" {
        /// Where the certificate comes from: cluster (the node's own), files, acme, development (signed by the node itself)
        /// or plain (no TLS over TCP); the last two on loopback only.
        tls = "tls": HttpTls = HttpTls::Cluster;
        /// With tls files: the certificate and those above it (PEM); a relative path starts at the data directory. Replaced
        /// files are taken up without a restart.
        certificate = "certificate": Option<PathBuf> = None;
        /// With tls files: its private key (PEM).
        key = "key": Option<PathBuf> = None;
        /// Proxies in front of this node, as addresses or networks ("10.0.0.0/8"): whom they say they speak for is believed.
        trusted_proxies = "trusted-proxies": Vec<Network> = Vec::new();
        /// The one header in which they say it, x-forwarded-for or forwarded (RFC 7239); the other may be the client's own.
        forwarded = "forwarded": HttpForwarded = HttpForwarded::XForwardedFor;
        /// Web pages of other origins that may read answers, such as `https://shop.example.org`; `*` is every origin.
        cors_origins = "cors-origins": Vec<WebOrigin> = Vec::new();
        /// Whether their requests may bring cookies; never with "*".
        cors_credentials = "cors-credentials": bool = false;
        /// How long a browser may remember what was allowed.
        cors_max_age = "cors-max-age": Duration = ms(0), within ms(0)..=secs(86_400);
        /// The port at which clients are told that HTTP/3 is served, where a firewall changes it; 0 tells none.
        /// Default: the one that is listened on.
        alt_svc = "alt-svc": Option<u16> = None;
        /// Browsers are told to come back by HTTPS only for so long (RFC 6797); 0s says nothing.
        hsts = "hsts": Duration = secs(365 * 86_400), within ms(0)..=secs(2 * 365 * 86_400);
        /// With tls acme: the authority's directory.
        acme_directory = "acme-directory": String = LETS_ENCRYPT.to_owned();
        /// With tls acme: whom the authority writes to, such as "mailto:admin@example.org".
        acme_contact = "acme-contact": Option<String> = None;
        /// With tls acme: the names to be certified. Each must lead to this node's TCP port by way of port 443.
        acme_domains = "acme-domains": Vec<String> = Vec::new();
    }
}

section! {
    /// How much HTTP takes on; whoever comes beyond is refused, and counted at /metrics.
    pub struct HttpLimits = "http-limits" {
        /// Connections over TCP, and again over QUIC. At the limit those that have been idle longest make room.
        connections = "connections": u32 = 16_384, within 16..=1_000_000;
        /// Of them from one address (an IPv6 /64 counts as one); loopback and trusted proxies are exempt.
        connections_per_address = "connections-per-address": u32 = 256, within 1..=1_000_000;
        /// TLS handshakes in progress over TCP; an eighth of them from one address.
        handshakes = "handshakes": u32 = 512, within 1..=65_536;
        /// Requests in hand, from their head to the end of their answer, over all versions; probes and administration are exempt.
        in_flight = "in-flight": u32 = 16_384, within 1..=1_000_000;
        /// Of them from one address (an IPv6 /64 counts as one). Clients of trusted proxies count by their own addresses, and
        /// loopback is exempt.
        in_flight_per_address = "in-flight-per-address": u32 = 512, within 1..=1_000_000;
        /// Requests at once on one HTTP/2 or HTTP/3 connection.
        streams = "streams": u32 = 128, within 1..=4096;
        /// One request's head, header fields and all.
        head = "head": ByteSize = ByteSize::kib(32), within ByteSize::kib(1)..=ByteSize::mib(1);
        /// Header fields in it.
        fields = "fields": u32 = 100, within 8..=1000;
        /// One request's body, where the service has no limit of its own.
        body = "body": ByteSize = ByteSize::mib(8), within ByteSize(0)..=ByteSize(1 << 40);
        /// Requests a minute from one address; 0 for no limit. Clients of trusted proxies count by their own addresses, and
        /// loopback is exempt.
        per_address = "per-address": u32 = 60_000, within 0..=100_000_000;
        /// Requests a minute by one key or user that has no limit of its own; 0 for no limit.
        per_identity = "per-identity": u32 = 0, within 0..=100_000_000;
        /// Wrong keys and tokens a minute from one address, beyond which it has to wait before any is looked at.
        guesses_per_address = "guesses-per-address": u32 = 30, within 1..=1_000_000;
        /// Addresses, and again identities, that are counted at a time; those that owe least are forgotten first.
        counted = "counted": u32 = 65_536, within 256..=10_000_000;
    }
}

section! {
    /// How long HTTP waits.
    pub struct HttpTimeouts = "http-timeouts" {
        /// For a TLS handshake over TCP.
        handshake = "handshake": Duration = secs(5), within ms(100)..=secs(60);
        /// For the whole head of a request, from its first byte.
        head = "head": Duration = secs(10), within ms(100)..=secs(120);
        /// For the next part of a request's body.
        body = "body": Duration = secs(15), within ms(100)..=secs(600);
        /// For a service's answer; also the deadline of what it calls.
        answer = "answer": Duration = secs(30), within ms(100)..=secs(3600);
        /// For the client to take any part of an answer.
        stalled = "stalled": Duration = secs(30), within ms(100)..=secs(600);
        /// For the next request on a connection; over QUIC at most 30 s.
        idle = "idle": Duration = secs(60), within ms(100)..=secs(3600);
    }
}

section! {
    /// Who may come from outside: keys, trusted issuers of tokens.
    pub struct Control = "control" {
        /// The BO that owns control.db and makes and revokes keys; every other node keeps a replica and runs on it while
        /// the owner is away. The same on every node of a cluster.
        owner = "owner": NodeName = "bo-1".parse().expect("a literal name that keeps the rules");
    }
}

impl Http {
    /// The certificate's file and its key's, where both are named.
    pub fn files(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.certificate.as_ref().zip(self.key.as_ref())
    }
}

/// What the port is run with.
pub(crate) fn edge(http: &Http, limits: &HttpLimits, timeouts: &HttpTimeouts) -> horos_edge::Config {
    horos_edge::Config {
        limits: Limits {
            connections: limits.connections as usize,
            connections_per_address: limits.connections_per_address as usize,
            handshakes: limits.handshakes as usize,
            in_flight: limits.in_flight as usize,
            in_flight_per_address: limits.in_flight_per_address as usize,
            streams: limits.streams,
            head: limits.head.bytes(),
            fields: limits.fields as usize,
            body: limits.body.0,
            per_address: limits.per_address,
            per_identity: limits.per_identity,
            guesses_per_address: limits.guesses_per_address,
            counted: limits.counted as usize,
        },
        timeouts: Timeouts {
            handshake: timeouts.handshake,
            head: timeouts.head,
            body: timeouts.body,
            answer: timeouts.answer,
            stalled: timeouts.stalled,
            idle: timeouts.idle,
        },
        trusted_proxies: http.trusted_proxies.iter().map(|network| (network.address, network.prefix)).collect(),
        forwarded: match http.forwarded {
            HttpForwarded::XForwardedFor => Forwarded::XForwardedFor,
            HttpForwarded::Forwarded => Forwarded::Forwarded,
        },
        cors: Cors {
            origins: http.cors_origins.iter().map(|origin| origin.0.clone()).collect(),
            credentials: http.cors_credentials,
            max_age: http.cors_max_age,
        },
        alt_svc: http.alt_svc,
        hsts: http.hsts,
    }
}

/// What is wrong within these sections as a whole: path, problem, remedy (or nothing).
pub(super) fn check(config: &super::Config, wrong: &mut dyn FnMut(&str, String, &str)) {
    let http = &config.http;
    match (&http.certificate, &http.key) {
        (Some(_), None) => wrong("http.key", "http.certificate is given without http.key".into(), "give both, or neither"),
        (None, Some(_)) => wrong("http.certificate", "http.key is given without http.certificate".into(), "give both, or neither"),
        (None, None) if http.tls == HttpTls::Files => {
            wrong("http.tls", "files need http.certificate and http.key, and neither is given".into(), "");
        }
        (Some(certificate), Some(key)) if http.tls == HttpTls::Files => {
            for (path, file) in [("http.certificate", certificate), ("http.key", key)] {
                // Opened, not only looked at: a file that this user may not read is as good as none.
                if let Err(error) = std::fs::File::open(file) {
                    wrong(path, format!("{} cannot be read: {error}", file.display()), "");
                }
            }
        }
        (Some(_), Some(_)) => {
            let what = format!("files are given, but http.tls is {}", http.tls.show().as_str().unwrap_or_default());
            wrong("http.tls", what, "write tls: files, or leave them out");
        }
        (None, None) => {}
    }
    let loopback_only = matches!(http.tls, HttpTls::Plain | HttpTls::Development);
    for (path, address) in [("listen.cluster", Some(config.listen.cluster)), ("listen.public", config.listen.public)] {
        if let Some(address) = address.filter(|address| loopback_only && !address.ip().is_loopback()) {
            let tls = http.tls.show();
            let what = format!("http.tls {} is for loopback only, and {address} is not", tls.as_str().unwrap_or_default());
            wrong(path, what, "listen on 127.0.0.1, or use tls: cluster, files or acme");
        }
    }
    if http.tls == HttpTls::Acme {
        if !cfg!(feature = "acme") {
            wrong(
                "http.tls",
                "this program was built without the feature `acme`".into(),
                "build it with --features acme, or use tls: files",
            );
        }
        if http.acme_domains.is_empty() {
            wrong("http.acme-domains", "an ACME authority must be told which names to certify".into(), "");
        }
        if !http.acme_directory.starts_with("https://") {
            wrong("http.acme-directory", "an ACME directory is an https:// address (RFC 8555 §6.1)".into(), "");
        }
    }
    if http.cors_credentials && http.cors_origins.iter().any(|origin| &*origin.0 == "*") {
        let fix = "name the origins";
        wrong("http.cors-credentials", "every origin (\"*\") may not bring cookies (Fetch standard §3.2.5)".into(), fix);
    }
    let limits = &config.http_limits;
    if limits.connections_per_address > limits.connections {
        let what = format!("more from one address ({}) than there may be in all ({})", limits.connections_per_address, limits.connections);
        wrong("http-limits.connections-per-address", what, "");
    }
    if limits.in_flight_per_address > limits.in_flight {
        let what = format!("more from one address ({}) than there may be in all ({})", limits.in_flight_per_address, limits.in_flight);
        wrong("http-limits.in-flight-per-address", what, "");
    }
    if config.node.role == horos_wire::Role::Fo && config.control.owner == config.node.name {
        wrong("control.owner", format!("{} is this very node, and an fo owns no data", config.node.name), "name a bo");
    }
}

/// A network by its address and the length of its prefix; an address alone is itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its first address.
    pub address: IpAddr,
    /// How many bits of it count.
    pub prefix: u8,
}

/// Why a text is no [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a network such as \"192.0.2.7\", \"10.0.0.0/8\" or \"2001:db8::/32\"")]
pub struct NetworkError;

impl FromStr for Network {
    type Err = NetworkError;
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| NetworkError)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(most);
        if prefix > most { Err(NetworkError) } else { Ok(Self { address, prefix }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == most { write!(f, "{}", self.address) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}

/// A web page's origin as browsers send it (RFC 6454 §6.2), or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(pub(crate) Box<str>);

/// Why a text is no [`WebOrigin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an origin such as \"https://shop.example.org\" or \"http://localhost:5173\", without a path, or \"*\"")]
pub struct WebOriginError;

impl FromStr for WebOrigin {
    type Err = WebOriginError;
    fn from_str(text: &str) -> Result<Self, WebOriginError> {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        // Browsers compare letter by letter, and send no capitals.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':' | b'[' | b']');
        match host {
            _ if text == "*" => Ok(Self(text.into())),
            Some(host) if !host.is_empty() && host.len() <= 255 && host.bytes().all(plain) => Ok(Self(text.into())),
            _ => Err(WebOriginError),
        }
    }
}

impl fmt::Display for WebOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use horos_wire::Role;

    use crate::config::{Config, Sources};

    fn problems(text: &str) -> Vec<String> {
        let sources = Sources { data: "/nowhere".into(), ..Sources::default() };
        Config::from_text(&sources, text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_defaults_are_the_ports_own() {
        let config = Config::defaults(Role::Bo, Path::new("/data"));
        assert_eq!(config.edge(), horos_edge::Config::default());
    }

    #[test]
    fn half_a_certificate_is_a_problem_that_names_both_halves() {
        for (text, missing) in [("http: {tls: files, certificate: a.pem}\n", "http.key"), ("http: {key: a.pem}\n", "http.certificate")] {
            let told = problems(text);
            assert_eq!(told.len(), 1, "{told:#?}");
            assert!(
                told[0].contains("http.certificate") && told[0].contains("http.key") && told[0].contains("is given without"),
                "{told:#?}"
            );
            assert!(told[0].contains(&format!("{missing}: ")), "{told:#?}");
        }
        let told = problems("http: {tls: files}\n");
        assert!(told[0].contains("http.certificate and http.key") && told.len() == 1, "{told:#?}");
        let told = problems("http: {certificate: a.pem, key: b.pem}\n");
        assert!(told[0].contains("http.tls is cluster") && told.len() == 1, "{told:#?}");
    }

    #[test]
    fn files_that_cannot_be_read_are_told_before_a_port_is_bound() {
        let data = tempfile::tempdir().unwrap();
        let sources = Sources { data: data.path().to_owned(), ..Sources::default() };
        let text = "http: {tls: files, certificate: c.pem, key: k.pem}\n";
        assert_eq!(Config::from_text(&sources, text).unwrap_err().len(), 2);
        for file in ["c.pem", "k.pem"] {
            std::fs::write(data.path().join(file), "").unwrap();
        }
        let config = Config::from_text(&sources, text).unwrap();
        assert_eq!(config.http.files(), Some((&data.path().join("c.pem"), &data.path().join("k.pem"))));
    }

    #[test]
    fn what_is_not_encrypted_or_not_signed_stays_on_loopback() {
        for tls in ["plain", "development"] {
            let told = problems(&format!("listen: {{cluster: \"0.0.0.0:7400\", public: \"192.0.2.7:443\"}}\nhttp: {{tls: {tls}}}\n"));
            assert_eq!(told.len(), 2, "{told:#?}");
            assert!(told.iter().all(|it| it.contains("loopback only")), "{told:#?}");
            let sources = Sources::default();
            assert!(Config::from_text(&sources, &format!("listen: {{cluster: \"[::1]:0\"}}\nhttp: {{tls: {tls}}}\n")).is_ok());
        }
    }

    #[test]
    #[cfg(not(feature = "acme"))]
    fn acme_is_refused_where_it_was_not_built_in() {
        let told = problems("http: {tls: acme, acme-domains: [shop.example.org]}\n");
        assert!(told.len() == 1 && told[0].contains("the feature `acme`"), "{told:#?}");
    }

    #[test]
    fn lists_are_read_from_the_file_and_from_a_variable() {
        let sources =
            Sources { environment: vec![("HOROS__HTTP__TRUSTED_PROXIES".into(), "10.0.0.0/8, ::1".into())], ..Sources::default() };
        let config = Config::from_text(&sources, "http: {cors-origins: [\"https://shop.example.org\", \"http://[::1]:80\"]}\n").unwrap();
        assert_eq!(config.edge().trusted_proxies, [("10.0.0.0".parse().unwrap(), 8), ("::1".parse().unwrap(), 128)]);
        assert_eq!(config.edge().cors.origins.len(), 2);
        let told = problems("http: {trusted-proxies: [10.0.0.0/33], cors-origins: [shop.example.org, \"https://a/b\"]}\n");
        assert_eq!(told.len(), 2, "{told:#?}");
    }

    #[test]
    fn one_header_is_believed_of_a_proxy_and_which_is_said() {
        let config = Config::from_text(&Sources::default(), "http: {forwarded: forwarded}\n").unwrap();
        assert_eq!(config.edge().forwarded, horos_edge::Forwarded::Forwarded);
        let told = problems("http: {forwarded: both}\n");
        assert!(told.len() == 1 && told[0].contains("x-forwarded-for or forwarded"), "{told:#?}");
    }

    #[test]
    fn an_fo_cannot_own_the_keys_and_every_origin_brings_no_cookies() {
        let told = problems(
            "node: {role: fo, name: fo-1}\ncontrol: {owner: fo-1}\nhttp: {cors-origins: [\"*\"], cors-credentials: true}\n\
             http-limits: {connections: 16, connections-per-address: 17, in-flight: 16, in-flight-per-address: 17}\n",
        );
        assert_eq!(told.len(), 4, "{told:#?}");
    }
}
