//! `control.db` on three nodes: the owner, another BO, an FO.

use std::{fs, path::PathBuf};

use horos_store::rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use horos_wire::{CallError, protocol::control::Edited};
use serde_json::json;

use super::*;
use crate::cli::{InitOptions, RemoteError, initialise};

/// What the planted configuration and the planted row have in them.
const PRIVATE: [&str; 2] = ["needle-in-the-configuration", "dbsync:needle"];

struct Member {
    data: PathBuf,
    role: Role,
}

impl Member {
    fn new(base: &Path, name: &str, role: Role) -> Self {
        let options = InitOptions {
            data: base.join(name),
            cluster: None,
            role,
            name: Some(name.parse().unwrap()),
            listen: None,
            seeds: vec![],
            authority: Some(base.join("authority")),
            control_owner: Some("bo-1".parse().unwrap()),
        };
        initialise(&options, jiff::Timestamp::now()).unwrap();
        Self { data: options.data, role }
    }

    async fn start(&self, listen: &str, seed: Option<SocketAddr>) -> RunningNode {
        let mut horos = program();
        horos.on(Role::Fo).http("/hello", Access::Scope("hello".parse().unwrap()), |_: Opening| async {
            Ok::<_, OpenError>(http::service_fn(|_: Request<Body>| async { http::reply(StatusCode::OK, "hello") }))
        });
        let sources = Sources { data: self.data.clone(), role: Some(self.role), ..Sources::default() }
            .flag("listen.cluster", Some(listen), "--listen")
            .flag("http.tls", Some("plain"), "--tls")
            .flag("peers.seeds", seed, "--seed");
        RunningNode::start(Config::load(&sources).unwrap(), &horos).await.unwrap()
    }

