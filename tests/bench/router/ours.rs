//! Nodes as a user's program has them: this program again.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use axum::routing::post;
use horos_nodes::{
    Opening,
    http::Access,
    supervision::{OpenError, Restart},
    wire::Role,
};

use crate::{
    asked::{self, PREFIX, SCOPE, SERVICE},
    machine::{SERVER_CORE, pin},
    placed::{Mirror, NAMES, Place, Watcher},
    program,
    server::{self, CERTIFICATE, CERTIFICATE_KEY, Ready},
    world,
};

/// How a node that answers over HTTP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// By the gateway, with the default's threads: one for QUIC, one for HTTP, one for services.
    Split,
    /// By the gateway, all on one thread, as the floor's.
    Single,
    /// By a handler of axum on the same port, all on one thread.
    Mount,
}

/// The limits are high, for one client asks as often as a hundred thousand; each is counted all the same.
const SETTINGS: [(&str, &str); 3] =
    [("HOROS__HTTP__TLS", "files"), ("HOROS__HTTP_LIMITS__PER_ADDRESS", "100000000"), ("HOROS__HTTP_LIMITS__PER_IDENTITY", "100000000")];
/// Says to a node what it is for; without, it is one of a cluster.
const PART: &str = "HOROS_BENCH_PART";

/// Starts a node in `data`, made anew, with the certificate in `directory`.
pub(crate) fn start(directory: &Path, data: &Path, layout: Layout) -> anyhow::Result<(Child, Ready)> {
    program::set_up(data)?;
    let log = data.with_extension("log");
    let mut child = server::again()?
        .args(["bo", "--json", "--data"])
        .arg(data)
        .envs(SETTINGS)
        .env(PART, if layout == Layout::Mount { "mount" } else { "gateway" })
        .env("HOROS__HTTP__CERTIFICATE", directory.join(CERTIFICATE))
        .env("HOROS__HTTP__KEY", directory.join(CERTIFICATE_KEY))
        .env("HOROS__RUNTIME__LAYOUT", if layout == Layout::Split { "split" } else { "single" })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .spawn()?;
    let said = child.stdout.take().context("stdout is piped")?;
    let told = serde_json::Deserializer::from_reader(said).into_iter::<serde_json::Value>().next();
    let Some(Ok(told)) = told else { anyhow::bail!("the node did not start: {}", std::fs::read_to_string(log)?) };
    let address = told["address"].as_str().context("the node said something else first")?.parse()?;
    let row = "INSERT INTO routes (service_name, strategy, config) VALUES (?1, 'local', ?2)";
    let config = format!(r#"{{"gateway": {{"scope": "{SCOPE}"}}, "payload": "json", "retry": {{"retries": 2}}}}"#);
    world::foreign(&data.join("control.db"))?.execute(row, (SERVICE, config))?;
    let made = Command::new(env!("CARGO_BIN_EXE_horos"))
        .args(["keys", "create", "--name", "bench", "--owner", "bench", "--scope", SCOPE, "--json", "--data"])
        .arg(data)
        .output()?;
    anyhow::ensure!(made.status.success(), "horos keys create: {}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    let key = made["secret"].as_str().context("no key was made")?.to_owned();
    Ok((child, Ready { tcp: address, udp: address, key }))
}

/// A node's `main`, which ends with its stdin, or the command line's.
pub(crate) fn main(command: &str) -> anyhow::Result<ExitCode> {
    #[expect(clippy::disallowed_methods, reason = "from this benchmark to its own child; no node reads it")]
    let part = std::env::var(PART).ok();
    if part.is_some() {
        pin(SERVER_CORE)?;
    }
    if command != "call" {
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
    }
    let scope = SCOPE.parse()?;
    Ok(horos_nodes::main(|n| {
        if part.as_deref() == Some("mount") {
            n.on(Role::Bo).http(PREFIX, Access::Scope(scope), |_: Opening| async { Ok::<_, OpenError>(post(asked::answer)) });
            return;
        }
        for role in [Role::Bo, Role::Fo] {
            n.on(role).gateway(PREFIX);
            n.on(role).service(SERVICE, Restart::Permanent, |_: Opening| async { Ok::<_, OpenError>(Mirror) });
            for name in NAMES {
                n.on(role).service(name, Restart::Permanent, move |_: Opening| async move { Ok::<_, OpenError>(Place(name)) });
            }
            n.on(role)
                .service("watch", Restart::Permanent, |_: Opening| async { Ok::<_, OpenError>(Watcher) })
                .to(&[Role::Operator])
                .stuck_after(std::time::Duration::from_secs(120));
        }
    }))
}
