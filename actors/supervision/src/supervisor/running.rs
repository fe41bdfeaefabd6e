//! A supervisor's state: carries out what its [`Plan`] decides.

use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use horos_wire::tree::State;
use ractor::{ActorCell, ActorId, ActorRef};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Ended, KILL_GRACE, Look, MAX_CHILDREN, OrderError, Reply, SupervisorMsg, SupervisorSpec,
    child::{AbortOnDrop, ChildSpec, OnStuck, Start, StartError, panic_text},
    plan::{ChildId, Ending, Plan, Step},
};
use crate::vitals::StuckAt;

/// Who waits for what an order leads to. Bounded by the handle's permits.
#[derive(Debug)]
struct Waiter {
    reply: Reply,
    _permit: OwnedSemaphorePermit,
}

impl Waiter {
    fn tell(self, outcome: Result<(), OrderError>) {
        // A caller who gave up does not want to know.
        let _ = self.reply.send(outcome);
    }
}

/// What a child's passed deadline leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Overdue {
    Kill,
    Abandon,
}

#[derive(Debug)]
struct Child {
    spec: ChildSpec,
    cell: Option<ActorCell>,
    /// Counts starts, so that the report of one called off is not taken for the next one's.
    attempt: u64,
    starting: Option<AbortOnDrop<()>>,
    deadline: Option<(Instant, Overdue)>,
    /// Why we killed it; told as the cause of the death that follows.
    killed_for: Option<String>,
    /// It is the one that failed once too often.
    gave_out: bool,
    /// Added by an order and not up yet: forgotten should its start fail.
    added: bool,
    awaiting_up: Vec<Waiter>,
    awaiting_gone: Vec<Waiter>,
}

impl Child {
    fn new(spec: ChildSpec) -> Self {
        Self {
            spec,
            cell: None,
            attempt: 0,
            starting: None,
            deadline: None,
            killed_for: None,
            gave_out: false,
            added: false,
            awaiting_up: Vec::new(),
            awaiting_gone: Vec::new(),
        }
    }
}

/// An actor linked to the supervisor that no start has been reported for yet.
#[derive(Debug)]
struct Unclaimed {
    cell: ActorCell,
    death: Option<Death>,
}

/// ractor's word on an end: an error, or the reason of a stop.
type Death = Result<Option<String>, String>;

/// The state of a running [`Supervisor`](super::Supervisor).
#[derive(Debug)]
pub(super) struct Running {
    me: ActorRef<SupervisorMsg>,
    spec: SupervisorSpec,
    plan: Plan,
    children: BTreeMap<ChildId, Child>,
    by_cell: HashMap<ActorId, ChildId>,
    next_id: u64,
    /// At most one a start under way: emptied when none is.
    unclaimed: Vec<Unclaimed>,
    timer: Option<(Instant, AbortOnDrop<()>)>,
    failure: Option<Arc<str>>,
    ended: Ended,
}

impl Running {
    pub(super) fn new(me: ActorRef<SupervisorMsg>, spec: SupervisorSpec) -> Self {
        spec.subtree.begin(me.clone(), &spec.children);
        let plan = Plan::new(spec.strategy, spec.intensity, spec.backoff, StdRng::from_rng(&mut rand::rng()));
        Self {
            me,
            plan,
            children: BTreeMap::new(),
            by_cell: HashMap::new(),
            next_id: 0,
            unclaimed: Vec::new(),
            timer: None,
            failure: None,
            ended: Ended::Killed,
            spec,
        }
    }

