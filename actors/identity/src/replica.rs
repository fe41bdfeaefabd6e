//! What a replica does with the pages that it is given: one transaction each, with how far it has come.

use std::collections::HashSet;

use horos_wire::protocol::keys::{Change, Changes, Copied, IssuerRow, KeyRow, Page, Part, Position};
use rusqlite::{Connection, OptionalExtension as _, ToSql, params};
use serde::{Serialize, de::DeserializeOwned};

/// How far a replica has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    /// All changes up to here are in it.
    pub(crate) position: Option<Position>,
    /// The copy that is being made.
    pub(crate) copied: Option<Copied>,
    /// Whether any copy was ever finished: before, a key that is not found may exist all the same.
    pub(crate) whole: bool,
}

impl Standing {
    /// What to ask for next.
    pub(crate) fn ask(&self) -> Changes {
        Changes { position: self.position, copied: self.copied.clone() }
    }

    /// How far it is once `page` is taken.
    pub(crate) fn after(&self, page: &Page) -> Self {
        let finished = page.part.as_ref().is_some_and(|part| part.upto.is_none());
        let copied = match &page.part {
            Some(part) => part.upto.clone(),
            None if page.begins => Some(Copied::Nothing),
            None => self.copied.clone(),
        };
        Self { position: Some(page.position), copied, whole: self.whole || finished }
    }
}

/// Reads how far this file has come as a replica of `owner`'s. Something unreadable is taken for nothing, and a copy is made.
pub(crate) fn standing(tx: &Connection) -> rusqlite::Result<Standing> {
    fn value<T: DeserializeOwned>(tx: &Connection, name: &str) -> rusqlite::Result<Option<T>> {
        let text = tx.query_row("SELECT value FROM key_state WHERE name = ?1", [name], |row| row.get::<_, String>(0)).optional()?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }
    Ok(Standing { position: value(tx, "position")?, copied: value(tx, "copied")?, whole: value(tx, "whole")?.unwrap_or(false) })
}

/// Takes `page` in, which leads to `standing`.
pub(crate) fn apply(tx: &Connection, page: &Page, standing: &Standing) -> rusqlite::Result<()> {
    for change in &page.changes {
        put(tx, change)?;
    }
    if let Some(part) = &page.part {
        drop_others(tx, part)?;
        for row in &part.rows {
            put(tx, row)?;
        }
    }
    keep(tx, "position", standing.position.as_ref())?;
    keep(tx, "copied", standing.copied.as_ref())?;
    keep(tx, "whole", Some(&standing.whole))
}

fn keep<T: Serialize>(tx: &Connection, name: &str, value: Option<&T>) -> rusqlite::Result<()> {
    // These types are written by hand-checked derives without maps: they always are JSON.
    match value.and_then(|value| serde_json::to_string(value).ok()) {
        Some(text) => tx.execute("INSERT OR REPLACE INTO key_state (name, value) VALUES (?1, ?2)", [name, &text])?,
        None => tx.execute("DELETE FROM key_state WHERE name = ?1", [name])?,
    };
    Ok(())
}

fn put(tx: &Connection, change: &Change) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn ToSql]| tx.prepare_cached(sql)?.execute(values).map(drop);
    match change {
        Change::Key(KeyRow { hash, id, owner, scopes, per_minute, expires_at, revoked_at }) => run(
            "INSERT OR REPLACE INTO api_keys (hash, id, owner, scopes, per_minute, expires_at, revoked_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            &[&&hash.0[..], &&**id, &&**owner, &&**scopes, per_minute, expires_at, revoked_at],
        ),
        Change::NoKey(hash) => run("DELETE FROM api_keys WHERE hash = ?1", &[&&hash.0[..]]),
        Change::Issuer(IssuerRow { kid, issuer, audience, public_key, grants }) => run(
            "INSERT OR REPLACE INTO token_issuers (kid, issuer, audience, public_key, grants) VALUES (?1, ?2, ?3, ?4, ?5)",
            &[&&**kid, &&**issuer, &&**audience, &&**public_key, &&**grants],
        ),
        Change::NoIssuer(kid) => run("DELETE FROM token_issuers WHERE kid = ?1", &[&&**kid]),
        Change::Token(row) => run("INSERT OR REPLACE INTO revoked_tokens (jti, until) VALUES (?1, ?2)", &[&&*row.jti, &row.until]),
        Change::NoToken(jti) => run("DELETE FROM revoked_tokens WHERE jti = ?1", &[&&**jti]),
    }
}

/// Deletes what this file has between the part's two ends and the part has not.
fn drop_others(tx: &Connection, part: &Part) -> rusqlite::Result<()> {
    let (mut keys, mut kids, mut jtis) = (HashSet::new(), HashSet::new(), HashSet::new());
    for row in &part.rows {
        match row {
            Change::Key(row) => _ = keys.insert(row.hash.0),
            Change::Issuer(row) => _ = kids.insert(&*row.kid),
            Change::Token(row) => _ = jtis.insert(&*row.jti),
            Change::NoKey(_) | Change::NoIssuer(_) | Change::NoToken(_) => {}
        }
    }
    if part.after == Copied::Nothing {
        for kid in texts(tx, "SELECT kid FROM token_issuers WHERE kid > ?1", &[&""])?.iter().filter(|kid| !kids.contains(&***kid)) {
            tx.execute("DELETE FROM token_issuers WHERE kid = ?1", [kid])?;
        }
    }
    let from = match &part.after {
        Copied::Nothing => Some(""),
        Copied::Tokens(jti) => Some(&**jti),
        Copied::Keys(_) => None,
    };
    if let Some(from) = from {
        let found = match &part.upto {
            Some(Copied::Tokens(upto)) => texts(tx, "SELECT jti FROM revoked_tokens WHERE jti > ?1 AND jti <= ?2", &[&from, &&**upto])?,
            _ => texts(tx, "SELECT jti FROM revoked_tokens WHERE jti > ?1", &[&from])?,
        };
        for jti in found.iter().filter(|jti| !jtis.contains(&***jti)) {
            tx.execute("DELETE FROM revoked_tokens WHERE jti = ?1", [jti])?;
        }
    }
    let from: &[u8] = match &part.after {
        Copied::Keys(hash) => &hash.0,
        Copied::Nothing | Copied::Tokens(_) => &[],
    };
    // Blobs compare byte by byte: a 33rd byte is behind every hash.
    let upto: &[u8] = match &part.upto {
        Some(Copied::Keys(hash)) => &hash.0,
        Some(Copied::Tokens(_) | Copied::Nothing) => return Ok(()),
        None => &[0xff; 33],
    };
    let mut statement = tx.prepare_cached("SELECT hash FROM api_keys WHERE hash > ?1 AND hash <= ?2")?;
    let found = statement.query_map(params![from, upto], |row| row.get::<_, [u8; 32]>(0))?.collect::<Result<Vec<_>, _>>()?;
    for hash in found.iter().filter(|hash| !keys.contains(*hash)) {
        tx.prepare_cached("DELETE FROM api_keys WHERE hash = ?1")?.execute([&hash[..]])?;
    }
    Ok(())
}

fn texts(tx: &Connection, sql: &str, values: &[&dyn ToSql]) -> rusqlite::Result<Vec<String>> {
    tx.prepare_cached(sql)?.query_map(values, |row| row.get(0))?.collect()
}
