//! Routes: which service is reached in which way, and the breakers that people have forced. Answered under the name [`NAME`] by the owner
//! of `control.db` and by no other node; everybody else serves on a replica of it, and whoever edits addresses the owner, through any node.
//!
//! Operators edit; viewers and nodes list, an FO without what it does not need. Who edits, what and why is written down with the edit
//! itself, together with what the route was before and after, so that any edit can be taken back exactly; a reply means that all of it is
//! on disk. What each node makes of the routes is asked of its own [`super::router`].

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the actor that answers this protocol.
pub const NAME: &str = "horos.control";
/// Longest name of a service, in bytes.
pub const MAX_SERVICE: usize = 200;
/// Longest name of a strategy, in bytes.
pub const MAX_STRATEGY: usize = 32;
/// Longest endpoint, in bytes: what browsers and proxies take of a URL.
pub const MAX_ENDPOINT: usize = 2_048;
/// Longest configuration of a route, in bytes of JSON: it is kept with each edit, before and after.
pub const MAX_CONFIG: usize = 16 * 1024;
/// Longest reason of an edit, in bytes.
pub const MAX_WHY: usize = 500;
/// Most routes.
pub const MAX_ROUTES: u32 = 10_000;
/// Most breakers that are forced or were ever reset.
pub const MAX_BREAKERS: u32 = 10_000;
/// Edits kept, the newest.
pub const KEPT_EDITS: u32 = 10_000;
/// Most entries of a [`RouteList`], a [`HistoryPage`], a [`ForcedList`] and an [`ImportRoutes`].
pub const PAGE: usize = 500;
/// Bytes of texts from which on a page takes no further entry.
pub const PAGE_BYTES: usize = 256 * 1024;

/// How a service is reached: a name that the nodes' release has an implementation for, or not yet. 1 to [`MAX_STRATEGY`] bytes of `a-z`,
/// `0-9`, `-` and `_`, beginning with a letter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Strategy(Cow<'static, str>);

impl Strategy {
    /// On the node that calls.
    pub const LOCAL: Self = Self(Cow::Borrowed("local"));
    /// On whichever node offers it, or on the one that is named.
    pub const QUIC: Self = Self(Cow::Borrowed("quic"));
    /// By POST to the endpoint.
    pub const HTTP: Self = Self(Cow::Borrowed("http"));
    /// As a tool at the endpoint.
    pub const MCP: Self = Self(Cow::Borrowed("mcp"));
    /// From a replica of a database.
    pub const DBSYNC: Self = Self(Cow::Borrowed("dbsync"));
    /// By a server of embeddings.
    pub const EMBED: Self = Self(Cow::Borrowed("embed"));
    /// Not at all: calls succeed and do nothing.
    pub const NOOP: Self = Self(Cow::Borrowed("noop"));
    /// Those that rows of the Go system may name. Not all of them are in every release.
    pub const KNOWN: [Self; 7] = [Self::LOCAL, Self::QUIC, Self::HTTP, Self::MCP, Self::DBSYNC, Self::EMBED, Self::NOOP];

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl JsonSchema for Strategy {
    fn schema_name() -> Cow<'static, str> {
        "Strategy".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "How a service is reached: local, quic, http, noop, or another that the nodes have an implementation for.",
            "pattern": format!("^[a-z][a-z0-9_-]{{0,{}}}$", MAX_STRATEGY - 1),
        })
    }
}

/// Not the name of a strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a strategy is 1 to {MAX_STRATEGY} bytes of a-z, 0-9, - and _, beginning with a letter, such as local, quic, http or noop")]
pub struct StrategyError;

impl FromStr for Strategy {
    type Err = StrategyError;
    fn from_str(text: &str) -> Result<Self, StrategyError> {
        if let Some(known) = Self::KNOWN.into_iter().find(|strategy| strategy.as_str() == text) {
            return Ok(known);
        }
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        if !begins || text.len() > MAX_STRATEGY || !text.bytes().all(fits) {
            return Err(StrategyError);
        }
        Ok(Self(Cow::Owned(text.to_owned())))
    }
}

