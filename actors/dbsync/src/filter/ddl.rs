//! The SQL that follows from a filter: what an FO's tables look like, and what is read on the BO.

use super::{
    KeyKind,
    catalog::{Affinity, Column, Index, Shape},
};

/// A name as SQL writes it, whatever is in it.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The table as the FO has it; `published` says so for each column.
pub(super) fn create_table(shape: &Shape, published: &[bool]) -> String {
    let single = shape.key.columns.first().filter(|_| shape.key.columns.len() == 1);
    let mut parts: Vec<String> = Vec::with_capacity(shape.columns.len() + 1);
    for (column, published) in shape.columns.iter().zip(published) {
        let mut text = quote(&column.name);
        let kind = if *published || shape.strict { declared(column) } else { column.affinity.type_name() };
        if !kind.is_empty() {
            text.push(' ');
            text.push_str(kind);
        }
        if single.is_some_and(|key| key.name == column.name) {
            match shape.key.kind {
                KeyKind::Integer => text.push_str(" PRIMARY KEY"),
                KeyKind::Declared if shape.quirky_key => text.push_str(" PRIMARY KEY DESC"),
                KeyKind::Declared | KeyKind::Rowid => {}
            }
        }
        if column.has_builtin_collation() && !column.collation.eq_ignore_ascii_case("BINARY") {
            text.push_str(" COLLATE ");
            text.push_str(&column.collation);
        }
        if !published && column.not_null {
            text.push_str(" DEFAULT ");
            text.push_str(neutral(column));
        }
        parts.push(text);
    }
    if shape.key.kind == KeyKind::Declared && !shape.quirky_key {
        let columns: Vec<String> = shape.key.columns.iter().map(|key| format!("{} COLLATE {}", quote(&key.name), key.collation)).collect();
        parts.push(format!("PRIMARY KEY ({})", columns.join(", ")));
    }
    let mut options = Vec::new();
    if shape.without_rowid {
        options.push("WITHOUT ROWID");
    }
    if shape.strict {
        options.push("STRICT");
    }
    let separator = if options.is_empty() { "" } else { " " };
    format!("CREATE TABLE {} ({}){separator}{}", quote(&shape.name), parts.join(", "), options.join(", "))
}

/// The declared type, unless it holds more than words and lengths: SQLite keeps what stands there as it was typed, comments
/// and quoted strings included.
fn declared(column: &Column) -> &str {
    let text = column.declared.as_str();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_ (),.+-".contains(&byte)) && !text.contains("--");
    if plain { text } else { column.affinity.type_name() }
}

/// What a program reads in place of an unpublished value that it never had to expect a NULL for.
fn neutral(column: &Column) -> &'static str {
    match column.affinity {
        Affinity::Integer | Affinity::Numeric => "0",
        Affinity::Real => "0.0",
        Affinity::Blob if column.declared.to_ascii_uppercase().contains("BLOB") => "x''",
        Affinity::Blob | Affinity::Text => "''",
    }
}

/// Why an index is not on the FO.
pub(super) fn unfit(index: &Index, shape: &Shape, published: &[bool]) -> Option<String> {
    if index.partial {
        return Some("its WHERE is an expression, which may hold anything".to_owned());
    }
    for it in &index.columns {
        let Some(position) = it.name.as_deref().and_then(|name| shape.position(name)) else {
            return Some("it is over an expression or the rowid".to_owned());
        };
        if !published[position] {
            return Some(format!("column {:?} is not published", shape.columns[position].name));
        }
        if !it.has_builtin_collation() {
            return Some(format!("collation {:?} is not SQLite's own", it.collation));
        }
    }
    None
}

/// The index as the FO has it: never unique, because rows that exchange their values pass through a state in which two have
/// the same, and because the BO has already seen to it.
pub(super) fn create_index(index: &Index, table: &str, name: &str) -> String {
    let columns: Vec<String> = index
        .columns
        .iter()
        .filter_map(|it| {
            let order = if it.descending { " DESC" } else { "" };
            Some(format!("{} COLLATE {}{order}", quote(it.name.as_deref()?), it.collation))
        })
        .collect();
    format!("CREATE INDEX {} ON {} ({})", quote(name), quote(table), columns.join(", "))
}

