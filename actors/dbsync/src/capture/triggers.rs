//! The text of the triggers.

use super::{
    Key, Tracked, quote,
    schema::{Expression, Shape, Term, Unique},
};

/// The log is pruned after one row in so many. Which one is drawn: no trigger knows the log's numbers without a look into it, and a
/// look for every row costs a bulk load a fifth of what it takes without us.
const PRUNE_ONE_IN: u32 = 256;

/// A trigger of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) sql: String,
}

/// Which unique indexes are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookups {
    All,
    /// None: the statements would not compile with them.
    None,
}

/// A table's triggers, and the unique indexes they could not look up.
#[derive(Debug)]
pub(super) struct Triggers {
    pub(super) triggers: Vec<Trigger>,
    pub(super) blind: Vec<String>,
}

/// What a rowid that SQLite chooses only after the `BEFORE INSERT` triggers means to the look-up in an index.
enum Numbering {
    /// Nothing: the index does not look at it, or no row can have the same.
    Irrelevant,
    /// These statements look without it, and find rather too much.
    Without(Vec<String>),
    /// All: nothing of the index can be evaluated before.
    Decides,
}

/// The name of a trigger of table `number`.
fn name(number: u32, what: &str) -> String {
    format!("_horos_{number}_{what}")
}

/// Whether a trigger of this name is ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.strip_prefix("_horos_")
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn of(tracked: &Tracked, shape: &Shape, keep: u32, lookups: Lookups) -> Triggers {
    let writer = Writer { tracked, shape, keys: keys(&tracked.key, shape), keep };
    let table = quote(&tracked.name);
    let mut triggers = Vec::new();
    let mut add = |what: &str, when: &str, body: String| {
        let name = name(tracked.number, what);
        let sql = format!("CREATE TRIGGER {} {when} BEGIN {body} END", quote(&name));
        triggers.push(Trigger { name, sql });
    };
    let (new, old) = (writer.row("new"), writer.row("old"));
    add("insert", &format!("AFTER INSERT ON {table}"), writer.append(&new));
    add("delete", &format!("AFTER DELETE ON {table}"), writer.append(&old));
    let moved = differs(&writer.keys, "new", "old");
    add("update", &format!("AFTER UPDATE ON {table}"), format!("{} {}", writer.append(&old), writer.append_if(&new, &moved)));

    let mut blind = Vec::new();
    let mut found: Vec<&Unique> = Vec::new();
    let mut after_choice = Vec::new();
    let published = |name: &String| tracked.columns.iter().any(|column| column.eq_ignore_ascii_case(name));
    let ordinary: Vec<&String> = shape.columns.iter().filter(|column| !column.generated).map(|column| &column.name).collect();
    let all_published = ordinary.iter().all(|name| published(name));
    let computed = |unique: &Unique| shape.columns.iter().any(|column| column.generated && unique.named.contains(&column.name));
    for unique in shape.uniques.iter().filter(|unique| !writer.is_key(unique)) {
        if lookups == Lookups::All && unique.terms.is_some() && unique.named.iter().all(published) {
            found.push(unique);
            match writer.yet_to_be_numbered(unique) {
                Numbering::Irrelevant => {}
                Numbering::Without(statements) => after_choice.extend(statements),
                Numbering::Decides => blind.push(unique.name.clone()),
            }
            if computed(unique) && !all_published && !blind.contains(&unique.name) {
                blind.push(unique.name.clone());
            }
        } else {
            blind.push(unique.name.clone());
        }
    }
    // A rowid that is not the key is one more thing that two rows cannot share.
    let rowid = shape.rowid.as_deref().filter(|_| !shape.keyed_by_rowid(&tracked.key));
    let looks_up = !found.is_empty() || rowid.is_some();
    // Where entries are appended before the change, it may yet be ignored.
    let when = if looks_up { "BEFORE" } else { "AFTER" };
    let chance = format!("WHEN (random() & {}) = 0", PRUNE_ONE_IN - 1);
    add("prune_insert", &format!("{when} INSERT ON {table} {chance}"), writer.prune());
    add("prune_update", &format!("{when} UPDATE ON {table} {chance}"), writer.prune());
    add("prune_delete", &format!("AFTER DELETE ON {table} {chance}"), writer.prune());
    if looks_up {
        let mut insert = vec![writer.lookups(&found, rowid, &writer.not_the_inserted())];
        insert.append(&mut after_choice);
        add("before_insert", &format!("BEFORE INSERT ON {table}"), insert.join(" "));
        // The row that is updated is logged after the update.
        let update = writer.lookups(&found, rowid, &differs(&writer.keys, "r", "old"));
        let mut touched: Vec<String> = rowid.map(str::to_owned).into_iter().collect();
        for unique in &found {
            touched.extend(unique.named.iter().map(|column| quote(column)));
            touched.extend(shape.rowid.clone().filter(|_| unique.names_rowid));
            // In a `BEFORE UPDATE` trigger SQLite computes a generated column from those columns alone that the trigger names
            // (`update.c`), and takes the others for NULL; which ones it is computed from, nothing says.
            if computed(unique) {
                touched.extend(ordinary.iter().filter(|name| published(name)).map(|name| quote(name)));
            }
        }
        touched.sort_unstable();
        touched.dedup();
        add("before_update", &format!("BEFORE UPDATE ON {table} WHEN {}", differs(&touched, "new", "old")), update);
    }
    Triggers { triggers, blind }
}

