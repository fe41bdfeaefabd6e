//! What can be wrong with a node before it starts, each with its remedy. Changes nothing.

mod probe;

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpListener, ToSocketAddrs as _, UdpSocket},
    path::Path,
    time::{Duration, SystemTime},
};

use horos_edge::inspect;
use horos_link::identity::{CA_KEY, CERTIFICATE, Credentials, CredentialsError, KEY};
use horos_wire::{NodeId, Role};
use jiff::Timestamp;
use nix::sys::{
    resource::{Resource, getrlimit},
    statvfs::statvfs,
};
use serde::Serialize;

use probe::Probed;

use super::{OPERATOR, run::running_at};
use crate::{
    certificates::RENEW,
    config::{ByteSize, Config, DataDir, HttpTls, Listen, Sources, dialable, open_to_others},
    control,
    render::clean,
};

/// Free space below which a node should not start: a checkpoint and a few migrations.
const DISK_FAIL: ByteSize = ByteSize::mib(64);
/// Free space below which somebody should look.
const DISK_WARN: ByteSize = ByteSize::mib(1024);
/// Open files a node takes besides HTTP's connections: databases with their WALs, readers, sockets, and room for blobs.
const FILES: u64 = 1024;
/// How far ahead of the clock a file's time may be before the clock is at fault: coarse file systems round up.
const AHEAD: Duration = Duration::from_secs(120);

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checked {
    /// As it should be.
    Ok,
    /// Works, and somebody should look.
    Warn,
    /// The node would not start, or not work.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub state: Checked,
    /// What was found.
    pub detail: String,
    /// What to do, where there is something.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: Checked::Ok, detail: detail.into(), fix: None }
    }

    fn warn(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: Checked::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: Checked::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }

    /// The check as a line or two for people.
    pub fn text(&self) -> String {
        let mark = match self.state {
            Checked::Ok => "ok  ",
            Checked::Warn => "warn",
            Checked::Fail => "FAIL",
        };
        let fix = self.fix.as_deref().map_or_else(String::new, |fix| format!("      {}\n", clean(fix)));
        format!("{mark}  {:<14} {}\n{fix}", self.name, clean(&self.detail))
    }
}

/// Looks at everything that can be looked at without a node running.
pub fn doctor(sources: &Sources, now: Timestamp) -> Vec<Check> {
    let mut checks = Vec::new();
    let config = match Config::load(sources) {
        Ok(config) => {
            let node = &config.node;
            checks.push(Check::ok("configuration", format!("{} {} of cluster {}", node.role, node.name, config.cluster.name)));
            checks.extend(advertised(&config.listen));
            checks.extend(peers(&config));
            Some(config)
        }
        Err(problems) => {
            checks.extend(problems.iter().map(|it| Check::fail("configuration", it.to_string(), "correct it there and run doctor again")));
            None
        }
    };
    let data = &sources.data;
    checks.extend(permissions(data));
    let running = DataDir::is_held(data);
    checks.push(disk(data));
    checks.push(writable(data));
    if let Some(config) = &config {
        let id = NodeId { cluster: config.cluster.name.clone(), role: config.node.role, name: config.node.name.clone() };
        checks.push(certificate("certificate", &config.identity.dir, &id, now));
        if data.join(OPERATOR).is_dir() {
            let operator = Credentials::load(&data.join(OPERATOR), now);
            checks.push(match operator {
                Ok(found) => valid_for("operator", &found, now),
                // The node runs without; whoever wants to ask it must bring a certificate.
                Err(error) => Check::warn(
                    "operator",
                    error.to_string(),
                    "`{bin} identity request --as CLUSTER/operator/NAME --dir DIR`, have it signed, `{bin} identity install`",
                ),
            });
        }
        checks.extend(https(config, now));
        checks.extend(control_db(config));
        checks.extend(authority(&[data, &config.identity.dir, &data.join(OPERATOR), &data.join("authority")]));
        checks.extend(ports(config, running.then(|| running_at(data).unwrap_or(config.listen.cluster))));
        checks.push(clock(&[&config.identity.dir.join(CERTIFICATE), &data.join(crate::config::FILE)], now));
    }
    let connections = config.as_ref().map_or(0, |config| u64::from(config.http_limits.connections));
    // A node takes as many as it may have, whatever it is given at first.
    checks.push(open_files(getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard), FILES + connections));
    checks
}

