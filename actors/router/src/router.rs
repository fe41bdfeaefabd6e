//! The node's router: the table of routes in force, and calls by it.
//!
//! The table is swapped whole. Whoever calls takes what is in force at that moment and holds it until the call has ended, so a
//! change disturbs no call in hand and the next one goes by it. A row that is wrong leaves in force what was there before.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use horos_supervision::{Context, Deadline, Exchange};
use horos_wire::{CallError, NoEffect, Protocol, Scope, Unknown};
use parking_lot::Mutex;

use crate::{
    balance::Locality,
    breaker::Breakers,
    call::{JSON, Routed, Untyped, drive},
    config::{Payload, Problem},
    service::{Distance, Service},
    spec::{Row, Spec},
    strategy::{Answer, Message, Strategies, Target},
};

/// The routes of one node. Cheap to clone.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    exchange: Exchange,
    strategies: Strategies,
    breakers: Breakers,
    table: ArcSwap<Table>,
    /// Counts tables, so that whoever has looked a service up knows whether to look again.
    generation: AtomicU64,
    /// One at a time makes the next table.
    making: Mutex<()>,
}

/// By the names of their services.
pub(crate) type Table = HashMap<Arc<str>, Arc<Entry>>;

/// A row as it was found.
pub(crate) enum Found {
    /// As it was before, to the last byte, and right.
    Same(Arc<Entry>),
    /// New, another, or still wrong.
    Row(Row),
}

/// A service that has a row.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The service's name, which the table shares.
    pub(crate) name: Arc<str>,
    /// The row as it stands.
    pub(crate) row: Row,
    /// The route in force: of this row, or of the last that was right; none if none was.
    pub(crate) service: Option<Arc<Service>>,
    /// The row that it was made of.
    pub(crate) in_force: Option<Row>,
    /// What is wrong with the row, and since when that is known.
    pub(crate) wrong: Option<(Vec<Problem>, SystemTime)>,
}

/// What taking up rows has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Routes that are new or others than before.
    pub changed: usize,
    /// Routes that are gone.
    pub gone: usize,
    /// Rows that are wrong. Some may be right later, when what they need is there.
    pub wrong: usize,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Router({} routes)", self.0.table.load().len())
    }
}

impl Router {
    /// What its rows may name.
    pub fn strategies(&self) -> &Strategies {
        &self.0.strategies
    }

    /// Without any route yet.
    pub fn new(exchange: Exchange, strategies: Strategies, breakers: Breakers) -> Self {
        Self(Arc::new(Inner {
            exchange,
            strategies,
            breakers,
            table: ArcSwap::default(),
            generation: AtomicU64::new(1),
            making: Mutex::default(),
        }))
    }

    /// The service called `name`, typed by its protocol: each call goes where its route leads then.
    pub fn at<P: Protocol>(&self, context: &Context, name: &str) -> Routed<P> {
        Routed::new(self.clone(), context.clone(), name)
    }

    /// Calls the service `name` with `{"method": {…}}`, and answers in JSON.
    ///
    /// # Errors
    /// As [`Routed::call`]; the callee's own error is JSON too.
    pub async fn call_json(
        &self,
        context: &Context,
        name: &str,
        message: &str,
        deadline: impl Into<Deadline>,
    ) -> Result<serde_json::Value, CallError<serde_json::Value>> {
        let read = |body: &Bytes| serde_json::from_slice(body).map_err(|error| Unknown::MalformedReply(error.to_string().into()));
        let kind = Untyped { router: self, context, service: name, payload: Payload::Json };
        let message = Message { content_type: JSON.into(), body: Bytes::copy_from_slice(message.as_bytes()), idempotent: false };
        match drive(&kind, message, deadline.into()).await {
            Ok(answer) => Ok(read(&answer.body)?),
            Err(CallError::Failed(body)) => Err(read(&body).map_or_else(CallError::Unknown, CallError::Failed)),
            Err(CallError::NoEffect(why)) => Err(why.into()),
            Err(CallError::Unknown(why)) => Err(why.into()),
        }
    }

