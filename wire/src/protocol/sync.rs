//! How published databases get to their replicas, and how far they have got.
//!
//! A publication is the service [`sync_name`] on the node that owns the database, its replica the service [`replica_name`] on every
//! node that keeps one. The replica's node *subscribes* and renews that within the lease; the publisher *pushes*: it calls `apply`
//! with a stream of changes or a snapshot, one at a time, and the answer is the position that the replica has then. Only that
//! position counts. What became of an `apply` that failed or timed out is unknown, so the publisher asks `status` and goes on from
//! the position that it is told; applying what is there already is refused by [`ReplicaError::Mismatch`].
//!
//! What is pushed is a stream of frames of its own format ([`STREAM_VERSION`]), opaque here: what is small travels in the message,
//! the rest as a bulk body.
//!
//! Who may be asked is decided by [`crate::policy`]; beyond that a publication answers those nodes alone that it is meant for, and a
//! replica takes changes from its own source alone. Both go by the certificate of the link.
//!
//! Times are milliseconds since 1970, spans milliseconds.

use std::{fmt, str::FromStr, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{ActorName, Bulk, NodeName, address::AddressError};

/// What every publication's service is called before its name.
pub const SYNC_PREFIX: &str = "horos.sync.";
/// What every replica's service is called before its name.
pub const REPLICA_PREFIX: &str = "horos.replica.";
/// Of the stream that [`Apply`] carries. Two ends that differ do not talk.
pub const STREAM_VERSION: u16 = 1;
/// How long a subscription holds unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(10);
/// How often it is renewed: four may be lost before it lapses.
pub const RENEW: Duration = Duration::from_secs(2);
/// Most subscribers of a publication: each costs its node a worker, a connection and a spool.
pub const MAX_SUBSCRIBERS: usize = 64;
/// Most tables of a publication.
pub const MAX_TABLES: usize = 1_000;
/// Largest stream that travels in the message itself, in bytes. Larger ones would hold up what other actors say on the same link.
pub const MAX_INLINE: usize = 256 * 1024;
/// Most chunks in a [`Have`]: 85 KB.
pub const HAVE_PAGE: usize = 5_000;
/// Most chunks that a publisher asks a replica for: with 512 rows each, 256 million rows and 8 MB. What a replica has beyond those is
/// sent again.
pub const MAX_HAVE: usize = 500_000;
/// Most checks in a stream, and so most mismatches in an [`Applied`].
pub const MAX_CHECKS: usize = 1_024;
/// Longest text of an error or a condition, in bytes.
pub const MAX_TEXT: usize = 1_000;

/// The name of the service of publication `name`.
///
/// # Errors
/// [`AddressError`]: `name` is none, or too long behind [`SYNC_PREFIX`].
pub fn sync_name(name: &str) -> Result<ActorName, AddressError> {
    name.parse::<ActorName>()?;
    format!("{SYNC_PREFIX}{name}").parse()
}

/// The name of the service of replica `name`, on whichever node keeps it.
///
/// # Errors
/// [`AddressError`]: `name` is none, or too long behind [`REPLICA_PREFIX`].
pub fn replica_name(name: &str) -> Result<ActorName, AddressError> {
    name.parse::<ActorName>()?;
    format!("{REPLICA_PREFIX}{name}").parse()
}

macro_rules! sixteen {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u128);

        impl $name {
            /// From its bytes, in the order in which they are written.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// Its bytes, in the order in which they are written.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        crate::hex::hex_id!($name);
    };
}

sixteen! {
    /// One life of a database's log of changes, drawn at random when it begins. Positions of two epochs cannot be compared.
    Epoch
}
sixteen! {
    /// Identifies what is published of a table and in which form: its definition and the query behind it.
    TableMark
}
sixteen! {
    /// Identifies a chunk of a table's rows: the first half of the SHA-256 over them.
    ChunkMark
}

/// A place in a database's log of changes. A replica that says it is there holds exactly what was published then.
///
/// Written `EPOCH.SEQ.STAMP`: 32 hexadecimal digits, a decimal number, 16 hexadecimal digits. In JSON it is that text, because many
/// readers of JSON round whole numbers beyond 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which log.
    pub epoch: Epoch,
    /// Which entry. Greater is later within an epoch.
    pub seq: i64,
    /// That entry's random number: the log of a restored backup that was written further reaches the same `seq`, never the same stamp.
    pub stamp: i64,
}

/// Longest text of a [`Position`], in bytes.
pub const MAX_POSITION: usize = 32 + 1 + 20 + 1 + 16;

