//! Issuers of tokens: trusted, distrusted; and the cluster's own, which signs.

use std::path::PathBuf;

use horos_supervision::{Context, Handle};
use horos_wire::protocol::keys::{
    DistrustIssuer, Done, Grants, IssueToken, IssuedToken, Issuer, Issuers, KeysError, MAX_TEXT, MAX_TOKEN, RevokeToken, Secret,
    TrustIssuer,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Fault, Keys, invalid, keys::distinct, stamp, storage};
use crate::{
    expiry::{self, rfc3339},
    issuer::{ISSUER_FILE, IssuerKeyError, OwnIssuer},
    key,
    log::{self, Subject},
    token::{self, LEEWAY, MAX_LIFE, is_name, is_token_id, public_key},
};

/// Issuers trusted at once: each is asked for in every copy, and nobody has that many.
const MAX_ISSUERS: i64 = 64;
/// What a token lasts if nothing is said: as long as a person is logged in elsewhere without a sign of life.
const DEFAULT_LIFE: i64 = 3_600;
/// The longest that a revocation can be asked to be remembered.
const MAX_REMEMBERED: (i64, &str) = (31 * 86_400, "a month");
/// Revocations whose time is over are kept while there are no more than this: a clock that jumps ahead, and back again, brings
/// no revoked token to life.
const KEPT_TOKENS: i64 = 10_000;
/// Most revocations whose time is not over.
const MAX_TOKENS: i64 = 1_000_000;

const RECORD: &str = "SELECT kid, issuer, audience, public_key, grants, own, trusted_at, trusted_by FROM token_issuers";

fn record(row: &Row<'_>) -> rusqlite::Result<Issuer> {
    let text = |column: usize| row.get::<_, String>(column).map(Box::<str>::from);
    Ok(Issuer {
        kid: text(0)?,
        issuer: text(1)?,
        audience: text(2)?,
        public_key: text(3)?,
        grants: serde_json::from_str(&text(4)?).unwrap_or(Grants::Only(Vec::new())),
        own: row.get(5)?,
        trusted_at: rfc3339(row.get(6)?),
        trusted_by: text(7)?,
    })
}

/// Trusts `issuer`, or says that its `kid` is another's.
fn trust(tx: &Connection, issuer: &Issuer, now: i64, stamp: [u8; 16]) -> Result<Issuer, Fault> {
    let before = tx.query_row(&format!("{RECORD} WHERE kid = ?1"), [&*issuer.kid], record).optional()?;
    match before {
        Some(before) if before.public_key != issuer.public_key => return Err(KeysError::KidTaken(issuer.kid.clone()).into()),
        Some(before) if before.own != issuer.own => return Err(invalid("this is the cluster's own key, which is trusted as it is").into()),
        Some(_) => {}
        None => {
            let count: i64 = tx.query_row("SELECT count(*) FROM token_issuers", [], |row| row.get(0))?;
            if count >= MAX_ISSUERS {
                return Err(KeysError::TooMany(format!("{MAX_ISSUERS} issuers are trusted: distrust one first").into()).into());
            }
        }
    }
    let Issuer { kid, issuer: name, audience, public_key, grants, own, trusted_by, .. } = issuer;
    let grants = serde_json::to_string(grants).map_err(|error| invalid(error.to_string()))?;
    tx.execute(
        "INSERT OR REPLACE INTO token_issuers (kid, issuer, audience, public_key, grants, own, trusted_at, trusted_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![kid, name, audience, public_key, grants, own, now, trusted_by],
    )?;
    log::append(tx, stamp, Subject::Issuer(kid))?;
    Ok(tx.query_row(&format!("{RECORD} WHERE kid = ?1"), [kid], record)?)
}

/// An issuer's name and audience stand in logs and before a space.
fn is_issuer(text: &str) -> bool {
    is_name(text, MAX_TEXT) && !text.contains(char::is_whitespace)
}

