//! The service of a publication. Its handlers wait for a look at the file at most; the work is the feeds'.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use horos_supervision::{Context, Handle, Service};
use horos_wire::{
    Role,
    policy::sees_errors,
    protocol::sync::{
        Head, MAX_TABLES, Position, PublicationStatus, PublisherStatusAsk, STREAM_VERSION, StartVerify, Subscribe, Subscribed, Sync,
        SyncError, VerifyReport,
    },
};

use super::{Published, Said, feed_name, roster::Entered};
use crate::{feed, source::captured};

/// Longest wait for a look: nothing else of the publication is answered meanwhile.
const LOOK: Duration = Duration::from_secs(2);

/// The service `horos.sync.NAME`.
#[derive(Debug)]
pub(crate) struct Desk {
    published: Arc<Published>,
}

impl Desk {
    pub(crate) fn new(published: Arc<Published>) -> Self {
        Self { published }
    }

    /// Nobody but those that it is for is told anything, and this node itself; operators and viewers are no nodes and look only.
    fn admit(&self, cx: &Context) -> Result<(), SyncError> {
        let node = cx.caller().node();
        let admitted = match node.role {
            Role::Operator | Role::Viewer => true,
            Role::Bo | Role::Fo => node == cx.node() || self.published.publication.is_for(node),
        };
        if admitted { Ok(()) } else { Err(SyncError::NotForYou) }
    }

    fn head(&self) -> Result<Position, SyncError> {
        let head = self.published.source.view().borrow().head;
        head.map(crate::source::wire).ok_or_else(|| SyncError::Unavailable("the database is not captured".into()))
    }
}

impl Service for Desk {
    type Protocol = Sync;
}

impl Handle<Subscribe> for Desk {
    async fn handle(&mut self, ask: Subscribe, cx: &Context) -> Result<Subscribed, SyncError> {
        let node = cx.caller().node();
        if !node.role.is_node() {
            return Err(SyncError::Invalid("only nodes keep replicas".into()));
        }
        if !self.published.publication.is_for(node) {
            return Err(SyncError::NotForYou);
        }
        if ask.version != STREAM_VERSION {
            return Err(SyncError::Version(STREAM_VERSION));
        }
        if ask.tables.len() > MAX_TABLES {
            return Err(SyncError::Invalid("more tables than a publication can have".into()));
        }
        let head = self.head()?;
        let said = Said {
            have: ask.have.map(captured),
            known: ask.tables.into_iter().map(|table| (table.name.into(), table.mark.to_bytes())).collect(),
            resume: ask.resume,
        };
        let published = &self.published;
        let lease = published.limits.lease;
        let changing = published.changing.lock().await;
        let (subscriber, new) = match published.roster.enter(&node.name, Instant::now() + lease, said) {
            Entered::Full => return Err(SyncError::TooMany),
            Entered::New(subscriber) => (subscriber, true),
            Entered::Renewed(subscriber) => (subscriber, false),
        };
        // A supervisor that was restarted has lost the children it was given later.
        let name = feed_name(&node.name);
        if new || published.feeds.find(&name).is_none() {
            if let Err(error) = published.feeds.add_child(feed::child(published.clone(), subscriber)).await {
                published.roster.remove(&node.name);
                tracing::error!(publication = %published.publication.name, node = %node.name, %error, "cannot start a feed");
                return Err(SyncError::Unavailable("no feed could be started".into()));
            }
            if new {
                tracing::info!(publication = %published.publication.name, node = %node.name, "subscribed");
            }
        }
        drop(changing);
        Ok(Subscribed { head, lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX) })
    }
}

impl Handle<PublisherStatusAsk> for Desk {
    async fn handle(&mut self, _: PublisherStatusAsk, cx: &Context) -> Result<PublicationStatus, SyncError> {
        self.admit(cx)?;
        let mut status = self.published.status();
        let caller = cx.caller().node();
        if !sees_errors(caller.role) {
            status.file = None;
            status.condition = status.condition.map(|_| "not published now".into());
            status.blind.clear();
            status.subscribers.retain(|subscriber| subscriber.node == caller.name);
            status.subscribers.iter_mut().for_each(|subscriber| subscriber.last_error = None);
        }
        Ok(status)
    }
}

impl Handle<StartVerify> for Desk {
    async fn handle(&mut self, ask: StartVerify, cx: &Context) -> Result<VerifyReport, SyncError> {
        self.admit(cx)?;
        let roster = &self.published.roster;
        let run = match ask.run {
            Some(run) => run,
            // Small enough for any reader of JSON.
            None => {
                roster.begin(ask.node.as_ref(), u64::from(rand::random::<u32>())).ok_or_else(|| SyncError::NoSuch("subscriber".into()))?
            }
        };
        roster.report(run).ok_or_else(|| SyncError::NoSuch("comparison".into()))
    }
}

impl Handle<Head> for Desk {
    async fn handle(&mut self, _: Head, cx: &Context) -> Result<Position, SyncError> {
        self.admit(cx)?;
        let wait = cx.remaining().unwrap_or(LOOK).min(LOOK);
        self.published.source.head(Instant::now() + wait).await.map_err(|error| {
            tracing::debug!(%error, "no head");
            SyncError::Unavailable("the database cannot be read now".into())
        })
    }
}
