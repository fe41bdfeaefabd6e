//! Who may be reached: the owner's rules, applied to a URL before anything is looked up and to every address before it is connected to.
//!
//! Pure: no I/O.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr};

use super::{
    address::{self, Forbidden, Kind, Network},
    target::{Host, Origin, Scheme, named},
};

/// Where `http` without TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Nowhere.
    Never,
    /// At trusted endpoints only: what is said there stays in the owner's own network.
    #[default]
    Trusted,
    /// Everywhere: anybody on the way may read and change it.
    Anywhere,
}

/// An endpoint inside: the exception from the rule that only public addresses are reached.
///
/// Written `stock.internal:8080`, `127.0.0.1:9000`, `[fd00::7]:9000`, `10.1.0.0/16:8080` or `[fd00::]/8:8080`; a port is always
/// said, since a network's other ports are other services.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trusted {
    /// URLs with this name and port, wherever it leads within loopback, private, unique local and shared addresses, and the public
    /// ones. Never to link-local or metadata addresses, even when whoever answers for the name says so.
    Name {
        /// In ASCII, lower case and without a dot at its end.
        name: Box<str>,
        /// The port.
        port: u16,
    },
    /// These addresses on this port, by whatever name: also one that a stranger owns, so prefer names and single addresses. A
    /// metadata address must be named alone, not in a block.
    Network {
        /// The addresses.
        network: Network,
        /// The port.
        port: u16,
    },
}

/// Why a text is no [`Trusted`] endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a host and a port such as \"stock.internal:8080\", \"10.1.0.0/16:8080\" or \"[fd00::7]:8080\"")]
pub struct TrustedError;

impl FromStr for Trusted {
    type Err = TrustedError;

    fn from_str(text: &str) -> Result<Self, TrustedError> {
        let (host, port) = text.rsplit_once(':').ok_or(TrustedError)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = port.parse().ok().filter(|port| digits && *port != 0).ok_or(TrustedError)?;
        let network = match host.strip_prefix('[') {
            Some(rest) => {
                let (address, bits) = rest.split_once(']').ok_or(TrustedError)?;
                if !address.contains(':') {
                    return Err(TrustedError);
                }
                Some(format!("{address}{bits}"))
            }
            // An IPv6 address without brackets: where it ends and the port begins cannot be told.
            None if host.contains(':') => return Err(TrustedError),
            // A name never ends in a number (RFC 1123 §2.1): `127.1` is an address, misspelt.
            None => {
                let last = host.rsplit('.').next().unwrap_or(host);
                let number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit() || b == b'/');
                number.then(|| host.to_owned())
            }
        };
        match network {
            Some(text) => Ok(Self::Network { network: text.parse().map_err(|_| TrustedError)?, port }),
            None => Ok(Self::Name { name: named(host).map_err(|_| TrustedError)?, port }),
        }
    }
}

impl fmt::Display for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { name, port } => write!(f, "{name}:{port}"),
            Self::Network { network, port } => match network.to_string().split_once('/') {
                Some((first, bits)) if first.contains(':') => write!(f, "[{first}]/{bits}:{port}"),
                _ => write!(f, "{network}:{port}"),
            },
        }
    }
}

/// Why a place is not reached. Nothing was sent there, and trying again is in vain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `http` where only `https` is spoken.
    #[error("http without TLS is not spoken there")]
    Plain,
    /// A port that is not among those permitted.
    #[error("port {0} is not permitted")]
    Port(u16),
    /// A name that never means a host of the public Internet (RFC 6761), or has no dot.
    #[error("the name is none of the public Internet")]
    Name,
    /// An address that is not public. The text holds what the name resolved to: for the log, and not for whoever chose the name.
    #[error("{address} is {why}")]
    Address {
        /// The one refused; others of the same name may be public.
        address: IpAddr,
        /// What it is.
        why: Forbidden,
    },
}

