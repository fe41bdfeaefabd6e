//! The supervision trees of a cluster, as a person reads them.

use horos_wire::tree::{Actor, Health, Kind, NodeTree, State};

use super::{Style, Tint, clean, micros, paint};

/// Deepest tree drawn. A node's own is five levels; a forged one must not exhaust the stack.
const MAX_DEPTH: usize = 64;

/// One line before alignment.
struct Line {
    /// Branches and name.
    left: String,
    tint: Tint,
    /// Cells after it; the notes under an actor have none.
    cells: Vec<(String, Tint)>,
    note: Option<(String, Tint)>,
}

/// Draws every node with its tree.
pub fn tree(nodes: &[NodeTree], style: Style) -> String {
    let mut lines = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        if i > 0 {
            lines.push(Line { left: String::new(), tint: Tint::Plain, cells: Vec::new(), note: None });
        }
        node_lines(node, &mut lines);
    }
    align(&lines, style)
}

/// Draws the trees for a terminal that is redrawn whole: from the top left, each line cleared to its end, the rest of the
/// screen cleared. Nothing flickers, because nothing is blank in between.
pub fn redraw(nodes: &[NodeTree], heading: &str, height: u16, style: Style) -> String {
    let text = tree(nodes, style);
    let all = text.lines().count();
    // One line for the heading, and one so that the last newline does not scroll.
    let room = usize::from(height).saturating_sub(2);
    let mut out = format!("\x1b[H{}\x1b[K\n", paint(&fit(&clean(heading), style.width), Tint::Bold, style));
    let shown = if all > room { room.saturating_sub(1) } else { all };
    for line in text.lines().take(shown) {
        out += line;
        out += "\x1b[K\n";
    }
    if shown < all {
        out += &format!("… {} more lines, without --watch all are shown\x1b[K\n", all - shown);
    }
    out + "\x1b[J"
}

fn node_lines(node: &NodeTree, lines: &mut Vec<Line>) {
    let (word, tint) = health(node.health);
    let mut cells = vec![(node.node.role.to_string(), Tint::Plain), (word.to_owned(), tint)];
    let places: Vec<String> = node.addresses.iter().map(|address| clean(address)).collect();
    cells.push((places.join(" "), Tint::Dim));
    if let Some(incarnation) = node.incarnation {
        cells.push((format!("life {incarnation}"), Tint::Dim));
    }
    lines.push(Line { left: clean(node.node.name.as_str()), tint: Tint::Bold, cells: Vec::new(), note: Some((joined(&cells), tint)) });
    if let Some(why) = &node.missing {
        lines.push(note("└─ ", format!("no tree: {}", clean(why)), Tint::Warn));
    }
    if let Some(root) = &node.tree {
        actor_lines(root, "", true, 0, lines);
    }
}

fn joined(cells: &[(String, Tint)]) -> String {
    cells.iter().map(|(text, _)| text.as_str()).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("  ")
}

fn note(left: &str, text: String, tint: Tint) -> Line {
    Line { left: left.to_owned(), tint: Tint::Plain, cells: Vec::new(), note: Some((text, tint)) }
}

fn actor_lines(actor: &Actor, prefix: &str, last: bool, depth: usize, lines: &mut Vec<Line>) {
    let branch = if last { "└─ " } else { "├─ " };
    let below = format!("{prefix}{}", if last { "   " } else { "│  " });
    let (word, tint) = state(actor.state);
    lines.push(Line {
        left: format!("{prefix}{branch}{}", clean(&actor.name)),
        tint: Tint::Plain,
        cells: cells(actor, word, tint),
        note: None,
    });
    let under = if actor.children.is_empty() { format!("{below}   ") } else { format!("{below}│  ") };
    match (&actor.busy_with, actor.state) {
        (Some(busy), State::Stuck) => {
            lines.push(note(
                &under,
                format!("stuck at {} for {}", clean(&busy.method), micros(busy.for_ms.saturating_mul(1000))),
                Tint::Bad,
            ));
        }
        (Some(busy), _) if busy.for_ms >= 1000 => {
            lines.push(note(&under, format!("at {} for {}", clean(&busy.method), micros(busy.for_ms.saturating_mul(1000))), Tint::Dim));
        }
        _ => {}
    }
    if let Some(error) = &actor.last_error {
        lines.push(note(&under, format!("last error: {}", clean(error)), Tint::Bad));
    }
    if depth >= MAX_DEPTH && !actor.children.is_empty() {
        lines.push(note(&format!("{below}└─ "), format!("{} more below", actor.children.len()), Tint::Warn));
        return;
    }
    for (i, child) in actor.children.iter().enumerate() {
        actor_lines(child, &below, i + 1 == actor.children.len(), depth + 1, lines);
    }
}

