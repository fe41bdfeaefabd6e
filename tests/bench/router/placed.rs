//! Services that say who they are, and one that notes from when on calls by route come to another.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use horos_nodes::Routes as _;
use horos_supervision::{Context, Handle, Service};
use horos_wire::{Never, protocol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The service that routes lead to one of [`NAMES`].
pub(crate) const ROUTED: &str = "placed";
/// Where its route leads, in turn.
pub(crate) const NAMES: [&str; 2] = ["one", "two"];
/// Between two calls of a [`Watch`]: what a time is off by, at most, and no core busy for it.
const EVERY: Duration = Duration::from_millis(1);
/// For one call, which is answered within microseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks who answers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Who {}

protocol! {
    /// Says who it is.
    pub(crate) Placed = "placed" v1 {
        1 who: Who => String;
    }
}

/// One of [`NAMES`].
pub(crate) struct Place(pub(crate) &'static str);

impl Service for Place {
    type Protocol = Placed;
}
impl Handle<Who> for Place {
    async fn handle(&mut self, _: Who, _: &Context) -> Result<String, Never> {
        Ok(self.0.to_owned())
    }
}

/// Calls [`ROUTED`] for so long, and notes who answered when it was somebody else than before.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Watch {
    millis: u64,
}

/// When it began and ended, and the first answers of each, in nanoseconds since 1970: the clock that all processes read alike.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Watched {
    pub(crate) from: u64,
    pub(crate) until: u64,
    pub(crate) first: Vec<(String, u64)>,
}

protocol! {
    /// Watches a route on the node that it runs on.
    pub(crate) Watching = "watching" v1 {
        1 watch: Watch => Watched, String;
    }
}

pub(crate) struct Watcher;

impl Service for Watcher {
    type Protocol = Watching;
}
impl Handle<Watch> for Watcher {
    async fn handle(&mut self, watch: Watch, cx: &Context) -> Result<Watched, String> {
        let target = cx.routed::<Placed>(ROUTED);
        let until = Instant::now() + Duration::from_millis(watch.millis);
        let mut watched = Watched { from: now(), until: 0, first: Vec::new() };
        while Instant::now() < until {
            let who = target.call(Who {}, PATIENCE).await.map_err(|error| error.to_string())?;
            if watched.first.last().is_none_or(|(before, _)| *before != who) {
                watched.first.push((who, now()));
            }
            tokio::time::sleep(EVERY).await;
        }
        watched.until = now();
        Ok(watched)
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Says something.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Say {
    pub(crate) text: String,
}

protocol! {
    /// Says the same.
    pub(crate) Echoing = "echoing" v1 {
        1 echo: Say => String;
    }
}

pub(crate) struct Mirror;

impl Service for Mirror {
    type Protocol = Echoing;
}
impl Handle<Say> for Mirror {
    async fn handle(&mut self, say: Say, _: &Context) -> Result<String, Never> {
        Ok(say.text)
    }
}
