//! The actor of one endpoint: it greets the server when somebody wants it, keeps its list, notices its end and greets it again.
//!
//! Started by [`super::clients`] at the endpoint's first use, and stopped when nobody names it any more. Calls do not go through it: they
//! take the session that it holds out, so that none waits for another. While there is none it is shown as busy with that, and with why.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use horos_supervision::{Incoming, Vitals};
use horos_wire::{TraceId, tree::Outcome};
use rand::RngExt as _;
use tokio::{sync::watch, time::sleep};

use super::{Shared, State, error::ClientError, session::Session};

static SENDER: LazyLock<Arc<str>> = LazyLock::new(|| "calls".into());

/// How it behaves in time. Tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Longest handshake. Default 30 s: a server of before 2026-07-28 that does not answer what it does not know is greeted as of old
    /// after 10 of them.
    pub connect: Duration,
    /// The first wait after a failed attempt is anything up to this; each further one up to twice the one before. Default 200 ms.
    pub backoff: Duration,
    /// Longest such wait. Default 30 s.
    pub backoff_cap: Duration,
    /// Of such a wait, what a call cannot shorten: later than this after a failed attempt, a call is reason for the next at once. Default
    /// 1 s, as the breaker of `egress` has it, so that a server that is back is in use again with the next call.
    pub afresh: Duration,
    /// How long a call waits for a connection that is being tried again, if its own deadline is later. Default 2 s: what a server takes
    /// to restart; whoever has another place to ask is told sooner than at the deadline. The first attempt is waited for until then.
    pub grace: Duration,
    /// Silence after which the server is asked for a sign of life. Default 30 s, as QUIC's own keep-alive has it.
    pub ping: Duration,
    /// Longest wait for that, and for a page of the list. Default 10 s.
    pub pong: Duration,
    /// The list is read again so often even if the server tells of no change. Default 5 min.
    pub refresh: Duration,
    /// A connection that nobody has used for so long is closed, and opened again at the next call. Default 10 min.
    pub idle: Duration,
    /// How long a program has to end once its input has, and again once it was told to by `SIGTERM`; then it is killed. Default 2 s, as
    /// the official SDK for Python has it.
    pub parting: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            backoff: Duration::from_millis(200),
            backoff_cap: Duration::from_secs(30),
            afresh: Duration::from_secs(1),
            grace: Duration::from_secs(2),
            ping: Duration::from_secs(30),
            pong: Duration::from_secs(10),
            refresh: Duration::from_secs(300),
            idle: Duration::from_secs(600),
            parting: Duration::from_secs(2),
        }
    }
}

impl Times {
    /// How long the attempt after `failed` others in a row waits: full jitter, and never nothing.
    pub(super) fn wait(&self, failed: u32) -> Duration {
        let most = self.backoff.saturating_mul(2u32.saturating_pow(failed.saturating_sub(1).min(31))).min(self.backoff_cap);
        most.mul_f64(rand::rng().random_range(0.1..=1.0))
    }
}

/// Why a session is over.
enum Over {
    /// Nobody wants it.
    Idle,
    /// It was lost, or is no longer what it was.
    Lost(ClientError),
}

/// Runs for as long as somebody names the endpoint.
pub(super) async fn keep(shared: Arc<Shared>, vitals: Arc<Vitals>) {
    vitals.watch_mailbox(super::IN_FLIGHT as u32, {
        let shared = Arc::downgrade(&shared);
        move || shared.upgrade().map_or(0, |shared| shared.in_flight())
    });
    let mut failed = 0u32;
    let mut before = None;
    loop {
        shared.wanted().await;
        show(&vitals, Some("Connecting"));
        shared.state.send_replace(State::Connecting { before: before.take() });
        let began = Instant::now();
        let attempt = tokio::time::timeout(shared.times.connect, shared.connect()).await;
        let opened = attempt.unwrap_or_else(|_| Err(shared.no_route("the handshake took too long")));
        let lost = match opened {
            Ok(session) => {
                show(&vitals, None);
                vitals.set_trouble(None);
                tracing::info!(endpoint = %shared.name, version = %session.version(), "connected");
                let session = Arc::new(session);
                shared.connected(&session);
                let over = serve(&shared, &session, &vitals).await;
                shared.state.send_replace(State::Idle);
                farewell(session, shared.times.pong).await;
                // One that lets everybody in and then drops them is no better than one that does not.
                if began.elapsed() >= shared.times.backoff_cap {
                    failed = 0;
                }
                match over {
                    Over::Idle => {
                        failed = 0;
                        vitals.set_protocol("mcp, idle");
                        continue;
                    }
                    Over::Lost(error) => error,
                }
            }
            Err(error) => error,
        };
        // The first after a loss comes at once, or nearly.
        failed = failed.saturating_add(1);
        let asked_for = lost.retry_after().unwrap_or_default().min(shared.times.backoff_cap);
        let wait = shared.times.wait(failed).max(asked_for);
        // What the server, or a breaker, asked for is kept, whoever calls.
        let least = shared.times.afresh.max(asked_for).min(wait);
        tracing::warn!(endpoint = %shared.name, error = %lost, again_ms = wait.as_millis(), "not connected");
        vitals.set_trouble(Some(&lost.to_string()));
        show(&vitals, Some("Waiting"));
        let now = Instant::now();
        shared.failed(lost.clone(), now + least, now + wait);
        tokio::select! {
            () = sleep(wait) => {}
            () = async { sleep(least).await; shared.called_for().await } => {}
        }
        before = Some(lost);
    }
}

