//! Routes, their history, and what nodes make of them.

use horos_wire::protocol::{
    control::{Content, Edit, Imported, Route},
    router::{EndpointStatus, ServiceDetail},
};
use jiff::Timestamp;

use super::{
    Style, Tint, breakers, clean, micros, paint,
    table::{cell, plain, table, written},
};
use crate::cli::Inspected;

/// The first words of a text, for a table.
const BRIEF: usize = 60;

pub(super) fn when(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

pub(super) fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), clean)
}

/// Routes, a line each; below them what is wrong.
pub fn routes(routes: &[Route], style: Style) -> String {
    if routes.is_empty() {
        return "(no routes)\n".into();
    }
    let mut out = table(&["SERVICE", "STRATEGY", "ENDPOINT", "CONFIG", "EDITED"], style);
    for it in routes {
        let tint = if it.problems.is_empty() { Tint::Plain } else { Tint::Bad };
        out.add_row([
            cell(&clean(&it.service), tint),
            plain(clean(&it.strategy)),
            plain(or_dash(it.endpoint.as_deref())),
            plain(or_dash(it.config.as_deref())),
            plain(when(it.updated_at)),
        ]);
    }
    let mut out = written(&out);
    for it in routes {
        for problem in &it.problems {
            out += &paint(&clean(&format!("{}: {problem}", it.service)), Tint::Bad, style);
            out.push('\n');
        }
    }
    out
}

/// One route, whole.
pub fn route(it: &Route, style: Style) -> String {
    let mut out = format!("{}\n", paint(&clean(&it.service), Tint::Bold, style));
    let mut line = |name: &str, text: &str| out += &format!("  {name:<9} {text}\n");
    line("strategy", &clean(&it.strategy));
    line("endpoint", &or_dash(it.endpoint.as_deref()));
    line("config", &it.config.as_deref().map_or_else(|| "-".to_owned(), super::printable));
    line("edited", &when(it.updated_at));
    line("version", &it.version.to_string());
    for problem in &it.problems {
        line("wrong", &paint(&clean(&problem.to_string()), Tint::Bad, style));
    }
    out
}

fn brief(text: &str) -> String {
    let mut out: String = text.chars().take(BRIEF).collect();
    if text.chars().nth(BRIEF).is_some() {
        out.push('…');
    }
    clean(&out)
}

fn content(it: Option<&Content>) -> String {
    let Some(it) = it else { return "nothing".to_owned() };
    let mut out = clean(&it.strategy);
    for text in [&it.endpoint, &it.config].into_iter().flatten() {
        if !text.is_empty() && **text != *"{}" {
            out = format!("{out} {}", brief(text));
        }
    }
    out
}

fn change(it: &Edit) -> String {
    if let Some(breaker) = &it.breaker {
        let whose = if breaker.endpoint.is_empty() { "every endpoint".to_owned() } else { brief(&breaker.endpoint) };
        return match breaker.after {
            Some(after) => format!("{whose}: {} -> {after}", breaker.before),
            None => format!("{whose}: forgets what it has counted"),
        };
    }
    if it.before == it.after {
        return "no change".to_owned();
    }
    format!("{} -> {}", content(it.before.as_ref()), content(it.after.as_ref()))
}

/// Edits, a line each.
pub fn edits(edits: &[Edit], style: Style) -> String {
    if edits.is_empty() {
        return "(no edits)\n".into();
    }
    let mut out = table(&["EDIT", "WHEN", "WHO", "WHAT", "SERVICE", "CHANGE", "WHY"], style);
    for it in edits {
        out.add_row([it.edit.to_string(), when(it.at), clean(&it.who), clean(&it.what), clean(&it.service), change(it), clean(&it.why)]);
    }
    written(&out)
}

/// What became of imported rows that somebody should look at.
pub fn imported(it: &Imported, style: Style) -> String {
    let mut out = String::new();
    for left in &it.left {
        out += &format!("{} was left: {}\n", clean(&left.service), clean(&left.why));
    }
    for wrong in &it.wrong {
        for problem in &wrong.problems {
            out += &paint(&clean(&format!("{}: {problem}", wrong.service)), Tint::Bad, style);
            out.push('\n');
        }
    }
    out
}

