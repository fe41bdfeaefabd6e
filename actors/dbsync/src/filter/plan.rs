//! Fits a spec to a database, or says everything that keeps it from fitting.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::{
    Filter, FilterProblems, FilterSpec, Fingerprint, KeyKind, LeftOut, LeftOutKind, LoadError, MAX_TABLES, Part, Table,
    catalog::{Catalog, Kind, NoKey, Shape},
    condition, ddl,
    problem::suggest,
};

/// One table as the spec wants it.
struct Wanted<'a> {
    table: &'a str,
    /// None keeps all.
    columns: Option<&'a [String]>,
    condition: Option<&'a str>,
}

pub(super) fn load(connection: &Connection, spec: &FilterSpec) -> Result<Filter, LoadError> {
    let mut problems = FilterProblems::default();
    let wanted = wanted(spec);
    if wanted.len() > MAX_TABLES {
        let what = format!("the filter names {} tables, more than {MAX_TABLES}", wanted.len());
        problems.add(wanted[MAX_TABLES].table, Part::Table, what, "publish fewer, or split the database");
        return Err(problems.into());
    }
    let catalog = Catalog::read(connection)?;
    let mut plan = Plan { connection, catalog: &catalog, problems, left_out: Vec::new() };
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let mut named: BTreeSet<String> = BTreeSet::new();
    for want in &wanted {
        if !named.insert(want.table.to_ascii_lowercase()) {
            plan.problems.add(want.table, Part::Table, "the filter names it more than once", "keep one of the entries");
            continue;
        }
        if let Some(table) = plan.table(want)? {
            tables.insert(table.name.to_ascii_lowercase(), table);
        }
    }
    let tables: Vec<Table> = tables.into_values().collect();
    plan.rehearse(&tables)?;
    if !plan.problems.is_empty() {
        return Err(plan.problems.into());
    }
    let mut left_out = plan.left_out;
    left_out.extend(catalog.objects.iter().filter(|it| !named.contains(&it.name.to_ascii_lowercase())).filter_map(unlisted));
    Ok(Filter { fingerprint: Fingerprint::of(&tables), tables, left_out })
}

fn wanted(spec: &FilterSpec) -> Vec<Wanted<'_>> {
    let full = spec.full_tables.iter().map(|table| Wanted { table, columns: None, condition: None });
    let filtered = spec.filtered_tables.iter().map(|(table, it)| Wanted { table, columns: None, condition: Some(it) });
    let partial =
        spec.partial_tables.iter().map(|(table, it)| Wanted { table, columns: Some(&it.columns), condition: it.condition.as_deref() });
    full.chain(filtered).chain(partial).collect()
}

fn unlisted(object: &super::catalog::Object) -> Option<LeftOut> {
    let (kind, reason) = match object.kind {
        Kind::Table { .. } => (LeftOutKind::Table, "the filter does not name it"),
        Kind::View => (LeftOutKind::View, "views are not published: their text may name private tables"),
        Kind::Virtual => (LeftOutKind::VirtualTable, "virtual tables are not published"),
        Kind::Shadow => (LeftOutKind::ShadowTable, "it belongs to a virtual table"),
        // Nobody misses them, and nobody expects them.
        Kind::System | Kind::Ours => return None,
    };
    Some(LeftOut { kind, name: object.name.clone(), table: None, reason: reason.to_owned() })
}

struct Plan<'a> {
    connection: &'a Connection,
    catalog: &'a Catalog,
    problems: FilterProblems,
    left_out: Vec<LeftOut>,
}