impl Handle<TrustIssuer> for Keys {
    async fn handle(&mut self, ask: TrustIssuer, cx: &Context) -> Result<Issuer, KeysError> {
        if !is_token_id(&ask.kid) {
            return Err(invalid("the key id is 1 to 128 visible ASCII characters"));
        }
        if !is_issuer(&ask.issuer) || !is_issuer(&ask.audience) {
            return Err(invalid(format!("the issuer and the audience are 1 to {MAX_TEXT} bytes without spaces and control characters")));
        }
        if public_key(&ask.public_key).is_none() {
            return Err(invalid("the public key is an Ed25519 key's 32 bytes in base64url, 43 characters: the \"x\" of its JWK"));
        }
        let grants = match ask.grants {
            Grants::Any => Grants::Any,
            Grants::Only(scopes) => Grants::Only(distinct(scopes)?),
        };
        let (now, stamp, by) = (self.now(), stamp()?, cx.caller().to_string());
        let issuer = Issuer {
            kid: ask.kid,
            issuer: ask.issuer,
            audience: ask.audience,
            public_key: ask.public_key,
            grants,
            own: false,
            trusted_at: Box::default(),
            trusted_by: by.into(),
        };
        let issuer = self.write(cx, move |tx| trust(tx, &issuer, now, stamp)).await?;
        tracing::warn!(target: "horos_identity::audit", caller = %cx.caller(), kid = %issuer.kid, issuer = %issuer.issuer, grants = ?issuer.grants, "issuer trusted");
        Ok(issuer)
    }
}

impl Handle<DistrustIssuer> for Keys {
    async fn handle(&mut self, ask: DistrustIssuer, cx: &Context) -> Result<Done, KeysError> {
        let (kid, stamp) = (ask.kid.clone(), stamp()?);
        let found = self.read(cx, move |tables| tables.query_row(&format!("{RECORD} WHERE kid = ?1"), [&*kid], record).optional()).await?;
        if found.is_some_and(|issuer| issuer.own) {
            // First the file: were it there still after the row is gone, the next token asked for would bring the row back.
            let path = self.issuer_file();
            let kid = ask.kid.clone();
            self.blocking(move || {
                // A key made since is not the one that is meant.
                let known = OwnIssuer::open(&path)?;
                if known.kid == kid { OwnIssuer::remove(&path) } else { Ok(()) }
            })
            .await?;
        }
        let kid = ask.kid.clone();
        self.write(cx, move |tx| {
            if tx.execute("DELETE FROM token_issuers WHERE kid = ?1", [&*kid])? == 0 {
                return Err(KeysError::NoSuchIssuer(kid.chars().take(MAX_TEXT).collect()).into());
            }
            Ok(log::append(tx, stamp, Subject::Issuer(&kid))?)
        })
        .await?;
        tracing::warn!(target: "horos_identity::audit", caller = %cx.caller(), kid = %ask.kid, "issuer distrusted");
        Ok(Done {})
    }
}

impl Handle<Issuers> for Keys {
    async fn handle(&mut self, _: Issuers, cx: &Context) -> Result<Vec<Issuer>, KeysError> {
        tracing::info!(target: "horos_identity::audit", caller = %cx.caller(), "issuers listed");
        self.read(cx, |tables| tables.prepare(&format!("{RECORD} ORDER BY issuer, kid"))?.query_map([], record)?.collect()).await
    }
}

impl Handle<IssueToken> for Keys {
    async fn handle(&mut self, ask: IssueToken, cx: &Context) -> Result<IssuedToken, KeysError> {
        if !is_name(&ask.user, MAX_TEXT) {
            return Err(invalid(format!("the user is 1 to {MAX_TEXT} bytes without control characters")));
        }
        let issuer: Box<str> = format!("spiffe://{}", cx.node().cluster).into();
        let audience = ask.audience.unwrap_or_else(|| issuer.clone());
        if !is_issuer(&audience) {
            return Err(invalid(format!("the audience is 1 to {MAX_TEXT} bytes without spaces and control characters")));
        }
        let scopes = distinct(ask.scopes)?;
        let now = self.now();
        let expires_at = match ask.expires.as_deref() {
            None => now.saturating_add(DEFAULT_LIFE),
            Some(text) => expiry::parse(text, now, (MAX_LIFE, "24 hours")).map_err(|error| invalid(error.to_string()))?,
        };
        let own = self.own_issuer(cx, &issuer, now).await?;
        let jti = hex::encode(key::random::<16>().map_err(|error| KeysError::Storage(error.to_string().into()))?);
        let scope = scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ");
        let claims =
            token::Signed { iss: &issuer, sub: &ask.user, aud: &audience, exp: expires_at, nbf: now, iat: now, jti: &jti, scope: &scope };
        let signed =
            Secret::new(token::sign(&own.kid, &own.signing, &claims).map_err(|error| storage(&error, "the token could not be signed"))?);
        if signed.reveal().len() > MAX_TOKEN {
            return Err(invalid(format!("the token would be longer than {MAX_TOKEN} bytes: give it fewer scopes")));
        }
        let caller = cx.caller();
        tracing::info!(target: "horos_identity::audit", %caller, user = %ask.user, jti, kid = %own.kid, ?scopes, %audience, "token issued");
        Ok(IssuedToken { token: signed, jti: jti.into(), kid: own.kid, audience, expires_at: rfc3339(expires_at) })
    }
}

