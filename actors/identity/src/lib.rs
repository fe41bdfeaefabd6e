//! Who may come in from outside: keys, and tokens that prove a user.
//!
//! The owner of `control.db` runs the service `horos.keys` ([`Keys`]); every node keeps a replica of what it knows
//! ([`Mirror`]) and answers from that ([`Verifier`]), so that a guess never leaves the node it was made on. What is not known
//! here may have been made a moment ago: then, and only then, the answer waits until the mirror has asked once more.
//!
//! - A key is 256 random bits, shown once and stored as their SHA-256, which is the primary key that it is found by.
//! - A token is signed with Ed25519 by an issuer that an operator has trusted, for a day at most.
//! - What is revoked on the owner is refused on every linked node within a second; a node that has lost the owner works from
//!   what it last knew, and says so.
//! - Whatever cannot be read counts against who shows it: no scopes, expired, revoked, unavailable.

mod clock;
mod expiry;
mod issuer;
mod key;
mod log;
mod lookup;
mod memory;
mod mirror;
mod news;
mod replica;
mod schema;
mod service;
mod tally;
mod token;
mod verifier;

pub use clock::Clock;
pub use horos_wire::protocol::keys::NAME;
pub use issuer::{ISSUER_FILE, IssuerKeyError};
pub use key::{KEY_LENGTH, KEY_PREFIX, SHOWN, hash};
pub use mirror::{Conditions, Mirror, Source};
pub use schema::KEYS_MIGRATIONS;
pub use service::{Keys, KeysConfig, KeysParts};
pub use token::{LEEWAY, MAX_LIFE};
pub use verifier::Verifier;
