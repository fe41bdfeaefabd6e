//! Takes up renewed certificates and deny lists without a restart: looks at their files, and reads them when they have
//! changed. Warns, at the start and each day, of a certificate that is about to expire.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use horos_link::{
    Peers,
    identity::{CA_CERTIFICATE, CERTIFICATE, DENIED, KEY},
    tls::Tls,
};
use horos_supervision::{ChildSpec, Vitals};
use horos_wire::tree::Kind;
use jiff::{SignedDuration, Timestamp};
use ractor::{Actor, ActorProcessingErr, ActorRef};

/// Between looks; a deny list put there by hand counts within a second.
const EVERY: Duration = Duration::from_millis(500);

/// How long before its end a certificate should be renewed: time for two people and a weekend.
pub(crate) const RENEW: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Between warnings.
const REMIND: SignedDuration = SignedDuration::from_hours(24);

/// The child that looks.
pub(crate) fn child(tls: Arc<Tls>, peers: Arc<Peers>, directory: PathBuf) -> ChildSpec {
    let vitals = Vitals::new("certificates", Kind::Worker, Duration::from_secs(10));
    ChildSpec::actor(vitals, None, move |start| {
        let args = State {
            tls: tls.clone(),
            peers: peers.clone(),
            directory: directory.clone(),
            seen: Stamps::default(),
            warned: None,
            vitals: start.vitals.clone(),
        };
        (Certificates, args)
    })
}

struct Certificates;

/// Timer.
#[derive(Debug)]
struct Look;

type Stamps = [Option<(SystemTime, u64)>; 4];

struct State {
    tls: Arc<Tls>,
    peers: Arc<Peers>,
    directory: PathBuf,
    seen: Stamps,
    warned: Option<Timestamp>,
    vitals: Arc<Vitals>,
}

impl State {
    fn warn(&mut self, now: Timestamp) {
        let credentials = self.tls.credentials();
        let until = credentials.validity().not_after;
        if is_due(until, self.warned, now) {
            self.warned = Some(now);
            tracing::warn!(certificate = %credentials.id().to_uri(), %until, days = until.duration_since(now).as_hours() / 24,
                "the certificate expires soon: `identity request`, have it signed, `identity install`; no restart is needed");
        }
    }
}

/// Whether to warn of a certificate that counts until `until`, when `warned` was the last time. Both may lie after `now`:
/// clocks are set.
fn is_due(until: Timestamp, warned: Option<Timestamp>, now: Timestamp) -> bool {
    until.duration_since(now) < RENEW && warned.is_none_or(|at| now.duration_since(at).abs() >= REMIND)
}

/// When each file was last written, and its length.
fn stamps(directory: &Path) -> Stamps {
    [CERTIFICATE, KEY, CA_CERTIFICATE, DENIED].map(|file| {
        let metadata = std::fs::metadata(directory.join(file)).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

impl Actor for Certificates {
    type Msg = Look;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, me: ActorRef<Look>, mut state: State) -> Result<State, ActorProcessingErr> {
        state.seen = stamps(&state.directory);
        state.warn(Timestamp::now());
        state.vitals.started();
        me.send_interval(EVERY, || Look);
        Ok(state)
    }

    async fn handle(&self, _: ActorRef<Look>, _: Look, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.vitals.progressed(Instant::now());
        state.warn(Timestamp::now());
        let now = stamps(&state.directory);
        if now != state.seen {
            state.seen = now;
            let (tls, directory) = (state.tls.clone(), state.directory.clone());
            let read = tokio::task::spawn_blocking(move || {
                let credentials = tls.reload(Timestamp::now())?;
                let denied = tls.denied().refresh(&directory, credentials.trust());
                Ok::<_, horos_link::identity::CredentialsError>((credentials, denied))
            });
            match read.await? {
                Ok((credentials, denied)) => {
                    tracing::info!(serial = %credentials.serial(), "certificates were read again");
                    if let Err(error) = denied {
                        tracing::error!(%error, "the deny list was not taken; the one in force stays");
                    }
                    state.peers.enforce();
                }
                // What is in force stays; the next change of a file is the next try.
                Err(error) => tracing::error!(%error, "the new certificates were not taken; those in force stay"),
            }
        } else {
            // A certificate that expires ends its sessions.
            state.peers.enforce();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_told_two_weeks_before_and_then_daily() {
        let day = SignedDuration::from_hours(24);
        let until: Timestamp = "2026-12-31T00:00:00Z".parse().unwrap();
        assert!(!is_due(until, None, until - day * 14));
        let first = until - day * 13;
        assert!(is_due(until, None, first));
        assert!(!is_due(until, Some(first), first + SignedDuration::from_hours(23)));
        assert!(is_due(until, Some(first), first + day));
        assert!(is_due(until, Some(first + day * 2), first), "a clock that was set back silences nothing");
        assert!(is_due(until, None, until + day));
    }
}
