//! What a node's router does: which row of each service is in force, how its endpoints are, and what was wrong with a row that is not.
//!
//! Answered under the name [`NAME`] on every node, for that node alone: the automatic state of a breaker is what one node has seen, and one
//! node's bad network says nothing of another's. What people order of breakers is the owner's ([`super::control`]).
//!
//! Nodes, viewers and operators look; nobody changes anything here. Texts of errors are left out for an FO that asks another node.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::control::{Force, Problem, RouteVersion};
use crate::tree::Quantiles;

/// The name of the actor that answers this protocol on every node.
pub const NAME: &str = "horos.router";
/// Most services of a [`ServiceList`], and most breakers of a [`BreakerList`].
pub const PAGE: usize = 200;
/// Bytes of texts from which on a page takes no further entry.
pub const PAGE_BYTES: usize = 256 * 1024;
/// Longest text of an error, in bytes: what is longer is cut.
pub const MAX_ERROR: usize = 400;

/// Asks for the services that the node routes, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListServices {
    /// Those after this one: the last of the page before.
    pub after: Option<Box<str>>,
}

/// At most [`PAGE`] services, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceList {
    /// The services: those with a row, right or wrong, and those without one that were called.
    pub services: Vec<ServiceStatus>,
    /// What to ask for next as [`ListServices::after`]; none when there are no more.
    pub next: Option<Box<str>>,
}

/// Asks for one service in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GetService {
    /// The service.
    pub service: Box<str>,
}

/// A service in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDetail {
    /// How it is.
    pub status: ServiceStatus,
    /// The policies that are in force, defaults and all, as JSON text; without what names a file of the node.
    pub policies: Box<str>,
    /// Calls that wait for one in hand to end.
    pub waiting: u32,
    /// Calls that were refused here because too many were in hand or in wait.
    pub overloaded: u64,
    /// Calls that were refused here because the service is called too often.
    pub limited: u64,
    /// Calls that an open breaker refused.
    pub refused: u64,
    /// Second attempts beside one that took long, and how many of them answered first.
    pub hedged: (u64, u64),
    /// Calls that the fallback answered.
    pub fell_back: u64,
    /// Retries that the budget did not permit.
    pub over_budget: u64,
}

/// How a service is, as this node has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub service: Box<str>,
    /// The row that is in force; none where the service is an actor that is called by name, and where no row was ever right.
    pub row: Option<RowInForce>,
    /// Why the row that stands in the table is not in force.
    pub problem: Option<RowProblem>,
    /// By which strategy; empty where it is not reached at all.
    pub strategy: Box<str>,
    /// Where.
    pub endpoints: Vec<EndpointStatus>,
    /// Calls in hand.
    pub in_flight: u32,
    /// Calls that have ended, since the node started.
    pub calls: u64,
    /// Those of them that failed: callers' own errors and cancellations are none.
    pub failures: u64,
    /// Attempts beyond each call's first.
    pub retries: u64,
    /// What calls took, retries and waits included.
    pub latency: Quantiles,
}

/// The row that is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RowInForce {
    /// Its version: as the owner lists it ([`super::control::Route`]), on an FO its version there.
    pub version: RouteVersion,
    /// When this node took it up, in milliseconds since 1970.
    pub taken_up_ms: i64,
}

/// A row that is not in force because it is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RowProblem {
    /// Its version.
    pub version: RouteVersion,
    /// Since when this node knows it, in milliseconds since 1970.
    pub since_ms: i64,
    /// Everything that is wrong with it.
    pub problems: Vec<Problem>,
}

/// How an endpoint is, as this node has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EndpointStatus {
    /// What tells it apart from the others of its service: what [`super::control::ForceBreaker`] takes.
    pub key: Box<str>,
    /// By which strategy.
    pub strategy: Box<str>,
    /// Where; empty is the service's own name.
    pub endpoint: Box<str>,
    /// What it counts among the others.
    pub weight: u32,
    /// The share of the calls that go here before any other choice is made.
    pub canary_percent: Option<u32>,
    /// Its breaker, as this node has it by itself.
    pub breaker: BreakerState,
    /// What people have ordered of it.
    pub forced: Force,
    /// In how many milliseconds it probes; none unless it is open by itself.
    pub until_ms: Option<u64>,
    /// Attempts in hand.
    pub in_flight: u32,
    /// Attempts that have ended.
    pub calls: u64,
    /// Those of them that count against it.
    pub failures: u64,
    /// What attempts took.
    pub latency: Quantiles,
    /// The last failure. At most [`MAX_ERROR`] bytes.
    pub last_error: Option<Box<str>>,
}

/// What a breaker does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Lets calls through.
    Closed,
    /// Refuses them.
    Open,
    /// Lets a few through, to see.
    HalfOpen,
}

impl BreakerState {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Asks for the breakers of the node, by service and key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListBreakers {
    /// Those after this service and key: the last of the page before.
    pub after: Option<(Box<str>, Box<str>)>,
}

/// At most [`PAGE`] breakers, and about [`PAGE_BYTES`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerList {
    /// The breakers.
    pub breakers: Vec<BreakerStatus>,
    /// What to ask for next as [`ListBreakers::after`]; none when there are no more.
    pub next: Option<(Box<str>, Box<str>)>,
}

/// How a breaker is, as this node has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BreakerStatus {
    /// The service.
    pub service: Box<str>,
    /// The endpoint's key: what [`super::control::ForceBreaker`] takes.
    pub key: Box<str>,
    /// What it does by itself.
    pub state: BreakerState,
    /// What people have ordered of it, which goes before that.
    pub forced: Force,
    /// In how many milliseconds it probes; none unless it is open by itself.
    pub until_ms: Option<u64>,
    /// Failures in a row.
    pub failures_in_row: u32,
    /// How often its own state has changed.
    pub transitions: u64,
    /// When it opened, in milliseconds since 1970, if it has not closed since.
    pub opened_ms: Option<i64>,
    /// The last failure. At most [`MAX_ERROR`] bytes.
    pub last_error: Option<Box<str>>,
}

/// Why it is not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RouterError {
    /// It has no row, and nobody has called an actor of that name through this node.
    #[error("this node has no route {0:?} and has called nothing of that name; `horos routes list` shows the routes")]
    NoSuchService(Box<str>),
}

crate::protocol! {
    /// What each node's router tells of itself.
    pub Router = "horos.router" v1 {
        1 list: ListServices => ServiceList, RouterError;
        2 get: GetService => ServiceDetail, RouterError;
        3 breakers: ListBreakers => BreakerList, RouterError;
    }
}
