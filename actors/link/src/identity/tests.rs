use std::{fs, os::unix::fs::PermissionsExt};

use horos_wire::Role;
use jiff::{SignedDuration, Timestamp};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::CertificateDer;

use super::{
    authority::{AuthorityError, Revoke, domain},
    certificate::{Claims, NameError},
    fixture::{Cluster, days, id},
    request::{Request, RequestError},
    revocation::{Adopted, DenyError, SignedList},
    *,
};

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_authoritys_key_is_written_once_and_only_its_owner_reads_it() {
    let cluster = Cluster::new("shop");
    let ca = cluster.directory("ca");
    assert_eq!((mode(&ca), mode(&ca.join(CA_KEY))), (0o700, 0o600));
    let before = fs::read(ca.join(CA_KEY)).unwrap();
    let again = Authority::create(&ca, &"shop".parse().unwrap(), days(1));
    assert!(matches!(again, Err(AuthorityError::File(FileError::Exists(_)))), "{again:?}");
    assert_eq!(fs::read(ca.join(CA_KEY)).unwrap(), before);
    assert_eq!(Authority::load(&ca).unwrap().certificate_pem(), cluster.authority.certificate_pem());
}

#[test]
fn the_authoritys_certificate_may_sign_nodes_and_nothing_else() {
    let cluster = Cluster::new("shop");
    let der = &cluster.authority.trust().certificates()[0];
    let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca && constraints.path_len_constraint == Some(0));
    let names = parsed.name_constraints().unwrap().unwrap();
    assert!(names.critical);
    let permitted: Vec<_> = names.value.permitted_subtrees.as_ref().unwrap().iter().map(|subtree| subtree.base.to_string()).collect();
    assert_eq!(permitted.len(), 4, "{permitted:?}");
    assert!(names.value.excluded_subtrees.is_none());
}

/// Whether a client that believes the cluster's authority takes `chain` for `host`.
fn reaches(cluster: &Cluster, chain: &[CertificateDer<'_>], host: &str) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.authority.trust().certificates()[0].clone()).unwrap();
    let client = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), crate::tls::provider().clone());
    let name = rustls_pki_types::ServerName::try_from(host).unwrap();
    let verdict = client.build().unwrap().verify_server_cert(&chain[0], &chain[1..], &name, &[], rustls_pki_types::UnixTime::now());
    verdict.is_ok()
}

#[test]
fn a_nodes_certificate_serves_https_on_its_own_machine_and_nowhere_else() {
    let cluster = Cluster::new("shop");
    let (_, node) = cluster.enrol(&cluster.id(Role::Bo, "bo-1"));
    let chain = &node.key().cert;
    for own in ["localhost", "127.0.0.1", "::1", "bo-1.bo.shop.horos.invalid"] {
        assert!(reaches(&cluster, chain, own), "{own}");
    }
    for other in ["bo-2.bo.shop.horos.invalid", "127.0.0.2", "10.0.0.1", "::2", "bank.example", "bo-1"] {
        assert!(!reaches(&cluster, chain, other), "{other}");
    }
    // And it is who the URI says, whatever stands beside it.
    assert_eq!(node.id(), &cluster.id(Role::Bo, "bo-1"));
    // People serve nothing, on no machine.
    let (_, person) = cluster.enrol(&cluster.id(Role::Operator, "ann"));
    assert!(!reaches(&cluster, &person.key().cert, "localhost"));
}

#[test]
fn a_stolen_authority_key_signs_for_no_other_machine() {
    let cluster = Cluster::new("shop");
    let signed = |name: SanType| {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![name];
        cluster.forge(&params).chain
    };
    let dns = |name: &str| signed(SanType::DnsName(name.try_into().unwrap()));
    let address = |text: &str| signed(SanType::IpAddress(text.parse().unwrap()));
    assert!(reaches(&cluster, &dns("localhost"), "localhost") && reaches(&cluster, &address("::1"), "::1"), "the test can tell");
    for host in ["bank.example", "localhost.example", "shop.horos.invalid.example", "other.horos.invalid"] {
        assert!(!reaches(&cluster, &dns(host), host), "{host}");
    }
    for host in ["127.0.0.2", "10.0.0.1", "0.0.0.0", "::2", "fe80::1", "::ffff:127.0.0.1"] {
        assert!(!reaches(&cluster, &address(host), host), "{host}");
    }
}

