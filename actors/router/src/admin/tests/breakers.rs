//! Breakers that people force.

use horos_wire::protocol::control::{BreakerEdit, Force, ForceBreaker, ListForced, MAX_BREAKERS, PAGE, ResetBreaker};

use super::*;
use crate::admin::breakers;

fn force(tables: &Connection, endpoint: Option<&str>, state: Force, expected: Option<Force>) -> Result<Force, Fault> {
    let ask = ForceBreaker { service: "mail".into(), endpoint: endpoint.map(Into::into), state, expected, why: Some("drill".into()) };
    breakers::force(tables, &ask, ANA).map(|edited| edited.breaker.state)
}

fn list(tables: &Connection, view: View) -> Vec<(String, String, Force, bool)> {
    let page = breakers::list(tables, &ListForced { after: None }, view).unwrap();
    page.breakers.into_iter().map(|it| (it.service.into(), it.endpoint.into(), it.state, it.resets > 0)).collect()
}

#[test]
fn a_breaker_is_forced_and_left_to_itself_as_expected_or_not_at_all() {
    let tables = tables();
    assert_eq!(force(&tables, None, Force::Open, Some(Force::Auto)).unwrap(), Force::Open);
    let conflict = ControlError::BreakerConflict { service: "mail".into(), found: Force::Open };
    assert_eq!(refused(force(&tables, None, Force::Closed, Some(Force::Auto))), conflict);
    assert_eq!(force(&tables, Some("quic:mail@bo"), Force::Closed, None).unwrap(), Force::Closed);
    let both = [("mail".into(), String::new(), Force::Open, false), ("mail".into(), "quic:mail@bo".into(), Force::Closed, false)];
    assert_eq!(list(&tables, View::Whole), both);
    let reset = ResetBreaker { service: "mail".into(), endpoint: None, why: None };
    let first = breakers::reset(&tables, &reset, BEN).unwrap().breaker;
    let second = breakers::reset(&tables, &reset, BEN).unwrap().breaker;
    assert_eq!((first.state, second.resets), (Force::Open, first.resets + 1));
    for endpoint in [None, Some("quic:mail@bo"), Some("never")] {
        assert_eq!(force(&tables, endpoint, Force::Auto, None).unwrap(), Force::Auto);
    }
    assert_eq!(list(&tables, View::Whole), [("mail".into(), String::new(), Force::Auto, true)], "how often it was reset is not forgotten");
    let edits: Vec<_> = history::page(&tables, Some("mail"))
        .into_iter()
        .rev()
        .map(|edit| {
            assert!(edit.before.is_none() && edit.after.is_none());
            (edit.what.to_string(), edit.breaker.unwrap())
        })
        .collect();
    let edit = |what: &str, endpoint: &str, before, after| (what.to_owned(), BreakerEdit { endpoint: endpoint.into(), before, after });
    assert_eq!(
        edits,
        [
            edit("force-breaker", "", Force::Auto, Some(Force::Open)),
            edit("force-breaker", "quic:mail@bo", Force::Auto, Some(Force::Closed)),
            edit("reset-breaker", "", Force::Open, None),
            edit("reset-breaker", "", Force::Open, None),
            edit("force-breaker", "", Force::Open, Some(Force::Auto)),
            edit("force-breaker", "quic:mail@bo", Force::Closed, Some(Force::Auto)),
            edit("force-breaker", "quic:mail@bo", Force::Auto, Some(Force::Auto)),
            edit("force-breaker", "never", Force::Auto, Some(Force::Auto)),
        ]
    );
    // None of them is a change of the route.
    let last = horos_wire::protocol::control::RollbackTo::Last;
    assert!(matches!(refused(edits::was(&tables, "mail", last)), ControlError::NoSuchEdit { .. }));
}

#[test]
fn a_reset_is_new_to_routers_that_remember_more_of_them() {
    let tables = tables();
    let reset = ResetBreaker { service: "mail".into(), endpoint: None, why: None };
    let before = breakers::reset(&tables, &reset, ANA).unwrap().breaker.resets;
    tables.execute("DELETE FROM breakers", []).unwrap();
    assert!(breakers::reset(&tables, &reset, ANA).unwrap().breaker.resets >= before);
    tables.execute("UPDATE breakers SET resets = 9223372036854775807", []).unwrap();
    assert_eq!(breakers::reset(&tables, &reset, ANA).unwrap().breaker.resets, 1);
}

#[test]
fn a_shell_forces_a_breaker_as_well_and_says_no_other_state() {
    let tables = tables();
    tables.execute("INSERT INTO breakers (service_name, forced) VALUES ('mail', 'open'), ('dbsync:orders', 'closed')", []).unwrap();
    assert!(tables.execute("INSERT INTO breakers (service_name, forced) VALUES ('x', 'half-open')", []).is_err());
    assert_eq!(list(&tables, View::Whole).len(), 2);
    assert_eq!(list(&tables, View::Public), [("mail".into(), String::new(), Force::Open, false)]);
    tables.execute("UPDATE breakers SET forced = NULL, resets = resets + 1 WHERE service_name = 'mail'", []).unwrap();
    tables.execute("DELETE FROM breakers", []).unwrap();
    assert_eq!(history::page(&tables, Some("mail")).len(), 3);
}

#[test]
fn there_are_so_many_and_pages_end() {
    let tables = tables();
    let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                INSERT INTO breakers (service_name, endpoint, forced) SELECT 'r' || (i / 3), i, 'open' FROM n";
    tables.execute(many, [MAX_BREAKERS]).unwrap();
    assert_eq!(refused(force(&tables, None, Force::Open, None)), ControlError::TooManyBreakers);
    tables.execute("UPDATE breakers SET forced = NULL, resets = 1 WHERE service_name = 'r7' AND endpoint = '22'", []).unwrap();
    assert_eq!(force(&tables, None, Force::Open, None).unwrap(), Force::Open, "one that is not forced makes room");
    let (mut after, mut seen) = (None, 0);
    loop {
        let page = breakers::list(&tables, &ListForced { after }, View::Whole).unwrap();
        assert!(page.breakers.len() <= PAGE && !page.breakers.is_empty());
        seen += page.breakers.len();
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, MAX_BREAKERS as usize);
    assert!(breakers::check_breaker("", None).is_err() && breakers::check_breaker("a", Some("a b")).is_err());
    assert_eq!(breakers::check_breaker("a", Some("quic:a@bo")), Ok(()));
}
