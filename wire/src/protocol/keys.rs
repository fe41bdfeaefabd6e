//! Who may come in from outside: keys, and the issuers of tokens that prove a user. Answered under the name [`NAME`]
//! by the owner of `control.db` and by no other node.
//!
//! Operators make and revoke; viewers list; nodes fetch what has changed for their replica ([`Changes`]) and tell what
//! they refused ([`Report`]). A secret is in exactly two answers, [`Created`] and [`IssuedToken`], once each.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::Error as _};
use zeroize::Zeroize;

use crate::{NodeName, principal::Scope};

/// The name of the actor that answers this protocol.
pub const NAME: &str = "horos.keys";
/// Most rows of a [`Page`], of a [`KeyList`] and of [`Revoked`]: some 300 KiB at the longest texts, and a copy of a million keys takes
/// 2,000 calls.
pub const PAGE: usize = 500;
/// Longest owner, name, user, issuer and audience, in bytes.
pub const MAX_TEXT: usize = 200;
/// Longest key id of a token issuer and longest token id, in bytes.
pub const MAX_TOKEN_ID: usize = 128;
/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 4096;
/// Keys that one [`Report`] tells of by name; refusals of more are only in its totals.
pub const MAX_REPORTED: usize = 1024;

/// A key's or a token's text. Its `Debug` shows nothing, and its memory is wiped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "String")]
pub struct Secret(Box<str>);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The text, to be shown once to whoever asked for it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The SHA-256 of a key's text: what is stored of it, and by which it is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for KeyHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&format_args!("{self:?}"))
        } else {
            serde_bytes::ByteArray::new(self.0).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return serde_bytes::ByteArray::<32>::deserialize(deserializer).map(|bytes| Self(*bytes));
        }
        let text = Box::<str>::deserialize(deserializer)?;
        let bad = || D::Error::custom("expected 64 lower-case hexadecimal digits");
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        if text.len() != 64 {
            return Err(bad());
        }
        let mut hash = [0; 32];
        for (into, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *into = digit(pair[0]).ok_or_else(bad)? << 4 | digit(pair[1]).ok_or_else(bad)?;
        }
        Ok(Self(hash))
    }
}

impl JsonSchema for KeyHash {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "KeyHash".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
    }
}

/// Makes a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Create {
    /// What it is for, in a few words. 1 to [`MAX_TEXT`] bytes.
    pub name: Box<str>,
    /// Who is given it. 1 to [`MAX_TEXT`] bytes.
    pub owner: Box<str>,
    /// What it may do: at least one.
    pub scopes: Vec<Scope>,
    /// When it ends: a time with its zone (`2027-01-31T12:00:00Z`), a span (`90d`, `12h`), or `never`. None is 90 days. A span or time
    /// may be two years ahead at most.
    pub expires: Option<Box<str>>,
    /// Requests a minute that it may make on one node. None is no limit of its own.
    pub per_minute: Option<u32>,
}

/// A key was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Created {
    /// What is known of it from now on.
    pub key: KeyRecord,
    /// Its text. Shown this once and kept nowhere; none when an idempotency key says that this was asked before.
    pub secret: Option<Secret>,
}

/// What is known of a key besides its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRecord {
    /// Its id, which is no secret: `key_…`.
    pub id: Box<str>,
    /// How its text begins, to recognise it by.
    pub prefix: Box<str>,
    /// What it is for.
    pub name: Box<str>,
    /// Who was given it.
    pub owner: Box<str>,
    /// What it may do. None is nothing.
    pub scopes: Vec<Scope>,
    /// Requests a minute that it may make on one node.
    pub per_minute: Option<u32>,
    /// Whether it opens anything now.
    pub state: KeyState,
    /// When it was made, RFC 3339.
    pub created_at: Box<str>,
    /// By whom: `operator@ana`.
    pub created_by: Box<str>,
    /// When it ends, RFC 3339. None is never.
    pub expires_at: Option<Box<str>>,
    /// When it was revoked, RFC 3339.
    pub revoked_at: Option<Box<str>>,
    /// By whom.
    pub revoked_by: Option<Box<str>>,
    /// How often it was shown after its end, after its revocation, or for what it may not do: on all nodes, as told within a second.
    pub refused: u64,
    /// When that was last, RFC 3339.
    pub last_refused_at: Option<Box<str>>,
}

