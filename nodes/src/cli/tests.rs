use super::*;
use std::{cell::RefCell, ffi::OsString, future::Future, path::Path, process::ExitCode, time::Instant};

use horos_wire::{
    CallError, NoEffect, NodeName,
    policy::Policy as Rules,
    protocol::{
        keys::{self, KeysError},
        node::{Description, Offered, ServingReport, StatusReport},
    },
    tree::{Health, NodeTree, Recording},
};

use crate::config::{Config, DataDir};

fn parse(line: &str) -> Result<(Cli, String), clap::Error> {
    Cli::parse_as(line.split(' ').map(OsString::from))
}

#[test]
fn the_definitions_are_sound() {
    Cli::command_as("my-shop").debug_assert();
}

#[test]
fn the_name_is_the_programs_own() {
    let (_, bin) = parse("/opt/bin/my-shop nodes").unwrap();
    assert_eq!(bin, "my-shop");
    fn check(command: &mut clap::Command) {
        let help = command.render_long_help().to_string();
        assert!(!help.contains(BIN) && !help.contains("horos call") && !help.contains("horos init"), "{help}");
        let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            check(command.find_subcommand_mut(name).unwrap());
        }
    }
    let mut command = Cli::command_as("my-shop");
    command.build();
    check(&mut command);
    let call = command.find_subcommand_mut("call").unwrap().render_long_help().to_string();
    assert!(call.contains("my-shop call stock@bo") && call.contains("Examples:"), "{call}");
}

#[test]
fn every_command_shows_examples() {
    let command = Cli::command_as("x");
    for sub in command.get_subcommands().filter(|sub| !sub.has_subcommands()) {
        assert!(sub.get_after_help().is_some_and(|help| help.to_string().contains("Examples:")), "{}", sub.get_name());
    }
}

#[test]
fn an_actor_is_named_by_service_or_path() {
    let there = Scope::Node("bo-1".parse().unwrap());
    for actor in ["root/link", "root/data/store/app.db:writer", "root/link/sessions/fo@fo-1#0"] {
        let path: ActorPath = format!("{actor}@bo-1").parse().unwrap();
        assert_eq!((&*path.actor, &path.scope), (actor, &there));
        let path: ActorPath = actor.parse().unwrap();
        assert_eq!((&*path.actor, path.scope), (actor, Scope::Any));
    }
    assert_eq!("stock".parse::<ActorPath>().unwrap().scope, Scope::Any);
    for bad in ["", "@bo", "a//b", "a b", "a@"] {
        assert!(bad.parse::<ActorPath>().is_err(), "{bad}");
    }
}

#[test]
fn a_timeout_needs_its_unit() {
    assert!(parse("x call stock@bo {} --timeout 500ms").is_ok());
    assert_eq!(parse("x call stock@bo {} --timeout 500").unwrap_err().exit_code(), i32::from(Exit::Usage as u8));
}

#[test]
fn wrong_usage_is_told_in_two_parts_what_is_wrong_and_what_would_be_right() {
    for (line, wrong) in [
        ("my-shop call --json", "required arguments"),
        ("my-shop --json cal stock@bo", "'cal'"),
        ("my-shop tree --jso", "'--jso'"),
        ("my-shop --json", "subcommand"),
        ("my-shop", "a command is missing"),
        ("my-shop keys", "a command is missing"),
        ("my-shop call stock@bo {} --timeout 500", "500"),
    ] {
        let (text, next) = misuse(&parse(line).unwrap_err());
        assert!(text.contains(wrong) && !text.starts_with("error"), "{line}: {text:?}");
        assert!(next.contains("--help") && !next.contains(BIN), "{line}: {next:?}");
    }
}

/// A node that answers calls with what it was told to.
struct Double {
    answer: RefCell<Option<Result<String, RemoteError>>>,
    asked: RefCell<Vec<String>>,
    /// Why it is not ready.
    conditions: &'static [&'static str],
}

