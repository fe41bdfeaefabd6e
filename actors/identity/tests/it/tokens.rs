//! Tokens: issued, revoked, and everything that must not pass for one.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use horos_supervision::{Context, User};
use horos_wire::{
    context::Claims,
    principal::{Denied, Proof},
    protocol::keys::{DistrustIssuer, Grants, IssueToken, IssuedToken, Issuers, KeysError, RevokeToken, TrustIssuer},
};
use serde_json::{Value, json};

use super::world::{DAY, Node, START, failed, owner, replica, right, until};

fn ask(user: &str) -> IssueToken {
    IssueToken { user: user.into(), scopes: vec![right("stock:read"), right("stock:write")], audience: None, expires: None }
}

async fn issue(node: &Node, ask: IssueToken) -> (String, IssuedToken) {
    let issued = node.ask(ask).await.unwrap();
    (issued.token.reveal().to_owned(), issued)
}

/// Somebody who signs tokens elsewhere.
struct Elsewhere(Ed25519KeyPair);

impl Elsewhere {
    fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
    }

    fn public(&self) -> String {
        B64.encode(self.0.public_key().as_ref())
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", B64.encode(header), B64.encode(claims));
        format!("{signed}.{}", B64.encode(self.0.sign(signed.as_bytes()).as_ref()))
    }

    async fn trusted(node: &Node, grants: Grants) -> Self {
        let it = Self::new();
        let trust = TrustIssuer {
            kid: "k1".into(),
            issuer: "https://login.example".into(),
            audience: "shop".into(),
            public_key: it.public().into(),
            grants,
        };
        node.ask(trust).await.unwrap();
        it
    }
}

fn header() -> Value {
    json!({"alg": "EdDSA", "typ": "JWT", "kid": "k1"})
}

fn claims() -> Value {
    json!({
        "iss": "https://login.example", "sub": "ana", "aud": "shop", "exp": START + 3600, "nbf": START, "iat": START,
        "jti": "t1", "scope": "stock:read https://example/profile"
    })
}

fn with(mut value: Value, key: &str, to: Value) -> Value {
    match to {
        Value::Null => drop(value.as_object_mut().unwrap().remove(key)),
        to => value[key] = to,
    }
    value
}

