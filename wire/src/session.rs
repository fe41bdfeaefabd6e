//! The session between two nodes, as a state machine without I/O and without a clock.
//!
//! [`Session`] is the control plane: hello and version, names bound to numbers, watches, heartbeats,
//! drain. [`Calls`] joins answers to calls; [`Credit`] bounds what is dispatched and not yet done.
//! `link` drives them with bytes and `now`, and carries out what [`Session::poll_event`] and
//! [`Session::poll_transmit`] give back.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    NodeId,
    control::{self, Bind, Bound, Close, Control, DownReason, Hello, Offers},
    error::NoEffect,
};

mod calls;
mod credit;

pub use calls::{Calls, MAX_CALLS};
pub use credit::{Credit, WINDOW, cost};

/// Control frames that may wait to be sent before the peer, which does not read them, is given up.
///
/// The most that a peer's own reasonable questions can call forth at once: an answer to each name and each watch.
pub const MAX_OUTBOX: usize = control::MAX_BINDINGS + control::MAX_WATCHES + 64;

/// The times of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Between heartbeats. Default 500 ms.
    pub heartbeat: Duration,
    /// Without an answered heartbeat for this long, the peer is suspect. Default 1.5 s: three heartbeats.
    pub suspect: Duration,
    /// Without one for this long, it is down. Default 2.5 s, so that watchers know within 3 s.
    pub down: Duration,
    /// For the peer's hello to arrive. Default 2 s.
    pub hello: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            suspect: Duration::from_millis(1500),
            down: Duration::from_millis(2500),
            hello: Duration::from_secs(2),
        }
    }
}

/// What the session's driver is to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Versions agree; the session is open.
    Opened {
        /// The version both speak.
        version: u16,
        /// What the peer says of itself.
        peer: Hello,
    },
    /// What the peer offers, whole.
    Offers(Offers),
    /// The peer asks for a name; answer with [`Session::bound`].
    Bind(Bind),
    /// The peer answered [`Session::bind`].
    Bound {
        /// The number that `bind` returned.
        binding: u32,
        /// The target, or why there is none.
        outcome: Result<Bound, NoEffect>,
    },
    /// The peer watches a target; report its death with [`Session::down`].
    Watch {
        /// The peer's number for it.
        watch: u32,
        /// The target.
        target: u32,
    },
    /// The peer watches it no longer.
    Unwatch {
        /// The peer's number for it.
        watch: u32,
    },
    /// A target watched with [`Session::watch`] died.
    Down {
        /// The number that `watch` returned.
        watch: u32,
        /// Why.
        reason: DownReason,
    },
    /// The peer wants a sign of life: to be answered by a supervised actor with [`Session::answer_heartbeat`].
    Heartbeat {
        /// The number to answer with.
        sequence: u64,
    },
    /// Room for casts came back.
    Grant {
        /// The target.
        target: u32,
        /// How much.
        units: u32,
    },
    /// The caller has given up.
    Cancel {
        /// The call.
        correlation: u64,
    },
    /// The peer takes no new work.
    GoAway,
    /// The peer passes a deny list on; its signature is yet to be checked.
    DenyList(Box<str>),
    /// The peer is late with its heartbeats.
    Suspect,
    /// The peer's heartbeats are back.
    Recovered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The peer's hello is awaited until then.
    Hello(Instant),
    Open,
    Closed,
}

/// One session's control plane.
#[derive(Debug)]
pub struct Session {
    expected: NodeId,
    local: Hello,
    liveness: Liveness,
    phase: Phase,
    outbox: VecDeque<Control>,
    events: VecDeque<Event>,
    next_number: u32,
    /// Names asked for and not yet answered.
    binding: HashSet<u32>,
    /// Targets that the peer has bound, and may watch.
    bound_by_peer: u32,
    watching: HashSet<u32>,
    watched_by_peer: HashSet<u32>,
    heartbeat: Heartbeat,
    going_away: bool,
}

#[derive(Debug)]
struct Heartbeat {
    sequence: u64,
    acknowledged: u64,
    next: Instant,
    heard: Instant,
    suspect: bool,
}

impl Session {
    /// A session with the peer whose certificate says `expected`; our hello is ready to be sent.
    pub fn new(local: Hello, expected: NodeId, liveness: Liveness, now: Instant) -> Self {
        Self {
            expected,
            outbox: VecDeque::from([Control::Hello(local.clone())]),
            local,
            liveness,
            phase: Phase::Hello(now + liveness.hello),
            events: VecDeque::new(),
            next_number: 1,
            binding: HashSet::new(),
            bound_by_peer: 0,
            watching: HashSet::new(),
            watched_by_peer: HashSet::new(),
            heartbeat: Heartbeat { sequence: 0, acknowledged: 0, next: now, heard: now, suspect: false },
            going_away: false,
        }
    }

    /// Takes a control frame from the peer.
    ///
    /// # Errors
    /// The code to close the connection with; nothing more is to be passed in.
    pub fn handle(&mut self, now: Instant, frame: Control) -> Result<(), Close> {
        let outcome = self.take(now, frame);
        if outcome.is_err() {
            self.phase = Phase::Closed;
        }
        outcome
    }

