//! Tables: nodes, named actors, a flight recorder, the policy.

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use horos_wire::{
    Role,
    policy::Row,
    protocol::node::{Offered, ServingReport, StatusReport},
    tree::{Outcome, Recorded, Recording},
};

use super::{Style, Tint, clean, micros, paint, tree};
use crate::{cli::Seen, config::ByteSize};

pub(super) fn table(header: &[&str], style: Style) -> Table {
    let mut table = Table::new();
    // Never by asking the terminal: these are pure functions.
    if style.color {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    table.load_style(presets::NOTHING).set_header(header.iter().map(|it| cell(it, Tint::Bold)));
    if let Some(width) = style.width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table
}

pub(super) fn cell(text: &str, tint: Tint) -> Cell {
    let cell = Cell::new(text);
    match tint {
        Tint::Plain => cell,
        Tint::Good => cell.fg(Color::DarkGreen),
        Tint::Warn => cell.fg(Color::DarkYellow),
        Tint::Bad => cell.fg(Color::DarkRed),
        Tint::Dim => cell.add_attribute(Attribute::Dim),
        Tint::Bold => cell.add_attribute(Attribute::Bold),
    }
}

pub(super) fn plain(text: impl AsRef<str>) -> Cell {
    cell(text.as_ref(), Tint::Plain)
}

/// Without the blanks that pad the last column: they wrap on narrow terminals and show up in diffs.
pub(super) fn written(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_start_matches(' ').trim_end())).collect()
}

/// The nodes of a cluster.
pub fn nodes(nodes: &[Seen], style: Style) -> String {
    let mut out = table(&["NODE", "ROLE", "HEALTH", "READY", "RELEASE", "ADDRESSES", "LIFE"], style);
    for Seen { node, status } in nodes {
        let (word, tint) = tree::health(node.health);
        let places: Vec<_> = node.addresses.iter().map(|address| clean(address)).collect();
        let (ready, ready_tint) = match status {
            Some(status) if status.ready => ("yes", Tint::Good),
            Some(_) => ("no", Tint::Bad),
            None => ("?", Tint::Dim),
        };
        out.add_row([
            plain(node.node.name.as_str()),
            plain(node.node.role.as_str()),
            cell(word, tint),
            cell(ready, ready_tint),
            plain(status.as_ref().map_or_else(|| "?".to_owned(), |status| clean(&status.version))),
            plain(places.join(" ")),
            plain(node.incarnation.map(|life| life.to_string()).unwrap_or_default()),
        ]);
    }
    written(&out)
}

/// The named actors of a cluster.
pub fn actors(actors: &[Offered], style: Style) -> String {
    let mut out = table(&["ADDRESS", "PROTOCOL", "METHODS"], style);
    for actor in actors {
        let methods: Vec<_> = actor.methods.iter().map(|method| clean(method)).collect();
        out.add_row([format!("{}@{}", actor.name, actor.node), format!("{}/{}", clean(&actor.protocol), actor.version), methods.join(" ")]);
    }
    written(&out)
}

/// An actor's last messages, and those before its last death.
pub fn recording(recording: &Recording, style: Style) -> String {
    let mut out = String::new();
    if let Some(messages) = &recording.at_death {
        let cause = recording.cause.as_deref().map_or_else(String::new, |cause| format!(": {}", clean(cause)));
        out += &paint(&format!("Before its last death{cause}"), Tint::Bad, style);
        out.push('\n');
        out += &messages_table(messages, style);
        out += "\nSince then\n";
    }
    out + &messages_table(&recording.current, style)
}

fn messages_table(messages: &[Recorded], style: Style) -> String {
    if messages.is_empty() {
        return "(no messages)\n".into();
    }
    let mut out = table(&["AGO", "METHOD", "SENDER", "SIZE", "WAITED", "TOOK", "OUTCOME", "TRACE"], style);
    for message in messages {
        let (word, tint) = match message.outcome {
            Outcome::InHand => ("in hand", Tint::Warn),
            Outcome::Done => ("done", Tint::Good),
            Outcome::Failed => ("failed", Tint::Warn),
            Outcome::Refused => ("refused", Tint::Warn),
            Outcome::Died => ("died", Tint::Bad),
        };
        out.add_row([
            plain(micros(message.ago_us)),
            plain(clean(&message.method)),
            plain(clean(&message.sender)),
            plain(if message.size == 0 { "local".into() } else { ByteSize(message.size.into()).to_string() }),
            plain(micros(message.waited_us)),
            plain(message.took_us.map_or_else(|| "-".into(), micros)),
            cell(word, tint),
            plain(if message.trace.is_none() { "-".into() } else { message.trace.to_string() }),
        ]);
    }
    written(&out)
}

/// Who may call what: a line a method and callee, a column a caller.
pub fn policy(rows: &[Row], style: Style) -> String {
    let mut header = vec!["ON", "METHOD"];
    header.extend(Role::ALL.map(Role::as_str));
    let mut out = table(&header, style);
    let mut seen: Vec<(Role, &str, &str)> = Vec::new();
    for row in rows {
        let key = (row.callee, &*row.protocol, &*row.method);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let mut line = vec![plain(row.callee.as_str()), plain(clean(&format!("{}.{}", row.protocol, row.method)))];
        line.extend(Role::ALL.map(|caller| {
            let allowed = rows.iter().any(|it| (it.callee, &*it.protocol, &*it.method) == key && it.caller == caller && it.allowed);
            if allowed { cell("yes", Tint::Good) } else { cell("-", Tint::Dim) }
        }));
        out.add_row(line);
    }
    written(&out)
}