impl TryFrom<String> for Strategy {
    type Error = StrategyError;
    fn try_from(text: String) -> Result<Self, StrategyError> {
        text.parse()
    }
}

impl From<Strategy> for String {
    fn from(strategy: Strategy) -> Self {
        strategy.0.into_owned()
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
    /// `local` takes an actor's name, `quic` an address (`name`, `name@node` or `name@role`), `http` an absolute URL; without one
    /// `local` and `quic` take the service's own name.
    pub endpoint: Option<Box<str>>,
    /// The policies: a JSON object of at most [`MAX_CONFIG`] bytes. An FO is told what it needs of it.
    pub config: Option<Box<str>>,
    /// What must be there; none is whatever there is.
    pub expected: Option<Expected>,
    /// Why, for whoever wonders later. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Changes the strategy of a route, and leaves its configuration as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetStrategy {
    /// The service.
    pub service: Box<str>,
    /// How it is reached from now on.
    pub strategy: Strategy,
    /// Where from now on; none is where it was, and the empty text nowhere in particular.
    pub endpoint: Option<Box<str>>,
    /// What it must be; none is whatever it is.
    pub expected: Option<RouteVersion>,
    /// Why. At most [`MAX_WHY`] bytes.
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
    /// The route as it is now; none where there is none any more.
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

/// Asks for one route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetRoute {
    /// The service.
    pub service: Box<str>,
}

/// A route, as it stands in the table: any program may have written it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// The service.
    pub service: Box<str>,
    /// How it is reached: a [`Strategy`] in every row that makes sense.
    pub strategy: Box<str>,
    /// Where.
    pub endpoint: Option<Box<str>>,
    /// The policies, as JSON text; for an FO what it needs of them.
    pub config: Option<Box<str>>,
    /// When it was last edited, in seconds since 1970.
    pub updated_at: i64,
    /// What an edit may expect, and what a BO's router shows as the row that is in force.
    pub version: RouteVersion,
    /// What an FO's router shows in place of it: an FO has less of the row.
    pub version_on_fo: RouteVersion,
    /// Everything that is wrong with it. Where there is something, nodes serve on the last row that was right.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{key}: {what}")]
pub struct Problem {
    /// Where: a column, or a path in the configuration.
    pub key: Box<str>,
    /// What.
    pub what: Box<str>,
}

/// Asks for edits, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// Those of this service; none is of all.
    pub service: Option<Box<str>>,
    /// Those before this one: [`HistoryPage::next`] of the page before.
    pub before: Option<i64>,
    /// How many at most; [`PAGE`] is never exceeded.
    pub limit: u32,
}

/// At most [`PAGE`] edits, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryPage {
    /// The edits, the newest first.
    pub edits: Vec<Edit>,
    /// What to ask for next as [`History::before`]; none when there are no more.
    pub next: Option<i64>,
}

/// An edit as it was written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Edit {
    /// Its number. Numbers rise and are never given twice.
    pub edit: i64,
    /// When, in seconds since 1970.
    pub at: i64,
    /// Who, as the caller's certificate says; `sql` is whoever wrote to the table by another program.
    pub who: Box<str>,
    /// Why, as they said.
    pub why: Box<str>,
    /// What was done: `set`, `set-strategy`, `delete`, `rollback`, `import`, `force-breaker`, `reset-breaker`, `sql`.
    pub what: Box<str>,
    /// Of which service.
    pub service: Box<str>,
    /// The route before; none where there was none, and for an edit of a breaker.
    pub before: Option<Content>,
    /// The route after.
    pub after: Option<Content>,
    /// Of which endpoint's breaker, and what became of it.
    pub breaker: Option<BreakerEdit>,
}

/// What a route says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Content {
    /// How the service is reached.
    pub strategy: Box<str>,
    /// Where.
    pub endpoint: Option<Box<str>>,
    /// The policies.
    pub config: Option<Box<str>>,
    /// Whether it was too large to be kept: the texts above are cut then, and it cannot be brought back.
    pub cut: bool,
}

