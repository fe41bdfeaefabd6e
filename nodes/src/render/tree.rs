//! The supervision trees of a cluster, as a person reads them.

use horos_wire::tree::{Actor, Health, Kind, NodeTree, State};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{Style, Tint, clean, micros, paint};

/// Deepest tree drawn. A node's own is five levels; a forged one must not exhaust the stack.
const MAX_DEPTH: usize = 64;

/// Columns after the name that give way, the first of them first, where the terminal is too narrow for all.
const GIVE_WAY: [usize; 4] = [P50, WHAT, P99, HANDLED];
const WHAT: usize = 1;
const HANDLED: usize = 3;
const P50: usize = 4;
const P99: usize = 5;

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

/// Draws the trees for a terminal of `height` lines that is redrawn whole, with the last lines of a log below: from the top left,
/// each line cleared to its end, then the rest of the screen. Nothing flickers, because nothing is blank in between.
pub fn redraw(heading: &[String], nodes: &[NodeTree], log: &[String], height: u16, style: Style) -> String {
    let tree = tree(nodes, style);
    let all = tree.lines().count();
    // One line less, so that the last newline does not scroll.
    let room = usize::from(height).saturating_sub(heading.len() + 1);
    // A third for the log, with a blank line above it, and more where the tree leaves it.
    let wanted = if log.is_empty() { 0 } else { log.len() + 1 };
    let log_room = wanted.min((room / 3).max(room.saturating_sub(all)));
    let tree_room = room - log_room;
    let shown = if all > tree_room { tree_room.saturating_sub(1) } else { all };
    let mut lines: Vec<String> = heading.iter().map(|line| paint(&fit(&clean(line), style.width), Tint::Bold, style)).collect();
    lines.extend(tree.lines().take(shown).map(str::to_owned));
    if shown < all && tree_room > 0 {
        lines.push(fit(&format!("… {} more lines, `tree` shows them all", all - shown), style.width));
    }
    if log_room > 1 {
        lines.push(String::new());
        let first = log.len().saturating_sub(log_room - 1);
        lines.extend(log[first..].iter().map(|line| paint(&fit(&clean(line), style.width), Tint::Dim, style)));
    }
    // To the top left, and after each line and the last one what was there before is cleared (ECMA-48 §8.3.41, §8.3.39).
    let body: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
    format!("\x1b[H{body}\x1b[J")
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
        (0, _) => String::new(),
        (depth, 0) => format!("{depth} queued"),
        (depth, limit) => format!("{depth}/{limit} queued"),
    };
    // What a supervisor handles are its children's starts and ends, which its children show.
    let handled = if matches!(actor.kind, Kind::Worker | Kind::Service) { actor.handled } else { 0 };
    // Without a measured message there is nothing to say: timers are not measured.
    let measured = handled > 0 && actor.handling.p99_us > 0;
    let quantile = |name: &str, us: u64| (if measured { format!("{name} {}", micros(us)) } else { String::new() }, Tint::Dim);
    vec![
        (word.to_owned(), tint),
        (what, Tint::Dim),
        (mailbox, if full { Tint::Bad } else { Tint::Plain }),
        some(handled, "handled", Tint::Plain),
        quantile("p50", actor.handling.p50_us),
        quantile("p99", actor.handling.p99_us),
        some(actor.failed, "failed", Tint::Warn),
        some(actor.refused, "refused", Tint::Warn),
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

/// Columns as wide as their widest cell; columns that are empty everywhere take no room, and where there is too little, those of
/// [`GIVE_WAY`] go.
fn align(lines: &[Line], style: Style) -> String {
    let mut left = 0;
    let mut widths: Vec<usize> = Vec::new();
    for line in lines.iter().filter(|line| !line.cells.is_empty()) {
        left = left.max(line.left.width());
        widths.resize(widths.len().max(line.cells.len()), 0);
        for (width, (text, _)) in widths.iter_mut().zip(&line.cells) {
            *width = (*width).max(text.width());
        }
    }
    let limit = style.width.map_or(usize::MAX, usize::from);
    for column in GIVE_WAY {
        let whole = left + widths.iter().filter(|width| **width > 0).map(|width| width + 2).sum::<usize>();
        if let (true, Some(width)) = (whole > limit, widths.get_mut(column)) {
            *width = 0;
        }
    }
    let mut out = String::new();
    for line in lines {
        let mut pieces = vec![(line.left.clone(), line.tint)];
        if let Some((text, tint)) = &line.note {
            let gap = if line.left.ends_with(' ') { "" } else { "  " };
            pieces.push((format!("{gap}{text}"), *tint));
        }
        let mut pad = left.saturating_sub(line.left.width());
        for (width, (text, tint)) in widths.iter().zip(&line.cells).filter(|(width, _)| **width > 0) {
            pieces.push((" ".repeat(pad + 2), Tint::Plain));
            pieces.push((text.clone(), *tint));
            pad = width - text.width();
        }
        out.push_str(&write_within(&pieces, style));
        out.push('\n');
    }
    out
}

/// Paints the pieces of a line, cut at the terminal's edge: escape sequences have no width, so the cut comes first.
fn write_within(pieces: &[(String, Tint)], style: Style) -> String {
    let last = pieces.iter().rposition(|(text, _)| !text.trim().is_empty()).map_or(0, |at| at + 1);
    let (pieces, limit) = (&pieces[..last], style.width.map_or(usize::MAX, usize::from).max(1));
    let whole: usize = pieces.iter().enumerate().map(|(i, (text, _))| if i + 1 == last { text.trim_end() } else { text }.width()).sum();
    let mut room = if whole > limit { limit - 1 } else { whole };
    let mut out = String::new();
    for (text, tint) in pieces {
        let shown = cut(text, room);
        room -= shown.width();
        if !shown.is_empty() {
            out.push_str(&paint(shown, *tint, style));
        }
        if shown.len() < text.len() {
            break;
        }
    }
    if whole > limit {
        out.push('…');
    }
    out
}

/// As much from the beginning of `text` as `room` columns take.
fn cut(text: &str, room: usize) -> &str {
    let mut used = 0;
    for (at, c) in text.char_indices() {
        used += c.width().unwrap_or(0);
        if used > room {
            return &text[..at];
        }
    }
    text
}

fn fit(text: &str, width: Option<u16>) -> String {
    let limit = width.map_or(usize::MAX, usize::from);
    if text.width() <= limit { text.to_owned() } else { format!("{}…", cut(text, limit.saturating_sub(1))) }
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
        let session = Actor { handled: 7, ..actor("fo-1", Kind::Worker, vec![]) };
        let root = actor(
            "root",
            Kind::RestForOne,
            vec![
                actor("link", Kind::OneForOne, vec![session]),
                Actor { handled: 9, ..actor("services", Kind::OneForOne, vec![stock, spin]) },
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
   │  └─ fo-1   running                               7 handled
   └─ services  running  one for one
      ├─ stock  running  stock/1       3/1024 queued  12000 handled  p50 40µs  p99 1.2ms  2 failed  1 restart
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
        let mut wide = cluster();
        wide[1].missing = Some("接続できません接続できません接続できません接続できません接続できません".into());
        for width in [1, 2, 10, 40, 79, 80, 81] {
            for line in tree(&wide, Style { color: false, width: Some(width) }).lines() {
                assert!(line.width() <= usize::from(width), "{width}: {line:?}");
            }
        }
    }

    #[test]
    fn on_a_narrow_terminal_the_least_telling_columns_give_way_before_anything_is_cut() {
        let shown = tree(&cluster(), Style { color: false, width: Some(80) });
        let stock = shown.lines().find(|line| line.contains("stock ")).unwrap();
        assert_eq!(stock, "      ├─ stock  running  3/1024 queued  12000 handled  2 failed  1 restart");
        let roomy = tree(&cluster(), Style { color: false, width: Some(100) });
        assert!(roomy.contains("stock/1") && roomy.contains("p99 1.2ms") && !roomy.contains("p50"), "{roomy}");
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
        let heading = ["shop".to_owned(), "Ctrl-C ends".to_owned()];
        let log: Vec<String> = (0..100).map(|i| format!("line {i}\x1b[2J")).collect();
        for height in 1..60 {
            for log in [&log[..0], &log[..3], &log[..]] {
                let text = redraw(&heading, &cluster(), log, height, Style::PLAIN);
                assert!(text.starts_with("\x1b[Hshop\x1b[K\nCtrl-C ends\x1b[K\n") && text.ends_with("\x1b[J"));
                assert!(text.lines().count() <= usize::from(height).max(3), "{height}: {text}");
                assert!(height < 9 || log.is_empty() || text.contains(&log.last().unwrap().replace('\x1b', " ")), "{height}: {text}");
                assert!(height < 25 || (text.contains("no tree:") && !text.contains("more lines")), "{height}: {text}");
            }
        }
        assert!(redraw(&heading, &cluster(), &[], 8, Style::PLAIN).contains("… 8 more lines"));
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