/// Whether the owner's trusted endpoints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    Counts,
    /// After a redirect by somebody who is not trusted: else any site could send its callers there.
    Ignored,
}

/// On which ground an address may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    Public,
    Trusted,
}

/// The rules, as configured.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) plain: PlainHttp,
    pub(crate) ports: Vec<RangeInclusive<u16>>,
    pub(crate) trusted: Vec<Trusted>,
    pub(crate) deny: Vec<Network>,
}

/// What of a URL is decided before its name is looked up.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    trust: Trust,
    /// Its name and port are those of a trusted endpoint.
    by_name: bool,
    /// Its URL alone says that the owner trusts it: by its name, or by an address.
    is_own: bool,
    /// Refused for this, unless every address is trusted.
    unless_trusted: Option<Refusal>,
}

impl Admitted {
    /// Whether the name is the owner's own, to be looked up as it is; any other is looked up as an absolute one.
    pub(crate) fn is_own_name(&self) -> bool {
        self.by_name
    }

    /// Whether it is the owner's own, and known to be before its name is looked up.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }
}

/// Ports on which something listens that takes a request for commands of its own (<https://fetch.spec.whatwg.org/#port-blocking>,
/// those of 1024 and above), or hands out data without asking who is there. A range that holds one does not permit it: it has to be
/// named alone.
const UNSAFE_PORTS: [u16; 29] = [
    1719, 1720, 1723, 2049, 2375, 2379, 3306, 3659, 4045, 4190, 5060, 5061, 5432, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679,
    6697, 9200, 9300, 10080, 10250, 11211, 27017,
];

/// Names that are never looked up, with all below them: RFC 6761, RFC 6762 (`local`), RFC 8375 (`home.arpa`), RFC 9476 (`alt`), and
/// `internal`, which ICANN has reserved for private use.
const SPECIAL_NAMES: [&str; 8] = ["localhost", "local", "internal", "home.arpa", "onion", "invalid", "test", "alt"];

impl Policy {
    /// What may be said of `origin` before its name is looked up.
    pub(crate) fn admit(&self, origin: &Origin, trust: Trust) -> Result<Admitted, Refusal> {
        let counts = trust == Trust::Counts;
        let by_name = counts && self.trusted.iter().any(|it| matches!(it, Trusted::Name { name, port } if *port == origin.port && matches!(&origin.host, Host::Name(host) if host == name)));
        let plain = origin.scheme == Scheme::Http;
        if plain && self.plain == PlainHttp::Never {
            return Err(Refusal::Plain);
        }
        let open = self.ports.iter().any(|range| {
            let alone = range.start() == range.end();
            range.contains(&origin.port) && (alone || !UNSAFE_PORTS.contains(&origin.port))
        });
        let unless_trusted = if plain && self.plain == PlainHttp::Trusted {
            Some(Refusal::Plain)
        } else if !open {
            Some(Refusal::Port(origin.port))
        } else {
            None
        };
        // Whether an address is trusted is known when the name is looked up, but on a port that no entry has, it is not.
        let may_be = by_name || counts && self.trusted.iter().any(|it| matches!(it, Trusted::Network { port, .. } if *port == origin.port));
        if let Some(refusal) = unless_trusted.clone().filter(|_| !may_be) {
            return Err(refusal);
        }
        if let Host::Name(name) = &origin.host
            && !by_name
            && (!name.contains('.') || SPECIAL_NAMES.iter().any(|special| is_below(name, special)))
        {
            return Err(Refusal::Name);
        }
        let mut admitted = Admitted { trust, by_name, is_own: by_name, unless_trusted };
        if let Host::Address(address) = origin.host {
            admitted.is_own = self.permit(&admitted, address, origin.port) == Ok(Ground::Trusted);
        }
        Ok(admitted)
    }