/// What became of a breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerEdit {
    /// The endpoint's, as routers show it; empty is every endpoint's of the service.
    pub endpoint: Box<str>,
    /// What it was before.
    pub before: Force,
    /// What it is now; none when it was reset.
    pub after: Option<Force>,
}

/// Puts a route back to what it was. Itself an edit, which can be taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rollback {
    /// The service.
    pub service: Box<str>,
    /// To when.
    pub to: RollbackTo,
    /// What must be there now; none is whatever there is.
    pub expected: Option<Expected>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// To which time a route is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RollbackTo {
    /// Before its last edit.
    Last,
    /// Before this edit, which is one of this route.
    Before(i64),
    /// After this edit, whichever route's it was.
    AsOf(i64),
}

/// Which state a breaker has by order. It holds on every node; none but forced states are shared between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Force {
    /// None: each node decides by what it sees.
    #[default]
    Auto,
    /// Calls are refused.
    Open,
    /// Calls are let through.
    Closed,
}

impl Force {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for Force {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Forces a breaker on every node, or leaves it to itself again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForceBreaker {
    /// The service. It need not have a route: actors that are called by name have breakers too.
    pub service: Box<str>,
    /// The endpoint's, as routers show it; none is every endpoint's.
    pub endpoint: Option<Box<str>>,
    /// To which state.
    pub state: Force,
    /// What it must be; none is whatever it is.
    pub expected: Option<Force>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// Has every node forget what it has counted against a breaker, and close it unless it is forced open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResetBreaker {
    /// The service.
    pub service: Box<str>,
    /// The endpoint's, as routers show it; none is every endpoint's.
    pub endpoint: Option<Box<str>>,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// A breaker was forced, left to itself or reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerEdited {
    /// The edit's number among all edits.
    pub edit: i64,
    /// The breaker as it is now.
    pub breaker: ForcedBreaker,
}

/// Asks for the breakers that are forced or were reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListForced {
    /// Those after this service and endpoint: the last of the page before.
    pub after: Option<(Box<str>, Box<str>)>,
}

/// At most [`PAGE`] breakers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForcedList {
    /// The breakers.
    pub breakers: Vec<ForcedBreaker>,
    /// What to ask for next as [`ListForced::after`]; none when there are no more.
    pub next: Option<(Box<str>, Box<str>)>,
}

/// What people have ordered of a breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForcedBreaker {
    /// The service.
    pub service: Box<str>,
    /// The endpoint's; empty is every endpoint's of the service.
    pub endpoint: Box<str>,
    /// Its state by order.
    pub state: Force,
    /// How often it was reset.
    pub resets: i64,
    /// When that was last edited, in seconds since 1970.
    pub updated_at: i64,
}

/// Takes in rows of another table of routes. Nothing of them is lost: a row that is wrong is added all the same, and shown as wrong, where
/// there is none of its name; it never replaces one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportRoutes {
    /// The rows. At most [`PAGE`] at a time.
    pub rows: Vec<ImportedRow>,
    /// Whether those that are right replace others of their name.
    pub replace: bool,
    /// Why. At most [`MAX_WHY`] bytes.
    pub why: Option<Box<str>>,
}

/// A row of another table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedRow {
    /// The service.
    pub service: Box<str>,
    /// How it is reached, as it stands there.
    pub strategy: Box<str>,
    /// Where.
    pub endpoint: Option<Box<str>>,
    /// The policies.
    pub config: Option<Box<str>>,
}

/// What became of imported rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Imported {
    /// Those that were not there.
    pub added: Vec<Box<str>>,
    /// Those that replaced others.
    pub replaced: Vec<Box<str>>,
    /// Those that were there already, word for word.
    pub same: Vec<Box<str>>,
    /// Those that were not taken, and why.
    pub left: Vec<LeftRow>,
    /// What is wrong with rows that were added.
    pub wrong: Vec<WrongRow>,
}

/// A row that was not taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeftRow {
    /// The service.
    pub service: Box<str>,
    /// Why not.
    pub why: Box<str>,
}

