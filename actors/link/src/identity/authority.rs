//! The cluster's authority: the key that says who belongs.
//!
//! Used by the command line on the machine of whoever holds the key (`horos init`, `horos identity
//! sign | revoke | list`), never by a running node. Its directory is not a node's.
//!
//! The authority's certificate is narrow on purpose. It may sign no other authority (path length 0), and its name
//! constraints allow DNS names below `<cluster>.horos.invalid`, which never resolves (RFC 2606), and this machine by
//! its names for itself: `localhost`, 127.0.0.1 and ::1. No other name and no other address: importing it into a browser
//! lets nobody pose as a web site. A node's certificate bears the names of its own machine too, so that whoever believes
//! `ca.pem` reaches the node by HTTPS from where it runs. None of them is an identity, which is the one URI alone; the
//! constraint on that is in [`crate::tls`], since URI constraints are not implemented by TLS libraries.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use horos_wire::{ClusterName, NodeId, Role};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SigningKey, SubjectPublicKeyInfo, string::Ia5String,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{
    CA_CERTIFICATE, CA_KEY, CERTIFICATE, DENIED, Fingerprint, ISSUED, KEY, MAX_PEM, Serial, Validity,
    certificate::Claims,
    credentials::{Trust, TrustError},
    files::{self, FileError},
    request::{self, Request, RequestError, cluster_name, common_name, uri_name},
    revocation::{Denied, DenyError, Entry, MAX_DENY_LIST, SignedList},
};

/// A machine's name for itself (RFC 6761 §6.3).
const LOCALHOST: &str = "localhost";

/// Largest list of issued certificates, in bytes: some 70,000 of them.
const MAX_ISSUED: u64 = 16 * 1024 * 1024;

/// Why the authority did not do what was asked. Nothing was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no authority in the directory.
    #[error("there is no cluster authority in {}; `horos init` makes one, or name its directory", .0.display())]
    None(PathBuf),
    /// The directory is a node's.
    #[error("{} is a node's identity directory; keep the authority in one of its own, off the nodes", .0.display())]
    NodeHere(PathBuf),
    /// The authority's files cannot be used.
    #[error("{}: {reason}; restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The request is not to be signed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The request is for another cluster.
    #[error("the request is for cluster {asked}, and this is the authority of {cluster}")]
    OtherCluster {
        /// The cluster in the request.
        asked: ClusterName,
        /// The authority's own.
        cluster: ClusterName,
    },
    /// The certificate would count for longer than the authority's own.
    #[error("the authority itself counts until {authority} only, and this certificate would until {asked}; ask for fewer days")]
    Outlives {
        /// When the authority's certificate ends.
        authority: Timestamp,
        /// When the new one would.
        asked: Timestamp,
    },
    /// The certificate would never count.
    #[error("a certificate cannot end before it begins")]
    EmptyValidity,
    /// Nothing that is still valid was issued under that name.
    #[error("no certificate of {} is in force; `horos identity list` shows what was signed", .0.to_uri())]
    NotIssued(Box<NodeId>),
    /// The deny list could not be made.
    #[error(transparent)]
    Deny(#[from] DenyError),
    /// The library refused to sign.
    #[error("cannot sign")]
    Sign(#[source] rcgen::Error),
}

/// The cluster's signing key, its certificate, and the record of what they signed.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    trust: Trust,
    pem: String,
    not_after: Timestamp,
    /// Whether its certificate allows the names of a machine for itself; one made before it did does not.
    loopback: bool,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// Whose.
    pub id: NodeId,
    /// Its serial number.
    pub serial: Serial,
    /// SHA-256 of it.
    pub fingerprint: Fingerprint,
    /// When it counts.
    pub validity: Validity,
}

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// Every certificate of this identity that is still in force.
    Identity(NodeId),
    /// One certificate, by serial number.
    Serial(Serial),
    /// One certificate, by fingerprint.
    Fingerprint(Fingerprint),
}

