//! Routes: which service is reached in which way. Answered under the name [`NAME`] by the owner of `control.db` and by no other node;
//! everybody else serves on a replica of it, and whoever edits addresses the owner, through any node.
//!
//! Operators edit; viewers and nodes list, an FO without what it does not need. Who edits, what and why is written down with the edit
//! itself, and a reply means that both are on disk.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the actor that answers this protocol.
pub const NAME: &str = "horos.control";
/// Longest name of a service, in bytes.
pub const MAX_SERVICE: usize = 200;
/// Longest endpoint, in bytes: what browsers and proxies take of a URL.
pub const MAX_ENDPOINT: usize = 2_048;
/// Longest configuration of a route, in bytes of JSON: it is kept with each edit.
pub const MAX_CONFIG: usize = 16 * 1024;
/// Longest reason of an edit, in bytes.
pub const MAX_WHY: usize = 500;
/// Most routes.
pub const MAX_ROUTES: u32 = 10_000;
/// Most routes of a [`RouteList`].
pub const PAGE: usize = 500;
/// Bytes of texts from which on a [`RouteList`] takes no further route.
pub const PAGE_BYTES: usize = 256 * 1024;

/// How a service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// On the node that calls.
    Local,
    /// On another node.
    Quic,
    /// By POST to the endpoint.
    Http,
    /// As a tool at the endpoint.
    Mcp,
    /// From a replica of a database.
    Dbsync,
    /// By a server of embeddings.
    Embed,
    /// Not at all: calls succeed and do nothing.
    Noop,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Local, Self::Quic, Self::Http, Self::Mcp, Self::Dbsync, Self::Embed, Self::Noop];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Quic => "quic",
            Self::Http => "http",
            Self::Mcp => "mcp",
            Self::Dbsync => "dbsync",
            Self::Embed => "embed",
            Self::Noop => "noop",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Not a strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected local, quic, http, mcp, dbsync, embed or noop")]
pub struct StrategyError;

impl FromStr for Strategy {
    type Err = StrategyError;
    fn from_str(text: &str) -> Result<Self, StrategyError> {
        Self::ALL.into_iter().find(|strategy| strategy.as_str() == text).ok_or(StrategyError)
    }
}

/// What a route was when somebody looked: the first half of the SHA-256 over all of its columns. Whoever edits the file by other means
/// changes it too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RouteVersion(pub u128);

impl fmt::Display for RouteVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RouteVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::hex::hex_id!(RouteVersion);

/// What must be there for an edit to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// No route of that name.
    Absent,
    /// The route as it was then.
    Version(RouteVersion),
}

/// Makes a route, or replaces the one of that name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetRoute {
    /// The service. 1 to [`MAX_SERVICE`] bytes.
    pub service: Box<str>,
    /// How it is reached.
    pub strategy: Strategy,
    /// Where: at most [`MAX_ENDPOINT`] bytes, and no user or password in it, because every node is told.
    pub endpoint: Option<Box<str>>,
    /// What else its strategy needs: a JSON object of at most [`MAX_CONFIG`] bytes. An FO is not told.
    pub config: Option<Box<str>>,
    /// What must be there; none is whatever there is.
    pub expected: Option<Expected>,
    /// Why, for whoever wonders later. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Deletes a route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteRoute {
    /// The service.
    pub service: Box<str>,
    /// What it must be; none is whatever it is.
    pub expected: Option<RouteVersion>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// An edit was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Edited {
    /// Its number among all edits.
    pub edit: i64,
    /// The route as it is now; none after [`DeleteRoute`].
    pub route: Option<Route>,
}

/// Asks for routes, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListRoutes {
    /// Those after this one: the last of the page before.
    pub after: Option<Box<str>>,
}

/// At most [`PAGE`] routes, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RouteList {
    /// The routes.
    pub routes: Vec<Route>,
    /// What to ask for next as [`ListRoutes::after`]; none when there are no more.
    pub next: Option<Box<str>>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// The service.
    pub service: Box<str>,
    /// How it is reached.
    pub strategy: Strategy,
    /// Where.
    pub endpoint: Option<Box<str>>,
    /// What else its strategy needs, as JSON text; none where there is none, and for an FO.
    pub config: Option<Box<str>>,
    /// When it was last edited, in seconds since 1970.
    pub updated_at: i64,
    /// What an edit may expect.
    pub version: RouteVersion,
}

/// Why it was not done. Nothing was changed, unless the text says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ControlError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(Box<str>),
    /// No such route.
    #[error("there is no route {0:?}; `horos routes list` shows them")]
    NoSuchRoute(Box<str>),
    /// It is not what was expected: somebody else was faster. Look again, and decide again.
    #[error("the route {service:?} is not what was expected: {}", .found.map_or_else(|| "there is none".to_owned(), |version| format!("it is {version} now")))]
    Conflict {
        /// Which.
        service: Box<str>,
        /// What it is; none where there is none.
        found: Option<RouteVersion>,
    },
    /// There are as many as there may be.
    #[error("there are {MAX_ROUTES} routes, and more are not taken: delete some first")]
    TooMany,
    /// The storage failed; try again.
    #[error("nothing was done: {0}; try again")]
    Storage(Box<str>),
    /// It may have been done or not: look before doing it again.
    #[error("whether it was done is not known; list the routes before you try again")]
    Unknown,
}

crate::protocol! {
    /// What the owner of `control.db` is asked about routes.
    pub Control = "horos.control" v1 {
        1 set_route: SetRoute => Edited, ControlError;
        2 delete_route: DeleteRoute => Edited, ControlError;
        3 list: ListRoutes => RouteList, ControlError;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_written_in_json_as_on_the_command_line() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.as_str().parse(), Ok(strategy));
            assert_eq!(serde_json::to_string(&strategy).unwrap(), format!("\"{strategy}\""));
        }
        assert_eq!("grpc".parse::<Strategy>(), Err(StrategyError));
    }

    #[test]
    fn a_conflict_says_what_is_there() {
        let found = |found| ControlError::Conflict { service: "stock".into(), found }.to_string();
        assert!(found(None).ends_with("there is none"));
        assert!(found(Some(RouteVersion(0xab))).ends_with("it is 000000000000000000000000000000ab now"));
    }
}
