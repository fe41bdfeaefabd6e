//! What somebody might try through a SQL tool: 500 attempts to write, attach, escape, exhaust or read beyond the list, each with a name.
//!
//! The tool may read `goods(sku, price)`, `orders(id, sku, qty)`, `plain` and the view `cheap`, and change nothing but `orders` where it is a
//! script. What may come out is an error, or rows of those.

use serde_json::{Value, json};

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) name: String,
    pub(crate) what: What,
    pub(crate) arguments: Value,
    pub(crate) end: End,
}

/// What kind of tool.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Query(String),
    Script(Vec<String>),
    /// A whole `handler_config`.
    Config(Value),
}

/// How it may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With an error, when the row is read or when the tool is called.
    Refused,
    /// With an error, or an answer in which nothing is that may not be.
    Harmless,
}

fn query(name: impl Into<String>, sql: impl Into<String>) -> Attempt {
    Attempt { name: name.into(), what: What::Query(sql.into()), arguments: json!({}), end: End::Refused }
}

fn script(name: impl Into<String>, sql: &[&str]) -> Attempt {
    let statements = sql.iter().map(|sql| (*sql).to_owned()).collect();
    Attempt { name: name.into(), what: What::Script(statements), arguments: json!({}), end: End::Refused }
}

impl Attempt {
    fn harmless(self) -> Self {
        Self { end: End::Harmless, ..self }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for list in [writes(), reads(), schema(), functions(), exhaustion(), arguments(), scripts(), configs()] {
        all.extend(list);
    }
    all
}

/// Statements that would change something, in every dress.
fn writes() -> Vec<Attempt> {
    const STATEMENTS: [(&str, &str); 34] = [
        ("insert", "INSERT INTO goods (sku, label, price) VALUES ('x', 'x', 1)"),
        ("insert_default", "INSERT INTO audit DEFAULT VALUES"),
        ("insert_select", "INSERT INTO audit (what) SELECT password FROM secrets"),
        ("insert_or_replace", "INSERT OR REPLACE INTO orders (id, sku, qty) VALUES (1, 'p-1', 9)"),
        ("replace", "REPLACE INTO orders (id, sku, qty) VALUES (1, 'p-1', 9)"),
        ("upsert", "INSERT INTO orders (id, sku, qty) VALUES (1, 'p-1', 9) ON CONFLICT (id) DO UPDATE SET qty = 9"),
        ("insert_returning", "INSERT INTO orders (sku, qty) VALUES ('p-1', 9) RETURNING id"),
        ("update", "UPDATE orders SET qty = 99"),
        ("update_from", "UPDATE orders SET qty = (SELECT length(password) FROM secrets)"),
        ("update_returning", "UPDATE orders SET qty = 99 RETURNING id"),
        ("delete", "DELETE FROM orders"),
        ("delete_returning", "DELETE FROM orders RETURNING *"),
        ("drop_table", "DROP TABLE orders"),
        ("drop_view", "DROP VIEW IF EXISTS cheap"),
        ("drop_trigger", "DROP TRIGGER noticed"),
        ("create_table", "CREATE TABLE mine (a)"),
        ("create_temp_table", "CREATE TEMP TABLE mine AS SELECT * FROM secrets"),
        ("create_view", "CREATE VIEW mine AS SELECT * FROM secrets"),
        ("create_temp_view", "CREATE TEMP VIEW mine AS SELECT * FROM secrets"),
        ("create_trigger", "CREATE TEMP TRIGGER mine AFTER INSERT ON orders BEGIN DELETE FROM goods; END"),
        ("create_index", "CREATE INDEX mine ON goods (price)"),
        ("create_vtable", "CREATE VIRTUAL TABLE mine USING fts5(a)"),
        ("alter_table", "ALTER TABLE goods ADD COLUMN mine"),
        ("rename_table", "ALTER TABLE secrets RENAME TO cheap2"),
        ("attach_file", "ATTACH 'other.db' AS other"),
        ("attach_memory", "ATTACH ':memory:' AS other"),
        ("detach", "DETACH main"),
        ("vacuum", "VACUUM"),
        ("vacuum_into", "VACUUM INTO 'copy.db'"),
        ("reindex", "REINDEX"),
        ("analyze", "ANALYZE"),
        ("begin", "BEGIN IMMEDIATE"),
        ("savepoint", "SAVEPOINT mine"),
        ("rollback", "ROLLBACK"),
    ];
    let mut all = Vec::new();
    for (name, sql) in STATEMENTS {
        let dresses = [
            ("bare", sql.to_owned()),
            ("after_comment", format!("/* SELECT */ -- SELECT\n {sql}")),
            ("after_a_select", format!("SELECT sku FROM goods; {sql}")),
            ("before_a_select", format!("{sql}; SELECT sku FROM goods")),
            ("after_a_cte", format!("WITH x AS (SELECT 1) {sql}")),
            ("explained", format!("EXPLAIN {sql}")),
        ];
        all.extend(dresses.map(|(dress, sql)| query(format!("write/{name}/{dress}"), sql)));
    }
    for (name, sql) in [
        ("in_a_cte", "WITH x AS (DELETE FROM orders RETURNING id) SELECT id FROM x"),
        ("in_a_subquery", "SELECT * FROM (DELETE FROM orders RETURNING id)"),
        ("in_a_scalar", "SELECT (UPDATE orders SET qty = 1 RETURNING id)"),
        ("after_nul", "SELECT sku FROM goods\0; DELETE FROM orders"),
        ("nul_first", "\0DELETE FROM orders"),
        ("after_unclosed_comment", "SELECT sku FROM goods; /* x */ DELETE FROM orders /*"),
        ("behind_a_string", "SELECT 'a;b', \"sku\" FROM goods; DELETE FROM orders"),
        ("behind_a_bracket", "SELECT [sku] FROM goods; DELETE FROM orders --]"),
        ("behind_a_backtick", "SELECT `sku` FROM goods; DELETE FROM orders"),
        ("three_statements", "SELECT 1; SELECT 2; DELETE FROM orders;"),
        ("two_semicolons", "SELECT 1;; DELETE FROM orders"),
        (
            "recursive_cte_delete",
            "WITH RECURSIVE x(n) AS (SELECT 1 UNION SELECT n + 1 FROM x WHERE n < 3) DELETE FROM orders WHERE id IN x",
        ),
        ("nested_cte_insert", "WITH a AS (SELECT 1), b AS (SELECT 2) INSERT INTO audit (what) SELECT 'x' FROM a, b"),
        ("cte_replace", "WITH a AS (SELECT 1) REPLACE INTO orders (id, sku, qty) VALUES (1, 'p-1', 1)"),
        ("quoted_names", "DELETE FROM \"orders\""),
        ("schema_name", "DELETE FROM main.orders"),
        ("select_into", "SELECT sku INTO mine FROM goods"),
        ("limit_delete", "DELETE FROM orders ORDER BY id LIMIT 1"),
        ("truncate", "TRUNCATE orders"),
        ("unicode_space", "SELECT sku FROM goods;\u{a0}DELETE FROM orders"),
        ("bom", "\u{feff}DELETE FROM orders"),
        ("shell_dot", ".shell rm -rf /"),
        ("empty", ""),
        ("only_a_comment", "-- nothing"),
        ("only_semicolons", ";;;"),
    ] {
        all.push(query(format!("write/{name}"), sql));
    }
    all
}

/// Ways to read what is not in the list.
fn reads() -> Vec<Attempt> {
    let forms = [
        ("table", "SELECT password FROM secrets"),
        ("star", "SELECT * FROM secrets"),
        ("star_of_a_partly_listed_table", "SELECT * FROM goods"),
        ("column", "SELECT cost FROM goods"),
        ("column_in_where", "SELECT sku FROM goods WHERE cost > 10"),
        ("column_in_order", "SELECT sku FROM goods ORDER BY cost"),
        ("column_in_group", "SELECT count(*) FROM goods GROUP BY cost"),
        ("column_in_having", "SELECT count(*) FROM goods GROUP BY sku HAVING max(cost) > 1"),
        ("column_in_join", "SELECT o.id FROM orders o JOIN goods g ON g.sku = o.sku AND g.cost > 10"),
        ("column_using", "SELECT 1 FROM goods JOIN goods AS g USING (cost)"),
        ("column_natural", "SELECT 1 FROM goods NATURAL JOIN goods AS g"),
        ("cte_named_like_capture", "WITH _horos_1_insert AS (SELECT password FROM secrets) SELECT * FROM _horos_1_insert"),
        ("cte_named_like_capture_materialized", "WITH _horos_1_x AS MATERIALIZED (SELECT 1 FROM secrets) SELECT count(*) FROM _horos_1_x"),
        ("cte_named_like_capture_quoted", "WITH \"_HOROS_1_x\" AS (SELECT password FROM secrets) SELECT * FROM \"_HOROS_1_x\""),
        ("cte_named_like_capture_in_brackets", "WITH [_horos_1_x] (p) AS (SELECT password FROM secrets) SELECT p FROM _horos_1_x"),
        ("cte_named_like_capture_as_text", "WITH '_horos_1_x' AS (SELECT password FROM secrets) SELECT * FROM _horos_1_x"),
        (
            "cte_named_like_capture_in_a_subquery",
            "SELECT * FROM (WITH _horos_1_x AS (SELECT password FROM secrets) SELECT * FROM _horos_1_x)",
        ),
        ("alias_like_capture", "SELECT * FROM (SELECT password FROM secrets) AS _horos_1_x"),
        ("table_alias_like_capture", "SELECT _horos_1_x.password FROM secrets AS _horos_1_x"),
        ("cte_named_like_a_listed_table", "WITH goods AS (SELECT password AS sku FROM secrets) SELECT sku FROM goods"),
        ("cte_named_like_a_listed_view", "WITH cheap AS (SELECT password AS sku FROM secrets) SELECT sku FROM cheap"),
        ("column_using_values", "WITH v(cost) AS (VALUES (11)) SELECT sku FROM goods JOIN v USING (cost)"),
        (
            "column_using_numbers",
            "WITH RECURSIVE v(cost) AS (SELECT 1 UNION ALL SELECT cost + 1 FROM v LIMIT 99) SELECT v.cost, sku FROM goods JOIN v USING (cost)",
        ),
        ("column_using_quoted", "WITH v(cost) AS (VALUES (11)) SELECT sku FROM goods JOIN v USING (\"COST\")"),
        ("column_using_two", "WITH v(sku, cost) AS (VALUES ('p-1', 11)) SELECT v.sku FROM goods JOIN v USING (sku, cost)"),
        ("column_full_join_using", "WITH v(cost) AS (VALUES (11)) SELECT cost FROM goods FULL JOIN v USING (cost)"),
        ("column_natural_values", "WITH v(cost) AS (VALUES (11)) SELECT sku FROM goods NATURAL JOIN v"),
        ("column_natural_left", "WITH v(cost) AS (VALUES (11)) SELECT sku FROM v NATURAL LEFT JOIN goods"),
        ("column_in_an_aggregates_order", "SELECT group_concat(sku ORDER BY cost) FROM goods"),
        ("column_in_a_partition", "SELECT count(*) OVER (PARTITION BY cost) FROM goods"),
        ("column_in_a_frame", "SELECT count(*) OVER w FROM goods WINDOW w AS (ORDER BY cost RANGE 5 PRECEDING)"),
        ("column_in_between", "SELECT sku FROM goods WHERE 11 BETWEEN cost AND cost"),
        ("column_in_is_null", "SELECT sku FROM goods WHERE cost IS NOT NULL"),
        ("column_in_a_row_value", "SELECT sku FROM goods WHERE (sku, cost) = ('p-1', 11)"),
        ("column_in_an_in_list", "SELECT sku FROM goods WHERE 11 IN (cost, 1)"),
        ("column_in_values", "SELECT (VALUES (cost)) FROM goods"),
        ("column_in_json", "SELECT json_object('c', cost) FROM goods"),
        ("column_in_like", "SELECT sku FROM goods WHERE cost LIKE '1%'"),
        ("column_in_cast", "SELECT CAST(cost AS TEXT) FROM goods"),
        ("column_in_collate", "SELECT sku FROM goods ORDER BY cost COLLATE NOCASE"),
        ("column_in_a_correlated_subquery", "SELECT sku FROM goods g WHERE EXISTS (SELECT 1 FROM plain WHERE a < g.cost)"),
        ("column_as_a_bare_one_beside_max", "SELECT max(price), cost FROM goods"),
        ("column_of_the_schemas_alias", "SELECT main.goods.cost FROM main.goods"),
        ("count_in_where", "SELECT sku FROM goods WHERE (SELECT count(*) FROM secrets) > 0"),
        ("constant_in_a_union", "SELECT 1 FROM secrets UNION ALL SELECT 2 FROM secrets"),
        ("constant_materialized", "WITH x AS MATERIALIZED (SELECT 1 FROM secrets) SELECT count(*) FROM x"),
        ("constant_not_materialized", "WITH x AS NOT MATERIALIZED (SELECT 1 FROM secrets) SELECT 1 FROM x"),
        ("constant_in_values", "VALUES ((SELECT 1 FROM secrets))"),
        ("constant_limit_zero", "SELECT 1 FROM secrets LIMIT 0"),
        ("constant_where_false", "SELECT 1 FROM secrets WHERE 0"),
        ("constant_in_parentheses", "SELECT 1 FROM (goods, secrets)"),
        ("constant_in_a_nested_join", "SELECT 1 FROM (goods JOIN (secrets))"),
        ("constant_full_join", "SELECT 1 FROM goods FULL JOIN secrets ON 1"),
        ("constant_grouped", "SELECT 1 FROM secrets GROUP BY 1"),
        ("constant_aggregated", "SELECT max(1) FROM secrets"),
        ("constant_windowed", "SELECT row_number() OVER () FROM secrets"),
        ("constant_distinct", "SELECT DISTINCT 1 FROM secrets"),
        ("constant_in_a_case", "SELECT CASE WHEN EXISTS (SELECT NULL FROM secrets) THEN 1 END"),
        ("constant_in_order", "SELECT sku FROM goods ORDER BY (SELECT 1 FROM secrets)"),
        ("constant_recursive", "WITH RECURSIVE x(i) AS (SELECT 1 FROM secrets UNION SELECT i + 1 FROM x WHERE i < 3) SELECT i FROM x"),
        (
            "constant_joined_to_a_recursion",
            "WITH RECURSIVE x(i) AS (SELECT 1 UNION SELECT i + 1 FROM x, secrets WHERE i < 3) SELECT i FROM x",
        ),
        ("column_of_an_alias", "SELECT g.cost FROM goods AS g"),
        ("column_through_a_subquery", "SELECT c FROM (SELECT cost AS c FROM goods)"),
        ("column_through_a_cte", "WITH x(c) AS (SELECT cost FROM goods) SELECT c FROM x"),
        ("column_in_a_window", "SELECT sum(price) OVER (ORDER BY cost) FROM goods"),
        ("column_in_a_filter", "SELECT count(*) FILTER (WHERE cost > 1) FROM goods"),
        ("column_in_a_case", "SELECT CASE WHEN cost > 1 THEN 1 END FROM goods"),
        ("column_in_a_limit", "SELECT sku FROM goods LIMIT (SELECT max(cost) FROM goods)"),
        ("column_quoted", "SELECT \"cost\" FROM goods"),
        ("column_bracketed", "SELECT [cost] FROM [goods]"),
        ("column_upper_case", "SELECT COST FROM GOODS"),
        ("rowid", "SELECT rowid FROM goods"),
        ("oid", "SELECT oid FROM goods"),
        ("_rowid_", "SELECT _rowid_ FROM goods"),
        ("rowid_in_where", "SELECT sku FROM goods WHERE rowid = 1"),
        ("unlisted_column_of_orders", "SELECT note FROM orders"),
        ("unlisted_status", "SELECT id FROM orders WHERE status = 'new'"),
        ("hidden_column", "SELECT notes FROM notes"),
        ("count_alone", "SELECT count(*) FROM secrets"),
        ("count_through_a_cte", "WITH x AS (SELECT 1 FROM secrets) SELECT count(*) FROM x"),
        ("exists_alone", "SELECT EXISTS (SELECT 1 FROM secrets)"),
        ("exists_in_where", "SELECT sku FROM goods WHERE EXISTS (SELECT 1 FROM secrets WHERE password LIKE 'h%')"),
        ("constant_over_it", "SELECT 1 FROM secrets"),
        ("constant_over_a_subquery", "SELECT 1 FROM (SELECT 1 FROM secrets)"),
        ("cross_join_alone", "SELECT sku FROM goods, secrets"),
        ("left_join_alone", "SELECT sku FROM goods LEFT JOIN secrets ON 1"),
        ("right_join_alone", "SELECT 1 FROM secrets RIGHT JOIN goods ON 0"),
        ("in_the_table", "SELECT sku FROM goods WHERE 1 IN secrets"),
        ("in_a_select", "SELECT sku FROM goods WHERE 1 IN (SELECT id FROM secrets)"),
        ("scalar", "SELECT (SELECT password FROM secrets)"),
        ("union", "SELECT sku FROM goods UNION SELECT password FROM secrets"),
        ("union_all", "SELECT sku, price FROM goods UNION ALL SELECT password, id FROM secrets"),
        ("intersect", "SELECT sku FROM goods INTERSECT SELECT password FROM secrets"),
        ("except", "SELECT sku FROM goods EXCEPT SELECT password FROM secrets"),
        ("values_and_union", "VALUES (1) UNION SELECT password FROM secrets"),
        ("view_over_it", "SELECT password FROM leaky"),
        ("view_of_which_nothing_is_read", "SELECT count(*) FROM leaky"),
        ("view_column_that_is_listed_elsewhere", "SELECT sku FROM leaky"),
        ("schema_qualified", "SELECT password FROM main.secrets"),
        ("temp_qualified", "SELECT * FROM temp.sqlite_schema"),
        ("cte_that_shadows_it", "WITH secrets AS (SELECT 1) SELECT count(*) FROM main.secrets"),
        (
            "cte_that_shadows_it_elsewhere",
            "SELECT (SELECT count(*) FROM secrets), (WITH secrets AS (SELECT 1) SELECT count(*) FROM secrets)",
        ),
        ("cte_named_like_the_schema", "WITH sqlite_schema AS (SELECT 1) SELECT count(*) FROM main.sqlite_schema"),
        ("cte_named_like_a_module", "SELECT (SELECT count(*) FROM dbstat), (WITH dbstat AS (SELECT 1) SELECT 1)"),
        ("cte_named_like_a_pragma", "SELECT (SELECT count(*) FROM pragma_table_list), (WITH pragma_table_list AS (SELECT 1) SELECT 1)"),
        (
            "window_named_like_it",
            "SELECT (SELECT count(*) FROM secrets), sum(price) OVER secrets FROM goods WINDOW secrets AS (ORDER BY sku)",
        ),
        ("correlated", "SELECT sku, (SELECT password FROM secrets WHERE id = length(goods.sku) - 2) FROM goods"),
        ("lateral_like", "SELECT g.sku FROM goods g, (SELECT password p FROM secrets) s WHERE s.p > ''"),
        ("recursive", "WITH RECURSIVE x(p) AS (SELECT password FROM secrets UNION SELECT p FROM x) SELECT p FROM x"),
        ("row_value", "SELECT sku FROM goods WHERE (1, 'h') < (SELECT id, password FROM secrets)"),
        ("order_by_subquery", "SELECT sku FROM goods ORDER BY (SELECT password FROM secrets)"),
        ("limit_subquery", "SELECT sku FROM goods LIMIT (SELECT id FROM secrets)"),
        ("group_concat", "SELECT group_concat(password) FROM secrets"),
        ("json_group", "SELECT json_group_array(password) FROM secrets"),
        ("audit", "SELECT what FROM audit"),
        ("capture", "SELECT row FROM _horos_log"),
        ("capture_quoted", "SELECT hex(row) FROM \"_HOROS_LOG\""),
        ("migrations", "SELECT sql FROM _migrations"),
        ("migrations_count", "SELECT count(*) FROM _migrations"),
        ("fts", "SELECT body FROM notes"),
        ("fts_match", "SELECT body FROM notes WHERE notes MATCH 'see'"),
        ("fts_arrow", "SELECT body FROM notes('see')"),
        ("fts_rank", "SELECT rank FROM notes WHERE notes MATCH 'see'"),
        ("fts_content", "SELECT c0 FROM notes_content"),
        ("fts_data", "SELECT block FROM notes_data"),
        ("fts_config", "SELECT v FROM notes_config"),
    ];
    forms.into_iter().map(|(name, sql)| query(format!("read/{name}"), sql)).collect()
}

/// Ways to the schema and to what SQLite keeps.
fn schema() -> Vec<Attempt> {
    let mut all = Vec::new();
    for table in [
        "sqlite_master",
        "sqlite_schema",
        "sqlite_temp_master",
        "sqlite_temp_schema",
        "sqlite_sequence",
        "sqlite_stat1",
        "sqlite_stat4",
        "main.sqlite_master",
        "temp.sqlite_master",
        "\"sqlite_master\"",
        "[SQLITE_SCHEMA]",
        "sqlite_dbpage",
        "sqlite_stmt",
        "dbstat",
        "dbstat('main')",
        "bytecode('SELECT 1')",
        "tables_used('SELECT 1')",
        "fts3tokenize('simple', 'a b')",
        "fts5vocab",
        "rtree",
        "generate_series(1, 3)",
        "json_each('[1]')",
        "json_tree('[1]')",
        "completion('SEL')",
        "fsdir('.')",
        "csv",
        "zipfile('a')",
        "carray(1, 2)",
    ] {
        all.push(query(format!("schema/star_of/{table}"), format!("SELECT * FROM {table}")));
        all.push(query(format!("schema/count_of/{table}"), format!("SELECT count(*) FROM {table}")));
    }
    for pragma in [
        "table_info(secrets)",
        "table_list",
        "database_list",
        "function_list",
        "module_list",
        "pragma_list",
        "compile_options",
        "collation_list",
        "user_version",
        "user_version = 9",
        "writable_schema = ON",
        "query_only = OFF",
        "journal_mode = DELETE",
        "foreign_keys = OFF",
        "trusted_schema = ON",
        "temp_store_directory = '/tmp'",
        "wal_checkpoint(TRUNCATE)",
        "optimize",
        "incremental_vacuum",
        "integrity_check",
        "data_version",
        "schema_version = 1",
        "recursive_triggers = ON",
        "max_page_count = 1",
        "hard_heap_limit = 1",
        "mmap_size = 0",
        "key = 'x'",
        "index_list(goods)",
        "foreign_key_list(orders)",
        "application_id = 1",
        "cache_size = 1",
        "case_sensitive_like = ON",
    ] {
        let name = pragma.split(['(', ' ']).next().unwrap_or_default();
        all.push(query(format!("schema/pragma/{pragma}"), format!("PRAGMA {pragma}")));
        all.push(query(format!("schema/pragma_function/{pragma}"), format!("SELECT * FROM pragma_{name}")));
    }
    for (name, sql) in [
        ("pragma_function_with_argument", "SELECT name FROM pragma_table_info('secrets')"),
        ("pragma_function_joined", "SELECT g.sku, p.name FROM goods g JOIN pragma_table_info('secrets') p"),
        ("pragma_function_counted", "SELECT count(*) FROM pragma_table_info('secrets')"),
        ("explain", "EXPLAIN SELECT sku FROM goods"),
        ("explain_query_plan", "EXPLAIN QUERY PLAN SELECT sku FROM goods"),
        ("indexed_by", "SELECT sku FROM goods INDEXED BY sqlite_autoindex_goods_1 WHERE cost = 1"),
    ] {
        all.push(query(format!("schema/{name}"), sql));
    }
    all
}

/// Functions that reach out, or tell.
fn functions() -> Vec<Attempt> {
    let calls = [
        "load_extension('x')",
        "load_extension('x', 'y')",
        "readfile('/etc/passwd')",
        "writefile('x', 'y')",
        "edit('x')",
        "fts3_tokenizer('simple')",
        "fts3_tokenizer('simple', x'00')",
        "sqlite_version()",
        "sqlite_source_id()",
        "sqlite_compileoption_get(1)",
        "sqlite_compileoption_used('x')",
        "sqlite_log(1, 'x')",
        "sqlite_offset(sku)",
        "random()",
        "randomblob(16)",
        "last_insert_rowid()",
        "changes()",
        "total_changes()",
        "fts5_source_id()",
        "bm25(goods)",
        "highlight(goods, 0, 'a', 'b')",
        "snippet(goods, 0, 'a', 'b', 'c', 1)",
        "matchinfo(goods)",
        "offsets(goods)",
        "optimize(goods)",
        "rtreecheck('x')",
        "rtreedepth(x'00')",
        "rtreenode(1, x'00')",
        "sqlite_rename_table(1, 2, 3, 4, 5, 6, 7)",
        "sqlite_drop_column(1, 2, 3)",
        "zipfile('a', 'b')",
        "eval('DELETE FROM orders')",
        "subtype('x')",
        "match('a', 'b')",
        "regexp('a', 'b')",
        "\"load_extension\"('x')",
        "[readfile]('x')",
        "LOAD_EXTENSION('x')",
    ];
    let mut all: Vec<Attempt> = calls.iter().map(|call| query(format!("function/{call}"), format!("SELECT {call} FROM goods"))).collect();
    for (name, sql) in [
        ("load_extension_in_where", "SELECT sku FROM goods WHERE load_extension('x')"),
        ("load_extension_in_order", "SELECT sku FROM goods ORDER BY load_extension('x')"),
        ("load_extension_in_a_dead_branch", "SELECT CASE WHEN 0 THEN load_extension('x') ELSE 1 END"),
        ("match_operator", "SELECT sku FROM goods WHERE sku MATCH 'a'"),
        ("regexp_operator", "SELECT sku FROM goods WHERE sku REGEXP 'a'"),
        ("window_over_random", "SELECT sum(random()) OVER () FROM goods"),
    ] {
        all.push(query(format!("function/{name}"), sql));
    }
    all
}

/// Statements that would take all time, memory or room.
fn exhaustion() -> Vec<Attempt> {
    const FOREVER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)";
    let long = |sql: &str| format!("{FOREVER} {sql}");
    let nested = |open: &str, middle: &str, close: &str, deep: usize| format!("SELECT {}{middle}{}", open.repeat(deep), close.repeat(deep));
    let forms = [
        ("count_forever", long("SELECT count(*) FROM n")),
        ("sum_forever", long("SELECT sum(i) FROM n")),
        ("sort_forever", long("SELECT i FROM n ORDER BY -i")),
        ("sort_wide_forever", long("SELECT i, printf('%1000d', i) AS w FROM n ORDER BY w")),
        ("distinct_forever", long("SELECT count(DISTINCT i) FROM n")),
        ("group_forever", long("SELECT i, count(*) FROM n GROUP BY i")),
        ("window_forever", long("SELECT sum(i) OVER (ORDER BY -i) FROM n")),
        ("last_value_forever", long("SELECT last_value(i) OVER () FROM n")),
        ("nothing_found_forever", long("SELECT i FROM n WHERE i < 0")),
        ("exists_forever", long("SELECT sku FROM goods WHERE EXISTS (SELECT 1 FROM n WHERE i = price / 0)")),
        ("offset_forever", long("SELECT i FROM n LIMIT 1 OFFSET 9223372036854775807")),
        ("concat_forever", long("SELECT group_concat(i) FROM n")),
        ("json_array_forever", long("SELECT json_group_array(i) FROM n")),
        ("json_object_forever", long("SELECT json_group_object(i, i) FROM n")),
        ("string_agg_forever", long("SELECT string_agg('xxxxxxxxxxxxxxxx', ',') FROM n")),
        ("joined_forever", long("SELECT count(*) FROM n a, n b")),
        ("in_forever", long("SELECT -1 IN (SELECT i FROM n)")),
        ("union_forever", long("SELECT i FROM n UNION SELECT -i FROM n")),
        ("except_forever", long("SELECT sku FROM goods EXCEPT SELECT i FROM n")),
        ("materialized_forever", "WITH RECURSIVE n(i) AS MATERIALIZED (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n".into()),
        ("distinct_recursion", "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n) SELECT count(*) FROM n".into()),
        ("growing_recursion", "WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM n) SELECT length(s) FROM n".into()),
        ("branching_recursion", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n UNION ALL SELECT i + 2 FROM n) SELECT count(*) FROM n".into()),
        ("ordered_recursion", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n ORDER BY 1 DESC) SELECT count(*) FROM n".into()),
        ("wide_recursion", "WITH RECURSIVE n(i, s) AS (SELECT 1, zeroblob(100000) UNION ALL SELECT i + 1, zeroblob(100000) FROM n) SELECT max(i) FROM n ORDER BY s".into()),
        ("memory_by_sorting", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT hex(zeroblob(100000)) || i AS w FROM n ORDER BY w".into()),
        ("cartesian_bomb", format!("SELECT count(*) FROM {}", vec!["plain"; 40].join(", "))),
        ("cartesian_sorted", format!("SELECT 1 FROM {} ORDER BY p0.a + p29.b", (0..30).map(|n| format!("plain p{n}")).collect::<Vec<_>>().join(", "))),
        ("cartesian_of_subqueries", format!("SELECT count(*) FROM {}", (0..30).map(|n| format!("(SELECT a FROM plain) p{n}")).collect::<Vec<_>>().join(", "))),
        ("too_many_joins", format!("SELECT count(*) FROM {}", (0..70).map(|n| format!("plain p{n}")).collect::<Vec<_>>().join(", "))),
        ("zeroblob_gigabyte", "SELECT zeroblob(1000000000)".into()),
        ("zeroblob_maximum", "SELECT length(zeroblob(2147483647))".into()),
        ("zeroblob_hex", "SELECT hex(zeroblob(250000))".into()),
        ("printf_width", "SELECT printf('%1000000000d', 1)".into()),
        ("printf_star", "SELECT printf('%.*c', 1000000000, 'x')".into()),
        ("printf_precision", "SELECT printf('%.1000000000f', 1.0)".into()),
        ("format_many", format!("SELECT format('{}', 1)", "%99999d".repeat(50))),
        ("replace_grows", "SELECT replace(hex(zeroblob(100000)), '0', hex(zeroblob(100000)))".into()),
        ("replace_nested", "SELECT replace(replace(replace('aaaaaaaaaa', 'a', hex(zeroblob(2000))), '0', hex(zeroblob(2000))), '0', 'xx')".into()),
        ("concat_doubles", "SELECT length(s || s || s || s) FROM (SELECT hex(zeroblob(100000)) AS s)".into()),
        ("trim_quadratic", "SELECT trim(hex(zeroblob(120000)), hex(zeroblob(120000)) || '1')".into()),
        ("ltrim_quadratic", "SELECT ltrim(hex(zeroblob(120000)), b) FROM plain".into()),
        ("rtrim_quoted_name", "SELECT \"rtrim\"(hex(zeroblob(120000)), b) FROM plain".into()),
        ("unhex_quadratic", "SELECT unhex(hex(zeroblob(120000)), hex(zeroblob(120000)))".into()),
        ("like_pattern", format!("SELECT hex(zeroblob(100000)) LIKE '{}b'", "%0".repeat(1000))),
        ("glob_pattern", format!("SELECT hex(zeroblob(100000)) GLOB '{}b'", "*0".repeat(1000))),
        ("like_column_pattern", "SELECT hex(zeroblob(100000)) LIKE replace(hex(zeroblob(5000)), '0', '%0') || 'b'".into()),
        ("deep_parentheses", nested("(", "1", ")", 20_000)),
        ("deep_not", format!("SELECT {}1", "NOT ".repeat(10_000))),
        ("deep_case", nested("CASE WHEN 1 THEN ", "1", " END", 2_000)),
        ("deep_functions", nested("abs(", "1", ")", 2_000)),
        ("deep_subqueries", nested("(SELECT ", "1", ")", 500)),
        ("long_chain", format!("SELECT {}", vec!["1"; 5_000].join(" + "))),
        ("long_and", format!("SELECT sku FROM goods WHERE {}", vec!["price > 1"; 2_000].join(" AND "))),
        ("many_unions", vec!["SELECT 1"; 200].join(" UNION ")),
        ("many_unions_all", vec!["SELECT a FROM plain"; 200].join(" UNION ALL ")),
        ("many_columns", format!("SELECT {}", vec!["1"; 3_000].join(", "))),
        ("many_arguments", format!("SELECT max({})", vec!["1"; 500].join(", "))),
        ("many_ctes", format!("WITH {} SELECT count(*) FROM x26", (0..27).map(|n| if n == 0 { "x0 AS (SELECT 1 AS a UNION ALL SELECT 2)".into() } else { format!("x{n} AS (SELECT l.a FROM x{m} l, x{m} r)", m = n - 1) }).collect::<Vec<_>>().join(", "))),
        ("long_text", format!("SELECT '{}'", "x".repeat(70_000))),
        ("many_parameters", format!("SELECT {}", vec!["?"; 300].join(", "))),
        ("parameter_number", "SELECT ?999999".into()),
        ("parameter_overflow", "SELECT ?99999999999999999999".into()),
        ("json_nested", "SELECT json(replace(hex(zeroblob(2000)), '0', '[') || replace(hex(zeroblob(2000)), '0', ']'))".into()),
        ("json_each_forever", "SELECT count(*) FROM json_each('[' || replace(hex(zeroblob(50000)), '0', '1,') || '1]') a, json_each('[1,2]') b".into()),
        ("overflow", "SELECT abs(-9223372036854775808)".into()),
        ("sum_overflow", "SELECT sum(x) FROM (SELECT 9223372036854775807 AS x UNION ALL SELECT 1)".into()),
        ("likelihood", "SELECT likelihood(1, 2)".into()),
        ("ntile_zero", "SELECT ntile(0) OVER () FROM goods".into()),
        ("frame_negative", "SELECT sum(price) OVER (ROWS BETWEEN -1 PRECEDING AND CURRENT ROW) FROM goods".into()),
        ("concat_ws_huge", "SELECT concat_ws(hex(zeroblob(100000)), 'a', 'b', 'c')".into()),
    ];
    let mut all: Vec<Attempt> = forms.into_iter().map(|(name, sql)| query(format!("exhaust/{name}"), sql)).collect();
    for (name, sql) in [
        ("instr_quadratic", "SELECT instr(hex(zeroblob(120000)), hex(zeroblob(60000)) || '1')"),
        ("json_patch_quadratic", "SELECT length(json_patch('{\"a\":1}', '{\"b\":2}'))"),
        ("strftime_wide", "SELECT length(strftime(replace(hex(zeroblob(10000)), '0', '%Y'), 'now'))"),
        ("divide_by_zero", "SELECT 1 / 0, 1 % 0, 1.0 / 0"),
        ("infinity", "SELECT 9e999, -9e999, 9e999 - 9e999"),
        ("most_negative", "SELECT -9223372036854775808 / -1, -9223372036854775808 % -1"),
        ("shift", "SELECT 1 << 9223372036854775807, 1 >> -9223372036854775808"),
        ("substr_edges", "SELECT substr('abc', -9223372036854775808, 9223372036854775807)"),
        ("zeroblob_negative", "SELECT length(zeroblob(-1))"),
        ("char_nul", "SELECT char(0, 1114111, 55296, -1)"),
        ("invalid_text", "SELECT CAST(x'ff00fe' AS TEXT)"),
        ("duplicate_names", "SELECT sku, sku, sku, price AS sku FROM goods"),
        ("empty_name", "SELECT sku AS \"\" FROM goods"),
        ("odd_name", "SELECT sku AS \"a\"\"b.__proto__\" FROM goods"),
        ("date_far", "SELECT datetime(1e300, 'unixepoch'), date('9999-12-31', '+9999999 years')"),
        ("json_path_odd", "SELECT json_extract('{\"a\":[1]}', '$.a[#-1]'), json_extract('[1]', '$[99999999999]')"),
    ] {
        all.push(query(format!("exhaust/{name}"), sql).harmless());
    }
    all
}

/// Arguments that are more than values.
fn arguments() -> Vec<Attempt> {
    let texts = [
        "' OR '1'='1",
        "'; DELETE FROM orders; --",
        "\" OR 1=1",
        "x' UNION SELECT password FROM secrets --",
        "p-1\0'; DROP TABLE goods",
        "%",
        "_",
        "p-1\\",
        "'||(SELECT password FROM secrets)||'",
        "{{uuid()}}",
        "{{password}}",
        ":sku",
        "?1",
        "x'00'",
        "NULL",
        "sku",
        "\u{202e}p-1",
        "$(id)",
        "../../etc/passwd",
        "\r\n\r\n",
        "\u{ffff}",
    ];
    let mut all = Vec::new();
    for text in texts {
        for sql in ["SELECT sku, price FROM goods WHERE sku = :sku", "SELECT sku FROM goods WHERE sku LIKE :sku || ''"] {
            let form = if sql.contains("LIKE") { "like" } else { "equal" };
            let mut attempt = query(format!("argument/{form}/{text:?}"), sql).harmless();
            attempt.arguments = json!({ "sku": text });
            all.push(attempt);
        }
    }
    let values = [
        ("null", Value::Null),
        ("true", json!(true)),
        ("array", json!(["p-1", { "a": 1 }])),
        ("object", json!({ "$gt": "" })),
        ("float", json!(1e308)),
        ("negative", json!(-1)),
        ("deep", (0..100).fold(json!(1), |inner, _| json!([inner]))),
        ("blob", json!({ "base64": "AAEC" })),
        ("real_object", json!({ "real": "Infinity" })),
        ("i64", json!(i64::MIN)),
    ];
    for (name, value) in values {
        let mut attempt = query(format!("argument/type/{name}"), "SELECT sku, price FROM goods WHERE sku = :sku").harmless();
        attempt.arguments = json!({ "sku": value });
        all.push(attempt);
    }
    for (name, value) in [("u64", json!(u64::MAX)), ("bad_base64", json!({ "base64": "***" })), ("too_long", json!("x".repeat(300_000)))] {
        let mut attempt = query(format!("argument/type/{name}"), "SELECT sku, price FROM goods WHERE sku = :sku");
        attempt.arguments = json!({ "sku": value });
        all.push(attempt);
    }
    for (name, cursor) in [
        ("number", json!(500)),
        ("empty", json!("")),
        ("object", json!({})),
        ("zero", json!("AAAAAAAAAAA")),
        ("zeros", json!("A".repeat(32))),
        ("offset", json!("500")),
        ("sql", json!("1 OFFSET 0; DELETE FROM orders")),
        ("not_base64", json!("***")),
        ("long", json!("A".repeat(100_000))),
        ("negative", json!("-1")),
        ("array", json!([])),
        ("bool", json!(true)),
    ] {
        let mut attempt = query(format!("argument/cursor/{name}"), "SELECT sku FROM goods");
        attempt.arguments = json!({ "cursor": cursor });
        all.push(attempt);
    }
    all
}

/// Scripts, which may insert into, update and delete from `orders`.
fn scripts() -> Vec<Attempt> {
    let forms: [(&str, &[&str]); 61] = [
        ("unlisted_table", &["INSERT INTO audit (what) VALUES ('x')"]),
        ("unlisted_update", &["UPDATE goods SET price = 0"]),
        ("unlisted_delete", &["DELETE FROM secrets"]),
        ("delete_whose_trigger_writes_elsewhere", &["DELETE FROM orders WHERE id = 1"]),
        (
            "replace_whose_trigger_writes_elsewhere",
            &["PRAGMA recursive_triggers = ON", "REPLACE INTO orders (id, sku, qty) VALUES (1, 'p-1', 1)"],
        ),
        ("copy_of_secrets", &["INSERT INTO orders (sku, qty) SELECT password, 1 FROM secrets"]),
        ("update_to_a_secret", &["UPDATE orders SET sku = (SELECT password FROM secrets)"]),
        ("update_from_a_secret", &["UPDATE orders SET qty = 1 FROM secrets WHERE secrets.id = orders.id"]),
        ("returning_what_is_not_listed", &["INSERT INTO orders (sku, qty) VALUES ('p-1', 1) RETURNING status"]),
        ("returning_star", &["INSERT INTO orders (sku, qty) VALUES ('p-1', 1) RETURNING *"]),
        ("returning_a_secret", &["UPDATE orders SET qty = 1 RETURNING (SELECT password FROM secrets)"]),
        (
            "upsert_with_a_secret",
            &["INSERT INTO orders (id, sku, qty) VALUES (1, 'p-1', 1) ON CONFLICT (id) DO UPDATE SET sku = (SELECT password FROM secrets)"],
        ),
        (
            "cte_named_like_capture",
            &["WITH _horos_1_x AS (SELECT password FROM secrets) INSERT INTO orders (sku, qty) SELECT password, 1 FROM _horos_1_x"],
        ),
        ("cte_named_like_capture_read", &["WITH _horos_1_x AS (SELECT password FROM secrets) SELECT password FROM _horos_1_x"]),
        ("alias_like_capture", &["SELECT * FROM (SELECT password FROM secrets) AS _horos_1_x"]),
        (
            "update_from_alias_like_capture",
            &["UPDATE orders SET sku = _horos_1_x.password FROM (SELECT password FROM secrets) AS _horos_1_x"],
        ),
        ("delete_with_alias_like_capture", &["DELETE FROM goods AS _horos_1_x"]),
        ("update_from_all_of_a_secret", &["UPDATE orders SET qty = 7 FROM secrets"]),
        ("delete_where_a_secret_exists", &["UPDATE orders SET qty = 7 WHERE EXISTS (SELECT 1 FROM secrets)"]),
        ("insert_as_often_as_a_secret", &["INSERT INTO orders (sku, qty) SELECT 'p-1', 1 FROM secrets"]),
        (
            "update_by_a_join_using",
            &["UPDATE orders SET qty = 7 FROM goods JOIN (SELECT 11 AS cost) USING (cost) WHERE goods.sku = orders.sku"],
        ),
        ("select_a_secret", &["SELECT password FROM secrets"]),
        ("select_count_of_secrets", &["SELECT count(*) FROM secrets"]),
        ("create_table", &["CREATE TABLE mine (a)"]),
        ("create_temp_table", &["CREATE TEMP TABLE mine (a)"]),
        ("create_trigger", &["CREATE TRIGGER mine AFTER INSERT ON orders BEGIN DELETE FROM goods; END"]),
        ("drop_trigger_first", &["DROP TRIGGER noticed", "DELETE FROM orders"]),
        ("alter", &["ALTER TABLE orders ADD COLUMN mine"]),
        ("attach", &["ATTACH ':memory:' AS other"]),
        ("attach_file", &["ATTACH 'other.db' AS other", "CREATE TABLE other.mine (a)"]),
        ("vacuum_into", &["VACUUM INTO 'copy.db'"]),
        ("pragma_foreign_keys", &["PRAGMA foreign_keys = OFF"]),
        ("pragma_defer", &["PRAGMA defer_foreign_keys = ON"]),
        ("pragma_user_version", &["PRAGMA user_version = 9"]),
        ("pragma_writable_schema", &["PRAGMA writable_schema = ON", "UPDATE sqlite_master SET sql = ''"]),
        ("begin", &["BEGIN", "DELETE FROM orders", "COMMIT"]),
        ("commit", &["UPDATE orders SET qty = 5", "COMMIT"]),
        ("rollback", &["ROLLBACK"]),
        ("rollback_to_the_job", &["ROLLBACK TO horos_job"]),
        ("release_the_job", &["RELEASE horos_job"]),
        ("savepoint", &["SAVEPOINT mine"]),
        ("or_rollback", &["INSERT OR ROLLBACK INTO orders (id, sku, qty) VALUES (1, 'p-1', 1)"]),
        ("two_in_one", &["UPDATE orders SET qty = 5; DELETE FROM goods"]),
        ("good_then_bad", &["UPDATE orders SET qty = 5", "DELETE FROM goods"]),
        ("bad_then_good", &["DELETE FROM goods", "UPDATE orders SET qty = 5"]),
        ("good_then_broken_constraint", &["UPDATE orders SET qty = 5", "INSERT INTO orders (id, sku, qty) VALUES (1, 'p-1', 1)"]),
        ("broken_foreign_key", &["INSERT INTO orders (sku, qty) VALUES ('none', 1)"]),
        ("sqlite_sequence", &["UPDATE sqlite_sequence SET seq = 0"]),
        ("sqlite_stat1", &["DELETE FROM sqlite_stat1"]),
        ("sqlite_schema", &["INSERT INTO sqlite_schema VALUES ('table', 'mine', 'mine', 0, 'CREATE TABLE mine (a)')"]),
        ("capture_log", &["DELETE FROM _horos_log"]),
        ("migrations", &["DELETE FROM _migrations"]),
        ("fts", &["INSERT INTO notes (body) VALUES ('x')"]),
        ("fts_command", &["INSERT INTO notes (notes) VALUES ('delete-all')"]),
        ("view", &["DELETE FROM cheap"]),
        ("load_extension", &["UPDATE orders SET sku = load_extension('x')"]),
        ("function_in_returning", &["UPDATE orders SET qty = 1 RETURNING sqlite_version()"]),
        (
            "endless_insert",
            &["INSERT INTO orders (sku, qty) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 'p-1', i FROM n"],
        ),
        (
            "endless_update",
            &["UPDATE orders SET qty = (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n)"],
        ),
        ("huge_value", &["INSERT INTO orders (sku, qty, note) VALUES ('p-1', 1, zeroblob(100000000))"]),
        ("endless_rows", &["UPDATE orders SET qty = 5", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"]),
    ];
    forms.into_iter().map(|(name, sql)| script(format!("script/{name}"), sql)).collect()
}

/// Rows that ask for more than a row may.
fn configs() -> Vec<Attempt> {
    let config = |name: &str, config: Value| Attempt {
        name: format!("config/{name}"),
        what: What::Config(config),
        arguments: json!({}),
        end: End::Refused,
    };
    let mut all = Vec::new();
    for file in [
        "control.db",
        "keys.db",
        "router.db",
        "tools.db",
        "CONTROL.DB",
        "Keys.db",
        "../control.db",
        "./keys.db",
        "sync/public.db",
        "/etc/passwd",
        "app.db-wal",
        "app.db\0",
        "file:app.db?mode=rwc",
        "app.db?cache=shared",
        ":memory:",
        "",
        ".db",
        "a\\b.db",
        "app.db/",
        "app.db ",
        "-app.db",
        "none.db",
    ] {
        all.push(config(&format!("database/{file:?}"), json!({ "database": file, "query": "SELECT 1", "tables": {} })));
        all.push(config(
            &format!("replica/{file:?}"),
            json!({ "database": "none.db", "replica": file, "query": "SELECT 1", "tables": {} }),
        ));
    }
    for table in [
        "sqlite_master",
        "SQLITE_SCHEMA",
        "_horos_log",
        "_migrations",
        "pragma_table_info",
        "dbstat",
        "sqlite_stat1",
        "bytecode",
        "fts5vocab",
        "fsdir",
    ] {
        all.push(config(&format!("tables/{table}"), json!({ "query": format!("SELECT * FROM {table}"), "tables": { table: true } })));
    }
    for function in ["load_extension", "readfile", "WRITEFILE", "fts3_tokenizer", "sqlite_version", "edit", "zipfile"] {
        all.push(config(
            &format!("functions/{function}"),
            json!({ "query": format!("SELECT {function}('a')"), "tables": {}, "functions": [function] }),
        ));
    }
    for (name, value) in [
        ("no_query", json!({ "tables": {} })),
        ("query_number", json!({ "query": 1, "tables": {} })),
        ("tables_list", json!({ "query": "SELECT 1", "tables": ["goods"] })),
        ("tables_true", json!({ "query": "SELECT 1", "tables": true })),
        ("tables_star", json!({ "query": "SELECT password FROM secrets", "tables": { "*": true } })),
        ("column_star", json!({ "query": "SELECT cost FROM goods", "tables": { "goods": ["*"] } })),
        ("writes", json!({ "query": "SELECT 1", "tables": {}, "writes": { "orders": ["delete"] } })),
        ("no_tables", json!({ "query": "SELECT password FROM secrets" })),
        ("unknown_key", json!({ "query": "SELECT 1", "tables": {}, "table": {} })),
        ("params_typo", json!({ "query": "SELECT ?", "params": ["skuu"], "tables": {} })),
        ("named_typo", json!({ "query": "SELECT :skuu", "tables": {} })),
        ("page_rows_zero", json!({ "query": "SELECT 1", "tables": {}, "page_rows": 0 })),
        ("max_rows_huge", json!({ "query": "SELECT 1", "tables": {}, "max_rows": 1_000_000_000_000_i64 })),
        ("value_bytes_huge", json!({ "query": "SELECT 1", "tables": {}, "max_value_bytes": 1_000_000_000 })),
        ("fts_listed", json!({ "query": "SELECT body FROM notes WHERE notes MATCH 'see'", "tables": { "notes": true } })),
        ("view_without_what_it_reads", json!({ "query": "SELECT password FROM leaky", "tables": { "leaky": true, "goods": true } })),
    ] {
        all.push(config(name, value));
    }
    all
}
