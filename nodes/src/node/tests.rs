//! Nodes in this process, asked over plain HTTP on loopback: what is encrypted is the edge's own tests' to ask.

use std::{net::SocketAddr, path::Path};

use horos_supervision::OpenError;
use horos_tools::{
    Output,
    native::{Ability, Invocation},
};
use horos_wire::{Role, protocol::keys::Create};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::{
    Opening, Operator,
    cli::{Remote as _, UpLayout, Via, lay_out},
    config::Sources,
    http::{self, Access, Body, Request, StatusCode},
};

const SOON: Duration = Duration::from_secs(10);

/// A node with a service at `/hello` that wants the scope `hello`, and at `/slow` for everybody.
fn program() -> Horos {
    let mut horos = Horos::new(false);
    let scope = "hello".parse().unwrap();
    horos.on(Role::Bo).http("/hello", Access::Scope(scope), |_: Opening| async {
        Ok::<_, OpenError>(http::service_fn(|_: Request<Body>| async { http::reply(StatusCode::OK, "hello") }))
    });
    horos.on(Role::Bo).http("/slow", Access::Public, |_: Opening| async {
        Ok::<_, OpenError>(http::service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            http::reply(StatusCode::OK, "slow")
        }))
    });
    horos.tool("whose", Ability::Reads, |node: Opening, call: Invocation| async move {
        let asked = node.context().call().trace == call.context.trace;
        Ok(Output::json(
            json!({ "node": node.context().node().name, "caller": call.caller.id(), "n": call.arguments["n"], "asked": asked }),
        ))
    });
    horos
}

struct One {
    base: TempDir,
    layout: UpLayout,
}

impl One {
    fn new() -> Self {
        horos_link::tls::install_default_provider();
        let base = tempfile::tempdir().unwrap();
        let layout = lay_out(base.path(), jiff::Timestamp::now()).unwrap();
        Self { base, layout }
    }

    fn data(&self) -> &Path {
        &self.layout.bo
    }

    async fn start(&self, flags: &[(&str, &str)]) -> RunningNode {
        let mut sources = Sources { data: self.data().to_owned(), ..Sources::default() }
            .flag("listen.cluster", Some("127.0.0.1:0"), "--listen")
            .flag("http.tls", Some("plain"), "--tls");
        for (path, value) in flags {
            sources = sources.flag(path, Some(value), path);
        }
        RunningNode::start(Config::load(&sources).unwrap(), &program()).await.unwrap()
    }

    async fn operator(&self, node: &RunningNode) -> Operator {
        let via = Via { endpoint: node.address().into(), identity: self.layout.operator.clone() };
        Operator::connect(&via, program().policy().clone(), Instant::now() + SOON).await.unwrap()
    }
}

/// The status and the body that `GET path` is answered with, over a connection of its own.
async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, connection.read_to_string(&mut answer)).await.unwrap().unwrap();
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

#[tokio::test]
async fn a_node_answers_over_http_on_the_port_that_it_says_and_wants_the_scope() {
    let one = One::new();
    let node = one.start(&[]).await;
    let address = node.address();
    assert_eq!(std::fs::read_to_string(one.data().join(ADDRESS_FILE)).unwrap(), format!("{address}\n"));
    assert_eq!(get(address, "/livez", "").await.0, 200);
    assert_eq!(get(address, "/readyz?verbose", "").await.0, 200);
    for (path, status) in [("/hello", 401), ("/metrics", 401), ("/nothing", 404)] {
        assert_eq!(get(address, path, "").await.0, status, "{path}");
    }
    let mut operator = one.operator(&node).await;
    let serving = operator.serving().await.unwrap().unwrap();
    assert_eq!((&*serving.addresses, serving.maintenance), (&[format!("http://{address}").into()][..], None));
    let create = |scopes: &[&str]| Create {
        name: "test".into(),
        owner: "me".into(),
        scopes: scopes.iter().map(|scope| scope.parse().unwrap()).collect(),
        expires: None,
        per_minute: None,
    };
    let owner = "horos.keys@bo-1".parse().unwrap();
    for (scopes, hello, metrics) in [(&["hello"][..], 200, 403), (&["metrics"], 403, 200)] {
        let key = operator.keys(&owner, create(scopes)).await.unwrap().secret.unwrap();
        // The owner's own tables: nothing has to be fetched first.
        let shown = format!("Authorization: Bearer {}\r\n", key.reveal());
        assert_eq!(get(address, "/hello", &shown).await.0, hello);
        let (status, body) = get(address, "/metrics", &shown).await;
        assert_eq!(status, metrics);
        if metrics == 200 {
            assert!(body.contains("horos_actor_restarts_total{actor=\"root/data/keys/horos.keys\"} 0"), "{body}");
        }
    }
    operator.close().await;
    node.stop().await;
    assert!(!one.data().join(ADDRESS_FILE).exists());
}