/// Whether the owner of `control.db` has its own file.
fn control_db(config: &Config) -> Option<Check> {
    (control::is_owner(config) && control::is_replica(&config.data)).then(|| {
        let detail = format!("control.owner names this node, but its {} is another owner's replica", control::FILE);
        Check::fail("control", detail, "`{bin} restore` a backup of the owner's, or correct control.owner")
    })
}

/// Whether other nodes are told where to dial this one.
fn advertised(listen: &Listen) -> Vec<Check> {
    let (name, cluster) = ("advertised", listen.cluster);
    let fix = "add an address that others reach this node by under listen.advertise in horos.yaml";
    if listen.advertise.is_empty() {
        let detail = format!("{cluster} is every address, and others are told none: only who has this node among its seeds finds it");
        let hidden = cluster.ip().is_unspecified().then(|| Check::warn(name, detail, fix));
        return hidden.into_iter().collect();
    }
    let checks = listen.advertise.iter().map(|place| {
        let found: Vec<_> = match (place.known(cluster.port()), (&*place.host, place.port.unwrap_or_default()).to_socket_addrs()) {
            (Some(known), _) => vec![known],
            (None, Ok(found)) => found.filter(|address| dialable(address.ip())).collect(),
            (None, Err(error)) => return Check::fail(name, format!("{place}: {error}"), fix),
        };
        let shown = found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        match found.iter().find(|address| address.ip().is_loopback() && !cluster.ip().is_loopback()) {
            Some(_) => Check::warn(name, format!("{shown} leads nodes on other machines to themselves"), fix),
            None if found.is_empty() => Check::fail(name, format!("{place} has no address that could be dialled"), fix),
            None => Check::ok(name, format!("others are told to dial {shown}")),
        }
    });
    checks.collect()
}

/// Who is known from the start, and whether they answer.
fn peers(config: &Config) -> Vec<Check> {
    let name = "peers";
    if config.peers.is_empty() {
        let lone = Check::warn(name, "an FO without seeds finds no BO", "add one under peers.seeds in horos.yaml");
        return if config.node.role == Role::Fo { vec![lone] } else { Vec::new() };
    }
    let endpoints: Vec<_> = config.peers.iter().map(|seed| seed.address.clone()).collect();
    let checks = probe::probe(&endpoints).into_iter().zip(&endpoints).map(|(probed, endpoint)| match probed {
        Probed::Answered(after) => Check::ok(name, format!("{endpoint} answers in {} ms", after.as_millis())),
        // It may just not run yet: no reason not to start.
        Probed::Silent => Check::warn(
            name,
            format!("{endpoint} does not answer"),
            "does it run? does every firewall on the way let UDP through, both ways?",
        ),
        Probed::Failed(why) => {
            Check::warn(name, format!("{endpoint}: {why}"), "correct it under peers.seeds in horos.yaml, or the name service")
        }
    });
    checks.collect()
}

/// The authority's key in a node's data signs whatever a thief of that node likes.
fn authority(places: &[&Path]) -> Option<Check> {
    let key = places.iter().map(|place| place.join(CA_KEY)).find(|path| path.exists())?;
    Some(Check::fail(
        "authority",
        format!("{} is the cluster authority's key, in reach of a node", key.display()),
        "move it to the machine of whoever signs; --authority names its directory",
    ))
}

fn valid_for(name: &'static str, found: &Credentials, now: Timestamp) -> Check {
    let until = found.validity().not_after;
    let left = until.duration_since(now);
    let detail = format!("{} until {until}, {} days", found.id().to_uri(), left.as_hours() / 24);
    if left < RENEW {
        Check::warn(name, detail, "`{bin} identity request`, have it signed, `{bin} identity install`")
    } else {
        Check::ok(name, detail)
    }
}