impl Authority {
    /// Makes the authority of `cluster` in `directory`: the key once and for good, the certificate beside it.
    ///
    /// # Errors
    /// [`FileError::Exists`] when there is one: a second key would split the cluster.
    pub fn create(directory: &Path, cluster: &ClusterName, validity: Validity) -> Result<Self, AuthorityError> {
        files::private_directory(directory)?;
        if directory.join(KEY).exists() || directory.join(CERTIFICATE).exists() {
            return Err(AuthorityError::NodeHere(directory.to_owned()));
        }
        let lock = files::lock(directory)?;
        if directory.join(CA_KEY).exists() {
            return Err(FileError::Exists(directory.join(CA_KEY)).into());
        }
        let key = request::new_key().map_err(AuthorityError::Sign)?;
        let mut params = authority_params(cluster).map_err(AuthorityError::Sign)?;
        date(&mut params, Serial::random(), validity)?;
        let certificate = params.self_signed(&key).map_err(AuthorityError::Sign)?;
        // The key last: it is what is never overwritten, so a crash before it leaves room to try again.
        files::replace(&directory.join(CA_CERTIFICATE), files::PUBLIC, &certificate.pem())?;
        files::create(&directory.join(CA_KEY), files::PRIVATE, &key.serialize_pem())?;
        drop(lock);
        Self::load(directory)
    }

