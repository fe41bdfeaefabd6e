//! Asking the owner before the time for it: a key that is not found here may have been made a moment ago.
//!
//! Who finds nothing waits for one round of the [mirror](crate::mirror) that begins after that, and looks again; so a key
//! works on every node at its first use. Nobody can make a flood of it: a round serves all who wait, one is under way at a
//! time, the mirror leaves [`SPACING`] between two however many are wished for, and [`WAITING`] may wait. Whoever is one too
//! many, and everybody while the owner cannot be asked, is answered from what is known here, at once.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore, watch},
    time::timeout,
};

/// From the beginning of a round to that of one that was wished for: ten a second at most, whatever is guessed. A hundred
/// nodes that are all guessed at are a thousand questions a second for the owner, who answers one in tens of microseconds.
pub(crate) const SPACING: Duration = Duration::from_millis(100);
/// Who may wait at once: each is a request that its own port has let in, and costs some hundred bytes here.
const WAITING: usize = 1024;
/// How long anybody waits: what a question to the owner may take, which is the slowest part of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between those who look keys up and the mirror that fetches them.
#[derive(Debug)]
pub(crate) struct News {
    places: Arc<Semaphore>,
    wish: Notify,
    rounds: watch::Sender<Rounds>,
}

/// How far the mirror is.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    /// The last that began.
    begun: u64,
    /// The last after which everything was here that the owner knew when it began.
    ended: u64,
    /// Whether the last one came to that. Not before the first, and never where the tables are the owner's own.
    reached: bool,
}

impl Default for News {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(WAITING)), wish: Notify::new(), rounds: watch::Sender::default() }
    }
}

impl News {
    /// Wishes for a round, and waits for the end of one that begins from now on; none where that would tell nothing new, or too
    /// many wait. Dropped, the wish stays.
    pub(crate) fn next(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut rounds = self.rounds.subscribe();
        let Rounds { begun, reached, .. } = *rounds.borrow_and_update();
        if !reached {
            return None;
        }
        let place = self.places.clone().try_acquire_owned().ok()?;
        self.wish.notify_one();
        Some(async move {
            let _place = place;
            // One that is under way may have been answered before the key was made. Out of patience is out of luck: what is
            // known then decides.
            let _ = timeout(PATIENCE, rounds.wait_for(|now| now.ended > begun || !now.reached)).await;
        })
    }

    /// Ends when a round is wished for.
    pub(crate) async fn wished(&self) {
        self.wish.notified().await;
    }

    /// A round begins.
    pub(crate) fn begin(&self) {
        self.rounds.send_modify(|rounds| rounds.begun += 1);
    }

    /// The round ended, and everything is here that the owner knew when it began, or is not.
    pub(crate) fn end(&self, reached: bool) {
        self.rounds.send_modify(|rounds| {
            rounds.reached = reached;
            if reached {
                rounds.ended = rounds.begun;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, future::join_all};
    use tokio::time::Instant;

    use super::*;

    fn in_touch() -> News {
        let news = News::default();
        news.begin();
        news.end(true);
        news
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_began_before_the_wish_does_not_fulfil_it() {
        let news = in_touch();
        news.begin();
        let mut waiting = Box::pin(news.next().unwrap());
        news.end(true);
        assert!(waiting.as_mut().now_or_never().is_none(), "the owner may have answered before the key was made");
        news.wished().now_or_never().expect("it is wished for");
        news.begin();
        assert!(waiting.as_mut().now_or_never().is_none());
        news.end(true);
        waiting.now_or_never().expect("one that began later does");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_an_owner_who_is_away_and_nobody_for_ever() {
        let news = News::default();
        assert!(news.next().is_none(), "before the first round nothing is known of the owner");
        let news = in_touch();
        let waiting = news.next().unwrap();
        news.begin();
        news.end(false);
        waiting.now_or_never().expect("the owner has not answered");
        assert!(news.next().is_none());
        let news = in_touch();
        let began = Instant::now();
        news.next().unwrap().await;
        assert_eq!(began.elapsed(), PATIENCE, "the mirror never came");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_are_bounded_share_one_round_and_make_room() {
        let news = in_touch();
        let waiting: Vec<_> = std::iter::from_fn(|| news.next()).take(2 * WAITING).collect();
        assert_eq!(waiting.len(), WAITING);
        news.wished().now_or_never().expect("a round is wished for");
        assert!(news.wished().now_or_never().is_none(), "one for all");
        news.begin();
        news.end(true);
        let began = Instant::now();
        join_all(waiting).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "it was for all");
        assert!(news.next().is_some());
    }
}