    /// Starts the specified children one after the other. Part of the supervisor's own start.
    pub(super) async fn start_all(&mut self) -> Result<(), StartError> {
        for spec in self.spec.children.clone() {
            if self.children.values().any(|child| child.spec.name == spec.name) {
                return Err(StartError::new(format!("two children are called {:?}", spec.name)));
            }
            let (name, restart, vitals) = (spec.name.clone(), spec.restart, Arc::clone(&spec.vitals));
            let id = self.insert(spec);
            vitals.starting(if vitals.lives() == 0 { State::Starting } else { State::Restarting });
            let begin = begin(&self.children[&id].spec, self.me.get_cell(), self.spec.start_within);
            match begin.await {
                Ok(cell) => {
                    self.claim(id, cell);
                    self.plan.running(id, restart);
                }
                Err(error) => {
                    vitals.died(&error.to_string());
                    vitals.set_state(State::Failed);
                    self.children.remove(&id);
                    return Err(StartError::new(format!("{name}: {error}")));
                }
            }
        }
        Ok(())
    }

    /// All specified children run.
    pub(super) fn ready(&self) {
        self.spec.vitals.started();
    }

    pub(super) fn progressed(&self) {
        self.spec.vitals.progressed(Instant::now());
    }

    /// Stops all children in reverse start order, each within its deadline. The supervisor's own end.
    pub(super) async fn stop_all(&mut self) {
        self.timer = None;
        while let Some((_, mut child)) = self.children.pop_last() {
            let patience = child.spec.patience();
            if let Some(mut task) = child.starting.take() {
                // No message is read any more: an actor started now is found among the supervisor's links below.
                let _ = tokio::time::timeout(patience, &mut task.0).await;
            }
            let strangers = self.linked_strangers();
            let vitals = &child.spec.vitals;
            if child.cell.is_none() && strangers.is_empty() {
                vitals.set_state(if child.gave_out { State::Failed } else { State::Stopped });
            }
            for cell in child.cell.iter().chain(&strangers) {
                // Unlinked, it drops its state with its own end; else the state would lie in our unread mail until ours.
                cell.unlink(self.me.get_cell());
                match stop(&child.spec.name, cell, patience).await {
                    Ok(()) => vitals.stopped("its supervisor stopped"),
                    Err(cause) => {
                        vitals.died(cause);
                        vitals.set_state(State::Stopped);
                    }
                }
            }
        }
        self.ended = match &self.failure {
            None => Ended::Stopped,
            Some(reason) => Ended::Failed(Arc::clone(reason)),
        };
    }

    /// Actors linked to the supervisor that belong to none of the children left: those of the start just waited for.
    fn linked_strangers(&self) -> Vec<ActorCell> {
        let mut cells = self.me.get_children();
        cells.retain(|cell| !self.by_cell.contains_key(&cell.get_id()));
        cells
    }

    /// The supervisor is to end in an error.
    pub(super) fn fail(&mut self, reason: &str) {
        self.failure = Some(reason.into());
    }

    /// What the parent is to see.
    pub(super) fn verdict(&self) -> Result<(), String> {
        self.failure.as_ref().map_or(Ok(()), |reason| Err(reason.to_string()))
    }

    pub(super) fn add(&mut self, spec: ChildSpec, permit: OwnedSemaphorePermit, reply: Reply) {
        let waiter = Waiter { reply, _permit: permit };
        if self.failure.is_some() {
            return waiter.tell(Err(OrderError::Stopped));
        }
        if self.find(&spec.name).is_some() {
            return waiter.tell(Err(OrderError::NameTaken(spec.name)));
        }
        if self.children.len() >= MAX_CHILDREN {
            return waiter.tell(Err(OrderError::Full));
        }
        let restart = spec.restart;
        self.spec.subtree.push(&spec);
        let id = self.insert(spec);
        if let Some(child) = self.children.get_mut(&id) {
            child.added = true;
            child.awaiting_up.push(waiter);
        }
        let steps = self.plan.add(id, restart, Instant::now());
        self.carry_out(steps);
    }