impl Handle<RevokeToken> for Keys {
    async fn handle(&mut self, ask: RevokeToken, cx: &Context) -> Result<Done, KeysError> {
        if !is_token_id(&ask.jti) {
            return Err(invalid("the token's id is 1 to 128 visible ASCII characters"));
        }
        let (now, stamp, by) = (self.now(), stamp()?, cx.caller().to_string());
        // A token that begins within our leeway from now lasts a day, and is taken for the leeway after its end.
        let least = now.saturating_add(MAX_LIFE + 2 * LEEWAY);
        let until = match ask.until.as_deref() {
            None => least,
            Some(text) => expiry::parse(text, now, MAX_REMEMBERED).map_err(|error| invalid(error.to_string()))?,
        };
        let jti = ask.jti.clone();
        self.write(cx, move |tx| {
            let alive: i64 = tx.query_row("SELECT count(*) FROM revoked_tokens WHERE until > ?1", [now], |row| row.get(0))?;
            if alive >= MAX_TOKENS {
                return Err(KeysError::TooMany(format!("{MAX_TOKENS} tokens are revoked: distrust their issuer instead").into()).into());
            }
            tx.execute(
                "INSERT INTO revoked_tokens (jti, until, revoked_at, revoked_by) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (jti) DO UPDATE SET until = max(until, excluded.until)",
                params![jti, until, now, by],
            )?;
            log::append(tx, stamp, Subject::Token(&jti))?;
            prune(tx, now)
        })
        .await?;
        tracing::warn!(target: "horos_identity::audit", caller = %cx.caller(), jti = %ask.jti, until = %rfc3339(until), "token revoked");
        Ok(Done {})
    }
}

/// Forgets revocations whose time is over, beyond [`KEPT_TOKENS`]; a few each time, so that no one revocation waits for many.
fn prune(tx: &Connection, now: i64) -> Result<(), Fault> {
    let count: i64 = tx.query_row("SELECT count(*) FROM revoked_tokens", [], |row| row.get(0))?;
    let surplus = (count - KEPT_TOKENS).clamp(0, 16);
    if surplus == 0 {
        return Ok(());
    }
    let mut statement = tx.prepare_cached("SELECT jti FROM revoked_tokens WHERE until <= ?1 ORDER BY until LIMIT ?2")?;
    let over = statement.query_map([now, surplus], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    for jti in over {
        tx.execute("DELETE FROM revoked_tokens WHERE jti = ?1", [&jti])?;
        let mark = stamp()?;
        log::append(tx, mark, Subject::Token(&jti))?;
    }
    Ok(())
}

impl Keys {
    fn issuer_file(&self) -> PathBuf {
        self.parts.data.join(ISSUER_FILE)
    }

    /// Runs what waits for the disk on a thread that may.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, IssuerKeyError> + Send + 'static) -> Result<T, KeysError> {
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(done)) => Ok(done),
            // An operator has to mend it, and is told what.
            Ok(Err(error)) => Err(storage(&error, &error.to_string())),
            Err(error) => Err(storage(&error, "the signing key could not be read")),
        }
    }

    /// The cluster's own key, which every node trusts once it is used.
    async fn own_issuer(&self, cx: &Context, name: &str, now: i64) -> Result<OwnIssuer, KeysError> {
        let path = self.issuer_file();
        let own = self.blocking(move || OwnIssuer::open(&path)).await?;
        let kid = own.kid.clone();
        let known =
            self.read(cx, move |tables| tables.prepare_cached("SELECT 1 FROM token_issuers WHERE kid = ?1 AND own")?.exists([kid])).await?;
        if !known {
            let issuer = Issuer {
                kid: own.kid.clone(),
                issuer: name.into(),
                audience: name.into(),
                public_key: own.public_key.clone(),
                grants: Grants::Any,
                own: true,
                trusted_at: Box::default(),
                trusted_by: cx.caller().to_string().into(),
            };
            let stamp = stamp()?;
            let trusted = self.write(cx, move |tx| trust(tx, &issuer, now, stamp)).await?;
            tracing::warn!(target: "horos_identity::audit", caller = %cx.caller(), kid = %trusted.kid, "the cluster's own issuer is trusted");
        }
        Ok(own)
    }
}
