//! Reading the text of `CREATE INDEX` as far as capture must: SQLite tells the columns of an index by pragma, but not its
//! expressions nor its `WHERE`.

/// A lexical piece of SQL (<https://sqlite.org/lang_keywords.html> and SQLite's `tokenize.c`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A bare word: keyword, name or function.
    Word(&'a str),
    /// A quoted name, or what SQLite may take for one, without its quotes.
    Quoted(String),
    /// A string, blob or number.
    Literal,
    /// Any other character.
    Mark(char),
}

/// The pieces of `sql`, with the offset of each and of its end; comments and space are left out.
pub(super) fn tokens(sql: &str) -> Vec<(usize, usize, Token<'_>)> {
    let bytes = sql.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&first) = bytes.get(at) {
        let start = at;
        let rest = &bytes[at..];
        match first {
            b if b.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'-' if rest.starts_with(b"--") => {
                at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                continue;
            }
            b'/' if rest.starts_with(b"/*") => {
                at += sql[at + 2..].find("*/").map_or(rest.len(), |end| end + 4);
                continue;
            }
            b'\'' | b'"' | b'`' | b'[' => {
                let close = if first == b'[' { b']' } else { first };
                at += 1;
                while let Some(&b) = bytes.get(at) {
                    at += 1;
                    if b == close {
                        if close != b']' && bytes.get(at) == Some(&close) {
                            at += 1;
                        } else {
                            break;
                        }
                    }
                }
                let inner = sql.get(start + 1..at.saturating_sub(1)).unwrap_or_default();
                let close = char::from(close);
                let token = match first {
                    b'\'' => Token::Literal,
                    b'[' => Token::Quoted(inner.to_owned()),
                    _ => Token::Quoted(inner.replace(&format!("{close}{close}"), &close.to_string())),
                };
                found.push((start, at, token));
            }
            b if b.is_ascii_alphabetic() || b == b'_' || b >= 0x80 => {
                at +=
                    rest.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_' || *b == b'$' || *b >= 0x80)).unwrap_or(rest.len());
                let blob = at - start == 1 && matches!(first, b'x' | b'X') && bytes.get(at) == Some(&b'\'');
                if !blob {
                    found.push((start, at, Token::Word(&sql[start..at])));
                }
            }
            b if b.is_ascii_digit() => {
                at += rest.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'.' || *b == b'_')).unwrap_or(rest.len());
                found.push((start, at, Token::Literal));
            }
            _ => {
                at += 1;
                found.push((start, at, Token::Mark(char::from(first))));
            }
        }
    }
    found
}

/// The indexed terms of a `CREATE INDEX`, each without `ASC` and `DESC`, and its `WHERE`. `None` when it cannot be read.
pub(super) fn index_parts(sql: &str) -> Option<(Vec<&str>, Option<&str>)> {
    let tokens = tokens(sql);
    let on = tokens.iter().position(|(_, _, token)| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case("on")))?;
    let open = on + tokens[on..].iter().position(|(_, _, token)| *token == Token::Mark('('))?;
    let (mut terms, mut depth) = (Vec::new(), 0_usize);
    let mut begin = open + 1;
    let mut close = None;
    for (index, (_, _, token)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(') => depth += 1,
            Token::Mark(')') => depth -= 1,
            Token::Mark(',') if depth == 1 => {}
            _ => continue,
        }
        if depth == 0 || (depth == 1 && *token == Token::Mark(',')) {
            let mut end = index.checked_sub(1)?;
            if matches!(tokens[end].2, Token::Word(word) if word.eq_ignore_ascii_case("asc") || word.eq_ignore_ascii_case("desc")) {
                end = end.checked_sub(1)?;
            }
            terms.push(sql.get(tokens.get(begin)?.0..tokens[end].1)?);
            begin = index + 1;
        }
        if depth == 0 {
            close = Some(index);
            break;
        }
    }
    match tokens.get(close? + 1) {
        None => Some((terms, None)),
        Some((_, end, Token::Word(word))) if word.eq_ignore_ascii_case("where") => Some((terms, Some(sql.get(*end..)?.trim()))),
        Some(_) => None,
    }
}

/// A column's default as an expression that names no column. SQLite takes a quoted or bare name in `DEFAULT` for a string, which
/// it would not be inside a trigger.
pub(super) fn default_expression(text: &str) -> String {
    const VALUES: [&str; 6] = ["null", "true", "false", "current_time", "current_date", "current_timestamp"];
    match tokens(text).as_slice() {
        [(_, _, Token::Word(word))] if !VALUES.iter().any(|value| value.eq_ignore_ascii_case(word)) => format!("'{word}'"),
        [(_, _, Token::Quoted(word))] => format!("'{}'", word.replace('\'', "''")),
        _ => format!("({text}\n)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_index_are_found_through_quotes_comments_and_nesting() {
        assert_eq!(
            index_parts("CREATE UNIQUE INDEX \"on (\" ON t(a DESC, lower(b,')'), [c,] COLLATE x ASC) -- (\n WHERE x = ',' AND y"),
            Some((vec!["a", "lower(b,')')", "[c,] COLLATE x"], Some("x = ',' AND y")))
        );
        assert_eq!(index_parts("CREATE UNIQUE INDEX i ON \"t(\"\"\"(a /* , */)"), Some((vec!["a"], None)));
        assert_eq!(index_parts("CREATE UNIQUE INDEX i ON t(a"), None);
        assert_eq!(index_parts(""), None);
    }

    #[test]
    fn a_name_as_default_is_a_string() {
        assert_eq!(default_expression("abc"), "'abc'");
        assert_eq!(default_expression("\"it's\""), "'it''s'");
        assert_eq!(default_expression("CURRENT_TIMESTAMP"), "(CURRENT_TIMESTAMP\n)");
        assert_eq!(default_expression("x'00'"), "(x'00'\n)");
    }
}
