//! Keys: made, listed, revoked.

use horos_supervision::{Context, Handle};
use horos_wire::{
    id::{Entropy, EntropyError, Id, Key, UnixMillis},
    principal::{MAX_SCOPES, Scope},
    protocol::keys::{Create, Created, KeyHash, KeyList, KeyRecord, KeyState, KeysError, List, MAX_TEXT, PAGE, Revoke, Revoked, Which},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Fault, Keys, invalid, stamp};
use crate::{
    expiry::{self, NEVER, rfc3339},
    key::{self, KEY_LENGTH, KEY_PREFIX},
    log::{self, Subject},
    token::is_name,
};

/// What a key lasts if nothing is said: a quarter of a year, as for certificates.
const DEFAULT_LIFE: i64 = 90 * 86_400;
/// The longest that a key may last if its end is said: two years, one of them a leap year. `never` has to be said as such.
const MAX_LIFE: (i64, &str) = (731 * 86_400, "two years; write \"never\" for a key that ends only when it is revoked");
/// Fewest characters of a prefix that stands for a key.
const MIN_PREFIX: usize = 8;

const RECORD: &str = "SELECT id, prefix, name, owner, scopes, per_minute, created_at, created_by, expires_at, revoked_at, revoked_by,
    refused, last_refused_at FROM api_keys";

/// The system's randomness for ids.
struct System;

impl Entropy for System {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        getrandom::fill(bytes).map_err(|error| EntropyError(error.to_string().into()))
    }
}

fn record(row: &Row<'_>, now: i64) -> rusqlite::Result<KeyRecord> {
    let text = |column: usize| row.get::<_, String>(column).map(Box::<str>::from);
    let expires_at: i64 = row.get(8)?;
    let revoked_at: Option<i64> = row.get(9)?;
    Ok(KeyRecord {
        id: text(0)?,
        prefix: text(1)?,
        name: text(2)?,
        owner: text(3)?,
        // Shown as it counts: what cannot be read grants nothing.
        scopes: serde_json::from_str(&text(4)?).unwrap_or_default(),
        per_minute: row.get(5)?,
        state: match revoked_at {
            Some(_) => KeyState::Revoked,
            None if now >= expires_at && expires_at != NEVER => KeyState::Expired,
            None => KeyState::Active,
        },
        created_at: rfc3339(row.get(6)?),
        created_by: text(7)?,
        expires_at: (expires_at != NEVER).then(|| rfc3339(expires_at)),
        revoked_at: revoked_at.map(rfc3339),
        revoked_by: row.get::<_, Option<String>>(10)?.map(Into::into),
        refused: row.get::<_, i64>(11)?.try_into().unwrap_or(0),
        last_refused_at: row.get::<_, Option<i64>>(12)?.map(rfc3339),
    })
}

/// What is written of a new key.
#[derive(Clone)]
struct New {
    hash: KeyHash,
    id: String,
    prefix: Box<str>,
    name: Box<str>,
    owner: Box<str>,
    scopes: String,
    per_minute: Option<u32>,
    now: i64,
    by: String,
    expires_at: i64,
    idempotency: Option<String>,
    stamp: [u8; 16],
    most: u32,
}

impl New {
    /// Writes it and says true, or finds it written before and says false.
    fn insert(&self, tx: &Connection) -> Result<(KeyRecord, bool), Fault> {
        if let Some(asked) = &self.idempotency {
            let sql = format!("{RECORD} WHERE idempotency = ?1");
            let before = tx.query_row(&sql, [asked], |row| Ok((record(row, self.now)?, row.get::<_, String>(4)?))).optional()?;
            match before {
                Some((key, scopes)) if key.owner == self.owner && key.name == self.name && scopes == self.scopes => {
                    return Ok((key, false));
                }
                Some(_) => return Err(invalid("this idempotency key was used for another request").into()),
                None => {}
            }
        }
        // Counted in the transaction that adds one, so that two at once do not pass together.
        let sql = "SELECT count(*) FROM api_keys WHERE owner = ?1 AND revoked_at IS NULL AND expires_at > ?2";
        let count: i64 = tx.query_row(sql, params![self.owner, self.now], |row| row.get(0))?;
        if count >= i64::from(self.most) {
            let why = format!("{:?} has {count} keys, and {} is the most: revoke some first", self.owner, self.most);
            return Err(KeysError::TooMany(why.into()).into());
        }
        tx.execute(
            "INSERT INTO api_keys (hash, id, prefix, name, owner, scopes, per_minute, created_at, created_by, expires_at, idempotency)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                &self.hash.0[..],
                self.id,
                self.prefix,
                self.name,
                self.owner,
                self.scopes,
                self.per_minute,
                self.now,
                self.by,
                self.expires_at,
                self.idempotency
            ],
        )?;
        log::append(tx, self.stamp, Subject::Key(&self.hash))?;
        let key = tx.query_row(&format!("{RECORD} WHERE hash = ?1"), [&self.hash.0[..]], |row| record(row, self.now))?;
        Ok((key, true))
    }
}

