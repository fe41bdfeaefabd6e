//! A signed token proves its user on every node that a call reaches; anything else names one at most.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::served;
use crate::harness::clients::python;
use crate::harness::http::{Answer, Ask, Session, Speaks};
use crate::harness::{Cluster, Node, cli, outside, poll_state};

const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

/// Tokens signed by a login service that is not ours, and its public key.
async fn signed(seed: &str, tokens: &[Value]) -> (String, Vec<String>) {
    let mut sign = python("sign.py");
    sign.arg(json!({ "seed": seed, "tokens": tokens }).to_string());
    let signed = cli::run(sign).await.expect_code(0).json();
    let tokens = signed["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap().to_owned());
    (signed["x"].as_str().unwrap().to_owned(), tokens.collect())
}

/// A token as the service `login` signs it, with `changes` to its claims.
fn token(changes: &Value) -> Value {
    let now = Timestamp::now().as_second();
    let mut claims = json!({
        "iss": "https://login.example.org", "aud": "the-shop", "sub": "ana", "exp": now + 600, "iat": now, "nbf": now - 5,
        "jti": format!("test-{}", changes.to_string().len()), "scope": "drill",
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    json!({ "header": { "alg": "EdDSA", "typ": "JWT", "kid": "login-1" }, "claims": claims })
}

async fn trust(node: &Node, x: &str) {
    let args = ["tokens", "trust", "--kid", "login-1", "--issuer", "https://login.example.org", "--audience", "the-shop"];
    node.ask(&[&args[..], &["--public-key", x, "--scope", "drill"]].concat()).await.expect_code(0);
}

async fn bearer(session: &mut Session, path: &str, token: &str) -> Answer {
    session.ask(&Ask::get(path).header("authorization", &format!("Bearer {token}"))).await.unwrap()
}

/// Waits until `node` answers `token` with `wanted`.
async fn becomes(node: &Node, token: &str, wanted: u16) {
    let mut session = Session::open(&node.site(), Speaks::Http2).await.unwrap();
    poll_state(&format!("{}: {wanted}", node.name), Duration::from_secs(3), async || {
        match bearer(&mut session, "/drill/echo", token).await.status {
            seen if seen == wanted => Ok(()),
            seen => Err(seen.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_token_proves_its_user_to_the_node_behind_and_a_name_alone_does_not() {
    let (_cluster, bo, fo) = Cluster::pair(outside::drill().await).await;
    let issued = bo.ask(&["tokens", "issue", "--user", "ana", "--scope", "drill"]).await.expect_code(0).json();
    let ours = issued["token"].as_str().unwrap();
    let (x, theirs) = signed(SEED, &[token(&json!({ "sub": "berta" }))]).await;
    trust(&bo, &x).await;
    becomes(&fo, ours, 200).await;
    becomes(&fo, &theirs[0], 200).await;
    let mut session = Session::open(&fo.site(), Speaks::Http2).await.unwrap();
    // The page is on the FO, the witness on the BO, which checks the signature itself.
    assert_eq!(bearer(&mut session, "/drill/who", ours).await.json(), "proven ana");
    assert_eq!(bearer(&mut session, "/drill/who", &theirs[0]).await.json(), "proven berta");
    // The page may say whom it likes: that is an assertion of its node's.
    let key = bo.key(&["drill"]).await;
    let mut keyed = async |path: &str| {
        poll_state("the key counts", Duration::from_secs(3), async || {
            let answer = session.ask(&Ask::get(path).key(&key)).await.unwrap();
            if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{answer:?}")) }
        })
        .await
    };
    assert_eq!(keyed("/drill/asserted").await, "asserted mallory");
    let by_key = keyed("/drill/who").await;
    assert!(!by_key.as_str().unwrap().starts_with("proven"), "a key proves no user: {by_key}");
    // A name beside a token of somebody else's is not proved by it.
    let mixed = bearer(&mut session, "/drill/asserted", ours).await.json();
    assert!(mixed.as_str().unwrap().starts_with("refused") || mixed == "asserted mallory", "{mixed}");
}

#[tokio::test]
async fn a_token_is_refused_for_whatever_is_wrong_with_it() {
    let (_cluster, bo) = served(|bo| bo.set("HTTP_LIMITS__GUESSES_PER_ADDRESS", "1000")).await;
    let (_other, stranger) = served(|_| ()).await;
    let now = Timestamp::now().as_second();
    let good = token(&json!({}));
    let header = |name: &str, value: Value| {
        let mut changed = good.clone();
        changed["header"][name] = value;
        changed
    };
    let wrong = [
        ("an unknown kid", header("kid", json!("login-2"))),
        ("no kid", header("kid", Value::Null)),
        ("another algorithm", header("alg", json!("HS256"))),
        ("no algorithm", header("alg", json!("none"))),
        ("expired", token(&json!({ "nbf": now - 7200, "iat": now - 7200, "exp": now - 3600 }))),
        ("longer than any may be", token(&json!({ "exp": now + 100_000 }))),
        ("longer, and from nowhere", token(&json!({ "exp": now + 100_000, "nbf": null, "iat": null }))),
        ("not yet made", token(&json!({ "nbf": null, "iat": now + 3600, "exp": now + 7200 }))),
        ("no end", token(&json!({ "exp": null }))),
        ("not yet valid", token(&json!({ "nbf": now + 3600, "exp": now + 7200 }))),
        ("another audience", token(&json!({ "aud": "other" }))),
        ("no audience", token(&json!({ "aud": null }))),
        ("no issuer", token(&json!({ "iss": null }))),
        ("another issuer", token(&json!({ "iss": "https://evil.example.org" }))),
        ("no id", token(&json!({ "jti": null }))),
        ("no user", token(&json!({ "sub": null }))),
    ];
    let wanted: Vec<_> = [good.clone()].into_iter().chain(wrong.iter().map(|(_, token)| token.clone())).collect();
    let (x, tokens) = signed(SEED, &wanted).await;
    let (_, forged) = signed(&"ab".repeat(32), std::slice::from_ref(&good)).await;
    trust(&bo, &x).await;
    becomes(&bo, &tokens[0], 200).await;
    let foreign = stranger.ask(&["tokens", "issue", "--user", "ana", "--scope", "drill"]).await.expect_code(0).json();
    let elsewhere = ["tokens", "issue", "--user", "ana", "--scope", "drill", "--audience", "elsewhere"];
    let elsewhere = bo.ask(&elsewhere).await.expect_code(0).json();
    let parts: Vec<&str> = tokens[0].split('.').collect();
    let mut bad: Vec<(&str, String)> = wrong.iter().zip(&tokens[1..]).map(|((why, _), token)| (*why, token.clone())).collect();
    bad.push(("signed by another", forged[0].clone()));
    bad.push(("another cluster's", foreign["token"].as_str().unwrap().to_owned()));
    bad.push(("for another audience", elsewhere["token"].as_str().unwrap().to_owned()));
    bad.push(("cut short", tokens[0][..tokens[0].len() - 2].to_owned()));
    bad.push(("without a signature", format!("{}.{}.", parts[0], parts[1])));
    bad.push(("with another's claims", format!("{}.{}.{}", parts[0], forged[0].split('.').nth(1).unwrap().to_owned() + "A", parts[2])));
    bad.push(("endless", format!("{}.{}.{}", parts[0], "A".repeat(20_000), parts[2])));
    let mut session = Session::open(&bo.site(), Speaks::Http2).await.unwrap();
    for (why, token) in &bad {
        let answer = bearer(&mut session, "/drill/echo", token).await;
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("unauthenticated")), "{why}: {answer:?}");
    }
    assert_eq!(bearer(&mut session, "/drill/echo", &tokens[0]).await.status, 200);

    // What does not limit it may be left out (RFC 7519 §4.1.5, §4.1.6).
    let bare = [json!({ "nbf": null }), json!({ "iat": null }), json!({ "nbf": null, "iat": null })];
    for token in signed(SEED, &bare.each_ref().map(token)).await.1 {
        assert_eq!(bearer(&mut session, "/drill/echo", &token).await.status, 200);
    }

    // It says more than its signer may grant, or nothing: then it says who, and opens nothing.
    let (_, beyond) = signed(SEED, &[token(&json!({ "scope": "metrics" })), token(&json!({ "scope": null }))]).await;
    for token in &beyond {
        assert_eq!(bearer(&mut session, "/metrics", token).await.status, 403);
        assert_eq!(bearer(&mut session, "/drill/echo", token).await.status, 403);
    }
}

#[tokio::test]
async fn a_token_revoked_or_whose_signer_is_no_longer_trusted_is_refused_on_every_node() {
    let (_cluster, bo, fo) = Cluster::pair(outside::drill().await).await;
    let (x, tokens) = signed(SEED, &[token(&json!({ "jti": "one" })), token(&json!({ "jti": "two" }))]).await;
    trust(&bo, &x).await;
    for token in &tokens {
        becomes(&fo, token, 200).await;
    }
    bo.ask(&["tokens", "revoke", "one"]).await.expect_code(0);
    for node in [&bo, &fo] {
        becomes(node, &tokens[0], 401).await;
        becomes(node, &tokens[1], 200).await;
    }
    bo.ask(&["tokens", "distrust", "login-1"]).await.expect_code(0);
    for node in [&bo, &fo] {
        becomes(node, &tokens[1], 401).await;
    }
    becomes(&fo, &tokens[0], 401).await;
}
