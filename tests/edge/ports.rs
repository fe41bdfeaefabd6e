//! A machine that gets in the way of the port or the keys: said clearly, and nothing lost.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use super::served;
use crate::harness::http::{Ask, Session, Speaks};
use crate::harness::node::text;
use crate::harness::{Cluster, Node, free_address, outside, poll_state};
use crate::machine::{Small, fill, turnable_clock};

/// The status of `/drill/echo` under `key`, over each version.
async fn statuses(node: &Node, key: &str) -> Vec<u16> {
    let mut seen = Vec::new();
    for speaks in Speaks::ALL {
        let mut session = Session::open(&node.site(), speaks).await.unwrap();
        seen.push(session.ask(&Ask::get("/drill/echo").key(key)).await.unwrap().status);
    }
    seen
}

async fn becomes(node: &Node, key: &str, wanted: u16) {
    poll_state(&format!("{wanted} over all versions"), Duration::from_secs(10), async || {
        let seen = statuses(node, key).await;
        if seen.iter().all(|status| *status == wanted) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

#[tokio::test]
async fn whichever_half_of_the_port_is_taken_is_named_and_the_node_runs_once_it_is_free() {
    let (cluster, mut bo) = served(|_| ()).await;
    let key = bo.key(&["drill"]).await;
    let address = bo.address();
    bo.process().terminate();
    assert_eq!(bo.process().wait(Duration::from_secs(15)).await.code(), Some(0));
    let run = async || cluster.run(&["bo", "--data", text(&bo.data), "--listen", &address.to_string()]).await;

    let tcp = TcpListener::bind(address).unwrap();
    let told = run().await.expect_code(6);
    assert!(told.stderr.contains(&format!("TCP {address} is taken")) && told.stderr.contains("listen"), "{}", told.stderr);
    let udp = UdpSocket::bind(address).unwrap();
    run().await.expect_code(6);
    drop(tcp);
    let told = run().await.expect_code(6);
    assert!(told.stderr.contains(&format!("UDP {address} is taken")) && told.stderr.contains("listen"), "{}", told.stderr);
    drop(udp);
    bo.start().await;
    assert_eq!(bo.address(), address);
    becomes(&bo, &key, 200).await;
}

#[tokio::test]
async fn a_public_address_that_is_taken_is_named_too() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    let public = free_address([127, 0, 0, 9]);
    bo.set("LISTEN__PUBLIC", public.to_string());
    let taken = TcpListener::bind(public).unwrap();
    bo.spawn();
    let named = format!("TCP {public} is taken");
    bo.process().wait_for_line(&named, Duration::from_secs(15), |line| line.contains(&named)).await;
    assert_eq!(bo.process().wait(Duration::from_secs(15)).await.code(), Some(6));
    drop(taken);
    bo.start().await;
}

#[tokio::test]
async fn a_certificate_that_is_missing_or_half_given_stops_the_start_and_is_never_made_up() {
    let (cluster, mut bo) = served(|_| ()).await;
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(15)).await;
    let some = bo.data.join("identity/certificate.pem");
    let missing = cluster.path().join("missing.pem");
    for (settings, named) in [
        (&[("HTTP__TLS", "files")][..], "http.certificate"),
        (&[("HTTP__TLS", "files"), ("HTTP__CERTIFICATE", text(&some))], "http.key"),
        (&[("HTTP__TLS", "files"), ("HTTP__KEY", text(&some))], "http.certificate"),
        (&[("HTTP__TLS", "files"), ("HTTP__CERTIFICATE", text(&missing)), ("HTTP__KEY", text(&missing))], "missing.pem"),
        // A certificate is no key.
        (&[("HTTP__TLS", "files"), ("HTTP__CERTIFICATE", text(&some)), ("HTTP__KEY", text(&some))], "certificate.pem"),
        // Without TLS, or with a certificate that nobody else signed, only where nobody else comes.
        (&[("HTTP__TLS", "plain"), ("LISTEN__CLUSTER", "0.0.0.0:0")], "http.tls"),
        (&[("HTTP__TLS", "development"), ("LISTEN__CLUSTER", "0.0.0.0:0")], "http.tls"),
    ] {
        let mut command = std::process::Command::new(outside::drill().await);
        command.args(["bo", "--data", text(&bo.data)]).env("HOROS__LISTEN__CLUSTER", "127.0.0.1:0");
        command.envs(settings.iter().map(|(key, value)| (format!("HOROS__{key}"), value)));
        let told = crate::harness::cli::run(command).await;
        assert!(matches!(told.code, Some(2 | 6)), "{settings:?}: {told:?}");
        assert!(told.stderr.contains(named), "{settings:?}: {}", told.stderr);
    }
    bo.start().await;
}

#[tokio::test]
async fn on_a_full_disk_no_key_is_made_and_those_that_are_go_on() {
    let cluster = Cluster::of(outside::drill().await);
    let disk = cluster.path().join("disk");
    let Some(small) = Small::mount(disk.clone(), "8m") else {
        eprintln!("not promised here: only root may mount a file system to fill");
        return;
    };
    std::os::unix::fs::symlink(&disk, cluster.path().join("bo-1")).unwrap();
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    bo.start().await;
    let key = bo.key(&["drill"]).await;
    becomes(&bo, &key, 200).await;
    let ballast = disk.join("ballast");
    fill(&ballast);
    let mut made = Vec::new();
    let mut refused = None;
    // The write-ahead log may have room for a few.
    for _ in 0..500 {
        let outcome = bo.ask(&["keys", "create", "--name", "n", "--owner", "o", "--scope", "drill"]).await;
        match outcome.code {
            Some(0) => made.push(outcome.json()["secret"].as_str().unwrap().to_owned()),
            _ => {
                refused = Some(outcome);
                break;
            }
        }
    }
    let refused = refused.expect("a full disk refuses");
    assert!(matches!(refused.code, Some(1 | 3)), "nothing was done, and that is said: {refused:?}");
    assert!(refused.stderr.contains("full") || refused.stderr.contains("space"), "{}", refused.stderr);
    // Whoever has a key is served.
    becomes(&bo, &key, 200).await;
    for key in &made {
        assert_eq!(statuses(&bo, key).await, [200, 200, 200]);
    }
    assert!(bo.process().ended().is_none());
    // With room it goes on as if nothing had been, by itself.
    fs::remove_file(&ballast).unwrap();
    let later = poll_state("keys are made again", Duration::from_secs(10), async || {
        let outcome = bo.ask(&["keys", "create", "--name", "n", "--owner", "o", "--scope", "drill"]).await;
        if outcome.code == Some(0) { Ok(outcome.json()["secret"].as_str().unwrap().to_owned()) } else { Err(outcome.stderr) }
    })
    .await;
    becomes(&bo, &later, 200).await;
    bo.process().terminate();
    bo.process().wait(Duration::from_secs(15)).await;
    bo.start().await;
    for key in made.iter().chain([&key, &later]) {
        becomes(&bo, key, 200).await;
    }
    drop(bo);
    drop(small);
}

#[tokio::test]
async fn a_clock_that_jumps_a_year_ends_keys_and_certificates_clearly_and_loses_nothing() {
    let cluster = Cluster::of(outside::drill().await);
    let mut bo = cluster.first("bo-1", [127, 0, 0, 1]).await;
    let clock = turnable_clock(&cluster, &mut bo);
    bo.start().await;
    let short = bo.key(&["drill"]).await;
    let forever = bo.key_record(&["drill"], &["--expires", "never"]).await["secret"].as_str().unwrap().to_owned();
    becomes(&bo, &short, 200).await;
    becomes(&bo, &forever, 200).await;

    let mark = bo.process().mark();
    fs::write(&clock, "+1y").unwrap();
    becomes(&bo, &short, 401).await;
    becomes(&bo, &forever, 200).await;
    // The operator's certificate is a year old there: refused, with the reason, and the node says so of its own.
    let refused = bo.ask(&["keys", "list"]).await;
    assert!(matches!(refused.code, Some(2 | 5)), "{refused:?}");
    assert!(refused.stderr.contains("out of date"), "{}", refused.stderr);
    bo.process()
        .wait_for_line_since(mark, "its certificate has expired", Duration::from_secs(60), |line| line.text.contains("expired"))
        .await;
    assert!(bo.process().ended().is_none());

    // A year ahead was a mistake: everything is as it was.
    fs::write(&clock, "+0").unwrap();
    becomes(&bo, &short, 200).await;
    bo.ask(&["keys", "list"]).await.expect_code(0);
    // A year back neither opens what was not open nor forgets anything.
    fs::write(&clock, "-1y").unwrap();
    becomes(&bo, &forever, 200).await;
    fs::write(&clock, "+0").unwrap();
    bo.process().terminate();
    assert_eq!(bo.process().wait(Duration::from_secs(15)).await.code(), Some(0), "{:?}", bo.process().lines());
    bo.start().await;
    becomes(&bo, &short, 200).await;
    assert_eq!(bo.ask(&["keys", "list"]).await.expect_code(0).json().as_array().unwrap().len(), 2);
}
