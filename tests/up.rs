//! `up`: one command starts a BO and an FO with everything made on the spot, and leaves nothing behind.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::clients::Client;
use crate::harness::http::{Answer, Ask};
use crate::harness::node::text;
use crate::harness::{HOROS, Process, Site, cli, data_dir, poll_state};

/// A BO, an FO and a cluster's keys, in a debug build.
const BOTH: Duration = Duration::from_secs(20);

fn up(data: &Path, ports: [&str; 2]) -> Process {
    let args = ["up", "--data", text(data), "--no-tree", "--bo-port", ports[0], "--fo-port", ports[1]];
    Process::start("up", HOROS, args).unwrap()
}

/// Starts it on ports of the system's choice and gives the nodes' addresses.
async fn running(data: &Path) -> (Process, String, String) {
    let process = up(data, ["0", "0"]);
    told(process).await
}

/// Waits for the nodes' addresses.
async fn told(mut process: Process) -> (Process, String, String) {
    let mut address = async |node: &str| {
        let line = process.wait_for_line(node, BOTH, |line| line.starts_with(&format!("{node} on "))).await;
        line.rsplit(' ').next().unwrap().to_owned()
    };
    let (bo, fo) = (address("bo-1").await, address("fo-1").await);
    (process, bo, fo)
}

/// The processes that run a node out of `data`, by role.
fn nodes(data: &Path) -> Vec<(String, Pid)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between the two looks.
        let Ok(line) = std::fs::read_to_string(entry.path().join("cmdline")) else { continue };
        let mut words = line.split('\0').skip(1);
        let role = words.next().unwrap_or_default().to_owned();
        if ["bo", "fo"].contains(&&*role) && words.any(|word| Path::new(word).starts_with(data)) {
            found.push((role, Pid::from_raw(pid)));
        }
    }
    found.sort();
    found
}

async fn horos(data: &Path, via: &str, args: &[&str]) -> cli::Outcome {
    cli::horos(&[&["--json", "--data", text(data), "--via", via], args].concat()).await
}

async fn tea(data: &Path, via: &str) -> Value {
    let levels = horos(data, via, &["call", "stock@bo", r#"{"levels":{}}"#]).await.expect_code(0).json();
    levels.as_array().unwrap().iter().find(|it| it["sku"] == "tea").unwrap()["quantity"].clone()
}

#[tokio::test]
async fn one_command_runs_a_shop_that_remembers_and_ctrl_c_leaves_nothing_behind() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let (mut first, bo, fo) = running(&data).await;
    // Sold on the FO, taken off the BO's shelf.
    poll_state("the FO sells", BOTH, async || {
        let order = json!({ "order": { "sku": "tea", "quantity": 3 } }).to_string();
        let sold = horos(&data, &fo, &["call", "shop@fo", &order]).await;
        if sold.code == Some(0) { Ok(()) } else { Err(sold.stderr) }
    })
    .await;
    assert_eq!(tea(&data, &bo).await, 37);
    assert_eq!(nodes(&data).len(), 2);
    first.signal(Signal::SIGINT);
    let status = first.wait(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0), "{:?}", first.lines());
    assert_eq!(nodes(&data), [], "no process is left");

    let (mut second, bo, _) = running(&data).await;
    assert_eq!(tea(&data, &bo).await, 37, "what was sold stays sold");
    second.terminate();
    assert_eq!(second.wait(Duration::from_secs(20)).await.code(), Some(0), "{:?}", second.lines());
    assert_eq!(nodes(&data), []);
}

