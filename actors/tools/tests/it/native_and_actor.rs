//! Functions of the program and methods of actors, as tools.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use horos_router::{Router, breaker::Breakers, strategy::Strategies};
use horos_supervision::{
    Context, Exchange, Handle, Service, ServiceSpec, Supervisor, SupervisorHandle, SupervisorSpec, service, supervisor::Strategy,
};
use horos_tools::{
    Call, Caller, Kind, Mode, Output, Problem, Row, Run, ToolError, Who,
    actor::Actors,
    native::{Ability, Invocation, Natives},
};
use horos_wire::{
    CallContext, Incarnation, Never, NodeId,
    principal::{Principal, Proof},
    protocol,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::sql_world::{LIMIT, somebody};

fn make(kind: &dyn Kind, mode: Mode, config: Value) -> Result<Arc<dyn Run>, Vec<Problem>> {
    let row = Row { name: "greet".into(), version: 1, ..Row::default() };
    let input = json!({ "type": "object" });
    Ok(kind.check(&row, mode, config.as_object().unwrap(), input.as_object().unwrap())?.run)
}

async fn call(run: &Arc<dyn Run>, caller: &Caller, within: Duration, arguments: Value) -> Result<Output, ToolError> {
    let arguments = arguments.as_object().cloned().unwrap();
    let context = CallContext::default();
    let call = Call { tool: "greet", arguments: &arguments, caller, context: &context, until: Instant::now() + within, max_bytes: 1 << 20 };
    run.run(call).await
}

/// Says when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_function_is_called_by_its_name_or_the_rows() {
    let natives = Natives::new();
    let greet = |call: Invocation| async move { Ok(Output::json(json!({ "hello": call.arguments["name"], "by": call.caller.id() }))) };
    natives.register("greet", Ability::Reads, greet).unwrap();
    assert!(natives.register("greet", Ability::Reads, greet).is_err());
    for config in [json!({}), json!({ "function": "greet" })] {
        let run = make(&natives, Mode::ReadOnly, config).unwrap();
        let said = call(&run, &somebody(), LIMIT, json!({ "name": "ann" })).await.unwrap();
        assert_eq!(said.structured, Some(json!({ "hello": "ann", "by": "key_1" })));
    }
    assert!(make(&natives, Mode::ReadOnly, json!({ "function": "none" })).is_err());
    assert!(make(&natives, Mode::ReadOnly, json!({ "functoin": "greet" })).is_err());
}

#[tokio::test]
async fn a_function_that_writes_is_no_read_only_tools() {
    let natives = Natives::new();
    natives.register("greet", Ability::Writes, |_| async { Ok(Output::default()) }).unwrap();
    assert!(make(&natives, Mode::ReadWrite, json!({})).is_ok());
    let problems = make(&natives, Mode::ReadOnly, json!({})).err().unwrap();
    assert_eq!(&*problems[0].at, "mode");
}

#[tokio::test]
async fn a_function_that_panics_is_an_internal_error_wherever_it_does() {
    let natives = Natives::new();
    natives.register("at once", Ability::Reads, |_| -> std::future::Ready<Result<Output, ToolError>> { panic!("at once") }).unwrap();
    natives
        .register("later", Ability::Reads, |_| async {
            tokio::task::yield_now().await;
            panic!("later")
        })
        .unwrap();
    for function in ["at once", "later"] {
        let run = make(&natives, Mode::ReadOnly, json!({ "function": function })).unwrap();
        let ended = call(&run, &somebody(), LIMIT, json!({})).await;
        assert!(matches!(&ended, Err(ToolError::Internal { .. })), "{ended:?}");
        assert!(!ended.unwrap_err().to_string().contains(function));
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_is_dropped_at_its_deadline() {
    for (ability, undone) in [(Ability::Reads, true), (Ability::Writes, false)] {
        let natives = Natives::new();
        let dropped = Arc::new(AtomicBool::new(false));
        let told = dropped.clone();
        let hang = move |_| {
            let held = Dropped(told.clone());
            async move {
                let _held = held;
                pending::<Result<Output, ToolError>>().await
            }
        };
        natives.register("greet", ability, hang).unwrap();
        let run = make(&natives, Mode::ReadWrite, json!({})).unwrap();
        let ended = call(&run, &somebody(), Duration::from_millis(50), json!({})).await;
        assert!(matches!(ended, Err(ToolError::Deadline { undone: is, .. }) if is == undone), "{ended:?}");
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert!(dropped.load(Ordering::Relaxed), "{ability:?}");
    }
}

/// Reserves some of a stock.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Reserve {
    sku: String,
    quantity: u32,
}
/// Tells who asks.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Whoami {}
/// Never answers.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Hang {}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Reserved {
    left: u32,
}
#[derive(Debug, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{short} short")]
struct Short {
    short: u32,
}

