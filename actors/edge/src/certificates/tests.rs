use tempfile::TempDir;

use super::*;
use crate::{Conditions, Metrics, Standing};

const DAY: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

#[test]
fn a_development_certificate_is_made_anew_before_it_ends() {
    let directory = TempDir::new().unwrap();
    let start = Timestamp::now();
    let first = development::open(directory.path(), start).unwrap();
    let kept = development::open(directory.path(), start + DAY * 300).unwrap();
    assert_eq!(first.key().cert, kept.key().cert);
    let renewed = development::open(directory.path(), start + DAY * 340).unwrap();
    assert_ne!(first.key().cert, renewed.key().cert);
    // A clock that jumps a year costs a new one, not the start.
    let later = development::open(directory.path(), start + DAY * 1000).unwrap();
    assert_ne!(renewed.key().cert, later.key().cert);
}

#[test]
fn an_end_that_is_near_is_warned_of() {
    let directory = TempDir::new().unwrap();
    let start = Timestamp::now();
    let source = Source::Development { directory: directory.path().to_owned() };
    let certificates = Certificates::open(source, start).unwrap();
    let (conditions, metrics) = (Conditions::default(), Metrics::default());
    let told = Told::new(conditions.clone(), &metrics);
    let standing = |at: Timestamp| {
        watch::warn(&certificates, &told, at);
        conditions.list().first().map(|condition| (condition.standing, condition.reason.clone().unwrap_or_default()))
    };
    assert_eq!(standing(start), None);
    assert_eq!(standing(start + DAY * 355), Some((Standing::Degraded, "the certificate ends within two weeks".into())));
    assert_eq!(standing(start + DAY * 400), Some((Standing::Degraded, "the certificate has expired".into())));
    assert!(conditions.ready(), "clients refuse it; the node still serves who does not");
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let error = files::read(Path::new("/dev/zero"), "certificate").unwrap_err();
    assert!(matches!(error, CertificateError::Malformed { .. }), "{error}");
}

#[test]
fn a_key_never_shows() {
    let directory = TempDir::new().unwrap();
    let source = Source::Development { directory: directory.path().to_owned() };
    let certificates = Certificates::open(source, Timestamp::now()).unwrap();
    let secret = std::fs::read_to_string(directory.path().join("development.key")).unwrap();
    let body: String = secret.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(!format!("{certificates:?}").contains(&body[..20]));
}
