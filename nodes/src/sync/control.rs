//! `control.db` on every node: the owner's publications of it, one a role, and the replica that each other node keeps.
//!
//! They are the node's own: `sync.yaml` can neither name nor change them, and no name that begins with [`RESERVED`] is anybody's else.
//! `horos sync status` shows them. What they publish is named column by column, so that what the file is given later, and whatever it
//! holds of keys, stays where it is until somebody names it here.

use std::collections::BTreeMap;

use horos_dbsync::{
    filter::{FilterSpec, PartialTable},
    publisher::{Publication, PublicationMetrics, Publisher, PublisherLimits},
    replica::{Origin, Replica, ReplicaConfig, ReplicaMetrics},
    source::SourceConfig,
};
use horos_router::admin::DBSYNC;
use horos_supervision::ChildSpec;
use horos_wire::{NodeName, Role};

use super::{Here, SyncError, layout::DIRECTORY, publishing::follow, told};
use crate::control::FILE;

/// What their names begin with.
pub(super) const RESERVED: &str = "control-";

/// Either end of it on this node.
pub(super) enum Control {
    Publishes(Publisher),
    Keeps(Replica),
}

fn name(role: Role) -> String {
    format!("{RESERVED}{role}")
}

/// What every node serves tools by. Where a tool's data is, and by which statement it is asked for, an FO that has a replica needs too.
const TOOLS: &[&str] = &[
    "tool_name",
    "tool_category",
    "title",
    "description",
    "input_schema",
    "output_schema",
    "handler_type",
    "handler_config",
    "mode",
    "destructive",
    "idempotent",
    "group_tag",
    "timeout_ms",
    "is_active",
    "version",
    "updated_at",
];
/// Who may use them.
const RULES: &[&str] = &["policy_id", "tool_name", "role", "effect"];

fn names(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|column| (*column).to_owned()).collect()
}

/// What nodes of `role` have of the routes and of the breakers that people force. An FO has `policy`, which says what it needs of `config`,
/// in place of it; who edited what, and what a route was before, goes to nobody.
fn filter(role: Role) -> FilterSpec {
    let public = role == Role::Fo;
    let table = |columns: &[&str]| PartialTable {
        columns: columns.iter().filter(|column| !public || **column != "config").map(|column| (*column).to_owned()).collect(),
        // As `horos_router::admin` has it for those who ask.
        condition: public.then(|| format!("lower(substr(service_name, 1, {})) <> '{DBSYNC}'", DBSYNC.len())),
    };
    let routes = table(&["service_name", "strategy", "endpoint", "config", "policy", "updated_at"]);
    let breakers = table(&["service_name", "endpoint", "forced", "resets", "updated_at"]);
    let partial_tables = BTreeMap::from([
        ("routes".to_owned(), routes),
        ("breakers".to_owned(), breakers),
        ("mcp_tools_registry".to_owned(), PartialTable { columns: names(TOOLS), condition: Some("is_active IS NOT 0".to_owned()) }),
        ("mcp_tool_policy".to_owned(), PartialTable { columns: names(RULES), condition: None }),
    ]);
    FilterSpec { partial_tables, ..FilterSpec::default() }
}

/// Registers what this node has to do with it. Nothing runs before the children do.
///
/// # Errors
/// [`SyncError`]: a name is taken.
pub(super) fn lay(owner: &NodeName, here: Here<'_>) -> Result<(Control, Vec<ChildSpec>), SyncError> {
    let Here { exchange, runtime, data, databases, conditions, .. } = here;
    let (me, file) = (exchange.node(), data.join(FILE));
    if *owner == me.name {
        let config = SourceConfig::new(FILE, file, data.join(DIRECTORY));
        let publications = [Role::Bo, Role::Fo].map(|role| Publication::new(&name(role), filter(role)).to(role)).to_vec();
        let publisher = Publisher::new(exchange, runtime, config, publications, &PublisherLimits::default(), told(conditions))?;
        let follow = follow(&FILE.parse().expect("a literal name"), publisher.source().clone(), databases.clone());
        let children = vec![publisher.child(), follow];
        return Ok((Control::Publishes(publisher), children));
    }
    let config = ReplicaConfig { readers: 1, ..ReplicaConfig::new(&name(me.role), file, Origin::Node(owner.clone())) };
    let replica = Replica::new(config, told(conditions));
    let children = vec![replica.supervisor(exchange, runtime)?.into_child()];
    Ok((Control::Keeps(replica), children))
}