/// The certificate that HTTPS presents: whether it can be, until when, and for which names.
fn https(config: &Config, now: Timestamp) -> Option<Check> {
    let name = "https";
    let http = &config.http;
    let own = (config.identity.dir.join(CERTIFICATE), config.identity.dir.join(KEY));
    let (certificate, key) = match http.tls {
        HttpTls::Plain => return Some(Check::warn(name, "plain HTTP, on loopback", "for anything but trying, choose another http.tls")),
        HttpTls::Development => {
            return Some(Check::warn(name, "a certificate that the node signs itself", "for anything but trying, choose another http.tls"));
        }
        // It is fetched when the node runs.
        HttpTls::Acme => return Some(Check::ok(name, format!("from {} for {}", http.acme_directory, http.acme_domains.join(" ")))),
        HttpTls::Files => http.files().map(|(certificate, key)| (certificate.clone(), key.clone()))?,
        HttpTls::Cluster => own,
    };
    Some(match inspect(&certificate, &key, now) {
        Ok(found) => {
            let left = found.not_after.duration_since(now);
            let detail = format!("for {} until {}, {} days", found.names.join(" "), found.not_after, left.as_hours() / 24);
            match http.tls {
                // The node's own is looked at under its own name, and that renewal is said there.
                HttpTls::Cluster if !found.names.iter().any(|it| it == "localhost") => Check::warn(
                    name,
                    format!("{detail}; not for localhost"),
                    "only clients on this machine miss it: `{bin} identity request`, have it signed anew, `{bin} identity install`",
                ),
                HttpTls::Files if left < RENEW => Check::warn(name, detail, "replace both files; the node takes them up by itself"),
                _ => Check::ok(name, detail),
            }
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Check::fail(name, format!("{error}{cause}"), "http.certificate and http.key name the files; `http.tls: cluster` needs none")
        }
    })
}

fn certificate(name: &'static str, directory: &Path, id: &NodeId, now: Timestamp) -> Check {
    match Credentials::load(directory, now) {
        Ok(found) if found.id() != id => Check::fail(
            name,
            format!("{} is for {}, the configuration says {}", directory.display(), found.id().to_uri(), id.to_uri()),
            "correct the configuration, or `{bin} identity request` with the right name",
        ),
        Ok(found) => valid_for(name, &found, now),
        Err(error) => {
            let fix = match &error {
                CredentialsError::NotYetValid { .. } => "set this machine's clock (timedatectl): the certificate is from its future",
                CredentialsError::NoKey(_) => "`{bin} init` or `{bin} identity request` makes a key",
                CredentialsError::AuthorityKeyHere(_) => "move ca-key.pem to the machine of whoever signs",
                _ => "`{bin} identity request`, have it signed, `{bin} identity install`",
            };
            Check::fail(name, error.to_string(), fix)
        }
    }
}

/// Whether the node can have its addresses, or has them: `running` is where one that runs says it listens.
fn ports(config: &Config, running: Option<SocketAddr>) -> Vec<Check> {
    let listen = &config.listen;
    if let Some(running) = running {
        let public = listen.public.map_or_else(String::new, |public| format!(", and on {public} for the public"));
        return vec![Check::ok("port", format!("the node runs, on UDP and TCP {running}{public}"))];
    }
    [Some(listen.cluster), listen.public].into_iter().flatten().map(port).collect()
}

/// Whether both halves of a port are free: nodes, the command line and HTTP/3 come by UDP, HTTP/1.1 and HTTP/2 by TCP.
fn port(address: SocketAddr) -> Check {
    let name = "port";
    let tcp = TcpListener::bind(address).map(drop).map_err(|error| ("TCP", error));
    let udp = UdpSocket::bind(address).map(drop).map_err(|error| ("UDP", error));
    match tcp.and(udp) {
        Ok(()) => Check::ok(name, format!("UDP and TCP {address} are free")),
        Err((half, error)) => {
            let fix = match error.kind() {
                ErrorKind::AddrInUse => "stop what uses it (`ss -tulpn` tells), or choose another under listen",
                ErrorKind::AddrNotAvailable => "this machine has no such address; [::] listens on all",
                ErrorKind::PermissionDenied => "ports under 1024 need CAP_NET_BIND_SERVICE; choose a higher one under listen",
                _ => "choose another under listen",
            };
            Check::fail(name, format!("{half} {address}: {error}"), fix)
        }
    }
}

fn disk(data: &Path) -> Check {
    let name = "disk space";
    match statvfs(data) {
        Ok(found) => free_space(found.blocks_available().saturating_mul(found.fragment_size())),
        Err(errno) => {
            Check::fail(name, format!("{}: {errno}", data.display()), "`{bin} init` makes the data directory, --data names another")
        }
    }
}

fn free_space(free: u64) -> Check {
    let detail = format!("{} MiB free", free >> 20);
    let fix = "free some, or move the data directory";
    if free < DISK_FAIL.0 {
        Check::fail("disk space", detail, fix)
    } else if free < DISK_WARN.0 {
        Check::warn("disk space", detail, fix)
    } else {
        Check::ok("disk space", detail)
    }
}

