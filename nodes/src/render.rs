//! What the command line shows, as pure functions from the wire's data to text.
//!
//! Nothing here prints or asks the terminal anything: whoever calls passes a [`Style`]. Texts that came from other nodes
//! are stripped of control characters, so that no node can write escape sequences to an operator's terminal.

mod breakers;
mod keys;
mod routes;
mod sync;
mod table;
mod tools;
mod tree;

pub use breakers::{breakers, forced};
pub use keys::{issuers, key_made, keys, refused};
pub use routes::{edits, imported, inspected, route, routes};
pub use sync::{filter, sync, verified};
pub use table::{actors, nodes, policy, recording, status};
pub use tools::{audit, audit_more, rule_edits, rules, served, tool, tool_edits, tools, tools_imported, tools_status};
pub use tree::{redraw, tree};

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether to use colours.
    pub color: bool,
    /// Columns to stay within; `None` when the output is no terminal.
    pub width: Option<u16>,
}

impl Style {
    /// Without colours, as wide as it gets: for pipes, files and tests.
    pub const PLAIN: Self = Self { color: false, width: None };
}

/// The few colours there are, by meaning (ECMA-48 §8.3.117, the sixteen every terminal has).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tint {
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
    Bold,
}

pub(crate) fn paint(text: &str, tint: Tint, style: Style) -> String {
    let code = match tint {
        _ if !style.color => return text.to_owned(),
        Tint::Plain => return text.to_owned(),
        Tint::Good => 32,
        Tint::Warn => 33,
        Tint::Bad => 31,
        Tint::Dim => 2,
        Tint::Bold => 1,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Longest foreign text shown on a line, in characters.
const MAX_TEXT: usize = 400;

/// A text from elsewhere as it may go to a terminal: one line, no control characters, of bounded length.
pub fn clean(text: &str) -> String {
    let mut out: String = text.chars().take(MAX_TEXT).map(harmless).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    out
}

/// As [`clean`], at full length.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(harmless).collect()
}

fn harmless(c: char) -> char {
    if c.is_control() || is_direction(c) { ' ' } else { c }
}

/// The same JSON text with everything escaped that a terminal could take for an order. JSON itself lets DEL, C1 controls
/// (U+009B begins an escape sequence, ECMA-48 §5.4) and turns of direction stand in strings, and nothing of the kind outside.
pub(crate) fn quiet_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Line ends between values are JSON's own; in strings they are escaped already (RFC 8259 §7).
            '\n' => out.push(c),
            c if c.is_control() || is_direction(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Characters that turn the direction of what follows (Unicode TR9): they can make a line read as another.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Microseconds as people read them: `40µs`, `1.2ms`, `3.4s`, `25h01m`.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => tenths(us, 1_000, "ms"),
        1_000_000..60_000_000 => tenths(us, 1_000_000, "s"),
        60_000_000..3_600_000_000 => format!("{}m{:02}s", us / 60_000_000, us / 1_000_000 % 60),
        _ => format!("{}h{:02}m", us / 3_600_000_000, us / 60_000_000 % 60),
    }
}

fn tenths(value: u64, unit: u64, name: &str) -> String {
    let tenths = value / (unit / 10);
    if tenths.is_multiple_of(10) || tenths >= 1_000 {
        format!("{}{name}", tenths / 10)
    } else {
        format!("{}.{}{name}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_writes_to_the_operators_terminal() {
        assert_eq!(clean("a\x1b[2Jb\nc\u{202e}d\u{7}\u{9b}1m"), "a [2Jb c d  1m");
        assert_eq!(clean(&"x".repeat(5_000)).chars().count(), MAX_TEXT + 1);
    }

    #[test]
    fn json_keeps_its_meaning_and_gives_the_terminal_no_orders() {
        let hostile = serde_json::json!({ "a\u{9b}2J": "b\u{7f}\u{1b}[2J\n\u{202e}é", "c": [1, "\u{85}"] });
        for text in [hostile.to_string(), serde_json::to_string_pretty(&hostile).unwrap()] {
            let quiet = quiet_json(&text);
            assert!(quiet.chars().all(|c| c == '\n' || harmless(c) == c), "{quiet:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&quiet).unwrap(), hostile);
        }
    }

    #[test]
    fn times_are_short_to_read() {
        let shown: Vec<_> = [0, 999, 1_000, 1_250, 250_000, 3_400_000, 75_000_000, 90_061_000_000].map(micros).into();
        assert_eq!(shown, ["0µs", "999µs", "1ms", "1.2ms", "250ms", "3.4s", "1m15s", "25h01m"]);
    }
}