    /// Calls the service `name` with bytes that only it understands.
    ///
    /// # Errors
    /// As [`Routed::call`]; the callee's own error is JSON, of an actor that of [`Refused`](horos_wire::protocol::bytes::Refused).
    pub async fn call_bytes(
        &self,
        context: &Context,
        name: &str,
        content_type: &str,
        body: Bytes,
        deadline: impl Into<Deadline>,
    ) -> Result<Answer, CallError<Bytes>> {
        let kind = Untyped { router: self, context, service: name, payload: Payload::Bytes };
        drive(&kind, Message { content_type: content_type.into(), body, idempotent: false }, deadline.into()).await
    }

    /// Whether there is a row for the service `name`, right or wrong.
    pub fn is_routed(&self, name: &str) -> bool {
        self.0.table.load().contains_key(name)
    }

    /// Makes `rows` the routes in force: checks each that is new, opens it beside the old, and swaps. Those that mean what they meant
    /// before are not touched, and calls in hand end by the route that they began with.
    pub fn take_up(&self, rows: Vec<Row>) -> Taken {
        let taken: Result<_, std::convert::Infallible> = self.take(|_| Ok(rows.into_iter().map(Found::Row).collect()));
        match taken {
            Ok(taken) => taken,
            Err(never) => match never {},
        }
    }

    /// The same with the rows that `read` finds, which is told what they were before. One at a time reads and takes up: what was
    /// read before can never come after what was read later.
    pub(crate) fn take<E>(&self, read: impl FnOnce(&Table) -> Result<Vec<Found>, E>) -> Result<Taken, E> {
        let _making = self.0.making.lock();
        let old = self.0.table.load_full();
        let rows = read(&old)?;
        let mut table = Table::with_capacity(rows.len());
        let mut taken = Taken::default();
        // Names that are new, and entries that have another in their place: as a rule few, and nothing else is looked up twice.
        let (mut fresh, mut replaced) = (0, Vec::new());
        for found in rows {
            let row = match found {
                Found::Same(known) => {
                    table.insert(known.name.clone(), known);
                    continue;
                }
                Found::Row(row) => row,
            };
            let known = old.get(&*row.service);
            let entry = match known {
                Some(known) if known.row == row && known.wrong.is_none() => known.clone(),
                Some(known) if known.row.means(&row) && known.wrong.is_none() => {
                    let (name, service, in_force) = (known.name.clone(), known.service.clone(), Some(row.clone()));
                    Arc::new(Entry { name, row, service, in_force, wrong: None })
                }
                known => {
                    let entry = self.entry(row, known.map(|known| &**known));
                    let same = known.is_some_and(|known| entry.wrong.is_some() && known.row.means(&entry.row));
                    taken.changed += usize::from(!same);
                    Arc::new(entry)
                }
            };
            taken.wrong += usize::from(entry.wrong.is_some());
            replaced.extend(known.cloned());
            let first = table.insert(entry.name.clone(), entry).is_none();
            fresh += usize::from(known.is_none() && first);
        }
        let stayed = table.len() - fresh;
        let retired: Vec<_> =
            if stayed == old.len() { Vec::new() } else { old.values().filter(|entry| !table.contains_key(&entry.name)).cloned().collect() };
        taken.gone = retired.len();
        // Of two rows of one name, which no table of ours has, the last is in force.
        let last = replaced.into_iter().filter_map(|was| Some((table.get(&was.name)?.clone(), was)));
        let replaced: Vec<_> = last.filter(|(is, was)| !Arc::ptr_eq(was, is)).map(|(is, was)| (was, is)).collect();
        if taken.changed + taken.gone > 0 || !replaced.is_empty() {
            self.0.table.store(Arc::new(table));
            self.0.generation.fetch_add(1, Ordering::Release);
        }
        // Only what nobody can be led to any more.
        for (was, is) in replaced.iter().map(|(was, is)| (was, Some(is))).chain(retired.iter().map(|was| (was, None))) {
            let kept =
                |key: &str| is.and_then(|is| is.service.as_ref()).is_some_and(|is| is.endpoints().iter().any(|one| *one.key == *key));
            for endpoint in was.service.iter().flat_map(|service| service.endpoints()).filter(|endpoint| !kept(&endpoint.key)) {
                self.0.breakers.retire(&was.row.service, &endpoint.key);
            }
        }
        Ok(taken)
    }