struct Session<'a>(&'a Double);

impl App for &'static Double {
    type Remote = Session<'static>;
    fn connect(&self, via: &Via, _: Instant) -> impl Future<Output = Result<Self::Remote, RemoteError>> {
        self.asked.borrow_mut().push(format!("connect {}", via.endpoint));
        std::future::ready(Ok(Session(self)))
    }
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }
    fn node(&self, config: Config, _: DataDir, _: &Output) -> Exit {
        self.asked.borrow_mut().push(format!("run {}", config.node.name));
        Exit::Ok
    }
    fn up(&self, _: &Up, _: &Common, _: &Output) -> Exit {
        Exit::Interrupted
    }
    fn policy(&self) -> Rules {
        Rules::builtin()
    }
}

impl Remote for Session<'_> {
    async fn tree(&mut self, _: bool) -> Result<Vec<NodeTree>, RemoteError> {
        Ok(Vec::new())
    }
    async fn nodes(&mut self) -> Result<Vec<Seen>, RemoteError> {
        Ok(Vec::new())
    }
    async fn actors(&mut self, _: bool) -> Result<Vec<Offered>, RemoteError> {
        Ok(Vec::new())
    }
    async fn status(&mut self) -> Result<StatusReport, RemoteError> {
        let id = horos_wire::NodeId { cluster: "shop".parse().unwrap(), role: Role::Bo, name: "bo-1".parse().unwrap() };
        let node = NodeTree { node: id, incarnation: None, health: Health::Here, addresses: vec![], tree: None, missing: None };
        let conditions = self.0.conditions.iter().map(|it| (*it).into()).collect::<Vec<_>>();
        Ok(StatusReport { node, version: "0.1.0".into(), ready: conditions.is_empty(), conditions, uptime_s: 1, resident: 1 << 20 })
    }
    async fn call_json(&mut self, address: &Address, body: &str, _: Instant, _: Option<&str>) -> Result<String, RemoteError> {
        self.0.asked.borrow_mut().push(format!("call {address} {body}"));
        self.0.answer.borrow_mut().take().unwrap()
    }
    async fn cast_json(&mut self, _: &Address, _: &str, _: Instant) -> Result<(), RemoteError> {
        Ok(())
    }
    async fn describe(&mut self, address: &Address) -> Result<Description, RemoteError> {
        self.0.asked.borrow_mut().push(format!("describe {address}"));
        Ok(Description { protocol: "stock".into(), version: 1, methods: Vec::new() })
    }
    async fn recorder(&mut self, _: &ActorPath) -> Result<Recording, RemoteError> {
        Ok(Recording::default())
    }
    async fn restart(&mut self, _: &ActorPath) -> Result<(), RemoteError> {
        Ok(())
    }
    async fn crash(&mut self, _: &ActorPath) -> Result<(), RemoteError> {
        Ok(())
    }
    async fn revoke(&mut self, list: &str) -> Result<(), RemoteError> {
        self.0.asked.borrow_mut().push(format!("revoke {}", list.lines().count() > 1));
        Ok(())
    }
    async fn serving(&mut self) -> Result<Option<ServingReport>, RemoteError> {
        Ok(None)
    }
    async fn maintain(&mut self, node: &Scope, message: Option<&str>) -> Result<(), RemoteError> {
        self.0.asked.borrow_mut().push(format!("maintain {node:?} {message:?}"));
        Ok(())
    }
    async fn control_owner(&mut self) -> Result<Option<NodeName>, RemoteError> {
        self.0.asked.borrow_mut().push("control owner".into());
        Ok(Some("bo-2".parse().unwrap()))
    }
    async fn keys<R>(&mut self, at: &Address, request: R) -> Result<R::Reply, RemoteError>
    where
        R: horos_wire::Request<Protocol = keys::Keys, Error = KeysError>,
    {
        let asked = serde_json::to_string(&request).unwrap();
        self.0.asked.borrow_mut().push(format!("{} {} {asked}", at, R::NAME));
        match self.0.answer.borrow_mut().take() {
            Some(Ok(json)) => Ok(serde_json::from_str(&json).unwrap()),
            Some(Err(error)) => Err(error),
            None => Err(RemoteError::Keys(KeysError::Unknown)),
        }
    }
    async fn close(&mut self) {
        self.0.asked.borrow_mut().push("close".into());
    }
}