/// A route as the owner has it, and as each node does.
pub fn inspected(service: &str, owners: Option<&Route>, nodes: &[Inspected], style: Style) -> String {
    let mut out = match owners {
        Some(it) => route(it, style),
        None => format!("{}\n  no route: it is an actor that is called by its name\n", paint(&clean(service), Tint::Bold, style)),
    };
    if nodes.is_empty() {
        out += "no node in reach says what it makes of it\n";
    }
    for it in nodes {
        let name = paint(it.node.as_str(), Tint::Bold, style);
        let Some(detail) = &it.service else {
            let why = paint(&clean(it.error.as_deref().unwrap_or_default()), Tint::Bad, style);
            out += &format!("{name}  {why}\n");
            continue;
        };
        let state = match (it.current, &detail.status.problem) {
            (_, Some(_)) => paint("serves on an older row", Tint::Bad, style),
            (Some(true), None) => paint("serves on this row", Tint::Good, style),
            (Some(false), None) => paint("has another row", Tint::Warn, style),
            (None, None) => "serves without a row".to_owned(),
        };
        out += &format!("{name}  {state}\n{}", detailed(detail, style));
    }
    out
}

fn detailed(it: &ServiceDetail, style: Style) -> String {
    let status = &it.status;
    let mut out = format!(
        "  {} calls, {} failed, {} retries, {} in hand, p50 {}, p99 {}\n",
        status.calls,
        status.failures,
        status.retries,
        status.in_flight,
        micros(status.latency.p50_us),
        micros(status.latency.p99_us),
    );
    for problem in status.problem.iter().flat_map(|problem| &problem.problems) {
        out += &format!("  {}\n", paint(&clean(&problem.to_string()), Tint::Bad, style));
    }
    if !status.endpoints.is_empty() {
        let mut rows = table(&["ENDPOINT", "WEIGHT", "BREAKER", "IN HAND", "CALLS", "FAILED", "P50", "P99", "LAST ERROR"], style);
        for endpoint in &status.endpoints {
            rows.add_row(line(endpoint));
        }
        out += &written(&rows).lines().map(|line| format!("  {line}\n")).collect::<String>();
    }
    out
}

fn line(it: &EndpointStatus) -> [comfy_table::Cell; 9] {
    let share = it.canary_percent.map_or_else(|| it.weight.to_string(), |percent| format!("{} and {percent} %", it.weight));
    [
        plain(clean(&it.key)),
        plain(share),
        breakers::state(it.breaker, it.forced, it.until_ms),
        plain(it.in_flight.to_string()),
        plain(it.calls.to_string()),
        cell(&it.failures.to_string(), if it.failures == 0 { Tint::Dim } else { Tint::Warn }),
        plain(micros(it.latency.p50_us)),
        plain(micros(it.latency.p99_us)),
        cell(&or_dash(it.last_error.as_deref()), if it.last_error.is_some() { Tint::Bad } else { Tint::Dim }),
    ]
}

#[cfg(test)]
mod tests {
    use horos_wire::{
        protocol::{
            control::{BreakerEdit, Force, Problem, RouteVersion},
            router::{BreakerState, RowInForce, ServiceStatus},
        },
        tree::Quantiles,
    };

    use super::*;

    fn a_route(endpoint: Option<&str>) -> Route {
        Route {
            service: "mail\u{1b}[2J".into(),
            strategy: "http".into(),
            endpoint: endpoint.map(Into::into),
            config: Some("{}".into()),
            updated_at: 0,
            version: RouteVersion(1),
            version_on_fo: RouteVersion(2),
            problems: vec![],
        }
    }

