//! SQL as words: enough to see how many statements a text has, of what kind, and which parameters.
//!
//! Follows SQLite's own tokenizer (`tokenize.c`), so that both see strings, names and comments end at the same place. It decides nothing by
//! itself that SQLite is not asked again: the authorizer sees what the parser made of the text.

/// A word of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or a bare name, as it stands.
    Word(&'a str),
    /// A name in `"…"`, `[…]` or `` `…` ``, unquoted.
    Quoted(String),
    /// `'…'`, as it stands, or `x'…'`.
    Text(&'a str),
    /// A number.
    Number(&'a str),
    /// `?`, `?1`, `:name`, `@name`, `$name`, as it stands.
    Parameter(&'a str),
    /// Anything else: a character, or the bytes of none.
    Sign(&'a str),
}

impl Token<'_> {
    /// Whether it is the keyword `word`.
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(is) if is.eq_ignore_ascii_case(word))
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self, Self::Sign(is) if *is == sign)
    }

    /// The name it may be.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Word(name) => Some(name),
            Self::Quoted(name) => Some(name),
            // A name in single quotes is taken for one where a name has to stand.
            Self::Text(text) => text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')),
            Self::Number(_) | Self::Parameter(_) | Self::Sign(_) => None,
        }
    }
}

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a string, name or comment has no end")]
    NoEnd,
    #[error("it has a NUL in it, at which SQLite stops reading")]
    Nul,
}

/// The words of `sql`, without comments and space.
///
/// # Errors
/// [`Broken`].
pub(super) fn tokens(sql: &str) -> Result<Vec<Token<'_>>, Broken> {
    if sql.contains('\0') {
        return Err(Broken::Nul);
    }
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            ' ' | '\t' | '\n' | '\x0c' | '\r' => (None, 1),
            '-' if rest.starts_with("--") => (None, rest.find('\n').map_or(rest.len(), |end| end + 1)),
            // One that has no end goes to the end of the text, in SQLite too.
            '/' if rest.starts_with("/*") => (None, rest[2..].find("*/").map_or(rest.len(), |end| end + 4)),
            '\'' => {
                let length = quoted(rest, '\'')?;
                (Some(Token::Text(&rest[..length])), length)
            }
            '"' | '`' => {
                let length = quoted(rest, first)?;
                let twice: String = [first, first].iter().collect();
                (Some(Token::Quoted(rest[1..length - 1].replace(&twice, &first.to_string()))), length)
            }
            '[' => {
                let length = rest.find(']').ok_or(Broken::NoEnd)? + 1;
                (Some(Token::Quoted(rest[1..length - 1].to_owned())), length)
            }
            'x' | 'X' if rest[1..].starts_with('\'') => {
                let length = quoted(&rest[1..], '\'')? + 1;
                (Some(Token::Text(&rest[..length])), length)
            }
            '?' => {
                let length = 1 + run(&rest[1..], |c| c.is_ascii_digit());
                (Some(Token::Parameter(&rest[..length])), length)
            }
            ':' | '@' | '$' | '#' if rest[1..].starts_with(is_name) => {
                let length = 1 + run(&rest[1..], |c| is_name(c) || c == ':');
                (Some(Token::Parameter(&rest[..length])), length)
            }
            '0'..='9' => {
                let length = run(rest, |c| is_name(c) || c == '.');
                (Some(Token::Number(&rest[..length])), length)
            }
            _ if is_name(first) => {
                let length = run(rest, is_name);
                (Some(Token::Word(&rest[..length])), length)
            }
            _ => {
                let length = first.len_utf8();
                (Some(Token::Sign(&rest[..length])), length)
            }
        };
        tokens.extend(token);
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// What names are made of; any character beyond ASCII is.
fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// How many bytes from the beginning are of that kind.
fn run(text: &str, of: impl Fn(char) -> bool) -> usize {
    text.find(|c| !of(c)).unwrap_or(text.len())
}

/// The length of what begins with `quote`, in which the quote itself stands twice.
fn quoted(text: &str, quote: char) -> Result<usize, Broken> {
    let mut at = 1;
    loop {
        at += text[at..].find(quote).ok_or(Broken::NoEnd)? + 1;
        if !text[at..].starts_with(quote) {
            return Ok(at);
        }
        at += 1;
    }
}
