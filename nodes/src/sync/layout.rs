//! What a node publishes and replicates: as its program says, and as `sync.yaml` in its data directory says.
//!
//! ```yaml
//! publications:
//!   shop:
//!     database: app.db              # in the data directory
//!     to: [fo]                      # roles and names of nodes
//!     filter:                       # `horos sync filter check` tries it
//!       full-tables: [categories]
//!       filtered-tables: { goods: "listed = 1" }
//!       partial-tables: { customers: { columns: [id, city], where: "consent = 1" } }
//!     push:                         # nodes of the Go system, if there are any
//!       - { node: go-1, address: 192.0.2.9:9443, compressed: true }
//! replicas:
//!   news:
//!     file: public.db
//!     from: bo                      # a role or a node
//!     readable-by: group            # programs of the file's group may read it; without it the node alone
//!   old:
//!     file: old.db
//!     pushed-by: { node: go-2, tables: [pages] }   # a node of the Go system
//! owner: https://192.0.2.7:7400     # where writes over HTTP go on to; without it the first BO among the seeds
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    fs::OpenOptions,
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use horos_dbsync::{filter::FilterSpec, replica::ReadableBy};
use horos_wire::{ActorName, NodeName, Role};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::control;

/// The file's name in a data directory.
pub const FILE: &str = "sync.yaml";
/// Where replication keeps what it needs beside the databases, in a data directory.
pub(crate) const DIRECTORY: &str = "sync";
/// What a node that was started publishes and replicates.
const IN_FORCE: &str = "layout.json";
/// Its greatest size in bytes: a thousand tables with long conditions.
const MAX_FILE: u64 = 1 << 20;
/// Most publications of a node, and most replicas: each costs a thread and a few connections.
pub const MAX_LISTED: usize = 16;
/// Longest name of a publication in bytes: what is left of an actor's behind `horos.replica.`.
pub const MAX_NAME: usize = 48;

/// Who may have a replica, or where one comes from: a role, or one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// Every node of it.
    Role(Role),
    /// This one.
    Node(NodeName),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(role) => role.fmt(f),
            Self::Node(name) => name.fmt(f),
        }
    }
}

impl Serialize for Party {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Party {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // A node cannot be called like a role, so there is one reading.
        match text.parse::<Role>() {
            Ok(role) if role.is_node() => Ok(Self::Role(role)),
            Ok(role) => Err(de::Error::custom(format_args!("a {role} keeps no replica: name bo, fo or a node"))),
            Err(_) => text.parse().map(Self::Node).map_err(de::Error::custom),
        }
    }
}

/// What of a database goes to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// The database's name in the data directory.
    pub database: ActorName,
    /// Who may have it; nobody else is answered.
    #[serde(default)]
    pub to: Vec<Party>,
    /// What of it.
    pub filter: FilterSpec,
    /// Nodes of the Go system that it is pushed to, whole, whenever it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub push: Vec<PushTo>,
}

/// A node of the Go system that receives snapshots. It shows a certificate of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushTo {
    /// Its name, as its certificate says it.
    pub node: NodeName,
    /// Its role there.
    #[serde(default = "fo")]
    pub role: Role,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it is sent gzip.
    #[serde(default)]
    pub compressed: bool,
}

/// A node of the Go system that pushes what a replica is to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushedBy {
    /// Its name, as its certificate says it. Nobody else is heard.
    pub node: NodeName,
    /// The tables that are kept of what it sends.
    pub tables: Vec<String>,
}

fn fo() -> Role {
    Role::Fo
}

/// Whose publication is kept where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Replica {
    /// The replica's name in the data directory.
    pub file: ActorName,
    /// Who publishes it.
    #[serde(default = "any_bo")]
    pub from: Party,
    /// Who may read the file besides the node: `owner`, nobody; or `group`, programs of the file's group, which need no right to write
    /// anything.
    #[serde(default)]
    pub readable_by: ReadableBy,
    /// A node of the Go system that pushes it, in place of `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_by: Option<PushedBy>,
}

fn any_bo() -> Party {
    Party::Role(Role::Bo)
}