/// Not a position as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a position: 32 hexadecimal digits, '.', a number, '.', 16 hexadecimal digits")]
pub struct PositionError;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two's complement: every stamp has sixteen digits and no sign.
        write!(f, "{}.{}.{:016x}", self.epoch, self.seq, self.stamp)
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let mut parts = text.split('.');
        let (Some(epoch), Some(seq), Some(stamp), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(PositionError);
        };
        let epoch = epoch.parse().map_err(|_| PositionError)?;
        let number: i64 = seq.parse().map_err(|_| PositionError)?;
        let digits = stamp.len() == 16 && stamp.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let stamp = if digits { u64::from_str_radix(stamp, 16).map_err(|_| PositionError)? } else { return Err(PositionError) };
        let position = Self { epoch, seq: number, stamp: stamp.cast_signed() };
        // One position has one spelling ("+7" and "007" are no numbers here), so that texts can be compared.
        if number.to_string() == seq { Ok(position) } else { Err(PositionError) }
    }
}

#[derive(Serialize, Deserialize)]
struct Parts(Epoch, i64, i64);

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            Parts(self.epoch, self.seq, self.stamp).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Box::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom);
        }
        let Parts(epoch, seq, stamp) = Parts::deserialize(deserializer)?;
        Ok(Self { epoch, seq, stamp })
    }
}

impl JsonSchema for Position {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SyncPosition".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{32}\\.-?[0-9]{1,19}\\.[0-9a-f]{16}$" })
    }
}

/// A table as a replica has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KnownTable {
    /// Its name.
    pub name: Box<str>,
    /// What was published of it when its rows were sent.
    pub mark: TableMark,
}

/// Asks to be kept up to date from now on, or still. The caller's node is who is fed, through its service [`replica_name`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Subscribe {
    /// What the replica has; none begins with a snapshot.
    pub have: Option<Position>,
    /// The tables that it has at that position; [`MAX_TABLES`] at most. One whose mark is another is sent anew.
    pub tables: Vec<KnownTable>,
    /// [`STREAM_VERSION`].
    pub version: u16,
    /// Whether the replica has chunks that a snapshot need not send again: of one that was cut off, or of the data that it serves.
    pub resume: bool,
}

/// It is, until the lease is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Subscribed {
    /// Where the publication is now.
    pub head: Position,
    /// How long the subscription holds unless it is renewed.
    pub lease_ms: u32,
}

/// Asks how a publication and its subscribers are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PublisherStatusAsk {}

/// A publication. To an FO without what it need not know: no file, no error texts, and of the subscribers itself alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PublicationStatus {
    /// Its name.
    pub name: Box<str>,
    /// The database.
    pub file: Option<Box<str>>,
    /// Where it is; none before it was first read.
    pub head: Option<Position>,
    /// How many changes its log holds.
    pub log_entries: u64,
    /// How many tables it has.
    pub tables: u32,
    /// Unique indexes, as `table.index`, through which a REPLACE may remove a row unseen: they name a column that is not published.
    /// Such rows are healed by the next check.
    pub blind: Vec<Box<str>>,
    /// Why nothing is published now, if so. What was published before stays where it is.
    pub condition: Option<Box<str>>,
    /// Who is fed. [`MAX_SUBSCRIBERS`] at most.
    pub subscribers: Vec<SubscriberStatus>,
}

/// A subscriber, as the publisher knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SubscriberStatus {
    /// Its node.
    pub node: NodeName,
    /// What it last said that it has.
    pub position: Option<Position>,
    /// Changes in the log that it does not have.
    pub lag_rows: u64,
    /// For how long there has been something that it does not have.
    pub lag_ms: u64,
    /// Bytes sent to it since it subscribed.
    pub sent_bytes: u64,
    /// Streams of changes that it has applied.
    pub deltas: u64,
    /// Snapshots that it has applied.
    pub snapshots: u64,
    /// The last failure, until the next success.
    pub last_error: Option<Box<str>>,
    /// What is done about it now.
    pub state: FeedState,
    /// When the last comparison of everything that it has came to its end.
    pub verified_at: Option<u64>,
    /// Rows that a comparison found different and that were sent again.
    pub repaired_rows: u64,
}

/// What is done for a subscriber.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FeedState {
    /// It has everything.
    Live,
    /// It is sent what it does not have.
    CatchingUp,
    /// It is sent everything.
    Snapshot {
        /// Rows sent or found to be there.
        done_rows: u64,
        /// About how many there are.
        total_rows: u64,
        /// Bytes sent.
        bytes: u64,
    },
    /// It does not answer, or could not take what it was sent; it is tried again.
    Away,
}

/// Compares everything that subscribers have with what they should have, and heals what differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StartVerify {
    /// Which subscriber; none is all.
    pub node: Option<NodeName>,
    /// Only says how far this run is; none begins one, or joins the one that runs.
    pub run: Option<u64>,
}

/// How far a comparison is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyReport {
    /// Which run, to ask again with.
    pub run: u64,
    /// Whether all of `nodes` are done.
    pub done: bool,
    /// Subscriber by subscriber.
    pub nodes: Vec<NodeVerify>,
}