/// Whether a key opens anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It does.
    Active,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// Asks for keys, the newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List {
    /// Only this owner's.
    pub owner: Option<Box<str>>,
    /// Those too that open nothing any more.
    pub all: bool,
    /// Those after this one: the last of the page before.
    pub after: Option<Box<str>>,
}

/// At most [`PAGE`] keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KeyList {
    /// The keys.
    pub keys: Vec<KeyRecord>,
    /// What to ask for next as [`List::after`]; none when there are no more.
    pub next: Option<Box<str>>,
}

/// Revokes keys, for good and on every node within a second. Done twice it has one effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Revoke {
    /// Which.
    pub which: Which,
}

/// Which keys are meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The one of this id, or of this prefix if only one has it.
    Key(Box<str>),
    /// All of an owner's, when the owner leaves.
    Owner(Box<str>),
}

/// Keys were revoked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Revoked {
    /// How many were not revoked before.
    pub count: u64,
    /// What is now known of them; [`PAGE`] at most.
    pub keys: Vec<KeyRecord>,
}

/// Trusts tokens that somebody signs. Told again with the same key it replaces the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrustIssuer {
    /// The signing key's id, which must stand in a token's header as `kid`.
    pub kid: Box<str>,
    /// What must stand in a token as `iss`.
    pub issuer: Box<str>,
    /// What must stand in a token as `aud`, or among it.
    pub audience: Box<str>,
    /// The Ed25519 public key: its 32 bytes in base64url without padding, the `x` of its JWK.
    pub public_key: Box<str>,
    /// The most that its tokens may do, whatever they say.
    pub grants: Grants,
}

/// The most that an issuer's tokens may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grants {
    /// Whatever they say.
    Any,
    /// These scopes and no others.
    Only(Vec<Scope>),
}

/// Trusts the signing key `kid` no more: its tokens are refused on every node within a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DistrustIssuer {
    /// The key's id.
    pub kid: Box<str>,
}

/// Asks whose tokens are trusted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Issuers {}

/// Somebody whose tokens are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Issuer {
    /// The signing key's id.
    pub kid: Box<str>,
    /// What stands in its tokens as `iss`.
    pub issuer: Box<str>,
    /// What stands in its tokens as `aud`.
    pub audience: Box<str>,
    /// The public key, as in [`TrustIssuer::public_key`].
    pub public_key: Box<str>,
    /// The most that its tokens may do.
    pub grants: Grants,
    /// Whether it is the cluster's own, which signs what [`IssueToken`] asks for.
    pub own: bool,
    /// Since when, RFC 3339.
    pub trusted_at: Box<str>,
    /// Who said so.
    pub trusted_by: Box<str>,
}

/// Signs a token with the cluster's own key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IssueToken {
    /// The user that it proves.
    pub user: Box<str>,
    /// What it may do; none is nothing, but it still says who the user is.
    pub scopes: Vec<Scope>,
    /// For whom; none is this cluster.
    pub audience: Option<Box<str>>,
    /// When it ends: a time with its zone or a span, 24 hours ahead at most. None is one hour.
    pub expires: Option<Box<str>>,
}

/// A token was signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IssuedToken {
    /// Its text. Shown this once and kept nowhere.
    pub token: Secret,
    /// Its id, by which it is revoked.
    pub jti: Box<str>,
    /// The signing key's id.
    pub kid: Box<str>,
    /// For whom.
    pub audience: Box<str>,
    /// When it ends, RFC 3339.
    pub expires_at: Box<str>,
}

