//! A certificate that nobody vouches for, for a machine of one's own.

use std::{path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd};

use super::{CertificateError, files, pair::Pair};

const CERTIFICATE: &str = "development.pem";
const KEY: &str = "development.key";
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Under the longest that browsers take (398 days, CA/Browser Forum SC31).
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// One that ends sooner is made anew at a start.
const LEFT: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A clock that was set back a little does not make it one from the future.
const BEFORE: SignedDuration = SignedDuration::from_hours(24);

/// The one that is kept in `directory`, or a new one.
pub(super) fn open(directory: &Path, now: Timestamp) -> Result<Pair, CertificateError> {
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    let kept = Pair::load(&certificate, &key, now);
    let pair = match kept {
        Ok(pair) if pair.not_after().duration_since(now) > LEFT => pair,
        Err(error @ CertificateError::Exposed { .. }) => return Err(error),
        // Nobody relies on this one: whatever is wrong with it, a new one will do.
        _ => {
            let (chain, secret) = make(now).map_err(|error| CertificateError::Make(error.to_string()))?;
            files::directory(directory)?;
            files::write(&key, secret.as_bytes())?;
            files::write(&certificate, chain.as_bytes())?;
            Pair::load(&certificate, &key, now)?
        }
    };
    tracing::warn!(
        certificate = %certificate.display(),
        not_after = %pair.not_after(),
        "DEVELOPMENT MODE: HTTPS presents a certificate that this node signed itself and that nobody else vouches for; \
         clients must be told to trust it, and anything but this machine is refused"
    );
    Ok(pair)
}

fn make(now: Timestamp) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name.push(DnType::CommonName, "Horos development");
    let start = date_time_ymd(1970, 1, 1);
    params.not_before = start + since_1970(now - BEFORE);
    params.not_after = start + since_1970(now + LIFE);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn since_1970(at: Timestamp) -> Duration {
    Duration::from_secs(at.as_second().try_into().unwrap_or(0))
}
