//! The log of changes: what replicas ask for, and how they tell that they read another log than before.
//!
//! An entry says *what* changed and never how: a reader is given the row as it is now, so entries may be taken twice and in one
//! go with a copy. A position names the entry that it is behind together with that entry's random mark. The log of a restored
//! backup that was written on has other marks at the same numbers, so every replica notices and makes a copy.

use std::collections::HashSet;

use horos_wire::protocol::keys::{Change, Changes, Copied, IssuerRow, KeyHash, KeyRow, Mark, PAGE, Page, Part, Position, TokenRow};
use rusqlite::{Connection, OptionalExtension as _, Row, Statement, ToSql, params};

/// Entries kept. A replica that has not asked for so many changes makes a copy; a hundred thousand are some 8 MB.
pub(crate) const KEPT: i64 = 100_000;

/// What an entry is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subject<'a> {
    Key(&'a KeyHash),
    Issuer(&'a str),
    Token(&'a str),
}

/// Writes an entry, marked `stamp`, and forgets those beyond [`KEPT`].
pub(crate) fn append(tx: &Connection, stamp: [u8; 16], subject: Subject<'_>) -> rusqlite::Result<()> {
    let (kind, bytes) = match subject {
        Subject::Key(hash) => ("key", &hash.0[..]),
        Subject::Issuer(kid) => ("issuer", kid.as_bytes()),
        Subject::Token(jti) => ("token", jti.as_bytes()),
    };
    tx.prepare_cached("INSERT INTO key_changes (stamp, kind, subject) VALUES (?1, ?2, ?3)")?.execute(params![&stamp[..], kind, bytes])?;
    // The newest is always kept, so numbers are never given twice.
    tx.prepare_cached("DELETE FROM key_changes WHERE seq <= ?1")?.execute([tx.last_insert_rowid() - KEPT])?;
    Ok(())
}

/// Which log this is; none before its owner has first opened it.
pub(crate) fn epoch(tx: &Connection) -> rusqlite::Result<Option<Mark>> {
    let text = tx.query_row("SELECT value FROM key_state WHERE name = 'epoch'", [], |row| row.get::<_, String>(0)).optional()?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// Makes this file the owner's: gives it a log if it has none, and forgets that it was ever a replica.
pub(crate) fn own(tx: &Connection, mark: Mark) -> rusqlite::Result<()> {
    tx.execute("DELETE FROM key_state WHERE name IN ('position', 'copied', 'whole')", [])?;
    if epoch(tx)?.is_none() {
        tx.execute("INSERT OR REPLACE INTO key_state (name, value) VALUES ('epoch', ?1)", [mark.to_string()])?;
    }
    Ok(())
}

fn stamp(bytes: &[u8]) -> Mark {
    Mark(bytes.try_into().map_or(0, u128::from_le_bytes))
}

/// Behind the last entry.
fn head(tx: &Connection, epoch: Mark) -> rusqlite::Result<Position> {
    let last = tx
        .query_row("SELECT seq, stamp FROM key_changes ORDER BY seq DESC LIMIT 1", [], |row| {
            Ok((row.get::<_, i64>(0)?, stamp(row.get_ref(1)?.as_blob()?)))
        })
        .optional()?;
    let (seq, stamp) = last.unwrap_or((0, Mark(0)));
    Ok(Position { epoch, seq: seq.cast_unsigned(), stamp })
}

/// Whether all that came behind `position` is still in this log.
fn fits(tx: &Connection, epoch: Mark, position: &Position) -> rusqlite::Result<bool> {
    let Ok(seq) = i64::try_from(position.seq) else { return Ok(false) };
    if position.epoch != epoch {
        return Ok(false);
    }
    if seq == 0 {
        let first: Option<i64> = tx.query_row("SELECT min(seq) FROM key_changes", [], |row| row.get(0))?;
        return Ok(first.is_none_or(|first| first == 1));
    }
    let found =
        tx.query_row("SELECT stamp FROM key_changes WHERE seq = ?1", [seq], |row| Ok(stamp(row.get_ref(0)?.as_blob()?))).optional()?;
    Ok(found == Some(position.stamp))
}

/// What `asked` asks for, all as of the transaction that `tx` is in. None when this file is no owner's.
pub(crate) fn page(tx: &Connection, asked: &Changes) -> rusqlite::Result<Option<Page>> {
    let Some(epoch) = epoch(tx)? else { return Ok(None) };
    let position = match asked.position {
        Some(position) if fits(tx, epoch, &position)? => position,
        _ => {
            let part = part(tx, &Copied::Nothing, PAGE)?;
            let more = part.upto.is_some();
            return Ok(Some(Page { begins: true, position: head(tx, epoch)?, changes: Vec::new(), part: Some(part), more }));
        }
    };
    let (changes, position, whole) = since(tx, position)?;
    // The copy goes on only from the log's end: its rows are then never older than the changes taken before.
    let part = match &asked.copied {
        Some(copied) if whole => Some(part(tx, copied, (PAGE - changes.len()).max(1))?),
        _ => None,
    };
    let more = !whole || part.as_ref().is_some_and(|part| part.upto.is_some());
    Ok(Some(Page { begins: false, position, changes, part, more }))
}

/// What changed behind `position`, where that leads, and whether it leads to the end.
fn since(tx: &Connection, mut position: Position) -> rusqlite::Result<(Vec<Change>, Position, bool)> {
    let mut statement = tx.prepare_cached("SELECT seq, stamp, kind, subject FROM key_changes WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
    let mut rows = statement.query(params![position.seq.cast_signed(), PAGE as i64])?;
    let (mut changes, mut seen, mut entries) = (Vec::new(), HashSet::new(), 0);
    while let Some(row) = rows.next()? {
        entries += 1;
        position.seq = row.get::<_, i64>(0)?.cast_unsigned();
        position.stamp = stamp(row.get_ref(1)?.as_blob()?);
        let (kind, subject): (String, Vec<u8>) = (row.get(2)?, row.get(3)?);
        if let Some(change) = now(tx, &kind, &subject)?
            && seen.insert((kind, subject))
        {
            changes.push(change);
        }
    }
    Ok((changes, position, entries < PAGE))
}

const KEY: &str = "SELECT hash, id, owner, scopes, per_minute, expires_at, revoked_at FROM api_keys";
const ISSUER: &str = "SELECT kid, issuer, audience, public_key, grants FROM token_issuers";
const TOKEN: &str = "SELECT jti, until FROM revoked_tokens";

/// The row that an entry is about, as it is now; none for a kind of a later release.
fn now(tx: &Connection, kind: &str, subject: &[u8]) -> rusqlite::Result<Option<Change>> {
    let text = || String::from_utf8_lossy(subject);
    Ok(match kind {
        "key" => {
            let row = tx.prepare_cached(&format!("{KEY} WHERE hash = ?1"))?.query_row([subject], key).optional()?;
            row.map(Change::Key).or_else(|| subject.try_into().ok().map(|hash| Change::NoKey(KeyHash(hash))))
        }
        "issuer" => {
            let row = tx.prepare_cached(&format!("{ISSUER} WHERE kid = ?1"))?.query_row([text()], issuer).optional()?;
            Some(row.map_or_else(|| Change::NoIssuer(text().into()), Change::Issuer))
        }
        "token" => {
            let row = tx.prepare_cached(&format!("{TOKEN} WHERE jti = ?1"))?.query_row([text()], token).optional()?;
            Some(row.map_or_else(|| Change::NoToken(text().into()), Change::Token))
        }
        _ => None,
    })
}

fn key(row: &Row<'_>) -> rusqlite::Result<KeyRow> {
    Ok(KeyRow {
        hash: KeyHash(row.get(0)?),
        id: row.get::<_, String>(1)?.into(),
        owner: row.get::<_, String>(2)?.into(),
        scopes: row.get::<_, String>(3)?.into(),
        per_minute: row.get(4)?,
        expires_at: row.get(5)?,
        revoked_at: row.get(6)?,
    })
}

pub(crate) fn issuer(row: &Row<'_>) -> rusqlite::Result<IssuerRow> {
    Ok(IssuerRow {
        kid: row.get::<_, String>(0)?.into(),
        issuer: row.get::<_, String>(1)?.into(),
        audience: row.get::<_, String>(2)?.into(),
        public_key: row.get::<_, String>(3)?.into(),
        grants: row.get::<_, String>(4)?.into(),
    })
}

fn token(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow { jti: row.get::<_, String>(0)?.into(), until: row.get(1)? })
}

/// At most some `room` rows of the copy behind `after`: issuers first, which are few and all come at once, then tokens, then keys.
fn part(tx: &Connection, after: &Copied, room: usize) -> rusqlite::Result<Part> {
    fn take<T>(
        mut statement: Statement<'_>,
        from: &dyn ToSql,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
        limit: usize,
    ) -> rusqlite::Result<Vec<T>> {
        statement.query_map(params![from, limit as i64], read)?.collect()
    }
    let mut rows: Vec<Change> = Vec::new();
    if *after == Copied::Nothing {
        let all = take(tx.prepare(&format!("{ISSUER} WHERE kid > ?1 ORDER BY kid LIMIT ?2"))?, &"", issuer, usize::from(u16::MAX))?;
        rows.extend(all.into_iter().map(Change::Issuer));
    }
    if !matches!(after, Copied::Keys(_)) {
        let from = if let Copied::Tokens(jti) = after { &**jti } else { "" };
        let limit = room.saturating_sub(rows.len()).max(1);
        let tokens = take(tx.prepare(&format!("{TOKEN} WHERE jti > ?1 ORDER BY jti LIMIT ?2"))?, &from, token, limit)?;
        if tokens.len() == limit
            && let Some(last) = tokens.last()
        {
            let upto = Some(Copied::Tokens(last.jti.clone()));
            rows.extend(tokens.into_iter().map(Change::Token));
            return Ok(Part { after: after.clone(), upto, rows });
        }
        rows.extend(tokens.into_iter().map(Change::Token));
    }
    let from: &[u8] = if let Copied::Keys(hash) = after { &hash.0 } else { &[] };
    let limit = room.saturating_sub(rows.len()).max(1);
    let keys = take(tx.prepare(&format!("{KEY} WHERE hash > ?1 ORDER BY hash LIMIT ?2"))?, &from, key, limit)?;
    let upto = keys.last().filter(|_| keys.len() == limit).map(|last| Copied::Keys(last.hash));
    rows.extend(keys.into_iter().map(Change::Key));
    Ok(Part { after: after.clone(), upto, rows })
}