fn cells(actor: &Actor, word: &str, tint: Tint) -> Vec<(String, Tint)> {
    let some = |n: u64, what: &str, tint: Tint| (if n == 0 { String::new() } else { format!("{n} {what}") }, tint);
    let what = match (&actor.protocol, kind(actor.kind)) {
        (Some(protocol), _) => clean(protocol),
        (None, kind) => kind.to_owned(),
    };
    let full = actor.mailbox_limit > 0 && actor.mailbox >= actor.mailbox_limit;
    let mailbox = match (actor.mailbox, actor.mailbox_limit) {
        (0, 0) => String::new(),
        (depth, 0) => format!("{depth} queued"),
        (depth, limit) => format!("{depth}/{limit} queued"),
    };
    let timing = if actor.handled == 0 {
        String::new()
    } else {
        format!("p50 {} p99 {}", micros(actor.handling.p50_us), micros(actor.handling.p99_us))
    };
    vec![
        (word.to_owned(), tint),
        (what, Tint::Dim),
        (mailbox, if full { Tint::Bad } else { Tint::Plain }),
        some(actor.handled, "handled", Tint::Plain),
        some(actor.failed, "failed", Tint::Warn),
        some(actor.refused, "refused", Tint::Warn),
        (timing, Tint::Dim),
        some(u64::from(actor.restarts), if actor.restarts == 1 { "restart" } else { "restarts" }, Tint::Warn),
    ]
}

/// A node's health in a word.
pub(crate) fn health(health: Health) -> (&'static str, Tint) {
    match health {
        Health::Here => ("here", Tint::Good),
        Health::Up => ("up", Tint::Good),
        Health::Suspect => ("suspect", Tint::Warn),
        Health::Down => ("down", Tint::Bad),
        Health::Heard => ("heard of", Tint::Dim),
    }
}

fn state(state: State) -> (&'static str, Tint) {
    match state {
        State::Starting => ("starting", Tint::Warn),
        State::Running => ("running", Tint::Good),
        State::Stuck => ("STUCK", Tint::Bad),
        State::Restarting => ("restarting", Tint::Warn),
        State::Stopped => ("stopped", Tint::Dim),
        State::Failed => ("FAILED", Tint::Bad),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Worker => "",
        Kind::Service => "service",
        Kind::OneForOne => "one for one",
        Kind::OneForAll => "one for all",
        Kind::RestForOne => "rest for one",
    }
}

