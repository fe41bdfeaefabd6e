//! A node's configuration: read from every source, checked as a whole, and from then on trusted.
//!
//! Defaults ← `DIR/horos.yaml` ← environment (`HOROS__LIVENESS__HEARTBEAT=250ms`) ← options. Unknown keys are errors,
//! and *every* problem is reported at once, with its place, before anything is started or a port is bound.
//! There are no secrets here: keys are files in the identity directory.
//!
//! This module reads the file and is handed the environment; it changes nothing and opens no socket.

mod data_dir;
mod layers;
mod problem;
mod reader;
mod template;
mod units;

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use horos_wire::{ClusterName, NodeName, Role};
use serde_json::{Map, Value};

pub(crate) use data_dir::open_to_others;
pub use data_dir::{DataDir, DataDirError, create_private};
pub use layers::{MAX_FILE, PREFIX};
pub use problem::{MAX_PROBLEMS, Origin, Problem, Problems, nearest};
pub use template::{Settings, template};
pub use units::{ByteSize, UnitError, show_span, span};

use layers::Layers;
use reader::{Leaf, Reader, Section, choice, section};

/// The configuration file's name in a data directory.
pub const FILE: &str = "horos.yaml";

/// Port of `listen.cluster` on a BO unless said otherwise.
pub const BO_PORT: u16 = 7400;
/// Port of `listen.cluster` on an FO unless said otherwise: another than the BO's, so that both run on one machine.
pub const FO_PORT: u16 = 7401;

/// Longest `liveness.down`: the link's connections end after 5 s of silence (RFC 9000 §10.1), whatever is waited for.
const MAX_DOWN: Duration = ms(4500);

/// Most seeds; the rest of a cluster is learnt from them.
pub const MAX_SEEDS: usize = 256;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

section! {
    /// The cluster this node belongs to.
    pub struct Cluster = "cluster" {
        /// Its name, as in the certificates; two clusters never talk.
        name = "name": ClusterName = "horos".parse().expect("a literal name that keeps the rules");
    }
}

section! {
    /// This node.
    pub struct Node = "node" {
        /// Its name, as in its certificate. Default: the role and -1.
        name = "name": NodeName = "bo-1".parse().expect("a literal name that keeps the rules");
        /// bo (owns data) or fo (faces the public), as in its certificate.
        role = "role": Role = Role::Bo;
    }
}

section! {
    /// Where this node is reached.
    pub struct Listen = "listen" {
        /// UDP address for nodes and the command line. Default: port 7400 on a BO, 7401 on an FO.
        cluster = "cluster": SocketAddr = SocketAddr::from(([127, 0, 0, 1], BO_PORT));
    }
}

section! {
    /// When another node counts as gone. Each must leave room for the one before it.
    pub struct Liveness = "liveness" {
        /// Time between heartbeats.
        heartbeat = "heartbeat": Duration = ms(500), within ms(10)..=secs(1);
        /// Without a heartbeat for so long, a node is suspect: two may be lost.
        suspect = "suspect": Duration = ms(1500), within ms(20)..=secs(4);
        /// Without one for so long, it is down and calls in flight end as unknown. QUIC itself gives up after 5 s.
        down = "down": Duration = ms(2500), within ms(30)..=MAX_DOWN;
    }
}

section! {
    /// What this node takes on at most. Beyond it senders wait or are told "overloaded".
    pub struct Limits = "limits" {
        /// Messages waiting for one actor, unless the service says otherwise.
        mailbox = "mailbox": u32 = 1024, within 1..=1_000_000;
        /// Messages from one peer that are dispatched and not yet handled; further calls are refused. Eight slow actors fill it.
        in_flight_messages = "in-flight-messages": u32 = 8192, within 1..=1_000_000;
        /// Bytes of the small messages among them, and again of the large ones.
        in_flight_bytes = "in-flight-bytes": ByteSize = ByteSize::mib(8), within ByteSize::kib(64)..=ByteSize(4 << 30);
        /// Encoded bytes waiting to be written to one peer; senders wait for room until their deadline.
        out_buffer = "out-buffer": ByteSize = ByteSize::mib(1), within ByteSize::kib(64)..=ByteSize(1 << 30);
        /// Sessions open at a time, nodes and command lines together.
        connections = "connections": u32 = 1024, within 2..=65_536;
        /// Handshakes in progress at a time; whoever comes beyond is refused and may try again.
        handshakes = "handshakes": u32 = 1024, within 1..=65_536;
        /// Of those, from one address; beyond it an address must first show that it is its own (RFC 9000 §8.1.2).
        /// Many command lines at once, and nodes behind one NAT, come from one address.
        handshakes_per_address = "handshakes-per-address": u32 = 64, within 1..=65_536;
        /// A handshake takes at most so long.
        handshake_timeout = "handshake-timeout": Duration = secs(3), within ms(100)..=secs(30);
    }
}

choice! {
    /// When SQLite waits for the disk (SQLite, PRAGMA synchronous).
    pub enum Synchronous {
        /// Before a commit is answered: a reply means that it survives a power cut.
        Full = "full",
        /// At checkpoints: a power cut may lose the last commits, never damage the file.
        Normal = "normal",
    }
}

section! {
    /// How databases are opened and written.
    pub struct Store = "store" {
        /// full: a reply means that the commit is on disk; normal: a power cut may lose the last ones.
        synchronous = "synchronous": Synchronous = Synchronous::Full;
        /// Commands that share a transaction at most.
        group_commit = "group-commit": u32 = 256, within 1..=65_536;
        /// A transaction waits for more commands at most so long; 0s takes only what is already queued.
        group_wait = "group-wait": Duration = ms(0), within ms(0)..=secs(1);
        /// Commands that wait for the writer of one database.
        queue = "queue": u32 = 1024, within 1..=1_000_000;
        /// Read-only connections to each database.
        readers = "readers": u32 = 4, within 1..=64;
        /// How long a statement waits for another process's lock.
        busy_timeout = "busy-timeout": Duration = secs(5), within ms(0)..=secs(60);
    }
}

