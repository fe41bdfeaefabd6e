//! Maintenance, as users and operators see it; and that no secret shows anywhere.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use horos_edge::{Body, Notice, Reason};
use horos_wire::principal::{Denied, Principal, Proof};
use parking_lot::Mutex;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::guard_world::{KEY, Keys, OTHER_KEY, Site, TOKEN, calm, get, principal, with};

fn notice(bypass: Option<&str>) -> Notice {
    let bypass = bypass.map(|scope| scope.parse().unwrap());
    Notice { message: "Back at <noon> & not before".into(), retry_after: Duration::from_secs(90), bypass }
}

#[tokio::test]
async fn maintenance_answers_for_services_and_not_for_administration_and_probes() {
    let site = Site::new();
    site.maintenance.on(notice(None));
    for path in ["/open/x", "/stock/x"] {
        let answer = site.get_with(path, &[("x-api-key", KEY)]).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "maintenance"), "{path}");
        assert_eq!(answer.json()["detail"], "Back at <noon> & not before");
        assert_eq!(answer.header("retry-after"), Some("90"));
        assert!(answer.headers.contains_key("content-security-policy") && answer.headers.contains_key("traceparent"));
    }
    assert_eq!((site.served(), site.metrics.count(Reason::Maintenance)), (0, 2));
    for (path, key) in [("/livez", KEY), ("/readyz", KEY), ("/metrics", OTHER_KEY), ("/admin/x", OTHER_KEY)] {
        assert_eq!(site.get_with(path, &[("x-api-key", key)]).await.status, 200, "{path}");
    }
    site.maintenance.off();
    assert_eq!(site.get("/open/x").await.status, 200);
}

#[tokio::test]
async fn a_person_gets_a_page_on_which_the_message_is_text() {
    let site = Site::new();
    site.maintenance.on(notice(None));
    let page = site.get_with("/open/x", &[("accept", "text/html,application/xhtml+xml,*/*;q=0.8")]).await;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (503, Some("text/html; charset=utf-8")));
    assert!(page.text().contains("Back at &lt;noon&gt; &amp; not before") && !page.text().contains("<noon>"), "{}", page.text());
    assert_eq!((page.header("retry-after"), page.header("cache-control")), (Some("90"), Some("no-store")));
    assert!(page.header("content-security-policy").unwrap().contains("frame-ancestors 'none'"));
    assert_eq!(site.get_with("/open/x", &[("accept", "application/json, text/html")]).await.code(), "maintenance");
}

#[tokio::test]
async fn only_who_holds_the_scope_comes_through() {
    let site = Site::new();
    site.maintenance.on(notice(Some("stock")));
    let bearer = format!("Bearer {TOKEN}");
    for (fields, status) in [
        (&[("x-api-key", KEY)][..], 200),
        (&[("authorization", bearer.as_str())], 200),
        (&[("x-api-key", OTHER_KEY)], 503),
        (&[("x-api-key", "hk_wrong")], 503),
        (&[], 503),
    ] {
        assert_eq!(site.get_with("/open/x", fields).await.status, status, "{fields:?}");
    }
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", KEY)]).await.status, 200);
    site.maintenance.on(notice(None));
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", KEY)]).await.status, 503, "no scope is nobody's");
}

#[tokio::test]
async fn who_comes_through_is_asked_once_who_it_is_and_pays_once() {
    let mut keys = Keys::usual();
    let both = principal("key_both", Proof::Key { owner: "ops".into() }, &["stock", "work"]);
    keys.add("hk_both", Principal { per_minute: Some(2), ..both });
    let site = Site::with(calm(), keys);
    site.maintenance.on(notice(Some("work")));
    for _ in 0..2 {
        assert_eq!(site.get_with("/stock/x", &[("x-api-key", "hk_both")]).await.status, 200);
    }
    assert_eq!(site.keys.asked.load(Relaxed), 2);
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", "hk_both")]).await.status, 503);
    assert_eq!(site.metrics.count(Reason::RateIdentity), 0, "maintenance is what it is told");
    // The scope that bypasses is not the one that the service wants.
    assert_eq!(site.get_with("/stock/x", &[("x-api-key", OTHER_KEY)]).await.status, 403);
}

