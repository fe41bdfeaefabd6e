use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::*;

async fn said(error: &CallError<Bytes>, limited: Option<Duration>) -> (StatusCode, Option<String>, Bytes) {
    let (parts, body) = answer(error, limited, &CallContext::default()).into_parts();
    assert_eq!(parts.headers[CONTENT_TYPE], KIND);
    let again = parts.headers.get(RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
    (parts.status, again, body.collect().await.unwrap().to_bytes())
}

fn every() -> Vec<CallError<Bytes>> {
    let secret = || "bo-1: secret".into();
    let no_effect = [
        NoEffect::NoSuchActor(secret()),
        NoEffect::Overloaded(secret()),
        NoEffect::CircuitOpen { retry_after: Duration::from_millis(1_250) },
        NoEffect::NotAllowed(secret()),
        NoEffect::VersionNotSpoken(secret()),
        NoEffect::TooLarge(secret()),
        NoEffect::Malformed(secret()),
        NoEffect::NoRoute(secret()),
        NoEffect::Expired,
        NoEffect::ActorDied,
        NoEffect::Stopping,
        NoEffect::TooManyHops,
        NoEffect::InvalidAddress(secret()),
    ];
    let unknown = [
        Unknown::DeadlinePassed,
        Unknown::PeerLost(secret()),
        Unknown::ActorDied,
        Unknown::NoReply,
        Unknown::MalformedReply(secret()),
        Unknown::ReplyTooLarge(secret()),
    ];
    no_effect.map(CallError::from).into_iter().chain(unknown.map(CallError::from)).collect()
}

/// The error without what its node says to itself.
fn bare(error: &CallError<Bytes>) -> String {
    format!("{error:?}").replace("bo-1: secret", "h")
}

#[tokio::test]
async fn every_error_is_the_same_again_on_the_other_side_and_says_nothing_of_the_inside() {
    let mut types = Vec::new();
    for error in every() {
        let (status, again, body) = said(&error, None).await;
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert!(!body.windows(6).any(|part| part == b"secret"), "{json}");
        assert_eq!(json["status"], status.as_u16());
        assert_eq!(json["effect"], if matches!(error, CallError::NoEffect(_)) { "none" } else { "unknown" });
        assert_eq!(again.is_some(), status == 503, "{json}");
        let known = matches!(error, CallError::NoEffect(NoEffect::CircuitOpen { .. }));
        assert_eq!(json.get("retry_after").is_some(), known, "no guess is told to programs");
        let read = read(&body, "h").unwrap();
        assert_eq!(bare(&read.error), bare(&error));
        types.push(json["type"].as_str().unwrap().to_owned());
    }
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), every().len(), "no two kinds are called alike");
}

#[tokio::test]
async fn a_callees_own_error_goes_through_to_the_letter() {
    let own = Bytes::from_static(br#"{"OutOfStock":{"left":3.50,"big":12345678901234567890123}}"#);
    let (status, _, body) = said(&CallError::Failed(own.clone()), None).await;
    assert_eq!(status, 422);
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["effect"], "done");
    assert_eq!(read(&body, "h").unwrap().error, CallError::Failed(own));
}

#[tokio::test]
async fn a_service_of_bytes_says_its_status_and_no_other_kind_of_answer() {
    for (said_status, status) in [(404, 404), (409, 409), (499, 499), (200, 422), (302, 422), (500, 422), (0, 422)] {
        let refused = Refused { status: said_status, reason: "no such picture".into() };
        let (got, _, body) = said(&CallError::Failed(serde_json::to_vec(&refused).unwrap().into()), None).await;
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((got.as_u16(), json["detail"].as_str()), (status, Some("no such picture")));
        assert_eq!(json["error"], json!({"status": said_status, "reason": "no such picture"}));
    }
}

#[tokio::test]
async fn a_rate_is_429_and_says_when() {
    let error = CallError::NoEffect(NoEffect::Overloaded("x".into()));
    let (status, again, body) = said(&error, Some(Duration::from_micros(2_000_001))).await;
    assert_eq!((status.as_u16(), again.as_deref()), (429, Some("3")));
    let failure = read(&body, "h").unwrap();
    assert_eq!(
        (bare(&failure.error), failure.retry_after),
        (bare(&CallError::NoEffect(NoEffect::Overloaded("h".into()))), Some(Duration::from_millis(2_001)))
    );
}

#[test]
fn only_a_gateways_words_are_taken_for_one() {
    for text in [
        "",
        "null",
        "[]",
        r#"{"type": "about:blank", "status": 503, "effect": "none"}"#,
        r#"{"title": "Not Found", "status": 404}"#,
        r#"{"type": "urn:horos:problem:overloaded"}"#,
        r#"{"type": "urn:horos:problem:failed", "effect": "done"}"#,
        r#"{"type": "urn:horos:problem:overloaded", "effect": "perhaps"}"#,
    ] {
        assert!(read(text.as_bytes(), "h").is_none(), "{text}");
    }
    let later = |effect: &str| read(format!(r#"{{"type": "urn:horos:problem:of-a-later-release", "effect": "{effect}"}}"#).as_bytes(), "h");
    assert!(matches!(later("none").unwrap().error, CallError::NoEffect(_)));
    assert!(matches!(later("unknown").unwrap().error, CallError::Unknown(_)));
    for (seconds, wait) in [("1e300", 3_600_000), ("-1", 1_000), ("0.0015", 2)] {
        let text = format!(r#"{{"type": "urn:horos:problem:circuit-open", "effect": "none", "retry_after": {seconds}}}"#);
        let wanted = NoEffect::CircuitOpen { retry_after: Duration::from_millis(wait) };
        assert_eq!(read(text.as_bytes(), "h").unwrap().error, CallError::NoEffect(wanted), "{seconds}");
    }
}