/// Columns as wide as their widest cell; columns that are empty everywhere take no room.
fn align(lines: &[Line], style: Style) -> String {
    let mut left = 0;
    let mut widths: Vec<usize> = Vec::new();
    for line in lines.iter().filter(|line| !line.cells.is_empty()) {
        left = left.max(line.left.chars().count());
        widths.resize(widths.len().max(line.cells.len()), 0);
        for (width, (text, _)) in widths.iter_mut().zip(&line.cells) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut out = String::new();
    for line in lines {
        let mut pieces = vec![(line.left.clone(), line.tint)];
        if let Some((text, tint)) = &line.note {
            let gap = if line.left.ends_with(' ') { "" } else { "  " };
            pieces.push((format!("{gap}{text}"), *tint));
        }
        let mut pad = left.saturating_sub(line.left.chars().count());
        for (width, (text, tint)) in widths.iter().zip(&line.cells).filter(|(width, _)| **width > 0) {
            pieces.push((" ".repeat(pad + 2), Tint::Plain));
            pieces.push((text.clone(), *tint));
            pad = width - text.chars().count();
        }
        out.push_str(&write_within(&pieces, style));
        out.push('\n');
    }
    out
}

/// Paints the pieces of a line, cut at the terminal's edge: escape sequences have no width, so the cut comes first.
fn write_within(pieces: &[(String, Tint)], style: Style) -> String {
    let whole: usize = pieces.iter().map(|(text, _)| text.chars().count()).sum();
    let limit = style.width.map_or(usize::MAX, usize::from).max(1);
    let mut room = if whole > limit { limit - 1 } else { whole };
    let last = pieces.iter().rposition(|(text, _)| !text.trim().is_empty()).map_or(0, |at| at + 1);
    let mut out = String::new();
    for (i, (text, tint)) in pieces[..last].iter().enumerate() {
        let shown: String = text.chars().take(room).collect();
        room -= shown.chars().count();
        let shown = if i + 1 == last { shown.trim_end() } else { &shown };
        if !shown.is_empty() {
            out.push_str(&paint(shown, *tint, style));
        }
    }
    if whole > limit {
        out.push('…');
    }
    out
}

fn fit(text: &str, width: Option<u16>) -> String {
    let limit = width.map_or(usize::MAX, usize::from);
    if text.chars().count() <= limit { text.to_owned() } else { text.chars().take(limit.saturating_sub(1)).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use horos_wire::{
        Incarnation, NodeId, Role,
        tree::{Busy, Quantiles},
    };

    fn actor(name: &str, kind: Kind, children: Vec<Actor>) -> Actor {
        Actor {
            name: name.into(),
            kind,
            state: State::Running,
            protocol: None,
            mailbox: 0,
            mailbox_limit: 0,
            handled: 0,
            failed: 0,
            refused: 0,
            restarts: 0,
            last_progress_ms: None,
            wait: Quantiles::default(),
            handling: Quantiles::default(),
            busy_with: None,
            last_error: None,
            children,
        }
    }

    fn cluster() -> Vec<NodeTree> {
        let id = |role: Role, name: &str| NodeId { cluster: "shop".parse().unwrap(), role, name: name.parse().unwrap() };
        let stock = Actor {
            protocol: Some("stock/1".into()),
            mailbox: 3,
            mailbox_limit: 1024,
            handled: 12_000,
            failed: 2,
            restarts: 1,
            handling: Quantiles { p50_us: 40, p99_us: 1_250 },
            last_error: Some("database is locked\x1b[31m".into()),
            ..actor("stock", Kind::Service, vec![])
        };
        let spin = Actor {
            state: State::Stuck,
            protocol: Some("spin/1".into()),
            mailbox: 8,
            mailbox_limit: 8,
            busy_with: Some(Busy { method: "turn".into(), for_ms: 5_100 }),
            ..actor("spin", Kind::Service, vec![])
        };
        let root = actor(
            "root",
            Kind::RestForOne,
            vec![
                actor("link", Kind::OneForOne, vec![actor("fo-1", Kind::Worker, vec![])]),
                actor("services", Kind::OneForOne, vec![stock, spin]),
            ],
        );
        vec![
            NodeTree {
                node: id(Role::Bo, "bo-1"),
                incarnation: Some(Incarnation(0xab)),
                health: Health::Here,
                addresses: vec!["127.0.0.1:7400".into()],
                tree: Some(root),
                missing: None,
            },
            NodeTree {
                node: id(Role::Fo, "fo-1"),
                incarnation: None,
                health: Health::Down,
                addresses: vec!["127.0.0.1:7401".into()],
                tree: None,
                missing: Some("no heartbeat for 2.6 s".into()),
            },
        ]
    }

    #[test]
    fn the_tree_shows_states_loads_and_the_culprit() {
        let expected = "\
bo-1  bo  here  127.0.0.1:7400  life 00000000000000ab
└─ root         running  rest for one
   ├─ link      running  one for one
   │  └─ fo-1   running
   └─ services  running  one for one
      ├─ stock  running  stock/1       3/1024 queued  12000 handled  2 failed  p50 40µs p99 1.2ms  1 restart
      │     last error: database is locked [31m
      └─ spin   STUCK    spin/1        8/8 queued
            stuck at turn for 5.1s

fo-1  fo  down  127.0.0.1:7401
└─ no tree: no heartbeat for 2.6 s
";
        assert_eq!(tree(&cluster(), Style::PLAIN), expected);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [1, 10, 40, 80] {
            for line in tree(&cluster(), Style { color: false, width: Some(width) }).lines() {
                assert!(line.chars().count() <= usize::from(width), "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn colours_are_there_only_where_they_are_wanted() {
        assert!(!tree(&cluster(), Style::PLAIN).contains('\x1b'));
        let text = tree(&cluster(), Style { color: true, width: Some(60) });
        assert!(text.contains("\x1b[31mSTUCK\x1b[0m"));
        assert_eq!(text.matches("\x1b[0m").count() * 2, text.matches('\x1b').count());
    }

    #[test]
    fn a_redraw_stays_on_the_screen() {
        let text = redraw(&cluster(), "shop", 6, Style::PLAIN);
        assert!(text.starts_with("\x1b[Hshop\x1b[K\n") && text.ends_with("\x1b[J"));
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.contains("… 9 more lines"), "{text}");
    }

    #[test]
    fn a_tree_without_end_is_cut() {
        let mut deep = actor("a", Kind::Worker, vec![]);
        for _ in 0..1_000 {
            deep = actor("a", Kind::OneForOne, vec![deep]);
        }
        let mut node = cluster().remove(0);
        node.tree = Some(deep);
        assert!(tree(&[node], Style::PLAIN).contains("1 more below"));
    }
}
