//! What the texts of a tool may be. They are put before language models and people, so that nothing may stand in them which people
//! do not see: what hides there would be read by the model alone.

use rmcp::model::JsonObject;
use serde_json::Value;

use super::{MAX_DESCRIPTION, MAX_LABEL, MAX_NAME, MAX_TITLE};
use crate::{Problem, Spec};

/// The places in one schema that are named; a text with more of them is no better for the next.
const NAMED: usize = 5;

/// Everything wrong with the texts of `spec`, those within its schemas among them.
pub(super) fn check(spec: &Spec) -> Vec<Problem> {
    let mut problems = Vec::new();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if spec.name.is_empty() || spec.name.len() > MAX_NAME || !spec.name.bytes().all(plain) {
        problems.push(Problem::new("tool_name", format!("a name is 1 to {MAX_NAME} of a-z, A-Z, 0-9, _, - and .")));
    }
    if spec.description.trim().is_empty() {
        problems.push(Problem::new("description", "is empty; say what the tool does"));
    }
    if spec.group.is_empty() {
        problems.push(Problem::new("group_tag", "is empty; \"default\" goes with all"));
    }
    problems.extend(text("description", &spec.description, MAX_DESCRIPTION, true));
    problems.extend(spec.title.iter().filter_map(|title| text("title", title, MAX_TITLE, false)));
    problems.extend(text("tool_category", &spec.category, MAX_LABEL, false));
    problems.extend(text("group_tag", &spec.group, MAX_LABEL, false));
    for (at, schema) in [("input_schema", Some(&spec.input)), ("output_schema", spec.output.as_ref())] {
        let before = problems.len();
        if let Some(schema) = schema {
            object(&mut at.to_owned(), schema, &mut problems, before + NAMED);
        }
    }
    problems
}

fn text(at: &str, text: &str, limit: usize, lines: bool) -> Option<Problem> {
    let what = if text.len() > limit {
        format!("is {} bytes long, {limit} at most", text.len())
    } else if let Some((at, char)) = hidden(text) {
        format!("has U+{:04X} at byte {at}, which nobody sees", u32::from(char))
    } else if !lines && text.contains(['\n', '\t', '\r']) {
        "is more than a line".to_owned()
    } else {
        return None;
    };
    Some(Problem::new(at, what))
}

/// The strings of a schema, its keys among them. Schemas are no deeper than `serde_json` reads, 128 levels.
fn object(at: &mut String, object: &JsonObject, problems: &mut Vec<Problem>, most: usize) {
    for (key, value) in object {
        let length = at.len();
        if let Some((_, char)) = hidden(key) {
            problems.push(Problem::new(at.as_str(), format!("a key here has U+{:04X}, which nobody sees", u32::from(char))));
        }
        // As in a JSON Pointer.
        at.push('/');
        at.push_str(&key.replace('~', "~0").replace('/', "~1"));
        self::value(at, value, problems, most);
        at.truncate(length);
        if problems.len() >= most {
            return;
        }
    }
}

fn value(at: &mut String, value: &Value, problems: &mut Vec<Problem>, most: usize) {
    match value {
        Value::String(text) => problems.extend(self::text(at, text, usize::MAX, true)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let length = at.len();
                at.push('/');
                at.push_str(&index.to_string());
                self::value(at, item, problems, most);
                at.truncate(length);
                if problems.len() >= most {
                    return;
                }
            }
        }
        Value::Object(inner) => object(at, inner, problems, most),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The first character that nobody sees, and where it stands.
fn hidden(text: &str) -> Option<(usize, char)> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t')) {
        return None;
    }
    let mut before = '\0';
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        let shown = match char {
            '\r' => chars.peek().is_some_and(|(_, next)| *next == '\n'),
            // Makes a picture of the symbol before it, as in "⚠️"; anywhere else, and in rows, it carries bits.
            '\u{fe0f}' => before >= '\u{203c}' && !before.is_alphanumeric() && !is_hidden(before),
            _ => !is_hidden(char),
        };
        if !shown {
            return Some((at, char));
        }
        before = char;
    }
    None
}

/// Controls; what has no width or no form of its own; what turns the direction of what follows; tags, which spell out ASCII unseen; and
/// what is no character. U+FFFD is what bytes become that are no UTF-8. Unicode 16, `Default_Ignorable_Code_Point`, `Bidi_Control`.
const fn is_hidden(char: char) -> bool {
    matches!(char,
        '\0'..='\x08' | '\x0b'..='\x1f' | '\x7f'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{ffff}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_found_and_what_people_write_is_not() {
        for plain in [
            "Reserves goods.\n\tTwo lines, <b>as</b> they are: a < b",
            "Réserve des marchandises – « vite »",
            "在庫を引き当てる",
            "احجز البضائع",
            "⚠️ asks twice ✅",
            "one\r\ntwo",
        ] {
            assert_eq!(hidden(plain), None, "{plain:?}");
        }
        for (at, bad) in [
            (1, "a\u{200b}b"),
            (1, "a\u{202e}b"),
            (1, "a\u{2066}b"),
            (1, "a\u{e0041}"),
            (1, "a\u{feff}"),
            (1, "a\u{fe0f}"),
            (6, "⚠️\u{fe0f}"),
            (1, "a\u{fe01}"),
            (1, "a\u{e0101}"),
            (1, "a\0"),
            (1, "a\x1b[2J"),
            (1, "a\rb"),
            (1, "a\u{85}"),
            (1, "a\u{fffd}"),
            (1, "a\u{3164}"),
            (1, "a\u{ad}"),
        ] {
            assert_eq!(hidden(bad).map(|(at, _)| at), Some(at), "{bad:?}");
        }
    }
}
