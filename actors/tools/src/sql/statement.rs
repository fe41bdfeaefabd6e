//! One statement of a tool, as far as its text says what it is.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use parking_lot::Mutex;
use rusqlite::Connection;

use super::{
    bounds,
    lexer::{Token, tokens},
};

/// Longest statement, in bytes. More than anybody writes; SQLite itself would take a gigabyte.
pub(super) const MAX_SQL: usize = 64 << 10;
/// Longest second argument of functions that compare each character with each of it.
const MAX_SET: usize = 64;

/// What a statement may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `SELECT`, `VALUES`, `WITH … SELECT`.
    Query,
    /// Those, `INSERT`, `REPLACE`, `UPDATE`, `DELETE`.
    Change,
}

/// A statement's parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parameters {
    /// `?` or `?1`: so many.
    Positional(usize),
    /// `:name` and the like, each once.
    Named(Vec<Box<str>>),
}

/// What is known of a statement before SQLite sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    /// Its text, without the semicolon.
    pub(super) sql: Arc<str>,
    pub(super) parameters: Parameters,
    /// Names, in lower case, that stand for what the statement itself defines (`WITH name AS (…)`).
    pub(super) defines: BTreeSet<Box<str>>,
    /// Whether it deletes rows that are in its way (`REPLACE`, `OR REPLACE`), of which SQLite's authorizer is told nothing.
    pub(super) replaces: bool,
    /// Whether it inserts.
    pub(super) inserts: bool,
    /// Columns that it compares without naming them anywhere else.
    pub(super) joins: Joins,
}

/// What SQLite compares in joins by `NATURAL` and `USING`, of which its authorizer is told nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Joins {
    /// All columns of a name.
    pub(super) natural: bool,
    /// These, in lower case.
    pub(super) using: BTreeSet<Box<str>>,
}

impl Statement {
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub(super) fn new(sql: &str, kind: Kind) -> Result<Self, String> {
        if sql.len() > MAX_SQL {
            return Err(format!("a statement has at most {MAX_SQL} bytes"));
        }
        let mut words = tokens(sql).map_err(|broken| broken.to_string())?;
        while words.last().is_some_and(|last| last.is_sign(";")) {
            words.pop();
        }
        if words.iter().any(|word| word.is_sign(";")) {
            return Err("more than one statement; a script has a list of them".into());
        }
        let first = words.first().ok_or("no statement")?;
        let reads = ["SELECT", "VALUES", "WITH"].iter().any(|word| first.is(word));
        let writes = ["INSERT", "REPLACE", "UPDATE", "DELETE"].iter().any(|word| first.is(word)) || first.is("WITH") && changes(&words);
        match kind {
            Kind::Query if writes => return Err("a query reads only; what changes something is a `sql_script`".into()),
            Kind::Query if !reads => return Err("a query is a SELECT, VALUES or WITH … SELECT".into()),
            Kind::Change if !reads && !writes => {
                return Err("a statement is a SELECT, VALUES, WITH, INSERT, REPLACE, UPDATE or DELETE".into());
            }
            Kind::Query | Kind::Change => {}
        }
        let pairs = || words.iter().zip(words.iter().skip(1));
        if pairs().any(|(one, other)| one.is("OR") && other.is("ROLLBACK")) {
            return Err("`OR ROLLBACK` undoes more than the tool's own work; without it a failure undoes the tool's".into());
        }
        let pairs_of = parentheses(&words);
        sets(&words, &pairs_of)?;
        let triples = || words.iter().zip(words.iter().skip(1)).zip(words.iter().skip(2).map(Some).chain([None]));
        let replaces = pairs().any(|(one, other)| one.is("REPLACE") && other.is("INTO"))
            || triples().any(|((one, other), third)| one.is("OR") && other.is("REPLACE") && !third.is_some_and(|third| third.is_sign("(")));
        let inserts = pairs().any(|(one, other)| other.is("INTO") && (one.is("INSERT") || one.is("REPLACE")))
            || triples().any(|((one, other), _)| one.is("INSERT") && other.is("OR"));
        let statement = Self {
            sql: sql.trim().into(),
            parameters: parameters(&words)?,
            defines: defined(&words, &pairs_of),
            replaces,
            inserts,
            joins: joins(&words),
        };
        syntax(&statement.sql)?;
        Ok(statement)
    }
}