    /// One value of the routes that this node has; none before there are any, or of that name.
    fn route(&self, service: &str, column: &str) -> Option<Option<String>> {
        let file = Connection::open_with_flags(self.data.join("control.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        let sql = format!("SELECT {column} FROM routes WHERE service_name = ?1");
        file.query_row(&sql, [service], |row| row.get(0)).optional().ok().flatten()
    }

    async fn has(&self, service: &str, endpoint: Option<&str>) -> Duration {
        let began = Instant::now();
        loop {
            let found = self.route(service, "endpoint").flatten();
            if found.as_deref() == endpoint {
                return began.elapsed();
            }
            assert!(began.elapsed() < SOON, "{}: {service} is {found:?}, not {endpoint:?}", self.data.display());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether any file that belongs to `control.db`, or to replication, has these bytes in it.
    fn holds(&self, bytes: &[u8]) -> bool {
        let (mut places, mut looked) = (vec![self.data.join("sync")], 0);
        for entry in fs::read_dir(&self.data).unwrap().map(Result::unwrap) {
            if entry.file_name().to_str().unwrap().starts_with("control.db") {
                places.push(entry.path());
            }
        }
        while let Some(place) = places.pop() {
            if place.is_dir() {
                places.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
            } else if let Ok(found) = fs::read(&place) {
                looked += found.len();
                if found.windows(bytes.len()).any(|window| window == bytes) {
                    return true;
                }
            }
        }
        assert!(looked > 4096, "there are files");
        false
    }
}

async fn operator(base: &Path, node: &RunningNode) -> Operator {
    let via = Via { endpoint: node.address().into(), identity: base.join("bo-1/operator") };
    Operator::connect(&via, program().policy().clone(), Instant::now() + SOON).await.unwrap()
}

async fn set(operator: &mut Operator, service: &str, endpoint: &str) -> Result<Edited, RemoteError> {
    let config = json!({ "timeout_ms": 5_000, "authorization": { "file": PRIVATE[0] } }).to_string();
    let ask = json!({ "set_route": { "service": service, "strategy": "http", "endpoint": endpoint, "config": config,
        "expected": null, "why": "a test" } });
    let answer = operator.call_json(&"horos.control@bo-1".parse().unwrap(), &ask.to_string(), Instant::now() + SOON, None).await?;
    Ok(serde_json::from_str(&answer).unwrap())
}

async fn key(operator: &mut Operator) -> String {
    let create =
        Create { name: "test".into(), owner: "me".into(), scopes: vec!["hello".parse().unwrap()], expires: None, per_minute: None };
    operator.keys(&"horos.keys@bo-1".parse().unwrap(), create).await.unwrap().secret.unwrap().reveal().to_owned()
}

async fn opens(node: &RunningNode, key: &str) {
    let (shown, end) = (format!("Authorization: Bearer {key}\r\n"), Instant::now() + SOON);
    while get(node.address(), "/hello", &shown).await.0 != 200 {
        assert!(Instant::now() < end, "the key opens nothing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_is_on_every_node_and_on_an_fo_nothing_that_it_does_not_need() {
    horos_link::tls::install_default_provider();
    let base = tempfile::tempdir().unwrap();
    let members = [("bo-1", Role::Bo), ("bo-2", Role::Bo), ("fo-1", Role::Fo)].map(|(name, role)| Member::new(base.path(), name, role));
    let [owner, other, front] = &members;
    let first = owner.start("127.0.0.1:0", None).await;
    let address = first.address();
    let second = other.start("127.0.0.1:0", Some(address)).await;
    let third = front.start("127.0.0.1:0", Some(address)).await;
    let mut at_owner = operator(base.path(), &first).await;
    let secret = key(&mut at_owner).await;
    let hash = horos_identity::hash(&secret).unwrap().0;
    // Through any node: the one asked says where the owner is.
    let (mut at_other, mut at_front) = (operator(base.path(), &second).await, operator(base.path(), &third).await);
    set(&mut at_owner, PRIVATE[1], "https://example.org/hidden").await.unwrap();
    let edited = set(&mut at_front, "mail", "https://example.org/0").await.unwrap();
    assert_eq!(&*edited.route.unwrap().strategy, "http");
    other.has("mail", Some("https://example.org/0")).await;
    front.has("mail", Some("https://example.org/0")).await;
    let mut took = Vec::new();
    for n in 1..=5 {
        let endpoint = format!("https://example.org/{n}");
        set(if n % 2 == 0 { &mut at_owner } else { &mut at_other }, "mail", &endpoint).await.unwrap();
        let began = Instant::now();
        other.has("mail", Some(&endpoint)).await;
        front.has("mail", Some(&endpoint)).await;
        took.push(began.elapsed());
    }
    took.sort();
    assert!(took[2] < Duration::from_secs(1), "{took:?}");
    opens(&third, &secret).await;

    // The other BO has it whole, the FO less, and no key is in either.
    assert!(other.route("mail", "config").unwrap().unwrap().contains(PRIVATE[0]));
    assert!(other.route(PRIVATE[1], "strategy").is_some() && front.route(PRIVATE[1], "strategy").is_none());
    assert_eq!(front.route("mail", "strategy"), Some(Some("http".into())));
    assert!(front.route("mail", "config").is_none_or(|config| config.is_none()));
    assert_eq!(front.route("mail", "policy"), Some(Some(r#"{"timeout_ms":5000}"#.into())));
    assert!(owner.holds(&hash), "the search finds what is there");
    assert!(!other.holds(&hash) && other.holds(PRIVATE[0].as_bytes()));
    for private in [&PRIVATE[0].as_bytes(), &PRIVATE[1].as_bytes(), &&hash[..], &b"dbsync:".as_slice(), &b"a test".as_slice()] {
        let shown = String::from_utf8_lossy(private);
        assert!(!front.holds(private), "the FO has {shown:?}");
    }
    for member in [other, front] {
        let file = Connection::open(member.data.join("control.db")).unwrap();
        let theirs = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%key%' OR name LIKE '%token%' OR name = 'edits'";
        assert_eq!(file.query_row(theirs, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }

    // With the owner away nobody edits, and everybody goes on with what there is.
    at_owner.close().await;
    first.stop().await;
    drop(first);
    let error = set(&mut at_other, "mail", "https://example.org/away").await.unwrap_err();
    assert!(matches!(error, RemoteError::Call(CallError::NoEffect(_))), "{error:?}");
    for (member, node) in [(other, &second), (front, &third)] {
        assert_eq!(member.route("mail", "endpoint"), Some(Some("https://example.org/5".into())));
        assert_eq!(get(node.address(), "/livez", "").await.0, 200);
    }
    let back = owner.start(&address.to_string(), None).await;
    let mut at_owner = operator(base.path(), &back).await;
    set(&mut at_owner, "mail", "https://example.org/back").await.unwrap();
    let ask = json!({ "delete_route": { "service": PRIVATE[1], "expected": null, "why": null } }).to_string();
    at_owner.call_json(&"horos.control@bo-1".parse().unwrap(), &ask, Instant::now() + SOON, None).await.unwrap();
    for member in [other, front] {
        member.has("mail", Some("https://example.org/back")).await;
        member.has(PRIVATE[1], None).await;
    }
    for operator in [&mut at_owner, &mut at_other, &mut at_front] {
        operator.close().await;
    }
    for node in [third, second, back] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_before_lets_in_at_its_start_whoever_it_knew() {
    horos_link::tls::install_default_provider();
    let base = tempfile::tempdir().unwrap();
    let (owner, front) = (Member::new(base.path(), "bo-1", Role::Bo), Member::new(base.path(), "fo-1", Role::Fo));
    let first = owner.start("127.0.0.1:0", None).await;
    let second = front.start("127.0.0.1:0", Some(first.address())).await;
    let mut at_owner = operator(base.path(), &first).await;
    let secret = key(&mut at_owner).await;
    set(&mut at_owner, "mail", "https://example.org/").await.unwrap();
    front.has("mail", Some("https://example.org/")).await;
    opens(&second, &secret).await;
    at_owner.close().await;
    second.stop().await;
    first.stop().await;
    drop((first, second));
    // As it was: the mirror under the name that the replica has now.
    for ending in ["", "-wal", "-shm"] {
        let (old, new) = (front.data.join(format!("control.db{ending}")), front.data.join(format!("keys.db{ending}")));
        let _ = fs::remove_file(&old);
        // Copied, because this process may still have the file of the node that has ended.
        if ending != "-shm" {
            let _ = fs::copy(&new, old);
        }
        let _ = fs::remove_file(new);
    }
    assert!(front.holds(&horos_identity::hash(&secret).unwrap().0));
    let alone = front.start("127.0.0.1:0", None).await;
    let shown = format!("Authorization: Bearer {secret}\r\n");
    assert_eq!(get(alone.address(), "/hello", &shown).await.0, 200, "at once, and without the owner");
    assert!(front.data.join("keys.db").exists());
    assert!(!front.data.join("control.db").exists() || !front.holds(&horos_identity::hash(&secret).unwrap().0));
    alone.stop().await;
}