    pub(super) fn remove(&mut self, name: &str, permit: OwnedSemaphorePermit, reply: Reply) {
        let waiter = Waiter { reply, _permit: permit };
        let Some(id) = self.find(name) else { return waiter.tell(Err(OrderError::NoSuchChild(name.into()))) };
        if let Some(child) = self.children.get_mut(&id) {
            child.awaiting_gone.push(waiter);
        }
        let now = Instant::now();
        let steps = self.plan.remove(id, now);
        self.carry_out(steps);
        if let Some(child) = self.children.get_mut(&id)
            && self.plan.is_stopping(id)
            && child.deadline.is_none()
        {
            // It was killed in vain and a restart waited for it without limit; a removal does not.
            child.deadline = now.checked_add(KILL_GRACE).map(|at| (at, Overdue::Abandon));
            self.arm();
        }
    }

    pub(super) fn restart(&mut self, name: &str, permit: OwnedSemaphorePermit, reply: Reply) {
        let waiter = Waiter { reply, _permit: permit };
        let Some(id) = self.find(name) else { return waiter.tell(Err(OrderError::NoSuchChild(name.into()))) };
        if let Some(child) = self.children.get_mut(&id) {
            child.awaiting_up.push(waiter);
        }
        let steps = self.plan.restart(id, Instant::now());
        self.carry_out(steps);
    }

    pub(super) fn crash(&mut self, name: &str, permit: OwnedSemaphorePermit, reply: Reply) {
        let waiter = Waiter { reply, _permit: permit };
        let Some(id) = self.find(name) else { return waiter.tell(Err(OrderError::NoSuchChild(name.into()))) };
        waiter.tell(if self.kill(id, "crashed on request") { Ok(()) } else { Err(OrderError::NotRunning(name.into())) });
    }

    pub(super) fn stuck(&mut self, id: ChildId, at: &StuckAt) {
        let Some(child) = self.children.get(&id) else { return };
        // It may have come free, or even died, since the watchdog looked.
        if child.spec.on_stuck == OnStuck::Report || !child.spec.vitals.still_at(at.since) {
            return;
        }
        let cause = format!("stuck at {}: killed", at.method);
        tracing::warn!(actor = %child.spec.name, method = at.method, "is killed for being stuck");
        self.kill(id, &cause);
    }

    /// Kills a running child; the death that follows is told as `cause`.
    fn kill(&mut self, id: ChildId, cause: &str) -> bool {
        if self.plan.is_stopping(id) {
            return false;
        }
        let Some(child) = self.children.get_mut(&id) else { return false };
        let Some(cell) = &child.cell else { return false };
        child.killed_for = Some(cause.to_owned());
        cell.kill();
        true
    }

    /// A start's task is done.
    pub(super) fn started(&mut self, id: ChildId, attempt: u64, outcome: Result<ActorCell, StartError>) {
        let now = Instant::now();
        let current = self.children.get_mut(&id).filter(|child| child.attempt == attempt && child.starting.is_some());
        let Some(child) = current else {
            // Called off and given up, and there it is after all.
            if let Ok(cell) = outcome {
                cell.kill();
            }
            return;
        };
        child.starting = None;
        let steps = match outcome {
            Ok(cell) if self.plan.is_stopping(id) => {
                // Called off while it started: let it go as any running child. Its deadline runs already.
                cell.stop(None);
                self.claim(id, cell);
                Vec::new()
            }
            Ok(cell) => {
                self.claim(id, cell);
                let child = self.children.get_mut(&id).expect("looked up above, and claiming forgets nobody");
                child.added = false;
                child.awaiting_up.drain(..).for_each(|waiter| waiter.tell(Ok(())));
                self.plan.up(id, now)
            }
            Err(_) if self.plan.is_stopping(id) => {
                child.deadline = None;
                let vitals = Arc::clone(&child.spec.vitals);
                let steps = self.plan.ended(id, Ending::Normal, now);
                vitals.stopped_until("its start was called off", self.between_lives(id));
                steps
            }
            Err(error) => {
                let name = child.spec.name.clone();
                tracing::warn!(actor = %name, %error, "cannot be started");
                child.spec.vitals.died(&error.to_string());
                for waiter in child.awaiting_up.drain(..) {
                    waiter.tell(Err(OrderError::Start { name: name.clone(), source: error.clone() }));
                }
                if child.added {
                    child.spec.vitals.set_state(State::Stopped);
                    self.plan.remove_unstarted(id, now)
                } else {
                    child.spec.vitals.set_state(State::Restarting);
                    let steps = self.plan.start_failed(id, now);
                    self.settle_failure(id, &error.to_string());
                    steps
                }
            }
        };
        self.carry_out(steps);
        self.settle_unclaimed();
    }

