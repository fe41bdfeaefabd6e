//! The command line's connection against live nodes in this process.

use std::{net::UdpSocket, path::PathBuf};

use horos_supervision::{Handle, OpenError, Restart as Restarts, Service};
use horos_wire::Role;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;
use crate::{
    Horos, Opening,
    cli::{UpLayout, lay_out},
    config::{self, Sources},
    node::RunningNode,
};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Add {
    n: u64,
    note: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Total {}

horos_wire::protocol! {
    Counting = "counting" v1 {
        1 add: Add => u64;
        2 total: Total => u64;
    }
}

struct Counter(u64);

impl Service for Counter {
    type Protocol = Counting;
}

impl Handle<Add> for Counter {
    async fn handle(&mut self, add: Add, _: &Context) -> Result<u64, Never> {
        self.0 += add.n;
        Ok(self.0)
    }
}

impl Handle<Total> for Counter {
    async fn handle(&mut self, _: Total, _: &Context) -> Result<u64, Never> {
        Ok(self.0)
    }
}

struct Pair {
    _base: TempDir,
    bo: RunningNode,
    fo: RunningNode,
    layout: UpLayout,
    policy: Policy,
}

async fn pair() -> Pair {
    // What every binary does first.
    horos_link::tls::install_default_provider();
    let base = tempfile::tempdir().unwrap();
    let layout = lay_out(base.path(), Timestamp::now()).unwrap();
    let mut horos = Horos::new(false);
    let open = |_: Opening| async { Ok::<_, OpenError>(Counter(0)) };
    horos.on(Role::Bo).service("counter", Restarts::Permanent, open).to(&[Role::Fo, Role::Operator]);
    let start =
        async |data: &PathBuf, seeds: Option<SocketAddr>| {
            let sources = Sources { data: data.clone(), ..Sources::default() }
                .flag("listen.cluster", Some("127.0.0.1:0"), "--listen")
                .flag("peers.seeds", Some(seeds.map_or("[]".to_owned(), |seed| seed.to_string())), "--seed");
            RunningNode::start(config::Config::load(&sources).unwrap(), &horos).await.unwrap()
        };
    let bo = start(&layout.bo, None).await;
    let fo = start(&layout.fo, Some(bo.address())).await;
    let policy = horos.policy().clone();
    Pair { _base: base, bo, fo, layout, policy }
}

impl Pair {
    fn via(&self, node: &RunningNode) -> Via {
        Via { endpoint: node.address().into(), identity: self.layout.operator.clone() }
    }

    async fn operator(&self, node: &RunningNode) -> Operator {
        Operator::connect(&self.via(node), self.policy.clone(), soon()).await.unwrap()
    }

    /// An operator of the FO, which knows the BO by then.
    async fn operator_of_fo(&self) -> Operator {
        let mut operator = self.operator(&self.fo).await;
        until(async || operator.tree(true).await.unwrap().iter().any(|node| node.health == Health::Up)).await;
        operator
    }

    async fn total(&self) -> u64 {
        let mut operator = self.operator(&self.bo).await;
        let answer = operator.call_json(&address("counter@bo"), r#"{"total": {}}"#, soon(), None).await.unwrap();
        operator.close().await;
        answer.parse().unwrap()
    }
}

/// A whole command, as it is: on a runtime of its own, which is gone with all that still waits in it when the command ends.
async fn command<T: Send + 'static>(
    pair: &Pair,
    node: &RunningNode,
    work: impl AsyncFnOnce(&mut Operator) -> Result<T, RemoteError> + Send + 'static,
) -> T {
    let (via, policy) = (pair.via(node), pair.policy.clone());
    let whole = move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let mut operator = Operator::connect(&via, policy, soon()).await.unwrap();
            let done = work(&mut operator).await.unwrap();
            operator.close().await;
            done
        })
    };
    tokio::task::spawn_blocking(whole).await.unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// Polls until `reached`, for ten seconds at most.
async fn until(mut reached: impl AsyncFnMut() -> bool) {
    let end = soon();
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !reached().await {
        assert!(Instant::now() < end, "not reached within ten seconds");
        look.tick().await;
    }
}

