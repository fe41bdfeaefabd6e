//! Setting up a node: directories, configuration, certificates, and the cluster's authority where there is none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use horos_link::identity::{
    Authority, CA_CERTIFICATE, CERTIFICATE, Credentials, CredentialsError, KEY, Validity,
    authority::AuthorityError,
    request::{self, RequestError},
};
use horos_wire::{ClusterName, NodeId, NodeName, Role};
use jiff::{SignedDuration, Timestamp};

use crate::certificates::RENEW;
use crate::config::{self, BO_PORT, Config, DataDirError, FO_PORT, Problems, Seed, Settings, Sources, create_private, template};

/// Why a node was not set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// There is a node already. Nothing was changed.
    #[error("{} exists already: this directory belongs to a node; use another, or edit that file", .0.display())]
    Exists(PathBuf),
    /// The authority found is another cluster's. Nothing was changed.
    #[error("the authority in {} is that of cluster {found}, not {wanted}", path.display())]
    OtherCluster {
        /// The authority's directory.
        path: PathBuf,
        /// Its cluster.
        found: ClusterName,
        /// The one asked for.
        wanted: ClusterName,
    },
    /// The authority would stand inside the node's data. Nothing was changed.
    #[error("the authority's directory {} is inside the data directory: nodes must not reach the authority's key", .0.display())]
    AuthorityInside(PathBuf),
    /// A directory could not be made.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A file could not be read or written.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The authority would not.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No key or request could be made.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What was signed does not fit.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// What is there cannot be used.
    #[error(transparent)]
    Configuration(#[from] Problems),
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The data directory.
    pub data: PathBuf,
    /// The cluster; without it the authority's, else the default name.
    pub cluster: Option<ClusterName>,
    /// The node's role.
    pub role: Role,
    /// Its name; without it the role and -1.
    pub name: Option<NodeName>,
    /// Where it listens; without it the role's default.
    pub listen: Option<SocketAddr>,
    /// Nodes known from the start.
    pub seeds: Vec<Seed>,
    /// Where the authority is or is to be; `None` makes only a request.
    pub authority: Option<PathBuf>,
    /// The BO that owns `control.db`; without it this node, where it is a BO and the cluster's first.
    pub control_owner: Option<NodeName>,
}

/// What was set up.
#[derive(Clone, Debug)]
pub struct Made {
    /// The configuration file.
    pub config: PathBuf,
    /// Who the node is.
    pub node: NodeId,
    /// The authority's directory, when this run made the authority.
    pub authority: Option<PathBuf>,
    /// The operator's directory, when one was signed here.
    pub operator: Option<PathBuf>,
    /// The request to be signed elsewhere, when no authority was used.
    pub request: Option<PathBuf>,
}

/// The operator's certificate in a data directory.
pub const OPERATOR: &str = "operator";

/// Where the authority is unless said otherwise: beside the data directory, so that a copy of that never holds its key.
pub fn authority_beside(data: &Path) -> PathBuf {
    let mut name = data.file_name().unwrap_or_else(|| "horos".as_ref()).to_owned();
    name.push(".authority");
    data.with_file_name(name)
}