impl Control {
    /// Counters of what is published.
    pub(super) fn published(&self) -> Vec<PublicationMetrics> {
        match self {
            Self::Publishes(publisher) => publisher.metrics(),
            Self::Keeps(_) => Vec::new(),
        }
    }

    /// Counters of what is kept.
    pub(super) fn kept(&self) -> Option<ReplicaMetrics> {
        match self {
            Self::Publishes(_) => None,
            Self::Keeps(replica) => Some(replica.metrics()),
        }
    }
}

#[cfg(test)]
mod tests {
    use horos_dbsync::filter::{Filter, check};
    use horos_store::rusqlite::{Connection, params_from_iter, types::Value};

    use super::*;
    use crate::control::MIGRATIONS;

    #[test]
    fn what_is_published_is_routes_forced_breakers_and_tools_and_to_an_fo_no_configuration_of_routes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        MIGRATIONS.apply(&mut Connection::open(&file).unwrap()).unwrap();
        for role in [Role::Bo, Role::Fo] {
            let spec = filter(role);
            check(&file, &spec).unwrap_or_else(|error| panic!("{role}: {error}"));
            assert!(spec.full_tables.is_empty() && spec.filtered_tables.is_empty());
            assert_eq!(spec.partial_tables.keys().collect::<Vec<_>>(), ["breakers", "mcp_tool_policy", "mcp_tools_registry", "routes"]);
            let routes = &spec.partial_tables["routes"];
            assert_eq!(routes.columns.contains(&"config".to_owned()), role == Role::Bo);
            assert!(routes.columns.contains(&"policy".to_owned()));
            for table in ["breakers", "routes"] {
                assert_eq!(spec.partial_tables[table].condition.is_some(), role == Role::Fo);
            }
            // Who made a tool or a rule, and when, is nobody's else.
            for table in ["mcp_tools_registry", "mcp_tool_policy"] {
                assert!(!spec.partial_tables[table].columns.iter().any(|column| column.starts_with("created")));
            }
        }
    }

    /// What a replica has of them is what a node's tools are read from.
    #[test]
    fn a_node_finds_in_its_replica_all_columns_that_its_tools_are_made_of() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        let mut owner = Connection::open(&file).unwrap();
        MIGRATIONS.apply(&mut owner).unwrap();
        owner
            .execute_batch(
                "INSERT INTO mcp_tools_registry (tool_name, description, handler_type, is_active)
                    VALUES ('on', 'x', 'sql_query', 1), ('off', 'x', 'sql_query', 0), ('odd', 'x', 'sql_query', 'maybe');
                INSERT INTO mcp_tool_policy (tool_name) VALUES ('*');",
            )
            .unwrap();
        for role in [Role::Bo, Role::Fo] {
            let filter = Filter::load(&owner, &filter(role)).unwrap();
            let replica = directory.path().join(format!("{role}.db"));
            let copy = Connection::open(&replica).unwrap();
            copy.execute_batch(&filter.schema().join(";")).unwrap();
            copy.execute("ATTACH ?1 AS owner", [file.to_str().unwrap()]).unwrap();
            for table in filter.tables() {
                let name = table.name();
                let mut columns = copy.prepare(&format!("SELECT name FROM pragma_table_info('{name}')")).unwrap();
                let columns: Vec<String> = columns.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
                let select = filter.select(name).unwrap();
                let mut rows = owner.prepare(select).unwrap();
                let published: Vec<String> = rows.column_names().map(str::to_owned).collect();
                assert!(published.iter().all(|column| columns.contains(column)), "{name}: {published:?} {columns:?}");
                let marks = vec!["?"; published.len()].join(", ");
                let insert = format!("INSERT INTO {name} ({}) VALUES ({marks})", published.join(", "));
                let mut rows = rows.query([]).unwrap();
                while let Some(row) = rows.next().unwrap() {
                    let values: Vec<Value> = (0..published.len()).map(|column| row.get(column).unwrap()).collect();
                    copy.execute(&insert, params_from_iter(values)).unwrap();
                }
            }
            drop(copy);
            let registry = horos_tools::Registry::new(horos_tools::Kinds::default(), Vec::new());
            let taken = horos_tools::reload::load(&registry, &replica).unwrap();
            // There are no kinds here, so that what was read is wrong, and what is turned off was not read.
            assert_eq!(taken.wrong, 2, "{role}");
            let wrong: Vec<_> = registry.snapshot().wrong.iter().map(|wrong| wrong.name.clone()).collect();
            assert_eq!(wrong, ["odd".into(), "on".into()]);
        }
    }
}
