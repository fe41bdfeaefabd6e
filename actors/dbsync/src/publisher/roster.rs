//! Who is subscribed to a publication: leases, and counters for people. Plain values behind a lock that is never held over an await.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use horos_wire::{
    NodeName,
    protocol::sync::{self, FeedState, NodeVerify, SubscriberStatus, VerifyReport},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{build::Job, capture::Position, source::View};

/// What a subscriber last said of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) have: Option<Position>,
    pub(crate) known: BTreeMap<String, [u8; 16]>,
    pub(crate) resume: bool,
}

/// A comparison of everything, by order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walk {
    pub(crate) run: u64,
    pub(crate) chunks: u64,
    pub(crate) total: u64,
    pub(crate) rows: u64,
    pub(crate) mismatches: u64,
    pub(crate) repaired: u64,
    pub(crate) done: bool,
}

/// How a feed is getting on. Written by the feed, read by whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// What the subscriber has, as far as is known.
    pub(crate) position: Option<Position>,
    /// Whether something is on its way to it.
    pub(crate) sending: bool,
    /// Since when there is something that it does not have.
    pub(crate) behind_since: Option<Instant>,
    /// The snapshot that is built for it.
    pub(crate) snapshot: Option<Arc<Job>>,
    /// Rows of the publication, as last counted or guessed.
    pub(crate) total_rows: u64,
    pub(crate) deltas: u64,
    pub(crate) snapshots: u64,
    pub(crate) last_error: Option<Box<str>>,
    /// When everything had been compared, in milliseconds since 1970.
    pub(crate) verified_at: Option<u64>,
    pub(crate) repaired_rows: u64,
    pub(crate) walk: Option<Walk>,
}

/// A subscriber. Outlives the lives of its feed.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) node: NodeName,
    lease: Mutex<Lease>,
    pub(crate) progress: Mutex<Progress>,
    sent_bytes: AtomicU64,
    /// Wakes the feed: it was told something.
    pub(crate) told: Notify,
}

#[derive(Debug)]
struct Lease {
    until: Instant,
    said: Option<Said>,
}

impl Subscriber {
    fn new(node: NodeName, until: Instant, said: Said) -> Self {
        Self {
            node,
            lease: Mutex::new(Lease { until, said: Some(said) }),
            progress: Mutex::default(),
            sent_bytes: AtomicU64::new(0),
            told: Notify::new(),
        }
    }

    /// What it said and nobody has taken up yet.
    pub(crate) fn take_said(&self) -> Option<Said> {
        self.lease.lock().said.take()
    }

    pub(crate) fn has_said(&self) -> bool {
        self.lease.lock().said.is_some()
    }

    fn renew(&self, until: Instant, said: Said) {
        let mut lease = self.lease.lock();
        lease.until = until;
        // While something is on its way it may be there or not; and what the feed knows already is no news.
        let progress = self.progress.lock();
        if !progress.sending && progress.position != said.have {
            lease.said = Some(said);
            drop(progress);
            drop(lease);
            self.told.notify_one();
        }
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn status(&self, view: &View) -> SubscriberStatus {
        let progress = self.progress.lock();
        let lag_rows = match (progress.position, view.head) {
            (Some(position), Some(head)) if position.epoch == head.epoch => u64::try_from(head.seq - position.seq).unwrap_or_default(),
            (_, None) => 0,
            // Everything there is a log of, at least.
            (_, Some(_)) => view.entries.max(1),
        };
        let state = match (&progress.snapshot, &progress.last_error) {
            (Some(job), _) => {
                FeedState::Snapshot { done_rows: job.rows(), total_rows: progress.total_rows.max(job.rows()), bytes: job.bytes() }
            }
            (None, Some(_)) => FeedState::Away,
            (None, None) if progress.position.is_some() && progress.position == view.head => FeedState::Live,
            (None, None) => FeedState::CatchingUp,
        };
        let lag_ms = if lag_rows == 0 { 0 } else { progress.behind_since.map_or(0, |since| since.elapsed().as_millis() as u64) };
        SubscriberStatus {
            node: self.node.clone(),
            position: progress.position.map(crate::source::wire),
            lag_rows,
            lag_ms,
            sent_bytes: self.sent_bytes.load(Relaxed),
            deltas: progress.deltas,
            snapshots: progress.snapshots,
            last_error: progress.last_error.clone(),
            state,
            verified_at: progress.verified_at,
            repaired_rows: progress.repaired_rows,
        }
    }

    fn verify(&self, run: u64) -> NodeVerify {
        let progress = self.progress.lock();
        let walk = progress.walk.clone().filter(|walk| walk.run == run).unwrap_or_default();
        NodeVerify {
            node: self.node.clone(),
            chunks: walk.chunks,
            total_chunks: walk.total.max(walk.chunks),
            rows: walk.rows,
            mismatches: walk.mismatches,
            repaired_rows: walk.repaired,
            done: walk.done,
            error: progress.last_error.clone().filter(|_| !walk.done),
        }
    }
}

/// All subscribers of a publication.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    subscribers: BTreeMap<NodeName, Arc<Subscriber>>,
    /// The last comparison by order, and whom it is about.
    run: Option<(u64, Vec<NodeName>)>,
}