#[tokio::test]
async fn administration_stays_on_the_clusters_address() {
    let one = One::new();
    let node = one.start(&[("listen.public", "127.0.0.1:0")]).await;
    let written = std::fs::read_to_string(one.data().join(ADDRESS_FILE)).unwrap();
    let [cluster, public] = written.lines().map(|line| line.parse().unwrap()).collect::<Vec<SocketAddr>>()[..] else { panic!("{written}") };
    assert_eq!(cluster, node.address());
    for (address, metrics, hello) in [(cluster, 401, 404), (public, 404, 401)] {
        assert_eq!(get(address, "/livez", "").await.0, 200);
        assert_eq!(get(address, "/metrics", "").await.0, metrics);
        assert_eq!(get(address, "/hello", "").await.0, hello);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_node_on_every_address_tells_others_where_it_can_be_dialled_or_nothing() {
    let one = One::new();
    for (advertise, told) in [("127.0.0.1, [::1]:7499", Some("[::1]:7499")), ("localhost:7498", Some("127.0.0.1:7498")), ("", None)] {
        let node = one.start(&[("listen.cluster", "0.0.0.0:0"), ("http.tls", "cluster"), ("listen.advertise", advertise)]).await;
        let addresses = node.doors.endpoint.peers().addresses();
        match told {
            None => assert_eq!(addresses, []),
            Some(told) => assert!(addresses.contains(&told.parse().unwrap()), "{addresses:?}"),
        }
        if advertise.starts_with("127") {
            assert_eq!(addresses[0], SocketAddr::from(([127, 0, 0, 1], node.address().port())), "the port that was bound");
        }
        node.stop().await;
    }
    let sources = Sources { data: one.data().to_owned(), ..Sources::default() }
        .flag("listen.cluster", Some("127.0.0.1:0"), "--listen")
        .flag("listen.advertise", Some("bo-1.invalid:7400"), "HOROS__LISTEN__ADVERTISE");
    let error = RunningNode::start(Config::load(&sources).unwrap(), &program()).await.err().unwrap();
    assert!(matches!(error, NodeError::Advertise(_)) && error.to_string().contains("bo-1.invalid:7400"), "{error}");
}

#[tokio::test]
async fn maintenance_is_ordered_told_kept_and_ended() {
    let one = One::new();
    let node = one.start(&[]).await;
    let mut operator = one.operator(&node).await;
    let here = horos_wire::Scope::Any;
    operator.maintain(&here, Some("back at noon")).await.unwrap();
    let (status, body) = get(node.address(), "/slow", "").await;
    assert!(status == 503 && body.contains("back at noon"), "{status} {body}");
    assert_eq!(get(node.address(), "/livez", "").await.0, 200);
    assert_eq!(operator.serving().await.unwrap().unwrap().maintenance.as_deref(), Some("back at noon"));
    assert!(operator.maintain(&here, Some(&"x".repeat(501))).await.is_err());
    operator.close().await;
    node.stop().await;
    drop(node);
    let node = one.start(&[]).await;
    assert_eq!(get(node.address(), "/slow", "").await.0, 503, "over a restart");
    let mut operator = one.operator(&node).await;
    operator.maintain(&here, None).await.unwrap();
    assert_eq!(get(node.address(), "/slow", "").await.0, 200);
    operator.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_stop_is_told_first_and_then_finishes_what_is_in_hand() {
    let one = One::new();
    let node = Arc::new(one.start(&[("drain.notice", "1500ms")]).await);
    let address = node.address();
    let stopping = tokio::spawn({
        let node = node.clone();
        async move { node.stop().await }
    });
    let end = Instant::now() + SOON;
    while get(address, "/readyz", "").await.0 != 503 {
        assert!(Instant::now() < end, "it never said that it is not ready");
    }
    // Served all the same while whoever spreads load looks elsewhere, and to its end when the drain has begun meanwhile.
    let late = tokio::spawn(async move { get(address, "/slow", "").await });
    assert_eq!(get(address, "/slow", "").await.0, 200);
    assert_eq!(late.await.unwrap().0, 200);
    stopping.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    drop(one.base);
}

#[tokio::test]
async fn a_service_that_cannot_be_opened_anew_is_tried_again_and_answers_503_meanwhile() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let one = One::new();
    let mut horos = Horos::new(false);
    let opened = Arc::new(AtomicU32::new(0));
    let count = opened.clone();
    horos.on(Role::Bo).http("/late", Access::Public, move |_: Opening| {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if nth == 1 {
                return Err(OpenError::from("not yet"));
            }
            Ok(http::service_fn(move |_: Request<Body>| async move { http::reply(StatusCode::OK, &nth) }))
        }
    });
    let sources = Sources { data: one.data().to_owned(), ..Sources::default() }
        .flag("listen.cluster", Some("127.0.0.1:0"), "--listen")
        .flag("http.tls", Some("plain"), "--tls");
    let node = RunningNode::start(Config::load(&sources).unwrap(), &horos).await.unwrap();
    let answers = async |body: &str| {
        let end = Instant::now() + SOON;
        loop {
            let (status, answer) = get(node.address(), "/late", "").await;
            if (status, answer.as_str()) == (200, body) {
                return;
            }
            assert!(Instant::now() < end && matches!(status, 200 | 503), "{status} {answer}");
        }
    };
    answers("0").await;
    let mut operator = one.operator(&node).await;
    // Whether the order is answered before or after the first try is the supervisor's to choose.
    let _ = operator.restart(&"root/data/http/late".parse().unwrap()).await;
    answers("2").await;
    operator.close().await;
    node.stop().await;
}

#[test]
fn what_cannot_be_mounted_is_told_before_anything_starts() {
    let open =
        |_: Opening| async { Ok::<_, OpenError>(http::service_fn(|_: Request<Body>| async { http::reply(StatusCode::OK, "hello") })) };
    let mut horos = Horos::new(false);
    horos.on(Role::Bo).http("/hello", Access::Public, open);
    horos.on(Role::Fo).http("/hello", Access::Public, open);
    assert_eq!(horos.problems(), [] as [&str; 0]);
    for (role, prefix) in [(Role::Bo, "/hello"), (Role::Bo, "/metrics"), (Role::Bo, "hello/"), (Role::Operator, "/other")] {
        let before = horos.problems().len();
        horos.on(role).http(prefix, Access::Public, open);
        assert_eq!(horos.problems().len(), before + 1, "{prefix}: {:?}", horos.problems());
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_before_anything_is_opened() {
    let one = One::new();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = tcp.local_addr().unwrap().to_string();
    let sources = Sources { data: one.data().to_owned(), ..Sources::default() }.flag("listen.cluster", Some(&taken), "--listen");
    let error = RunningNode::start(Config::load(&sources).unwrap(), &program()).await.err().unwrap();
    assert!(matches!(error, NodeError::Listen(_)) && error.to_string().contains(&taken), "{error}");
    assert!(!one.data().join("control.db").exists() && !one.data().join(ADDRESS_FILE).exists());
}

mod limits {
    use horos_supervision::{Context, Handle, OnStuck, Restart, Service};
    use horos_wire::{Never, tree::Actor};
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(super) struct Hang {}
    horos_wire::protocol! {
        pub(super) Hanging = "hanging" v1 { 1 hang: Hang => (); }
    }
    struct Hanger;
    impl Service for Hanger {
        type Protocol = Hanging;
    }
    impl Handle<Hang> for Hanger {
        async fn handle(&mut self, _: Hang, _: &Context) -> Result<(), Never> {
            std::future::pending().await
        }
    }

    fn find<'a>(actor: &'a Actor, name: &str) -> Option<&'a Actor> {
        if *actor.name == *name { Some(actor) } else { actor.children.iter().find_map(|child| find(child, name)) }
    }

    #[tokio::test]
    async fn a_services_own_limits_are_those_it_runs_with() {
        let one = One::new();
        let mut horos = Horos::new(false);
        let open = |_: Opening| async { Ok::<_, OpenError>(Hanger) };
        let soon = Duration::from_millis(50);
        horos.on(Role::Bo).service("usual", Restart::Permanent, open).shutdown(soon).to(&[Role::Operator]);
        let guarded = horos.on(Role::Bo).service("guarded", Restart::Permanent, open);
        guarded.mailbox(3).stuck_after(soon).on_stuck(OnStuck::Restart).to(&[Role::Operator]);
        assert_eq!(horos.problems(), [] as [&str; 0]);
        let sources = Sources { data: one.data().to_owned(), ..Sources::default() }
            .flag("listen.cluster", Some("127.0.0.1:0"), "--listen")
            .flag("http.tls", Some("plain"), "--tls");
        let node = RunningNode::start(Config::load(&sources).unwrap(), &horos).await.unwrap();
        let via = Via { endpoint: node.address().into(), identity: one.layout.operator.clone() };
        let mut operator = Operator::connect(&via, horos.policy().clone(), Instant::now() + SOON).await.unwrap();
        for name in ["usual", "guarded"] {
            operator.cast_json(&format!("{name}@bo-1").parse().unwrap(), r#"{"hang":{}}"#, Instant::now() + SOON).await.unwrap();
        }
        let end = Instant::now() + SOON;
        loop {
            let tree = operator.tree(false).await.unwrap().remove(0).tree.unwrap();
            let (usual, guarded) = (find(&tree, "usual").unwrap(), find(&tree, "guarded").unwrap());
            assert_eq!((usual.mailbox_limit, guarded.mailbox_limit, usual.restarts), (1024, 3, 0));
            if guarded.restarts == 1 && usual.busy_with.is_some() {
                break;
            }
            assert!(Instant::now() < end, "{guarded:?}");
        }
        // It never ends what it is at, and is waited for as long as it was given.
        let began = Instant::now();
        operator.restart(&"usual@bo-1".parse().unwrap()).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        operator.close().await;
        node.stop().await;
    }

    #[test]
    fn a_mailbox_for_no_message_is_told_before_anything_starts() {
        for (size, problems) in [(0, 1), (1, 0), (1_000_000, 0), (1_000_001, 1)] {
            let mut horos = Horos::new(false);
            let open = |_: Opening| async { Ok::<_, OpenError>(Hanger) };
            horos.on(Role::Bo).service("hanging", Restart::Permanent, open).mailbox(size);
            assert_eq!(horos.problems().len(), problems, "{size}: {:?}", horos.problems());
        }
    }
}

mod control;
mod tools;
