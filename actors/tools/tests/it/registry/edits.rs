//! Any edits by anybody, in any order, with and without recursive triggers: what is in force is what a node that starts now would read,
//! and no version of a name is ever given twice.

use std::collections::{BTreeMap, HashSet};

use horos_tools::{Registry, reload};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::world::{File, kinds, scale};

fn seed() -> u64 {
    let given =
        std::env::var_os("HOROS_TEST_SEED").map(|text| text.to_string_lossy().parse().expect("HOROS_TEST_SEED is a decimal number"));
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("seed {seed}: repeat with HOROS_TEST_SEED={seed}");
    seed
}

/// A statement such as somebody might write, right or wrong.
fn statement(random: &mut StdRng) -> String {
    let name = |random: &mut StdRng| format!("t{}", random.random_range(0..6));
    let (one, other) = (name(random), name(random));
    let clause = ["", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT"][random.random_range(0..5)];
    let word = random.random_range(0..4);
    match random.random_range(0..12) {
        0..3 => {
            format!("INSERT {clause} INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('{one}', 'd{word}', 'echo')")
        }
        3 => format!(
            "INSERT {clause} INTO mcp_tools_registry (tool_name, description, handler_type, version) VALUES ('{one}', 'd{word}', 'echo', {word})"
        ),
        4 => format!(
            "INSERT INTO mcp_tools_registry (tool_name, description, handler_type) VALUES ('{one}', 'd', 'echo')
            ON CONFLICT DO UPDATE SET description = 'u{word}'"
        ),
        5 => format!("UPDATE {clause} mcp_tools_registry SET tool_name = '{other}' WHERE tool_name = '{one}'"),
        6 => format!("UPDATE mcp_tools_registry SET description = 'e{word}', changed_by = 'ana' WHERE tool_name = '{one}'"),
        7 => format!("UPDATE mcp_tools_registry SET version = {word} WHERE tool_name = '{one}'"),
        8 => format!("UPDATE mcp_tools_registry SET is_active = {} WHERE tool_name = '{one}'", word % 3),
        9 => format!(
            "UPDATE mcp_tools_registry SET input_schema = '{}' WHERE tool_name = '{one}'",
            ["{", "[]", "{\"type\":\"object\"}"][word % 3]
        ),
        10 => format!("DELETE FROM mcp_tools_registry WHERE tool_name = '{one}'"),
        _ => format!("DELETE FROM mcp_tools_history WHERE history_id % 3 = {word} AND tool_name <> '{one}'"),
    }
}

#[test]
fn after_any_edits_all_is_as_if_read_for_the_first_time_and_versions_only_grow() {
    let mut random = StdRng::seed_from_u64(seed());
    for round in 0..scale(2, 40) {
        let file = File::new();
        let database = file.open();
        database.pragma_update(None, "recursive_triggers", round % 2 == 0).unwrap();
        let registry = Registry::new(kinds().0, Vec::new());
        let mut seen: HashSet<(String, i64, String)> = HashSet::new();
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for step in 0..100 {
            let sql = statement(&mut random);
            // It may conflict with what is there, as it would without us.
            let _ = database.execute(&sql, []);
            let mut rows =
                database.prepare("SELECT tool_name, version, description || is_active || input_schema FROM mcp_tools_registry").unwrap();
            let rows = rows.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))).unwrap();
            for row in rows {
                let (name, version, text) = row.unwrap();
                let before = last.insert(name.clone(), version).unwrap_or_default();
                assert!(version >= before, "round {round}, step {step}: {name} went from {before} to {version} by {sql}");
                let told = (name, version, text);
                let twice = version == before && before != 0 && !seen.contains(&told);
                assert!(!twice, "round {round}, step {step}: two rows are {told:?} by {sql}");
                seen.insert(told);
            }
            if random.random_ratio(1, 3) {
                reload::load(&registry, &file.path).unwrap();
                let fresh = Registry::new(kinds().0, Vec::new());
                reload::load(&fresh, &file.path).unwrap();
                let (now, fresh) = (registry.snapshot(), fresh.snapshot());
                for (name, tool) in &fresh.tools {
                    let served = &now.tools[name];
                    assert_eq!((served.spec.version, &served.tool), (tool.spec.version, &tool.tool), "round {round}, step {step}");
                }
                // What serves besides is the last that was right of a row that is wrong now.
                for name in now.tools.keys().filter(|name| !fresh.tools.contains_key(*name)) {
                    assert!(now.wrong.iter().any(|wrong| wrong.name == *name && wrong.serves), "round {round}, step {step}: {name}");
                }
                let wrong = |snapshot: &horos_tools::Snapshot| snapshot.wrong.iter().map(|wrong| wrong.name.clone()).collect::<Vec<_>>();
                assert_eq!(wrong(&now), wrong(&fresh), "round {round}, step {step}");
                let mut found: Vec<_> = now.search("t0 t1 t2 t3 t4 t5", 100, |_| true).iter().map(|tool| tool.spec.name.clone()).collect();
                found.sort();
                assert_eq!(found, now.tools.keys().cloned().collect::<Vec<_>>(), "round {round}, step {step}");
            }
        }
    }
}
