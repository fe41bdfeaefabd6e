//! Nodes that are known before any is heard from.

use std::{fmt, net::SocketAddr, str::FromStr};

use horos_wire::{NodeName, Role};
use serde_json::Value;

use super::{
    layers::{self, Layers},
    problem::{Problem, Problems},
    reader::Reader,
};

/// Most seeds; the rest of a cluster is learnt from them.
pub const MAX_SEEDS: usize = 256;

/// A node that is known before any is heard from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Its name, where it is to be that and no other.
    pub name: Option<NodeName>,
    /// Its role, where it is to be that and no other.
    pub role: Option<Role>,
    /// Where its `listen.cluster` is reached from here.
    pub address: Endpoint,
}

/// `host:port`, the host an IP address or a DNS name; names are looked up anew at every dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// An IP address (without brackets) or a DNS name.
    pub host: Box<str>,
    /// The UDP port, never 0.
    pub port: u16,
}

/// Why a text is no [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected host:port such as \"bo-1.example.org:7400\", \"192.0.2.7:7400\" or \"[2001:db8::7]:7400\"")]
pub struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = if let Ok(address) = text.parse::<SocketAddr>() {
            (address.ip().to_string(), address.port())
        } else {
            let (host, port) = text.rsplit_once(':').ok_or(EndpointError)?;
            // RFC 1035 §2.3.4: 255 octets. A colon left over is an IPv6 address without its brackets.
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if host.is_empty() || host.len() > 255 || !host.bytes().all(plain) {
                return Err(EndpointError);
            }
            (host.to_owned(), port.parse().map_err(|_| EndpointError)?)
        };
        if port == 0 { Err(EndpointError) } else { Ok(Self { host: host.into(), port }) }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string().into(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// Reads the list; what is wrong with an entry costs only that entry.
pub(super) fn read_seeds(layers: &Layers, value: Option<&Value>, problems: &mut Problems) -> Vec<Seed> {
    let path = "peers.seeds";
    let mut wrong = |what: String| problems.push(Problem { origin: layers.origin(path), path: path.into(), what: what.into(), fix: None });
    // From the environment or an option the list is text: `[{address: "bo-1:7400"}]`, or addresses between commas.
    let listed = match value {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::String(text)) => match layers::parse_text(text) {
            Some(Value::Array(items)) => items,
            _ => text
                .split(',')
                .map(|address| Value::Object([("address".to_owned(), address.trim().into())].into_iter().collect()))
                .collect(),
        },
        Some(Value::Array(items)) => items.clone(),
        Some(_) => {
            wrong("expected a list of `- address: host:port`".into());
            return Vec::new();
        }
    };
    if listed.len() > MAX_SEEDS {
        wrong(format!("{} seeds are too many: {MAX_SEEDS} at most, the rest is learnt from them", listed.len()));
        return Vec::new();
    }
    let mut seeds = Vec::new();
    for (i, item) in listed.iter().enumerate() {
        let before = problems.len();
        let mut reader = Reader::new(layers, Some(item), format!("{path}[{i}]"), problems);
        let (name, role) = (reader.field::<Option<NodeName>>("name").flatten(), reader.field::<Option<Role>>("role").flatten());
        let address = reader.field::<Endpoint>("address");
        reader.finish();
        match address {
            Some(address) => seeds.push(Seed { name, role, address }),
            None if problems.len() == before => {
                problems.push(Problem {
                    origin: layers.origin(&format!("{path}[{i}]")),
                    path: format!("{path}[{i}]").into(),
                    what: "has no address".into(),
                    fix: Some("add `address: host:port`".into()),
                });
            }
            None => {}
        }
    }
    seeds
}
