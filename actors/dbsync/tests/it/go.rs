//! The Go system's protocol, over real QUIC with the cluster's certificates.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use horos_dbsync::go::{ALPN, Inbox, InboxConfig, Meta, PushError, Pusher, Target};
use horos_link::{
    AlpnHandler, Config, Endpoint, Parts,
    identity::{authority::Authority, certificate::Validity, request},
    tls::{Expected, Tls},
};
use horos_supervision::{Exchange, Strategy, Supervisor, SupervisorHandle, SupervisorSpec};
use horos_wire::{Incarnation, NodeId, Role, policy::Policy};
use jiff::Timestamp;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, VarInt};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);

struct World {
    directory: TempDir,
    authority: Authority,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let validity = Validity::days(Timestamp::now(), 365);
        let authority = Authority::create(&directory.path().join("ca"), &"shop".parse().unwrap(), validity).unwrap();
        Self { directory, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn id(role: Role, name: &str) -> NodeId {
        NodeId { cluster: "shop".parse().unwrap(), role, name: name.parse().unwrap() }
    }

    fn tls(&self, role: Role, name: &str) -> Arc<Tls> {
        let (id, now, home) = (Self::id(role, name), Timestamp::now(), self.path(name));
        let csr = std::fs::read_to_string(request::create(&home, &id).unwrap()).unwrap();
        let (certificate, _) = self.authority.sign(&csr, &id, Validity::usual(now, &id)).unwrap();
        request::install(&home, &certificate, self.authority.certificate_pem(), now).unwrap();
        Arc::new(Tls::open(&home, now).unwrap())
    }

    /// A file of so many bytes, and what is said of it.
    fn file(&self, name: &str, bytes: usize, version: i64) -> (PathBuf, Meta, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|i| (i * 31 % 251) as u8 ^ (version as u8)).collect();
        let path = self.path(name);
        std::fs::write(&path, &content).unwrap();
        let hash = hex::encode(Sha256::digest(&content));
        (path, Meta { version, hash, size: bytes as u64, timestamp: version / 1_000, compressed: false }, content)
    }
}

/// What was taken: the file's content, and its meta.
type Files = Arc<Mutex<Vec<(Vec<u8>, Meta)>>>;

/// A receiver of ours that takes files of `bo-1`.
struct Receiver {
    address: SocketAddr,
    taken: Files,
    refuse: Arc<Mutex<Option<String>>>,
    inbox: PathBuf,
    _endpoint: Endpoint,
    _root: SupervisorHandle,
}

impl Receiver {
    async fn start(world: &World) -> Self {
        let (tls, taken) = (world.tls(Role::Fo, "fo-1"), Files::default());
        let refuse = Arc::new(Mutex::new(None::<String>));
        let (into, why) = (taken.clone(), refuse.clone());
        let take = move |path: PathBuf, meta: Meta| {
            let (into, why) = (into.clone(), why.clone());
            let done: futures_util::future::BoxFuture<'static, Result<(), String>> = Box::pin(async move {
                if let Some(why) = why.lock().clone() {
                    return Err(why);
                }
                into.lock().push((std::fs::read(path).unwrap(), meta));
                Ok(())
            });
            done
        };
        let inbox = world.path("inbox");
        let config = InboxConfig {
            senders: vec![("bo-1".parse().unwrap(), Arc::new(take))],
            directory: inbox.clone(),
            runtime: tokio::runtime::Handle::current(),
            max_age: None,
        };
        let handler: Arc<dyn AlpnHandler> = Arc::new(Inbox::open(tls.clone(), config).unwrap());
        let exchange = Exchange::new(tls.credentials().id().clone(), Incarnation(1));
        let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, Vec::new()), None).await.unwrap();
        let parts = Parts { exchange, policy: Arc::new(Policy::builtin()), tls, release: "test", public: None };
        let handlers = HashMap::from([(ALPN.to_vec(), handler)]);
        let endpoint = Endpoint::open(Config::new(([127, 0, 0, 1], 0).into()), parts, handlers, root.clone()).unwrap();
        for child in endpoint.children() {
            root.add_child(child).await.unwrap();
        }
        let address = endpoint.local_addr().unwrap();
        Self { address, taken, refuse, inbox, _endpoint: endpoint, _root: root }
    }

    fn target(&self) -> Target {
        Target { node: World::id(Role::Fo, "fo-1"), address: self.address }
    }

    fn is_clean(&self) -> bool {
        std::fs::read_dir(&self.inbox).unwrap().next().is_none()
    }
}

/// A sender that is not ours.
async fn dial(tls: &Tls, to: SocketAddr) -> (quinn::Endpoint, Connection) {
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let client = tls.client(&[ALPN], Expected::AnyNode);
    let connection = endpoint.connect_with(client, to, "dbsync").unwrap().await.unwrap();
    (endpoint, connection)
}

fn start(meta: &[u8]) -> Vec<u8> {
    let mut bytes = b"SYN1".to_vec();
    bytes.extend((meta.len() as u32).to_be_bytes());
    bytes.extend(meta);
    bytes
}

