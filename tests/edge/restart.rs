//! Nodes come and go, and certificates are replaced, under load that none of it is seen in.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::load::{Load, Plan};
use super::served;
use crate::harness::http::{Ask, Session, Speaks};
use crate::harness::{Cluster, Node, Site, cli, outside, poll_state, scale};

/// Waits until `/readyz` of a node says `wanted`, or nobody answers where that is `None`.
async fn readiness(site: &Site, wanted: Option<u16>, within: Duration) {
    poll_state(&format!("{}: {wanted:?}", site.name), within, async || {
        let seen = match Session::open(site, Speaks::Http1).await {
            Ok(mut session) => session.ask(&Ask::get("/readyz")).await.ok().map(|answer| answer.status),
            Err(_) => None,
        };
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

async fn knows(node: &Node, key: &str) {
    let mut session = Session::open(&node.site(), Speaks::Http1).await.unwrap();
    poll_state(&format!("{} knows the key", node.name), Duration::from_secs(5), async || {
        match session.ask(&Ask::get("/drill/echo").key(key)).await.unwrap().status {
            200 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_rolling_restart_under_load_fails_no_request() {
    let (cluster, bo, one) = Cluster::pair(outside::drill().await).await;
    let mut two = cluster.join("fo-2", "fo", [127, 0, 0, 3], &[bo.address()]).await;
    two.start().await;
    two.sees("bo-1", "up").await;
    let key = bo.key_record(&["drill"], &["--per-minute", "1000000"]).await["secret"].as_str().unwrap().to_owned();
    let mut nodes = [one, two];
    for node in &mut nodes {
        // As an operator would who expects this much from one address.
        node.process().terminate();
        node.process().wait(Duration::from_secs(15)).await;
        node.set("HTTP_LIMITS__PER_ADDRESS", "0");
        // Several looks of the load balancer's, which shares two cores with everybody here.
        node.set("DRAIN__NOTICE", "1500ms");
        node.start().await;
        knows(node, &key).await;
        readiness(&node.site(), Some(200), Duration::from_secs(10)).await;
    }
    let sites = [nodes[0].site(), nodes[1].site()];
    let mut loads = Vec::new();
    for speaks in Speaks::ALL {
        // Requests that take a while, so that some are in hand whenever a node begins to stop.
        let path = "/drill/slow?n=20";
        loads.push(Load::begin(Plan { speaks, sites: &sites, key: &key, path, workers: 4, per_connection: None }).await);
    }
    for _ in 0..scale(1, 5) {
        for node in &mut nodes {
            let began = Instant::now();
            node.process().terminate();
            // Not ready first, and still serving: whoever spreads load has the time to look elsewhere.
            readiness(&node.site(), Some(503), Duration::from_secs(2)).await;
            let status = node.process().wait(Duration::from_secs(20)).await;
            assert_eq!(status.code(), Some(0), "{:?}", node.process().lines());
            eprintln!("{} stopped in {:?}", node.name, began.elapsed());
            node.start().await;
            readiness(&node.site(), Some(200), Duration::from_secs(10)).await;
            // Both take part again before the next one goes.
            let mut session = Session::open(&node.site(), Speaks::Http2).await.unwrap();
            assert_eq!(session.ask(&Ask::get("/drill/echo").key(&key)).await.unwrap().status, 200);
        }
    }
    for load in loads {
        let tally = load.end().await;
        assert_eq!(tally["failures"], 0, "{tally}");
        assert!(tally["done"].as_u64().unwrap() > 100, "{tally}");
        for site in &sites {
            assert!(tally["by_node"][&site.name].as_u64() > Some(0), "{tally}");
        }
    }
}

#[tokio::test]
async fn what_is_in_hand_is_answered_before_a_node_ends_and_new_connections_are_not_taken() {
    let (_cluster, mut bo) = served(|bo| bo.set("DRAIN__NOTICE", "1s")).await;
    let (site, key) = (bo.site(), bo.key(&["drill"]).await);
    let mut sessions = Vec::new();
    for speaks in Speaks::ALL {
        sessions.push((speaks, Session::open(&site, speaks).await.unwrap()));
    }
    // Longer than any notice that a stopping node gives, shorter than its drain.
    let path = "/drill/slow?n=4000";
    let asked: Vec<_> = sessions
        .into_iter()
        .map(|(speaks, mut session)| {
            let ask = Ask::get(path).key(&key);
            tokio::spawn(async move { (speaks, session.ask(&ask).await) })
        })
        .collect();
    let metrics = bo.key(&["metrics"]).await;
    poll_state("all three are in hand", Duration::from_secs(5), async || {
        let page = super::metrics(&bo, &metrics).await;
        let in_flight = crate::harness::http::metric(&page, "horos_http_requests_in_flight", &[]);
        // The look itself is one.
        if in_flight >= 4.0 { Ok(()) } else { Err(format!("{in_flight} in flight")) }
    })
    .await;
    let mut watch = Session::open(&site, Speaks::Http1).await.unwrap();
    let began = Instant::now();
    bo.process().terminate();
    // On a connection that is open it is still told; what is asked there is the last thing there.
    let told =
        poll_state("it says that it is not ready", Duration::from_secs(2), async || match watch.ask(&Ask::get("/readyz?verbose")).await {
            Ok(answer) if answer.status == 503 => Ok(answer),
            other => Err(format!("{other:?}")),
        })
        .await;
    assert!(told.body.contains("stop"), "{told:?}");
    for asked in asked {
        let (speaks, answer) = asked.await.unwrap();
        let answer = answer.unwrap_or_else(|error| panic!("{speaks:?}: {error:#}"));
        assert_eq!(answer.status, 200, "{speaks:?}: {answer:?}");
        eprintln!("{speaks:?}: answered {:?} after the signal", began.elapsed());
    }
    assert_eq!(bo.process().wait(Duration::from_secs(10)).await.code(), Some(0), "{:?}", bo.process().lines());
    assert!(Session::open(&site, Speaks::Http1).await.is_err());
}

/// A certificate for the site's name by an authority that openssl makes, as somebody who is not the cluster would.
async fn pair(dir: &std::path::Path, name: &str, days: &str, serial: u32) {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let openssl = async |args: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        command.args(args);
        cli::run(command).await.expect_code(0);
    };
    if !dir.join("ca.pem").exists() {
        let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let (ca, key) = (file("ca.pem"), file("ca-key.pem"));
        let args = ["req", "-x509", "-subj", "/CN=somebody", "-days", "30", "-keyout", &key, "-out", &ca];
        openssl(&[&args[..], &ec, &["-addext", "keyUsage=critical,keyCertSign"]].concat()).await;
    }
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let (key, request, extensions) = (file("new-key.pem"), file("request.pem"), file("extensions"));
    fs::write(&extensions, format!("subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n")).unwrap();
    openssl(&[&["req", "-subj", "/CN=site", "-keyout", &key, "-out", &request][..], &ec].concat()).await;
    let (ca, ca_key, out, serial) = (file("ca.pem"), file("ca-key.pem"), file("new.pem"), serial.to_string());
    let args =
        ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-days", days, "-set_serial", &serial, "-extfile", &extensions];
    openssl(&[&args[..], &["-out", &out]].concat()).await;
    let mut mode = fs::metadata(&key).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    fs::set_permissions(&key, mode).unwrap();
    // As certbot and its like replace them: each file whole, one after the other.
    fs::rename(&key, file("key.pem")).unwrap();
    fs::rename(&out, file("certificate.pem")).unwrap();
}

async fn certificates_seen(load: Load) -> (u64, Vec<String>) {
    let tally = load.end().await;
    assert_eq!((&tally["failures"], &tally["moved"]), (&json!(0), &json!({})), "{tally}");
    let seen = tally["certificates"].as_object().unwrap();
    (tally["done"].as_u64().unwrap(), seen.keys().map(|key| key.rsplit(' ').next().unwrap().to_owned()).collect())
}

#[tokio::test]
async fn certificates_in_files_are_replaced_under_load_and_bad_ones_are_not_taken_up() {
    let dir = crate::harness::data_dir();
    let name = "www.shop.test";
    pair(dir.path(), name, "10", 1001).await;
    let (_cluster, mut bo) = served(|bo| {
        bo.set("HTTP__TLS", "files");
        bo.set("HTTP__CERTIFICATE", dir.path().join("certificate.pem").to_str().unwrap());
        bo.set("HTTP__KEY", dir.path().join("key.pem").to_str().unwrap());
        bo.set("HTTP_LIMITS__PER_ADDRESS", "0");
        bo.set("HTTP_LIMITS__PER_IDENTITY", "0");
    })
    .await;
    let key = bo.key(&["drill"]).await;
    let site = Site { address: bo.address(), name: name.to_owned(), authority: dir.path().join("ca.pem") };
    let sites = [site.clone()];
    let mut loads = Vec::new();
    for speaks in Speaks::ALL {
        let plan = Plan { speaks, sites: &sites, key: &key, path: "/drill/echo", workers: 3, per_connection: Some(10) };
        loads.push(Load::begin(plan).await);
    }
    let shown = async |wanted: u32| {
        poll_state(&format!("certificate {wanted} is shown"), Duration::from_secs(10), async || {
            let openssl = openssl_serial(&site).await;
            if openssl == format!("{wanted:04X}") { Ok(()) } else { Err(openssl) }
        })
        .await;
    };
    shown(1001).await;
    for serial in 1002..1002 + scale(2, 20) {
        pair(dir.path(), name, "10", serial).await;
        shown(serial).await;
    }
    let last = 1001 + scale(2, 20);
    // Half a pair, and no certificate at all: said, and not taken up.
    for (file, bad) in [("certificate.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), ("key.pem", "")] {
        let path = dir.path().join(file);
        let good = fs::read(&path).unwrap();
        let mark = bo.process().mark();
        fs::write(dir.path().join("half"), bad).unwrap();
        fs::rename(dir.path().join("half"), &path).unwrap();
        let told = |line: &crate::harness::output::Line| line.text.contains("was not replaced");
        bo.process().wait_for_line_since(mark, "the certificate cannot be used", Duration::from_secs(10), told).await;
        shown(last).await;
        fs::write(dir.path().join("half"), good).unwrap();
        fs::rename(dir.path().join("half"), &path).unwrap();
    }
    for mut load in loads {
        load.sees_certificates(2).await;
        let (done, seen) = certificates_seen(load).await;
        assert!(done > 20, "{done}");
        assert!(seen.len() >= 2, "{seen:?}");
    }
}

/// The serial number that openssl is shown, in hexadecimal.
async fn openssl_serial(site: &Site) -> String {
    let script = format!(
        "openssl s_client -connect {} -servername {} -CAfile {} -verify_return_error </dev/null 2>/dev/null | openssl x509 -noout -serial",
        site.address,
        site.name,
        site.authority.display()
    );
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &script]);
    cli::run(shell).await.stdout.trim().trim_start_matches("serial=").to_owned()
}

#[tokio::test]
async fn the_nodes_own_certificate_is_renewed_under_load() {
    let (cluster, mut bo) = served(|bo| {
        bo.set("HTTP_LIMITS__PER_ADDRESS", "0");
        bo.set("HTTP_LIMITS__PER_IDENTITY", "0");
    })
    .await;
    let key = bo.key(&["drill"]).await;
    let sites = [bo.site()];
    let mut loads = Vec::new();
    for speaks in Speaks::ALL {
        let plan = Plan { speaks, sites: &sites, key: &key, path: "/drill/echo", workers: 3, per_connection: Some(10) };
        loads.push(Load::begin(plan).await);
    }
    let before = openssl_serial(&sites[0]).await;
    let mark = bo.process().mark();
    cluster.enrol("bo-1", "shop/bo/bo-1", &[]).await;
    bo.process().wait_for_line_since(mark, "read again", Duration::from_secs(5), |line| line.text.contains("read again")).await;
    poll_state("the new one is shown", Duration::from_secs(10), async || {
        let now = openssl_serial(&sites[0]).await;
        if now != before && !now.is_empty() { Ok(()) } else { Err(now) }
    })
    .await;
    for mut load in loads {
        load.sees_certificates(2).await;
        let (done, seen) = certificates_seen(load).await;
        assert!(done > 20, "{done}");
        assert_eq!(seen.len(), 2, "{seen:?}");
    }
}