impl Plan<'_> {
    /// The table, or nothing and a problem more.
    fn table(&mut self, want: &Wanted<'_>) -> rusqlite::Result<Option<Table>> {
        let Some(shape) = self.shape(want.table)? else { return Ok(None) };
        let before = self.problems.list.len() + self.problems.left_off;
        let published = self.columns(want, &shape);
        if let Some(text) = want.condition
            && let Err(refusal) = condition::judge(&shape, text)?
        {
            self.problems.add(want.table, Part::Condition(text.to_owned()), refusal.what, refusal.fix);
        }
        if self.problems.list.len() + self.problems.left_off > before {
            return Ok(None);
        }

        let mut columns: Vec<String> = Vec::new();
        if shape.key.kind == KeyKind::Rowid {
            columns.extend(shape.key.columns.iter().map(|key| key.name.clone()));
        }
        let mut blanked = Vec::new();
        for (column, published) in shape.columns.iter().zip(&published) {
            if *published { &mut columns } else { &mut blanked }.push(column.name.clone());
        }
        let selects = ddl::selects(&shape, &columns, want.condition);
        // The condition was judged beside the database; here it meets the real table, with the functions behind its generated
        // columns and whatever else this connection lacks.
        for sql in [&selects.all, &selects.by_key, &selects.after, &selects.count] {
            if let Err(error) = self.connection.prepare(sql) {
                let fix = "the publisher knows only SQLite's own functions and collations: publish columns that need no others";
                self.problems.add(want.table, Part::Table, format!("SQLite cannot read it: {}", message(&error)), fix);
                return Ok(None);
            }
        }
        let mut schema = vec![ddl::create_table(&shape, &published)];
        for (number, index) in shape.indexes.iter().enumerate() {
            match ddl::unfit(index, &shape, &published) {
                Some(reason) => self.leave(LeftOutKind::Index, &index.name, &shape, reason),
                None => {
                    // SQLite's names for the indexes of UNIQUE constraints may not be given by anybody else.
                    let name = if index.automatic { format!("_horos_unique_{}_{number}", shape.name) } else { index.name.clone() };
                    schema.push(ddl::create_index(index, &shape.name, &name));
                }
            }
        }
        self.leave_parts(&shape, &published);
        Ok(Some(Table {
            key: shape.key,
            columns,
            blanked,
            condition: want.condition.map(str::to_owned),
            without_rowid: shape.without_rowid,
            schema,
            selects,
            name: shape.name,
        }))
    }

    /// What the database says about the table, if it is one that can be published.
    fn shape(&mut self, name: &str) -> rusqlite::Result<Option<Shape>> {
        let refuse = |problems: &mut FilterProblems, what: &str, fix: &str| {
            problems.add(name, Part::Table, what, fix);
            Ok(None)
        };
        let Some(object) = self.catalog.find(name) else {
            let tables = self.catalog.objects.iter().filter(|it| matches!(it.kind, Kind::Table { .. })).map(|it| it.name.as_str());
            let fix = suggest(name, tables, "name a table of this database");
            return refuse(&mut self.problems, "there is no such table", &fix);
        };
        let (without_rowid, strict) = match object.kind {
            Kind::Table { without_rowid, strict } => (without_rowid, strict),
            Kind::View => {
                return refuse(
                    &mut self.problems,
                    "it is a view, and what it shows changes without a write to it",
                    "publish the tables it reads, and create the view on the FO's side",
                );
            }
            Kind::Virtual => {
                return refuse(
                    &mut self.problems,
                    "it is a virtual table: an index such as FTS keeps the words of rows that are not published",
                    "publish the table it indexes, and build the index on the FO's side",
                );
            }
            Kind::Shadow => {
                return refuse(
                    &mut self.problems,
                    "it is a part of a virtual table, and keeps what unpublished rows say",
                    "publish the table that the virtual one indexes, and build the index on the FO's side",
                );
            }
            Kind::System => {
                return refuse(
                    &mut self.problems,
                    "it is SQLite's own: its counters and samples are taken from unpublished rows too",
                    "leave it out",
                );
            }
            Kind::Ours => {
                return refuse(&mut self.problems, "it is Horos's own, about every row, published or not", "leave it out");
            }
        };
        match Shape::read(self.connection, &object.name, without_rowid, strict)? {
            Ok(shape) => Ok(Some(shape)),
            Err(NoKey::Shadowed) => refuse(
                &mut self.problems,
                "it has no primary key, and columns called rowid, _rowid_ and oid hide its rowid",
                "give the table a primary key",
            ),
            Err(NoKey::Collation { column, collation }) => {
                let what = format!("it is in the key, and its collation {collation:?} is known to the writing program only");
                let fix = "give the key one of SQLite's own collations: BINARY, NOCASE, RTRIM";
                self.problems.add(name, Part::Column(column), what, fix);
                Ok(None)
            }
        }
    }

    /// Which of the columns are published. The key's always are.
    fn columns(&mut self, want: &Wanted<'_>, shape: &Shape) -> Vec<bool> {
        let Some(kept) = want.columns else { return vec![true; shape.columns.len()] };
        let mut published: Vec<bool> = vec![false; shape.columns.len()];
        if kept.is_empty() {
            self.problems.add(want.table, Part::Table, "it keeps no column", "name at least one, the key's if no other");
        }
        for name in kept {
            let part = || Part::Column(name.clone());
            match shape.position(name) {
                Some(position) if published[position] => {
                    self.problems.add(want.table, part(), "it is kept twice", "name it once");
                }
                Some(position) => published[position] = true,
                None => {
                    let names = shape.columns.iter().map(|column| column.name.as_str());
                    let fix = suggest(name, names, "name a column of this table");
                    self.problems.add(want.table, part(), "there is no such column", fix);
                }
            }
        }
        for key in &shape.key.columns {
            if let Some(position) = shape.columns.iter().position(|column| column.name == key.name) {
                published[position] = true;
            }
        }
        published
    }

    fn leave(&mut self, kind: LeftOutKind, name: &str, shape: &Shape, reason: impl Into<String>) {
        self.left_out.push(LeftOut { kind, name: name.to_owned(), table: Some(shape.name.clone()), reason: reason.into() });
    }

    fn leave_parts(&mut self, shape: &Shape, published: &[bool]) {
        for (column, published) in shape.columns.iter().zip(published) {
            if !published {
                let stands = if column.not_null { "a neutral value, because it is NOT NULL" } else { "NULL" };
                self.leave(LeftOutKind::Column, &column.name, shape, format!("the filter does not keep it; the FO has {stands}"));
            }
            if *published && !column.has_builtin_collation() {
                let reason = format!("{:?} is known to the writing program only; the FO compares bytes", column.collation);
                self.leave(LeftOutKind::Collation, &column.name, shape, reason);
            }
            if column.has_default && !column.generated {
                self.leave(LeftOutKind::Default, &column.name, shape, "an FO only copies rows");
            }
        }
        for parent in &shape.references {
            self.leave(LeftOutKind::ForeignKey, parent, shape, "the BO enforces it, and its parent row may not be published");
        }
        for trigger in &shape.triggers {
            // Ours are nobody's loss.
            if !trigger.starts_with("_horos_") {
                self.leave(LeftOutKind::Trigger, trigger, shape, "triggers run on the BO; their text may name private tables");
            }
        }
    }

    /// Creates the FO's schema in memory: what SQLite does not take there would not be taken on any FO.
    fn rehearse(&mut self, tables: &[Table]) -> rusqlite::Result<()> {
        let rehearsal = Connection::open_in_memory()?;
        for table in tables {
            if let Some(error) = table.schema.iter().find_map(|sql| rehearsal.execute_batch(sql).err()) {
                let what = format!("an FO could not create it: {}", message(&error));
                self.problems.add(&table.name, Part::Table, what, "rename what it complains about in the BO's schema");
            }
        }
        Ok(())
    }
}

fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}
