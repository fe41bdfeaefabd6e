//! Tells what a key or a token proves, from memory or from this node's own tables.
//!
//! One a node, made by `nodes` and shared by the port and by handlers that ask on whose behalf they are called. It shows no
//! credential to another node and fails closed: a key that cannot be looked up is refused as [`Denied::Unavailable`], and so
//! is one that is not found while the replica has never been whole. One that is not found in a whole replica may be too new
//! for it: [`Verifier::verify`] looks again when the mirror has asked the owner once more.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::future::BoxFuture;
use horos_store::open::Options;
use horos_supervision::Prover;
use horos_wire::{
    principal::{Denied, MAX_SCOPES, Principal, Proof, Scope},
    protocol::keys::{Change, IssuerRow, KeyHash, KeyRow, MAX_TOKEN, Report},
};
use parking_lot::RwLock;
use rusqlite::{Connection, OptionalExtension as _, types::ValueRef};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    clock::Clock,
    expiry::NEVER,
    key::{self, KEY_PREFIX},
    log,
    lookup::{Lookup, Unreadable},
    memory::{By, Memory, Remembered},
    news::News,
    tally::Tally,
    token,
};

/// Tells what a key or a token proves. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    lookup: Lookup,
    memory: Memory,
    tally: Tally,
    news: Arc<News>,
    /// Whether a key that is not found is certain not to exist.
    whole: AtomicBool,
    unsaved: RwLock<Unsaved>,
    /// Counts what was learnt that may end what was proved.
    changes: watch::Sender<u64>,
}

/// What the mirror knows and could not write down, the disk being full: it holds all the same.
#[derive(Debug, Default)]
struct Unsaved {
    rows: HashMap<Box<[u8]>, Change>,
    /// There was more than is kept in memory: nothing is certain until it is written.
    overflown: bool,
}

impl Unsaved {
    fn find(&self, kind: u8, subject: &[u8]) -> Option<&Change> {
        if self.rows.is_empty() { None } else { self.rows.get(&tagged(kind, subject)) }
    }
}

const KEY: u8 = 0;
const ISSUER: u8 = 1;
const TOKEN: u8 = 2;

fn tagged(kind: u8, subject: &[u8]) -> Box<[u8]> {
    [&[kind], subject].concat().into()
}

/// Why nobody is proved.
enum Refused {
    /// Certain, and counted.
    Denied(Denied),
    /// Nothing is known here of such a key, or of whoever signed the token; not counted yet.
    NotKnown,
}

/// A key's row as it was found.
struct Found {
    id: Box<str>,
    owner: Box<str>,
    scopes: Box<[Scope]>,
    per_minute: Option<u32>,
    expires_at: i64,
    revoked: bool,
}