#[test]
fn an_authority_from_before_nodes_served_https_signs_as_it_did() {
    use rcgen::{CidrSubnet, GeneralSubtree};
    let cluster = Cluster::new("shop");
    let ca = cluster.directory("ca");
    let key = KeyPair::from_pem(&fs::read_to_string(ca.join(CA_KEY)).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = request::common_name("shop cluster authority");
    params.subject_alt_names = vec![SanType::URI("spiffe://shop".try_into().unwrap())];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("shop.horos.invalid".to_owned())],
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    fs::write(ca.join(CA_CERTIFICATE), params.self_signed(&key).unwrap().pem()).unwrap();
    let old = Cluster { authority: Authority::load(&ca).unwrap(), root: cluster.root };
    // Installing it is being believed: a name that the authority may not sign for would be refused by every peer.
    let (_, node) = old.enrol(&old.id(Role::Bo, "bo-1"));
    assert!(reaches(&old, &node.key().cert, "bo-1.bo.shop.horos.invalid") && !reaches(&old, &node.key().cert, "localhost"));
}

#[test]
fn a_node_is_enrolled_by_request_sign_and_install() {
    let cluster = Cluster::new("shop");
    let node = cluster.id(Role::Bo, "bo-1");
    let (directory, credentials) = cluster.enrol(&node);
    assert_eq!(credentials.id(), &node);
    assert_eq!((mode(&directory), mode(&directory.join(KEY))), (0o700, 0o600));
    assert!(!directory.join(REQUEST).exists(), "an answered request is gone");
    let loaded = Credentials::load(&directory, Timestamp::now()).unwrap();
    assert_eq!(loaded.identity(), credentials.identity());
    let issued = cluster.authority.issued().unwrap();
    assert_eq!((issued[0].serial, issued[0].fingerprint), (loaded.serial(), loaded.fingerprint()));
    assert_eq!(issued[0].validity, loaded.validity());
}

#[test]
fn certificates_count_for_90_days_on_nodes_and_30_with_people() {
    let now = Timestamp::now();
    for (role, expected) in [(Role::Bo, 90), (Role::Fo, 90), (Role::Operator, 30), (Role::Viewer, 30)] {
        let validity = Validity::usual(now, &id("shop", role, "x-1"));
        let hours = (validity.not_after - now).total(jiff::Unit::Hour).unwrap();
        assert!((hours - f64::from(expected * 24)).abs() < 1.0, "{role}: {hours} h");
        assert!(validity.not_before < now);
    }
}

#[test]
fn the_private_key_never_leaves_its_directory() {
    let cluster = Cluster::new("shop");
    let directory = cluster.directory("bo-1");
    let path = request::create(&directory, &cluster.id(Role::Bo, "bo-1")).unwrap();
    let request = fs::read_to_string(path).unwrap();
    assert!(request.contains("BEGIN CERTIFICATE REQUEST") && !request.contains("PRIVATE"));
    let again = request::create(&directory, &cluster.id(Role::Bo, "bo-1"));
    assert!(matches!(again, Err(RequestError::File(FileError::Exists(_)))), "a key is made once: {again:?}");
}

#[test]
fn a_request_is_signed_only_for_whom_it_names() {
    let cluster = Cluster::new("shop");
    let asked = cluster.id(Role::Fo, "fo-1");
    let request = fs::read_to_string(request::create(&cluster.directory("fo-1"), &asked).unwrap()).unwrap();
    for expected in [cluster.id(Role::Bo, "fo-1"), cluster.id(Role::Fo, "fo-2"), id("other", Role::Fo, "fo-1")] {
        let refused = cluster.authority.sign(&request, &expected, days(90));
        assert!(matches!(refused, Err(AuthorityError::Request(RequestError::Mismatch { .. }))), "{refused:?}");
    }
    assert!(cluster.authority.issued().unwrap().is_empty(), "a refused request leaves no trace");
    cluster.authority.sign(&request, &asked, days(90)).unwrap();
}

