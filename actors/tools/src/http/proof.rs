//! What lasts longer than a request, and ends when what opened it proves nobody any more.
//!
//! The port proves who asks when a request comes, and never again: a key may be revoked, and a token run out, while a stream that it
//! opened goes on. So whatever lasts is looked at again whenever the keys change, and every [`Proofs::every`] besides, as nobody tells what
//! runs out. What can only not be told now ends nothing.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use horos_wire::principal::Denied;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Body;
use crate::{Credential, Verify, caller::next_change};

/// Looks at proofs again.
#[derive(Clone)]
pub(super) struct Proofs {
    pub(super) verify: Arc<dyn Verify>,
    pub(super) every: Duration,
}

impl Proofs {
    /// Ends when what `shown` gives proves nobody any more; never, once it gives nothing.
    pub(super) async fn lost(&self, shown: impl Fn() -> Option<Credential>) {
        let every = self.every.max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.verify.changes();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = next_change(&mut changes) => {}
            }
            let Some(credential) = shown() else { return std::future::pending().await };
            match self.verify.verify(&credential).await {
                Ok(_) | Err(Denied::Unavailable) => {}
                Err(denied) => {
                    tracing::debug!(%denied, "what was opened with a credential ends with it");
                    return;
                }
            }
        }
    }
}

/// A body that ends in good order when something else does.
pub(super) struct Until {
    body: Body,
    /// Never locked: it makes of what only one thread may hold what several may have in hand, as [`Body`] wants it.
    over: Option<Mutex<BoxFuture<'static, ()>>>,
}

impl Until {
    pub(super) fn new(body: Body, over: BoxFuture<'static, ()>) -> Self {
        Self { body, over: Some(Mutex::new(over)) }
    }
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(over) = &mut self.over else { return Poll::Ready(None) };
        if over.get_mut().as_mut().poll(cx).is_ready() {
            self.over = None;
            self.body = super::empty();
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.over.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // How much there will be is not known while it may end at any time.
        SizeHint::default()
    }
}
