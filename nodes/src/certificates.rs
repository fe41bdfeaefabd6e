//! Takes up renewed certificates and deny lists without a restart: looks at their files, and reads them when they have changed.

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
use jiff::Timestamp;
use ractor::{Actor, ActorProcessingErr, ActorRef};

/// Between looks; a deny list put there by hand counts within a second.
const EVERY: Duration = Duration::from_millis(500);

/// The child that looks.
pub(crate) fn child(tls: Arc<Tls>, peers: Arc<Peers>, directory: PathBuf) -> ChildSpec {
    let vitals = Vitals::new("certificates", Kind::Worker, Duration::from_secs(10));
    ChildSpec::actor(vitals, None, move |start| {
        let args = State {
            tls: tls.clone(),
            peers: peers.clone(),
            directory: directory.clone(),
            seen: Stamps::default(),
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
    vitals: Arc<Vitals>,
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
        state.vitals.started();
        me.send_interval(EVERY, || Look);
        Ok(state)
    }

    async fn handle(&self, _: ActorRef<Look>, _: Look, state: &mut State) -> Result<(), ActorProcessingErr> {
        state.vitals.progressed(Instant::now());
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