#[test]
fn an_authority_signs_for_its_own_cluster_and_its_own_lifetime() {
    let cluster = Cluster::new("shop");
    let stranger = id("other", Role::Fo, "fo-1");
    let request = fs::read_to_string(request::create(&cluster.directory("a"), &stranger).unwrap()).unwrap();
    let refused = cluster.authority.sign(&request, &stranger, days(90));
    assert!(matches!(refused, Err(AuthorityError::OtherCluster { .. })), "{refused:?}");
    let node = cluster.id(Role::Fo, "fo-1");
    let request = fs::read_to_string(request::create(&cluster.directory("b"), &node).unwrap()).unwrap();
    let refused = cluster.authority.sign(&request, &node, days(Validity::AUTHORITY_DAYS + 1));
    assert!(matches!(refused, Err(AuthorityError::Outlives { .. })), "{refused:?}");
    let backwards = Validity { not_before: days(2).not_after, not_after: days(1).not_after };
    let refused = cluster.authority.sign(&request, &node, backwards);
    assert!(matches!(refused, Err(AuthorityError::EmptyValidity)), "{refused:?}");
}

#[test]
fn a_request_altered_anywhere_is_not_signed() {
    let cluster = Cluster::new("shop");
    let asked = cluster.id(Role::Fo, "fo-1");
    let pem = fs::read_to_string(request::create(&cluster.directory("fo-1"), &asked).unwrap()).unwrap();
    let der = pem_bytes(&pem);
    assert_eq!(Request::from_der(&der).unwrap().id, asked);
    for at in 0..der.len() {
        let mut altered = der.clone();
        altered[at] ^= 1;
        assert!(Request::from_der(&altered).is_err(), "byte {at} of {}", der.len());
    }
    let at = der.windows(4).position(|w| w == b"fo-1").unwrap();
    let mut altered = der.clone();
    altered[at] = b'b'; // fo-1 → bo-1 in the subject
    assert!(matches!(Request::from_der(&altered), Err(RequestError::Tampered)));
}

