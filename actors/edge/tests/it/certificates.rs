//! Where the certificate comes from, and that a port is never opened with one that nobody asked for.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use horos_edge::{CertificateError, Edge, EdgeError, Sockets, Source, Standing};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;

use super::world::*;

fn refused(source: Source) -> CertificateError {
    let Sockets { tcp, address, .. } = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    match Edge::open(quick(), parts(source, tcp, address)).unwrap_err() {
        EdgeError::Certificate(error) => error,
        other => panic!("{other}"),
    }
}

fn files(certificate: &Path, key: &Path) -> Source {
    Source::Files { certificate: certificate.to_owned(), key: key.to_owned() }
}

/// What is presented to a new connection.
async fn presented(port: &Port) -> CertificateDer<'static> {
    let client = port.http1().await;
    client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn presents(port: &Port, wanted: &CertificateDer<'static>) {
    let end = std::time::Instant::now() + LONG;
    while presented(port).await != *wanted {
        assert!(std::time::Instant::now() < end, "it still presents another");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn standing(port: &Port) -> Option<Standing> {
    port.conditions.list().into_iter().find(|condition| &*condition.name == "certificate").map(|condition| condition.standing)
}

#[tokio::test]
async fn a_half_given_certificate_is_an_error_that_names_the_file() {
    let directory = TempDir::new().unwrap();
    let (chain, key, _) = certificate(directory.path(), "a");
    let absent = directory.path().join("absent.pem");
    for source in [files(&absent, &key), files(&chain, &absent)] {
        let error = refused(source);
        assert!(matches!(&error, CertificateError::Missing { path, .. } if *path == absent), "{error}");
        assert!(error.to_string().contains("absent.pem"), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_hold_is_an_error_that_names_the_file() {
    let directory = TempDir::new().unwrap();
    let (chain, key, _) = certificate(directory.path(), "a");
    let (other_chain, other_key, _) = certificate(directory.path(), "b");
    assert!(
        matches!(refused(files(&chain, &other_key)), CertificateError::Mismatch { certificate, key } if certificate == chain && key == other_key)
    );
    assert!(matches!(refused(files(&other_key, &key)), CertificateError::Malformed { path, .. } if path == other_key), "a key is no chain");
    assert!(matches!(refused(files(&chain, &other_chain)), CertificateError::Exposed { .. }), "what anybody can read is no key");

    secret(&directory.path().join("empty"), "");
    assert!(matches!(refused(files(&chain, &directory.path().join("empty"))), CertificateError::Malformed { .. }));
    assert!(matches!(refused(files(&directory.path().join("empty"), &key)), CertificateError::Malformed { .. }));

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = refused(files(&chain, &key));
    assert!(
        matches!(&error, CertificateError::Exposed { path, mode: 0o644 } if *path == key) && error.to_string().contains("chmod 600"),
        "{error}"
    );

    let expired = directory.path().join("expired.pem");
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let pair = rcgen::KeyPair::generate().unwrap();
    fs::write(&expired, params.self_signed(&pair).unwrap().pem()).unwrap();
    secret(&directory.path().join("expired.key"), &pair.serialize_pem());
    let error = refused(files(&expired, &directory.path().join("expired.key")));
    assert!(matches!(error, CertificateError::Expired { .. }) && error.to_string().contains("2021-01-01"), "{error}");
}

#[tokio::test]
async fn a_development_certificate_is_kept_private_and_only_for_this_machine() {
    let directory = TempDir::new().unwrap();
    let kept = directory.path().join("kept");
    let first = {
        let port = Port::with(quick(), Source::Development { directory: kept.clone() }, TempDir::new().unwrap()).await;
        presented(&port).await
    };
    let again = Port::with(quick(), Source::Development { directory: kept.clone() }, directory).await;
    assert_eq!(presented(&again).await, first, "a restart keeps it");
    for (path, mode) in [(kept.clone(), 0o700), (kept.join("development.key"), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
    let Sockets { tcp, .. } = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = Edge::open(quick(), parts(Source::Development { directory: kept }, tcp, "[2001:db8::1]:443".parse().unwrap()));
    assert!(matches!(refused.unwrap_err(), EdgeError::NotLoopback { .. }));
}

#[tokio::test]
async fn replaced_files_are_taken_up_under_load_without_a_failed_request() {
    let directory = TempDir::new().unwrap();
    let (chain, key, first) = certificate(directory.path(), "a");
    let port = Arc::new(Port::with(quick(), files(&chain, &key), TempDir::new().unwrap()).await);
    assert_eq!(presented(&port).await, first);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (port, stop, answered) = (port.clone(), stop.clone(), answered.clone());
        clients.spawn(async move {
            let mut kept = port.http1().await;
            while !stop.load(Relaxed) {
                // Each on a new connection, and on one that outlives every replacement.
                assert!(get(&mut port.http1().await, "/t/hello").await.ends_with("hello"));
                assert!(get(&mut kept, "/t/hello").await.ends_with("hello"));
                answered.fetch_add(1, Relaxed);
            }
        });
    }
    for name in ["b", "c"] {
        let (new_chain, new_key, new) = certificate(directory.path(), name);
        fs::rename(new_chain, &chain).unwrap();
        fs::rename(new_key, &key).unwrap();
        presents(&port, &new).await;
    }
    stop.store(true, Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(answered.load(Relaxed) > 10);
    assert!(port.counts().is_empty(), "{:?}", port.counts());
}

#[tokio::test]
async fn a_bad_new_certificate_leaves_the_good_one_in_use_and_is_shown() {
    let directory = TempDir::new().unwrap();
    let (chain, key, first) = certificate(directory.path(), "a");
    let (_, other_key, _) = certificate(directory.path(), "b");
    let port = Port::with(quick(), files(&chain, &key), TempDir::new().unwrap()).await;

    fs::copy(&other_key, &key).unwrap();
    eventually("it is shown", || match standing(&port) {
        Some(Standing::Degraded) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(presented(&port).await, first);
    assert!(port.conditions.ready(), "the node serves all the same");
    assert!(port.metrics.text().contains("horos_certificate_failures_total 1"), "{}", port.metrics.text());
    let told = port.conditions.list();
    assert!(told.iter().all(|condition| !condition.reason.as_deref().unwrap_or_default().contains('/')), "no path is public: {told:?}");

    let (good_chain, good_key, good) = certificate(directory.path(), "c");
    fs::rename(good_chain, &chain).unwrap();
    fs::rename(good_key, &key).unwrap();
    presents(&port, &good).await;
    assert_eq!(standing(&port), Some(Standing::Fine));
}