/// How one node is, and what it serves over HTTP where it says.
pub fn status(report: &StatusReport, serving: Option<&ServingReport>, style: Style) -> String {
    let ready = if report.ready { paint("ready", Tint::Good, style) } else { paint("not ready", Tint::Bad, style) };
    let mut out = format!(
        "{} {} {ready}, release {}, up {}, {} MiB resident\n",
        report.node.node.name,
        report.node.node.role,
        clean(&report.version),
        micros(report.uptime_s.saturating_mul(1_000_000)),
        report.resident >> 20
    );
    for condition in &report.conditions {
        out += &format!("  {}\n", clean(condition));
    }
    if let Some(serving) = serving {
        for address in &serving.addresses {
            out += &format!("  {}\n", clean(address));
        }
        if let Some(message) = &serving.maintenance {
            out += &format!("  {}: {}\n", paint("maintenance", Tint::Warn, style), clean(message));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use horos_wire::{
        Incarnation, NodeId, TraceId,
        policy::Policy,
        tree::{Health, NodeTree},
    };

    #[test]
    fn the_policy_is_a_table_of_callers() {
        let row = |caller, allowed| Row { caller, callee: Role::Bo, protocol: "stock".into(), method: "reserve".into(), allowed };
        let rows = [row(Role::Bo, true), row(Role::Fo, true), row(Role::Operator, true), row(Role::Viewer, false)];
        assert_eq!(
            policy(&rows, Style::PLAIN),
            "ON  METHOD         bo   fo   operator  viewer\nbo  stock.reserve  yes  yes  yes       -\n"
        );
        assert!(policy(&Policy::builtin().rows(), Style::PLAIN).lines().count() > 1);
    }

    fn report(ready: bool) -> StatusReport {
        let node = NodeTree {
            node: NodeId { cluster: "shop".parse().unwrap(), role: Role::Bo, name: "bo-1".parse().unwrap() },
            incarnation: Some(Incarnation(0xab)),
            health: Health::Here,
            addresses: vec!["127.0.0.1:7400".into()],
            tree: None,
            missing: None,
        };
        let conditions = if ready { vec![] } else { vec!["stopping".into()] };
        StatusReport { node, version: "0.1.0".into(), ready, conditions, uptime_s: 75, resident: 21 << 20 }
    }

    #[test]
    fn the_status_says_why_a_node_is_not_ready() {
        let shown = status(&report(false), None, Style::PLAIN);
        assert_eq!(shown, "bo-1 bo not ready, release 0.1.0, up 1m15s, 21 MiB resident\n  stopping\n");
        let serving = ServingReport { addresses: vec!["https://127.0.0.1:7400".into()], maintenance: Some("back at noon".into()) };
        let shown = status(&report(true), Some(&serving), Style::PLAIN);
        assert!(shown.ends_with("resident\n  https://127.0.0.1:7400\n  maintenance: back at noon\n"), "{shown}");
    }

    #[test]
    fn a_node_that_says_nothing_of_itself_is_listed_as_it_is_seen() {
        let ready = report(true);
        let mut silent = ready.node.clone();
        (silent.health, silent.incarnation) = (Health::Down, None);
        silent.node.name = "bo-2".parse().unwrap();
        let seen = [Seen { node: ready.node.clone(), status: Some(ready) }, Seen { node: silent, status: None }];
        assert_eq!(
            nodes(&seen, Style::PLAIN),
            "NODE  ROLE  HEALTH  READY  RELEASE  ADDRESSES       LIFE\n\
             bo-1  bo    here    yes    0.1.0    127.0.0.1:7400  00000000000000ab\n\
             bo-2  bo    down    ?      ?        127.0.0.1:7400\n"
        );
    }

    #[test]
    fn the_recorder_shows_what_the_actor_died_of() {
        let message = |method: &str, outcome, took_us| Recorded {
            ago_us: 1_500,
            method: method.into(),
            sender: "fo-1".into(),
            size: 64,
            trace: TraceId(0),
            waited_us: 12,
            took_us,
            outcome,
        };
        let recording = Recording {
            current: vec![],
            at_death: Some(vec![message("reserve", Outcome::Done, Some(40)), message("levels", Outcome::Died, None)]),
            cause: Some("index out of bounds".into()),
        };
        assert_eq!(
            super::recording(&recording, Style::PLAIN),
            "Before its last death: index out of bounds\n\
             AGO    METHOD   SENDER  SIZE  WAITED  TOOK  OUTCOME  TRACE\n\
             1.5ms  reserve  fo-1    64B   12µs    40µs  done     -\n\
             1.5ms  levels   fo-1    64B   12µs    -     died     -\n\
             \nSince then\n(no messages)\n"
        );
    }
}