/// Sets up a node. What is there is never overwritten; the configuration is written last, so that a run that was cut short
/// can be repeated.
///
/// # Errors
/// [`InitError`] names the file and the next step.
pub fn initialise(options: &InitOptions, now: Timestamp) -> Result<Made, InitError> {
    let data = absolute(&options.data)?;
    let config = data.join(config::FILE);
    if config.exists() {
        return Err(InitError::Exists(config));
    }
    let authority = options.authority.as_deref().map(absolute).transpose()?;
    if let Some(inside) = authority.iter().find(|it| it.starts_with(&data)) {
        return Err(InitError::AuthorityInside(inside.clone()));
    }
    let defaults = Config::defaults(options.role, &data);
    let mut made = None;
    let (authority, cluster) = match authority {
        None => (None, options.cluster.clone().unwrap_or(defaults.cluster.name)),
        Some(path) => {
            let found = match Authority::load(&path) {
                Ok(found) => found,
                Err(AuthorityError::None(_)) => {
                    let cluster = options.cluster.clone().unwrap_or(defaults.cluster.name);
                    made = Some(path.clone());
                    Authority::create(&path, &cluster, Validity::days(now, Validity::AUTHORITY_DAYS))?
                }
                Err(other) => return Err(other.into()),
            };
            let cluster = found.cluster().clone();
            if let Some(wanted) = options.cluster.clone().filter(|wanted| *wanted != cluster) {
                return Err(InitError::OtherCluster { path, found: cluster, wanted });
            }
            (Some(found), cluster)
        }
    };
    let node = NodeId { cluster: cluster.clone(), role: options.role, name: options.name.clone().unwrap_or(defaults.node.name) };
    create_private(&data)?;
    let identity = data.join("identity");
    let mut operator = None;
    let mut request = None;
    match &authority {
        Some(authority) => {
            enrol(authority, &identity, &node, now)?;
            // Only where the authority is made: a person's key on every node would be taken with any of them.
            if made.is_some() {
                let directory = data.join(OPERATOR);
                enrol(
                    authority,
                    &directory,
                    &NodeId { cluster, role: Role::Operator, name: "admin".parse().expect("a literal name") },
                    now,
                )?;
                operator = Some(directory);
            }
        }
        None => request = Some(ask(&identity, &node)?),
    }
    let settings = Settings {
        cluster: node.cluster.clone(),
        name: node.name.clone(),
        role: node.role,
        listen: options.listen,
        seeds: options.seeds.clone(),
        // Only the first node can be known to be there.
        control_owner: options.control_owner.clone().or_else(|| (made.is_some() && node.role == Role::Bo).then(|| node.name.clone())),
    };
    write_new(&config, &template(&settings))?;
    Ok(Made { config, node, authority: made, operator, request })
}

/// A request with the key that is there, or with a new one.
pub(crate) fn ask(directory: &Path, id: &NodeId) -> Result<PathBuf, RequestError> {
    if directory.join(KEY).exists() { request::renew(directory, id) } else { request::create(directory, id) }
}

/// Makes a key in `directory` and a certificate for it at once, where there is none yet.
fn enrol(authority: &Authority, directory: &Path, id: &NodeId, now: Timestamp) -> Result<(), InitError> {
    if directory.join(CERTIFICATE).exists() && directory.join(CA_CERTIFICATE).exists() {
        return Ok(());
    }
    sign(authority, directory, id, now)
}

fn sign(authority: &Authority, directory: &Path, id: &NodeId, now: Timestamp) -> Result<(), InitError> {
    let path = ask(directory, id)?;
    let asked = fs::read_to_string(&path).map_err(|source| InitError::Io { path, source })?;
    let (certificate, _) = authority.sign(&asked, id, Validity::usual(now, id))?;
    request::install(directory, &certificate, authority.certificate_pem(), now)?;
    Ok(())
}