impl Handle<Create> for Keys {
    async fn handle(&mut self, ask: Create, cx: &Context) -> Result<Created, KeysError> {
        for (what, text) in [("name", &ask.name), ("owner", &ask.owner)] {
            if !is_name(text, MAX_TEXT) {
                return Err(invalid(format!("the {what} is 1 to {MAX_TEXT} bytes without control characters")));
            }
        }
        let scopes = distinct(ask.scopes)?;
        if scopes.is_empty() {
            return Err(invalid("a key without scopes would open nothing: say at least one"));
        }
        if ask.per_minute == Some(0) {
            return Err(invalid("a key with no request a minute would open nothing"));
        }
        let now = self.now();
        let expires_at = match ask.expires.as_deref() {
            None => now.saturating_add(DEFAULT_LIFE),
            Some("never") => NEVER,
            Some(text) => expiry::parse(text, now, MAX_LIFE).map_err(|error| invalid(error.to_string()))?,
        };
        let no_randomness = |error: key::NoRandomness| KeysError::Storage(error.to_string().into());
        let secret = key::generate().map_err(no_randomness)?;
        let hash = key::hash(secret.reveal()).ok_or_else(|| invalid("the key that was made has not its form"))?;
        let millis = UnixMillis(u64::try_from(now).unwrap_or(0).saturating_mul(1000));
        let id =
            self.ids.next(millis, &mut System).and_then(Id::<Key>::new).map_err(|error| KeysError::Storage(error.to_string().into()))?;
        let by = cx.caller().to_string();
        let claimed = cx.call().claims.as_ref().and_then(|claims| claims.idempotency_key.as_deref());
        let new = New {
            hash,
            id: id.to_string(),
            prefix: key::shown(secret.reveal()).into(),
            name: ask.name,
            owner: ask.owner,
            scopes: serde_json::to_string(&scopes).map_err(|error| invalid(error.to_string()))?,
            per_minute: ask.per_minute,
            now,
            // Two callers' keys are not each other's.
            idempotency: claimed.map(|key| format!("{by} {key}")),
            by,
            expires_at,
            stamp: stamp()?,
            most: self.parts.config.keys_per_owner,
        };
        let (key, made) = self.write(cx, move |tx| new.insert(tx)).await?;
        let (caller, ends) = (cx.caller(), key.expires_at.as_deref().unwrap_or("never"));
        tracing::info!(target: "horos_identity::audit", %caller, key = %key.id, owner = %key.owner, scopes = ?key.scopes, ends, made, "key created");
        Ok(Created { key, secret: made.then_some(secret) })
    }
}

/// Scopes in order, each once.
pub(super) fn distinct(mut scopes: Vec<Scope>) -> Result<Vec<Scope>, KeysError> {
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.len() > MAX_SCOPES { Err(invalid(format!("at most {MAX_SCOPES} scopes"))) } else { Ok(scopes) }
}

impl Handle<List> for Keys {
    async fn handle(&mut self, ask: List, cx: &Context) -> Result<KeyList, KeysError> {
        let now = self.now();
        tracing::info!(target: "horos_identity::audit", caller = %cx.caller(), owner = ?ask.owner, all = ask.all, "keys listed");
        let keys = self.read(cx, move |tables| list(tables, &ask, now)).await?;
        let next = keys.last().filter(|_| keys.len() == PAGE).map(|last| last.id.clone());
        Ok(KeyList { keys, next })
    }
}

fn list(tables: &Connection, ask: &List, now: i64) -> rusqlite::Result<Vec<KeyRecord>> {
    // Two statements, so that each walks an index.
    let whose = if ask.owner.is_some() { "owner = ?1" } else { "?1 IS NULL" };
    let sql = format!(
        "{RECORD} WHERE {whose} AND (?2 IS NULL OR id < ?2) AND (?3 OR (revoked_at IS NULL AND expires_at > ?4)) ORDER BY id DESC LIMIT {PAGE}"
    );
    let mut statement = tables.prepare_cached(&sql)?;
    statement.query_map(params![ask.owner, ask.after, ask.all, now], |row| record(row, now))?.collect()
}

/// A hash, and with it the row.
fn hash_of(row: &Row<'_>) -> rusqlite::Result<KeyHash> {
    row.get(0).map(KeyHash)
}