    fn take(&mut self, now: Instant, frame: Control) -> Result<(), Close> {
        match (self.phase, frame) {
            (Phase::Closed, _) => Err(Close::Protocol),
            (Phase::Hello(_), Control::Hello(peer)) => self.open(now, peer),
            (Phase::Hello(_), _) | (Phase::Open, Control::Hello(_)) => Err(Close::Protocol),
            (Phase::Open, frame) => self.take_open(now, frame),
        }
    }

    fn open(&mut self, now: Instant, peer: Hello) -> Result<(), Close> {
        if peer.node != self.expected || peer.node.cluster != self.local.node.cluster {
            return Err(Close::Identity);
        }
        let version = self.local.version_max.min(peer.version_max);
        if version < self.local.version_min.max(peer.version_min) {
            return Err(Close::Version);
        }
        if peer.addresses.len() > control::MAX_ADDRESSES || peer.release.len() > control::MAX_RELEASE {
            return Err(Close::Limit);
        }
        self.phase = Phase::Open;
        self.heartbeat = Heartbeat { sequence: 0, acknowledged: 0, next: now + self.liveness.heartbeat, heard: now, suspect: false };
        self.events.push_back(Event::Opened { version, peer });
        Ok(())
    }

    fn take_open(&mut self, now: Instant, frame: Control) -> Result<(), Close> {
        let event = match frame {
            Control::Hello(_) => return Err(Close::Protocol),
            Control::Offers(offers) if offers.names.len() > control::MAX_OFFERS => return Err(Close::Limit),
            Control::Offers(offers) => Event::Offers(offers),
            Control::Bind(bind) => {
                if self.bound_by_peer as usize >= control::MAX_BINDINGS {
                    return Err(Close::Limit);
                }
                self.bound_by_peer += 1;
                Event::Bind(bind)
            }
            Control::Bound { binding, outcome } => {
                if !self.binding.remove(&binding) {
                    return Err(Close::Protocol);
                }
                Event::Bound { binding, outcome }
            }
            Control::Watch { watch, target } => {
                if self.watched_by_peer.len() >= control::MAX_WATCHES {
                    return Err(Close::Limit);
                }
                if !self.watched_by_peer.insert(watch) {
                    return Err(Close::Protocol);
                }
                Event::Watch { watch, target }
            }
            // An unwatch crosses with the down that makes it moot.
            Control::Unwatch { watch } if self.watched_by_peer.remove(&watch) => Event::Unwatch { watch },
            Control::Unwatch { .. } => return Ok(()),
            Control::Down { watch, reason } if self.watching.remove(&watch) => Event::Down { watch, reason },
            Control::Down { .. } => return Ok(()),
            Control::Heartbeat { sequence } => Event::Heartbeat { sequence },
            Control::HeartbeatAck { sequence } => {
                if sequence > self.heartbeat.sequence {
                    return Err(Close::Protocol);
                }
                if sequence > self.heartbeat.acknowledged {
                    self.heartbeat.acknowledged = sequence;
                    self.heartbeat.heard = now;
                }
                if !std::mem::take(&mut self.heartbeat.suspect) {
                    return Ok(());
                }
                Event::Recovered
            }
            Control::Grant { target, units } => Event::Grant { target, units },
            Control::Cancel { correlation } => Event::Cancel { correlation },
            Control::GoAway => Event::GoAway,
            Control::DenyList(text) => Event::DenyList(text),
        };
        self.events.push_back(event);
        Ok(())
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The code to close the connection with.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Close> {
        match self.phase {
            Phase::Closed => Ok(()),
            Phase::Hello(until) if now >= until => {
                self.phase = Phase::Closed;
                Err(Close::Silent)
            }
            Phase::Hello(_) => Ok(()),
            Phase::Open => {
                let silent = now.saturating_duration_since(self.heartbeat.heard);
                if silent >= self.liveness.down {
                    self.phase = Phase::Closed;
                    return Err(Close::Silent);
                }
                if silent >= self.liveness.suspect && !self.heartbeat.suspect {
                    self.heartbeat.suspect = true;
                    self.events.push_back(Event::Suspect);
                }
                if now >= self.heartbeat.next {
                    self.heartbeat.next = now + self.liveness.heartbeat;
                    self.heartbeat.sequence += 1;
                    self.send(Control::Heartbeat { sequence: self.heartbeat.sequence })?;
                }
                Ok(())
            }
        }
    }

    /// When [`Session::handle_timeout`] is to be called next; `None` when the session is closed.
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed => None,
            Phase::Hello(until) => Some(until),
            Phase::Open => {
                let next = if self.heartbeat.suspect { self.liveness.down } else { self.liveness.suspect };
                Some(self.heartbeat.next.min(self.heartbeat.heard + next))
            }
        }
    }

    /// The next control frame to send.
    pub fn poll_transmit(&mut self) -> Option<Control> {
        // Before the peer's hello nothing but ours may go out: it could be of a version that reads the rest differently.
        match self.phase {
            Phase::Hello(_) if !matches!(self.outbox.front(), Some(Control::Hello(_))) => None,
            Phase::Closed => None,
            Phase::Hello(_) | Phase::Open => self.outbox.pop_front(),
        }
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn send(&mut self, frame: Control) -> Result<(), Close> {
        if self.outbox.len() >= MAX_OUTBOX {
            self.phase = Phase::Closed;
            return Err(Close::Limit);
        }
        self.outbox.push_back(frame);
        Ok(())
    }

    fn number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1).max(1);
        number
    }

    /// Tells the peer what this node offers it.
    ///
    /// # Errors
    /// The code to close the connection with, as from every sender below: the peer does not read.
    pub fn offer(&mut self, offers: Offers) -> Result<(), Close> {
        // Only the latest counts: what waits unsent is replaced.
        self.outbox.retain(|frame| !matches!(frame, Control::Offers(_)));
        self.send(Control::Offers(offers))
    }

    /// Asks for the number of `name`; the answer is an [`Event::Bound`] with the returned number.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn bind(&mut self, name: crate::ActorName, protocol: Option<(Box<str>, u16)>) -> Result<u32, Close> {
        let binding = self.number();
        self.binding.insert(binding);
        self.send(Control::Bind(Bind { binding, name, protocol }))?;
        Ok(binding)
    }

    /// Answers an [`Event::Bind`].
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn bound(&mut self, binding: u32, outcome: Result<Bound, NoEffect>) -> Result<(), Close> {
        if outcome.is_err() {
            // A refusal takes no number, so it takes none of the peer's share either.
            self.bound_by_peer = self.bound_by_peer.saturating_sub(1);
        }
        self.send(Control::Bound { binding, outcome })
    }

    /// Asks to be told of a target's death, with an [`Event::Down`] of the returned number; `None` when as many watches
    /// are set as the peer puts up with, which closes the session for one more.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn watch(&mut self, target: u32) -> Result<Option<u32>, Close> {
        // The peer forgets a watch before we do, or reads that we have before it reads of the next: it never counts more.
        if self.watching.len() >= control::MAX_WATCHES {
            return Ok(None);
        }
        let watch = self.number();
        self.watching.insert(watch);
        self.send(Control::Watch { watch, target })?;
        Ok(Some(watch))
    }

    /// Takes back a watch.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn unwatch(&mut self, watch: u32) -> Result<(), Close> {
        if !self.watching.remove(&watch) {
            return Ok(());
        }
        // One that has not been sent never is, so that no number of watches set and dropped at once fills the outbox.
        let unsent = self.outbox.iter().rposition(|frame| matches!(frame, Control::Watch { watch: number, .. } if *number == watch));
        if let Some(at) = unsent {
            self.outbox.remove(at);
            return Ok(());
        }
        self.send(Control::Unwatch { watch })
    }

    /// Answers an [`Event::Watch`] when the target has died; a second answer to the same is not sent.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn down(&mut self, watch: u32, reason: DownReason) -> Result<(), Close> {
        if self.watched_by_peer.remove(&watch) {
            self.send(Control::Down { watch, reason })?;
        }
        Ok(())
    }

    /// Answers an [`Event::Heartbeat`].
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn answer_heartbeat(&mut self, sequence: u64) -> Result<(), Close> {
        // Only the latest counts: a peer that reads again after a pause is not to be sent its backlog.
        self.outbox.retain(|frame| !matches!(frame, Control::HeartbeatAck { .. }));
        self.send(Control::HeartbeatAck { sequence })
    }

    /// Gives the peer room for casts to a target.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn grant(&mut self, target: u32, units: u32) -> Result<(), Close> {
        if let Some(Control::Grant { units: waiting, .. }) =
            self.outbox.iter_mut().rev().take(16).find(|frame| matches!(frame, Control::Grant { target: t, .. } if *t == target))
        {
            *waiting = waiting.saturating_add(units);
            return Ok(());
        }
        self.send(Control::Grant { target, units })
    }

    /// Tells the peer that the caller has given up.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn cancel(&mut self, correlation: u64) -> Result<(), Close> {
        // It saves the peer work and changes no outcome. When thousands of callers give up at once because the path
        // is silent, their cancels must not be what ends a session that would have come back.
        if self.outbox.len() >= MAX_OUTBOX / 2 {
            return Ok(());
        }
        self.send(Control::Cancel { correlation })
    }

    /// Passes a deny list on.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn deny_list(&mut self, text: Box<str>) -> Result<(), Close> {
        // Only the latest counts.
        self.outbox.retain(|frame| !matches!(frame, Control::DenyList(_)));
        self.send(Control::DenyList(text))
    }

    /// Tells the peer to send no new work; what is in flight goes on.
    ///
    /// # Errors
    /// See [`Session::offer`].
    pub fn go_away(&mut self) -> Result<(), Close> {
        if std::mem::replace(&mut self.going_away, true) {
            return Ok(());
        }
        self.send(Control::GoAway)
    }

    /// Whether the peer's hello has arrived and nothing has closed the session since.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the peer is late with its heartbeats.
    pub fn is_suspect(&self) -> bool {
        self.heartbeat.suspect
    }
}

#[cfg(test)]
mod tests;