#[tokio::test]
async fn maintenance_whose_source_cannot_be_read_stays_as_it_was_and_is_shown() {
    let site = Site::new();
    site.maintenance.on(notice(None));
    site.maintenance.unreadable("its file is no text");
    assert_eq!(site.get("/open/x").await.status, 503);
    assert!(site.get("/readyz?verbose").await.text().contains("[~] maintenance: its file is no text\n"));
    site.maintenance.off();
    assert_eq!(site.get("/open/x").await.status, 200);
    assert!(site.get("/readyz?verbose").await.text().contains("[+] maintenance\n"));
}

/// Keeps every line of the log, whatever its level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    /// A line that another test's thread, which has no log, came to first is believed to interest nobody: `tracing` asks the
    /// thread that comes first. So each is come to once, and then asked about again.
    async fn listen(&self, site: &Site) {
        for path in ["/open/x", "/open/panic"] {
            site.get(path).await;
        }
        tracing::callsite::rebuild_interest_cache();
        self.0.lock().clear();
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        attributes.record(&mut Line(&mut self.0.lock()));
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        values.record(&mut Line(&mut self.0.lock()));
    }
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut log = self.0.lock();
        write!(log, "{} {}", event.metadata().level(), event.metadata().target()).unwrap();
        event.record(&mut Line(&mut log));
        log.push('\n');
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

#[tokio::test]
async fn no_secret_is_in_any_line_of_the_log_or_any_refusal() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    const WRONG: &str = "hk_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const FORGED: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJldmUifQ.Zm9yZ2Vk";
    let mut keys = Keys::usual();
    keys.deny(WRONG, Denied::Revoked);
    let site = Site::with(calm(), keys);
    log.listen(&site).await;
    site.maintenance.on(Notice { bypass: Some("work".parse().unwrap()), ..notice(None) });
    let mut said = String::new();
    for maintenance in [true, false] {
        if !maintenance {
            site.maintenance.off();
        }
        for path in ["/open/panic", "/stock/x", "/stock/panic", "/stock/nothing", "/metrics", "/nowhere", "/admin/x"] {
            let path = format!("{path}?key={WRONG}&token={FORGED}");
            for (key, token) in [(KEY, TOKEN), (OTHER_KEY, FORGED), (WRONG, TOKEN), (WRONG, FORGED)] {
                let bearer = format!("Bearer {token}");
                let request = with(get(&path), &[("x-api-key", key), ("authorization", &bearer), ("cookie", WRONG), ("x-request-id", key)]);
                let answer = site.ask(request.body(Body::empty()).unwrap()).await;
                if !answer.status.is_success() {
                    writeln!(said, "{:?} {}", answer.headers, answer.text()).unwrap();
                }
            }
        }
    }
    let log = log.0.lock().clone();
    assert!(log.contains("INFO horos::access") && log.contains("DEBUG horos::access") && log.contains("a service panicked"), "{log}");
    assert!(log.contains("path=\"/stock/x\"") && log.contains("principal=\"key_1\"") && log.contains("client=192.0.2.1"), "{log}");
    for (what, text) in [("the log", &log), ("an answer", &said)] {
        for secret in [KEY, OTHER_KEY, TOKEN, WRONG, FORGED] {
            assert!(!text.contains(secret), "{secret} is in {what}");
            // Nor the half of it that matters.
            assert!(!text.contains(&secret[secret.len() - 12..]), "the end of {secret} is in {what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_by_default_is_for_what_failed_here_and_not_for_what_a_client_brings_about() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let site = Site::new();
    log.listen(&site).await;
    let lines = |level: &str| log.0.lock().lines().filter(|line| line.starts_with(level)).count();
    for (path, fields) in [("/open/x", &[][..]), ("/nowhere", &[]), ("/stock/x", &[]), ("/open/wait", &[("request-timeout", "0.001")])] {
        site.get_with(path, fields).await;
    }
    site.maintenance.on(notice(None));
    site.get("/open/x").await;
    site.maintenance.off();
    assert_eq!((lines("DEBUG horos::access"), lines("INFO horos::access")), (5, 0), "{}", log.0.lock());
    site.get("/open/wait").await;
    site.get("/open/panic").await;
    assert_eq!((lines("DEBUG horos::access"), lines("INFO horos::access")), (5, 2), "{}", log.0.lock());
}