/// Signs anew what expires soon, with the authority that made it: nobody else looks after `up`'s certificates.
fn renew(authority: &Path, directories: &[PathBuf], now: Timestamp) -> Result<(), InitError> {
    for directory in directories.iter().filter(|directory| directory.join(CERTIFICATE).exists()) {
        // One that has expired is looked at as of its last second.
        let (id, until) = match Credentials::load(directory, now) {
            Ok(found) => (found.id().clone(), found.validity().not_after),
            Err(CredentialsError::Expired { not_after, .. }) => {
                let last = not_after - SignedDuration::from_secs(1);
                (Credentials::load(directory, last)?.id().clone(), not_after)
            }
            Err(other) => return Err(other.into()),
        };
        if until.duration_since(now) < RENEW {
            sign(&Authority::load(authority)?, directory, &id, now)?;
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, InitError> {
    std::path::absolute(path).map_err(|source| InitError::Io { path: path.to_owned(), source })
}

/// Writes a file that is not there yet, whole or not at all, and on disk when this returns.
fn write_new(path: &Path, text: &str) -> Result<(), InitError> {
    let failed = |source| InitError::Io { path: path.to_owned(), source };
    let partial = path.with_extension("yaml.partial");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    // A link, not a rename: it fails where a file has appeared meanwhile.
    fs::hard_link(&partial, path).map_err(failed)?;
    fs::remove_file(&partial).map_err(failed)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// What `up` runs: a BO and an FO under one directory, with the authority and an operator beside them.
#[derive(Clone, Debug)]
pub struct UpLayout {
    /// The BO's data directory.
    pub bo: PathBuf,
    /// The FO's.
    pub fo: PathBuf,
    /// The operator's identity directory.
    pub operator: PathBuf,
}

/// Sets up what [`UpLayout`] names where it is not there yet.
///
/// # Errors
/// As [`initialise`].
pub fn lay_out(root: &Path, now: Timestamp) -> Result<UpLayout, InitError> {
    let root = absolute(root)?;
    create_private(&root)?;
    let (bo, fo) = (root.join("bo"), root.join("fo"));
    let node = |data: &Path, role, seeds| InitOptions {
        data: data.to_owned(),
        cluster: None,
        role,
        name: None,
        listen: None,
        seeds,
        authority: Some(root.join("authority")),
        control_owner: Some("bo-1".parse().expect("a literal name")),
    };
    for (data, role) in [(&bo, Role::Bo), (&fo, Role::Fo)] {
        if data.join(config::FILE).exists() {
            Config::load(&Sources { data: data.clone(), role: Some(role), ..Sources::default() })?;
            renew(&root.join("authority"), &[data.join("identity"), data.join(OPERATOR)], now)?;
            continue;
        }
        let seeds = match role {
            Role::Fo => vec![Seed {
                name: Some("bo-1".parse().expect("a literal name")),
                role: Some(Role::Bo),
                address: SocketAddr::from(([127, 0, 0, 1], BO_PORT)).into(),
            }],
            _ => Vec::new(),
        };
        initialise(&node(data, role, seeds), now)?;
    }
    debug_assert_ne!(BO_PORT, FO_PORT, "both run on one machine");
    Ok(UpLayout { operator: bo.join(OPERATOR), bo, fo })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(data: &Path) -> InitOptions {
        InitOptions {
            data: data.to_owned(),
            cluster: Some("shop".parse().unwrap()),
            role: Role::Bo,
            name: None,
            listen: None,
            seeds: vec![],
            authority: Some(authority_beside(data)),
            control_owner: None,
        }
    }

    #[test]
    fn what_up_laid_out_long_ago_has_its_certificates_renewed() {
        let base = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let layout = lay_out(base.path(), now).unwrap();
        let until = |directory: &Path, now| Credentials::load(directory, now).unwrap().validity().not_after;
        let first = until(&layout.operator, now);
        lay_out(base.path(), now).unwrap();
        assert_eq!(until(&layout.operator, now), first);
        for days in [20, 500] {
            let later = now + SignedDuration::from_hours(24 * days);
            lay_out(base.path(), later).unwrap();
            assert!(until(&layout.operator, later) > later + RENEW, "{days}");
            assert!(until(&layout.fo.join("identity"), later) > later + RENEW, "{days}");
        }
    }

    #[test]
    fn a_node_that_was_set_up_can_start_and_its_operator_can_call() {
        let base = tempfile::tempdir().unwrap();
        let (data, now) = (base.path().join("bo"), Timestamp::now());
        let made = initialise(&options(&data), now).unwrap();
        let config = Config::load(&Sources { data: data.clone(), ..Sources::default() }).unwrap();
        assert_eq!(Credentials::load(&config.identity.dir, now).unwrap().id().to_uri(), "spiffe://shop/bo/bo-1");
        assert_eq!(Credentials::load(&made.operator.unwrap(), now).unwrap().id().role, Role::Operator);
        assert_eq!(made.authority, Some(base.path().join("bo.authority")));
        for path in [&data, &data.join("identity"), &base.path().join("bo.authority"), &data.join(config::FILE)] {
            assert_eq!(config::open_to_others(path).unwrap(), 0, "{}", path.display());
        }
    }

    #[test]
    fn the_first_node_owns_the_keys_and_the_others_are_told_who_does() {
        let base = tempfile::tempdir().unwrap();
        let owner = |data: &Path| Config::load(&Sources { data: data.to_owned(), ..Sources::default() }).unwrap().control.owner;
        let first = InitOptions { name: Some("bo-7".parse().unwrap()), ..options(&base.path().join("bo")) };
        initialise(&first, Timestamp::now()).unwrap();
        assert_eq!(owner(&first.data).as_str(), "bo-7");
        let second = InitOptions { data: base.path().join("b"), name: Some("bo-8".parse().unwrap()), ..first.clone() };
        initialise(&second, Timestamp::now()).unwrap();
        assert_eq!(owner(&second.data).as_str(), "bo-1", "the default, where nobody says");
        let third = InitOptions { data: base.path().join("c"), control_owner: Some("bo-7".parse().unwrap()), ..second };
        initialise(&third, Timestamp::now()).unwrap();
        assert_eq!(owner(&third.data).as_str(), "bo-7");
    }

    #[test]
    fn a_directory_that_has_a_node_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("bo");
        initialise(&options(&data), Timestamp::now()).unwrap();
        let before = fs::read(data.join("identity").join(KEY)).unwrap();
        assert!(matches!(initialise(&options(&data), Timestamp::now()), Err(InitError::Exists(_))));
        assert_eq!(fs::read(data.join("identity").join(KEY)).unwrap(), before);
    }

    #[test]
    fn the_authority_is_never_put_where_a_node_reads() {
        let base = tempfile::tempdir().unwrap();
        let inside = InitOptions { authority: Some(base.path().join("bo/ca")), ..options(&base.path().join("bo")) };
        assert!(matches!(initialise(&inside, Timestamp::now()), Err(InitError::AuthorityInside(_))));
        assert!(!base.path().join("bo").exists());
    }

    #[test]
    fn a_second_node_is_signed_by_the_same_authority_and_gets_no_operator() {
        let base = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        initialise(&options(&base.path().join("bo")), now).unwrap();
        let fo = InitOptions { data: base.path().join("fo"), role: Role::Fo, cluster: None, ..options(&base.path().join("bo")) };
        let made = initialise(&fo, now).unwrap();
        assert_eq!(made.node.to_uri(), "spiffe://shop/fo/fo-1");
        assert!(made.operator.is_none() && made.authority.is_none());
        let other =
            InitOptions { data: base.path().join("x"), cluster: Some("other".parse().unwrap()), ..options(&base.path().join("bo")) };
        assert!(matches!(initialise(&other, now), Err(InitError::OtherCluster { .. })));
    }

    #[test]
    fn up_lays_out_two_nodes_once() {
        let base = tempfile::tempdir().unwrap();
        let first = lay_out(base.path(), Timestamp::now()).unwrap();
        let key = fs::read(first.bo.join("identity").join(KEY)).unwrap();
        let second = lay_out(base.path(), Timestamp::now()).unwrap();
        assert_eq!(fs::read(second.bo.join("identity").join(KEY)).unwrap(), key);
        let fo = Config::load(&Sources { data: second.fo, role: Some(Role::Fo), ..Sources::default() }).unwrap();
        assert_eq!(fo.peers[0].address.to_string(), format!("127.0.0.1:{BO_PORT}"));
    }
}