/// How far the comparison with a subscriber is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeVerify {
    /// Its node.
    pub node: NodeName,
    /// Chunks compared.
    pub chunks: u64,
    /// About how many there are.
    pub total_chunks: u64,
    /// Rows compared.
    pub rows: u64,
    /// Chunks that differed.
    pub mismatches: u64,
    /// Rows sent again for it.
    pub repaired_rows: u64,
    /// Whether everything was compared, and what differed healed.
    pub done: bool,
    /// Why it is not getting on, if so.
    pub error: Option<Box<str>>,
}

/// Asks where a publication is: whatever anybody has committed before is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Head {}

/// Why a publication did not do it. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SyncError {
    /// The caller's node is not among those that it is for. Permanent until the publication is changed.
    #[error("the publication is not for this node")]
    NotForYou,
    /// There are as many subscribers as there may be. Try again later.
    #[error("the publication has {MAX_SUBSCRIBERS} subscribers, as many as it may have")]
    TooMany,
    /// The caller reads another format of the stream than this. Permanent until one of the two is upgraded.
    #[error("the publication is sent in format {0} of the stream; run the same release on both nodes")]
    Version(u16),
    /// Nothing can be published now. Try again later; the text is for operators.
    #[error("nothing is published now: {0}")]
    Unavailable(Box<str>),
    /// There is no such subscriber or run.
    #[error("no such {0}")]
    NoSuch(Box<str>),
    /// Something in the request is not as it must be. Permanent.
    #[error("{0}")]
    Invalid(Box<str>),
}

/// What [`Apply`] carries: a stream from its first byte to its last.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Here. [`MAX_INLINE`] at most.
    Inline(
        #[serde(with = "serde_bytes")]
        #[schemars(with = "Vec<u8>")]
        Vec<u8>,
    ),
    /// As a body to be claimed.
    Body(Bulk),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Rows are no business of a log.
            Self::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Self::Body(bulk) => write!(f, "Body({bulk})"),
        }
    }
}

/// Changes a replica: either all of the stream is applied, in one transaction, or nothing of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Apply {
    /// The stream.
    pub stream: Stream,
    /// Its length if it is known: a body may still be growing when it is announced.
    pub bytes: Option<u64>,
}

/// It was applied and is on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Applied {
    /// What the replica has now.
    pub position: Position,
    /// The checks in the stream that did not agree, by their numbers. [`MAX_CHECKS`] at most.
    pub mismatches: Vec<u32>,
}

/// Asks how a replica is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaAsk {}

/// A replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: Box<str>,
    /// The node that it is fed by; none before one of the role that it is configured for was found.
    pub source: Option<NodeName>,
    /// What it has; none before its first snapshot.
    pub position: Option<Position>,
    /// Its tables. [`MAX_TABLES`] at most.
    pub tables: Vec<ReplicaTable>,
    /// What it is doing.
    pub state: ReplicaState,
    /// Whether it has chunks that a snapshot need not send again.
    pub resume: bool,
    /// When anything was last applied.
    pub applied_at: Option<u64>,
    /// How old its data may be: since when it has not been told that it has everything.
    pub stale_ms: Option<u64>,
    /// Streams of changes applied since it was started.
    pub deltas: u64,
    /// Snapshots applied since it was started.
    pub snapshots: u64,
    /// Bytes received since it was started.
    pub received_bytes: u64,
    /// The last failure, until the next success. Not told to an FO.
    pub last_error: Option<Box<str>>,
}

/// A table of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplicaTable {
    /// Its name.
    pub name: Box<str>,
    /// What was published of it when its rows were sent.
    pub mark: TableMark,
    /// When a change to it was last applied.
    pub changed_at: Option<u64>,
}

/// What a replica is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// It has nothing yet.
    Empty,
    /// It serves what it has and takes changes.
    Live,
    /// It receives a snapshot, and serves what it has meanwhile.
    Receiving {
        /// Rows received or found to be there.
        rows: u64,
        /// Bytes received.
        bytes: u64,
    },
    /// It was rolled back, serves that, and takes no changes until [`Resume`].
    Pinned,
    /// Its source is to send a snapshot: what it has cannot be gone on from.
    Broken,
}

/// Asks which chunks a replica has, so that a snapshot need not send them again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HaveAsk {
    /// Those from here on: [`Have::next`] of the page before; none is from the first.
    pub from: Option<u64>,
}

/// At most [`HAVE_PAGE`] chunks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Have {
    /// The chunks.
    pub chunks: Vec<ChunkMark>,
    /// Where the next page begins; none when there is no more.
    pub next: Option<u64>,
}

/// Goes back to what was served before the last snapshot, without the rows that have been withdrawn since, and takes no changes until
/// [`Resume`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rollback {}

