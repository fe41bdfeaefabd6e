//! A node's configuration: read from every source, checked as a whole, and from then on trusted.
//!
//! Defaults ← `DIR/horos.yaml` ← environment (`HOROS__LIVENESS__HEARTBEAT=250ms`) ← options. Unknown keys are errors,
//! and *every* problem is reported at once, with its place, before anything is started or a port is bound.
//! There are no secrets here: keys are files in the identity directory.
//!
//! This module reads the file and is handed the environment; it changes nothing and opens no socket.

mod advertise;
mod data_dir;
mod http;
mod layers;
mod mcp;
mod problem;
mod programs;
mod reader;
mod sections;
mod seeds;
mod template;
mod units;

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use horos_wire::Role;
use serde_json::{Map, Value};

pub(crate) use advertise::dialable;
pub use advertise::{Advertised, AdvertisedError, MAX_ADVERTISED};
pub(crate) use data_dir::open_to_others;
pub use data_dir::{DataDir, DataDirError, create_private};
pub use http::{Control, Http, HttpLimits, HttpTimeouts, HttpTls, Network, NetworkError, WebOrigin, WebOriginError};
pub use layers::{MAX_FILE, PREFIX};
pub use mcp::{Mcp, WebHost, WebHostError, WebServer, WebServerError};
pub use problem::{MAX_PROBLEMS, Origin, Problem, Problems, nearest};
pub use programs::{Program, Programs};
pub use reader::MAX_LISTED;
pub use sections::{Cluster, Drain, Egress, Identity, Layout, Limits, Listen, Liveness, Log, LogFormat, Node, Runtime, Store, Synchronous};
pub use seeds::{Endpoint, EndpointError, MAX_SEEDS, Seed};
pub use template::{Settings, template};
pub use units::{ByteSize, UnitError, show_span, span};

use layers::Layers;
use reader::{Leaf, Reader, Section};
use seeds::read_seeds;

/// The configuration file's name in a data directory.
pub const FILE: &str = "horos.yaml";

/// Port of `listen.cluster` on a BO unless said otherwise.
pub const BO_PORT: u16 = 7400;
/// Port of `listen.cluster` on an FO unless said otherwise: another than the BO's, so that both run on one machine.
pub const FO_PORT: u16 = 7401;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Everything a node is told before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The data directory, absolute where the source was; never in the file, which stands in it.
    pub data: PathBuf,
    /// See [`Cluster`].
    pub cluster: Cluster,
    /// See [`Node`].
    pub node: Node,
    /// See [`Listen`].
    pub listen: Listen,
    /// Nodes known before any is heard from.
    pub peers: Vec<Seed>,
    /// See [`Liveness`].
    pub liveness: Liveness,
    /// See [`Limits`].
    pub limits: Limits,
    /// See [`Store`].
    pub store: Store,
    /// See [`Runtime`].
    pub runtime: Runtime,
    /// See [`Log`].
    pub log: Log,
    /// See [`Identity`]; the directory is resolved against `data`.
    pub identity: Identity,
    /// See [`Drain`].
    pub drain: Drain,
    /// See [`Http`]; files are resolved against `data`.
    pub http: Http,
    /// See [`HttpLimits`].
    pub http_limits: HttpLimits,
    /// See [`HttpTimeouts`].
    pub http_timeouts: HttpTimeouts,
    /// See [`Control`].
    pub control: Control,
    /// See [`Egress`]; files are resolved against `data`.
    pub egress: Egress,
    /// See [`Mcp`].
    pub mcp: Mcp,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The data directory, in which [`FILE`] stands.
    pub data: PathBuf,
    /// Whether a missing file is a problem. Without it, defaults and the other sources do.
    pub file: Presence,
    /// Environment variables; those that do not begin with [`PREFIX`] are passed over.
    pub environment: Vec<(String, String)>,
    /// Options of the command line as path, value and the option's own spelling (`listen.cluster`, `[::]:7400`, `--listen`).
    pub flags: Vec<(String, String, String)>,
    /// The role the command was for (`horos-bo`, `fo`): a configuration of another role is a problem.
    pub role: Option<Role>,
}

/// Whether the file must be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// A missing file is a problem.
    #[default]
    Required,
    /// A missing file means the defaults.
    Optional,
}

impl Sources {
    /// The file in `data`, and this process's environment.
    pub fn of(data: impl Into<PathBuf>) -> Self {
        // A variable that is no Unicode cannot be one of ours: those hold names, numbers and addresses.
        let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        Self { data: data.into(), environment, ..Self::default() }
    }

    /// Adds an option of the command line, where it was given.
    #[must_use]
    pub fn flag(mut self, path: &str, value: Option<impl fmt::Display>, option: &str) -> Self {
        self.flags.extend(value.map(|value| (path.to_owned(), value.to_string(), option.to_owned())));
        self
    }

    /// Demands that the configuration is one of `role`.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = Some(role);
        self
    }

    /// Does without a file.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.file = Presence::Optional;
        self
    }
}