/// Refuses tokens of an id, whoever signed them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RevokeToken {
    /// The token's id, `jti`.
    pub jti: Box<str>,
    /// Until when at least: a time with its zone or a span. None is the longest that any token is taken for, a day and some.
    pub until: Option<Box<str>>,
}

/// It was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// A random number that no two logs and no two entries share, however often a backup is restored and written on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(pub u128);

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::hex::hex_id!(Mark);

/// A place in the log of changes: behind its entry `seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Position {
    /// Which log.
    pub epoch: Mark,
    /// Which entry; 0 is before the first.
    pub seq: u64,
    /// That entry's mark, so that the log of a restored backup is told from the one that it replaced.
    pub stamp: Mark,
}

/// How far a copy of everything has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Copied {
    /// Nothing yet.
    Nothing,
    /// The issuers, and the revoked tokens up to this id.
    Tokens(Box<str>),
    /// All those, and the keys up to this one.
    Keys(KeyHash),
}

/// Asks for what has changed. For the replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changes {
    /// Behind this; none begins a copy.
    pub position: Option<Position>,
    /// How far the copy has come that the asker is making.
    pub copied: Option<Copied>,
}

/// At most [`PAGE`] rows, all as they were at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Page {
    /// Whether a copy begins: the asker had no position, or one that is not in this log.
    pub begins: bool,
    /// Where the asker is once it has taken `changes`.
    pub position: Position,
    /// What has changed, in order.
    pub changes: Vec<Change>,
    /// The next part of the copy, when one is being made.
    pub part: Option<Part>,
    /// Whether there is more to fetch at once.
    pub more: bool,
}

/// Part of a copy: all that there is between two places. What the asker has there besides is to go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// Where it begins.
    pub after: Copied,
    /// How far it goes; none is to the end of everything.
    pub upto: Option<Copied>,
    /// What is there.
    pub rows: Vec<Change>,
}

/// A row as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A key.
    Key(KeyRow),
    /// There is no such key any more.
    NoKey(KeyHash),
    /// Somebody whose tokens are trusted.
    Issuer(IssuerRow),
    /// The signing key of this id is trusted no more.
    NoIssuer(Box<str>),
    /// A token that was revoked.
    Token(TokenRow),
    /// Nobody remembers the revocation of this token, whose time is over.
    NoToken(Box<str>),
}

/// What a node has to know of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRow {
    /// By which it is found.
    pub hash: KeyHash,
    /// Its id.
    pub id: Box<str>,
    /// Who was given it.
    pub owner: Box<str>,
    /// What it may do, as JSON text. What does not read as a list of scopes grants nothing.
    pub scopes: Box<str>,
    /// Requests a minute.
    pub per_minute: Option<u32>,
    /// When it ends, in seconds since 1970; the greatest number is never.
    pub expires_at: i64,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

/// What a node has to know of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IssuerRow {
    /// The signing key's id.
    pub kid: Box<str>,
    /// What must stand in its tokens as `iss`.
    pub issuer: Box<str>,
    /// What must stand in its tokens as `aud`.
    pub audience: Box<str>,
    /// The public key, as in [`TrustIssuer::public_key`].
    pub public_key: Box<str>,
    /// The most that its tokens may do, as JSON text of [`Grants`]. What does not read so grants nothing.
    pub grants: Box<str>,
}

/// What a node has to know of a revoked token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenRow {
    /// The token's id.
    pub jti: Box<str>,
    /// Until when it has to be known, in seconds since 1970.
    pub until: i64,
}

/// How often credentials were refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusals {
    /// Texts that have not the form of a key or a token.
    pub malformed: u64,
    /// Keys that nobody made, and tokens that nobody signed who is trusted.
    pub unknown: u64,
    /// Revoked keys and tokens.
    pub revoked: u64,
    /// Keys and tokens whose time is over.
    pub expired: u64,
    /// Tokens whose time has not come.
    pub not_yet_valid: u64,
    /// Tokens for somebody else.
    pub other_audience: u64,
    /// Valid ones, shown for what they may not do.
    pub wrong_scope: u64,
    /// Those that could not be checked.
    pub unavailable: u64,
}

