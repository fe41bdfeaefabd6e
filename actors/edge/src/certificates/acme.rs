//! Certificates from an ACME authority (RFC 8555), by a challenge that this very port answers (TLS-ALPN-01, RFC 8737).
//!
//! Account and certificate are kept on disk: a restart orders nothing. A certificate is renewed at two thirds of its
//! life. A failure is counted and tried again after a pause that doubles, and what works stays in use to its last day.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use horos_link::tls::provider;
use horos_supervision::Vitals;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{server::ClientHello, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::{CertificateError, Certificates, Told, files, pair::Pair};

const ACCOUNT: &str = "acme-account.json";
/// Key and chain in one file: whatever happens, they belong together.
const CERTIFICATE: &str = "acme.pem";
/// Longest that an order may take: authorities check each name from several places.
const ORDER: Duration = Duration::from_secs(5 * 60);
/// Pauses after a failure, doubled each time. Let's Encrypt bears five failures an hour.
const FIRST_PAUSE: Duration = Duration::from_secs(5 * 60);
const LONGEST_PAUSE: Duration = Duration::from_secs(6 * 3600);
/// Looked at the clock at least so often: it may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// Most names of one certificate (Let's Encrypt's limit).
const MOST_NAMES: usize = 100;

/// Which certificate, by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The authority's directory, such as `https://acme-v02.api.letsencrypt.org/directory`.
    pub directory_url: Box<str>,
    /// Whom the authority writes to, such as `mailto:admin@example.org`.
    pub contact: Option<Box<str>>,
    /// The names to be certified. Each must lead to this port by way of port 443.
    pub domains: Vec<Box<str>>,
    /// Where account and certificate are kept.
    pub directory: PathBuf,
    /// Who vouches for the authority itself (PEM), where the machine's own list does not.
    pub trust: Option<PathBuf>,
}

/// What is shown to an authority that asks, by name.
#[derive(Debug)]
pub(super) struct Challenge(HashMap<String, Arc<CertifiedKey>>);

impl Challenge {
    pub(super) fn answer(&self, hello: &ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.get(&hello.server_name()?.to_ascii_lowercase()).cloned()
    }
}

/// Whether an authority asks: it offers this protocol alone (RFC 8737 §3).
pub(super) fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(crate::tcp::ACME) && protocols.next().is_none())
}

/// The account as it is kept, with the authority that it is at.
#[derive(Serialize, Deserialize)]
struct KeptAccount {
    directory_url: Box<str>,
    credentials: AccountCredentials,
}

impl Acme {
    /// The certificate that is kept, if it can be used.
    pub(super) fn kept(&self, now: Timestamp) -> Result<Option<Pair>, CertificateError> {
        if self.domains.is_empty() || self.domains.len() > MOST_NAMES {
            let problem =
                format!("ACME needs 1 to {MOST_NAMES} names to be certified (http.acme-domains); there are {}", self.domains.len());
            return Err(CertificateError::Acme(problem));
        }
        files::directory(&self.directory)?;
        let path = self.directory.join(CERTIFICATE);
        match Pair::load(&path, &path, now) {
            Ok(pair) => Ok(Some(pair)),
            Err(error @ (CertificateError::Exposed { .. } | CertificateError::File { .. })) => Err(error),
            Err(CertificateError::Missing { .. }) => Ok(None),
            // A new one is ordered in its place.
            Err(error) => {
                tracing::warn!(%error, "the certificate that was kept is of no use, ordering a new one");
                Ok(None)
            }
        }
    }

