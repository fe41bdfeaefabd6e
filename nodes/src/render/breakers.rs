//! Breakers: forced for all nodes, and on each.

use comfy_table::Cell;
use horos_wire::protocol::{
    control::{Force, ForcedBreaker},
    router::BreakerState,
};

use super::{
    Style, Tint, clean, micros, paint,
    routes::{or_dash, when},
    table::{cell, plain, table, written},
};
use crate::cli::{OnNode, Silent};

fn endpoint(text: &str) -> String {
    if text.is_empty() { "(every one)".to_owned() } else { clean(text) }
}

fn tint(state: Force) -> Tint {
    match state {
        Force::Auto => Tint::Plain,
        Force::Open => Tint::Bad,
        Force::Closed => Tint::Warn,
    }
}

/// What a breaker does, and by whose will.
pub(super) fn state(own: BreakerState, forced: Force, until_ms: Option<u64>) -> Cell {
    match (forced, own) {
        (Force::Open | Force::Closed, _) => cell(&format!("forced {forced}"), tint(forced)),
        (Force::Auto, BreakerState::Closed) => cell("closed", Tint::Good),
        (Force::Auto, BreakerState::HalfOpen) => cell("half-open", Tint::Warn),
        (Force::Auto, BreakerState::Open) => {
            let text = until_ms.map_or_else(|| "open".to_owned(), |ms| format!("open for {}", micros(ms.saturating_mul(1_000))));
            cell(&text, Tint::Bad)
        }
    }
}

/// What people have ordered.
pub fn forced(breakers: &[ForcedBreaker], style: Style) -> String {
    let mut out = table(&["SERVICE", "ENDPOINT", "FORCED", "EDITED"], style);
    for it in breakers {
        let edited = if it.updated_at == 0 { "-".to_owned() } else { when(it.updated_at) };
        out.add_row([plain(clean(&it.service)), plain(endpoint(&it.endpoint)), cell(it.state.as_str(), tint(it.state)), plain(edited)]);
    }
    written(&out)
}

/// Breakers on every node, after those that are forced.
pub fn breakers(ordered: &[ForcedBreaker], breakers: &[OnNode], silent: &[Silent], style: Style) -> String {
    let ordered: Vec<_> = ordered.iter().filter(|it| it.state != Force::Auto).cloned().collect();
    let mut out = String::new();
    if !ordered.is_empty() {
        out += &forced(&ordered, style);
        out.push('\n');
    }
    if breakers.is_empty() {
        out += "no node in reach has a breaker that has counted anything\n";
    } else {
        let mut rows = table(&["SERVICE", "ENDPOINT", "NODE", "BREAKER", "FAILURES", "LAST ERROR"], style);
        for OnNode { node, breaker: it } in breakers {
            rows.add_row([
                plain(clean(&it.service)),
                plain(clean(&it.key)),
                plain(node.as_str()),
                state(it.state, it.forced, it.until_ms),
                cell(&it.failures_in_row.to_string(), if it.failures_in_row == 0 { Tint::Dim } else { Tint::Warn }),
                cell(&or_dash(it.last_error.as_deref()), if it.last_error.is_some() { Tint::Bad } else { Tint::Dim }),
            ]);
        }
        out += &written(&rows);
    }
    for it in silent {
        out += &format!("{}: {}\n", it.node, paint(&clean(&it.error), Tint::Bad, style));
    }
    out
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::router::BreakerStatus;

    use super::*;

    #[test]
    fn forced_breakers_stand_above_what_each_node_says_of_its_own() {
        let ordered =
            |endpoint: &str, state| ForcedBreaker { service: "mail".into(), endpoint: endpoint.into(), state, resets: 0, updated_at: 1 };
        let on = |node: &str, state, forced| OnNode {
            node: node.parse().unwrap(),
            breaker: BreakerStatus {
                service: "mail".into(),
                key: "quic:mail@bo".into(),
                state,
                forced,
                until_ms: Some(200),
                failures_in_row: 3,
                transitions: 1,
                opened_ms: None,
                last_error: Some("gone\u{1b}[2J".into()),
            },
        };
        let shown = breakers(
            &[ordered("", Force::Open), ordered("b", Force::Auto)],
            &[on("bo-1", BreakerState::Open, Force::Auto), on("fo-1", BreakerState::Closed, Force::Open)],
            &[Silent { node: "fo-2".parse().unwrap(), error: "away\u{7}".into() }],
            Style::PLAIN,
        );
        for text in ["(every one)", "open for 200ms", "forced open", "fo-2: away", "gone [2J"] {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        assert!(!shown.contains(['\u{1b}', '\u{7}']) && shown.lines().count() == 7, "{shown}");
        assert!(breakers(&[], &[], &[], Style::PLAIN).starts_with("no node"));
    }
}
