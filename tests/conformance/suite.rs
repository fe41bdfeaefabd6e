//! Runs the official suite, and reads what it found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::exceptions::Side;
use crate::harness::clients::installed;
use crate::harness::data_dir;

/// For a whole run: less than the runner gives a test.
const RUN: Duration = Duration::from_secs(160);

/// What is run: a release of the suite, at the revision of the protocol that it is to speak where it knows more than one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    /// 0.1.16, all of which is of the older generation.
    Old,
    /// 0.2.0-alpha.12 with `initialize` and sessions.
    Sessions,
    /// 0.2.0-alpha.12 without.
    Stateless,
    /// What 0.2.0-alpha.12 has that is no part of a revision.
    Extensions,
}

impl Suite {
    pub(crate) const ALL: [Self; 4] = [Self::Old, Self::Sessions, Self::Stateless, Self::Extensions];

    /// What the list of exceptions calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Old => "0.1",
            Self::Sessions => "0.2@2025-11-25",
            Self::Stateless => "0.2@2026-07-28",
            Self::Extensions => "0.2@extensions",
        }
    }

    fn command(self) -> Command {
        let package = if self == Self::Old { "conformance-0.1" } else { "conformance-0.2" };
        let mut command = Command::new(installed("HOROS_TEST_NODE"));
        command.arg(installed("HOROS_TEST_NODE_MODULES").join(package).join("dist/index.js"));
        // Everything is on loopback, whatever the developer's own network wants.
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NODE_OPTIONS"] {
            command.env_remove(variable);
        }
        command
    }

    fn revision(self) -> &'static [&'static str] {
        match self {
            Self::Old | Self::Extensions => &[],
            Self::Sessions => &["--spec-version", "2025-11-25"],
            Self::Stateless => &["--spec-version", "2026-07-28"],
        }
    }

    /// What it has for `side` at this revision.
    pub(crate) async fn scenarios(self, side: Side) -> BTreeSet<String> {
        let listed = self.list(side, self.revision()).await;
        listed.into_iter().filter(|(_, of)| self != Self::Extensions || of == "[extension]").map(|(name, _)| name).collect()
    }

    /// All that this release has for `side`, at whichever revision or none.
    pub(crate) async fn known(self, side: Side) -> BTreeSet<String> {
        self.list(side, &[]).await.into_iter().map(|(name, _)| name).collect()
    }

    /// What it lists, with the revisions.
    async fn list(self, side: Side, revision: &[&str]) -> Vec<(String, String)> {
        let mut command = self.command();
        command.args(["list", &format!("--{}", side.name())]).args(revision);
        let told = run(command).await;
        // `  - name [revisions]`
        let lines = told.lines().filter_map(|line| line.strip_prefix("  - "));
        lines.map(|line| line.split_once(' ').unwrap_or((line, ""))).map(|(name, of)| (name.to_owned(), of.trim().to_owned())).collect()
    }

    /// What its revision of the protocol requires of `side`, as the suite says it: the names below `server:` or `client:`.
    pub(crate) fn required(self, side: Side) -> Vec<String> {
        let Some([_, revision]) = self.revision().first_chunk::<2>() else { return Vec::new() };
        let packages = installed("HOROS_TEST_NODE_MODULES");
        let text = std::fs::read_to_string(packages.join(format!("conformance-0.2/requirements/{revision}.yaml"))).unwrap();
        let section = text.lines().skip_while(|line| *line != format!("{}:", side.name())).skip(1);
        section.map_while(|line| line.strip_prefix("  - ")).map(str::to_owned).collect()
    }

    /// Has it ask the server at `url` everything that it has for servers.
    pub(crate) async fn ask_server(self, url: &str) -> Found {
        let dir = data_dir();
        let mut command = self.command();
        command.args(["server", "--suite", "all", "--url", url, "-o"]).arg(dir.path()).args(self.revision());
        let told = run(command).await;
        Found::read(dir.path(), "server-", told)
    }

    /// Has it run the client that is the command `client`, once for each thing that it has for clients.
    pub(crate) async fn ask_client(self, client: &str) -> Found {
        let dir = data_dir();
        let mut command = self.command();
        let suite = if self == Self::Extensions { "extensions" } else { "all" };
        command.args(["client", "--suite", suite, "--command", client, "-o"]).arg(dir.path()).args(self.revision());
        let told = run(command).await;
        Found::read(dir.path(), "", told)
    }
}

async fn run(mut command: Command) -> String {
    let line = format!("{command:?}");
    command.stdin(Stdio::null());
    let running = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = timeout(RUN, running).await.unwrap_or_else(|_| panic!("{line}: still runs after {RUN:?}")).unwrap();
    // Its exit code says whether all was well; what was not is read from its files.
    format!("{line}\n{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// One thing that the suite looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Check {
    pub(crate) id: String,
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) error_message: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    Success,
    Failure,
    Warning,
    Skipped,
    Info,
}

/// What a run found.
pub(crate) struct Found {
    /// By scenario.
    pub(crate) checks: BTreeMap<String, Vec<Check>>,
    /// All that it printed.
    pub(crate) told: String,
}

impl Found {
    /// Reads `DIR/PREFIX{scenario}-{time}/checks.json`; a scenario's name may have a slash in it.
    fn read(dir: &Path, prefix: &str, told: String) -> Self {
        let mut found = BTreeMap::new();
        let mut open = vec![dir.to_owned()];
        while let Some(here) = open.pop() {
            for entry in std::fs::read_dir(&here).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                    continue;
                }
                if path.file_name().is_none_or(|name| name != "checks.json") {
                    continue;
                }
                let name = here.strip_prefix(dir).unwrap().to_str().unwrap();
                let name = name.strip_prefix(prefix).unwrap_or(name);
                // -2026-11-22T00-45-17-123Z
                let name = &name[..name.len() - 25];
                let checks: Vec<Check> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                found.insert(name.to_owned(), checks);
            }
        }
        assert!(!found.is_empty(), "the suite ran nothing:\n{told}");
        Self { checks: found, told }
    }
}