    fn entry(&self, row: Row, known: Option<&Entry>) -> Entry {
        let before = known.and_then(|known| known.service.as_ref());
        let opened = Spec::new(row.clone(), &self.0.strategies)
            .and_then(|spec| Service::open(&spec, &self.0.strategies, &self.0.breakers, self, before.map(|before| &**before)));
        let name = known.map_or_else(|| Arc::from(&*row.service), |known| known.name.clone());
        match opened {
            Ok(service) => Entry { name, in_force: Some(row.clone()), row, service: Some(Arc::new(service)), wrong: None },
            Err(problems) => {
                let same = known.filter(|known| known.row.means(&row)).and_then(|known| known.wrong.as_ref());
                let since = same.map_or_else(SystemTime::now, |(_, since)| *since);
                if same.is_none_or(|(known, _)| *known != problems) {
                    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                    tracing::warn!(service = %row.service, problems = text, serves = before.is_some(), "a route is wrong; what was right before it stays in force");
                }
                let in_force = known.and_then(|known| known.in_force.clone());
                Entry { name, row, service: before.cloned(), in_force, wrong: Some((problems, since)) }
            }
        }
    }

    /// The route in force for `name`.
    pub(crate) fn service(&self, name: &str) -> Result<Arc<Service>, NoEffect> {
        match self.0.table.load().get(name) {
            Some(entry) => {
                let none = || {
                    NoEffect::NoSuchActor(
                        format!("{name}: its route is wrong, and none before it was right; `horos routes inspect {name}` says why").into(),
                    )
                };
                entry.service.clone().ok_or_else(none)
            }
            None => Service::unrouted(name).map(Arc::new),
        }
    }

    /// What is wrong with the rows, in a line: which do not make sense, and why the first of them does not.
    pub(crate) fn trouble(&self) -> Option<String> {
        let table = self.0.table.load();
        let mut wrong: Vec<_> = table.values().filter_map(|entry| Some((&entry.row.service, entry.wrong.as_ref()?))).collect();
        wrong.sort_unstable_by_key(|(service, _)| *service);
        let (service, (problems, _)) = wrong.first()?;
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        let more = if wrong.len() > 1 { format!("; {} more rows are wrong", wrong.len() - 1) } else { String::new() };
        Some(format!("the row of {service} is wrong: {first}{more}"))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.0.table.load_full()
    }

    pub(crate) fn breakers(&self) -> &Breakers {
        &self.0.breakers
    }
}

impl Distance for Router {
    fn to(&self, target: &Target) -> Locality {
        let here = self.0.exchange.node();
        match target {
            Target::Nobody(_) | Target::Here(_) => Locality::Node,
            Target::Transport(_) => Locality::Elsewhere,
            Target::Actor(address) => match &address.scope {
                Scope::Any if self.0.exchange.find(&address.name).is_some() => Locality::Node,
                Scope::Node(node) if *node == here.name => Locality::Node,
                Scope::Role(role) if *role == here.role => Locality::Role,
                Scope::Any | Scope::Node(_) | Scope::Role(_) => Locality::Elsewhere,
            },
        }
    }
}

/// Calls by route, from wherever a [`Context`] is.
pub trait Routes {
    /// The service called `name`, typed by its protocol: each call goes where its route leads then. On a node without a router it is
    /// the actor of that name.
    fn routed<P: Protocol>(&self, name: &str) -> Routed<P>;
}

impl Routes for Context {
    fn routed<P: Protocol>(&self, name: &str) -> Routed<P> {
        let exchange = self.exchange();
        let router = exchange.attached::<Router>().map_or_else(
            || Router::new(exchange.clone(), Strategies::builtin(), Breakers::new(None, Arc::new(|_, _| {}))),
            |router| Router::clone(&router),
        );
        router.at(self, name)
    }
}
