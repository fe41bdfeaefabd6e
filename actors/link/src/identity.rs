//! Owns who a node is and whom it believes: the cluster's authority, certificates and their requests,
//! the deny list, and the files they live in.
//!
//! Nothing here is an actor. The command line runs [`authority`] and [`request`]; a node loads
//! [`Credentials`] and a [`DenyList`] when it starts and hands both to [`crate::tls`].
//!
//! Promises:
//! - An identity is `spiffe://cluster/role/node` in the one URI SAN of a certificate signed by the
//!   cluster's authority, and nothing else: no first-use trust, no switch that skips a check.
//! - The authority's key is written once, to a 0600 file in a directory of its own, and only
//!   [`authority::Authority`] opens it. A node refuses to start on an identity directory that holds it.
//! - Private keys are made where they are used. A request carries the public key out, a certificate comes back.
//! - Every file appears whole or not at all, and is on disk before the call returns.
//!
//! What a directory holds:
//!
//! | file | authority's directory | `identity/` of a node, an operator, a viewer |
//! |---|---|---|
//! | `ca-key.pem` | the authority's private key, 0600 | never |
//! | `ca.pem` | its certificate | the same; two during a change of authority |
//! | `issued.txt` | every certificate signed here | – |
//! | `denied.txt` | the newest deny list | the newest deny list seen |
//! | `key.pem` | – | the holder's private key, 0600 |
//! | `request.pem` | – | what to send to the authority's holder |
//! | `certificate.pem` | – | what came back |
//!
//! Left out: fetching certificates over the network, and keys in hardware.

pub mod authority;
pub mod certificate;
mod credentials;
mod files;
pub mod request;
pub mod revocation;
pub(crate) mod signature;

pub use authority::Authority;
pub use certificate::{Fingerprint, PeerIdentity, Serial, Validity};
pub use credentials::{Credentials, CredentialsError, MAX_AUTHORITIES, Trust, TrustError};
pub use files::FileError;
pub use revocation::DenyList;

/// File of the authority's private key, in the authority's directory only.
pub const CA_KEY: &str = "ca-key.pem";
/// File of the authority's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// File of the holder's private key.
pub const KEY: &str = "key.pem";
/// File of the holder's certificate.
pub const CERTIFICATE: &str = "certificate.pem";
/// File of the holder's certificate request.
pub const REQUEST: &str = "request.pem";
/// File of the signed deny list.
pub const DENIED: &str = "denied.txt";
/// File in which the authority lists what it signed.
pub const ISSUED: &str = "issued.txt";

/// Largest PEM file read, in bytes. A P-256 certificate takes under 1 KiB, so this leaves room for a
/// bundle of authorities and stops a wrong path (a log, a device) before it fills memory.
pub const MAX_PEM: u64 = 64 * 1024;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