/// The one key that `text` means: an id, a whole key (of one that was found lying about), or the beginning of one.
fn find(tx: &Connection, text: &str) -> Result<KeyHash, Fault> {
    let shown: Box<str> = key::shown(text).chars().take(64).collect();
    if text.len() == KEY_LENGTH
        && let Some(hash) = key::hash(text)
    {
        let found = tx.query_row("SELECT hash FROM api_keys WHERE hash = ?1", [&hash.0[..]], hash_of).optional()?;
        return found.ok_or_else(|| KeysError::NoSuchKey(shown).into());
    }
    if text.starts_with(KEY_PREFIX) && text.is_ascii() {
        if text.len() < MIN_PREFIX {
            return Err(invalid(format!("a prefix has at least {MIN_PREFIX} characters")).into());
        }
        // What is stored is shorter than what may be pasted.
        let end = format!("{shown}\u{7f}");
        let mut statement = tx.prepare_cached("SELECT hash FROM api_keys WHERE prefix >= ?1 AND prefix < ?2 LIMIT 2")?;
        let found = statement.query_map([&*shown, &end], hash_of)?.collect::<Result<Vec<_>, _>>()?;
        return match *found {
            [] => Err(KeysError::NoSuchKey(shown).into()),
            [hash] => Ok(hash),
            _ => Err(KeysError::Ambiguous(shown).into()),
        };
    }
    let found = tx.query_row("SELECT hash FROM api_keys WHERE id = ?1", [text], hash_of).optional()?;
    found.ok_or_else(|| KeysError::NoSuchKey(shown).into())
}

/// Revokes a key unless it is; whether it was not.
fn revoke(tx: &Connection, hash: &KeyHash, now: i64, by: &str, stamp: [u8; 16]) -> rusqlite::Result<bool> {
    let sql = "UPDATE api_keys SET revoked_at = ?2, revoked_by = ?3 WHERE hash = ?1 AND revoked_at IS NULL";
    let changed = tx.prepare_cached(sql)?.execute(params![&hash.0[..], now, by])? > 0;
    if changed {
        log::append(tx, stamp, Subject::Key(hash))?;
    }
    Ok(changed)
}

impl Handle<Revoke> for Keys {
    async fn handle(&mut self, ask: Revoke, cx: &Context) -> Result<Revoked, KeysError> {
        let (now, by) = (self.now(), cx.caller().to_string());
        let revoked = match ask.which {
            Which::Key(text) => {
                let stamp = stamp()?;
                self.write(cx, move |tx| {
                    let hash = find(tx, &text)?;
                    let count = u64::from(revoke(tx, &hash, now, &by, stamp)?);
                    let key = tx.query_row(&format!("{RECORD} WHERE hash = ?1"), [&hash.0[..]], |row| record(row, now))?;
                    Ok(Revoked { count, keys: vec![key] })
                })
                .await?
            }
            Which::Owner(owner) => self.revoke_owner(cx, &owner, now, &by).await?,
        };
        for key in &revoked.keys {
            tracing::warn!(target: "horos_identity::audit", caller = %cx.caller(), key = %key.id, owner = %key.owner, "key revoked");
        }
        Ok(revoked)
    }
}

impl Keys {
    /// Revokes an owner's keys, a page a transaction: others write in between, and the deadline may come. Asked again it goes on.
    async fn revoke_owner(&self, cx: &Context, owner: &str, now: i64, by: &str) -> Result<Revoked, KeysError> {
        let mut revoked = Revoked { count: 0, keys: Vec::new() };
        loop {
            let stamps = (0..PAGE).map(|_| stamp()).collect::<Result<Vec<_>, _>>()?;
            let (owner, by) = (owner.to_owned(), by.to_owned());
            let keys = self
                .write(cx, move |tx| {
                    let sql = format!("SELECT hash FROM api_keys WHERE owner = ?1 AND revoked_at IS NULL LIMIT {PAGE}");
                    let found = tx.prepare_cached(&sql)?.query_map([&owner], hash_of)?.collect::<Result<Vec<_>, _>>()?;
                    let mut keys = Vec::new();
                    for (hash, stamp) in found.iter().zip(&stamps) {
                        revoke(tx, hash, now, &by, *stamp)?;
                        keys.push(tx.query_row(&format!("{RECORD} WHERE hash = ?1"), [&hash.0[..]], |row| record(row, now))?);
                    }
                    Ok(keys)
                })
                .await?;
            let last = keys.len() < PAGE;
            revoked.count += keys.len() as u64;
            let room = PAGE - revoked.keys.len();
            revoked.keys.extend(keys.into_iter().take(room));
            if last {
                return Ok(revoked);
            }
        }
    }
}