/// All that a node publishes and replicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyncLayout {
    /// By name.
    pub publications: BTreeMap<String, Publication>,
    /// By the publication's name.
    pub replicas: BTreeMap<String, Replica>,
    /// Where the owner of the data takes what is passed on to it over HTTP, as `https://host:port`. Without it the first BO among the
    /// seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// Why `sync.yaml` is not taken. The node does not start: what it was to publish must not be guessed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// It cannot be read.
    #[error("{FILE} cannot be read")]
    Read(#[from] io::Error),
    /// Larger than anybody writes.
    #[error("{FILE} is larger than {MAX_FILE} bytes")]
    TooLarge,
    /// It has not the form.
    #[error("{FILE}: {0}")]
    Form(String),
    /// What it says cannot be done, one line each.
    #[error("{FILE}: {}", .0.join("; "))]
    Problems(Vec<String>),
}

impl SyncLayout {
    /// Reads `sync.yaml` in `data`; nothing where there is none.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn load(data: &Path) -> Result<Self, LayoutError> {
        use io::Read as _;
        let file = match std::fs::File::open(data.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        let mut text = String::new();
        file.take(MAX_FILE + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_FILE {
            return Err(LayoutError::TooLarge);
        }
        Self::read(&text)
    }

    /// What the node in `data` publishes and replicates, its program's part included: what it wrote down at its last start, or
    /// `sync.yaml` where it has not been started.
    ///
    /// # Errors
    /// [`LayoutError`].
    pub fn in_force(data: &Path) -> Result<Self, LayoutError> {
        match std::fs::read_to_string(data.join(DIRECTORY).join(IN_FORCE)) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| LayoutError::Form(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::load(data),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes that down for commands that work on the files alone.
    pub(crate) fn write_down(&self, data: &Path) -> io::Result<()> {
        let directory = data.join(DIRECTORY);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let (partial, whole) = (directory.join("layout.partial"), directory.join(IN_FORCE));
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A condition may name what is nobody's business.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(partial, whole)
    }

    pub(crate) fn read(text: &str) -> Result<Self, LayoutError> {
        let layout: Option<Self> = serde_saphyr::from_str(text).map_err(|error| LayoutError::Form(error.to_string()))?;
        let layout = layout.unwrap_or_default();
        let problems = layout.problems();
        if problems.is_empty() { Ok(layout) } else { Err(LayoutError::Problems(problems)) }
    }

    /// Everything in it that cannot be, in words.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let names = |kind: &str, count: usize, names: &mut dyn Iterator<Item = &String>, problems: &mut Vec<String>| {
            if count > MAX_LISTED {
                problems.push(format!("{count} {kind}; a node has at most {MAX_LISTED}"));
            }
            for name in names {
                if let Some(problem) = unfit(name) {
                    problems.push(format!("{kind} {name:?}: {problem}"));
                }
            }
        };
        names("publications", self.publications.len(), &mut self.publications.keys(), &mut problems);
        names("replicas", self.replicas.len(), &mut self.replicas.keys(), &mut problems);
        for (name, publication) in &self.publications {
            if publication.to.is_empty() && publication.push.is_empty() {
                problems.push(format!("publication {name}: nobody may have it; name roles or nodes in `to`"));
            }
            if publication.filter == FilterSpec::default() {
                problems.push(format!("publication {name}: its filter publishes nothing"));
            }
            if OWN.contains(&publication.database.as_str()) {
                problems.push(format!("publication {name}: {} is the node's own", publication.database));
            }
            // Its own node would send everything back to itself.
            for (other, replica) in &self.replicas {
                if replica.file == publication.database {
                    problems.push(format!("replica {other}: {} is published as {name}; give it a file of its own", replica.file));
                }
            }
        }
        for (name, replica) in &self.replicas {
            if self.replicas.iter().any(|(other, it)| other < name && it.file == replica.file) {
                problems.push(format!("replica {name}: another has {} already", replica.file));
            }
            if let Some(by) = &replica.pushed_by {
                if by.tables.is_empty() {
                    problems.push(format!("replica {name}: name the tables that are kept of what {} pushes", by.node));
                }
                if self.publications.contains_key(name) {
                    problems.push(format!("replica {name}: it is published here as well; give one of both another name"));
                }
                if self.replicas.iter().any(|(other, it)| other < name && it.pushed_by.as_ref().is_some_and(|it| it.node == by.node)) {
                    problems.push(format!("replica {name}: {} pushes one database, and another replica has it", by.node));
                }
            }
            if RESERVED.contains(&replica.file.as_str()) {
                problems.push(format!("replica {name}: {} is the node's own", replica.file));
            }
        }
        problems
    }

    /// Takes what `other` says beside what is here.
    ///
    /// # Errors
    /// What both say.
    pub(crate) fn join(mut self, other: Self) -> Result<Self, LayoutError> {
        let mut problems = Vec::new();
        for (name, publication) in other.publications {
            if self.publications.insert(name.clone(), publication).is_some() {
                problems.push(format!("publication {name}: the program says this one itself"));
            }
        }
        for (name, replica) in other.replicas {
            if self.replicas.insert(name.clone(), replica).is_some() {
                problems.push(format!("replica {name}: the program says this one itself"));
            }
        }
        self.owner = other.owner.or(self.owner);
        problems.extend(self.problems());
        if problems.is_empty() { Ok(self) } else { Err(LayoutError::Problems(problems)) }
    }
}

/// Databases of which the node itself says who has what.
const OWN: [&str; 2] = [control::FILE, control::KEYS_FILE];
/// Files that no replica may stand in for.
const RESERVED: [&str; 3] = [control::FILE, control::KEYS_FILE, "telemetry.db"];

/// Why something cannot be published under `name`, if so.
pub(crate) fn unfit(name: &str) -> Option<String> {
    if name.len() > MAX_NAME {
        return Some(format!("longer than {MAX_NAME} bytes"));
    }
    if name.starts_with(super::control::RESERVED) {
        return Some(format!("names that begin with {:?} are the node's own", super::control::RESERVED));
    }
    name.parse::<ActorName>().err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "
publications:
  shop:
    database: app.db
    to: [fo, bo-2]
    filter: { full-tables: [categories], filtered-tables: { goods: 'listed = 1' } }
replicas:
  news: { file: news.db, from: bo-1 }
  forum: { file: forum.db }
";

    #[test]
    fn a_file_says_what_goes_to_whom_and_what_comes_from_whom() {
        let layout = SyncLayout::read(WHOLE).unwrap();
        let shop = &layout.publications["shop"];
        assert_eq!(shop.to, [Party::Role(Role::Fo), Party::Node("bo-2".parse().unwrap())]);
        assert_eq!(shop.filter.filtered_tables["goods"], "listed = 1");
        assert_eq!(layout.replicas["news"].from, Party::Node("bo-1".parse().unwrap()));
        assert_eq!(layout.replicas["forum"].from, Party::Role(Role::Bo));
        assert_eq!(SyncLayout::read("").unwrap(), SyncLayout::default());
    }

    #[test]
    fn what_cannot_be_is_told_all_at_once() {
        let text = "
publications:
  Shop: { database: app.db, to: [fo], filter: { full-tables: [a] } }
  empty: { database: app.db, to: [fo], filter: {} }
  alone: { database: app.db, to: [], filter: { full-tables: [a] } }
  control-bo: { database: app.db, to: [fo], filter: { full-tables: [a] } }
  who: { database: control.db, to: [fo], filter: { full-tables: [api_keys] } }
  them: { database: keys.db, to: [fo], filter: { full-tables: [api_keys] } }
replicas:
  one: { file: app.db }
  two: { file: control.db }
  three: { file: app.db }
  control-fo: { file: routes.db }
";
        let Err(LayoutError::Problems(problems)) = SyncLayout::read(text) else { panic!("it was taken") };
        for (part, of) in [
            ("\"Shop\"", "no name"),
            ("empty", "publishes nothing"),
            ("alone", "nobody may have it"),
            ("one", "app.db is published"),
            ("two", "the node's own"),
            ("\"control-bo\"", "the node's own"),
            ("\"control-fo\"", "the node's own"),
            ("who", "control.db is the node's own"),
            ("them", "keys.db is the node's own"),
            ("three", "another has app.db"),
        ] {
            assert!(problems.iter().any(|problem| problem.contains(part) && problem.contains(of)), "{part}: {problems:?}");
        }
    }

    #[test]
    fn a_slip_of_the_hand_is_an_error_and_no_wider_publication() {
        for text in [
            "publications: { shop: { database: app.db, to: [fo], filter: { full-tables: [a] }, filters: {} } }",
            "publications: { shop: { database: app.db, to: [operator], filter: { full-tables: [a] } } }",
            "publications: { shop: { database: ../app.db, to: [fo], filter: { full-tables: [a] } } }",
            "replica: {}",
        ] {
            assert!(matches!(SyncLayout::read(text), Err(LayoutError::Form(_))), "{text}");
        }
    }

    #[test]
    fn what_the_program_says_is_not_overruled_by_the_file() {
        let program = SyncLayout::read(WHOLE).unwrap();
        assert!(matches!(program.clone().join(program), Err(LayoutError::Problems(problems)) if problems.len() == 3));
    }
}