/// It was rolled back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolledBack {
    /// Where what is served now comes from.
    pub position: Position,
    /// Rows that were left out because they have been withdrawn since.
    pub withdrawn_rows: u64,
}

/// Takes changes again after a [`Rollback`]; the next thing sent is a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resume {}

/// It does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resumed {}

/// Why a replica did not do it. What it serves is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaError {
    /// The caller is not the node that this replica is fed by. Permanent.
    #[error("this replica is fed by another node")]
    NotMySource,
    /// The changes do not begin at what the replica has. Go on from there.
    #[error("the changes do not begin at the replica's position")]
    Mismatch {
        /// What it has.
        have: Option<Position>,
    },
    /// The stream is not what its hashes say, or was cut off. Send it again.
    #[error("the stream is damaged: {0}")]
    Corrupt(Box<str>),
    /// More than the replica may take. Permanent until its configuration is changed.
    #[error("the stream is larger than the replica may become")]
    TooLarge,
    /// A snapshot older than what the replica has. Permanent.
    #[error("the snapshot is older than what the replica has")]
    Backwards,
    /// It was rolled back; an operator resumes it.
    #[error("the replica is rolled back and takes no changes until it is resumed")]
    Pinned,
    /// It is applying something. Try again.
    #[error("the replica is busy")]
    Busy,
    /// Its disk or file failed. Try again later.
    #[error("the replica could not be written: {0}")]
    Storage(Box<str>),
    /// The stream says something that cannot be. Sending it again does not help; a snapshot may.
    #[error("the stream makes no sense: {0}")]
    Malformed(Box<str>),
    /// There is nothing to roll back to, or nothing to resume from.
    #[error("{0}")]
    Nothing(Box<str>),
}

crate::protocol! {
    /// A publication.
    pub Sync = "horos.sync" v1 {
        1 subscribe: Subscribe => Subscribed, SyncError;
        2 status: PublisherStatusAsk => PublicationStatus, SyncError;
        3 verify: StartVerify => VerifyReport, SyncError;
        4 head: Head => Position, SyncError;
    }
}

crate::protocol! {
    /// A replica.
    pub Replica = "horos.replica" v1 {
        1 apply: Apply => Applied, ReplicaError;
        2 status: ReplicaAsk => ReplicaStatus, ReplicaError;
        3 have: HaveAsk => Have, ReplicaError;
        4 rollback: Rollback => RolledBack, ReplicaError;
        5 resume: Resume => Resumed, ReplicaError;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(seq: i64, stamp: i64) -> Position {
        Position { epoch: Epoch::from_bytes(*b"0123456789abcdef"), seq, stamp }
    }

    #[test]
    fn a_position_reads_back_as_written_whatever_its_numbers() {
        assert_eq!(position(7, -1).to_string(), "30313233343536373839616263646566.7.ffffffffffffffff");
        for (seq, stamp) in [(0, 0), (-1, 1), (i64::MAX, i64::MIN), (i64::MIN, i64::MAX)] {
            let text = position(seq, stamp).to_string();
            assert!(text.len() <= MAX_POSITION, "{text}");
            assert_eq!(text.parse(), Ok(position(seq, stamp)), "{text}");
            let json = serde_json::to_string(&position(seq, stamp)).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position(seq, stamp));
        }
    }

    #[test]
    fn what_is_no_position_or_another_spelling_of_one_is_refused() {
        let epoch = "30313233343536373839616263646566";
        for rest in ["", ".7", ".7.", ".7.fffffffffffffff", ".+7.ffffffffffffffff", ".07.ffffffffffffffff", ".7.FFFFFFFFFFFFFFFF"] {
            assert_eq!(format!("{epoch}{rest}").parse::<Position>(), Err(PositionError), "{rest}");
        }
        for rest in [".7.+fffffffffffffff", ".7.ffffffffffffffff.", ".9223372036854775808.ffffffffffffffff", ".-0.0000000000000000"] {
            assert_eq!(format!("{epoch}{rest}").parse::<Position>(), Err(PositionError), "{rest}");
        }
        assert_eq!("30.7.ffffffffffffffff".parse::<Position>(), Err(PositionError));
    }

    #[test]
    fn names_of_services_are_names_or_refused() {
        assert_eq!(sync_name("shop").unwrap().as_str(), "horos.sync.shop");
        assert_eq!(replica_name("shop").unwrap().as_str(), "horos.replica.shop");
        for name in ["", "Shop", "a b", "-a", &"x".repeat(crate::address::MAX_NAME)] {
            assert!(sync_name(name).is_err() && replica_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn no_row_is_in_a_debug_text() {
        let apply = Apply { stream: Stream::Inline(b"private".to_vec()), bytes: Some(7) };
        assert_eq!(format!("{apply:?}"), "Apply { stream: Inline(7 bytes), bytes: Some(7) }");
    }
}