/// Tells the server of the session's end, if no call has it in hand any more; else its last one does by letting go of it.
async fn farewell(session: Arc<Session>, within: Duration) {
    if let Some(session) = Arc::into_inner(session) {
        session.close(within).await;
    }
}

/// Keeps what is known of the server while the session lasts.
async fn serve(shared: &Arc<Shared>, session: &Arc<Session>, vitals: &Vitals) -> Over {
    let times = &shared.times;
    let mut handshakes = session.handshakes.clone();
    let mut listening = Listening::new(session);
    let mut listed = Instant::now();
    let mut heard = Instant::now();
    let mut stale = true;
    loop {
        if stale {
            match within(times.pong * 3, session.tools(), shared).await {
                Ok(tools) => {
                    shared.list(tools);
                    vitals.set_protocol(&shared.told(session));
                    heard = Instant::now();
                }
                Err(_) if !session.has_tools() => shared.list(Vec::new()),
                Err(error) if error.is_the_connections() || session.has_ended() => return Over::Lost(error),
                // It is there, and has a list that is none: calls may work all the same.
                Err(error) => vitals.set_trouble(Some(&error.to_string())),
            }
            (listed, stale) = (Instant::now(), false);
            vitals.progressed(Instant::now());
        }
        let silent = heard.max(shared.last_answer());
        tokio::select! {
            lost = session.ended() => return Over::Lost(lost),
            () = shared.changed.notified() => stale = true,
            () = handshake(&mut handshakes) => stale = true,
            () = listening.next(session, shared) => stale = true,
            () = shared.suspected.notified() => match sign(session, shared).await {
                Ok(()) => heard = Instant::now(),
                Err(error) => return Over::Lost(error),
            },
            () = sleep(times.ping.saturating_sub(silent.elapsed())) => {
                if shared.last_answer() > silent {
                    continue;
                }
                match sign(session, shared).await {
                    Ok(()) => heard = Instant::now(),
                    Err(error) => return Over::Lost(error),
                }
            }
            () = sleep(times.refresh.saturating_sub(listed.elapsed())) => stale = true,
            () = shared.unused(times.idle) => return Over::Idle,
        }
        vitals.progressed(Instant::now());
        if session.is_doubted() {
            return Over::Lost(shared.no_route("it speaks another version than it said"));
        }
    }
}

/// Waits for a sign of life. Of a server that cannot be reached no call in hand is answered any more, and its caller is told: a broken
/// stream of events would be asked for again and again, as seldom as the server had said while it was there. One that is only silent may
/// be busy with just that call.
async fn sign(session: &Session, shared: &Shared) -> Result<(), ClientError> {
    match tokio::time::timeout(shared.times.pong, session.ping()).await {
        Ok(Err(error)) => {
            if error.is_out_of_reach() {
                session.give_up(&error);
            }
            Err(error)
        }
        Ok(Ok(())) => Ok(()),
        Err(_) => Err(shared.no_route("it does not answer")),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, ClientError>>, shared: &Shared) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(shared.no_route("it does not answer")),
    }
}

/// Resolves when the transport has made another session by itself.
async fn handshake(handshakes: &mut Option<watch::Receiver<u64>>) {
    match handshakes {
        Some(made) => {
            if made.changed().await.is_err() {
                std::future::pending().await
            }
        }
        None => std::future::pending().await,
    }
}

/// A subscription to changes, of a server that has one, asked for again when it breaks.
struct Listening {
    subscription: Option<rmcp::service::Subscription>,
    failed: u32,
    wanted: bool,
}

impl Listening {
    fn new(session: &Session) -> Self {
        Self { subscription: None, failed: 0, wanted: session.is_stateless() && session.tells_of_changes() }
    }

    /// Resolves when the list may be another: because the server says so, or was not heard for a while.
    ///
    /// # Cancel safety
    /// Nothing is lost: a subscription that was being made is made again.
    async fn next(&mut self, session: &Session, shared: &Shared) {
        if !self.wanted {
            std::future::pending().await
        }
        loop {
            if let Some(subscription) = &mut self.subscription {
                if let Ok(Some(_)) = subscription.next().await {
                    self.failed = 0;
                    return;
                }
                self.subscription = None;
                self.failed = self.failed.saturating_add(1);
            }
            if self.failed > 0 {
                sleep(shared.times.wait(self.failed)).await;
            }
            match session.listen().await {
                Ok(subscription) => {
                    self.subscription = Some(subscription);
                    // What changed while nobody listened.
                    return;
                }
                Err(ClientError::NoEffect { why: horos_wire::NoEffect::NoSuchActor(_), .. }) => {
                    self.wanted = false;
                    std::future::pending().await
                }
                Err(_) => self.failed = self.failed.saturating_add(1),
            }
        }
    }
}

fn show(vitals: &Vitals, busy: Option<&'static str>) {
    let now = Instant::now();
    vitals.end(now, Outcome::Done);
    if let Some(method) = busy {
        vitals.begin(now, Incoming { method, sender: &SENDER, size: 0, trace: TraceId(0), waited: Duration::ZERO });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_later_and_later_never_at_once_and_never_beyond_the_cap() {
        let times = Times { backoff: Duration::from_millis(200), backoff_cap: Duration::from_secs(30), ..Times::default() };
        for failed in (1..40).chain([u32::MAX]) {
            let most = Duration::from_millis(200).saturating_mul(2u32.saturating_pow((failed - 1).min(31))).min(times.backoff_cap);
            for _ in 0..50 {
                let wait = times.wait(failed);
                assert!(wait >= most.mul_f64(0.099) && wait <= most, "{failed}: {wait:?} of {most:?}");
            }
        }
    }
}