#[test]
fn credentials_name_the_file_and_the_next_step() {
    let cluster = Cluster::new("shop");
    let now = Timestamp::now();
    let (directory, credentials) = cluster.enrol(&cluster.id(Role::Bo, "bo-1"));
    let refused = |expected: &str| {
        let error = Credentials::load(&directory, now).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(directory.to_str().unwrap()), "expected {expected:?} in: {error}");
    };
    let keep = |file: &str, broken: Option<&str>, expected: &str| {
        let path = directory.join(file);
        let saved = fs::read(&path).unwrap();
        match broken {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        refused(expected);
        fs::write(&path, saved).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    keep(KEY, None, "horos identity request");
    keep(CERTIFICATE, None, "horos identity sign");
    keep(CA_CERTIFICATE, None, "copy it from the authority");
    keep(KEY, Some("nonsense"), "no PEM private key");
    keep(CERTIFICATE, Some("nonsense"), "no PEM certificate");
    keep(CA_CERTIFICATE, Some("nonsense"), "no PEM certificate");
    let other = cluster.enrol(&cluster.id(Role::Bo, "bo-2")).0;
    keep(KEY, Some(&fs::read_to_string(other.join(KEY)).unwrap()), "is not for the key");
    let own = fs::read_to_string(directory.join(CERTIFICATE)).unwrap();
    keep(CA_CERTIFICATE, Some(&own), "no cluster authority's");
    let foreign = Cluster::new("shop");
    keep(CA_CERTIFICATE, Some(foreign.authority.certificate_pem()), "not signed by this cluster's authority");

    fs::set_permissions(directory.join(KEY), fs::Permissions::from_mode(0o640)).unwrap();
    refused("chmod 600");
    fs::set_permissions(directory.join(KEY), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(directory.join(CA_KEY), "").unwrap();
    refused("no node may hold it");
    fs::remove_file(directory.join(CA_KEY)).unwrap();

    let end = credentials.validity().not_after;
    let late = Credentials::load(&directory, end + SignedDuration::from_secs(1)).unwrap_err().to_string();
    assert!(late.contains(&format!("expired at {end}")), "{late}");
    let early = Credentials::load(&directory, credentials.validity().not_before - SignedDuration::from_secs(1));
    assert!(matches!(early, Err(CredentialsError::NotYetValid { .. })), "{early:?}");
    Credentials::load(&directory, now).unwrap();
}

#[test]
fn an_authority_is_not_made_among_a_nodes_files_nor_a_node_among_its() {
    let cluster = Cluster::new("shop");
    let node = cluster.id(Role::Bo, "bo-1");
    let (directory, _) = cluster.enrol(&node);
    let refused = Authority::create(&directory, &"shop".parse().unwrap(), days(1));
    assert!(matches!(refused, Err(AuthorityError::NodeHere(_))), "{refused:?}");
    let refused = request::create(&cluster.directory("ca"), &node);
    assert!(matches!(refused, Err(RequestError::AuthorityHere(_))), "{refused:?}");
}

#[test]
fn two_authorities_are_believed_while_one_replaces_the_other() {
    let (old, new) = (Cluster::new("shop"), Cluster::new("shop"));
    let (directory, _) = old.enrol(&old.id(Role::Bo, "bo-1"));
    let both = format!("{}{}", old.authority.certificate_pem(), new.authority.certificate_pem());
    fs::write(directory.join(CA_CERTIFICATE), &both).unwrap();
    Credentials::load(&directory, Timestamp::now()).unwrap();
    let request = fs::read_to_string(request::renew(&directory, &old.id(Role::Bo, "bo-1")).unwrap()).unwrap();
    let (certificate, _) = new.authority.sign(&request, &old.id(Role::Bo, "bo-1"), days(90)).unwrap();
    request::install(&directory, &certificate, "", Timestamp::now()).unwrap();
    let mixed = format!("{}{}", old.authority.certificate_pem(), Cluster::new("other").authority.certificate_pem());
    assert!(matches!(Trust::parse(&mixed), Err(TrustError::TwoClusters(..))));
}

#[test]
fn every_name_has_a_host_name_and_no_two_share_one() {
    let names = ["a", "a-b", "a_b", "a.b", "a-", "x-1", "0", "a..b"];
    let domains: std::collections::HashSet<_> = names.iter().map(|name| domain(&id("shop", Role::Bo, name))).collect();
    assert_eq!(domains.len(), names.len(), "{domains:?}");
    assert!(domains.contains("a-b.bo.shop.horos.invalid"));
    let cluster = Cluster::new("my_shop.eu");
    for name in names.into_iter().chain(["a2345678901234567890123456789012345678901234567890123456789_23."]) {
        cluster.enrol(&cluster.id(Role::Bo, name));
    }
}

#[test]
fn a_revoked_name_is_denied_with_all_its_certificates_and_the_list_outlives_a_restart() {
    let cluster = Cluster::new("shop");
    let node = cluster.id(Role::Fo, "fo-1");
    let (directory, first) = cluster.enrol(&node);
    let (_, second) = cluster.enrol(&node);
    let (_, other) = cluster.enrol(&cluster.id(Role::Fo, "fo-2"));
    let text = cluster.authority.revoke(&[Revoke::Identity(node.clone())], Timestamp::now()).unwrap();
    let list = DenyList::default();
    let mut changes = list.subscribe();
    assert_eq!(list.adopt(&text, first.trust()).unwrap(), Adopted::Newer);
    assert!(changes.has_changed().unwrap());
    assert_eq!(*changes.borrow_and_update(), list.number());
    assert_eq!(list.adopt(&text, first.trust()).unwrap(), Adopted::Same);
    assert!(!changes.has_changed().unwrap(), "nobody is woken for the same list");
    for (credentials, denied) in [(&first, true), (&second, true), (&other, false)] {
        assert_eq!(list.denies(credentials.identity()).is_some(), denied);
    }
    list.keep(&directory).unwrap();
    let kept = DenyList::load(&directory, first.trust()).unwrap();
    assert_eq!(kept.denies(second.identity()).unwrap().id, Some(node));
    let nobody = cluster.authority.revoke(&[Revoke::Identity(cluster.id(Role::Fo, "fo-9"))], Timestamp::now());
    assert!(matches!(nobody, Err(AuthorityError::NotIssued(_))), "{nobody:?}");
}

#[test]
fn a_deny_list_only_ever_grows_newer() {
    let cluster = Cluster::new("shop");
    let (_, node) = cluster.enrol(&cluster.id(Role::Fo, "fo-1"));
    let now = Timestamp::now();
    let old = cluster.authority.revoke(&[], now).unwrap();
    let new = cluster.authority.revoke(&[Revoke::Serial(node.serial())], now).unwrap();
    let list = DenyList::default();
    list.adopt(&new, node.trust()).unwrap();
    assert!(matches!(list.adopt(&old, node.trust()), Err(DenyError::Older { .. })));
    assert!(list.denies(node.identity()).is_some(), "an older list takes nothing back");
    let newer = cluster.authority.revoke(&[Revoke::Fingerprint(Fingerprint([7; 32]))], now).unwrap();
    list.adopt(&newer, node.trust()).unwrap();
    assert!(list.denies(node.identity()).is_some(), "what was denied stays denied");
    // The authority's directory lost its list: the next one still has a higher number.
    fs::remove_file(cluster.directory("ca").join(DENIED)).unwrap();
    let later = cluster.authority.revoke(&[Revoke::Serial(node.serial())], now + SignedDuration::from_secs(60)).unwrap();
    assert_eq!(list.adopt(&later, node.trust()).unwrap(), Adopted::Newer);
}

#[test]
fn an_expired_certificate_leaves_the_deny_list_after_a_day() {
    let cluster = Cluster::new("shop");
    let (_, node) = cluster.enrol(&cluster.id(Role::Fo, "fo-1"));
    let now = Timestamp::now();
    let list = |text: &str| SignedList::verify(text, node.trust()).unwrap();
    let text = cluster.authority.revoke(&[Revoke::Serial(node.serial())], now).unwrap();
    assert_eq!(list(&text).entries().len(), 1);
    let end = node.validity().not_after;
    let text = cluster.authority.revoke(&[], end + SignedDuration::from_hours(23)).unwrap();
    assert_eq!(list(&text).entries().len(), 1);
    let text = cluster.authority.revoke(&[], end + SignedDuration::from_hours(25)).unwrap();
    assert_eq!(list(&text).entries().len(), 0);
}

#[test]
fn a_deny_list_altered_or_signed_by_another_is_refused() {
    let cluster = Cluster::new("shop");
    let (directory, node) = cluster.enrol(&cluster.id(Role::Fo, "fo-1"));
    let now = Timestamp::now();
    let text = cluster.authority.revoke(&[Revoke::Serial(node.serial())], now).unwrap();
    let list = DenyList::default();
    for at in 0..text.len() {
        let mut altered = text.clone().into_bytes();
        altered[at] ^= 1;
        let Ok(altered) = String::from_utf8(altered) else { continue };
        assert!(list.adopt(&altered, node.trust()).is_err(), "byte {at}: {altered}");
    }
    for altered in [text.replace("number ", "number 0"), format!("{text}\n"), text.trim_end().to_owned(), text.replace('\n', "\r\n")] {
        assert!(list.adopt(&altered, node.trust()).is_err(), "{altered:?}");
    }
    let unsigned = &text[..text.find("signature").unwrap()];
    assert!(matches!(list.adopt(unsigned, node.trust()), Err(DenyError::NotSigned)));
    let foreign = Cluster::new("shop").authority.revoke(&[], now).unwrap();
    assert!(matches!(list.adopt(&foreign, node.trust()), Err(DenyError::NotSigned)));
    assert_eq!(list.number(), 0);
    fs::write(directory.join(DENIED), unsigned).unwrap();
    assert!(DenyList::load(&directory, node.trust()).is_err(), "a damaged list is not an empty one");
}

#[test]
fn a_deny_list_too_long_to_hand_around_is_not_signed() {
    let cluster = Cluster::new("shop");
    let fingerprint = |n: u32| Fingerprint(std::array::from_fn(|at| n.to_be_bytes()[at % 4]));
    let many: Vec<_> = (0..10_000).map(|n| Revoke::Fingerprint(fingerprint(n))).collect();
    let refused = cluster.authority.revoke(&many, Timestamp::now()).map(|text| text.len());
    assert!(matches!(refused, Err(AuthorityError::Deny(DenyError::TooLong))), "{refused:?}");
    assert!(cluster.authority.denied().unwrap().is_none(), "the list is as it was");
}

#[test]
fn what_two_people_sign_at_once_is_all_on_record() {
    let cluster = Cluster::new("shop");
    let sign = |n: u32| {
        let node = cluster.id(Role::Fo, &format!("fo-{n}"));
        let request = fs::read_to_string(request::create(&cluster.directory(node.name.as_str()), &node).unwrap()).unwrap();
        Authority::load(&cluster.directory("ca")).unwrap().sign(&request, &node, days(90)).unwrap();
    };
    let sign = &sign;
    std::thread::scope(|scope| {
        for n in 0..8 {
            scope.spawn(move || sign(n));
        }
    });
    assert_eq!(cluster.authority.issued().unwrap().len(), 8);
}

#[test]
fn an_authority_half_made_can_be_made_again() {
    let cluster = Cluster::new("shop");
    let ca = cluster.directory("ca");
    fs::remove_file(ca.join(CA_KEY)).unwrap(); // as after a crash between the two files
    assert!(matches!(Authority::load(&ca), Err(AuthorityError::None(_))));
    Authority::create(&ca, &"shop".parse().unwrap(), days(Validity::AUTHORITY_DAYS)).unwrap();
}

#[test]
fn the_record_of_certificates_names_the_line_it_cannot_read() {
    let cluster = Cluster::new("shop");
    cluster.enrol(&cluster.id(Role::Fo, "fo-1"));
    let path = cluster.directory("ca").join(ISSUED);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}garbage\n")).unwrap();
    let error = cluster.authority.issued().unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
}

fn pem_bytes(pem: &str) -> Vec<u8> {
    use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().as_ref().to_vec()
}

/// A runner whose seed is printed. To play a failure again, put that number in the place of the random one.
fn seeded(cases: u32) -> TestRunner {
    let seed: u64 = rand::random();
    println!("seed {seed:#018x}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Up to eight changes: a byte replaced, inserted or cut away, or the end cut off.
fn mutated(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<u8>()), 1..8).prop_map(move |changes| {
        let mut bytes = original.clone();
        for (kind, at, byte) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

#[test]
fn no_parser_panics_on_what_a_peer_or_a_file_may_hold() {
    let cluster = Cluster::new("shop");
    let node = cluster.id(Role::Fo, "fo-1");
    let request = fs::read_to_string(request::create(&cluster.directory("r"), &node).unwrap()).unwrap();
    let (directory, credentials) = cluster.enrol(&node);
    let list = cluster.authority.revoke(&[Revoke::Identity(node), Revoke::Fingerprint(Fingerprint([9; 32]))], Timestamp::now()).unwrap();
    let trust = credentials.trust().clone();
    let der = credentials.key().cert[0].as_ref().to_vec();

    seeded(3000)
        .run(&mutated(der), |bytes| {
            let certificate = rustls_pki_types::CertificateDer::from(bytes);
            if let Ok(claims) = Claims::of(&certificate) {
                let _ = claims.identity(&certificate);
            }
            let _ = certificate::authority_cluster(&certificate);
            // Whatever was changed, the signature no longer fits.
            prop_assert!(
                crate::tls::verify_holder(&certificate, &trust, Timestamp::now()).is_err() || certificate == credentials.key().cert[0]
            );
            Ok(())
        })
        .unwrap();
    let original = pem_bytes(&request);
    seeded(3000)
        .run(&mutated(original.clone()), |bytes| {
            prop_assert!(Request::from_der(&bytes).is_err() || bytes == original);
            Ok(())
        })
        .unwrap();
    // The outermost tag is under no signature, and was once read in any class.
    let class = [&[original[0] | 0xc0], &original[1..]].concat();
    assert!(Request::from_der(&original).is_ok() && Request::from_der(&class).is_err());
    for text in [
        request,
        list,
        fs::read_to_string(directory.join(CA_CERTIFICATE)).unwrap(),
        fs::read_to_string(directory.join(CERTIFICATE)).unwrap(),
    ] {
        seeded(1500)
            .run(&mutated(text.into_bytes()), |bytes| {
                let text = String::from_utf8_lossy(&bytes);
                let _ = Request::parse(&text);
                let _ = SignedList::verify(&text, &trust);
                let _ = Trust::parse(&text);
                Ok(())
            })
            .unwrap();
    }
    for uri in ["spiffe://", "spiffe:///", "spiffe://a/bo/", "spiffe://a/bo/b/", "SPIFFE://a/bo/b"] {
        assert!(horos_wire::NodeId::from_uri(uri).is_err(), "{uri}");
    }
    assert_eq!(Claims::of(&rustls_pki_types::CertificateDer::from(Vec::new())).unwrap_err(), NameError::Der);
}