    /// An actor linked itself to the supervisor: a child's start of which the report is still under way, or a leftover.
    pub(super) fn appeared(&mut self, cell: ActorCell) {
        if self.by_cell.contains_key(&cell.get_id()) {
            return;
        }
        self.unclaimed.push(Unclaimed { cell, death: None });
        self.settle_unclaimed();
    }

    /// ractor reports an end.
    pub(super) fn ended(&mut self, cell: &ActorCell, death: Death) {
        if let Some(id) = self.by_cell.remove(&cell.get_id()) {
            self.bury(id, death);
        } else if let Some(unclaimed) = self.unclaimed.iter_mut().find(|unclaimed| unclaimed.cell == *cell) {
            // Dead before its start was reported.
            unclaimed.death = Some(death);
        }
    }

    fn bury(&mut self, id: ChildId, death: Death) {
        let now = Instant::now();
        let asked = self.plan.is_stopping(id);
        let Some(child) = self.children.get_mut(&id) else { return };
        child.cell = None;
        child.deadline = None;
        let killed_for = child.killed_for.take();
        let (ending, cause) = match death {
            Err(error) => (Ending::Abnormal, error),
            // ractor's words for a kill and for a task that was dropped with its runtime.
            Ok(Some(word)) if word == "killed" || word == "actor_task_cancelled" => (Ending::Abnormal, killed_for.unwrap_or(word)),
            Ok(reason) => (Ending::Normal, reason.unwrap_or_else(|| "stopped".to_owned())),
        };
        let vitals = Arc::clone(&child.spec.vitals);
        if ending == Ending::Abnormal {
            vitals.died(&cause);
            if !asked {
                tracing::warn!(actor = %child.spec.name, cause, "died");
            }
        }
        let steps = self.plan.ended(id, ending, now);
        self.settle_failure(id, &cause);
        let state = self.between_lives(id);
        match ending {
            Ending::Abnormal => vitals.set_state(state),
            Ending::Normal => vitals.stopped_until(&cause, state),
        }
        self.carry_out(steps);
    }

    /// What a child is whose life has just ended.
    fn between_lives(&self, id: ChildId) -> State {
        if self.plan.returns(id) && self.failure.is_none() { State::Restarting } else { State::Stopped }
    }

    /// Keeps the last failure at hand for the case that it was one too many.
    fn settle_failure(&mut self, id: ChildId, cause: &str) {
        if !self.plan.has_failed() || self.failure.is_some() {
            return;
        }
        let Some(child) = self.children.get_mut(&id) else { return };
        let rule = self.spec.intensity;
        child.gave_out = true;
        self.failure =
            Some(format!("{} failed more than {} times in {:?}, lastly: {cause}", child.spec.name, rule.max, rule.within).into());
    }

    /// A deadline or a backoff has passed.
    pub(super) fn look(&mut self) {
        self.timer = None;
        let now = Instant::now();
        let overdue: Vec<ChildId> =
            self.children.iter().filter(|(_, child)| child.deadline.is_some_and(|(at, _)| at <= now)).map(|(id, _)| *id).collect();
        for id in overdue {
            self.overdue(id, now);
        }
        let steps = self.plan.advance(now);
        self.carry_out(steps);
    }

