//! Publications, replicas, comparisons and filters, as tables.

use std::collections::BTreeMap;

use horos_dbsync::filter::{KeyKind, Report};
use horos_wire::protocol::sync::{FeedState, Position, ReplicaState, VerifyReport};

use super::{
    Style, Tint, clean, micros, paint,
    table::{cell, plain, table, written},
};
use crate::cli::{Kept, Published};

/// Publications with their subscribers, then replicas.
pub fn sync(publications: &[Published], replicas: &[Kept], style: Style) -> String {
    if publications.is_empty() && replicas.is_empty() {
        return "nothing is published or replicated by any node in reach\n".to_owned();
    }
    let mut out = String::new();
    for published in publications {
        out += &publication(published, style);
    }
    if !replicas.is_empty() {
        if !out.is_empty() {
            out.push('\n');
        }
        let mut kept = table(&["REPLICA", "STATE", "POSITION", "STALE", "CHANGES", "SNAPSHOTS", "RECEIVED", "LAST ERROR"], style);
        for replica in replicas {
            let Some(it) = &replica.status else {
                kept.add_row([plain(format!("?@{}", replica.node)), cell(&clean(replica.error.as_deref().unwrap_or_default()), Tint::Bad)]);
                continue;
            };
            let (word, tint) = match &it.state {
                ReplicaState::Empty => ("empty".to_owned(), Tint::Warn),
                ReplicaState::Live => ("live".to_owned(), Tint::Good),
                ReplicaState::Receiving { rows, bytes } => (format!("receiving {rows} rows, {}", size(*bytes)), Tint::Warn),
                ReplicaState::Pinned => ("rolled back".to_owned(), Tint::Warn),
                ReplicaState::Broken => ("broken".to_owned(), Tint::Bad),
            };
            kept.add_row([
                plain(clean(&format!("{}@{}", it.name, replica.node))),
                cell(&word, tint),
                plain(place(it.position)),
                plain(it.stale_ms.map_or_else(|| "?".to_owned(), |ms| micros(ms.saturating_mul(1_000)))),
                plain(it.deltas.to_string()),
                plain(it.snapshots.to_string()),
                plain(size(it.received_bytes)),
                cell(&clean(it.last_error.as_deref().unwrap_or("-")), if it.last_error.is_some() { Tint::Bad } else { Tint::Dim }),
            ]);
        }
        out += &written(&kept);
    }
    out
}

fn publication(published: &Published, style: Style) -> String {
    let Some(it) = &published.status else {
        let why = clean(published.error.as_deref().unwrap_or_default());
        return format!("?@{}  {}\n", published.node, paint(&why, Tint::Bad, style));
    };
    let name = paint(&clean(&format!("{}@{}", it.name, published.node)), Tint::Bold, style);
    let file = it.file.as_deref().map(|file| format!(" of {}", clean(file))).unwrap_or_default();
    let mut out = format!("{name}  {} tables{file}, at {}, {} changes in its log\n", it.tables, place(it.head), it.log_entries);
    if let Some(condition) = &it.condition {
        out += &format!("  {}\n", paint(&clean(condition), Tint::Bad, style));
    }
    for index in &it.blind {
        out += &format!("  {}\n", paint(&format!("REPLACE through {} is seen by comparison only", clean(index)), Tint::Dim, style));
    }
    if it.subscribers.is_empty() {
        return out + "  nobody subscribes to it\n";
    }
    let mut to = table(&["TO", "STATE", "POSITION", "LAG", "BEHIND", "SENT", "CHANGES", "SNAPSHOTS", "REPAIRED", "LAST ERROR"], style);
    for subscriber in &it.subscribers {
        let (word, tint) = match &subscriber.state {
            FeedState::Live => ("live".to_owned(), Tint::Good),
            FeedState::CatchingUp => ("catching up".to_owned(), Tint::Warn),
            FeedState::Snapshot { done_rows, total_rows, bytes } => {
                (format!("snapshot {done_rows}/{total_rows} rows, {}", size(*bytes)), Tint::Warn)
            }
            FeedState::Away => ("away".to_owned(), Tint::Bad),
        };
        to.add_row([
            plain(subscriber.node.as_str()),
            cell(&word, tint),
            plain(place(subscriber.position)),
            plain(subscriber.lag_rows.to_string()),
            plain(micros(subscriber.lag_ms.saturating_mul(1_000))),
            plain(size(subscriber.sent_bytes)),
            plain(subscriber.deltas.to_string()),
            plain(subscriber.snapshots.to_string()),
            plain(subscriber.repaired_rows.to_string()),
            cell(
                &clean(subscriber.last_error.as_deref().unwrap_or("-")),
                if subscriber.last_error.is_some() { Tint::Bad } else { Tint::Dim },
            ),
        ]);
    }
    out + &indented(&written(&to))
}