impl Refusals {
    /// Those in which somebody may have tried their luck.
    pub const fn guesses(&self) -> u64 {
        self.malformed.saturating_add(self.unknown)
    }

    /// All of them.
    pub const fn total(&self) -> u64 {
        let for_a_token = self.not_yet_valid.saturating_add(self.other_audience);
        let known = self.revoked.saturating_add(self.expired).saturating_add(self.wrong_scope).saturating_add(for_a_token);
        self.guesses().saturating_add(known).saturating_add(self.unavailable)
    }

    /// These and `more`.
    #[must_use]
    pub const fn plus(&self, more: &Self) -> Self {
        Self {
            malformed: self.malformed.saturating_add(more.malformed),
            unknown: self.unknown.saturating_add(more.unknown),
            revoked: self.revoked.saturating_add(more.revoked),
            expired: self.expired.saturating_add(more.expired),
            not_yet_valid: self.not_yet_valid.saturating_add(more.not_yet_valid),
            other_audience: self.other_audience.saturating_add(more.other_audience),
            wrong_scope: self.wrong_scope.saturating_add(more.wrong_scope),
            unavailable: self.unavailable.saturating_add(more.unavailable),
        }
    }
}

/// Tells what a node refused since it last told. At most once a second a node, however many there were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// How often, by reason.
    pub refusals: Refusals,
    /// Keys that were known and refused, and how often; [`MAX_REPORTED`] at most.
    pub keys: Vec<(Box<str>, u64)>,
}

/// Asks what was refused in the last minutes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    /// How many minutes back; a day is kept.
    pub minutes: u32,
}

/// What one node refused within one minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedMinute {
    /// The minute's beginning, RFC 3339.
    pub minute: Box<str>,
    /// The node.
    pub node: NodeName,
    /// How often, by reason.
    pub refusals: Refusals,
}

/// Why it was not done. Nothing was changed, unless the text says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeysError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(Box<str>),
    /// No such key.
    #[error("no key has the id or prefix {0:?}; `horos keys list --all` shows them")]
    NoSuchKey(Box<str>),
    /// Several keys begin so.
    #[error("more than one key begins with {0:?}; give the id")]
    Ambiguous(Box<str>),
    /// No such issuer.
    #[error("no issuer has the key id {0:?}; `horos tokens issuers` shows them")]
    NoSuchIssuer(Box<str>),
    /// The issuer's key id belongs to another key.
    #[error("the key id {0:?} belongs to another key; distrust that one first or use another id")]
    KidTaken(Box<str>),
    /// There are as many as there may be.
    #[error("{0}")]
    TooMany(Box<str>),
    /// The storage failed; try again.
    #[error("nothing was done: {0}; try again")]
    Storage(Box<str>),
    /// It may have been done or not: look before doing it again.
    #[error("whether it was done is not known; list them before you try again")]
    Unknown,
}

crate::protocol! {
    /// Who may come in from outside.
    pub Keys = "horos.keys" v1 {
        1 create: Create => Created, KeysError;
        2 list: List => KeyList, KeysError;
        3 revoke: Revoke => Revoked, KeysError;
        4 trust_issuer: TrustIssuer => Issuer, KeysError;
        5 distrust_issuer: DistrustIssuer => Done, KeysError;
        6 issuers: Issuers => Vec<Issuer>, KeysError;
        7 issue_token: IssueToken => IssuedToken, KeysError;
        8 revoke_token: RevokeToken => Done, KeysError;
        9 refused: Refused => Vec<RefusedMinute>, KeysError;
        10 changes: Changes => Page, KeysError;
        11 report: Report => Done, KeysError;
    }
}