    fn overdue(&mut self, id: ChildId, now: Instant) {
        let returns = self.plan.returns(id);
        let Some(child) = self.children.get_mut(&id) else { return };
        let name = &child.spec.name;
        match child.deadline.take() {
            Some((_, Overdue::Kill)) => {
                tracing::warn!(actor = %name, "did not stop in time and is killed");
                child.killed_for = Some("did not stop in time: killed".to_owned());
                match &child.cell {
                    Some(cell) => cell.kill(),
                    None => child.starting = None,
                }
                child.deadline = now.checked_add(KILL_GRACE).map(|at| (at, Overdue::Abandon));
            }
            Some((_, Overdue::Abandon)) if returns && child.cell.is_some() => {
                // Its successor must not run beside it. It stays shown as what it is.
                tracing::error!(actor = %name, "blocks its thread and cannot be killed: it is not restarted until it yields");
                child.spec.vitals.set_state(State::Stuck);
            }
            Some((_, Overdue::Abandon)) => {
                if let Some(cell) = child.cell.take() {
                    tracing::error!(actor = %name, "blocks its thread and cannot be killed: it is abandoned");
                    cell.unlink(self.me.get_cell());
                    self.by_cell.remove(&cell.get_id());
                }
                child.starting = None;
                child.spec.vitals.died("abandoned: it could not be killed");
                child.spec.vitals.set_state(State::Stopped);
                let steps = self.plan.ended(id, Ending::Abnormal, now);
                self.carry_out(steps);
            }
            None => {}
        }
    }