/// Whether a statement that begins with `WITH` changes something.
fn changes(words: &[Token<'_>]) -> bool {
    let mut depth = 0_usize;
    for (at, word) in words.iter().enumerate() {
        match word {
            Token::Sign("(") => depth += 1,
            Token::Sign(")") => depth = depth.saturating_sub(1),
            word if depth == 0 && ["INSERT", "UPDATE", "DELETE"].iter().any(|verb| word.is(verb)) => return true,
            word if depth == 0 && word.is("REPLACE") && words.get(at + 1).is_some_and(|next| next.is("INTO")) => return true,
            _ => {}
        }
    }
    false
}

/// For each opening parenthesis the place of the one that closes it, if there is one.
fn parentheses(words: &[Token<'_>]) -> Vec<Option<usize>> {
    let (mut closing, mut open) = (vec![None; words.len()], Vec::new());
    for (at, word) in words.iter().enumerate() {
        if word.is_sign("(") {
            open.push(at);
        } else if word.is_sign(")")
            && let Some(begin) = open.pop()
        {
            closing[begin] = Some(at);
        }
    }
    closing
}

/// Names before `AS (`, with columns or without: of common table expressions, and of windows, which does no harm.
fn defined(words: &[Token<'_>], closing: &[Option<usize>]) -> BTreeSet<Box<str>> {
    let mut names = BTreeSet::new();
    for (at, word) in words.iter().enumerate() {
        let Some(name) = word.name() else { continue };
        let mut next = at + 1;
        if words.get(next).is_some_and(|word| word.is_sign("(")) {
            match closing[next] {
                Some(end) => next = end + 1,
                None => continue,
            }
        }
        if !words.get(next).is_some_and(|word| word.is("AS")) {
            continue;
        }
        let body = words[next + 1..].iter().find(|word| !word.is("NOT") && !word.is("MATERIALIZED"));
        if body.is_some_and(|word| word.is_sign("(")) {
            names.insert(name.to_ascii_lowercase().into());
        }
    }
    names
}

fn joins(words: &[Token<'_>]) -> Joins {
    let mut joins = Joins { natural: words.iter().any(|word| word.is("NATURAL")), using: BTreeSet::new() };
    for (at, _) in words.iter().enumerate().filter(|(_, word)| word.is("USING")) {
        let names = words[at + 1..].iter().take_while(|word| !word.is_sign(")"));
        joins.using.extend(names.filter_map(Token::name).map(|name| Box::from(name.to_ascii_lowercase())));
    }
    joins
}

/// `trim` and its like compare each character of one argument with each of the other, in one step of SQLite that no deadline interrupts.
/// So the other is written in the statement, and short.
fn sets(words: &[Token<'_>], closing: &[Option<usize>]) -> Result<(), String> {
    const SLOW: [&str; 4] = ["trim", "ltrim", "rtrim", "unhex"];
    for (at, word) in words.iter().enumerate() {
        let Some(name) = word.name().filter(|name| SLOW.iter().any(|slow| slow.eq_ignore_ascii_case(name))) else { continue };
        let Some(Some(end)) = closing.get(at + 1).copied() else { continue };
        let (mut place, mut second) = (at + 2, None);
        while place < end {
            if words[place].is_sign(",") {
                second = Some(place + 1);
            }
            place = closing[place].unwrap_or(place) + 1;
        }
        let Some(second) = second else { continue };
        let literal = matches!(&words[second..end], [Token::Text(text)] if text.len() <= MAX_SET + 2);
        if !literal {
            return Err(format!("the second argument of {name}() is a string of at most {MAX_SET} bytes, written in the statement"));
        }
    }
    Ok(())
}

fn parameters(words: &[Token<'_>]) -> Result<Parameters, String> {
    let mut named: Vec<Box<str>> = Vec::new();
    let mut highest = 0;
    let mut numbered = false;
    for word in words {
        let Token::Parameter(parameter) = word else { continue };
        match parameter.strip_prefix('?') {
            Some("") => highest += 1,
            Some(number) => highest = highest.max(number.parse().map_err(|_| format!("{parameter} is no parameter"))?),
            None => {
                if !named.iter().any(|known| **known == **parameter) {
                    named.push((*parameter).into());
                }
                continue;
            }
        }
        numbered = true;
    }
    if numbered && !named.is_empty() {
        return Err("parameters are either all `?` or all named".into());
    }
    if highest.max(named.len()) > bounds::MAX_PARAMETERS.unsigned_abs() as usize {
        return Err(format!("a statement has at most {} parameters", bounds::MAX_PARAMETERS));
    }
    Ok(if named.is_empty() { Parameters::Positional(highest) } else { Parameters::Named(named) })
}

/// What SQLite says of the grammar. It has an empty database to look at, so that it misses every table says nothing.
fn syntax(sql: &str) -> Result<(), String> {
    static EMPTY: LazyLock<Mutex<Option<Connection>>> = LazyLock::new(|| {
        let empty = Connection::open_in_memory().ok().filter(|empty| bounds::limit(empty, bounds::VALUE_BYTES).is_ok());
        Mutex::new(empty)
    });
    let empty = EMPTY.lock();
    let Some(Err(error)) = empty.as_ref().map(|empty| empty.prepare(sql)) else { return Ok(()) };
    if matches!(error, rusqlite::Error::MultipleStatement) {
        return Err("more than one statement; a script has a list of them".into());
    }
    let text = error.to_string();
    // There is one result code for all that can be wrong with a statement.
    const FINAL: [&str; 6] = ["syntax error", "unrecognized token", "incomplete input", "too large", "too many", "stack overflow"];
    if FINAL.iter().any(|what| text.contains(what)) { Err(text) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_statement_is_told_from_two_wherever_a_semicolon_stands() {
        for one in [
            "SELECT 1",
            "SELECT 1;",
            " select ';' ; -- ;",
            "SELECT \"a;b\", [c;d], `e;f` FROM t",
            "SELECT 1 /* ; */",
            "VALUES (x'00', 'it''s;')",
            "SELECT 1; /* x",
        ] {
            assert!(Statement::new(one, Kind::Query).is_ok(), "{one}");
        }
        for two in [
            "SELECT 1; SELECT 2",
            "SELECT 1;;SELECT 2",
            "SELECT '\\'; DELETE FROM t --'",
            "SELECT 1 -- \n; SELECT 2",
            "SELECT \"a\"\"\"; SELECT 2",
            "SELECT [a'] ; SELECT ']'",
        ] {
            assert!(Statement::new(two, Kind::Query).is_err(), "{two}");
        }
    }

    #[test]
    fn a_query_is_none_that_changes_something() {
        for sql in [
            "WITH x AS (SELECT 1) DELETE FROM t",
            "WITH x AS (SELECT 1) REPLACE INTO t SELECT 1",
            "DELETE FROM t",
            "PRAGMA user_version",
            "EXPLAIN SELECT 1",
            "",
            "--",
        ] {
            assert!(Statement::new(sql, Kind::Query).is_err(), "{sql}");
        }
        for sql in [
            "SELECT replace(a, 'x', 'y') FROM t WHERE b OR replace(a, 'x', '') = ''",
            "WITH x AS (SELECT 1) SELECT 1 FROM x",
            "WITH d(a) AS (VALUES (1)) SELECT a FROM d",
        ] {
            let statement = Statement::new(sql, Kind::Query).unwrap();
            assert!(!statement.replaces && !statement.inserts, "{sql}");
        }
    }

    #[test]
    fn parameters_are_numbered_or_named() {
        let of = |sql: &str| Statement::new(sql, Kind::Query).map(|statement| statement.parameters);
        assert_eq!(of("SELECT ?, '?', ?3, ?"), Ok(Parameters::Positional(4)));
        assert_eq!(of("SELECT :a, @b, $c, :a, ':d'"), Ok(Parameters::Named([":a", "@b", "$c"].map(Into::into).into())));
        assert!(of("SELECT ?, :a").is_err() && of("SELECT ?251").is_err());
    }

    #[test]
    fn what_a_statement_defines_is_found_however_it_is_written() {
        let sql = "WITH RECURSIVE One AS (SELECT 1), \"TWO\" (a, b) AS NOT MATERIALIZED (SELECT 1, 2), [three] AS MATERIALIZED (WITH 'four' AS (SELECT 4) SELECT 1) SELECT 1";
        let defines = Statement::new(sql, Kind::Query).unwrap().defines;
        assert_eq!(defines, ["four", "one", "three", "two"].map(Box::from).into());
    }

    #[test]
    fn what_replaces_and_what_inserts_is_known() {
        for (sql, replaces, inserts) in [
            ("REPLACE INTO t VALUES (1)", true, true),
            ("INSERT OR REPLACE INTO t VALUES (1)", true, true),
            ("INSERT /* */ OR -- \n REPLACE INTO t VALUES (1)", true, true),
            ("UPDATE OR REPLACE t SET a = 1", true, false),
            ("INSERT INTO t SELECT replace(a, 'b', 'c') FROM u", false, true),
            ("DELETE FROM t", false, false),
        ] {
            let statement = Statement::new(sql, Kind::Change).unwrap();
            assert_eq!((statement.replaces, statement.inserts), (replaces, inserts), "{sql}");
        }
        assert!(Statement::new("INSERT OR ROLLBACK INTO t VALUES (1)", Kind::Change).is_err());
    }
}