/// Below what it belongs to.
fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

/// The entry of the log: epoch and stamp are for programs, which `--json` gives them to.
fn place(position: Option<Position>) -> String {
    position.map_or_else(|| "-".to_owned(), |position| position.seq.to_string())
}

/// About how many bytes: `512B`, `1.5KiB`, `3.2GiB`.
fn size(bytes: u64) -> String {
    let mut unit = 1;
    for name in ["B", "KiB", "MiB", "GiB"] {
        if bytes / unit < 1_024 {
            return if unit == 1 { format!("{bytes}B") } else { format!("{:.1}{name}", bytes as f64 / unit as f64) };
        }
        unit *= 1_024;
    }
    format!("{:.1}TiB", bytes as f64 / unit as f64)
}

/// What a comparison found.
pub fn verified(report: &VerifyReport, style: Style) -> String {
    if report.nodes.is_empty() {
        return "nobody subscribes to it: there is nothing to compare\n".to_owned();
    }
    let mut out = table(&["NODE", "CHUNKS", "ROWS", "DIFFERED", "REPAIRED"], style);
    for it in &report.nodes {
        out.add_row([
            plain(it.node.as_str()),
            plain(it.chunks.to_string()),
            plain(it.rows.to_string()),
            cell(&it.mismatches.to_string(), if it.mismatches == 0 { Tint::Good } else { Tint::Bad }),
            plain(it.repaired_rows.to_string()),
        ]);
    }
    written(&out)
}

/// What filters publish, each by its name.
pub fn filter(reports: &BTreeMap<String, Report>, style: Style) -> String {
    let mut out = String::new();
    for (name, report) in reports {
        out += &format!("{}  of {}\n", paint(&clean(name), Tint::Bold, style), clean(&report.file.display().to_string()));
        let mut tables = table(&["TABLE", "KEY", "ROWS", "PUBLISHED", "COLUMNS", "BY NAME ONLY", "WHERE"], style);
        for it in &report.tables {
            let key: Vec<_> = it.key.columns.iter().map(|column| clean(&column.name)).collect();
            let key = if it.key.kind == KeyKind::Rowid { "rowid".to_owned() } else { key.join(" ") };
            let list = |names: &[String]| names.iter().map(|name| clean(name)).collect::<Vec<_>>().join(" ");
            tables.add_row([
                clean(&it.name),
                key,
                it.rows.to_string(),
                it.published.to_string(),
                list(&it.columns),
                if it.blanked.is_empty() { "-".to_owned() } else { list(&it.blanked) },
                it.condition.as_deref().map_or_else(|| "-".to_owned(), clean),
            ]);
        }
        out += &indented(&written(&tables));
        for it in &report.left_out {
            let of = it.table.as_deref().map(|table| format!(" of {}", clean(table))).unwrap_or_default();
            let kind = serde_json::to_value(it.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default();
            out += &paint(&format!("  not published: {kind} {}{of}: {}", clean(&it.name), clean(&it.reason)), Tint::Dim, style);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use horos_wire::protocol::sync::{Epoch, PublicationStatus, SubscriberStatus};

    use super::*;

    fn position(seq: i64) -> Option<Position> {
        Some(Position { epoch: Epoch(7), seq, stamp: 1 })
    }

    #[test]
    fn a_publication_shows_how_far_each_subscriber_is() {
        let subscriber = SubscriberStatus {
            node: "fo-1".parse().unwrap(),
            position: position(40),
            lag_rows: 2,
            lag_ms: 1_500,
            sent_bytes: 2_048,
            deltas: 3,
            snapshots: 1,
            last_error: Some("lost\u{1b}[2J".into()),
            state: FeedState::Away,
            verified_at: None,
            repaired_rows: 0,
        };
        let status = PublicationStatus {
            name: "shop".into(),
            file: Some("app.db".into()),
            head: position(42),
            log_entries: 9,
            tables: 2,
            blind: vec!["goods.by_code".into()],
            condition: None,
            subscribers: vec![subscriber],
        };
        let published = Published { node: "bo-1".parse().unwrap(), status: Some(status), error: None };
        let shown = sync(&[published], &[], Style::PLAIN);
        assert!(shown.starts_with("shop@bo-1  2 tables of app.db, at 42, 9 changes in its log\n"), "{shown}");
        let line: Vec<_> = shown.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(line, ["fo-1", "away", "40", "2", "1.5s", "2.0KiB", "3", "1", "0", "lost", "[2J"]);
        assert!(sync(&[], &[], Style::PLAIN).contains("nothing is published"));
    }
}