/// The statements that read a published table on the BO.
#[derive(Clone, Debug)]
pub(super) struct Selects {
    pub all: String,
    pub by_key: String,
    pub after: String,
    /// Counts all rows, the published ones, and those whose key is NULL.
    pub count: String,
    /// `SELECT` to `FROM`, the conditions, and the key to order by: what [`Selects::range`] is made of.
    from: String,
    terms: Vec<String>,
    order: String,
    width: usize,
}

impl Selects {
    /// The last row before the key `?1, ?2, …`.
    pub(super) fn before(&self, key: &[super::KeyColumn]) -> String {
        let down: Vec<String> = key.iter().map(|it| format!("{} DESC", collated(it))).collect();
        let parameters: Vec<String> = (1..=self.width).map(|number| format!("?{number}")).collect();
        let below = format!("({}) < ({})", self.order, parameters.join(", "));
        let all: Vec<&str> = std::iter::once(below.as_str()).chain(self.terms.iter().map(String::as_str)).collect();
        format!("{} WHERE {} ORDER BY {} LIMIT 1", self.from, all.join(" AND "), down.join(", "))
    }

    /// Rows behind the key `?1, ?2, …` if `after`, up to the following parameters if `through`.
    pub(super) fn range(&self, after: bool, through: bool) -> String {
        ranged(&self.from, &self.terms, &self.order, self.width, after, through)
    }
}

/// `from` with `terms` and, if `after` or `through`, the bounds of its key; ascending by it.
pub(crate) fn ranged(from: &str, terms: &[String], order: &str, width: usize, after: bool, through: bool) -> String {
    let mut next = 1;
    let mut bound = |operator: &str| {
        let parameters: Vec<String> = (next..next + width).map(|number| format!("?{number}")).collect();
        next += width;
        format!("({order}) {operator} ({})", parameters.join(", "))
    };
    let bounds = [after.then(|| bound(">")), through.then(|| bound("<="))];
    let all: Vec<String> = bounds.into_iter().flatten().chain(terms.iter().cloned()).collect();
    let clause = if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) };
    format!("{from}{clause} ORDER BY {order}")
}

/// A key's column as it compares. Only where that is otherwise than the column does, for a needless COLLATE may cost the use of the
/// index.
fn collated(it: &super::KeyColumn) -> String {
    let collation = if it.explicit_collation { format!(" COLLATE {}", it.collation) } else { String::new() };
    format!("{}{collation}", quote(&it.name))
}

pub(super) fn selects(shape: &Shape, columns: &[String], condition: Option<&str>) -> Selects {
    let key = &shape.key.columns;
    let nulls: Vec<String> = key.iter().filter(|it| it.nullable).map(|it| format!("{} IS NULL", quote(&it.name))).collect();
    let mut terms: Vec<String> = key.iter().filter(|it| it.nullable).map(|it| format!("{} IS NOT NULL", quote(&it.name))).collect();
    // NULL is not true: what cannot be decided is not published.
    terms.extend(condition.map(|condition| format!("(({condition}) IS TRUE)")));

    let list: Vec<String> = columns.iter().map(|name| quote(name)).collect();
    let from = format!("SELECT {} FROM \"main\".{}", list.join(", "), quote(&shape.name));
    let order: Vec<String> = key.iter().map(collated).collect();
    let order = order.join(", ");
    let clause = |more: Option<String>| {
        let all: Vec<&str> = more.as_deref().into_iter().chain(terms.iter().map(String::as_str)).collect();
        if all.is_empty() { String::new() } else { format!(" WHERE {}", all.join(" AND ")) }
    };
    let same: Vec<String> = key.iter().enumerate().map(|(i, it)| format!("{} = ?{}", collated(it), i + 1)).collect();
    let parameters: Vec<String> = (1..=key.len()).map(|i| format!("?{i}")).collect();
    let greater = format!("({order}) > ({})", parameters.join(", "));
    let or = |terms: &[String], join: &str, none: &str| if terms.is_empty() { none.to_owned() } else { terms.join(join) };
    Selects {
        all: format!("{from}{} ORDER BY {order}", clause(None)),
        by_key: format!("{from}{}", clause(Some(same.join(" AND ")))),
        after: format!("{from}{} ORDER BY {order} LIMIT ?{}", clause(Some(greater)), key.len() + 1),
        count: format!(
            "SELECT count(*), count(*) FILTER (WHERE {}), count(*) FILTER (WHERE {}) FROM \"main\".{}",
            or(&terms, " AND ", "1"),
            or(&nulls, " OR ", "0"),
            quote(&shape.name)
        ),
        width: key.len(),
        from,
        terms,
        order,
    }
}
