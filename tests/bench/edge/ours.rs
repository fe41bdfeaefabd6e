//! Ours: a node as a user's program has it, set up and given a key by the documented commands.

use std::{
    io::Read as _,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::Context as _;
use axum::routing::get;
use horos_nodes::{Opening, http::Access, supervision::OpenError, wire::Role};

use crate::{
    asked::{self, PREFIX, SCOPE},
    machine::{SERVER_CORE, pin},
    program,
    server::{self, CERTIFICATE, CERTIFICATE_KEY, Ready},
};

/// How the node's threads share the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The default: one thread for QUIC, one for HTTP, one for services.
    Split,
    /// All on one thread, as the floor's.
    Single,
}

/// The limits are high, for one client asks as often as a hundred thousand; each is counted all the same.
const SETTINGS: [(&str, &str); 3] =
    [("HOROS__HTTP__TLS", "files"), ("HOROS__HTTP_LIMITS__PER_ADDRESS", "100000000"), ("HOROS__HTTP_LIMITS__PER_IDENTITY", "100000000")];

/// Starts a node in `data`, made anew, with the certificate in `directory`.
pub(crate) fn start(directory: &Path, data: &Path, layout: Layout) -> anyhow::Result<(Child, Ready)> {
    program::set_up(data)?;
    let log = directory.join("node.log");
    let mut child = server::again()?
        .args(["bo", "--json", "--data"])
        .arg(data)
        .envs(SETTINGS)
        .env("HOROS__HTTP__CERTIFICATE", directory.join(CERTIFICATE))
        .env("HOROS__HTTP__KEY", directory.join(CERTIFICATE_KEY))
        .env("HOROS__RUNTIME__LAYOUT", if layout == Layout::Single { "single" } else { "split" })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&log)?)
        .spawn()?;
    let said = child.stdout.take().context("stdout is piped")?;
    let told = serde_json::Deserializer::from_reader(said).into_iter::<serde_json::Value>().next();
    let Some(Ok(told)) = told else { anyhow::bail!("the node did not start: {}", std::fs::read_to_string(log)?) };
    let address = told["address"].as_str().context("the node said something else first")?.parse()?;
    let made = Command::new(env!("CARGO_BIN_EXE_horos"))
        .args(["keys", "create", "--name", "bench", "--owner", "bench", "--scope", SCOPE, "--json", "--data"])
        .arg(data)
        .output()?;
    anyhow::ensure!(made.status.success(), "horos keys create: {}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
    let key = made["secret"].as_str().context("no key was made")?.to_owned();
    Ok((child, Ready { tcp: address, udp: address, key }))
}

/// The node's `main`. It ends with its stdin.
pub(crate) fn main() -> anyhow::Result<ExitCode> {
    pin(SERVER_CORE)?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let scope = SCOPE.parse()?;
    Ok(horos_nodes::main(|n| {
        n.on(Role::Bo).http(PREFIX, Access::Scope(scope), |_: Opening| async { Ok::<_, OpenError>(get(asked::answer)) });
    }))
}
