//! Signed tokens (RFC 7519): what a header and claims must say, and how ours are written.
//!
//! One algorithm, fixed here and not chosen by the token (RFC 8725 §3.1); one trusted key for a `kid`; and these claims, of
//! which RFC 7519 §4.1 itself requires none:
//!
//! | claim | |
//! |---|---|
//! | `iss`, `aud` | required; those that the issuer is trusted with, `aud` alone or among others |
//! | `sub` | required: the user that is proved |
//! | `jti` | required: what the token is revoked by |
//! | `exp` | required |
//! | `nbf`, `iat` | the token begins with `nbf`, or without it with `iat`; it lasts no longer than [`MAX_LIFE`] from then, or from now where it has neither. `iat` is never in the future |
//! | `scope` | what the user may do, between spaces; without it nothing |
//!
//! The times are compared here and not by the library, with the clock that is passed in.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use horos_wire::{
    principal::{Denied, MAX_SCOPES, Scope},
    protocol::keys::{Grants, IssuerRow, MAX_TEXT, MAX_TOKEN, MAX_TOKEN_ID},
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};

/// How far an issuer's clock may be off, in seconds: a token is taken this long before its beginning and after its end. Ten
/// times what NTP leaves, and short beside any token's life.
pub const LEEWAY: i64 = 30;
/// Longest life of a token, from its beginning to `exp`, in seconds: a day. What is to hold for longer is a key, which is
/// revoked by its row.
pub const MAX_LIFE: i64 = 86_400;

/// What stands in a token that we sign.
#[derive(Debug, Serialize)]
pub(crate) struct Signed<'a> {
    pub(crate) iss: &'a str,
    pub(crate) sub: &'a str,
    pub(crate) aud: &'a str,
    pub(crate) exp: i64,
    pub(crate) nbf: i64,
    pub(crate) iat: i64,
    pub(crate) jti: &'a str,
    pub(crate) scope: &'a str,
}

/// Signs `claims` as `kid`.
pub(crate) fn sign(kid: &str, key: &EncodingKey, claims: &Signed<'_>) -> Result<String, jsonwebtoken::errors::Error> {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::EdDSA) };
    jsonwebtoken::encode(&header, claims, key)
}

/// What a token must say. Anything missing, of another type or said twice is malformed.
#[derive(Deserialize)]
struct Claims {
    iss: Box<str>,
    sub: Box<str>,
    aud: Audience,
    exp: serde_json::Number,
    nbf: Option<serde_json::Number>,
    iat: Option<serde_json::Number>,
    jti: Box<str>,
    scope: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(Box<str>),
    Several(Vec<Box<str>>),
}

impl Audience {
    fn names(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => **one == *audience,
            Self::Several(several) => several.iter().any(|one| **one == *audience),
        }
    }
}

/// A token that is valid now.
#[derive(Debug)]
pub(crate) struct Proved {
    pub(crate) kid: Box<str>,
    pub(crate) jti: Box<str>,
    pub(crate) issuer: Box<str>,
    pub(crate) user: Box<str>,
    pub(crate) scopes: Box<[Scope]>,
    /// Valid from then, leeway included.
    pub(crate) from: i64,
    /// Valid before then, leeway included.
    pub(crate) until: i64,
}

/// Reads an Ed25519 public key: 32 bytes in base64url.
pub(crate) fn public_key(text: &str) -> Option<[u8; 32]> {
    if text.len() != 43 { None } else { URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok() }
}

/// Whether `text` may stand for somebody: not empty, bounded, and without what would break a line or a log.
pub(crate) fn is_name(text: &str, longest: usize) -> bool {
    !text.is_empty() && text.len() <= longest && !text.chars().any(char::is_control)
}

/// Whether `text` may be a key's or a token's id: visible ASCII.
pub(crate) fn is_token_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TOKEN_ID && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn whole(number: &serde_json::Number) -> Option<i64> {
    // RFC 7519 §2 allows fractions of a second.
    number.as_i64().or_else(|| number.as_f64().filter(|f| f.abs() < 1e15).map(|f| f.floor() as i64))
}