    /// Whether one of the addresses of an admitted host may be connected to, on its port.
    pub(crate) fn permit(&self, admitted: &Admitted, address: IpAddr, port: u16) -> Result<Ground, Refusal> {
        if self.deny.iter().any(|network| network.contains(address)) {
            return Err(Refusal::Address { address, why: Forbidden::configured() });
        }
        let public = address::public(address);
        if self.is_trusted(admitted, address, port, public.err().map(|why| why.kind)) {
            return Ok(Ground::Trusted);
        }
        public.map_err(|why| Refusal::Address { address, why })?;
        admitted.unless_trusted.clone().map_or(Ok(Ground::Public), Err)
    }

    fn is_trusted(&self, admitted: &Admitted, address: IpAddr, port: u16, kind: Option<Kind>) -> bool {
        if admitted.trust == Trust::Ignored {
            return false;
        }
        let inside = matches!(kind, None | Some(Kind::Loopback | Kind::Private | Kind::Shared));
        if admitted.by_name && inside {
            return true;
        }
        let nobody = matches!(kind, Some(Kind::Unspecified | Kind::Multicast | Kind::Broadcast | Kind::Embedding));
        !nobody
            && self.trusted.iter().any(|it| match it {
                Trusted::Network { network, port: its } => {
                    let alone = *network == Network::from(address);
                    *its == port && network.contains(address) && (alone || kind != Some(Kind::Metadata))
                }
                Trusted::Name { .. } => false,
            })
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    fn policy(trusted: &[&str]) -> Policy {
        Policy {
            plain: PlainHttp::Trusted,
            ports: vec![443..=443, 80..=80, 8000..=10_000],
            trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            deny: vec!["93.184.0.0/16".parse().unwrap()],
        }
    }

    fn decide(policy: &Policy, trust: Trust, url: &str, address: &str) -> Result<Ground, Refusal> {
        let target: Target = url.parse().unwrap();
        let admitted = policy.admit(target.origin(), trust)?;
        policy.permit(&admitted, address.parse().unwrap(), target.origin().port)
    }

    fn kind(outcome: Result<Ground, Refusal>) -> Option<Kind> {
        match outcome {
            Err(Refusal::Address { why, .. }) => Some(why.kind),
            _ => None,
        }
    }

    #[test]
    fn a_trusted_endpoint_is_a_host_and_a_port() {
        for text in ["stock.internal:8080", "127.0.0.1/32:9000", "10.1.0.0/16:8080", "[fd00::]/8:8080", "[::1]/128:1", "stock-2:1"] {
            assert_eq!(text.parse::<Trusted>().unwrap().to_string(), text);
        }
        assert_eq!("127.0.0.1:9000".parse::<Trusted>().unwrap().to_string(), "127.0.0.1/32:9000");
        assert_eq!("Stock.Internal.:1".parse::<Trusted>().unwrap().to_string(), "stock.internal:1");
        for text in [
            "stock",
            "stock:",
            "stock:0",
            "stock:65536",
            "stock:+1",
            "10.0.0.0/8",
            "10.0.0.1/8:1",
            "::1:80",
            "[10.0.0.1]:80",
            "127.1:80",
            "a b:1",
            ":1",
            "*:1",
        ] {
            assert_eq!(text.parse::<Trusted>(), Err(TrustedError), "{text}");
        }
    }

    #[test]
    fn trust_is_for_one_port_and_not_for_a_machine() {
        let policy = policy(&["stock.internal:8080", "10.1.0.0/16:9000"]);
        let counts = Trust::Counts;
        assert_eq!(decide(&policy, counts, "http://stock.internal:8080", "10.0.0.1"), Ok(Ground::Trusted));
        assert_eq!(decide(&policy, counts, "http://stock.internal:8081", "10.0.0.1"), Err(Refusal::Plain));
        assert_eq!(decide(&policy, counts, "https://stock.internal:8081", "10.0.0.1"), Err(Refusal::Name));
        assert_eq!(decide(&policy, counts, "http://10.1.2.3:9000", "10.1.2.3"), Ok(Ground::Trusted));
        assert_eq!(kind(decide(&policy, counts, "https://10.1.2.3:8443", "10.1.2.3")), Some(Kind::Private));
        assert_eq!(kind(decide(&policy, counts, "http://10.2.2.3:9000", "10.2.2.3")), Some(Kind::Private));
        assert_eq!(decide(&policy, counts, "http://a.example:9000", "1.1.1.1"), Err(Refusal::Plain), "public is not trusted");
        assert_eq!(decide(&policy, counts, "http://a.example:9000", "10.1.2.3"), Ok(Ground::Trusted));
    }

    #[test]
    fn trust_ends_at_a_redirect_by_a_stranger() {
        let policy = policy(&["stock.internal:8443", "10.1.0.0/16:8443"]);
        assert_eq!(decide(&policy, Trust::Counts, "https://stock.internal:8443", "10.1.0.1"), Ok(Ground::Trusted));
        assert_eq!(decide(&policy, Trust::Ignored, "https://stock.internal:8443", "10.1.0.1"), Err(Refusal::Name));
        assert_eq!(kind(decide(&policy, Trust::Ignored, "https://a.example:8443", "10.1.0.1")), Some(Kind::Private));
    }

    #[test]
    fn a_trusted_name_never_leads_to_metadata() {
        let policy = policy(&["stock.internal:8080", "169.254.0.0/16:8080", "169.254.169.254:80", "0.0.0.0/0:81", "[::]/0:81"]);
        let at = |url: &str, address: &str| kind(decide(&policy, Trust::Counts, url, address));
        assert_eq!(at("http://stock.internal:8080", "169.254.169.254"), Some(Kind::Metadata));
        assert_eq!(at("http://stock.internal:8080", "fd00:ec2::254"), Some(Kind::Metadata));
        assert_eq!(at("http://stock.internal:8080", "fe80::1"), Some(Kind::LinkLocal));
        assert_eq!(at("http://a.example:8080", "169.254.169.254"), Some(Kind::Metadata), "a block does not name it");
        assert_eq!(at("http://a.example:81", "0.0.0.0"), Some(Kind::Unspecified));
        assert_eq!(at("http://a.example:81", "224.0.0.1"), Some(Kind::Multicast));
        assert_eq!(at("http://a.example:81", "::ffff:127.0.0.1"), Some(Kind::Embedding));
        assert_eq!(decide(&policy, Trust::Counts, "http://169.254.169.254", "169.254.169.254"), Ok(Ground::Trusted));
    }

    #[test]
    fn ports_and_names_are_refused_before_anything_is_looked_up() {
        let policy = policy(&[]);
        let admit = |url: &str| policy.admit(url.parse::<Target>().unwrap().origin(), Trust::Counts).map(|_| ());
        assert_eq!(admit("https://a.example"), Ok(()));
        assert_eq!(admit("https://a.example:8443"), Ok(()));
        assert_eq!(admit("https://a.example:22"), Err(Refusal::Port(22)));
        assert_eq!(admit("https://a.example:9200"), Err(Refusal::Port(9200)), "in a range, but not named alone");
        assert_eq!(admit("http://a.example"), Err(Refusal::Plain));
        for name in ["localhost", "a.localhost", "LOCALHOST.", "printer.local", "db.internal", "nas.home.arpa", "intranet", "x.onion"] {
            assert_eq!(admit(&format!("https://{name}")), Err(Refusal::Name), "{name}");
        }
        assert_eq!(admit("https://notlocalhost.example"), Ok(()));
    }

    #[test]
    fn what_the_owner_denies_stays_denied() {
        let policy = policy(&["93.184.216.34:8080"]);
        assert_eq!(kind(decide(&policy, Trust::Counts, "https://a.example", "93.184.216.34")), Some(Kind::Configured));
        assert_eq!(kind(decide(&policy, Trust::Counts, "http://93.184.216.34:8080", "93.184.216.34")), Some(Kind::Configured));
    }
}
