//! What counts as a word, in a tool's texts and in a query alike.

use std::iter::once;

/// Longest word, in bytes; the rest of a longer one tells nothing apart.
const MAX_WORD: usize = 40;

/// The words of `text`, each once, in their order: lower case, without accents and the plural's `s`; of `createInvoice` and `HTTPServer` the
/// parts, and the whole as well; of scripts that have no spaces each two signs that stand together.
pub(super) fn words(text: &str) -> Vec<Box<str>> {
    let mut words: Vec<Box<str>> = Vec::new();
    each(text, |word| {
        if !words.iter().any(|known| **known == *word) {
            words.push(word.into());
        }
    });
    words
}

/// All of them, as often as they stand there.
pub(super) fn each(text: &str, mut found: impl FnMut(&str)) {
    for run in text.split(|char: char| !char.is_alphanumeric()).filter(|run| !run.is_empty()) {
        let mut parts = 0;
        let mut part = String::new();
        let mut whole = String::new();
        let mut chars = run.chars().peekable();
        let (mut before, mut sign) = ('\0', None);
        while let Some(char) = chars.next() {
            if is_sign(char) {
                finish(&mut part, &mut parts, &mut found);
                let pair: String = sign.into_iter().chain(once(char)).collect();
                if sign.is_some() || !chars.peek().is_some_and(|next| is_sign(*next)) {
                    found(&pair);
                }
                (sign, before) = (Some(char), char);
                continue;
            }
            sign = None;
            // A capital after a small letter or a digit, or before a small letter where it ends a row of capitals.
            let begins = char.is_uppercase()
                && (before.is_lowercase()
                    || before.is_numeric()
                    || before.is_uppercase() && chars.peek().is_some_and(|next| next.is_lowercase()));
            if begins {
                finish(&mut part, &mut parts, &mut found);
            }
            for lower in char.to_lowercase() {
                fold(lower, &mut part);
                fold(lower, &mut whole);
            }
            before = char;
        }
        finish(&mut part, &mut parts, &mut found);
        if parts > 1 {
            finish(&mut whole, &mut parts, &mut found);
        }
    }
}

fn finish(part: &mut String, parts: &mut usize, found: &mut impl FnMut(&str)) {
    if part.is_empty() {
        return;
    }
    part.truncate(part.floor_char_boundary(MAX_WORD));
    // `invoices` is `invoice`; `address` and `gas` are themselves.
    if part.len() > 3 && part.ends_with('s') && !part.ends_with("ss") {
        part.pop();
    }
    found(part);
    *parts += 1;
    part.clear();
}

/// Signs of which words are not told apart by spaces: Han, Hiragana, Katakana, Thai.
const fn is_sign(char: char) -> bool {
    matches!(char, '\u{e00}'..='\u{e7f}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// A letter of Latin-1 without its accent; all others are as they are.
fn fold(char: char, into: &mut String) {
    let folded = match char {
        'à'..='å' => "a",
        'æ' => "ae",
        'ç' => "c",
        'è'..='ë' => "e",
        'ì'..='ï' => "i",
        'ñ' => "n",
        'ò'..='ö' | 'ø' => "o",
        'ù'..='ü' => "u",
        'ý' | 'ÿ' => "y",
        'ß' => "ss",
        'œ' => "oe",
        // What follows a letter to accent it (NFD).
        '\u{300}'..='\u{36f}' => "",
        other => return into.push(other),
    };
    into.push_str(folded);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_texts_are_read_as_people_read_them() {
        for (text, expected) in [
            ("create_invoice", &["create", "invoice"][..]),
            ("createInvoice", &["create", "invoice", "createinvoice"]),
            ("HTTPServer2go", &["http", "server2go", "httpserver2go"]),
            ("stock.low-water", &["stock", "low", "water"]),
            ("Invoices, INVOICE!", &["invoice"]),
            ("address gas", &["address", "gas"]),
            ("Réserver à l’œil", &["reserver", "a", "l", "oeil"]),
            ("Straße ÉTÉ", &["strasse", "ete"]),
            ("在庫を引く", &["在庫", "庫を", "を引", "引く"]),
            ("ID 7", &["id", "7"]),
            ("猫", &["猫"]),
            ("  -- ", &[]),
        ] {
            assert_eq!(words(text).iter().map(|word| &**word).collect::<Vec<_>>(), expected, "{text:?}");
        }
    }
}
