//! Clusters for tests: an authority in a temporary directory, holders enrolled the documented way, and
//! certificates that the authority would never sign.

use std::{fs, path::PathBuf};

use horos_wire::{NodeId, Role};
use jiff::Timestamp;
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

use super::{Authority, CA_KEY, Credentials, Validity, request};

pub(crate) fn id(cluster: &str, role: Role, name: &str) -> NodeId {
    NodeId { cluster: cluster.parse().unwrap(), role, name: name.parse().unwrap() }
}

pub(crate) fn days(n: u32) -> Validity {
    Validity::days(Timestamp::now(), n)
}

pub(crate) struct Cluster {
    pub(crate) root: TempDir,
    pub(crate) authority: Authority,
}

impl Cluster {
    pub(crate) fn new(name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let authority = Authority::create(&root.path().join("ca"), &name.parse().unwrap(), days(Validity::AUTHORITY_DAYS)).unwrap();
        Self { root, authority }
    }

    pub(crate) fn id(&self, role: Role, name: &str) -> NodeId {
        NodeId { cluster: self.authority.cluster().clone(), role, name: name.parse().unwrap() }
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Request, sign, install. Enrolling again keeps the key and brings another certificate.
    pub(crate) fn enrol(&self, id: &NodeId) -> (PathBuf, Credentials) {
        self.enrol_for(id, Validity::usual(Timestamp::now(), id))
    }

    pub(crate) fn enrol_for(&self, id: &NodeId, validity: Validity) -> (PathBuf, Credentials) {
        let directory = self.directory(id.name.as_str());
        let request = if directory.join(super::KEY).exists() { request::renew } else { request::create };
        let request = fs::read_to_string(request(&directory, id).unwrap()).unwrap();
        let (certificate, _) = self.authority.sign(&request, id, validity).unwrap();
        let credentials = request::install(&directory, &certificate, self.authority.certificate_pem(), Timestamp::now()).unwrap();
        (directory, credentials)
    }

    /// Signs whatever `params` say with the authority's key, as a thief of the key could.
    pub(crate) fn forge(&self, params: &CertificateParams) -> Shown {
        let key = KeyPair::from_pem(&fs::read_to_string(self.root.path().join("ca").join(CA_KEY)).unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(self.authority.certificate_pem(), key).unwrap();
        let own = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&own, &issuer).unwrap();
        Shown { chain: vec![certificate.der().clone()], key: own }
    }
}

/// A certificate with its key, checked by nobody.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Shown {
    pub(crate) fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}