fn double(answer: Option<Result<String, RemoteError>>) -> &'static Double {
    Box::leak(Box::new(Double { answer: RefCell::new(answer), asked: RefCell::default(), conditions: &[] }))
}

fn exits(arguments: &[&str], app: &'static Double) -> ExitCode {
    let (cli, bin) = Cli::parse_as(std::iter::once("my-shop").chain(arguments.iter().copied()).map(OsString::from)).unwrap();
    run(cli, &bin, &app)
}

fn code(exit: Exit) -> String {
    format!("{:?}", ExitCode::from(exit))
}

#[test]
fn a_calls_end_is_the_exit_code() {
    let ends = [
        (Ok("{}".into()), Exit::Ok),
        (Err(CallError::Failed("{\"left\":0}".into()).into()), Exit::Failed),
        (Err(CallError::NoEffect(NoEffect::Stopping).into()), Exit::NoEffect),
        (Err(CallError::Unknown(horos_wire::Unknown::NoReply).into()), Exit::Unknown),
    ];
    for (answer, exit) in ends {
        let app = double(Some(answer));
        let ended = exits(&["call", "stock@bo", "{\"levels\":{}}", "--via", "127.0.0.1:1"], app);
        assert_eq!(format!("{ended:?}"), code(exit));
        assert_eq!(*app.asked.borrow(), ["connect 127.0.0.1:1", "call stock@bo {\"levels\":{}}", "close"]);
    }
}

#[test]
fn status_is_a_probe_that_is_answered_by_the_exit_code() {
    for (conditions, exit) in [(&[][..], Exit::Ok), (&["stopping"], Exit::NoEffect)] {
        let app = Box::leak(Box::new(Double { answer: RefCell::new(None), asked: RefCell::default(), conditions }));
        assert_eq!(format!("{:?}", exits(&["status", "--via", "127.0.0.1:1"], app)), code(exit));
    }
}

#[test]
fn a_malformed_message_has_its_actor_described() {
    let app = double(Some(Err(CallError::NoEffect(NoEffect::Malformed("levels".into())).into())));
    let ended = exits(&["call", "stock@bo", "{\"levels\":1}", "--via", "127.0.0.1:1"], app);
    assert_eq!(format!("{ended:?}"), code(Exit::NoEffect));
    assert_eq!(app.asked.borrow()[2..], ["describe stock@bo", "close"]);
}

#[test]
fn a_message_that_is_no_json_never_leaves() {
    for message in ["{", "[]", "{\"a\":1,\"b\":2}", "12"] {
        let app = double(None);
        assert_eq!(format!("{:?}", exits(&["call", "stock@bo", message, "--via", "127.0.0.1:1"], app)), code(Exit::Usage), "{message}");
        assert!(app.asked.borrow().is_empty());
    }
}

fn at(data: &Path, arguments: &[&str], app: &'static Double) -> ExitCode {
    let data = data.to_str().unwrap();
    exits(&[arguments, &["--data", data]].concat(), app)
}