#[tokio::test]
async fn the_clusters_own_token_proves_its_user_until_it_ends() {
    let (node, time, _) = owner().await;
    let (text, issued) = issue(&node, ask("ana")).await;
    assert!(!format!("{issued:?}").contains(&text));
    let principal = node.verifier.verify(&text).await.unwrap();
    assert_eq!(&*principal.id, "spiffe://shop ana");
    assert_eq!(principal.proof, Proof::Token { user: "ana".into(), token: text.as_str().into() });
    assert_eq!(*principal.scopes, [right("stock:read"), right("stock:write")]);
    assert!(!format!("{principal:?}").contains(&text));
    assert_eq!(node.verifier.recall(&text), Some(Ok(principal)));
    for (now, expected) in [
        (START + 3629, None),
        (START + 3630, Some(Denied::Expired)),
        (START + 365 * DAY, Some(Denied::Expired)),
        (START - 30, None),
        (START - 31, Some(Denied::NotYetValid)),
        (START - 365 * DAY, Some(Denied::NotYetValid)),
        (START, None),
    ] {
        time.set(now);
        assert_eq!(node.denied(&text), expected, "remembered, at {now}");
        let fresh = horos_identity::Verifier::new(&node.writer.config().open, time.clock());
        let found = fresh.check(&text).err();
        // One that has never seen the tables is not whole, but the issuer is found all the same.
        assert_eq!(found, expected, "looked up, at {now}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_token_is_asked_for_within_a_day_and_for_somebody() {
    let (node, _, _) = owner().await;
    for bad in [
        IssueToken { user: "".into(), ..ask("") },
        IssueToken { user: "a\nb".into(), ..ask("") },
        IssueToken { expires: Some("25h".into()), ..ask("ana") },
        IssueToken { expires: Some("never".into()), ..ask("ana") },
        IssueToken { audience: Some("a b".into()), ..ask("ana") },
        IssueToken { scopes: (0..65).map(|n| right(&format!("s{n}"))).collect(), ..ask("ana") },
    ] {
        assert!(matches!(failed(node.ask(bad.clone()).await), KeysError::Invalid(_)), "{bad:?}");
    }
    assert!(node.ask(Issuers {}).await.unwrap().is_empty(), "no key is made for a request that is refused");
    let (text, _) = issue(&node, IssueToken { audience: Some("elsewhere".into()), ..ask("ana") }).await;
    assert_eq!(node.denied(&text), Some(Denied::OtherAudience));
    let (bare, _) = issue(&node, IssueToken { scopes: vec![], expires: Some("24h".into()), ..ask("bob") }).await;
    assert!(node.verifier.check(&bare).unwrap().scopes.is_empty(), "a token without scopes says who, and no more");
    let issuers = node.ask(Issuers {}).await.unwrap();
    assert_eq!(issuers.iter().map(|issuer| issuer.own).collect::<Vec<_>>(), [true]);
    node.stop().await;
}

#[tokio::test]
async fn what_is_not_signed_by_the_trusted_key_proves_nobody() {
    let (node, _, _) = owner().await;
    let it = Elsewhere::trusted(&node, Grants::Any).await;
    let good = it.sign(&header(), &claims());
    assert_eq!(*node.verifier.check(&good).unwrap().scopes, [right("stock:read")]);
    let parts: Vec<&str> = good.split('.').collect();
    let forged = Elsewhere::new();
    let hs256 = |key: &[u8]| {
        let signed = format!("{}.{}", B64.encode(with(header(), "alg", json!("HS256")).to_string()), parts[1]);
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
        format!("{signed}.{}", B64.encode(aws_lc_rs::hmac::sign(&key, signed.as_bytes()).as_ref()))
    };
    let none = B64.encode(with(header(), "alg", json!("none")).to_string());
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": forged.public()});
    for (what, text, expected) in [
        ("another's key", forged.sign(&header(), &claims()), Denied::Unknown),
        ("a key that it brings along", forged.sign(&with(header(), "jwk", jwk), &claims()), Denied::Unknown),
        ("no algorithm", format!("{none}.{}.", parts[1]), Denied::Malformed),
        ("no algorithm, signed", format!("{none}.{}.{}", parts[1], parts[2]), Denied::Malformed),
        ("HMAC with the public key", hs256(it.0.public_key().as_ref()), Denied::Malformed),
        ("HMAC with its text", hs256(it.public().as_bytes()), Denied::Malformed),
        ("no signature", format!("{}.{}.", parts[0], parts[1]), Denied::Unknown),
        (
            "other claims",
            format!("{}.{}.{}", parts[0], B64.encode(with(claims(), "sub", json!("root")).to_string()), parts[2]),
            Denied::Unknown,
        ),
        ("two parts", format!("{}.{}", parts[0], parts[1]), Denied::Malformed),
        ("four parts", format!("{good}.x"), Denied::Malformed),
        ("padding", format!("{good}="), Denied::Malformed),
        ("space", format!(" {good}"), Denied::Malformed),
        ("nothing", String::new(), Denied::Malformed),
        ("no JSON", it.sign_text("alg", "{}"), Denied::Malformed),
        ("no kid", it.sign(&with(header(), "kid", Value::Null), &claims()), Denied::Malformed),
        ("another kid", it.sign(&with(header(), "kid", json!("k2")), &claims()), Denied::Unknown),
        ("a kid that is SQL", it.sign(&with(header(), "kid", json!("'OR'1'='1")), &claims()), Denied::Unknown),
        ("another type", it.sign(&with(header(), "typ", json!("secevent+jwt")), &claims()), Denied::Malformed),
        ("something critical", it.sign(&with(header(), "crit", json!(["b64"])), &claims()), Denied::Malformed),
        ("4 KiB", it.sign(&header(), &with(claims(), "x", json!("x".repeat(3000)))), Denied::Malformed),
        ("a megabyte", "a".repeat(1 << 20), Denied::Malformed),
        ("another algorithm", it.sign(&with(header(), "alg", json!("ES256")), &claims()), Denied::Malformed),
    ] {
        assert_eq!(node.denied(&text), Some(expected), "{what}");
    }
    for at in 0..good.len() {
        // One bit of one character: base64 has one spelling, so no other text is the same token.
        let mut other = good.clone().into_bytes();
        other[at] ^= 1;
        let other = String::from_utf8(other).unwrap();
        assert!(node.denied(&other).is_some(), "{at}: {other}");
    }
    for cut in 0..good.len() {
        assert!(node.denied(&good[..cut]).is_some(), "cut at {cut}");
    }
    node.stop().await;
}

#[tokio::test]
async fn every_claim_that_limits_a_token_is_required_and_holds() {
    let (node, _, _) = owner().await;
    let it = Elsewhere::trusted(&node, Grants::Any).await;
    let mut cases = vec![
        ("iss", json!("https://login.example/"), Some(Denied::Unknown)),
        ("iss", json!(["https://login.example"]), Some(Denied::Malformed)),
        ("aud", json!("shop2"), Some(Denied::OtherAudience)),
        ("aud", json!([]), Some(Denied::OtherAudience)),
        ("aud", json!(["other", "shop"]), None),
        ("aud", json!({"shop": 1}), Some(Denied::Malformed)),
        ("exp", json!(START - 30), Some(Denied::Malformed)),
        ("exp", json!("soon"), Some(Denied::Malformed)),
        ("exp", json!(1e300), Some(Denied::Malformed)),
        ("exp", json!(-1), Some(Denied::Malformed)),
        ("exp", json!(u64::MAX), Some(Denied::Malformed)),
        ("exp", json!(i64::MAX), Some(Denied::Malformed)),
        ("exp", json!(START as f64 + 60.5), None),
        ("exp", json!(START + DAY), None),
        ("exp", json!(START + DAY + 1), Some(Denied::Malformed)),
        ("nbf", json!(START + 30), None),
        ("nbf", json!(START + 31), Some(Denied::NotYetValid)),
        ("nbf", json!(START + 3600), Some(Denied::Malformed)),
        ("iat", json!(START + 31), Some(Denied::NotYetValid)),
        ("iat", json!("now"), Some(Denied::Malformed)),
        ("sub", json!(""), Some(Denied::Malformed)),
        ("sub", json!("a\u{0}b"), Some(Denied::Malformed)),
        ("sub", json!("x".repeat(201)), Some(Denied::Malformed)),
        ("jti", json!(""), Some(Denied::Malformed)),
        ("jti", json!(7), Some(Denied::Malformed)),
        ("scope", json!(["admin"]), Some(Denied::Malformed)),
        ("scope", json!("a ".repeat(65)), Some(Denied::Malformed)),
        ("nbf", json!(START - 7200), None),
    ];
    cases.extend(["iss", "sub", "aud", "exp", "jti"].map(|claim| (claim, Value::Null, Some(Denied::Malformed))));
    cases.extend(["nbf", "iat", "scope"].map(|claim| (claim, Value::Null, None)));
    for (claim, value, expected) in cases {
        let text = it.sign(&header(), &with(claims(), claim, value.clone()));
        assert_eq!(node.denied(&text), expected, "{claim} = {value}");
    }
    let over = with(with(claims(), "nbf", json!(START - 7200)), "exp", json!(START - 30));
    assert_eq!(node.denied(&it.sign(&header(), &over)), Some(Denied::Expired));
    let twice = claims().to_string().replacen('{', "{\"sub\":\"root\",", 1);
    assert_eq!(node.denied(&it.sign_text(&header().to_string(), &twice)), Some(Denied::Malformed), "two subjects");
    let admin = it.sign(&header(), &with(claims(), "scope", json!("stock:read  STOCK * stock:read")));
    assert_eq!(*node.verifier.check(&admin).unwrap().scopes, [right("stock:read")], "what is no scope grants nothing");
    node.stop().await;
}

#[tokio::test]
async fn a_token_begins_with_nbf_or_else_with_iat_and_lasts_a_day_at_most() {
    let (node, time, _) = owner().await;
    let it = Elsewhere::trusted(&node, Grants::Any).await;
    let (mut bare, mut number) = (claims(), 0);
    for claim in ["nbf", "iat"] {
        bare = with(bare, claim, Value::Null);
    }
    // At START, and a moment before the first 30 s of what is allowed for clocks.
    let cases = [
        (&[("nbf", 0), ("exp", DAY)][..], None),
        (&[("nbf", 0), ("exp", DAY + 1)], Some(Denied::Malformed)),
        (&[("nbf", 31), ("exp", 3600)], Some(Denied::NotYetValid)),
        (&[("nbf", -7200), ("iat", 31), ("exp", 3600)], Some(Denied::NotYetValid)),
        (&[("iat", 30), ("exp", 3600)], None),
        (&[("iat", 31), ("exp", 3600)], Some(Denied::NotYetValid)),
        (&[("iat", 0), ("exp", DAY)], None),
        (&[("iat", 0), ("exp", DAY + 1)], Some(Denied::Malformed)),
        (&[("iat", -2 * DAY), ("exp", 60)], Some(Denied::Malformed)),
        (&[("iat", 60), ("exp", 60)], Some(Denied::Malformed)),
        (&[("iat", -7200), ("exp", -30)], Some(Denied::Expired)),
        // With neither it is counted from now.
        (&[("exp", DAY)], None),
        (&[("exp", DAY + 1)], Some(Denied::Malformed)),
        (&[("exp", -29)], None),
        (&[("exp", -30)], Some(Denied::Expired)),
        (&[("exp", -400 * DAY)], Some(Denied::Expired)),
    ];
    let mut sign = |times: &[(&str, i64)]| {
        number += 1;
        let bare = with(bare.clone(), "jti", json!(format!("t{number}")));
        it.sign(&header(), &times.iter().fold(bare, |claims, (claim, after)| with(claims, claim, json!(START + after))))
    };
    for (times, expected) in cases {
        assert_eq!(node.denied(&sign(times)), expected, "{times:?}");
    }
    // Remembered, it begins and ends as it did when it was looked up.
    let made = sign(&[("iat", 0), ("exp", 3600)]);
    for (now, expected) in [(0, None), (-30, None), (-31, Some(Denied::NotYetValid)), (3629, None), (3630, Some(Denied::Expired))] {
        time.set(START + now);
        assert_eq!(node.denied(&made), expected, "at {now}");
    }
    node.stop().await;
}

#[tokio::test]
async fn an_issuer_grants_no_more_than_it_is_trusted_with() {
    let (node, _, _) = owner().await;
    let it = Elsewhere::trusted(&node, Grants::Only(vec![right("stock:read")])).await;
    let text = it.sign(&header(), &with(claims(), "scope", json!("admin stock:read")));
    assert_eq!(*node.verifier.check(&text).unwrap().scopes, [right("stock:read")]);
    let again = |public: String, grants| TrustIssuer {
        kid: "k1".into(),
        issuer: "https://login.example".into(),
        audience: "shop".into(),
        public_key: public.into(),
        grants,
    };
    assert_eq!(failed(node.ask(again(Elsewhere::new().public(), Grants::Any)).await), KeysError::KidTaken("k1".into()));
    for bad in ["", "abc", &B64.encode([1; 31]), &format!("{}=", it.public())] {
        assert!(matches!(failed(node.ask(again(bad.to_owned(), Grants::Any)).await), KeysError::Invalid(_)), "{bad:?}");
    }
    node.ask(again(it.public(), Grants::Only(vec![]))).await.unwrap();
    until(|| node.verifier.check(&text).unwrap().scopes.len(), |granted| *granted == 0).await;
    node.ask(DistrustIssuer { kid: "k1".into() }).await.unwrap();
    until(|| node.denied(&text), |denied| *denied == Some(Denied::Unknown)).await;
    assert_eq!(failed(node.ask(DistrustIssuer { kid: "k1".into() }).await), KeysError::NoSuchIssuer("k1".into()));
    node.stop().await;
}

#[tokio::test]
async fn a_revoked_token_is_refused_on_every_node() {
    let (bo, time, ways) = owner().await;
    let fo = replica("fo-1", &ways, &time).await;
    let ((text, issued), (kept, _)) = (issue(&bo, ask("ana")).await, issue(&bo, ask("bob")).await);
    until(|| fo.denied(&text), Option::is_none).await;
    assert!(matches!(fo.verifier.recall(&text), Some(Ok(_))), "remembered");
    bo.ask(RevokeToken { jti: issued.jti.clone(), until: None }).await.unwrap();
    for node in [&bo, &fo] {
        until(|| node.denied(&text), |denied| *denied == Some(Denied::Revoked)).await;
        assert_eq!(node.denied(&kept), None);
    }
    // A clock that jumps a year ahead and back brings nothing back to life.
    time.set(START + 365 * DAY);
    bo.ask(RevokeToken { jti: "another".into(), until: None }).await.unwrap();
    time.set(START);
    for node in [&bo, &fo] {
        assert_eq!(node.denied(&text), Some(Denied::Revoked));
    }
    for (jti, until) in [("", None), ("a b", None), ("t", Some("2y")), ("t", Some("yesterday"))] {
        let revoke = RevokeToken { jti: jti.into(), until: until.map(Into::into) };
        assert!(matches!(failed(bo.ask(revoke).await), KeysError::Invalid(_)), "{jti:?} {until:?}");
    }
    fo.stop().await;
    bo.stop().await;
}

#[tokio::test]
async fn distrusting_the_clusters_own_key_makes_the_next_token_another_keys() {
    let (node, _, _) = owner().await;
    let (old, issued) = issue(&node, ask("ana")).await;
    node.ask(DistrustIssuer { kid: issued.kid.clone() }).await.unwrap();
    until(|| node.denied(&old), |denied| *denied == Some(Denied::Unknown)).await;
    let (new, again) = issue(&node, ask("ana")).await;
    assert_ne!(again.kid, issued.kid);
    until(|| node.denied(&new), Option::is_none).await;
    assert_eq!(node.denied(&old), Some(Denied::Unknown));
    node.stop().await;
}

#[tokio::test]
async fn keys_and_tokens_of_another_cluster_are_unknown_here() {
    let ((here, _, _), (there, _, _)) = (owner().await, owner().await);
    let (key, _) = there.key("ana").await;
    let (token, _) = issue(&there, ask("ana")).await;
    // The same cluster name and the same claims: only the key differs.
    let _ = issue(&here, ask("ana")).await;
    assert_eq!((there.denied(&key), there.denied(&token)), (None, None));
    assert_eq!((here.denied(&key), here.denied(&token)), (Some(Denied::Unknown), Some(Denied::Unknown)));
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_callee_checks_the_token_itself() {
    let (bo, time, ways) = owner().await;
    let fo = replica("fo-1", &ways, &time).await;
    let (text, issued) = issue(&bo, ask("ana")).await;
    until(|| fo.denied(&text), Option::is_none).await;
    let user = |node: &Node, user: Option<&str>, token: &str| {
        let claims = Claims { user: user.map(Into::into), token: Some(token.into()), ..Claims::default() };
        match Context::new(node.exchange.clone(), "test").with_claims(claims).user() {
            User::Proven(principal) => Ok(principal.id.clone()),
            User::Refused(denied) => Err(denied),
            User::None | User::Asserted(_) => panic!("there was a token"),
        }
    };
    for node in [&bo, &fo] {
        assert_eq!(user(node, Some("ana"), &text), Ok("spiffe://shop ana".into()));
        assert_eq!(user(node, Some("root"), &text), Err(Denied::Unknown));
    }
    bo.ask(RevokeToken { jti: issued.jti, until: None }).await.unwrap();
    for node in [&bo, &fo] {
        until(|| user(node, None, &text), |found| *found == Err(Denied::Revoked)).await.unwrap_err();
    }
    fo.stop().await;
    bo.stop().await;
}
