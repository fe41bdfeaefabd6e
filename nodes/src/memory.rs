//! What a node remembers of its last life, so that its peers notice at once when it is back: a secret of its
//! endpoint, and where its peers were.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use horos_link::{Peers, Secret};
use horos_supervision::{ChildSpec, Vitals};
use horos_wire::tree::{Health, Kind};
use ractor::{Actor, ActorProcessingErr, ActorRef};

/// In the data directory.
const SECRET: &str = "endpoint-secret";
/// In the data directory: an address a line.
const PEERS: &str = "peers";
/// Addresses remembered.
const MAX_PEERS: usize = 64;
/// Between looks; a node that lives shorter has hardly met anybody.
const EVERY: Duration = Duration::from_secs(1);

/// The endpoint's secret, made at the first start.
pub(crate) fn secret(data: &Path) -> io::Result<Secret> {
    let path = data.join(SECRET);
    match fs::read(&path) {
        Ok(bytes) if bytes.len() == 32 => return Ok(Secret(bytes.try_into().expect("its length was looked at"))),
        // One that was cut short is as good as none: it only costs peers a silence.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let secret: [u8; 32] = rand::random();
    write(&path, &secret)?;
    Ok(Secret(secret))
}

/// Where the last life's peers were. What cannot be read is left out: it is a hint.
pub(crate) fn peers(data: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(data.join(PEERS)).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).take(MAX_PEERS).collect()
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// The child that writes down where the peers are.
pub(crate) fn child(peers: Arc<Peers>, data: PathBuf) -> ChildSpec {
    let vitals = Vitals::new("memory", Kind::Worker, Duration::from_secs(10));
    ChildSpec::actor(vitals, None, move |start| {
        (Memory, State { peers: peers.clone(), data: data.clone(), written: Vec::new(), vitals: start.vitals.clone() })
    })
}

struct Memory;

/// Timer.
#[derive(Debug)]
struct Look;

struct State {
    peers: Arc<Peers>,
    data: PathBuf,
    written: Vec<SocketAddr>,
    vitals: Arc<Vitals>,
}

impl Actor for Memory {
    type Msg = Look;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, me: ActorRef<Look>, mut state: State) -> Result<State, ActorProcessingErr> {
        state.written = peers(&state.data);
        state.vitals.started();
        me.send_interval(EVERY, || Look);
        Ok(state)
    }

    async fn handle(&self, _: ActorRef<Look>, _: Look, state: &mut State) -> Result<(), ActorProcessingErr> {
        let up = state.peers.known().into_iter().filter(|known| known.health == Health::Up);
        let mut now: Vec<SocketAddr> = up.filter_map(|known| known.addresses.first().copied()).take(MAX_PEERS).collect();
        now.sort_unstable();
        // Nobody linked is no news: the last life's peers may be on their way back.
        if now.is_empty() || now == state.written {
            return Ok(());
        }
        let (path, text) = (state.data.join(PEERS), now.iter().map(|address| format!("{address}\n")).collect::<String>());
        match tokio::task::spawn_blocking(move || write(&path, text.as_bytes())).await? {
            Ok(()) => state.written = now,
            Err(error) => tracing::warn!(%error, "cannot write down where the peers are"),
        }
        state.vitals.progressed(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_the_same_in_the_next_life_and_nobody_elses() {
        let data = tempfile::tempdir().unwrap();
        let first = secret(data.path()).unwrap();
        assert!(first == secret(data.path()).unwrap());
        assert_eq!(crate::config::open_to_others(&data.path().join(SECRET)).unwrap(), 0);
        let other = tempfile::tempdir().unwrap();
        assert!(first != secret(other.path()).unwrap());
    }

    #[test]
    fn a_spoilt_list_of_peers_is_no_reason_not_to_start() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(peers(data.path()), []);
        fs::write(data.path().join(PEERS), "127.0.0.1:7400\nnonsense\n\u{0}\n[::1]:9\n").unwrap();
        assert_eq!(peers(data.path()), ["127.0.0.1:7400".parse().unwrap(), "[::1]:9".parse().unwrap()]);
    }
}