/// The key as SQL names, to be qualified.
fn keys(key: &Key, shape: &Shape) -> Vec<String> {
    match key {
        Key::Rowid => shape.rowid.clone().into_iter().collect(),
        Key::Columns(columns) => columns.iter().map(|column| quote(column)).collect(),
    }
}

/// That two rows differ in one of `names`. Compared as they are, not under the columns' collations.
fn differs(names: &[String], left: &str, right: &str) -> String {
    let terms: Vec<String> = names.iter().map(|name| format!("{left}.{name} COLLATE BINARY IS NOT {right}.{name}")).collect();
    format!("({})", terms.join(" OR "))
}

struct Writer<'a> {
    tracked: &'a Tracked,
    shape: &'a Shape,
    keys: Vec<String>,
    keep: u32,
}

impl Writer<'_> {
    /// The values of an entry for the row called `row`.
    fn row(&self, row: &str) -> String {
        let keys: Vec<String> = self.keys.iter().map(|key| format!("{row}.{key}")).collect();
        format!("{}, random(), {}", self.tracked.number, keys.join(", "))
    }

    fn insertion(&self) -> String {
        let columns: Vec<String> = (0..self.keys.len()).map(|place| format!("k{place}")).collect();
        format!("INSERT INTO \"_horos_log\"(tab, stamp, {})", columns.join(", "))
    }

    fn append(&self, values: &str) -> String {
        format!("{} VALUES ({values});", self.insertion())
    }

    fn append_if(&self, values: &str, condition: &str) -> String {
        format!("{} SELECT {values} WHERE {condition};", self.insertion())
    }

    /// A trigger of its own, so that for most rows nothing is opened. (One on the log itself would do for all, but then SQLite gathers
    /// what a look-up finds, and what an update appends under a condition, in a table of its own before it appends it: a quarter
    /// slower.) Numbers are never reused, since the greatest is always kept.
    fn prune(&self) -> String {
        format!("DELETE FROM \"_horos_log\" WHERE seq <= (SELECT max(seq) FROM \"_horos_log\") - {};", self.keep.max(1))
    }

    /// Whether two rows in conflict in this index have the same key anyway, so that the new row's entry stands for both.
    fn is_key(&self, unique: &Unique) -> bool {
        let (Key::Columns(key), Some(terms), None) = (&self.tracked.key, &unique.terms, &unique.predicate) else { return false };
        key.len() == terms.len()
            && terms.iter().all(|term| match term {
                Term::Column { name, collation } => collation == "BINARY" && key.iter().any(|column| column.eq_ignore_ascii_case(name)),
                Term::Expression(_) => false,
            })
    }

    /// Leaves out the row that has the new row's key: its entry comes after the insert.
    fn not_the_inserted(&self) -> String {
        let differs = differs(&self.keys, "r", "new");
        match self.keys.as_slice() {
            // -1 stands for a rowid that is yet to be chosen (`insert.c`), and may be a row's rowid all the same.
            [rowid] if self.shape.keyed_by_rowid(&self.tracked.key) => format!("({differs} OR r.{rowid} IS -1)"),
            _ => differs,
        }
    }

    /// Appends the keys of the rows that the new row would bring into conflict.
    fn lookups(&self, uniques: &[&Unique], rowid: Option<&str>, other: &str) -> String {
        let mut body: Vec<String> = uniques.iter().flat_map(|unique| self.lookup(unique, other)).collect();
        body.extend(rowid.map(|rowid| self.select("", &format!("r.{rowid} = new.{rowid}"), other)));
        body.join(" ")
    }

    fn select(&self, guard: &str, same: &str, other: &str) -> String {
        format!("{} SELECT {} FROM {guard}{} AS r WHERE {same} AND {other};", self.insertion(), self.row("r"), quote(&self.tracked.name))
    }

    /// Looks in `unique` for a row that has no rowid yet.
    fn yet_to_be_numbered(&self, unique: &Unique) -> Numbering {
        let Some(rowid) = self.shape.rowid.as_deref() else { return Numbering::Irrelevant };
        let terms = unique.terms.as_deref().unwrap_or_default();
        let over_rowid = |term: &Term| matches!(term, Term::Expression(Expression { over_rowid: true, .. }));
        let is_rowid = |term: &Term| matches!((term, &self.shape.alias), (Term::Column { name, .. }, Some(alias)) if name == alias);
        let predicate = unique.predicate.as_ref();
        if terms.iter().any(is_rowid) || !(terms.iter().any(over_rowid) || predicate.is_some_and(|p| p.over_rowid)) {
            return Numbering::Irrelevant;
        }
        let terms: Vec<&Term> = terms.iter().filter(|term| !over_rowid(term)).collect();
        if terms.is_empty() {
            return Numbering::Decides;
        }
        // The index serves only where its predicate is there; what it says of the rows themselves remains true.
        let other = format!("new.{rowid} IS -1 AND {}", self.not_the_inserted());
        Numbering::Without(self.matching(unique, &terms, predicate.map(|p| (p, !p.over_rowid)), &other))
    }

    fn lookup(&self, unique: &Unique, other: &str) -> Vec<String> {
        let terms: Vec<&Term> = unique.terms.iter().flatten().collect();
        self.matching(unique, &terms, unique.predicate.as_ref().map(|predicate| (predicate, true)), other)
    }

    /// Looks for rows with the same `terms` as the new one in what is in `unique`; the flag is whether the new row is to be in
    /// it too.
    fn matching(&self, unique: &Unique, terms: &[&Term], predicate: Option<(&Expression, bool)>, other: &str) -> Vec<String> {
        // Without its index a lookup would read the whole table for every row of, say, a bulk load that drops the index first:
        // no index, no lookup. The first arm is where the index was when the trigger was written; `VACUUM` may move it.
        let guard = unique.place.map_or(String::new(), |place| {
            let name = format!("'{}'", unique.name.replace('\'', "''"));
            format!(
                "(SELECT 1 FROM sqlite_master WHERE rowid = {place} AND type = 'index' AND name = {name} UNION ALL \
                 SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = {name} LIMIT 1) AS g CROSS JOIN "
            )
        });
        let plain = predicate.is_none() && terms.iter().all(|term| matches!(term, Term::Column { .. }));
        if plain {
            let same: Vec<String> = terms
                .iter()
                .filter_map(|term| match term {
                    Term::Column { name, collation } => {
                        let column = quote(name);
                        // `REPLACE` puts the default where NULL is not permitted, after this trigger.
                        let value = self
                            .shape
                            .instead_of_null(name)
                            .map_or_else(|| format!("new.{column}"), |default| format!("coalesce(new.{column}, {default})"));
                        Some(format!("r.{column} COLLATE {} = {value}", quote(collation)))
                    }
                    Term::Expression(_) => None,
                })
                .collect();
            return vec![self.select(&guard, &same.join(" AND "), other)];
        }
        // The index's own text is evaluated twice: on the rows, where the index serves it, and on a row that looks like the new one.
        let statement = |with_defaults: bool| {
            let mut columns: Vec<String> = unique
                .named
                .iter()
                .map(|name| {
                    let column = quote(name);
                    match self.shape.instead_of_null(name).filter(|_| with_defaults) {
                        Some(default) => format!("coalesce(new.{column}, {default}) AS {column}"),
                        None => format!("new.{column} AS {column}"),
                    }
                })
                .collect();
            if let Some(rowid) = self.shape.rowid.as_deref().filter(|_| unique.names_rowid) {
                columns.push(format!("new.{rowid} AS {rowid}"));
            }
            let seen = if columns.is_empty() { "1".to_owned() } else { columns.join(", ") };
            let of_new = |expression: &str| format!("(SELECT {expression}\n FROM (SELECT {seen}))");
            let mut same: Vec<String> = terms
                .iter()
                .map(|term| match term {
                    Term::Column { name, collation } => {
                        format!("r.{} COLLATE {} = {}", quote(name), quote(collation), of_new(&quote(name)))
                    }
                    Term::Expression(Expression { text, of_row, .. }) => format!("({of_row}\n) = {}", of_new(&format!("({text}\n)"))),
                })
                .collect();
            if let Some((Expression { text, of_row, .. }, of_both)) = predicate {
                same.push(format!("({of_row}\n)"));
                same.extend(of_both.then(|| of_new(&format!("({text}\n)"))));
            }
            same.join(" AND ")
        };
        let mut found = vec![self.select(&guard, &statement(false), other)];
        // Apart, because `coalesce` takes the column's affinity away from the expression.
        let filled: Vec<String> = unique
            .named
            .iter()
            .filter(|name| self.shape.instead_of_null(name).is_some())
            .map(|name| format!("new.{} IS NULL", quote(name)))
            .collect();
        if !filled.is_empty() {
            found.push(self.select(&guard, &format!("({}) AND {}", filled.join(" OR "), statement(true)), other));
        }
        found
    }
}