/// Whether a subscriber is new.
#[derive(Debug)]
pub(crate) enum Entered {
    /// It was there.
    Renewed(Arc<Subscriber>),
    /// It was not.
    New(Arc<Subscriber>),
    /// There is no room for it.
    Full,
}

impl Roster {
    pub(crate) fn enter(&self, node: &NodeName, until: Instant, said: Said) -> Entered {
        let mut entries = self.0.lock();
        if let Some(known) = entries.subscribers.get(node) {
            known.renew(until, said);
            return Entered::Renewed(known.clone());
        }
        if entries.subscribers.len() >= sync::MAX_SUBSCRIBERS {
            return Entered::Full;
        }
        let subscriber = Arc::new(Subscriber::new(node.clone(), until, said));
        entries.subscribers.insert(node.clone(), subscriber.clone());
        Entered::New(subscriber)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Subscriber>> {
        self.0.lock().subscribers.values().cloned().collect()
    }

    pub(crate) fn lapsed(&self, now: Instant) -> Vec<NodeName> {
        let entries = self.0.lock();
        entries.subscribers.values().filter(|subscriber| subscriber.lease.lock().until <= now).map(|lapsed| lapsed.node.clone()).collect()
    }

    /// Forgets `node` unless it has renewed meanwhile; whether it did.
    pub(crate) fn remove_lapsed(&self, node: &NodeName, now: Instant) -> bool {
        let mut entries = self.0.lock();
        let lapsed = entries.subscribers.get(node).is_some_and(|subscriber| subscriber.lease.lock().until <= now);
        lapsed && entries.subscribers.remove(node).is_some()
    }

    pub(crate) fn remove(&self, node: &NodeName) {
        self.0.lock().subscribers.remove(node);
    }

    /// Begins a comparison with `node` or with all, or joins the one that runs with the same; none if there is no such subscriber.
    pub(crate) fn begin(&self, node: Option<&NodeName>, fresh: u64) -> Option<u64> {
        let mut entries = self.0.lock();
        let whom: Vec<NodeName> = match node {
            Some(node) => vec![entries.subscribers.get(node)?.node.clone()],
            None => entries.subscribers.keys().cloned().collect(),
        };
        if let Some((run, of)) = &entries.run
            && *of == whom
            && !Self::report_of(&entries, *run, of).done
        {
            return Some(*run);
        }
        for node in &whom {
            let subscriber = &entries.subscribers[node];
            subscriber.progress.lock().walk = Some(Walk { run: fresh, ..Walk::default() });
            subscriber.told.notify_one();
        }
        entries.run = Some((fresh, whom));
        Some(fresh)
    }

    /// How far a comparison is; none if it is not the last one.
    pub(crate) fn report(&self, run: u64) -> Option<VerifyReport> {
        let entries = self.0.lock();
        entries.run.as_ref().filter(|(known, _)| *known == run).map(|(run, of)| Self::report_of(&entries, *run, of))
    }

    fn report_of(entries: &Entries, run: u64, of: &[NodeName]) -> VerifyReport {
        let one = |node: &NodeName| match entries.subscribers.get(node) {
            Some(subscriber) => subscriber.verify(run),
            None => NodeVerify {
                node: node.clone(),
                chunks: 0,
                total_chunks: 0,
                rows: 0,
                mismatches: 0,
                repaired_rows: 0,
                done: true,
                error: Some("no longer subscribed".into()),
            },
        };
        let nodes: Vec<NodeVerify> = of.iter().map(one).collect();
        VerifyReport { run, done: nodes.iter().all(|node| node.done), nodes }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(seq: i64) -> Said {
        Said { have: Some(Position { epoch: [1; 16], seq, stamp: 0 }), known: BTreeMap::new(), resume: false }
    }

    fn node(number: usize) -> NodeName {
        format!("fo-{number}").parse().unwrap()
    }

    #[test]
    fn who_does_not_renew_is_gone_and_makes_room() {
        let (roster, now) = (Roster::default(), Instant::now());
        let lease = Duration::from_secs(10);
        for number in 0..sync::MAX_SUBSCRIBERS {
            assert!(matches!(roster.enter(&node(number), now + lease, said(1)), Entered::New(_)));
        }
        assert!(matches!(roster.enter(&node(99), now + lease, said(1)), Entered::Full));
        assert!(matches!(roster.enter(&node(1), now + 2 * lease, said(1)), Entered::Renewed(_)));
        assert_eq!(roster.lapsed(now + lease / 2), []);
        assert_eq!(roster.lapsed(now + lease).len(), sync::MAX_SUBSCRIBERS - 1);
        assert!(!roster.remove_lapsed(&node(1), now + lease), "it has renewed");
        assert!(roster.remove_lapsed(&node(2), now + lease));
        assert!(matches!(roster.enter(&node(99), now + lease, said(1)), Entered::New(_)));
    }

    #[test]
    fn what_is_said_anew_is_news_only_if_it_is_something_else() {
        let (roster, now) = (Roster::default(), Instant::now());
        let Entered::New(subscriber) = roster.enter(&node(1), now, said(1)) else { panic!("known") };
        assert_eq!(subscriber.take_said(), Some(said(1)));
        subscriber.progress.lock().position = said(5).have;
        roster.enter(&node(1), now, said(5));
        assert!(!subscriber.has_said(), "known");
        subscriber.progress.lock().sending = true;
        roster.enter(&node(1), now, said(4));
        assert!(!subscriber.has_said(), "something is on its way");
        subscriber.progress.lock().sending = false;
        roster.enter(&node(1), now, said(4));
        assert_eq!(subscriber.take_said(), Some(said(4)), "it went back");
    }

    #[test]
    fn a_comparison_is_joined_while_it_runs_and_forgotten_after_the_next() {
        let (roster, now) = (Roster::default(), Instant::now());
        roster.enter(&node(1), now, said(1));
        assert_eq!(roster.begin(Some(&node(2)), 1), None);
        assert_eq!((roster.begin(None, 7), roster.begin(Some(&node(1)), 8)), (Some(7), Some(7)));
        assert!(!roster.report(7).unwrap().done);
        roster.all()[0].progress.lock().walk.as_mut().unwrap().done = true;
        assert!(roster.report(7).unwrap().done);
        assert_eq!(roster.begin(None, 9), Some(9));
        assert_eq!((roster.report(7), roster.report(9).unwrap().done), (None, false));
        roster.remove(&node(1));
        let report = roster.report(9).unwrap();
        assert!(report.done && report.nodes[0].error.is_some(), "{report:?}");
    }
}
