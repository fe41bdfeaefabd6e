use super::*;

#[test]
fn each_reason_version_method_and_failure_has_a_place_of_its_own() {
    for (place, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(place_of_reason(reason), place, "{reason:?}");
    }
    for (place, version) in Version::ALL.into_iter().enumerate() {
        assert_eq!(place_of(version), place);
    }
    for (place, method) in MethodClass::ALL.into_iter().enumerate() {
        assert_eq!(method as usize, place);
    }
    for (place, failure) in Failure::ALL.into_iter().enumerate() {
        assert_eq!(failure.index(), place);
    }
}

#[test]
fn what_is_counted_is_shown_with_its_labels() {
    let metrics = Metrics::default();
    metrics.started(Version::Http2);
    metrics.finished(Version::Http2, MethodClass::Head, StatusCode::NOT_FOUND, Duration::from_micros(300));
    metrics.started(Version::Http1);
    metrics.refused(Reason::SlowHead, Some(Version::Http1));
    metrics.refused(Reason::HandshakeFailed, None);
    metrics.failed(Failure::Denied(Denied::Revoked));
    metrics.bytes(Version::Http3, Direction::Request, 7);
    let open = metrics.opened(Version::Http3);
    let text = metrics.text();
    for line in [
        r#"horos_http_requests_total{version="h2",method="HEAD",status="404"} 1"#,
        r#"horos_http_request_duration_seconds_bucket{le="0.00025",version="h2"} 0"#,
        r#"horos_http_request_duration_seconds_bucket{le="0.0005",version="h2"} 1"#,
        r#"horos_http_request_duration_seconds_count{version="h2"} 1"#,
        r#"horos_http_requests_in_flight{version="h1"} 1"#,
        r#"horos_http_requests_in_flight{version="h2"} 0"#,
        r#"horos_refused_total{reason="slow_head",version="h1"} 1"#,
        r#"horos_refused_total{reason="handshake_failed",version="none"} 1"#,
        r#"horos_authentication_failures_total{kind="revoked"} 1"#,
        r#"horos_http_request_body_bytes_total{version="h3"} 7"#,
        r#"horos_connections_open{version="h3"} 1"#,
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
    }
    drop(open);
    assert_eq!(metrics.open(Version::Http3), 0);
    assert_eq!(metrics.count(Reason::SlowHead), 1);
    assert_eq!(metrics.answered(StatusCode::NOT_FOUND), 1);
}

#[test]
fn a_handshake_is_in_progress_until_it_is_done_or_given_up() {
    let metrics = Metrics::default();
    let (one, other) = (metrics.handshaking(), metrics.handshaking());
    assert_eq!(metrics.handshakes(), 2);
    one.done(Duration::from_millis(1500));
    drop(other);
    assert_eq!(metrics.handshakes(), 0);
    let text = metrics.text();
    assert!(text.contains("horos_tls_handshakes_total 1\n"), "{text}");
    assert!(text.contains("horos_tls_handshake_time_seconds_total 1.5\n"), "{text}");
}

#[test]
fn what_others_register_is_shown_too_and_nodes_count_apart() {
    let (one, other) = (Metrics::default(), Metrics::default());
    let gauge: prometheus_client::metrics::gauge::Gauge = Default::default();
    one.registry().register("horos_keys_mirrored", "Keys known here", gauge.clone());
    gauge.set(3);
    assert!(one.text().contains("horos_keys_mirrored 3"));
    assert!(!other.text().contains("horos_keys_mirrored"));
    one.refused(Reason::Idle, None);
    assert_eq!(other.count(Reason::Idle), 0);
}

#[test]
fn a_status_that_a_service_invents_adds_no_label() {
    let metrics = Metrics::default();
    for code in [600, 799, 999] {
        metrics.started(Version::Http1);
        metrics.finished(Version::Http1, MethodClass::Other, StatusCode::from_u16(code).unwrap(), Duration::ZERO);
    }
    assert!(metrics.text().contains(r#"horos_http_requests_total{version="h1",method="other",status="other"} 3"#));
}