choice! {
    /// How threads share the work.
    pub enum Layout {
        /// One thread for QUIC and the node's own workings, others for services: a busy service cannot hold up heartbeats.
        Split = "split",
        /// Everything on one thread: least CPU a message, for services that never block.
        Single = "single",
    }
}

section! {
    /// Threads.
    pub struct Runtime = "runtime" {
        /// split: services run beside the thread that drives QUIC; single: all on one thread. On a single core split is
        /// right as well: the kernel shares the core, so that a service that never yields holds up no heartbeat.
        layout = "layout": Layout = Layout::Split;
        /// Threads for services when split; 0 takes one a service, eight at most. Each service stays on one, so that one
        /// which never yields holds up only those that share its thread.
        service_threads = "service-threads": u16 = 0, within 0..=1024;
    }
}

choice! {
    /// How log lines look.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// What is logged, to stderr.
    pub struct Log = "log" {
        /// error, warn, info, debug or trace; also by module, as in "info,horos_link=debug".
        level = "level": String = "info".to_owned();
        /// text or json.
        format = "format": LogFormat = LogFormat::Text;
    }
}

section! {
    /// The node's key and certificates.
    pub struct Identity = "identity" {
        /// Directory; a relative path starts at the data directory.
        dir = "dir": PathBuf = PathBuf::from("identity");
    }
}

section! {
    /// A graceful stop.
    pub struct Drain = "drain" {
        /// Work in hand gets so long to end before it is cut off.
        timeout = "timeout": Duration = secs(10), within ms(0)..=secs(3600);
    }
}

/// A node that is known before any is heard from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Its name, where it is to be that and no other.
    pub name: Option<NodeName>,
    /// Its role, where it is to be that and no other.
    pub role: Option<Role>,
    /// Where its `listen.cluster` is reached from here.
    pub address: Endpoint,
}

/// `host:port`, the host an IP address or a DNS name; names are looked up anew at every dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// An IP address (without brackets) or a DNS name.
    pub host: Box<str>,
    /// The UDP port, never 0.
    pub port: u16,
}

/// Why a text is no [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected host:port such as \"bo-1.example.org:7400\", \"192.0.2.7:7400\" or \"[2001:db8::7]:7400\"")]
pub struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = if let Ok(address) = text.parse::<SocketAddr>() {
            (address.ip().to_string(), address.port())
        } else {
            let (host, port) = text.rsplit_once(':').ok_or(EndpointError)?;
            // RFC 1035 §2.3.4: 255 octets. A colon left over is an IPv6 address without its brackets.
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if host.is_empty() || host.len() > 255 || !host.bytes().all(plain) {
                return Err(EndpointError);
            }
            (host.to_owned(), port.parse().map_err(|_| EndpointError)?)
        };
        if port == 0 { Err(EndpointError) } else { Ok(Self { host: host.into(), port }) }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string().into(), port: address.port() }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
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
            listen: Listen { cluster: SocketAddr::from(([127, 0, 0, 1], port)) },
            peers: Vec::new(),
            liveness: Liveness::default(),
            limits: Limits::default(),
            store: Store::default(),
            runtime: Runtime::default(),
            log: Log::default(),
            identity: Identity { dir: data.join(Identity::default().dir) },
            drain: Drain::default(),
        }
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
        if self.runtime.layout == Layout::Single && self.runtime.service_threads > 1 {
            wrong(
                "runtime.service-threads",
                format!("{} threads in the single layout", self.runtime.service_threads),
                "use layout split, or leave it out",
            );
        }
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
        ]
    }
}

fn read_seeds(layers: &Layers, value: Option<&Value>, problems: &mut Problems) -> Vec<Seed> {
    let path = "peers.seeds";
    let mut wrong = |what: String| problems.push(Problem { origin: layers.origin(path), path: path.into(), what: what.into(), fix: None });
    // From the environment or an option the list is text: `[{address: "bo-1:7400"}]`, or addresses between commas.
    let listed = match value {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::String(text)) => match layers::parse_text(text) {
            Some(Value::Array(items)) => items,
            _ => text
                .split(',')
                .map(|address| Value::Object([("address".to_owned(), address.trim().into())].into_iter().collect()))
                .collect(),
        },
        Some(Value::Array(items)) => items.clone(),
        Some(_) => {
            wrong("expected a list of `- address: host:port`".into());
            return Vec::new();
        }
    };
    if listed.len() > MAX_SEEDS {
        wrong(format!("{} seeds are too many: {MAX_SEEDS} at most, the rest is learnt from them", listed.len()));
        return Vec::new();
    }
    let mut seeds = Vec::new();
    for (i, item) in listed.iter().enumerate() {
        let before = problems.len();
        let mut reader = Reader::new(layers, Some(item), format!("{path}[{i}]"), problems);
        let (name, role) = (reader.field::<Option<NodeName>>("name").flatten(), reader.field::<Option<Role>>("role").flatten());
        let address = reader.field::<Endpoint>("address");
        reader.finish();
        match address {
            Some(address) => seeds.push(Seed { name, role, address }),
            None if problems.len() == before => {
                problems.push(Problem {
                    origin: layers.origin(&format!("{path}[{i}]")),
                    path: format!("{path}[{i}]").into(),
                    what: "has no address".into(),
                    fix: Some("add `address: host:port`".into()),
                });
            }
            None => {}
        }
    }
    seeds
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