#[tokio::test]
async fn what_was_sent_is_there_although_the_session_ends_at_once() {
    let pair = pair().await;
    let large = format!(r#"{{"add": {{"n": 1, "note": "{}"}}}}"#, "x".repeat(300_000));
    let _linked = pair.operator_of_fo().await;
    // By the actor's own node, by another that knows where it is, and larger than goes with the others.
    for _ in 0..10 {
        let send = async |operator: &mut Operator| operator.cast_json(&address("counter@bo"), r#"{"add": {"n": 100}}"#, soon()).await;
        command(&pair, &pair.bo, send).await;
        let send = async |operator: &mut Operator| operator.cast_json(&address("counter"), r#"{"add": {"n": 10000}}"#, soon()).await;
        command(&pair, &pair.fo, send).await;
        let large = large.clone();
        let send = async move |operator: &mut Operator| operator.cast_json(&address("counter@bo-1"), &large, soon()).await;
        command(&pair, &pair.bo, send).await;
    }
    until(async || pair.total().await == 101_010).await;
}

#[tokio::test]
async fn a_command_that_ended_leaves_no_session_for_the_silence_to_find() {
    let pair = pair().await;
    let mut stays = pair.operator(&pair.bo).await;
    for _ in 0..3 {
        command(&pair, &pair.bo, async |_| Ok(())).await;
    }
    let begun = Instant::now();
    until(async || {
        let trees = stays.tree(false).await.unwrap();
        let text = serde_json::to_string(&trees).unwrap();
        text.matches("operator@admin").count() == 1
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(1), "a silent peer is given up after 2.5 s: {:?}", begun.elapsed());
    stays.close().await;
}

#[tokio::test]
async fn the_deadline_holds_for_the_whole_way() {
    let pair = pair().await;
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let via = Via { endpoint: silent.local_addr().unwrap().into(), identity: pair.layout.operator.clone() };
    let begun = Instant::now();
    let error = Operator::connect(&via, pair.policy.clone(), begun + Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // Reached, and with no time left for the rest: nothing is done.
    let mut operator = pair.operator_of_fo().await;
    let error = operator.call_json(&address("counter@bo"), r#"{"add": {"n": 1}}"#, Instant::now(), None).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Call(CallError::NoEffect(NoEffect::Expired))), "{error}");
    operator.close().await;
    assert_eq!(pair.total().await, 0);
}

#[tokio::test]
async fn an_actor_is_described_wherever_it_is() {
    let pair = pair().await;
    let mut operator = pair.operator_of_fo().await;
    for place in ["counter", "counter@bo", "counter@bo-1"] {
        let told = operator.describe(&address(place)).await.unwrap();
        let methods: Vec<_> = told.methods.iter().map(|method| &*method.name).collect();
        assert_eq!((&*told.protocol, methods), ("counting", vec!["add", "total"]), "{place}");
    }
    let error = operator.describe(&address("nobody@bo")).await.unwrap_err();
    assert!(matches!(error, RemoteError::Node(NodeError::NoSuchActor(_))), "{error}");
    operator.close().await;
}

#[tokio::test]
async fn every_node_in_reach_says_itself_how_it_is() {
    let pair = pair().await;
    let mut operator = pair.operator_of_fo().await;
    let seen = operator.nodes().await.unwrap();
    let told: Vec<_> = seen.iter().map(|it| (it.node.node.name.as_str(), it.status.as_ref().map(|status| status.ready))).collect();
    assert_eq!(told, [("fo-1", Some(true)), ("bo-1", Some(true))]);
    let json = serde_json::to_value(&seen).unwrap();
    assert_eq!(json[1]["node"]["name"], "bo-1");
    operator.close().await;
}

#[test]
fn the_example_shown_is_a_call_that_can_be_typed_as_it_stands() {
    let mut horos = Horos::new(true);
    assert_eq!(horos.example(), None);
    let open = |_: Opening| async { Ok::<_, OpenError>(Counter(0)) };
    horos.on(Role::Bo).service("counter", Restarts::Permanent, open).to(&[Role::Operator]);
    assert_eq!(horos.example().unwrap(), r#"call counter@bo '{"total":{}}'"#);
}