impl Verifier {
    /// Reads the tables of `control`, this node's `control.db`, which need not exist yet.
    pub fn new(control: &Options, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock,
            lookup: Lookup::new(control),
            memory: Memory::default(),
            tally: Tally::default(),
            news: Arc::default(),
            whole: AtomicBool::new(false),
            unsaved: RwLock::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Answers from memory, or because `text` has no form at all; none when it has to be looked up. Never blocks.
    pub fn recall(&self, text: &str) -> Option<Result<Arc<Principal>, Denied>> {
        let Some(hash) = name(text) else { return Some(Err(self.refuse(Denied::Malformed, None))) };
        self.remembered(&hash)
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Result<Arc<Principal>, Denied>> {
        let known = self.0.memory.find(hash)?;
        let now = self.0.clock.now();
        let denied = match () {
            () if now >= known.until && known.until != NEVER => Denied::Expired,
            () if now < known.from => Denied::NotYetValid,
            () => return Some(Ok(known.principal)),
        };
        Some(Err(self.refuse(denied, matches!(known.by, By::Key).then_some(&*known.principal.id))))
    }

    /// Looks `text` up. Ready at once, the look being made here in microseconds before the future is returned; but where nothing
    /// is known of `text` and the owner may know, the future waits until it was asked once more: for a tenth of a second and the
    /// way there and back, for a second at most.
    ///
    /// # Cancel safety
    /// Dropped while it waits, it has counted nothing.
    pub fn verify(&self, text: &str) -> BoxFuture<'static, Result<Arc<Principal>, Denied>> {
        let found = match self.look(text) {
            Ok(principal) => Ok(principal),
            Err(Refused::Denied(denied)) => Err(denied),
            Err(Refused::NotKnown) => match self.0.news.next() {
                Some(news) => {
                    let (verifier, text) = (self.clone(), Zeroizing::new(text.to_owned()));
                    return Box::pin(async move {
                        news.await;
                        verifier.check(&text)
                    });
                }
                None => Err(self.refuse(Denied::Unknown, None)),
            },
        };
        Box::pin(std::future::ready(found))
    }

    /// What `text` proves now, from memory or from the tables. Blocks for microseconds, for 5 ms at most where another process
    /// holds the file.
    ///
    /// # Errors
    /// Why it proves nobody; counted.
    pub fn check(&self, text: &str) -> Result<Arc<Principal>, Denied> {
        self.look(text).map_err(|refused| match refused {
            Refused::Denied(denied) => denied,
            Refused::NotKnown => self.refuse(Denied::Unknown, None),
        })
    }

    fn look(&self, text: &str) -> Result<Arc<Principal>, Refused> {
        let Some(hash) = name(text) else { return Err(Refused::Denied(self.refuse(Denied::Malformed, None))) };
        if let Some(known) = self.remembered(&hash) {
            return known.map_err(Refused::Denied);
        }
        if text.starts_with(KEY_PREFIX) { self.check_key(&hash) } else { self.check_token(text, hash) }
    }

    /// Changes whenever a key or a token that was proved may prove nothing any more because of what somebody did: for whoever lets it
    /// open something that lasts, and has to look again then. What runs out by itself changes nothing here.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Counts that `principal` asked for what it may not do.
    pub fn wrong_scope(&self, principal: &Principal) {
        self.0.tally.wrong_scope(matches!(principal.proof, Proof::Key { .. }).then_some(&*principal.id));
    }

    /// What was refused since the last time; none when that is nothing. For the one who tells the owner.
    pub fn take_refusals(&self) -> Option<Report> {
        self.0.tally.take()
    }

    /// Puts back what could not be told.
    pub fn put_back(&self, report: Report) {
        self.0.tally.put_back(report);
    }

    fn refuse(&self, denied: Denied, key: Option<&str>) -> Denied {
        self.0.tally.denied(denied, key);
        denied
    }

    fn check_key(&self, hash: &[u8; 32]) -> Result<Arc<Principal>, Refused> {
        let refuse = |denied, key: Option<&str>| Err(Refused::Denied(self.refuse(denied, key)));
        let version = self.0.memory.version();
        let found = match self.find_key(hash) {
            Ok(Some(found)) => found,
            Ok(None) if self.0.whole.load(Ordering::Acquire) => return Err(Refused::NotKnown),
            Ok(None) | Err(Unreadable) => return refuse(Denied::Unavailable, None),
        };
        if found.revoked {
            return refuse(Denied::Revoked, Some(&found.id));
        }
        if self.0.clock.now() >= found.expires_at && found.expires_at != NEVER {
            return refuse(Denied::Expired, Some(&found.id));
        }
        let Found { id, owner, scopes, per_minute, expires_at, .. } = found;
        let principal = Arc::new(Principal { id, proof: Proof::Key { owner }, scopes, per_minute });
        let known = Remembered { principal: principal.clone(), from: i64::MIN, until: expires_at, by: By::Key };
        self.0.memory.remember(version, *hash, known);
        Ok(principal)
    }

    fn find_key(&self, hash: &[u8; 32]) -> Result<Option<Found>, Unreadable> {
        {
            let unsaved = self.0.unsaved.read();
            match unsaved.find(KEY, hash) {
                Some(Change::Key(row)) => return Ok(Some(from_row(row))),
                Some(_) => return Ok(None),
                None if unsaved.overflown => return Err(Unreadable),
                None => {}
            }
        }
        self.0.lookup.look(|tables| key_row(tables, hash))
    }

    fn check_token(&self, text: &str, hash: [u8; 32]) -> Result<Arc<Principal>, Refused> {
        let version = self.0.memory.version();
        let unavailable = |Unreadable| Denied::Unavailable;
        let mut nobody = false;
        let trusted = |kid: &str| {
            let found = self.find_issuer(kid).map_err(unavailable)?;
            nobody = found.is_none();
            if nobody && !self.0.whole.load(Ordering::Acquire) { Err(Denied::Unavailable) } else { Ok(found) }
        };
        let revoked = |jti: &str| self.is_revoked(jti).map_err(unavailable);
        let proved = match token::check(text, self.0.clock.now(), trusted, revoked) {
            Ok(proved) => proved,
            Err(Denied::Unknown) if nobody => return Err(Refused::NotKnown),
            Err(denied) => return Err(Refused::Denied(self.refuse(denied, None))),
        };
        let token::Proved { kid, jti, issuer, user, scopes, from, until } = proved;
        // An issuer's name has no space, so no two pairs read alike.
        let id = format!("{issuer} {user}").into();
        let principal = Arc::new(Principal { id, proof: Proof::Token { user, token: text.into() }, scopes, per_minute: None });
        self.0.memory.remember(version, hash, Remembered { principal: principal.clone(), from, until, by: By::Token { kid, jti } });
        Ok(principal)
    }

    fn find_issuer(&self, kid: &str) -> Result<Option<IssuerRow>, Unreadable> {
        {
            let unsaved = self.0.unsaved.read();
            match unsaved.find(ISSUER, kid.as_bytes()) {
                Some(Change::Issuer(row)) => return Ok(Some(row.clone())),
                Some(_) => return Ok(None),
                None if unsaved.overflown => return Err(Unreadable),
                None => {}
            }
        }
        self.0.lookup.look(|tables| {
            let sql = "SELECT kid, issuer, audience, public_key, grants FROM token_issuers WHERE kid = ?1";
            tables.prepare_cached(sql)?.query_row([kid], log::issuer).optional()
        })
    }

    fn is_revoked(&self, jti: &str) -> Result<bool, Unreadable> {
        {
            let unsaved = self.0.unsaved.read();
            match unsaved.find(TOKEN, jti.as_bytes()) {
                Some(change) => return Ok(matches!(change, Change::Token(_))),
                None if unsaved.overflown => return Err(Unreadable),
                None => {}
            }
        }
        self.0.lookup.look(|tables| tables.prepare_cached("SELECT 1 FROM revoked_tokens WHERE jti = ?1")?.exists([jti]))
    }

    /// Where the mirror learns that something is not known here.
    pub(crate) fn news(&self) -> &Arc<News> {
        &self.0.news
    }

    /// From now on a key that is not found does not exist, or may.
    pub(crate) fn set_whole(&self, whole: bool) {
        self.0.whole.store(whole, Ordering::Release);
    }

    /// `changes` are in the tables now.
    pub(crate) fn changed(&self, changes: &[Change]) {
        self.0.memory.forget(changes);
        self.tell();
    }

    /// The tables may have changed anywhere.
    pub(crate) fn changed_all(&self) {
        self.0.memory.clear();
        self.tell();
    }

    fn tell(&self) {
        self.0.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// `changes` hold although they are not in the tables yet; none when there are too many of them to be held.
    pub(crate) fn hold<'a>(&self, changes: Option<impl Iterator<Item = &'a Change>>) {
        let mut unsaved = Unsaved { rows: HashMap::new(), overflown: changes.is_none() };
        for change in changes.into_iter().flatten() {
            let subject = match change {
                Change::Key(KeyRow { hash, .. }) | Change::NoKey(hash @ KeyHash(_)) => tagged(KEY, &hash.0),
                Change::Issuer(IssuerRow { kid, .. }) | Change::NoIssuer(kid) => tagged(ISSUER, kid.as_bytes()),
                Change::Token(row) => tagged(TOKEN, row.jti.as_bytes()),
                Change::NoToken(jti) => tagged(TOKEN, jti.as_bytes()),
            };
            unsaved.rows.insert(subject, change.clone());
        }
        *self.0.unsaved.write() = unsaved;
        self.changed_all();
    }
}

impl Prover for Verifier {
    fn prove(&self, token: &str) -> Result<Arc<Principal>, Denied> {
        self.look(token).map_err(|refused| match refused {
            Refused::Denied(denied) => denied,
            Refused::NotKnown => {
                // A handler cannot wait. The next one need not.
                drop(self.0.news.next());
                self.refuse(Denied::Unknown, None)
            }
        })
    }
}

/// By which `text` is remembered; none when it has not even the length of a key or a token. Tells so before it hashes.
fn name(text: &str) -> Option<[u8; 32]> {
    if text.starts_with(KEY_PREFIX) {
        return key::hash(text).map(|hash| hash.0);
    }
    let may_be_token = !text.is_empty() && text.len() <= MAX_TOKEN && text.is_ascii();
    may_be_token.then(|| Sha256::digest(text).into())
}

fn scopes(text: &str) -> Box<[Scope]> {
    match serde_json::from_str::<Vec<Scope>>(text) {
        Ok(scopes) if scopes.len() <= MAX_SCOPES => scopes.into(),
        _ => Box::default(),
    }
}

fn from_row(row: &KeyRow) -> Found {
    Found {
        id: row.id.clone(),
        owner: row.owner.clone(),
        scopes: scopes(&row.scopes),
        per_minute: row.per_minute,
        expires_at: row.expires_at,
        revoked: row.revoked_at.is_some(),
    }
}

/// Whatever cannot be read in a row counts against its key.
fn key_row(tables: &Connection, hash: &[u8; 32]) -> rusqlite::Result<Option<Found>> {
    let sql = "SELECT id, owner, scopes, per_minute, expires_at, revoked_at FROM api_keys WHERE hash = ?1";
    tables
        .prepare_cached(sql)?
        .query_row([&hash[..]], |row| {
            let text = |column| row.get_ref(column).ok().and_then(|value| value.as_str().ok()).unwrap_or_default();
            Ok(Found {
                id: text(0).into(),
                owner: text(1).into(),
                scopes: scopes(text(2)),
                // A limit that cannot be read lets nothing through.
                per_minute: row.get(3).unwrap_or(Some(0)),
                expires_at: row.get(4).unwrap_or(i64::MIN),
                revoked: !matches!(row.get_ref(5), Ok(ValueRef::Null)),
            })
        })
        .optional()
}