#[test]
fn a_node_is_set_up_runs_and_is_revoked_by_documented_commands() {
    let base = tempfile::tempdir().unwrap();
    let data = base.path().join("shop");
    let app = double(None);
    let ok = |arguments: &[&str]| assert_eq!(format!("{:?}", at(&data, arguments, app)), code(Exit::Ok), "{arguments:?}");
    ok(&["init", "--cluster", "shop", "--listen", "127.0.0.1:7499"]);
    ok(&["bo"]);
    assert_eq!(format!("{:?}", at(&data, &["fo"], app)), code(Exit::Usage));
    assert_eq!(format!("{:?}", at(&data, &["init"], app)), code(Exit::Usage));
    ok(&["identity", "list"]);
    ok(&["identity", "revoke", "shop/bo/bo-1"]);
    ok(&["identity", "revoke", "--send"]);
    ok(&["tree"]);
    ok(&["policy", "show"]);
    assert_eq!(
        *app.asked.borrow(),
        [
            "run bo-1",
            "connect 127.0.0.1:7499",
            "revoke true",
            "close",
            "connect 127.0.0.1:7499",
            "revoke true",
            "close",
            "connect 127.0.0.1:7499",
            "close"
        ]
    );
}

#[test]
fn keys_are_asked_of_the_owner_and_their_ends_are_exit_codes() {
    let record = r#"{"id":"key_1","prefix":"hk_3f","name":"till","owner":"ana","scopes":["shop"],"per_minute":null,"state":"active",
        "created_at":"2026-11-21T12:00:00Z","created_by":"operator@admin","expires_at":null,"revoked_at":null,"revoked_by":null,
        "refused":0,"last_refused_at":null}"#;
    let create = ["keys", "create", "--name", "till", "--owner", "ana", "--scope", "shop", "--via", "127.0.0.1:1"];
    let made = |secret: &str| format!(r#"{{"key":{record},"secret":{secret}}}"#);
    let ends = [
        (Ok(made("\"hk_secret\"")), Exit::Ok),
        (Ok(made("null")), Exit::Failed),
        (Err(RemoteError::Keys(KeysError::Invalid("no".into()))), Exit::Usage),
        (Err(RemoteError::Keys(KeysError::Storage("full".into()))), Exit::NoEffect),
        (Err(RemoteError::Keys(KeysError::Unknown)), Exit::Unknown),
        (Err(RemoteError::Keys(KeysError::NoSuchKey("k".into()))), Exit::Failed),
        (Err(CallError::NoEffect(NoEffect::NoRoute("bo-1".into())).into()), Exit::Unreachable),
    ];
    for (answer, exit) in ends {
        let app = double(Some(answer));
        assert_eq!(format!("{:?}", exits(&create, app)), code(exit));
        let asked = r#"horos.keys@bo-2 create {"name":"till","owner":"ana","scopes":["shop"],"expires":null,"per_minute":null}"#;
        assert_eq!(*app.asked.borrow(), ["connect 127.0.0.1:1", "control owner", asked, "close"]);
    }
    let app = double(Some(Ok(format!(r#"{{"keys":[{record}],"next":null}}"#))));
    assert_eq!(format!("{:?}", exits(&["keys", "list", "--via", "127.0.0.1:1"], app)), code(Exit::Ok));
}

#[test]
fn an_owner_who_cannot_be_asked_is_named_with_what_to_do() {
    let asked = |error: RemoteError| {
        let app = double(Some(Err(error)));
        let mut session = Session(app);
        let (cli, _) = parse("x keys list").unwrap();
        let Command::Keys(list) = cli.command else { panic!() };
        let ended = app.block_on(crate::cli::keys::keys(list, &mut session, &Output::new("x", true, ColorWhen::Never)));
        let Err(run::End::Remote(error)) = ended else { panic!("it was answered") };
        (error.to_string(), error.next_step(), error.exit())
    };
    for (reason, next, exit) in [
        (NoEffect::NoRoute("bo-2".into()), "start that node", Exit::Unreachable),
        (NoEffect::Stopping, "start that node", Exit::NoEffect),
        (NoEffect::NoSuchActor("horos.keys".into()), "must name the same BO", Exit::NoEffect),
    ] {
        let (text, step, code) = asked(CallError::NoEffect(reason).into());
        assert!(text.starts_with("bo-2 owns the keys (control.owner) and cannot be asked: "), "{text}");
        assert!(step.unwrap().contains(next), "{step:?}");
        assert_eq!(code, exit);
    }
    // What is refused to this caller, or not certain, is told as it is anywhere.
    let (text, _, code) = asked(CallError::NoEffect(NoEffect::NotAllowed("viewer".into())).into());
    assert!(!text.contains("bo-2") && code == Exit::NoEffect, "{text}");
    let (_, _, code) = asked(CallError::Unknown(horos_wire::Unknown::DeadlinePassed).into());
    assert_eq!(code, Exit::Unknown);
}

#[test]
fn routes_are_edited_at_the_owner_and_their_ends_are_exit_codes() {
    let edited = r#"{"edit":1,"route":{"service":"mail","strategy":"noop","endpoint":null,"config":"{}","updated_at":0,
        "version":"000000000000000000000000000000ab","version_on_fo":"000000000000000000000000000000ab","problems":[]}}"#;
    let set = ["routes", "set", "mail", "--strategy", "noop", "--why", "down", "--via", "127.0.0.1:1"];
    let failed = |error: &str| Err(CallError::Failed(error.to_owned()).into());
    let ends = [
        (Ok(edited.to_owned()), Exit::Ok),
        (failed(r#"{"invalid":"no"}"#), Exit::Usage),
        (failed(r#"{"wrong":[{"key":"endpoint","what":"no URL"}]}"#), Exit::Usage),
        (failed(r#"{"not_implemented":{"strategy":"noop","available":["local"]}}"#), Exit::Usage),
        (failed(r#"{"conflict":{"service":"mail","found":null}}"#), Exit::Failed),
        (failed(r#"{"storage":"full"}"#), Exit::NoEffect),
        (failed(r#""unknown""#), Exit::Unknown),
        (failed(r#"{"of a later release":1}"#), Exit::Failed),
        (Err(CallError::NoEffect(NoEffect::NoRoute("bo-2".into())).into()), Exit::Unreachable),
    ];
    for (answer, exit) in ends {
        let app = double(Some(answer));
        assert_eq!(format!("{:?}", exits(&set, app)), code(exit));
        assert_eq!(app.asked.borrow()[..2], ["connect 127.0.0.1:1", "control owner"]);
        let asked = app.asked.borrow()[2].clone();
        assert!(
            asked.contains("horos.control@bo-2") && asked.contains(r#"{"set_route":{"#) && asked.contains(r#""why":"down""#),
            "{asked}"
        );
    }
    for bad in [
        "routes set mail --strategy Grpc!",
        "routes set mail",
        "routes set mail --strategy noop --expect 5f0c",
        "routes delete",
        "routes set-strategy mail",
        "routes rollback mail --before 1 --as-of 2",
        "routes history --limit 0",
        "routes import",
        "breaker open",
        "breaker open mail --expect half-open",
    ] {
        assert!(parse(&format!("x {bad}")).is_err(), "{bad}");
    }
    // Which strategies there are is the owner's to say.
    for good in
        ["routes set mail --strategy grpc --expect absent", "routes rollback mail", "breaker close mail http:https://a --expect auto"]
    {
        assert!(parse(&format!("x {good}")).is_ok(), "{good}");
    }
}

#[test]
fn a_list_of_keys_ends_with_its_last_page_or_its_limit() {
    let key = |n: u32| {
        format!(
            r#"{{"id":"key_{n}","prefix":"hk_","name":"n","owner":"o","scopes":[],"per_minute":null,"state":"active","created_at":"",
            "created_by":"","expires_at":null,"revoked_at":null,"revoked_by":null,"refused":0,"last_refused_at":null}}"#
        )
    };
    let app = double(Some(Ok(format!(r#"{{"keys":[{},{}],"next":"key_2"}}"#, key(1), key(2)))));
    assert_eq!(format!("{:?}", exits(&["keys", "list", "--limit", "2", "--via", "127.0.0.1:1"], app)), code(Exit::Ok));
    assert_eq!(app.asked.borrow().len(), 4, "the limit is reached with the first page");
    let app = double(Some(Ok(format!(r#"{{"keys":[{}],"next":"key_1"}}"#, key(1)))));
    assert_eq!(format!("{:?}", exits(&["keys", "list", "--via", "127.0.0.1:1"], app)), code(Exit::Unknown));
    assert_eq!(app.asked.borrow().len(), 5, "there was a page more to ask for");
}

#[test]
fn a_key_without_a_scope_or_of_nobody_is_refused_before_anything_is_asked() {
    for line in [
        "x keys create --name till --owner ana",
        "x keys create --name till --scope shop",
        "x keys create --name till --owner ana --scope Shop!",
        "x keys revoke",
        "x keys revoke key_1 --owner ana",
        "x tokens trust --kid k --issuer i --audience a --public-key x",
        "x tokens trust --kid k --issuer i --audience a --public-key x --scope s --any-scope",
    ] {
        assert_eq!(parse(line).unwrap_err().exit_code(), i32::from(Exit::Usage as u8), "{line}");
    }
    let (cli, _) = parse("x keys create --name till --owner ana --scope shop,stock:read --scope more").unwrap();
    let Command::Keys(Keys::Create { scope, .. }) = cli.command else { panic!() };
    assert_eq!(scope.iter().map(ToString::to_string).collect::<Vec<_>>(), ["shop", "stock:read", "more"]);
}

#[test]
fn maintenance_is_ordered_of_each_node_named() {
    let app = double(None);
    assert_eq!(
        format!("{:?}", exits(&["maintenance", "on", "fo-1", "fo-2", "--message", "m", "--via", "127.0.0.1:1"], app)),
        code(Exit::Ok)
    );
    assert_eq!(format!("{:?}", exits(&["maintenance", "off", "--via", "127.0.0.1:1"], app)), code(Exit::Ok));
    let asked = app.asked.borrow();
    assert_eq!(asked[1..3], [r#"maintain Node("fo-1") Some("m")"#, r#"maintain Node("fo-2") Some("m")"#]);
    assert_eq!(asked[5], "maintain Any None");
}

const TOOL: &str = r#"{"name":"levels","text":{"category":"","title":null,"description":"D","input_schema":"{}","output_schema":null,
    "handler_type":"sql_query","handler_config":"{}","mode":"readonly","destructive":false,"idempotent":false,"group":"default",
    "timeout_ms":null,"active":true},"version":7,"created_by":null,"updated_at":0,"problems":[]}"#;

#[test]
fn tools_are_edited_at_the_owner_and_their_ends_are_exit_codes() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("levels.json");
    std::fs::write(&file, TOOL).unwrap();
    let set = ["tools", "set", "levels", "--file", file.to_str().unwrap(), "--why", "better", "--via", "127.0.0.1:1"];
    let failed = |error: &str| Err(CallError::Failed(error.to_owned()).into());
    let ends = [
        (Ok(format!(r#"{{"version":8,"tool":{TOOL}}}"#)), Exit::Ok),
        (failed(r#"{"invalid":"no"}"#), Exit::Usage),
        (failed(r#"{"wrong":[{"key":"handler_config.query","what":"two statements"}]}"#), Exit::Usage),
        (failed(r#"{"conflict":{"name":"levels","found":9}}"#), Exit::Failed),
        (failed(r#"{"storage":"full"}"#), Exit::NoEffect),
        (failed(r#""unknown""#), Exit::Unknown),
        (failed(r#"{"of a later release":1}"#), Exit::Failed),
        (Err(CallError::NoEffect(NoEffect::NoRoute("bo-2".into())).into()), Exit::Unreachable),
    ];
    for (answer, exit) in ends {
        let app = double(Some(answer));
        assert_eq!(format!("{:?}", exits(&set, app)), code(exit));
        assert_eq!(app.asked.borrow()[..2], ["connect 127.0.0.1:1", "control owner"]);
        let asked = app.asked.borrow()[2].clone();
        // What was read at version 7 is written over that version and no other.
        for part in ["call horos.registry@bo-2", r#"{"set":{"#, r#""why":"better""#, r#""expected":{"version":7}"#] {
            assert!(asked.contains(part), "{part}: {asked}");
        }
    }
    // A slip is told before anything is asked of the owner.
    std::fs::write(&file, "{\"descripton\": 1}").unwrap();
    let app = double(None);
    assert_eq!(format!("{:?}", exits(&set, app)), code(Exit::Usage));
    assert_eq!(*app.asked.borrow(), ["connect 127.0.0.1:1", "control owner", "close"]);
}

#[test]
fn a_tool_is_called_on_the_node_that_is_named_and_is_asked_for_twice_only_with_consent() {
    let call = |more: &[&str], answer| {
        let app = double(Some(answer));
        let line = [&["tools", "call", "purge", "{\"n\":1}", "--on", "fo-1", "--via", "127.0.0.1:1"], more].concat();
        (format!("{:?}", exits(&line, app)), app.asked.borrow().clone())
    };
    let (exit, asked) = call(&[], Ok(r#""{\"structured\":{\"left\":3}}""#.into()));
    assert_eq!((exit, &*asked[1]), (code(Exit::Ok), r#"call horos.tools@fo-1 {"call":{"arguments":"{\"n\":1}","tool":"purge"}}"#));
    let failed = |error: &str| Err(CallError::Failed(error.to_owned()).into());
    for (answer, exit) in [
        (failed(r#"{"no_such_tool":"purge"}"#), Exit::Failed),
        (failed(r#"{"arguments":[{"key":"/n","what":"too many"}]}"#), Exit::Usage),
        (failed(r#"{"unavailable":"stopping"}"#), Exit::NoEffect),
        (failed(r#"{"unknown":"no_reply"}"#), Exit::Unknown),
        (failed(r#"{"confirm":{"what":"All would go.","token":"t","within_ms":60000}}"#), Exit::Failed),
        (Err(CallError::Unknown(horos_wire::Unknown::DeadlinePassed).into()), Exit::Unknown),
    ] {
        let (ended, asked) = call(&["--json"], answer);
        assert_eq!(ended, code(exit));
        assert_eq!(asked.len(), 3, "nobody agreed, so it was asked for once: {asked:?}");
    }
    for arguments in ["{", "[]", "12", "null"] {
        let app = double(None);
        let line = ["tools", "call", "purge", arguments, "--via", "127.0.0.1:1"];
        assert_eq!(format!("{:?}", exits(&line, app)), code(Exit::Usage), "{arguments}");
    }
}

#[test]
fn what_makes_no_sense_of_tools_is_refused_before_anything_is_asked() {
    for bad in [
        "tools set",
        "tools set a --query x --statement y",
        "tools set a --file f --query x",
        "tools set a --query x --handler actor",
        "tools set a --schema {} --param n:integer",
        "tools set a --query x --timeout 5",
        "tools set a --query x --expect 1.5",
        "tools rollback levels",
        "tools rollback levels first",
        "tools allow levels",
        "tools deny",
        "tools history --limit 0",
        "tools audit --limit 0",
        "tools call",
        "tools import",
    ] {
        assert!(parse(&format!("x {bad}")).is_err(), "{bad}");
    }
    for good in [
        "tools list --on fo-1",
        "tools set a --query x --expect absent --destructive",
        "tools set a --query x --destructive false --timeout 5s",
        "tools rollback levels 3 --expect 7",
        "tools allow * node:fo",
        "tools policy --history",
        "tools audit --tool a --caller key_1 --outcome denied --follow",
        "tools call levels",
        "tools import go.db --database app.db --replace",
    ] {
        assert!(parse(&format!("x {good}")).is_ok(), "{good}");
    }
}
