//! Asks the source to feed this replica, and goes on asking: a subscription is a lease. One whose source went down is asked for anew
//! at once, for a source that starts again knows no subscriber.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use horos_supervision::{Backoff, Context, Ref, Vitals, backoff::Streak, reference::Watch};
use horos_wire::{
    CallError,
    protocol::sync::{RENEW, SYNC_PREFIX, Subscribed, Sync, SyncError},
};

use super::{Inner, OUT_OF_TOUCH, Origin};

/// What the source may take to answer.
const ASK: Duration = Duration::from_secs(2);
/// Between two attempts to reach a source that does not answer.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), cap: RENEW, quiet: Duration::from_secs(10) };

/// One life of the worker.
pub(super) struct Subscription {
    replica: Arc<Inner>,
    /// The source, whichever node that is.
    source: Ref<Sync>,
    /// The node that answered last. It is asked as long as it answers: two would feed this replica against one another.
    node: Option<Ref<Sync>>,
    /// Tells that this one went down.
    watch: Option<Watch>,
    begun: Instant,
}

impl Subscription {
    pub(super) fn new(replica: Arc<Inner>, context: Context) -> Self {
        let name = &replica.config.name;
        let source = match &replica.config.from {
            Origin::Node(node) => format!("{SYNC_PREFIX}{name}@{node}"),
            Origin::Role(role) => format!("{SYNC_PREFIX}{name}@{}", role.as_str()),
        };
        Self { source: context.at(&source), node: None, watch: None, begun: Instant::now(), replica }
    }

    pub(super) async fn run(mut self, vitals: Arc<Vitals>) {
        let mut streak = Streak::default();
        loop {
            while !self.replica.view.lock().opened {
                vitals.progressed(Instant::now());
                // Told when they are, and looked at anyway: that word may have been taken by a life before this one.
                let _ = tokio::time::timeout(RENEW, self.replica.news.notified()).await;
            }
            let asked = Instant::now();
            let outcome = self.subscribe().await;
            vitals.progressed(Instant::now());
            let pause = match outcome {
                Ok(subscribed) => {
                    streak = Streak::default();
                    self.heard(&subscribed, asked);
                    RENEW
                }
                Err(error) => {
                    (self.node, self.watch) = (None, None);
                    self.unheard(&error);
                    streak.failed(asked, &RETRY, &mut rand::rng()).max(RETRY.base)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The files were opened, rolled back or are to be fed again.
                () = self.replica.news.notified() => {}
                // Not again and again at once where it goes down as often.
                () = ended(&mut self.watch) => tokio::time::sleep_until((asked + RETRY.base).into()).await,
            }
        }
    }

    async fn subscribe(&mut self) -> Result<Subscribed, CallError<SyncError>> {
        let node = match &self.node {
            Some(node) => node.clone(),
            None => self.source.pinned(ASK).await?,
        };
        if let Some(name) = node.node() {
            let name = name.clone();
            // Before it is asked: what it sends at once must be taken.
            self.replica.note(|view| view.source = Some(name));
        }
        let subscribed = node.call(self.replica.subscribe(), ASK).await?;
        if self.watch.is_none() {
            // Without one the next renewal finds out.
            self.watch = node.watch(ASK).await.ok();
        }
        self.node = Some(node);
        Ok(subscribed)
    }

    fn heard(&self, subscribed: &Subscribed, asked: Instant) {
        let everything = self.replica.waiters.at() == Some(subscribed.head);
        self.replica.note(|view| {
            view.in_touch = Some(asked);
            view.away = None;
            if everything {
                view.fresh = Some(asked);
            }
        });
    }

    fn unheard(&self, error: &CallError<SyncError>) {
        tracing::debug!(replica = %self.replica.config.name, %error, "not subscribed");
        let text = match error {
            CallError::Failed(error) => error.to_string(),
            CallError::NoEffect(_) | CallError::Unknown(_) => "not in touch with its source".to_owned(),
        };
        let (begun, refused) = (self.begun, matches!(error, CallError::Failed(_)));
        self.replica.note(|view| {
            // A restart of the source passes unnoticed, a refusal does not.
            if refused || view.in_touch.unwrap_or(begun).elapsed() >= OUT_OF_TOUCH {
                view.away = Some(text.into());
            }
        });
    }
}

/// The end of what is watched, told once; never, if nothing is.
async fn ended(watch: &mut Option<Watch>) {
    let Some(ends) = watch else { return std::future::pending().await };
    ends.await;
    *watch = None;
}