protocol! {
    StockKeeping = "stock" v1 {
        1 reserve: Reserve => Reserved, Short;
        2 whoami: Whoami => Option<String>;
        3 hang: Hang => ();
    }
}

struct Stock;

impl Service for Stock {
    type Protocol = StockKeeping;
}
impl Handle<Reserve> for Stock {
    async fn handle(&mut self, ask: Reserve, _: &Context) -> Result<Reserved, Short> {
        10_u32.checked_sub(ask.quantity).map(|left| Reserved { left }).ok_or_else(|| Short { short: ask.quantity - 10 })
    }
}
impl Handle<Whoami> for Stock {
    async fn handle(&mut self, _: Whoami, cx: &Context) -> Result<Option<String>, Never> {
        let claims = cx.call().claims.as_ref();
        Ok(claims.map(|claims| format!("{:?} {:?}", claims.user.as_deref().unwrap_or(""), claims.token.as_deref().unwrap_or(""))))
    }
}
impl Handle<Hang> for Stock {
    async fn handle(&mut self, _: Hang, _: &Context) -> Result<(), Never> {
        pending().await
    }
}

async fn stock() -> (Actors, SupervisorHandle) {
    let exchange = Exchange::new(NodeId::from_uri("spiffe://shop/bo/bo-1").unwrap(), Incarnation(1));
    let open = |_: Context| async { Ok(Stock) };
    let child = service(&exchange, &tokio::runtime::Handle::current(), ServiceSpec::new("stock".parse().unwrap()), open).unwrap();
    let root = Supervisor::start(SupervisorSpec::new("root", Strategy::OneForOne, vec![child]), None).await.unwrap();
    let router = Router::new(exchange.clone(), Strategies::builtin(), Breakers::new(None, Arc::new(|_, _| {})));
    (Actors::new(router, exchange), root)
}

#[tokio::test]
async fn an_actors_method_is_called_by_service_and_by_address() {
    let (actors, _root) = stock().await;
    for to in [json!({ "service": "stock" }), json!({ "address": "stock" }), json!({ "address": "stock@bo-1" })] {
        let mut config = to.clone();
        config["method"] = "reserve".into();
        let run = make(&actors, Mode::ReadWrite, config).unwrap();
        let done = call(&run, &somebody(), LIMIT, json!({ "sku": "p-1", "quantity": 4 })).await.unwrap();
        assert_eq!(done.structured, Some(json!({ "left": 6 })), "{to}");
        let refused = call(&run, &somebody(), LIMIT, json!({ "sku": "p-1", "quantity": 14 })).await;
        assert_eq!(refused, Err(ToolError::Failed(r#"{"short":4}"#.into())), "{to}");
        let malformed = call(&run, &somebody(), LIMIT, json!({ "sku": "p-1" })).await;
        assert!(matches!(malformed, Err(ToolError::Unavailable(_))), "{malformed:?}");
    }
}

#[tokio::test]
async fn an_actor_is_told_for_whom_it_is_asked() {
    let (actors, _root) = stock().await;
    let run = make(&actors, Mode::ReadOnly, json!({ "service": "stock", "method": "whoami" })).unwrap();
    let proof = Proof::Token { user: "ann".into(), token: "signed".into() };
    let principal = Principal { id: "token".into(), proof, scopes: Box::default(), per_minute: None };
    let ann = Caller { who: Who::Principal(Arc::new(principal)), ..somebody() };
    let told = call(&run, &ann, LIMIT, json!({})).await.unwrap();
    assert!(format!("{:?}", told.content).contains("ann") && format!("{:?}", told.content).contains("signed"), "{told:?}");
}

#[tokio::test]
async fn an_actor_that_does_not_answer_is_given_up_at_the_deadline() {
    let (actors, _root) = stock().await;
    let run = make(&actors, Mode::ReadOnly, json!({ "service": "stock", "method": "hang" })).unwrap();
    let ended = call(&run, &somebody(), Duration::from_millis(50), json!({})).await;
    assert!(matches!(ended, Err(ToolError::Deadline { undone: false, .. })), "{ended:?}");
}

#[tokio::test]
async fn the_nodes_own_actors_and_what_is_not_there_are_no_tools() {
    let (actors, _root) = stock().await;
    for config in [
        json!({ "service": "horos.control", "method": "put" }),
        json!({ "address": "horos.keys@bo", "method": "issue" }),
        json!({ "service": "Horos.control", "method": "put" }),
        json!({ "service": "stock", "address": "stock", "method": "reserve" }),
        json!({ "service": "stock@bo", "method": "reserve" }),
        json!({ "service": "stock", "method": "steal" }),
        json!({ "service": "stock" }),
        json!({ "method": "reserve" }),
        json!({ "service": "stock", "method": "reserve", "as": "admin" }),
    ] {
        assert!(make(&actors, Mode::ReadWrite, config.clone()).is_err(), "{config}");
    }
}