#[tokio::test]
async fn a_node_of_ups_that_is_killed_is_started_again_where_it_was() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let (mut process, bo, fo) = running(&data).await;
    for role in ["bo", "fo"] {
        let (_, victim) = nodes(&data).into_iter().find(|(it, _)| it == role).unwrap();
        kill(victim, Signal::SIGKILL).unwrap();
        poll_state(&format!("the {role} is there again, and the shop sells"), Duration::from_secs(20), async || {
            let now = nodes(&data);
            if now.len() != 2 || now.iter().any(|(_, pid)| *pid == victim) {
                return Err(format!("{now:?}"));
            }
            let order = json!({ "order": { "sku": "coffee", "quantity": 1 } }).to_string();
            let sold = horos(&data, &fo, &["call", "shop@fo", &order]).await;
            if sold.code == Some(0) { Ok(()) } else { Err(sold.stderr) }
        })
        .await;
        assert_eq!(tea(&data, &bo).await, 40);
    }
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(Duration::from_secs(20)).await.code(), Some(0), "{:?}", process.lines());
    assert_eq!(nodes(&data), []);
}

#[tokio::test]
async fn up_killed_by_force_takes_its_nodes_with_it() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let (mut process, ..) = running(&data).await;
    process.kill_9();
    poll_state("its nodes end", Duration::from_secs(20), async || {
        let left = nodes(&data);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn up_says_which_port_is_taken_and_what_to_do() {
    let dir = data_dir();
    let data = dir.path().join("shop");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut process = up(&data, [&port, "0"]);
    let status = process.wait(BOTH).await;
    let said = process.lines().join("\n");
    assert!(matches!(status.code(), Some(6 | 70)), "{status}: {said}");
    assert!(said.contains(&port) && said.contains("--bo-port"), "{said}");
    assert_eq!(nodes(&data), []);
    // Nothing is spoilt: with a port that is free it runs.
    let (mut process, bo, _) = running(&data).await;
    assert_eq!(tea(&data, &bo).await, 40);
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(Duration::from_secs(20)).await.code(), Some(0));
}

/// The commands of the README's block of shell in which `mark` stands, one after the other: a line that ends with a backslash
/// goes on in the next.
fn readme(mark: &str) -> Vec<String> {
    let mut blocks = include_str!("../README.md").split("```sh\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let block = blocks.find(|block| block.contains(mark)).expect("the README has such a block");
    block.replace("\\\n", " ").lines().map(str::to_owned).collect()
}

/// Somebody who follows the README: in the directory in which `up` was started, with `horos` on the path.
struct Reader<'a> {
    dir: &'a Path,
    /// Where the FO is, in place of the README's 7401.
    port: u16,
}

/// What a command came to.
#[derive(Debug)]
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Said {
    /// The version and the status of curl's answer.
    fn answer(&self) -> &str {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout.lines().last().unwrap_or_default()
    }

    /// The body of curl's answer.
    fn json(&self) -> Value {
        let body = self.stdout.rsplit_once('\n').unwrap_or_default().0;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Reader<'_> {
    /// Types `commands` into one shell.
    async fn types(&self, commands: &[&str]) -> Vec<Said> {
        let out = data_dir();
        let file = |kind: &str, number: usize| out.path().join(format!("{kind}-{number}"));
        // curl tells the version and the status of each answer, without a word of that in the README.
        std::fs::write(out.path().join(".curlrc"), "silent\nshow-error\nmax-time = 20\nwrite-out = \"\\n%{http_version} %{http_code}\"\n")
            .unwrap();
        let mut script = String::new();
        for (number, command) in commands.iter().enumerate() {
            let command = command.replace(":7401", &format!(":{}", self.port));
            let [stdout, stderr, code] = ["out", "err", "code"].map(|kind| file(kind, number));
            script += &format!("{{ {command}\n}} >{} 2>{}; echo $? >{}\n", text(&stdout), text(&stderr), text(&code));
        }
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-u", "-c", &script]).current_dir(self.dir);
        #[expect(clippy::disallowed_methods, reason = "the reader's own path, with `horos` on it")]
        let path = std::env::var("PATH").unwrap_or_default();
        bash.env("PATH", format!("{}:{path}", text(Path::new(HOROS).parent().unwrap())));
        bash.env("CURL_HOME", out.path()).env("no_proxy", "*");
        cli::run(bash).await.expect_code(0);
        let read = |kind, number| std::fs::read_to_string(file(kind, number)).unwrap();
        let said =
            |number| Said { code: read("code", number).trim().parse().unwrap(), stdout: read("out", number), stderr: read("err", number) };
        (0..commands.len()).map(said).collect()
    }
}

#[tokio::test]
async fn what_the_readme_types_while_up_runs_does_what_the_readme_says() {
    let dir = data_dir();
    let mut command = Command::new(HOROS);
    command.args(["up", "--no-tree", "--bo-port", "0", "--fo-port", "0"]).current_dir(dir.path());
    let (_process, _, fo) = told(Process::spawn("up", command).unwrap()).await;
    let fo: std::net::SocketAddr = fo.parse().unwrap();
    let reader = Reader { dir: dir.path(), port: fo.port() };

    // The first block: the shop, the tree, a drill.
    let first = readme("horos tree");
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    poll_state("the shop is open", BOTH, async || {
        let said = reader.types(&first[..2]).await;
        if said.iter().all(|it| it.code == 0) { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    for (said, line) in reader.types(&first[2..]).await.iter().zip(&first[2..]) {
        assert!(said.code == 0 && !said.stdout.is_empty() || line.starts_with("horos crash"), "{line}: {said:?}");
    }

    // The second: the same over HTTP.
    let lines = readme("curl --cacert");
    let line = |wanted: &dyn Fn(&str) -> bool| {
        let mut found = lines.iter().map(String::as_str).filter(|line| wanted(line));
        let line = found.next().expect("the README types it");
        assert!(found.next().is_none(), "{line} is not the only one");
        line
    };
    let (key, ca) = (line(&|it| it.starts_with("KEY=$(horos keys create")), line(&|it| it.starts_with("CA=")));
    let http2 = line(&|it| it.contains("curl") && it.contains("$KEY") && !it.contains("--http"));
    let http1 = line(&|it| it.contains("--http1.1"));
    let http3 = line(&|it| it.contains("--http3-only"));
    let ready = line(&|it| it.contains("readyz"));
    let revoke = line(&|it| it.contains("horos keys revoke"));
    assert_eq!(lines.len(), 7, "each line of the block is typed here: {lines:#?}");

    // A replica that is not there yet knows of no key that it is none, and says 503.
    let guess = format!("KEY=hk_{}", "0".repeat(64));
    poll_state("the FO knows the keys", BOTH, async || {
        let said = reader.types(&[&guess, ca, http2]).await;
        if said[2].answer() == "2 401" { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    let keyless = |line: &str| {
        let without = line.replace(r#"-H "Authorization: Bearer $KEY" "#, "");
        assert_ne!(without, line, "it shows the key");
        without
    };
    let (http2_keyless, http1_keyless) = (keyless(http2), keyless(http1));
    let said = reader.types(&[key, ca, "echo $KEY", http2, http1, ready, &http2_keyless, &http1_keyless]).await;
    let secret = said[2].stdout.trim().to_owned();
    assert!(secret.starts_with("hk_") && secret.len() == 67, "{said:?}");
    let tea = |levels: &Value| levels.as_array().into_iter().flatten().find(|it| it["sku"] == "tea").map(|it| it["quantity"].as_i64());
    assert_eq!((said[3].answer(), said[4].answer()), ("2 200", "1.1 201"), "{said:?}");
    assert_eq!(said[5].answer(), "2 200", "{said:?}");
    assert_eq!((said[6].answer(), said[7].answer()), ("2 401", "1.1 401"), "{said:?}");
    let before = tea(&said[3].json());
    let after = before.map(|it| it.map(|it| it - 2));
    assert!(before.is_some(), "{said:?}");
    let assigned = format!("KEY={secret}");
    // Who does not say what was written reads the replica as it is.
    poll_state("two are sold", BOTH, async || {
        let said = reader.types(&[&assigned, ca, http2]).await;
        if tea(&said[2].json()) == after { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;

    replica(&reader, &[&assigned, ca]).await;
    routes(&reader, ca).await;
    tools(&reader, &[&assigned, ca]).await;

    // HTTP/3: by the README's client, and by curl where that has it.
    let site = Site { address: fo, name: "localhost".to_owned(), authority: dir.path().join("horos-data/fo/identity/ca.pem") };
    let levels = Ask::get("/shop/levels");
    let with_key = levels.clone().header("authorization", &format!("Bearer {secret}"));
    let answers = Client::AioquicHttp3.ask(&site, &[with_key, levels]).await;
    let seen = |answer: &Answer| (answer.version.clone(), answer.status);
    assert_eq!(answers.iter().map(seen).collect::<Vec<_>>(), [("3".to_owned(), 200), ("3".to_owned(), 401)], "{answers:?}");
    assert_eq!(tea(&answers[0].json()), after);
    if reader.types(&["curl --version"]).await[0].stdout.contains("HTTP3") {
        let said = reader.types(&[&assigned, ca, http3]).await;
        assert_eq!(said[2].answer(), "3 200", "{said:?}");
    }

    let revoked = reader.types(&[revoke]).await;
    let began = Instant::now();
    assert_eq!(revoked[0].code, 0, "{revoked:?}");
    poll_state("the key opens nothing", Duration::from_secs(5), async || {
        let said = reader.types(&[&assigned, ca, http2]).await;
        if said[2].answer() == "2 401" { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// The README's third block: the shop's table and its replica. `given` says whose key it is, and where the authority's certificate is.
async fn replica(reader: &Reader<'_>, given: &[&str]) {
    let lines: Vec<String> = readme("sqlite3 horos-data").into_iter().filter(|line| !line.trim_start().starts_with('#')).collect();
    let [insert, select, order, levels, status, verify] = &lines.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        panic!("each line of the block is typed here: {lines:#?}")
    };

    assert_eq!(reader.types(&[*insert]).await[0].code, 0);
    poll_state("the FO has it", BOTH, async || {
        let said = reader.types(&[*select]).await;
        if said[0].stdout.contains("honey") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    let seen = &reader.types(&[*select]).await[0].stdout;
    assert!(!seen.contains("450") && !seen.contains("300") && !seen.contains("mystery-box"), "what is nobody's business: {seen}");

    let said = reader.types(&[given, &[*order]].concat()).await;
    assert_eq!(said[2].answer(), "2 201", "{said:?}");
    let position =
        said[2].stdout.lines().find_map(|line| line.strip_prefix("x-sync-position: ")).expect("a write says how far it was").trim();
    let levels = levels.replace("curl ", &format!("curl -H 'X-Sync-Position: {position}' "));
    let said = reader.types(&[given, &[levels.as_str()]].concat()).await;
    let honey = said[2].json().as_array().into_iter().flatten().find(|it| it["sku"] == "honey").map(|it| it["quantity"].as_i64());
    assert_eq!(honey, Some(Some(5)), "{said:?}");

    for said in reader.types(&[*status, *verify]).await {
        assert!(said.code == 0 && said.stdout.contains("fo-1"), "{said:?}");
    }
}

/// The README's fourth block: where the greeter runs, and its breaker.
async fn routes(reader: &Reader<'_>, ca: &str) {
    let lines = readme("horos routes set");
    let [greet, to_fo, to_nobody, back, to_gateway, over_http, stumble, refused, breakers, healed] =
        &lines.iter().map(String::as_str).collect::<Vec<_>>()[..]
    else {
        panic!("each line of the block is typed here: {lines:#?}")
    };
    // A row is in force within a look.
    let greeted_by = async |who: &str| {
        poll_state(&format!("greeted by {who}"), BOTH, async || {
            let said = &reader.types(&[*greet]).await[0];
            if said.code == 0 && said.stdout.contains(who) { Ok(()) } else { Err(format!("{said:?}")) }
        })
        .await;
    };
    let typed = async |line: &str| {
        let said = reader.types(&[ca, line]).await.pop().unwrap();
        assert_eq!(said.code, 0, "{line}: {said:?}");
        said.stdout
    };
    greeted_by("bo-1").await;
    typed(to_fo).await;
    greeted_by("fo-1").await;
    typed(to_nobody).await;
    greeted_by("null").await;
    let history = typed(back).await;
    assert!(history.contains("sql") && history.contains("operator@"), "{history}");
    greeted_by("fo-1").await;
    typed(to_gateway).await;
    greeted_by("bo-1").await;
    poll_state("the FO's gateway lets everybody greet", BOTH, async || {
        let said = reader.types(&[ca, *over_http]).await.pop().unwrap();
        if said.answer() == "2 200" && said.stdout.contains("fo-1") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    reader.types(&[*stumble]).await;
    let said = &reader.types(&[*refused]).await[0];
    assert!(said.code == 3 && said.stderr.contains("circuit open"), "{said:?}");
    let list = typed(breakers).await;
    let of = |node: &str| list.lines().find(|line| line.contains(node)).unwrap_or_default();
    assert!(of("bo-1").contains("open") && of("fo-1").contains("closed"), "{list}");
    assert_eq!(typed(healed).await.matches("bo-1").count(), 2);
    let list = typed(breakers).await;
    assert!(!list.contains("open"), "{list}");
}

/// The README's fifth block: two clients of MCP, and a tool that is a row. `given` says whose key it is, and where the authority's
/// certificate is.
async fn tools(reader: &Reader<'_>, given: &[&str]) {
    let lines = readme("claude mcp add");
    let [over_pipe, over_http, insert, allow, call, audit] = &lines.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        panic!("each line of the block is typed here: {lines:#?}")
    };
    for line in [insert, allow] {
        assert_eq!(reader.types(&[line]).await[0].code, 0, "{line}");
    }
    let called = poll_state("the tool is called", BOTH, async || {
        let said = reader.types(&[*call]).await.pop().unwrap();
        if said.code == 0 { Ok(said.stdout) } else { Err(format!("{said:?}")) }
    })
    .await;
    assert!(called.contains("tea") && !called.contains("honey"), "{called}");
    let audited = &reader.types(&[*audit]).await[0];
    assert!(audited.code == 0 && audited.stdout.contains("goods_below"), "{audited:?}");

    // What the client is told to start, by a client that says little.
    let (_, program) = over_pipe.split('#').next().unwrap().split_once(" -- ").expect("what is started stands behind two dashes");
    let greeting = |version: &str| {
        json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "reader", "version": "1" } } })
    };
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {} });
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let typed = format!("printf '%s\\n' '{}' '{initialized}' '{list}' | {program}", greeting("2025-06-18"));
    let said = reader.types(&[&typed]).await.pop().unwrap();
    assert_eq!(said.code, 0, "{said:?}");
    let listed = said.stdout.lines().find(|line| line.contains("\"id\":2")).unwrap_or_else(|| panic!("{said:?}"));
    assert!(listed.contains("goods_below") && listed.contains("horos_tree"), "{listed}");

    // And where the other is told to go, with what it shows.
    let words: Vec<_> = over_http.split_whitespace().collect();
    let url = words.iter().find(|word| word.starts_with("https://")).expect("it names an address");
    let (_, header) = over_http.split_once("--header ").expect("it shows a key");
    let header = header.split('#').next().unwrap().trim();
    let accept = "-H 'accept: application/json, text/event-stream'";
    let typed = format!("curl --cacert $CA -H {header} {accept} {url} --json '{}'", greeting("2025-06-18"));
    poll_state("the FO lets the key in", BOTH, async || {
        let said = reader.types(&[given, &[typed.as_str()]].concat()).await.pop().unwrap();
        if said.answer() == "2 200" && said.stdout.contains("\"horos\"") { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
}
