//! What was verified lately, bounded: two generations of maps, the older of which is dropped when the younger is full.
//!
//! Only what *was* valid is kept, by the SHA-256 of its text, so guesses take no room. Whether it is valid still is asked
//! of the clock at each use, and whoever learns of a change forgets what it concerns.

use std::{collections::HashMap, sync::Arc};

use horos_wire::{principal::Principal, protocol::keys::Change};
use parking_lot::Mutex;

/// Credentials remembered: some 4 MB at 400 bytes each, and more than one node's clients use within minutes.
pub(crate) const REMEMBERED: usize = 10_000;

/// A credential that was valid.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) principal: Arc<Principal>,
    /// Valid from then.
    pub(crate) from: i64,
    /// Valid before then.
    pub(crate) until: i64,
    /// What a change has to name to concern it.
    pub(crate) by: By,
}

/// By which changes a remembered credential is forgotten. A key is found by its hash.
#[derive(Clone, Debug)]
pub(crate) enum By {
    Key,
    Token { kid: Box<str>, jti: Box<str> },
}

/// The memory of a verifier.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Counts what was forgotten: an answer read before a change must not be remembered after it.
    version: u64,
    young: HashMap<[u8; 32], Remembered>,
    old: HashMap<[u8; 32], Remembered>,
}

impl Inner {
    fn put(&mut self, hash: [u8; 32], found: Remembered) {
        if self.young.len() >= REMEMBERED / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, found);
    }
}

impl Memory {
    /// What is remembered of `hash`. Holds a lock for the time of two look-ups.
    pub(crate) fn find(&self, hash: &[u8; 32]) -> Option<Remembered> {
        let mut inner = self.0.lock();
        if let Some(found) = inner.young.get(hash) {
            return Some(found.clone());
        }
        let found = inner.old.remove(hash)?;
        inner.put(*hash, found.clone());
        Some(found)
    }

    /// To be taken before a look at the tables, for [`Memory::remember`].
    pub(crate) fn version(&self) -> u64 {
        self.0.lock().version
    }

    /// Remembers what a look at the tables that began at `version` gave, unless something has changed since.
    pub(crate) fn remember(&self, version: u64, hash: [u8; 32], found: Remembered) {
        let mut inner = self.0.lock();
        if inner.version == version {
            inner.put(hash, found);
        }
    }

    /// Forgets what `changes` concern, and whatever is being looked up now.
    pub(crate) fn forget(&self, changes: &[Change]) {
        let mut inner = self.0.lock();
        inner.version += 1;
        let Inner { young, old, .. } = &mut *inner;
        for map in [young, old] {
            for change in changes {
                match change {
                    Change::Key(row) => _ = map.remove(&row.hash.0),
                    Change::NoKey(hash) => _ = map.remove(&hash.0),
                    Change::Issuer(row) => map.retain(|_, known| !matches!(&known.by, By::Token { kid, .. } if *kid == row.kid)),
                    Change::NoIssuer(gone) => map.retain(|_, known| !matches!(&known.by, By::Token { kid, .. } if kid == gone)),
                    Change::Token(row) => map.retain(|_, known| !matches!(&known.by, By::Token { jti, .. } if *jti == row.jti)),
                    Change::NoToken(_) => {}
                }
            }
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let mut inner = self.0.lock();
        *inner = Inner { version: inner.version + 1, ..Inner::default() };
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        let inner = self.0.lock();
        inner.young.len() + inner.old.len()
    }
}

#[cfg(test)]
mod tests {
    use horos_wire::{principal::Proof, protocol::keys::KeyHash};

    use super::*;

    fn remembered() -> Remembered {
        let principal = Principal { id: "i".into(), proof: Proof::Key { owner: "o".into() }, scopes: Box::default(), per_minute: None };
        Remembered { principal: Arc::new(principal), from: i64::MIN, until: i64::MAX, by: By::Key }
    }

    fn hash(n: usize) -> [u8; 32] {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_le_bytes());
        hash
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let memory = Memory::default();
        for n in 0..REMEMBERED * 5 {
            memory.remember(memory.version(), hash(n + 1), remembered());
            if n == 0 {
                memory.remember(memory.version(), hash(0), remembered());
            }
            assert!(memory.find(&hash(0)).is_some(), "used at every turn");
        }
        assert!(memory.len() <= REMEMBERED + 1, "{}", memory.len());
        assert!(memory.find(&hash(1)).is_none());
    }

    #[test]
    fn an_answer_read_before_a_change_is_not_remembered_after_it() {
        let memory = Memory::default();
        let version = memory.version();
        memory.forget(&[Change::NoKey(KeyHash(hash(1)))]);
        memory.remember(version, hash(1), remembered());
        assert!(memory.find(&hash(1)).is_none());
        memory.remember(memory.version(), hash(1), remembered());
        assert!(memory.find(&hash(1)).is_some());
        memory.forget(&[Change::NoKey(KeyHash(hash(1)))]);
        assert!(memory.find(&hash(1)).is_none());
    }
}
