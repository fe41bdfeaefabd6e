//! The supervision tree as data: the same snapshot feeds `horos tree`, the console and the tests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{NodeId, TraceId, address::Incarnation};

/// One actor and what it supervises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Actor {
    /// Its name, unique on the node for services; unique among its siblings for the rest.
    pub name: Box<str>,
    /// Whether it supervises, and how.
    pub kind: Kind,
    /// What it is doing with its life.
    pub state: State,
    /// The protocol it answers, as `name/version`; none for the node's own workings.
    pub protocol: Option<Box<str>>,
    /// Messages waiting.
    pub mailbox: u32,
    /// Messages that may wait before the next is refused; 0 where nothing outside can send.
    pub mailbox_limit: u32,
    /// Messages handled since the node started, over all its lives.
    pub handled: u64,
    /// Of those, how many ended in the actor's own error.
    pub failed: u64,
    /// Messages refused at the gate: mailbox full, expired, or malformed.
    pub refused: u64,
    /// Restarts since the node started.
    pub restarts: u32,
    /// Milliseconds since it last finished something; `None` before the first.
    pub last_progress_ms: Option<u64>,
    /// How long messages waited.
    pub wait: Quantiles,
    /// How long they took.
    pub handling: Quantiles,
    /// The message in its hands, and for how long; names the culprit when the state is [`State::Stuck`].
    pub busy_with: Option<Busy>,
    /// Why it last died. Withheld from callers whose role may not see it.
    pub last_error: Option<Box<str>>,
    /// What it supervises, in start order.
    pub children: Vec<Actor>,
}

/// What an actor is busy with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Busy {
    /// The request's name.
    pub method: Box<str>,
    /// For how long, in milliseconds.
    pub for_ms: u64,
}

/// Microseconds, to within 12.5 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quantiles {
    /// Half are quicker.
    pub p50_us: u64,
    /// Ninety-nine in a hundred are quicker.
    pub p99_us: u64,
}

/// Whether an actor supervises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Does work.
    Worker,
    /// A user's or Horos's named service: reachable by address.
    Service,
    /// Restarts the child that died.
    OneForOne,
    /// Restarts all children when one dies.
    OneForAll,
    /// Restarts the child that died and those started after it.
    RestForOne,
}

/// An actor's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not yet started.
    Starting,
    /// Ready or at work.
    Running,
    /// At one message for longer than its limit.
    Stuck,
    /// Dead, and waiting out its backoff.
    Restarting,
    /// Ended, and not to be started again.
    Stopped,
    /// Ended beyond its supervisor's power to restart.
    Failed,
}

/// A node as another sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The node that answers.
    Here,
    /// Heartbeats arrive.
    Up,
    /// A heartbeat is late by 1.5 s.
    Suspect,
    /// No heartbeat for 2.5 s, or the connection is gone.
    Down,
    /// Known by gossip only.
    Heard,
}

/// One node of the cluster with its tree, as told by the node asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeTree {
    /// Who.
    pub node: NodeId,
    /// Which life.
    pub incarnation: Option<Incarnation>,
    /// As seen from the node asked.
    pub health: Health,
    /// Its addresses.
    pub addresses: Vec<Box<str>>,
    /// The tree, where it could be had.
    pub tree: Option<Actor>,
    /// Why it could not.
    pub missing: Option<Box<str>>,
}

/// A message in an actor's flight recorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recorded {
    /// How long ago it was taken up, in microseconds.
    pub ago_us: u64,
    /// The request's name.
    pub method: Box<str>,
    /// Who sent it.
    pub sender: Box<str>,
    /// Bytes on the wire; 0 for a message from the same node, which is never serialised.
    pub size: u32,
    /// The trace it belongs to.
    pub trace: TraceId,
    /// How long it waited, in microseconds.
    pub waited_us: u64,
    /// How long it took, in microseconds; `None` while it is in hand, and for the message that killed the actor.
    pub took_us: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a recorded message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Still in hand.
    InHand,
    /// Answered, or taken where no answer was asked.
    Done,
    /// Answered with the actor's own error.
    Failed,
    /// Not started: expired, malformed or not allowed.
    Refused,
    /// The actor died of it.
    Died,
}

/// The last messages of an actor: of this life, and those before its last death.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recording {
    /// Up to 64 messages, oldest first.
    pub current: Vec<Recorded>,
    /// The recording as it stood when the actor last died.
    pub at_death: Option<Vec<Recorded>>,
    /// Why it died.
    pub cause: Option<Box<str>>,
}
