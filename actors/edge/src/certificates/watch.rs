//! Takes up certificates that were replaced, and warns of those that end.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::{Duration, Instant},
};

use horos_supervision::Vitals;
use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::{CertificateError, Certificates, LOOK_EVERY, Source, files, pair::Pair};
use crate::{Conditions, Metrics};

/// The condition's name at `/readyz`.
pub(super) const CONDITION: &str = "certificate";
/// An end that is nearer is warned of. Authorities renew at a third of 90 days or less: by then somebody forgot.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(14 * 24);
/// Between two warnings.
const WARN_EVERY: Duration = Duration::from_secs(6 * 3600);

/// What is told of certificates.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    conditions: Conditions,
    failures: Counter<u64, AtomicU64>,
    taken_up: Counter<u64, AtomicU64>,
    not_after: Gauge<i64, AtomicI64>,
}

impl Told {
    pub(crate) fn new(conditions: Conditions, metrics: &Metrics) -> Self {
        let told = Self { conditions, failures: Counter::default(), taken_up: Counter::default(), not_after: Gauge::default() };
        let mut registry = metrics.registry();
        registry.register("horos_certificate_failures", "New certificates that could not be taken up", told.failures.clone());
        registry.register("horos_certificate_replacements", "New certificates that were taken up", told.taken_up.clone());
        let help = "When the certificate of HTTPS ends, in seconds since 1970; 0 where another keeps it";
        registry.register("horos_certificate_not_after", help, told.not_after.clone());
        drop(registry);
        told
    }

    pub(super) fn failed(&self, error: &CertificateError) {
        self.failures.inc();
        self.conditions.note(CONDITION, error.public());
        tracing::error!(error = %Chain(error), "the certificate was not replaced; the last good one stays in use");
    }

    pub(super) fn took_up(&self, pair: &Pair) {
        self.taken_up.inc();
        self.stands(pair);
        self.conditions.clear(CONDITION);
        tracing::info!(not_after = %pair.not_after(), "a new certificate is in use");
    }

    /// There is none to present yet.
    #[cfg(feature = "acme")]
    pub(super) fn has_none(&self) {
        self.conditions.set(CONDITION, "there is no certificate yet");
    }

    fn stands(&self, pair: &Pair) {
        self.not_after.set(pair.not_after().as_second());
    }
}

/// An error with its causes.
struct Chain<'a>(&'a CertificateError);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = std::error::Error::source(self.0);
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// Looks after the certificate for as long as the node runs.
pub(crate) async fn watch(certificates: Arc<Certificates>, told: Told, vitals: Arc<Vitals>) {
    match certificates.source() {
        Source::Plain | Source::Cluster(_) => std::future::pending().await,
        Source::Files { certificate, key } => {
            let (certificate, key) = (certificate.clone(), key.clone());
            watch_files(&certificates, &certificate, &key, &told, &vitals).await
        }
        Source::Development { .. } => loop {
            warn(&certificates, &told, Timestamp::now());
            tokio::time::sleep(WARN_EVERY).await;
        },
        #[cfg(feature = "acme")]
        Source::Acme(acme) => acme.clone().keep(certificates.clone(), told, vitals).await,
    }
}

async fn watch_files(certificates: &Arc<Certificates>, certificate: &Path, key: &Path, told: &Told, vitals: &Vitals) {
    let look = || (files::stamp(certificate), files::stamp(key));
    // Read again at once: what was loaded at the start may be older than the first look at the files.
    let mut last_read = None;
    let mut seen = look();
    let mut warned: Option<Instant> = None;
    loop {
        // Two files are not replaced in one step: they are read once they have stood still for a look.
        let now = look();
        let stands_still = std::mem::replace(&mut seen, now) == now;
        if stands_still && last_read != Some(now) {
            let is_first = last_read.replace(now).is_none();
            let (chain, secret) = (certificate.to_owned(), key.to_owned());
            let loaded = tokio::task::spawn_blocking(move || Pair::load(&chain, &secret, Timestamp::now())).await;
            match loaded {
                Ok(Ok(pair)) => {
                    let is_same = certificates.pair().is_some_and(|old| old.key().cert == pair.key().cert);
                    match is_same {
                        true if is_first => told.stands(&pair),
                        // The same certificate again mends what was wrong meanwhile.
                        true => told.conditions.clear(CONDITION),
                        false => told.took_up(&pair),
                    }
                    certificates.replace(pair);
                    warned = None;
                }
                Ok(Err(error)) => told.failed(&error),
                Err(error) => tracing::error!(%error, "the certificate could not be read"),
            }
            vitals.progressed(Instant::now());
        }
        if warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
            warned = Some(Instant::now());
            warn(certificates, told, Timestamp::now());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Says so when the certificate in force ends soon, or has ended.
pub(super) fn warn(certificates: &Certificates, told: &Told, now: Timestamp) {
    let Some(pair) = certificates.pair() else { return };
    told.stands(&pair);
    let not_after = pair.not_after();
    if now > not_after {
        told.conditions.note(CONDITION, "the certificate has expired");
        tracing::error!(%not_after, "the certificate of HTTPS has expired: clients refuse it; replace it");
    } else if not_after.duration_since(now) < WARN_BEFORE {
        told.conditions.note(CONDITION, "the certificate ends within two weeks");
        tracing::warn!(%not_after, "the certificate of HTTPS ends soon; replace it");
    }
}
