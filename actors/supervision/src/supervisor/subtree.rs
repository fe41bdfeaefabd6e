//! What stands below a supervisor, readable by anyone without asking it.
//!
//! Written by the supervisor as children come and go, behind a lock held for a list's change; read by
//! `tree`, also while the supervisor's runtime is blocked.

use std::{sync::Arc, time::Duration};

use horos_wire::tree;
use parking_lot::{Mutex, RwLock};
use ractor::ActorRef;
use tokio::sync::{Semaphore, watch};

use super::{
    Ended, KILL_GRACE, MAX_ORDERS, SupervisorMsg,
    child::{ChildSpec, patience},
};
use crate::vitals::Vitals;

#[derive(Debug)]
pub(crate) struct Subtree {
    children: RwLock<Vec<Slot>>,
    /// The living supervisor.
    actor: Mutex<Option<ActorRef<SupervisorMsg>>>,
    /// Admission of orders: ractor's own queue has no bound.
    pub(crate) gate: Arc<Semaphore>,
    /// How the last life ended; `None` during one.
    pub(crate) ended: watch::Sender<Option<Ended>>,
}

impl Subtree {
    pub(crate) fn new(children: &[ChildSpec]) -> Arc<Self> {
        Arc::new(Self {
            children: RwLock::new(children.iter().map(Slot::of).collect()),
            actor: Mutex::new(None),
            gate: Arc::new(Semaphore::new(MAX_ORDERS)),
            ended: watch::Sender::new(None),
        })
    }

    /// A life begins, with the children it was specified with.
    pub(crate) fn begin(&self, actor: ActorRef<SupervisorMsg>, children: &[ChildSpec]) {
        *self.children.write() = children.iter().map(Slot::of).collect();
        *self.actor.lock() = Some(actor);
        self.ended.send_replace(None);
    }

    pub(crate) fn end(&self, ended: Ended) {
        *self.actor.lock() = None;
        self.ended.send_replace(Some(ended));
    }

    pub(crate) fn actor(&self) -> Option<ActorRef<SupervisorMsg>> {
        self.actor.lock().clone()
    }

    pub(crate) fn push(&self, child: &ChildSpec) {
        self.children.write().push(Slot::of(child));
    }

    pub(crate) fn remove(&self, name: &str) {
        self.children.write().retain(|child| &*child.name != name);
    }

    pub(crate) fn snapshots(&self) -> Vec<tree::Actor> {
        self.vitals().iter().map(|vitals| snapshot(vitals)).collect()
    }

    /// The slot of that name or path (`edge/session-3`), first among the children, then deeper.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Vitals>> {
        let children = self.vitals();
        if let Some(found) = children.iter().find(|vitals| vitals.name() == name) {
            return Some(Arc::clone(found));
        }
        if let Some((first, rest)) = name.split_once('/') {
            let child = children.iter().find(|vitals| vitals.name() == first)?;
            return child.subtree()?.find(rest);
        }
        children.iter().find_map(|vitals| vitals.subtree()?.find(name))
    }

    /// How long stopping all children one after the other may take.
    pub(crate) fn patience(&self) -> Duration {
        let children: Vec<Slot> = self.children.read().clone();
        let each = children.iter().map(|child| child.patience().saturating_add(KILL_GRACE));
        each.fold(KILL_GRACE, Duration::saturating_add)
    }

    /// Copied out, so that no two levels' locks are held at once.
    fn vitals(&self) -> Vec<Arc<Vitals>> {
        self.children.read().iter().map(|child| Arc::clone(&child.vitals)).collect()
    }
}

/// What of a child is known above it. Not its specification: whoever holds the supervisor's handle would hold what the
/// child is started from, and that may hold the handle.
#[derive(Clone, Debug)]
struct Slot {
    name: Box<str>,
    vitals: Arc<Vitals>,
    shutdown: Duration,
}

impl Slot {
    fn of(child: &ChildSpec) -> Self {
        Self { name: child.name.clone(), vitals: Arc::clone(&child.vitals), shutdown: child.shutdown }
    }

    fn patience(&self) -> Duration {
        patience(&self.vitals, self.shutdown)
    }
}

/// `vitals` as data, with all that stands below.
pub(crate) fn snapshot(vitals: &Vitals) -> tree::Actor {
    let mut actor = vitals.snapshot();
    if let Some(subtree) = vitals.subtree() {
        actor.children = subtree.snapshots();
    }
    actor
}