/// What `text` proves at `now`, by the issuer that `trusted` knows of its `kid`, unless its `jti` is `revoked`.
pub(crate) fn check(
    text: &str,
    now: i64,
    trusted: impl FnOnce(&str) -> Result<Option<IssuerRow>, Denied>,
    revoked: impl FnOnce(&str) -> Result<bool, Denied>,
) -> Result<Proved, Denied> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.len() > MAX_TOKEN || !text.bytes().all(plain) || text.bytes().filter(|byte| *byte == b'.').count() != 2 {
        return Err(Denied::Malformed);
    }
    let header = jsonwebtoken::decode_header(text).map_err(|_| Denied::Malformed)?;
    let typed = header.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("jwt") || typ.eq_ignore_ascii_case("at+jwt"));
    // `crit` asks for something that is not done here (RFC 7515 §4.1.11); `enc` and `zip` belong to encrypted tokens.
    if header.alg != Algorithm::EdDSA || !typed || header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
        return Err(Denied::Malformed);
    }
    let kid = header.kid.filter(|kid| is_token_id(kid)).ok_or(Denied::Malformed)?;
    let issuer = trusted(&kid)?.ok_or(Denied::Unknown)?;
    // A row that was damaged trusts nobody.
    let key = public_key(&issuer.public_key).ok_or(Denied::Unknown)?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    let claims = jsonwebtoken::decode::<Claims>(text, &DecodingKey::from_ed_der(&key), &validation)
        .map_err(|error| if matches!(error.kind(), ErrorKind::InvalidSignature) { Denied::Unknown } else { Denied::Malformed })?
        .claims;
    if claims.iss != issuer.issuer {
        return Err(Denied::Unknown);
    }
    if !claims.aud.names(&issuer.audience) {
        return Err(Denied::OtherAudience);
    }
    let moment = |claim: Option<&serde_json::Number>| claim.map(|number| whole(number).ok_or(Denied::Malformed)).transpose();
    let exp = whole(&claims.exp).ok_or(Denied::Malformed)?;
    let (nbf, iat) = (moment(claims.nbf.as_ref())?, moment(claims.iat.as_ref())?);
    let begins = nbf.or(iat);
    // Without a beginning it is as if it had begun now, and one that is over is told so below.
    let longest = begins.unwrap_or(now.min(exp)).saturating_add(MAX_LIFE);
    if exp > longest || begins.is_some_and(|begins| begins >= exp) || !is_name(&claims.sub, MAX_TEXT) || !is_token_id(&claims.jti) {
        return Err(Denied::Malformed);
    }
    let (from, until) = (begins.map_or(i64::MIN, |begins| begins.saturating_sub(LEEWAY)), exp.saturating_add(LEEWAY));
    if now >= until {
        return Err(Denied::Expired);
    }
    if now < from || iat.is_some_and(|iat| iat > now.saturating_add(LEEWAY)) {
        return Err(Denied::NotYetValid);
    }
    if revoked(&claims.jti)? {
        return Err(Denied::Revoked);
    }
    let scopes = granted(claims.scope.as_deref().unwrap_or_default(), &issuer.grants)?;
    Ok(Proved { kid: kid.into(), jti: claims.jti, issuer: claims.iss, user: claims.sub, scopes, from, until })
}

/// The scopes that a token says and its issuer may grant. Words that are no scopes here, a URL or something in capitals,
/// grant nothing and do no harm.
fn granted(said: &str, grants: &str) -> Result<Box<[Scope]>, Denied> {
    let grants = serde_json::from_str(grants).unwrap_or(Grants::Only(Vec::new()));
    let may = |scope: &Scope| match &grants {
        Grants::Any => true,
        Grants::Only(scopes) => scopes.contains(scope),
    };
    let words = said.split(' ').filter(|word| !word.is_empty());
    if words.clone().count() > MAX_SCOPES {
        return Err(Denied::Malformed);
    }
    let mut scopes: Vec<Scope> = words.filter_map(|word| word.parse().ok()).filter(may).collect();
    scopes.sort_unstable();
    scopes.dedup();
    Ok(scopes.into())
}
