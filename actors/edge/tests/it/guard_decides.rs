//! A service that says itself, request by request, who may come in.

use std::sync::atomic::Ordering::Relaxed;

use horos_edge::{Config, Limits, Reason};
use horos_wire::principal::{Denied, Principal, Proof};
use serde_json::Value;

use super::guard_world::{KEY, Keys, OTHER_KEY, Site, TOKEN, calm, principal};

#[tokio::test]
async fn who_shows_nothing_comes_as_nobody_and_who_shows_something_is_proved_first() {
    let site = Site::new();
    let nobody = site.get_with("/each/x", &[]).await;
    assert_eq!((nobody.status.as_u16(), &nobody.json()["principal"]), (200, &Value::Null));
    assert_eq!(site.keys.asked.load(Relaxed), 0, "there was nothing to look at");
    let bearer = format!("Bearer {TOKEN}");
    for (fields, principal, user) in [
        (&[("x-api-key", KEY)][..], "key_1", None),
        (&[("x-api-key", OTHER_KEY)], "key_2", None),
        (&[("authorization", &bearer)], "https://issuer.example/ana", Some("ana")),
    ] {
        let json = site.get_with("/each/x", fields).await.json();
        assert_eq!((json["principal"].as_str(), json["user"].as_str()), (Some(principal), user));
        assert_eq!((json["headers"].get("authorization"), json["headers"].get("x-api-key")), (None, None), "its proof goes no further");
    }
}

#[tokio::test]
async fn a_wrong_credential_is_refused_before_the_service_is_asked() {
    let mut keys = Keys::usual();
    keys.deny("hk_revoked", Denied::Revoked);
    let site = Site::with(calm(), keys);
    for fields in [&[("x-api-key", "hk_revoked")][..], &[("x-api-key", "hk_wrong")], &[("authorization", "Basic YTpi")]] {
        let answer = site.get_with("/each/x", fields).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "unauthenticated"), "{fields:?}");
    }
    assert_eq!((site.served(), site.metrics.count(Reason::Unauthenticated)), (0, 3));
}

#[tokio::test]
async fn what_it_refuses_reads_and_counts_as_what_the_port_refuses() {
    let site = Site::new();
    let shown = |json: Value| {
        let mut json = json;
        for own in ["request_id", "trace_id"] {
            json.as_object_mut().unwrap().remove(own).unwrap();
        }
        json
    };
    let (ours, theirs) = (site.get("/stock/x").await, site.get("/each/unauthenticated").await);
    assert_eq!((theirs.status.as_u16(), theirs.code().as_str()), (401, "unauthenticated"));
    assert_eq!(ours.header("www-authenticate"), theirs.header("www-authenticate"));
    assert_eq!((shown(ours.json()), ours.headers.len()), (shown(theirs.json()), theirs.headers.len()));
    let fields = [("x-api-key", OTHER_KEY)];
    let (ours, theirs) = (site.get_with("/stock/x", &fields).await, site.get_with("/each/forbidden", &fields).await);
    assert_eq!((theirs.status.as_u16(), theirs.code().as_str()), (403, "forbidden"));
    assert_eq!(ours.header("www-authenticate"), theirs.header("www-authenticate"));
    assert_eq!((shown(ours.json()), ours.headers.len()), (shown(theirs.json()), theirs.headers.len()));
    assert_eq!((site.metrics.count(Reason::Unauthenticated), site.metrics.count(Reason::Forbidden)), (2, 2));
    assert!(site.metrics.text().contains("horos_authentication_failures_total{kind=\"missing\"} 2\n"));
    let told = site.get_with("/each/own-words", &fields).await;
    assert_eq!((told.status.as_u16(), told.text()), (403, "not you"), "what it says in words of its own stays so");
    assert_eq!(site.get("/each/nothing").await.code(), "not_found");
}

#[tokio::test]
async fn each_401_says_where_to_look_if_the_service_is_described() {
    let site = Site::new();
    let wanted = "Bearer realm=\"horos\", resource_metadata=\"https://shop.example.org/.well-known/it\"";
    // What the service refuses, and what the port does before it.
    for (path, fields) in [("/told/unauthenticated", &[][..]), ("/told/x", &[("x-api-key", "hk_wrong")])] {
        let answer = site.get_with(path, fields).await;
        assert_eq!((answer.status.as_u16(), answer.header("www-authenticate")), (401, Some(wanted)), "{path}");
    }
    assert_eq!(site.get_with("/told/x", &[("x-api-key", KEY)]).await.header("www-authenticate"), None);
    let forbidden = site.get_with("/told/forbidden", &[("x-api-key", KEY)]).await;
    assert_eq!(forbidden.header("www-authenticate"), Some("Bearer realm=\"horos\", error=\"insufficient_scope\""));
    assert_eq!(site.get("/each/unauthenticated").await.header("www-authenticate"), Some("Bearer realm=\"horos\""));
}

#[tokio::test]
async fn a_key_has_its_rate_there_too_and_guesses_are_bounded() {
    let mut keys = Keys::usual();
    let slow = Principal { per_minute: Some(1), ..principal("key_slow", Proof::Key { owner: "o".into() }, &["stock"]) };
    keys.add("hk_slow", slow);
    let guesses = 3;
    let limits = Limits { guesses_per_address: guesses, ..calm().limits };
    let site = Site::with(Config { limits, ..calm() }, keys);
    let ask = async |key: &str| site.get_with("/each/x", &[("x-api-key", key)]).await.status.as_u16();
    assert_eq!([ask("hk_slow").await, ask("hk_slow").await], [200, 429]);
    for _ in 0..guesses {
        assert_eq!(ask("hk_wrong").await, 401);
    }
    assert_eq!(ask("hk_wrong").await, 429);
    assert_eq!(site.metrics.count(Reason::RateIdentity) + site.metrics.count(Reason::RateGuesses), 2);
}