    /// Opens the authority in `directory`.
    ///
    /// # Errors
    /// [`AuthorityError::None`] when there is none, else which file is wrong and how.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let missing = |error: FileError| if error.is_missing() { AuthorityError::None(directory.to_owned()) } else { error.into() };
        let (key_path, path) = (directory.join(CA_KEY), directory.join(CA_CERTIFICATE));
        let key = files::read_secret(&key_path, MAX_PEM).map_err(missing)?;
        let pem = files::read(&path, MAX_PEM).map_err(missing)?;
        let damaged = |path: &Path, reason: &str| AuthorityError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let key = KeyPair::from_pem(&key).ok().filter(|key| key.algorithm() == &PKCS_ECDSA_P256_SHA256);
        let key = key.ok_or_else(|| damaged(&key_path, "no ECDSA P-256 private key"))?;
        let trust = Trust::parse(&pem).map_err(|error: TrustError| damaged(&path, &error.to_string()))?;
        // During a change of authority the bundle lists two; ours is the one with our key.
        let spki = key.subject_public_key_info();
        let own = trust.keys().iter().position(|known| *known == spki);
        let own = own.ok_or_else(|| damaged(&path, "it does not belong to the key beside it"))?;
        let claims = Claims::of(&trust.certificates()[own]).map_err(|error| damaged(&path, &error.to_string()))?;
        let loopback = allows_loopback(&trust.certificates()[own]);
        let params = authority_params(trust.cluster()).map_err(AuthorityError::Sign)?;
        let issuer = Issuer::new(params, key);
        Ok(Self { directory: directory.to_owned(), pem, not_after: claims.not_after, loopback, issuer, trust })
    }

    /// The cluster this is the authority of.
    pub fn cluster(&self) -> &ClusterName {
        self.trust.cluster()
    }

    /// The authority's certificate: what goes to the asker together with the signed one.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// When the authority's own certificate ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whom the authority's certificate makes believable: what a deny list is checked against.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Signs `request` (PEM) for `expected`, which is the signer's own statement of who asks.
    ///
    /// Of the request only the public key is taken over; names and uses are written anew. The certificate
    /// is on the list of issued ones before this returns it, so that it can always be revoked.
    ///
    /// # Errors
    /// [`RequestError::Mismatch`] when the request asks for another identity than `expected`.
    pub fn sign(&self, request: &str, expected: &NodeId, validity: Validity) -> Result<(String, Issued), AuthorityError> {
        let request = Request::parse(request)?;
        request.confirm(expected)?;
        if expected.cluster != *self.cluster() {
            return Err(AuthorityError::OtherCluster { asked: expected.cluster.clone(), cluster: self.cluster().clone() });
        }
        if validity.not_after > self.not_after {
            return Err(AuthorityError::Outlives { authority: self.not_after, asked: validity.not_after });
        }
        let validity = validity.whole_seconds();
        let serial = Serial::random();
        let sign = || -> Result<rcgen::Certificate, AuthorityError> {
            let mut params = holder_params(expected, self.loopback).map_err(AuthorityError::Sign)?;
            date(&mut params, serial, validity)?;
            let key = SubjectPublicKeyInfo::from_der(&request.spki).map_err(AuthorityError::Sign)?;
            params.signed_by(&key, &self.issuer).map_err(AuthorityError::Sign)
        };
        let certificate = sign()?;
        let issued = Issued { id: expected.clone(), serial, fingerprint: Fingerprint::of(certificate.der()), validity };
        let _lock = files::lock(&self.directory)?;
        let mut text = self.issued_text()?;
        text.push_str(&issued.line());
        files::replace(&self.directory.join(ISSUED), files::PRIVATE, &text)?;
        Ok((certificate.pem(), issued))
    }

    /// Everything signed here, oldest first.
    ///
    /// # Errors
    /// [`AuthorityError::Damaged`] names the line that cannot be read.
    pub fn issued(&self) -> Result<Vec<Issued>, AuthorityError> {
        let text = self.issued_text()?;
        let parse = |(number, line)| {
            Issued::parse(line).ok_or_else(|| AuthorityError::Damaged {
                path: self.directory.join(ISSUED),
                reason: format!("line {} cannot be read", number + 1),
            })
        };
        text.lines().enumerate().map(parse).collect()
    }

    /// Puts `what` on the deny list, under the next number, and returns the signed text for the nodes.
    ///
    /// Certificates that have expired for a day leave the list: no clock in the cluster takes them any more.
    ///
    /// # Errors
    /// [`AuthorityError::NotIssued`] when an identity has no certificate in force. On any error the list is as it was.
    pub fn revoke(&self, what: &[Revoke], now: Timestamp) -> Result<String, AuthorityError> {
        let _lock = files::lock(&self.directory)?;
        let issued = self.issued()?;
        let (number, mut entries) = match self.denied()? {
            Some(list) => (list.number(), list.entries().to_vec()),
            None => (0, Vec::new()),
        };
        for wanted in what {
            let before = entries.len();
            let matching = issued.iter().filter(|known| known.matches(wanted) && known.validity.not_after >= now);
            entries.extend(matching.map(|known| Entry {
                what: Denied::Serial(known.serial),
                until: known.validity.not_after,
                id: Some(known.id.clone()),
            }));
            if entries.len() == before {
                // Not on our list: denied all the same when it is named exactly, for as long as the authority lives.
                let what = match wanted {
                    Revoke::Identity(id) => return Err(AuthorityError::NotIssued(Box::new(id.clone()))),
                    Revoke::Serial(serial) => Denied::Serial(*serial),
                    Revoke::Fingerprint(fingerprint) => Denied::Fingerprint(*fingerprint),
                };
                entries.push(Entry { what, until: self.not_after, id: None });
            }
        }
        let horizon = now.saturating_sub(EXPIRED_FOR).unwrap_or(now);
        entries.retain(|entry| entry.until >= horizon);
        // Seconds since 1970 as the floor: an authority restored from an old backup still outnumbers the
        // lists it signed since, and two lists never share a number.
        let number = u64::try_from(now.as_second()).unwrap_or(0).max(number.saturating_add(1));
        let text = SignedList::sign(self.cluster(), number, now, entries, |bytes| self.issuer.key().sign(bytes))?;
        files::replace(&self.directory.join(DENIED), files::PRIVATE, &text)?;
        Ok(text)
    }

    /// The newest deny list signed here, if there is one.
    ///
    /// # Errors
    /// [`AuthorityError::Deny`] when the file is not what this authority signed.
    pub fn denied(&self) -> Result<Option<SignedList>, AuthorityError> {
        match files::read(&self.directory.join(DENIED), MAX_DENY_LIST as u64) {
            Ok(text) => Ok(Some(SignedList::verify(&text, &self.trust)?)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn issued_text(&self) -> Result<String, AuthorityError> {
        match files::read(&self.directory.join(ISSUED), MAX_ISSUED) {
            Ok(text) => Ok(text),
            Err(error) if error.is_missing() => Ok(String::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How long an expired certificate stays on the deny list: a node whose clock is a day slow still refuses it.
const EXPIRED_FOR: Duration = Duration::from_secs(86_400);

impl Issued {
    fn matches(&self, wanted: &Revoke) -> bool {
        match wanted {
            Revoke::Identity(id) => self.id == *id,
            Revoke::Serial(serial) => self.serial == *serial,
            Revoke::Fingerprint(fingerprint) => self.fingerprint == *fingerprint,
        }
    }

    fn line(&self) -> String {
        let Validity { not_before, not_after } = self.validity;
        format!("{} {} {not_before} {not_after} {}\n", self.serial, self.fingerprint, self.id.to_uri())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let issued = Self {
            serial: words.next()?.parse().ok()?,
            fingerprint: words.next()?.parse().ok()?,
            validity: Validity { not_before: words.next()?.parse().ok()?, not_after: words.next()?.parse().ok()? },
            id: NodeId::from_uri(words.next()?).ok()?,
        };
        words.next().is_none().then_some(issued)
    }
}

/// Everything in the authority's certificate but its dates; the issuer name of what it signs comes from here too.
fn authority_params(cluster: &ClusterName) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("{cluster} cluster authority"));
    params.subject_alt_names = vec![cluster_name(cluster)?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        // What is permitted of a kind excludes all else of that kind (RFC 5280 §4.2.1.10).
        permitted_subtrees: vec![
            GeneralSubtree::DnsName(cluster_domain(cluster)),
            GeneralSubtree::DnsName(LOCALHOST.to_owned()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix(Ipv4Addr::LOCALHOST.octets(), 32)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix(Ipv6Addr::LOCALHOST.octets(), 128)),
        ],
        excluded_subtrees: Vec::new(),
    });
    Ok(params)
}

/// Whether an authority's certificate lets those that it signs bear the names of a machine for itself.
fn allows_loopback(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(constraints)) = parsed.name_constraints() else { return false };
    let permitted = constraints.value.permitted_subtrees.as_deref().unwrap_or_default();
    let address = [Ipv4Addr::LOCALHOST.octets(), Ipv4Addr::BROADCAST.octets()].concat();
    permitted.iter().any(|subtree| matches!(subtree.base, GeneralName::IPAddress(permitted) if permitted == address))
}

fn holder_params(id: &NodeId, loopback: bool) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(id.name.as_str());
    params.subject_alt_names = vec![uri_name(id)?, SanType::DnsName(Ia5String::try_from(domain(id))?)];
    if loopback && id.role.is_node() {
        params.subject_alt_names.extend([
            SanType::DnsName(Ia5String::try_from(LOCALHOST)?),
            SanType::IpAddress(Ipv4Addr::LOCALHOST.into()),
            SanType::IpAddress(Ipv6Addr::LOCALHOST.into()),
        ]);
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match id.role {
        Role::Bo | Role::Fo => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        // They only call: a stolen laptop's certificate cannot pose as a node.
        Role::Operator | Role::Viewer => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn date(params: &mut CertificateParams, serial: Serial, validity: Validity) -> Result<(), AuthorityError> {
    if validity.not_before >= validity.not_after {
        return Err(AuthorityError::EmptyValidity);
    }
    let since_1970 = |t: Timestamp| Duration::from_secs(u64::try_from(t.as_second()).unwrap_or(0));
    params.serial_number = Some(SerialNumber::from_slice(&serial.0.to_be_bytes()));
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_1970(validity.not_before);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970(validity.not_after);
    Ok(())
}

/// The DNS name in a holder's certificate, `<name>.<role>.<cluster>.horos.invalid`, for tools that insist on
/// one. Horos itself never looks at it, nor at a node's other names, `localhost`, 127.0.0.1 and ::1.
pub fn domain(id: &NodeId) -> String {
    format!("{}.{}.{}", label(id.name.as_str()), id.role, cluster_domain(&id.cluster))
}

fn cluster_domain(cluster: &ClusterName) -> String {
    format!("{}.horos.invalid", label(cluster.as_str()))
}

/// A name as one DNS label: itself where it is one, else a digest of it (`a_b` and `a.b` are names, not labels).
fn label(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain && !name.ends_with('-') && !name.starts_with("x-") {
        return name.to_owned();
    }
    format!("x-{}", hex::encode(&Sha256::digest(name.as_bytes())[..16]))
}