/// Writes a file and takes it away again: permissions alone do not tell of a read-only mount or a used-up quota.
fn writable(data: &Path) -> Check {
    let probe = data.join(format!(".doctor-{}", std::process::id()));
    let written = fs::write(&probe, b"doctor").and_then(|()| fs::File::open(&probe)?.sync_all());
    let removed = fs::remove_file(&probe);
    match written.and(removed) {
        Ok(()) => Check::ok("writable", data.display().to_string()),
        Err(error) => Check::fail("writable", format!("{}: {error}", data.display()), "the user that runs the node must own the directory"),
    }
}

fn permissions(data: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    for path in [data.to_owned(), data.join("identity"), data.join("operator"), data.join(crate::config::FILE)] {
        if let Ok(bits @ 1..) = open_to_others(&path) {
            let detail = format!("{} is open to others (mode bits {bits:03o})", path.display());
            checks.push(Check::warn("permissions", detail, format!("chmod go= {}", path.display())));
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok("permissions", "for the owner only"));
    }
    checks
}

/// A clock that stands behind what it wrote itself was set back.
fn clock(written: &[&Path], now: Timestamp) -> Check {
    let now_system: SystemTime = now.into();
    let ahead = written
        .iter()
        .filter_map(|path| Some((path, fs::metadata(path).ok()?.modified().ok()?.duration_since(now_system).ok()?)))
        .filter(|(_, ahead)| *ahead > AHEAD)
        .max_by_key(|(_, ahead)| *ahead);
    match ahead {
        Some((path, by)) => Check::fail(
            "clock",
            format!("it is {now} here, but {} was written {} s later than that", path.display(), by.as_secs()),
            "set this machine's clock (timedatectl), certificates depend on it",
        ),
        None => Check::ok("clock", now.to_string()),
    }
}