impl Config {
    /// The defaults of a node of `role` with its data in `data`.
    pub fn defaults(role: Role, data: &Path) -> Self {
        let port = if role == Role::Fo { FO_PORT } else { BO_PORT };
        let name = if role == Role::Fo { "fo-1" } else { "bo-1" };
        Self {
            data: data.to_owned(),
            cluster: Cluster::default(),
            node: Node { role, name: name.parse().expect("a literal name that keeps the rules") },
            listen: Listen { cluster: SocketAddr::from(([127, 0, 0, 1], port)), ..Listen::default() },
            peers: Vec::new(),
            liveness: Liveness::default(),
            limits: Limits::default(),
            store: Store::default(),
            runtime: Runtime::default(),
            log: Log::default(),
            identity: Identity { dir: data.join(Identity::default().dir) },
            drain: Drain::default(),
            http: Http::default(),
            http_limits: HttpLimits::default(),
            http_timeouts: HttpTimeouts::default(),
            control: Control::default(),
            egress: Egress::default(),
            mcp: Mcp::default(),
        }
    }

    /// What the node's HTTP port is run with.
    pub(crate) fn edge(&self) -> horos_edge::Config {
        http::edge(&self.http, &self.http_limits, &self.http_timeouts)
    }

    /// Reads every source and checks the whole.
    ///
    /// # Errors
    /// [`Problems`] lists everything that is wrong, in all sources.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        let file = sources.data.join(FILE);
        let mut problems = Problems::default();
        let text = match read_file(&file) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && sources.file == Presence::Optional => None,
            Err(error) => {
                let fix = (error.kind() == io::ErrorKind::NotFound)
                    .then(|| format!("`init --data {}` writes one", sources.data.display()).into());
                problems.push(Problems::file(&file, format!("cannot be read: {error}"), fix));
                None
            }
        };
        Self::read(sources, &file, text.as_deref(), problems)
    }

    /// As [`Config::load`], with the file's text at hand instead of on disk.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_text(sources: &Sources, text: &str) -> Result<Self, Problems> {
        Self::read(sources, Path::new(FILE), Some(text), Problems::default())
    }

    fn read(sources: &Sources, file: &Path, text: Option<&str>, mut problems: Problems) -> Result<Self, Problems> {
        let mut layers = Layers::default();
        if let Some(text) = text {
            layers.file(file, text, &mut problems);
        }
        layers.environment(sources.environment.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        for (path, value, option) in &sources.flags {
            layers.flag(path, value, option);
        }
        // The role chooses the defaults, so it is looked for before the rest; its own problems are told in its turn.
        let role = layers.at(&["node", "role"]).and_then(|value| Role::read(value).ok()).or(sources.role).unwrap_or(Role::Bo);
        let mut config = Self::defaults(role, &sources.data);
        config.take(&layers, &mut problems);
        config.check(&layers, sources.role, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn take(&mut self, layers: &Layers, problems: &mut Problems) {
        // As the file would say it: joined to the data directory once, below.
        self.identity = Identity::default();
        let root = Value::Object(layers.root().clone());
        let mut top = Reader::new(layers, Some(&root), String::new(), problems);
        let sections: Vec<_> = template::KEYS.iter().map(|key| (*key, top.raw(key))).collect();
        top.finish();
        for (key, value) in sections {
            let mut reader = Reader::new(layers, value, key.to_owned(), problems);
            match key {
                Cluster::KEY => self.cluster.read(&mut reader),
                Node::KEY => self.node.read(&mut reader),
                Listen::KEY => self.listen.read(&mut reader),
                Liveness::KEY => self.liveness.read(&mut reader),
                Limits::KEY => self.limits.read(&mut reader),
                Store::KEY => self.store.read(&mut reader),
                Runtime::KEY => self.runtime.read(&mut reader),
                Log::KEY => self.log.read(&mut reader),
                Identity::KEY => self.identity.read(&mut reader),
                Drain::KEY => self.drain.read(&mut reader),
                Http::KEY => self.http.read(&mut reader),
                HttpLimits::KEY => self.http_limits.read(&mut reader),
                HttpTimeouts::KEY => self.http_timeouts.read(&mut reader),
                Control::KEY => self.control.read(&mut reader),
                Egress::KEY => self.egress.read(&mut reader),
                Mcp::KEY => self.mcp.read(&mut reader),
                _ => {
                    let seeds = reader.raw("seeds");
                    reader.finish();
                    self.peers = read_seeds(layers, seeds, problems);
                    continue;
                }
            }
            reader.finish();
        }
        self.identity.dir = self.data.join(&self.identity.dir);
        let files = [&mut self.http.certificate, &mut self.http.key].into_iter().flatten().chain(&mut self.egress.authorities);
        for file in files {
            *file = self.data.join(&file);
        }
        // One port named twice is one port; two of the system's choice are two.
        self.listen.public = self.listen.public.filter(|public| *public != self.listen.cluster || public.port() == 0);
    }

    /// What no field can say alone.
    fn check(&self, layers: &Layers, wanted: Option<Role>, problems: &mut Problems) {
        let mut wrong = |path: &str, what: String, fix: &str| {
            let fix = Some(fix).filter(|fix| !fix.is_empty()).map(Into::into);
            problems.push(Problem { origin: layers.origin(path), path: path.into(), what: what.into(), fix });
        };
        if !self.node.role.is_node() {
            wrong("node.role", format!("a node is bo or fo, never {}", self.node.role), "");
        } else if let Some(wanted) = wanted.filter(|wanted| *wanted != self.node.role) {
            wrong(
                "node.role",
                format!("this is the data directory of a node of role {}", self.node.role),
                &format!("name that of a {wanted} with --data"),
            );
        }
        if self.listen.advertise.len() > MAX_ADVERTISED {
            let what = format!("{} addresses are too many, {MAX_ADVERTISED} at most", self.listen.advertise.len());
            wrong("listen.advertise", what, "");
        }
        let it = &self.liveness;
        let at_least = |what: &str, is: Duration, other: &str, than: Duration, why: &str| {
            format!("{what} {} must be at least {other} {}: {why}", show_span(is), show_span(than))
        };
        if it.suspect < it.heartbeat.saturating_mul(2) {
            let why = "one lost heartbeat is no suspicion";
            wrong("liveness.suspect", at_least("suspect", it.suspect, "twice the heartbeat", it.heartbeat.saturating_mul(2), why), "");
        }
        if it.down < it.suspect + it.heartbeat {
            let why = "a suspect must be able to answer";
            wrong("liveness.down", at_least("down", it.down, "suspect and a heartbeat", it.suspect + it.heartbeat, why), "");
        }
        if self.limits.handshakes_per_address > self.limits.handshakes {
            let what = format!(
                "more from one address ({}) than there may be in all ({})",
                self.limits.handshakes_per_address, self.limits.handshakes
            );
            wrong("limits.handshakes-per-address", what, "");
        }
        for (path, threads) in
            [("runtime.service-threads", self.runtime.service_threads), ("runtime.http-threads", self.runtime.http_threads)]
        {
            if self.runtime.layout == Layout::Single && threads > 1 {
                wrong(path, format!("{threads} threads in the single layout"), "use layout split, or leave it out");
            }
        }
        http::check(self, &mut wrong);
        if let Err(what) = crate::logging::check_filter(&self.log.level) {
            wrong("log.level", what, "use error, warn, info, debug or trace");
        }
        for (i, seed) in self.peers.iter().enumerate() {
            let path = format!("peers.seeds[{i}]");
            if seed.name.as_ref() == Some(&self.node.name) {
                wrong(&path, format!("{} is this node itself", self.node.name), "list the others");
            }
            if seed.role.is_some_and(|role| !role.is_node()) {
                wrong(&path, "a node is bo or fo".into(), "");
            }
            if self.peers[..i].iter().any(|other| other.address == seed.address) {
                wrong(&path, format!("{} is listed twice", seed.address), "");
            }
            if seed.name.is_some() && self.peers[..i].iter().any(|other| other.name == seed.name) {
                wrong(&path, "its name is listed twice".into(), "");
            }
        }
    }

    /// The whole as plain values, as a file would hold them.
    pub fn to_value(&self) -> Value {
        let mut root = Map::new();
        for (key, _, fields) in self.sections() {
            root.insert(key.into(), Value::Object(fields.into_iter().map(|field| (field.key.to_owned(), field.value)).collect()));
        }
        let seeds = self.peers.iter().map(|seed| {
            let mut map = Map::new();
            map.extend(seed.name.as_ref().map(|name| ("name".to_owned(), name.show())));
            map.extend(seed.role.as_ref().map(|role| ("role".to_owned(), role.show())));
            map.insert("address".into(), seed.address.show());
            Value::Object(map)
        });
        root.insert("peers".into(), Value::Object([("seeds".to_owned(), Value::Array(seeds.collect()))].into_iter().collect()));
        Value::Object(root)
    }

    fn sections(&self) -> Vec<(&'static str, &'static [&'static str], Vec<reader::Field>)> {
        fn one<S: Section>(section: &S) -> (&'static str, &'static [&'static str], Vec<reader::Field>) {
            (S::KEY, S::ABOUT, section.fields())
        }
        vec![
            one(&self.cluster),
            one(&self.node),
            one(&self.listen),
            one(&self.liveness),
            one(&self.limits),
            one(&self.store),
            one(&self.runtime),
            one(&self.log),
            one(&self.identity),
            one(&self.drain),
            one(&self.http),
            one(&self.http_limits),
            one(&self.http_timeouts),
            one(&self.control),
            one(&self.egress),
            one(&self.mcp),
        ]
    }
}

fn read_file(file: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    // One byte more than allowed, so that a file of just the limit still passes.
    std::fs::File::open(file)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {}", ByteSize(MAX_FILE))));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
