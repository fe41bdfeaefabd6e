//! What is destructive is asked for twice: tokens that say that one caller was told what one call would do.
//!
//! A token is an HMAC-SHA256 (RFC 2104) over the tool, its version, the arguments and the caller, under a key that this process drew and
//! nobody else has; so asking costs no memory, and an edit of the tool between the two calls voids it. Only tokens that were *used* are
//! remembered, until they would have run out anyway. A token holds on the node that gave it, until that ends.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use rmcp::model::JsonObject;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{Caller, Definition};

/// The argument that brings a token back.
pub(crate) const ARGUMENT: &str = "confirm";
/// How long a token holds: as long as a person takes to read what would be done.
pub(crate) const HOLDS: Duration = Duration::from_secs(120);
/// Most used tokens remembered; with more destructive calls in two minutes than that, further ones have to wait.
const USED: usize = 65_536;

const STAMP: usize = 8;
const NONCE: usize = 8;
/// Half of the hash: 128 bits, which nobody guesses (RFC 2104 §5).
const MAC: usize = 16;
const LENGTH: usize = STAMP + NONCE + MAC;

/// `schema` with [`ARGUMENT`], as a destructive tool is listed.
pub(crate) fn confirmable(schema: &JsonObject) -> JsonObject {
    let mut listed = schema.clone();
    let properties = listed.entry("properties").or_insert_with(|| Value::Object(JsonObject::new()));
    if let Value::Object(properties) = properties {
        let what = "The text that the first call answers with, to be given back once a person has agreed. Leave it out at first.";
        properties.insert(ARGUMENT.to_owned(), json!({ "type": "string", "description": what }));
    }
    listed
}

pub(super) struct Confirms {
    key: [u8; 32],
    /// What a token's stamp counts from.
    began: Instant,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    all: HashSet<[u8; LENGTH]>,
    /// In the order in which they run out.
    order: VecDeque<(Instant, [u8; LENGTH])>,
}

/// Why a token confirms nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unconfirmed {
    /// It is of another call, or of nobody here.
    Other,
    /// Its time is over.
    Expired,
    /// It was used before.
    Used,
    /// Too many were used lately.
    Full,
}

/// One call: what a token is for.
pub(super) struct Asked<'a> {
    pub(super) definition: &'a Definition,
    pub(super) caller: &'a Caller,
    /// SHA-256 of the arguments, without [`ARGUMENT`].
    pub(super) arguments: &'a [u8; 32],
}

impl Confirms {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the system has random numbers, as the node's TLS needs them too");
        Self { key, began: Instant::now(), used: Mutex::default() }
    }

    /// A token for `asked`.
    pub(super) fn token(&self, asked: &Asked<'_>) -> Box<str> {
        let stamp = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).to_be_bytes();
        let nonce: [u8; NONCE] = rand::random();
        let mac = self.mac(asked, stamp, nonce);
        URL_SAFE_NO_PAD.encode([&stamp[..], &nonce, &mac].concat()).into()
    }

    /// Uses `token` up for `asked`.
    pub(super) fn confirm(&self, asked: &Asked<'_>, token: &str) -> Result<(), Unconfirmed> {
        let bytes: [u8; LENGTH] = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(Unconfirmed::Other)?;
        let mut stamp = [0; STAMP];
        let mut nonce = [0; NONCE];
        stamp.copy_from_slice(&bytes[..STAMP]);
        nonce.copy_from_slice(&bytes[STAMP..STAMP + NONCE]);
        let told = &bytes[STAMP + NONCE..];
        // Compared whole: how much of a guess is right is not to be told by the time that it takes.
        let differs = self.mac(asked, stamp, nonce).iter().zip(told).fold(0, |differs, (ours, theirs)| differs | (ours ^ theirs));
        if differs != 0 {
            return Err(Unconfirmed::Other);
        }
        let now = Instant::now();
        let ends = self.began + Duration::from_millis(u64::from_be_bytes(stamp)) + HOLDS;
        if now >= ends {
            return Err(Unconfirmed::Expired);
        }
        let mut used = self.used.lock();
        while let Some((_, over)) = used.order.pop_front_if(|(ends, _)| *ends <= now) {
            used.all.remove(&over);
        }
        if used.all.contains(&bytes) {
            return Err(Unconfirmed::Used);
        }
        if used.all.len() >= USED {
            return Err(Unconfirmed::Full);
        }
        used.all.insert(bytes);
        // Used later may be given earlier; kept a little longer than needed, then.
        used.order.push_back((now + HOLDS, bytes));
        Ok(())
    }

    fn mac(&self, asked: &Asked<'_>, stamp: [u8; STAMP], nonce: [u8; NONCE]) -> [u8; MAC] {
        let (spec, caller) = (&asked.definition.spec, asked.caller.id());
        let session = asked.caller.session.as_deref().unwrap_or_default();
        let version = spec.version.to_be_bytes();
        let parts = [&stamp[..], &nonce, spec.name.as_bytes(), &version, asked.arguments, caller.as_bytes(), session.as_bytes()];
        let mut mac = [0; MAC];
        mac.copy_from_slice(&hmac(&self.key, &parts)[..MAC]);
        mac
    }
}

/// HMAC-SHA256 over `parts`, each behind its length, so that no two lists of parts are one message.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    hashed(key, |hash| {
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    })
}

/// HMAC-SHA256 over what `fill` gives it.
fn hashed(key: &[u8; 32], fill: impl FnOnce(&mut Sha256)) -> [u8; 32] {
    // RFC 2104 §2: the key is padded to the hash's block, which is 64 bytes.
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    fill(&mut inner);
    Sha256::new_with_prefix(pad(0x5c)).chain_update(inner.finalize()).finalize().into()
}

#[cfg(test)]
mod tests;
