//! A row made into what is called by it: read, checked, and nothing opened or dialled yet.

use std::sync::Arc;

use horos_wire::protocol::control::RouteVersion;
use sha2::{Digest as _, Sha256};

use crate::{
    config::{Config, Endpoint, Problem},
    strategy::Strategies,
};

/// A row of `routes`, as any process may have written it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Which service.
    pub service: Box<str>,
    /// By which strategy.
    pub strategy: Box<str>,
    /// Where; nothing is what the strategy makes of it.
    pub endpoint: Option<Box<str>>,
    /// The policies, as JSON text.
    pub config: Option<Box<str>>,
    /// When it was last edited, in seconds since 1970. Says nothing of what the row means.
    pub updated_at: i64,
}

impl Row {
    /// Whether both mean the same.
    pub fn means(&self, other: &Row) -> bool {
        (&self.service, &self.strategy, &self.endpoint, &self.config) == (&other.service, &other.strategy, &other.endpoint, &other.config)
    }

    /// What an edit of it may expect.
    pub fn version(&self) -> RouteVersion {
        let mut digest = Sha256::new();
        for part in [Some(&*self.service), Some(&*self.strategy), self.endpoint.as_deref(), self.config.as_deref()] {
            // With lengths, so that what ends one cannot begin the next; and nothing is not the empty text.
            digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            digest.update(part.unwrap_or_default());
        }
        digest.update(self.updated_at.to_le_bytes());
        let digest: [u8; 32] = digest.finalize().into();
        RouteVersion(digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte)))
    }
}

/// One place where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// By which strategy.
    pub strategy: Box<str>,
    /// Where.
    pub endpoint: Box<str>,
    /// What it counts among the others.
    pub weight: u32,
    /// The share of the calls that go here before any other choice is made.
    pub canary_percent: Option<u32>,
}

impl Place {
    /// What tells it apart from the others of its service, and stays when the row is edited around it.
    pub fn key(&self) -> String {
        if self.endpoint.is_empty() { self.strategy.to_string() } else { format!("{}:{}", self.strategy, self.endpoint) }
    }
}

/// A route that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The row it was made of.
    pub row: Row,
    /// Where the service is reached; one at least.
    pub places: Vec<Place>,
    /// By which policies.
    pub config: Arc<Config>,
}

impl Spec {
    /// Reads and checks `row`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(row: Row, strategies: &Strategies) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        problems.extend(crate::admin::check_name(&row.service).err());
        let config = match Config::parse(row.config.as_deref()) {
            Ok(config) => config,
            Err(wrong) => {
                problems.extend(wrong);
                Config::default()
            }
        };
        let own = Place {
            strategy: row.strategy.clone(),
            endpoint: row.endpoint.clone().unwrap_or_default(),
            weight: config.weight.unwrap_or(1),
            canary_percent: None,
        };
        let more = config.endpoints.iter().map(|Endpoint { strategy, endpoint, weight, canary_percent }| Place {
            strategy: strategy.clone().unwrap_or_else(|| row.strategy.clone()),
            endpoint: endpoint.clone(),
            weight: *weight,
            canary_percent: *canary_percent,
        });
        let places: Vec<Place> = std::iter::once(own).chain(more).collect();
        for (number, place) in places.iter().enumerate() {
            let key = if number == 0 { "endpoint".to_owned() } else { format!("endpoints[{}]", number - 1) };
            if places[..number].iter().any(|other| other.key() == place.key()) {
                problems.push(Problem::new(&*key, "it is there twice"));
            }
            match strategies.get(&place.strategy) {
                Ok(strategy) => {
                    if let Err(what) = strategy.check(&row.service, &place.endpoint, &config) {
                        problems.push(Problem::new(key, what));
                    }
                }
                Err(error) => problems.push(Problem::new("strategy", error.to_string())),
            }
        }
        if let Err(wrong) = strategies.policies(&row.service, &config) {
            problems.extend(wrong);
        }
        if config.fallback.as_deref() == Some(&*row.service) {
            problems.push(Problem::new("fallback", "a service cannot fall back on itself"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self { row, places, config: Arc::new(config) })
    }
}

/// Checks a route as this release's own strategies have it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check(service: &str, strategy: &str, endpoint: Option<&str>, config: Option<&str>) -> Result<(), Vec<Problem>> {
    let row = Row {
        service: service.into(),
        strategy: strategy.into(),
        endpoint: endpoint.map(Into::into),
        config: config.map(Into::into),
        updated_at: 0,
    };
    Spec::new(row, &Strategies::builtin()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(strategy: &str, endpoint: &str, config: &str) -> Vec<String> {
        let problems = check("stock", strategy, Some(endpoint), Some(config)).err().unwrap_or_default();
        problems.into_iter().map(|problem| problem.to_string()).collect()
    }

    #[test]
    fn a_route_without_an_implementation_is_an_error_and_never_a_silent_nothing() {
        for strategy in ["dbsync", "embed"] {
            assert_eq!(wrong(strategy, "x", "{}").len(), 1, "{strategy}");
            assert!(wrong(strategy, "x", "{}")[0].contains("not in this release"), "{strategy}");
        }
        assert!(wrong("grpc", "x", "{}")[0].contains("no strategy"));
        assert!(wrong("local", "", r#"{"endpoints": [{"strategy": "grpc"}]}"#)[0].contains("no strategy"));
    }

    #[test]
    fn endpoints_are_checked_by_their_strategy() {
        for (strategy, endpoint) in [
            ("local", ""),
            ("local", "shelf"),
            ("quic", ""),
            ("quic", "stock@bo"),
            ("quic", "stock@bo-2"),
            ("http", "https://stock.example.org/v1?x=1"),
            ("http", "h3://stock.example.org/v1?x=1"),
            ("mcp", "h3://tools.example.org/mcp"),
            ("mcp", "https://tools.example.org/mcp"),
            ("mcp", "quic://tools.example.org:7400"),
            ("mcp", "node:bo-1"),
            ("noop", ""),
            ("noop", "https://stock.example.org/v1"),
        ] {
            assert_eq!(wrong(strategy, endpoint, "{}"), Vec::<String>::new(), "{strategy} {endpoint}");
        }
        for (strategy, endpoint) in [
            ("local", "stock@bo"),
            ("local", "Stock"),
            ("local", "horos.control"),
            ("quic", "horos.node@bo"),
            ("quic", "stock@"),
            ("quic", "https://x"),
            ("http", ""),
            ("http", "ftp://example.org/"),
            ("http", "https://user:password@example.org/"),
            ("http", "example.org"),
            ("http", "h3://"),
            ("http", "h3://user:password@example.org/"),
            ("quic", "h3://x"),
            ("mcp", ""),
            ("mcp", "stock@bo"),
        ] {
            assert_eq!(wrong(strategy, endpoint, "{}").len(), 1, "{strategy} {endpoint}");
        }
        assert_eq!(check("NotAName", "local", None, None).unwrap_err().len(), 1, "it names no actor, and no endpoint does");
        assert_eq!(check("a/b", "local", Some("ab"), None), Ok(()));
    }

    #[test]
    fn two_endpoints_that_are_one_are_a_mistake_and_so_is_a_fallback_on_oneself() {
        assert_eq!(wrong("quic", "stock@bo", r#"{"endpoints": [{"endpoint": "stock@bo"}]}"#), ["endpoints[0]: it is there twice"]);
        assert_eq!(wrong("local", "", r#"{"fallback": "stock"}"#), ["fallback: a service cannot fall back on itself"]);
    }
}