fn open_files(limit: u64, wanted: u64) -> Check {
    if limit >= wanted {
        Check::ok("open files", format!("{limit} allowed"))
    } else {
        let fix = "ulimit -Hn, LimitNOFILE in the unit, or a lower http-limits.connections";
        Check::warn("open files", format!("only {limit} allowed, a busy node takes {wanted}"), fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::init::{InitOptions, authority_beside, initialise};

    fn state(checks: &[Check], name: &str) -> Checked {
        checks.iter().filter(|it| it.name == name).map(|it| it.state).max().unwrap()
    }

    fn node() -> (tempfile::TempDir, Sources) {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("bo");
        let options = InitOptions {
            authority: Some(authority_beside(&data)),
            data: data.clone(),
            cluster: None,
            role: Role::Bo,
            name: None,
            listen: Some("127.0.0.1:0".parse().unwrap()),
            seeds: vec![],
            control_owner: None,
        };
        initialise(&options, Timestamp::now()).unwrap();
        (base, Sources { data, ..Sources::default() })
    }

    #[test]
    fn a_fresh_node_is_well() {
        let (_base, sources) = node();
        let checks = doctor(&sources, Timestamp::now());
        assert!(checks.iter().all(|it| it.state != Checked::Fail), "{checks:#?}");
    }

    #[test]
    fn each_fault_is_found_by_name() {
        let (_base, mut sources) = node();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let public = sources.clone().flag("listen.public", Some(taken.local_addr().unwrap()), "HOROS__LISTEN__PUBLIC");
        assert_eq!(state(&doctor(&public, Timestamp::now()), "port"), Checked::Fail);
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        sources = sources.flag("listen.cluster", Some(taken.local_addr().unwrap()), "--listen");
        assert_eq!(state(&doctor(&sources, Timestamp::now()), "port"), Checked::Fail);
        let running = DataDir::hold(&sources.data).unwrap();
        assert_eq!(state(&doctor(&sources, Timestamp::now()), "port"), Checked::Ok);
        drop(running);
        let later = Timestamp::now() + Duration::from_secs(80 * 86_400);
        assert_eq!(state(&doctor(&sources, later), "certificate"), Checked::Warn);
        assert_eq!(state(&doctor(&sources, later), "operator"), Checked::Warn);
        assert_eq!(state(&doctor(&sources, later + Duration::from_secs(20 * 86_400)), "certificate"), Checked::Fail);
        let earlier = Timestamp::now() - Duration::from_secs(86_400);
        assert_eq!(state(&doctor(&sources, earlier), "clock"), Checked::Fail);
        sources = sources.flag("node.name", Some("bo-9"), "--name");
        assert_eq!(state(&doctor(&sources, Timestamp::now()), "certificate"), Checked::Fail);
        sources.data = sources.data.join("none");
        assert_eq!(state(&doctor(&sources, Timestamp::now()), "configuration"), Checked::Fail);
        assert_eq!(state(&doctor(&sources, Timestamp::now()), "writable"), Checked::Fail);
    }

    #[test]
    fn an_owner_that_has_only_a_replica_of_control_db_is_found() {
        let (_base, sources) = node();
        let found = || doctor(&sources, Timestamp::now()).into_iter().any(|it| it.name == "control" && it.state == Checked::Fail);
        assert!(!found());
        let file = horos_store::rusqlite::Connection::open(sources.data.join(control::FILE)).unwrap();
        file.execute_batch("CREATE TABLE _horos_replica (a)").unwrap();
        assert!(found());
    }

    #[test]
    fn the_certificate_of_https_is_judged_as_the_port_would() {
        let (_base, sources) = node();
        let now = Timestamp::now();
        let found = doctor(&sources, now).into_iter().find(|it| it.name == "https").unwrap();
        assert!(found.state == Checked::Ok && found.detail.contains("localhost"), "{found:?}");
        let identity = sources.data.join("identity");
        let files = |key: &Path| {
            sources
                .clone()
                .flag("http.tls", Some("files"), "--tls")
                .flag("http.certificate", Some(identity.join(CERTIFICATE).display()), "--certificate")
                .flag("http.key", Some(key.display()), "--key")
        };
        assert_eq!(state(&doctor(&files(&identity.join(KEY)), now), "https"), Checked::Ok);
        let soon = now + Duration::from_secs(80 * 86_400);
        assert_eq!(state(&doctor(&files(&identity.join(KEY)), soon), "https"), Checked::Warn);
        // Somebody else's key.
        let other = sources.data.join(OPERATOR).join(KEY);
        assert_eq!(state(&doctor(&files(&other), now), "https"), Checked::Fail);
    }

    #[test]
    fn the_authoritys_key_in_a_nodes_reach_and_a_silent_seed_are_found() {
        let (_base, mut sources) = node();
        fs::write(sources.data.join(CA_KEY), "key").unwrap();
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        sources = sources.flag("peers.seeds", Some(silent.local_addr().unwrap()), "--seed");
        let checks = doctor(&sources, Timestamp::now());
        assert_eq!((state(&checks, "authority"), state(&checks, "peers")), (Checked::Fail, Checked::Warn));
        fs::remove_file(sources.data.join(CA_KEY)).unwrap();
        assert!(doctor(&sources, Timestamp::now()).iter().all(|it| it.name != "authority"));
    }

    #[test]
    fn a_node_that_nobody_is_told_to_dial_is_found() {
        let (_base, sources) = node();
        let found = |listen: &str, advertise: &str| {
            let sources = sources.clone().flag("listen.cluster", Some(listen), "--listen");
            let sources = sources.flag("listen.advertise", Some(advertise), "HOROS__LISTEN__ADVERTISE");
            let checks = doctor(&sources, Timestamp::now());
            checks.into_iter().filter(|it| it.name == "advertised").map(|it| (it.state, it.detail)).collect::<Vec<_>>()
        };
        assert_eq!(found("127.0.0.1:0", ""), [], "that address is told");
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let checks = found(listen, "");
            assert!(checks[0].0 == Checked::Warn && checks[0].1.contains("every address"), "{checks:?}");
        }
        let checks = found("0.0.0.0:7411", "192.0.2.7, [2001:db8::7]:9000");
        let told = ["192.0.2.7:7411", "[2001:db8::7]:9000"].map(|place| (Checked::Ok, format!("others are told to dial {place}")));
        assert_eq!(checks, told);
        assert_eq!(found("0.0.0.0:0", "127.0.0.1:7411")[0].0, Checked::Warn, "nobody elsewhere would get here");
        assert_eq!(found("0.0.0.0:0", "bo-1.invalid:7400")[0].0, Checked::Fail);
    }

    #[test]
    fn limits_are_judged_by_what_a_node_takes() {
        assert_eq!(free_space(1 << 20).state, Checked::Fail);
        assert_eq!(free_space(100 << 20).state, Checked::Warn);
        assert_eq!(free_space(2 << 30).state, Checked::Ok);
        assert_eq!((open_files(256, FILES).state, open_files(65_536, FILES).state), (Checked::Warn, Checked::Ok));
    }
}