    fn carry_out(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Start(id) => self.start(id),
                Step::Stop(id) => self.stop(id),
                Step::Forget(id) => self.forget(id),
                Step::Fail(_) => {
                    tracing::error!(supervisor = %self.spec.vitals.name(), failure = self.failure.as_deref(), "gives up");
                    // ractor now runs `post_stop`, which stops the children and ends in the error.
                    self.me.stop(None);
                }
            }
        }
        self.arm();
    }

    fn start(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id) else { return };
        child.attempt += 1;
        let (me, attempt) = (self.me.clone(), child.attempt);
        child.spec.vitals.starting(if child.spec.vitals.lives() == 0 { State::Starting } else { State::Restarting });
        let begin = begin(&child.spec, me.get_cell(), self.spec.start_within);
        child.starting = Some(AbortOnDrop(tokio::spawn(async move {
            let outcome = begin.await;
            // Without a supervisor there is nobody to report to, and its links are cut.
            let _ = me.cast(SupervisorMsg::Started { id, attempt, outcome });
        })));
    }

    fn stop(&mut self, id: ChildId) {
        let Some(child) = self.children.get_mut(&id) else { return };
        if let Some(cell) = &child.cell {
            cell.stop(None);
        }
        // A start under way is awaited, not called off: its actor would be started by nobody.
        child.deadline = Instant::now().checked_add(child.spec.patience()).map(|at| (at, Overdue::Kill));
    }

    fn forget(&mut self, id: ChildId) {
        let Some(child) = self.children.remove(&id) else { return };
        self.spec.subtree.remove(&child.spec.name);
        child.spec.vitals.set_state(State::Stopped);
        for waiter in child.awaiting_up {
            waiter.tell(Err(OrderError::Overtaken(child.spec.name.clone())));
        }
        child.awaiting_gone.into_iter().for_each(|waiter| waiter.tell(Ok(())));
    }

    fn insert(&mut self, spec: ChildSpec) -> ChildId {
        let id = ChildId(self.next_id);
        self.next_id += 1;
        let me = self.me.clone();
        spec.vitals.raise(move |at| {
            // A supervisor that is gone has nothing to decide.
            let _ = me.cast(SupervisorMsg::Stuck { id, at });
        });
        self.children.insert(id, Child::new(spec));
        id
    }

    fn find(&self, name: &str) -> Option<ChildId> {
        self.children.iter().find(|(_, child)| &*child.spec.name == name).map(|(id, _)| *id)
    }

    /// Takes a started actor for its child; one that has died already is buried at once.
    fn claim(&mut self, id: ChildId, cell: ActorCell) {
        let Some(child) = self.children.get_mut(&id) else { return };
        child.spec.vitals.started();
        self.by_cell.insert(cell.get_id(), id);
        child.cell = Some(cell.clone());
    }

    /// Buries those who died before they were claimed, and kills those whom nobody can claim any more.
    fn settle_unclaimed(&mut self) {
        let claimed: Vec<Unclaimed>;
        (claimed, self.unclaimed) =
            std::mem::take(&mut self.unclaimed).into_iter().partition(|unclaimed| self.by_cell.contains_key(&unclaimed.cell.get_id()));
        for Unclaimed { cell, death } in claimed {
            if let Some(death) = death {
                self.ended(&cell, death);
            }
        }
        if self.children.values().all(|child| child.starting.is_none()) {
            self.unclaimed.drain(..).for_each(|unclaimed| unclaimed.cell.kill());
        }
    }

    /// Sets the timer to the earliest deadline.
    fn arm(&mut self) {
        let deadlines = self.children.values().filter_map(|child| child.deadline).map(|(at, _)| at);
        let next = deadlines.chain(self.plan.next()).min();
        if self.timer.as_ref().map(|(at, _)| *at) == next {
            return;
        }
        self.timer = next.map(|at| {
            let me = self.me.clone();
            let task = tokio::spawn(async move {
                tokio::time::sleep_until(at.into()).await;
                let _ = me.cast(SupervisorMsg::Look(Look(())));
            });
            (at, AbortOnDrop(task))
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Killed: ractor has killed the children, but nobody has written it down.
        for child in self.children.values() {
            if child.cell.is_some() {
                child.spec.vitals.died("its supervisor was killed");
            }
            child.spec.vitals.set_state(State::Stopped);
        }
        let vitals = &self.spec.vitals;
        match &self.ended {
            Ended::Stopped => vitals.stopped("stopped"),
            Ended::Failed(reason) => {
                vitals.died(reason);
                vitals.set_state(State::Failed);
            }
            Ended::Killed => {
                vitals.died("killed");
                vitals.set_state(State::Failed);
            }
        }
        self.spec.subtree.end(self.ended.clone());
    }
}

/// A child's start: a panic in it is a failure, and so is taking longer than `within`.
fn begin(spec: &ChildSpec, supervisor: ActorCell, within: Duration) -> impl Future<Output = Result<ActorCell, StartError>> + Send + use<> {
    let (start, given) = (Arc::clone(&spec.start), Start { supervisor, vitals: Arc::clone(&spec.vitals) });
    async move {
        let attempt = AssertUnwindSafe(async move { start(given).await }).catch_unwind();
        match tokio::time::timeout(within, attempt).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => Err(StartError::new(panic_text(&*panic))),
            Err(_) => Err(StartError::new(format!("did not start within {within:?}"))),
        }
    }
}

/// Stops an actor within `patience`, else kills it, else abandons it; the error says which.
///
/// # Cancel safety
/// Dropping the future kills the actor.
async fn stop(name: &str, cell: &ActorCell, patience: Duration) -> Result<(), &'static str> {
    let _guard = KillOnDrop(cell);
    cell.stop(None);
    if tokio::time::timeout(patience, cell.wait(None)).await.is_ok() {
        return Ok(());
    }
    tracing::warn!(actor = %name, "did not stop in time and is killed");
    cell.kill();
    if tokio::time::timeout(KILL_GRACE, cell.wait(None)).await.is_ok() {
        return Err("did not stop in time: killed");
    }
    tracing::error!(actor = %name, "blocks its thread and cannot be killed: it is abandoned");
    Err("abandoned: it could not be killed")
}

/// Kills an actor that nobody looks after any more; has no effect on one that has ended.
struct KillOnDrop<'a>(&'a ActorCell);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        self.0.kill();
    }
}