    #[test]
    fn routes_are_a_table_that_gives_the_terminal_no_orders() {
        let shown = routes(&[a_route(Some("https://a")), a_route(None)], Style::PLAIN);
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(!shown.contains('\u{1b}') && shown.contains("1970-01-01T00:00:00Z") && shown.contains(" - "), "{shown}");
        assert_eq!(routes(&[], Style::PLAIN), "(no routes)\n");
        let problem = Problem { key: "endpoint".into(), what: "no \u{9b}2JURL".into() };
        let wrong = Route { problems: vec![problem], strategy: "Odd\u{202e}".into(), ..a_route(None) };
        let shown = routes(std::slice::from_ref(&wrong), Style::PLAIN) + &route(&wrong, Style::PLAIN);
        assert!(shown.matches("endpoint: no  2JURL").count() == 2 && !shown.contains(['\u{9b}', '\u{202e}']), "{shown}");
        assert!(shown.contains("00000000000000000000000000000001"), "{shown}");
    }

    #[test]
    fn an_edit_says_what_it_changed() {
        let content = |strategy: &str, endpoint: Option<&str>| {
            Some(Content { strategy: strategy.into(), endpoint: endpoint.map(Into::into), config: Some("{}".into()), cut: false })
        };
        let edit = |before, after, breaker| Edit {
            edit: 7,
            at: 0,
            who: "operator@ana".into(),
            why: "why\u{1b}not".into(),
            what: "set".into(),
            service: "mail".into(),
            before,
            after,
            breaker,
        };
        let breaker = |after| Some(BreakerEdit { endpoint: "".into(), before: Force::Auto, after });
        let shown = edits(
            &[
                edit(None, content("http", Some("https://a")), None),
                edit(content("http", Some("https://a")), content("noop", None), None),
                edit(content("noop", None), None, None),
                edit(content("noop", None), content("noop", None), None),
                edit(None, None, breaker(Some(Force::Open))),
                edit(None, None, breaker(None)),
            ],
            Style::PLAIN,
        );
        for change in [
            "nothing -> http https://a",
            "http https://a -> noop",
            "noop -> nothing",
            "no change",
            "every endpoint: auto -> open",
            "every endpoint: forgets what it has counted",
            "why not",
        ] {
            assert!(shown.contains(change), "{change}: {shown}");
        }
    }

    #[test]
    fn what_a_node_makes_of_a_route_is_told_with_its_endpoints() {
        let latency = Quantiles { p50_us: 40, p99_us: 1_200 };
        let endpoint = EndpointStatus {
            key: "http:https://a".into(),
            strategy: "http".into(),
            endpoint: "https://a".into(),
            weight: 1,
            canary_percent: None,
            breaker: BreakerState::Open,
            forced: Force::Auto,
            until_ms: Some(1_500),
            in_flight: 2,
            calls: 9,
            failures: 5,
            latency,
            last_error: Some("refused\u{1b}".into()),
        };
        let status = ServiceStatus {
            service: "mail".into(),
            row: Some(RowInForce { version: RouteVersion(1), taken_up_ms: 0 }),
            problem: None,
            strategy: "http".into(),
            endpoints: vec![endpoint],
            in_flight: 2,
            calls: 9,
            failures: 5,
            retries: 1,
            latency,
        };
        let detail = ServiceDetail {
            status,
            policies: "{}".into(),
            waiting: 0,
            overloaded: 0,
            limited: 0,
            refused: 0,
            hedged: (0, 0),
            fell_back: 0,
            over_budget: 0,
        };
        let on = |node: &str, service, error| Inspected { node: node.parse().unwrap(), service, current: Some(true), error };
        let nodes = [on("bo-1", Some(detail), None), on("fo-1", None, Some("no route".to_owned()))];
        let shown = inspected("mail", Some(&a_route(None)), &nodes, Style::PLAIN);
        for text in
            ["bo-1  serves on this row", "9 calls, 5 failed, 1 retries, 2 in hand, p50 40µs, p99 1.2ms", "open for 1.5s", "fo-1  no route"]
        {
            assert!(shown.contains(text), "{text}: {shown}");
        }
        assert!(!shown.contains('\u{1b}'));
        assert!(inspected("mail", None, &[], Style::PLAIN).contains("no node in reach"));
    }
}
