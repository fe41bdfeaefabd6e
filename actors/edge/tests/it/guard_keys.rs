//! Who may come in.

use std::sync::Arc;

use horos_edge::{Body, Plane, Reason};
use horos_wire::principal::Denied;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::guard_world::{KEY, Keys, OTHER_KEY, Site, TOKEN, calm, get, peer, with};

#[tokio::test]
async fn a_key_or_a_token_with_the_scope_comes_in_and_its_proof_goes_no_further() {
    let site = Site::new();
    let bearer = |text: &str| format!("Bearer {text}");
    for (fields, principal) in [
        ([("x-api-key", KEY.to_owned())], "key_1"),
        ([("authorization", bearer(KEY))], "key_1"),
        ([("authorization", bearer(TOKEN))], "https://issuer.example/ana"),
    ] {
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        let json = site.get_with("/stock/1?a=b", &fields).await.json();
        assert_eq!((json["principal"].as_str(), json["uri"].as_str()), (Some(principal), Some("/1?a=b")));
        assert_eq!((json["headers"].get("authorization"), json["headers"].get("x-api-key")), (None, None));
    }
}

#[tokio::test]
async fn a_user_is_named_only_where_a_token_proved_it() {
    let site = Site::new();
    let bearer = format!("Bearer {TOKEN}");
    let by_key = site.get_with("/stock/x", &[("x-api-key", KEY)]).await.json();
    assert_eq!((&by_key["user"], &by_key["token"]), (&Value::Null, &Value::Null));
    let by_both = site.get_with("/stock/x", &[("x-api-key", KEY), ("authorization", &bearer)]).await.json();
    assert_eq!((by_both["user"].as_str(), by_both["token"].as_str()), (Some("ana"), Some(TOKEN)));
    assert_eq!(by_both["principal"], "key_1", "beside a key, a token says for whom and not what");
    assert_eq!(by_both["tenant"], Value::Null);
    // Ana's token grants `stock`; the key beside it does not, and the key decides.
    let other = site.get_with("/stock/x", &[("x-api-key", OTHER_KEY), ("authorization", &bearer)]).await;
    assert_eq!(other.status, 403);
}

#[tokio::test]
async fn an_endpoint_that_is_open_does_not_look_at_credentials() {
    let site = Site::new();
    let answer = site.get_with("/open/x", &[("x-api-key", "hk_wrong"), ("authorization", "Basic YTpi")]).await;
    assert_eq!(answer.status, 200);
    assert_eq!(site.keys.asked.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(answer.json()["principal"], Value::Null);
    assert_eq!(answer.json()["headers"]["authorization"], "Basic YTpi", "what was not looked at is the service's to look at");
}

#[tokio::test]
async fn whatever_is_wrong_with_a_credential_an_outsider_reads_the_same() {
    let causes = [Denied::Malformed, Denied::Unknown, Denied::Revoked, Denied::Expired, Denied::NotYetValid, Denied::OtherAudience];
    for remembers in [true, false] {
        let mut keys = Keys::usual();
        keys.remembers = remembers;
        for cause in causes {
            keys.deny(&format!("hk_{cause:?}"), cause);
        }
        let site = Site::with(calm(), keys);
        let mut told = Vec::new();
        let causes = causes.map(|cause| vec![("x-api-key", format!("hk_{cause:?}"))]).into_iter();
        let forms = [
            vec![],
            vec![("x-api-key", String::new())],
            vec![("authorization", "Basic YTpi".to_owned())],
            vec![("x-api-key", KEY.to_owned()), ("x-api-key", KEY.to_owned())],
            vec![("x-api-key", KEY.to_owned()), ("authorization", format!("Bearer {KEY}"))],
            vec![("x-api-key", KEY.to_owned()), ("authorization", "Bearer forged.token.x".to_owned())],
        ];
        for fields in causes.chain(forms) {
            let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = site.get_with("/stock/x", &fields).await;
            assert_eq!((answer.status.as_u16(), answer.code().as_str()), (401, "unauthenticated"), "{fields:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"horos\""));
            let mut json = answer.json();
            for own in ["request_id", "trace_id"] {
                json.as_object_mut().unwrap().remove(own).unwrap();
            }
            told.push((json, answer.headers.len()));
        }
        assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
        assert_eq!(site.served(), 0);
        assert_eq!(site.metrics.count(Reason::Unauthenticated), 12);
        let text = site.metrics.text();
        for (kind, count) in
            [("missing", 1), ("malformed", 5), ("unknown", 2), ("revoked", 1), ("expired", 1), ("not_yet_valid", 1), ("other_audience", 1)]
        {
            let line = format!("horos_authentication_failures_total{{kind=\"{kind}\"}} {count}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }
}

#[tokio::test]
async fn a_valid_key_without_the_scope_is_told_so() {
    let site = Site::new();
    let answer = site.get_with("/stock/x", &[("x-api-key", OTHER_KEY)]).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (403, "forbidden"));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"horos\", error=\"insufficient_scope\""));
    assert_eq!((site.served(), site.metrics.count(Reason::Forbidden)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_lets_nobody_in() {
    let slow = Arc::new(Semaphore::new(0));
    let keys = Keys { remembers: false, slow: Some(slow), ..Keys::usual() };
    let site = Site::with(calm(), keys);
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", KEY)]).await.status, 504);
    let site = Site::with(calm(), Keys { panics: true, ..Keys::usual() });
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", KEY)]).await.code(), "panic");
    assert_eq!(site.served(), 0);
}

#[tokio::test]
async fn administration_and_figures_are_not_on_an_address_for_the_public() {
    let site = Site::new();
    let ask = async |path: &str, plane| {
        let request = with(get(path), &[("x-api-key", OTHER_KEY)]).body(Body::empty()).unwrap();
        site.ask_from(request, horos_edge::Peer { plane, ..peer() }).await.status.as_u16()
    };
    for path in ["/admin/x", "/metrics"] {
        assert_eq!(
            [ask(path, Plane::Both).await, ask(path, Plane::Cluster).await, ask(path, Plane::Public).await],
            [200, 200, 404],
            "{path}"
        );
    }
    assert_eq!(ask("/stock/x", Plane::Cluster).await, 404);
}