/// Writes `bytes` on the first stream, and says how the receiver closes.
async fn told(connection: &Connection, bytes: &[u8], finish: bool) -> (u64, String) {
    // A receiver that has seen enough closes before it has read all, or anything.
    if let Ok((mut stream, _)) = connection.open_bi().await {
        let _ = stream.write_all(bytes).await;
        if finish {
            let _ = stream.finish();
        }
    }
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("the receiver says something");
    let ConnectionError::ApplicationClosed(close) = closed else { panic!("{closed}") };
    (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_in_its_place_when_the_sender_is_told_so_plain_and_as_gzip() {
    let world = World::new();
    let receiver = Receiver::start(&world).await;
    let pusher = Pusher::open(world.tls(Role::Bo, "bo-1")).unwrap();
    for (version, compressed) in [(1_000, false), (2_000, true)] {
        let (path, meta, content) = world.file("public.db", 3 << 20, version);
        let meta = Meta { compressed, ..meta };
        pusher.push(&receiver.target(), &path, &meta).await.unwrap();
        let taken = receiver.taken.lock().pop().expect("it was in its place before the sender was told");
        assert!(taken == (content, meta), "another file arrived");
    }
    // What is there already is not put there again, and the sender is told that it is there.
    let (path, meta, _) = world.file("public.db", 3 << 20, 2_000);
    pusher.push(&receiver.target(), &path, &meta).await.unwrap();
    assert!(receiver.taken.lock().is_empty() && receiver.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_cannot_use_the_file_says_why_and_is_asked_again() {
    let world = World::new();
    let receiver = Receiver::start(&world).await;
    let pusher = Pusher::open(world.tls(Role::Bo, "bo-1")).unwrap();
    let (path, meta, _) = world.file("public.db", 4096, 1_000);
    *receiver.refuse.lock() = Some("no space left".to_owned());
    let refused = pusher.push(&receiver.target(), &path, &meta).await;
    assert!(matches!(&refused, Err(PushError::Refused(why)) if why == "no space left"), "{refused:?}");
    *receiver.refuse.lock() = None;
    pusher.push(&receiver.target(), &path, &meta).await.unwrap();
    assert!(receiver.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_is_listed_is_heard() {
    let world = World::new();
    let receiver = Receiver::start(&world).await;
    let (path, meta, content) = world.file("public.db", 4096, 1_000);
    for (role, name) in [(Role::Bo, "bo-2"), (Role::Fo, "fo-2"), (Role::Operator, "ana")] {
        let (_endpoint, connection) = dial(&world.tls(role, name), receiver.address).await;
        let mut bytes = start(&meta.encode());
        bytes.extend(&content);
        assert_eq!(told(&connection, &bytes, true).await, (1, "not admitted".to_owned()), "{name}");
    }
    // And nothing goes to a receiver that is somebody else than it must be.
    let pusher = Pusher::open(world.tls(Role::Bo, "bo-1")).unwrap();
    let other = Target { node: World::id(Role::Fo, "fo-9"), ..receiver.target() };
    assert!(matches!(pusher.push(&other, &path, &meta).await, Err(PushError::Dial(..))));
    assert!(receiver.taken.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cut_off_false_too_large_or_old_is_refused_with_the_reason_and_changes_nothing() {
    let world = World::new();
    let receiver = Receiver::start(&world).await;
    let tls = world.tls(Role::Bo, "bo-1");
    let (_, meta, content) = world.file("public.db", 100_000, 5_000);
    let with = |meta: &Meta, content: &[u8]| [start(&meta.encode()), content.to_vec()].concat();
    let wrong = Meta { hash: "0".repeat(64), ..meta.clone() };
    let more = Meta { size: meta.size + 1, ..meta.clone() };
    let huge = format!(r#"{{"hash":"{}","size":{}}}"#, meta.hash, (512u64 << 20) + 1);
    let zip = Meta { compressed: true, ..meta.clone() };
    let mut long = b"SYN1".to_vec();
    long.extend((2u32 << 20).to_be_bytes());
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("magic", b"SYN2\0\0\0\x02{}".to_vec(), "invalid magic"),
        ("a meta of 2 MiB", long, "meta too large: 2097152 bytes"),
        ("a short hash", start(br#"{"hash":"abc","size":7}"#), "hash"),
        ("a lying size", start(huge.as_bytes()), "snapshot too large"),
        ("another content", with(&wrong, &content), "hash mismatch"),
        ("cut off", with(&more, &content), "size mismatch: got 100000, expected 100001"),
        ("no gzip", with(&zip, &content), "gzip reader"),
        ("nothing behind its length", start(b""), "meta"),
    ];
    for (what, bytes, why) in cases {
        let (_endpoint, connection) = dial(&tls, receiver.address).await;
        let (code, reason) = told(&connection, &bytes, true).await;
        assert!(code == 1 && reason.contains(why), "{what}: {code} {reason}");
    }
    assert!(receiver.taken.lock().is_empty() && receiver.is_clean());
    // A good one, with more behind it than it says; then one that is older, and the sender's replay of it.
    let (_endpoint, connection) = dial(&tls, receiver.address).await;
    assert_eq!(told(&connection, &with(&meta, &[content.clone(), vec![7; 50_000]].concat()), true).await.0, 0);
    let (_, older, content) = world.file("older.db", 5_000, 4_000);
    let (_endpoint, connection) = dial(&tls, receiver.address).await;
    assert!(told(&connection, &with(&older, &content), true).await.1.contains("older"));
    assert_eq!(receiver.taken.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_the_go_system_that_closes_right_after_its_last_byte_is_read_to_the_end() {
    let world = World::new();
    let receiver = Receiver::start(&world).await;
    let tls = world.tls(Role::Bo, "bo-1");
    let (_, meta, content) = world.file("public.db", 200_000, 1_000);
    let (endpoint, connection) = dial(&tls, receiver.address).await;
    let (mut stream, _) = connection.open_bi().await.unwrap();
    stream.write_all(&[start(&meta.encode()), content.clone()].concat()).await.unwrap();
    stream.finish().unwrap();
    // Everything has arrived once it is acknowledged; it may lie there unread.
    tokio::time::timeout(PATIENCE, stream.stopped()).await.expect("acknowledged").unwrap();
    connection.close(VarInt::from_u32(0), b"done");
    endpoint.wait_idle().await;
    let until = tokio::time::Instant::now() + PATIENCE;
    while receiver.taken.lock().is_empty() {
        assert!(tokio::time::Instant::now() < until, "it was not taken");
        tokio::task::yield_now().await;
    }
    assert!(receiver.taken.lock()[0] == (content, meta));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_file_of_a_sender_does_not_touch_the_first() {
    let world = World::new();
    let receiver = Receiver::start(&world).await;
    let tls = world.tls(Role::Bo, "bo-1");
    let (_, meta, content) = world.file("public.db", 100_000, 1_000);
    let (_first, slow) = dial(&tls, receiver.address).await;
    let (mut stream, _) = slow.open_bi().await.unwrap();
    stream.write_all(&[start(&meta.encode()), content[..50_000].to_vec()].concat()).await.unwrap();
    // Until the receiver is at it.
    let until = tokio::time::Instant::now() + PATIENCE;
    while receiver.is_clean() {
        assert!(tokio::time::Instant::now() < until, "it was not begun");
        tokio::task::yield_now().await;
    }
    let (_second, other) = dial(&tls, receiver.address).await;
    assert_eq!(told(&other, &start(&meta.encode()), true).await, (1, "another snapshot is being received".to_owned()));
    stream.write_all(&content[50_000..]).await.unwrap();
    stream.finish().unwrap();
    let closed = tokio::time::timeout(PATIENCE, slow.closed()).await.unwrap();
    assert!(matches!(closed, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(0)));
    assert!(receiver.taken.lock()[0] == (content, meta));
}

/// A receiver that closes as it is told to.
fn foreign_receiver(tls: &Tls, code: u32, reason: &'static [u8], read: bool) -> SocketAddr {
    let endpoint = quinn::Endpoint::server(tls.server(&[ALPN]), ([127, 0, 0, 1], 0).into()).unwrap();
    let address = endpoint.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await.unwrap();
            let (_send, mut receive) = connection.accept_bi().await.unwrap();
            if read {
                receive.read_to_end(1 << 20).await.unwrap();
            }
            connection.close(VarInt::from_u32(code), reason);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_of_the_receiver_is_its_answer() {
    let world = World::new();
    let (theirs, pusher) = (world.tls(Role::Fo, "fo-1"), Pusher::open(world.tls(Role::Bo, "bo-1")).unwrap());
    let (path, meta, _) = world.file("public.db", 10_000, 1_000);
    let target = |address| Target { node: World::id(Role::Fo, "fo-1"), address };
    let address = foreign_receiver(&theirs, 0, b"done", true);
    pusher.push(&target(address), &path, &meta).await.unwrap();
    let address = foreign_receiver(&theirs, 1, b"hash mismatch: got\x1b[2J", true);
    let refused = pusher.push(&target(address), &path, &meta).await.unwrap_err();
    assert_eq!(refused.to_string(), "refused: hash mismatch: got [2J");
    // Before it has read anything: still its word.
    let address = foreign_receiver(&theirs, 1, b"no database", false);
    assert!(matches!(pusher.push(&target(address), &path, &meta).await, Err(PushError::Refused(_))));
    let missing: &Path = Path::new("/nowhere/public.db");
    let address = foreign_receiver(&theirs, 0, b"done", true);
    assert!(matches!(pusher.push(&target(address), missing, &meta).await, Err(PushError::Read(_) | PushError::Refused(_))));
    assert!(matches!(pusher.push(&target(address), &path, &Meta { size: (512 << 20) + 1, ..meta }).await, Err(PushError::TooLarge(_))));
}