    /// Renews for as long as the node runs.
    pub(super) async fn keep(self, certificates: Arc<Certificates>, told: Told, vitals: Arc<Vitals>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let pair = certificates.pair();
            match &pair {
                None => told.has_none(),
                Some(_) => super::watch::warn(&certificates, &told, Timestamp::now()),
            }
            let wait = pair.as_ref().map_or(Duration::ZERO, |pair| self.due_in(pair, Timestamp::now()));
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(LOOK_EVERY)).await;
                continue;
            }
            let ordered = tokio::time::timeout(ORDER, self.order(&certificates)).await;
            certificates.own.challenge.store(None);
            vitals.progressed(Instant::now());
            match ordered.unwrap_or_else(|_| Err(CertificateError::Acme(format!("the authority did not finish within {ORDER:?}")))) {
                Ok(pair) => {
                    told.took_up(&pair);
                    certificates.replace(pair);
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    told.failed(&error);
                    if pair.is_none() {
                        told.has_none();
                    }
                    // Nodes that failed together do not come back together.
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// How long until `pair` is to be renewed: at two thirds of its life, or now if it is for other names.
    fn due_in(&self, pair: &Pair, now: Timestamp) -> Duration {
        if !self.domains.iter().all(|domain| pair.is_for(domain)) {
            return Duration::ZERO;
        }
        let life = pair.not_after().duration_since(pair.not_before());
        let due = pair.not_before() + life * 2 / 3;
        due.duration_since(now).max(SignedDuration::ZERO).unsigned_abs()
    }

    async fn account(&self) -> Result<Account, CertificateError> {
        let path = self.directory.join(ACCOUNT);
        let builder = match &self.trust {
            Some(trust) => Account::builder_with_root(trust),
            None => Account::builder(),
        };
        let builder = builder.map_err(failed("reach the authority"))?;
        let kept = match blocking({
            let path = path.clone();
            move || files::read_secret(&path, "ACME account")
        })
        .await
        {
            Ok(kept) => Some(kept),
            Err(CertificateError::Missing { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(kept) = kept {
            let kept: KeptAccount = serde_json::from_slice(&kept).map_err(|error| CertificateError::Malformed {
                path: path.clone(),
                role: "ACME account",
                problem: error.to_string(),
            })?;
            if kept.directory_url == self.directory_url {
                return builder.from_credentials(kept.credentials).await.map_err(failed("use the account"));
            }
            tracing::info!(authority = %self.directory_url, "the account is at another authority, opening one");
        }
        let contact: Vec<_> = self.contact.iter().map(|contact| &**contact).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, self.directory_url.to_string(), None).await.map_err(failed("open an account"))?;
        let kept = KeptAccount { directory_url: self.directory_url.clone(), credentials };
        let text = serde_json::to_vec(&kept).map_err(|error| CertificateError::Acme(error.to_string()))?;
        blocking(move || files::write(&path, &text)).await?;
        Ok(account)
    }

    /// A new certificate, kept on disk before it is used.
    async fn order(&self, certificates: &Certificates) -> Result<Pair, CertificateError> {
        let account = self.account().await?;
        let names: Vec<_> = self.domains.iter().map(|domain| Identifier::Dns(domain.to_string())).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await.map_err(failed("order a certificate"))?;

        let mut answers = HashMap::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(failed("be asked to prove a name"))?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                status => return Err(CertificateError::Acme(format!("the authority no longer takes proof of a name: {status:?}"))),
            }
            let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
                return Err(CertificateError::Acme("the authority does not offer the challenge tls-alpn-01".to_owned()));
            };
            let name = challenge.identifier().to_string().to_ascii_lowercase();
            let answer = answer(&name, challenge.key_authorization().digest().as_ref());
            answers.insert(name, answer.map_err(|error| CertificateError::Make(error.to_string()))?);
            // Shown before the authority is told to look.
            certificates.own.challenge.store(Some(Arc::new(Challenge(answers.clone()))));
            challenge.set_ready().await.map_err(failed("prove a name"))?;
        }
        let status = order.poll_ready(&RetryPolicy::default()).await.map_err(failed("prove the names"))?;
        if status != OrderStatus::Ready {
            let problem = format!("the authority could not reach this port for {}: {status:?}", self.domains.join(", "));
            return Err(CertificateError::Acme(problem));
        }

        let made = |error: rcgen::Error| CertificateError::Make(error.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
        let domains: Vec<_> = self.domains.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(domains).map_err(made)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(made)?;
        order.finalize_csr(request.der()).await.map_err(failed("have the certificate signed"))?;
        let chain = order.poll_certificate(&RetryPolicy::default()).await.map_err(failed("fetch the certificate"))?;

        let path = self.directory.join(CERTIFICATE);
        let both = key.serialize_pem() + &chain;
        let pair = Pair::parse(both.as_bytes(), both.as_bytes(), &path, &path, Timestamp::now())?;
        blocking(move || files::write(&path, both.as_bytes())).await?;
        Ok(pair)
    }
}

/// What proves `name`: a certificate with the digest that only the account's holder can know (RFC 8737 §3).
fn answer(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let secret = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = provider().key_provider.load_private_key(secret).expect("rcgen makes keys that the provider takes");
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing)))
}

fn failed(what: &'static str) -> impl FnOnce(instant_acme::Error) -> CertificateError {
    move |error| CertificateError::Acme(format!("cannot {what}: {error}"))
}

/// The disk, off the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, CertificateError> + Send + 'static) -> Result<T, CertificateError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(CertificateError::Acme(error.to_string())))
}
