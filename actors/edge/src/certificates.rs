//! Owns the certificate that HTTPS presents, over TCP and QUIC alike.
//!
//! Started by [`crate::Edge`]. It comes from the cluster's authority, from files, from an ACME authority (feature `acme`),
//! or, on a machine of one's own, from nobody. Whatever is missing or half given is an error that names the file: a port
//! is never opened with a certificate that nobody asked for. A new certificate counts from the next handshake on, and one
//! that does not hold never takes the place of one that does: the last good one stays, and the error is logged, counted
//! and shown at `/readyz?verbose`.

#[cfg(feature = "acme")]
mod acme;
mod development;
mod files;
mod inspect;
mod pair;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

#[cfg(feature = "acme")]
pub use self::acme::Acme;
pub use self::inspect::{Inspected, inspect};
use self::pair::Pair;
pub(crate) use self::watch::{Told, watch};
use crate::tcp::Challenges;

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Nowhere: plain HTTP over TCP, on loopback only, and no HTTP/3.
    Plain,
    /// From whoever keeps it: the node's own, by the cluster's authority.
    Cluster(Arc<dyn ResolvesServerCert>),
    /// From files that somebody replaces, in PEM: the certificate with those above it, and its key.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// Signed by itself, for `localhost`, on loopback only. Made once and kept in this directory.
    Development {
        /// Made if it is not there.
        directory: PathBuf,
    },
    /// From an ACME authority.
    #[cfg(feature = "acme")]
    Acme(Acme),
}

/// Why there is no certificate to present.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file is not there.
    #[error("{} does not exist; {role} belongs there (http.certificate and http.key name the files)", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        role: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was being attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {role}: {problem}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        role: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Others can read the key.
    #[error("{} has mode {mode:03o}, so everybody on this machine can have this key; run: chmod 600 {}", .path.display(), .path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The two do not belong together.
    #[error("{} is not the key of {}; replace both", .key.display(), .certificate.display())]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
    },
    /// Its time is over.
    #[error("the certificate in {} expired at {not_after}; renew it (the machine's clock says {now})", .path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        not_after: Timestamp,
        /// What the clock said.
        now: Timestamp,
    },
    /// One could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(String),
    /// Something about ACME is not given as it must be.
    #[error("{0}")]
    Acme(String),
}

impl CertificateError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// What may be shown to anybody: no path.
    fn public(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "a file of the new certificate is missing; the last good one is in use",
            Self::File { .. } => "the new certificate cannot be read; the last good one is in use",
            Self::Malformed { .. } => "the new certificate is malformed; the last good one is in use",
            Self::Exposed { .. } => "the new certificate's key can be read by others; the last good one is in use",
            Self::Mismatch { .. } => "the new certificate and its key do not belong together; the last good one is in use",
            Self::Expired { .. } => "the certificate has expired",
            Self::Make(_) | Self::Acme(_) => "no new certificate was to be had; the last good one is in use",
        }
    }
}

/// The certificate in force.
#[derive(Debug)]
pub(crate) struct Certificates {
    source: Source,
    own: Own,
}

/// What the resolver looks at.
#[derive(Debug, Default)]
struct Own {
    pair: ArcSwapOption<Pair>,
    /// Shown to an ACME authority that proves a name.
    #[cfg(feature = "acme")]
    challenge: ArcSwapOption<acme::Challenge>,
}

impl Certificates {
    /// Loads what `source` names, as of `now`. Blocks on the disk.
    ///
    /// # Errors
    /// [`CertificateError`] names the file and the next step.
    pub(crate) fn open(source: Source, now: Timestamp) -> Result<Arc<Self>, CertificateError> {
        let own = Own::default();
        let pair = match &source {
            Source::Plain | Source::Cluster(_) => None,
            Source::Files { certificate, key } => Some(Pair::load(certificate, key, now)?),
            Source::Development { directory } => Some(development::open(directory, now)?),
            #[cfg(feature = "acme")]
            Source::Acme(acme) => acme.kept(now)?,
        };
        own.pair.store(pair.map(Arc::new));
        Ok(Arc::new(Self { source, own }))
    }

    /// Whether an ACME authority may come to this port.
    pub(crate) fn challenges(&self) -> Challenges {
        match self.source {
            #[cfg(feature = "acme")]
            Source::Acme(_) => Challenges::Answered,
            _ => Challenges::Unknown,
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Its own pair, where it is not the cluster's.
    fn pair(&self) -> Option<Arc<Pair>> {
        self.own.pair.load_full()
    }

    fn replace(&self, pair: Pair) {
        self.own.pair.store(Some(Arc::new(pair)));
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        #[cfg(feature = "acme")]
        if acme::is_challenge(&hello) {
            return self.own.challenge.load().as_ref()?.answer(&hello);
        }
        match &self.source {
            Source::Plain => None,
            Source::Cluster(cluster) => cluster.resolve(hello),
            _ => self.own.pair.load().as_ref().map(|pair| pair.key().clone()),
        }
    }
}

/// How often files are looked at: a stamp each costs some microseconds.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