/// A row that makes no sense.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WrongRow {
    /// The service.
    pub service: Box<str>,
    /// Everything that is wrong with it.
    pub problems: Vec<Problem>,
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
    /// The release that the owner runs has no implementation of it.
    #[error("the strategy {strategy:?} is not in this release, which has {}", .available.join(", "))]
    NotImplemented {
        /// Which.
        strategy: Strategy,
        /// Those that there are.
        available: Vec<Box<str>>,
    },
    /// The route would make no sense: everything that is wrong with it.
    #[error("the route is wrong: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Wrong(Vec<Problem>),
    /// No such edit, or none of this route, or it is too old to be known.
    #[error("there is no edit {edit} of the route {service:?}; `horos routes history` shows those that are kept, the last {KEPT_EDITS}")]
    NoSuchEdit {
        /// The route.
        service: Box<str>,
        /// Which edit; 0 is its last.
        edit: i64,
    },
    /// The breaker is not what was expected: somebody else was faster.
    #[error("the breaker of {service:?} is not what was expected: it is {found} now")]
    BreakerConflict {
        /// Whose.
        service: Box<str>,
        /// What it is.
        found: Force,
    },
    /// There are as many as there may be.
    #[error("{MAX_BREAKERS} breakers are forced, and more are not taken: leave some to themselves first")]
    TooManyBreakers,
}

crate::protocol! {
    /// What the owner of `control.db` is asked about routes.
    pub Control = "horos.control" v1 {
        1 set_route: SetRoute => Edited, ControlError;
        2 delete_route: DeleteRoute => Edited, ControlError;
        3 list: ListRoutes => RouteList, ControlError;
        4 get: GetRoute => Route, ControlError;
        5 set_strategy: SetStrategy => Edited, ControlError;
        6 history: History => HistoryPage, ControlError;
        7 rollback: Rollback => Edited, ControlError;
        8 force_breaker: ForceBreaker => BreakerEdited, ControlError;
        9 reset_breaker: ResetBreaker => BreakerEdited, ControlError;
        10 forced: ListForced => ForcedList, ControlError;
        11 import: ImportRoutes => Imported, ControlError;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_written_in_json_as_on_the_command_line() {
        for strategy in Strategy::KNOWN.into_iter().chain(["grpc-2".parse().unwrap()]) {
            assert_eq!(strategy.as_str().parse(), Ok(strategy.clone()));
            assert_eq!(serde_json::to_string(&strategy).unwrap(), format!("\"{strategy}\""));
        }
    }

    #[test]
    fn what_is_no_name_is_no_strategy_wherever_it_comes_from() {
        for bad in ["", "Http", "2x", "-a", "a b", "a.b", "é", &"x".repeat(MAX_STRATEGY + 1)] {
            assert_eq!(bad.parse::<Strategy>(), Err(StrategyError), "{bad}");
            assert!(serde_json::from_value::<Strategy>(bad.into()).is_err(), "{bad}");
        }
        assert!("x".repeat(MAX_STRATEGY).parse::<Strategy>().is_ok());
    }

    #[test]
    fn a_conflict_says_what_is_there() {
        let found = |found| ControlError::Conflict { service: "stock".into(), found }.to_string();
        assert!(found(None).ends_with("there is none"));
        assert!(found(Some(RouteVersion(0xab))).ends_with("it is 000000000000000000000000000000ab now"));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let problem = |key: &str, what: &str| Problem { key: key.into(), what: what.into() };
        let wrong = ControlError::Wrong(vec![problem("endpoint", "no URL"), problem("retry.retries", "0 is not within 1 to 10")]);
        assert_eq!(wrong.to_string(), "the route is wrong: endpoint: no URL; retry.retries: 0 is not within 1 to 10");
        let not_here = ControlError::NotImplemented { strategy: Strategy::MCP, available: vec!["local".into(), "noop".into()] };
        assert_eq!(not_here.to_string(), "the strategy \"mcp\" is not in this release, which has local, noop");
    }
}
