//! Other people's HTTP clients: curl, Node.js's fetch, Python's httpx and aioquic. `tests/run` installs them and tells
//! where they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::http::{Answer, Ask};
use super::site::Site;
use super::{cli, data_dir};

/// A client, and what it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    CurlHttp1,
    CurlHttp2,
    NodeFetch,
    HttpxHttp1,
    HttpxHttp2,
    AioquicHttp3,
}

impl Client {
    pub(crate) const ALL: [Self; 6] =
        [Self::CurlHttp1, Self::CurlHttp2, Self::NodeFetch, Self::HttpxHttp1, Self::HttpxHttp2, Self::AioquicHttp3];

    /// What its answers say that they came by.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::CurlHttp1 | Self::NodeFetch | Self::HttpxHttp1 => "1.1",
            Self::CurlHttp2 | Self::HttpxHttp2 => "2",
            Self::AioquicHttp3 => "3",
        }
    }

    /// Has it ask, one after the other, on one connection where it keeps one.
    ///
    /// # Panics
    /// When it gets no answer, with what it said.
    pub(crate) async fn ask(self, site: &Site, asks: &[Ask]) -> Vec<Answer> {
        let answers = match self {
            Self::CurlHttp1 => curl(site, "--http1.1", asks).await,
            Self::CurlHttp2 => curl(site, "--http2", asks).await,
            Self::NodeFetch => {
                let mut node = Command::new(installed("HOROS_TEST_NODE"));
                node.arg(script("node/ask.mjs")).arg(wanted(self, site, asks).to_string());
                by_script(node.env("NODE_EXTRA_CA_CERTS", &site.authority)).await
            }
            Self::HttpxHttp1 | Self::HttpxHttp2 | Self::AioquicHttp3 => {
                by_script(python("ask.py").arg(wanted(self, site, asks).to_string())).await
            }
        };
        assert_eq!(answers.len(), asks.len(), "{self:?}");
        answers
    }
}

/// Where `tests/run` put a client.
///
/// # Panics
/// When it did not.
pub(crate) fn installed(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.unwrap_or_else(|| panic!("{variable} is not set: run tests/run, which installs other people's clients and tells where"))
}

/// A script of ours under the Python that has the clients.
pub(crate) fn python(name: &str) -> Command {
    let mut command = Command::new(installed("HOROS_TEST_PYTHON"));
    // Nothing is written beside the sources.
    command.arg("-B").arg(script(&format!("python/{name}")));
    command
}

/// Where a script of ours is, below `tests/clients`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// The argument of the scripts.
fn wanted(client: Client, site: &Site, asks: &[Ask]) -> Value {
    let headers = |ask: &Ask| ask.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<serde_json::Map<_, _>>();
    let requests: Vec<_> =
        asks.iter().map(|ask| json!({ "method": ask.method, "path": ask.path, "headers": headers(ask), "body": ask.body })).collect();
    json!({
        "version": client.version(),
        "address": [site.address.ip().to_string(), site.address.port()],
        "name": site.name,
        "ca": site.authority,
        "requests": requests,
    })
}

async fn by_script(command: &mut Command) -> Vec<Answer> {
    let outcome = cli::run(std::mem::replace(command, Command::new("true"))).await.expect_code(0);
    let answers = outcome.json();
    answers.as_array().unwrap_or_else(|| panic!("{outcome:?}")).iter().map(read).collect()
}

fn read(answer: &Value) -> Answer {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let header = |pair: &Value| (text(&pair[0]), text(&pair[1]));
    Answer {
        version: text(&answer["version"]),
        status: answer["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or_default(),
        headers: answer["headers"].as_array().into_iter().flatten().map(header).collect(),
        body: text(&answer["body"]),
    }
}

async fn curl(site: &Site, version: &str, asks: &[Ask]) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(asks.len());
    let dir = data_dir();
    let (head, body, sent) = (dir.path().join("head"), dir.path().join("body"), dir.path().join("sent"));
    for ask in asks {
        let mut curl = Command::new("curl");
        // -q first: no configuration of the developer's own.
        curl.args(["-q", "--silent", "--show-error", version, "--max-time", "20"]).arg("--cacert").arg(&site.authority);
        curl.args(["--noproxy", "*", "--connect-to", &format!("::{}", site.address)]);
        curl.arg("--dump-header").arg(&head).arg("--output").arg(&body);
        for (name, value) in &ask.headers {
            curl.args(["--header", &format!("{name}: {value}")]);
        }
        match (ask.method, &ask.body) {
            ("HEAD", None) => curl.arg("--head"),
            (method, None) => curl.args(["--request", method]),
            (method, Some(content)) => {
                std::fs::write(&sent, content).unwrap();
                curl.args(["--request", method]).args(["--data-binary", &format!("@{}", sent.display())])
            }
        };
        curl.args(["--write-out", "%{http_version}"]).arg(site.url(&ask.path));
        let _ = std::fs::remove_file(&body);
        let outcome = cli::run(curl).await.expect_code(0);
        let head = std::fs::read_to_string(&head).unwrap();
        // Interim answers (100 Continue) come before; the last block counts.
        let block = head.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default();
        let mut lines = block.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
        answers.push(Answer {
            version: outcome.stdout,
            status: status.unwrap_or_else(|| panic!("{}: {head}", outcome.line)),
            headers: headers.collect(),
            // With HEAD curl writes the head once more in the body's place.
            body: if ask.method == "HEAD" { String::new() } else { std::fs::read_to_string(&body).unwrap_or_default() },
        });
    }
    answers
}
