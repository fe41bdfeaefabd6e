//! Ten thousand tools, with `HOROS_TEST_FULL=1`; a thousand without. What it takes is printed, and held to what a release build must do; a debug
//! build, which runs beside others, is only held to what is no mistake in kind.

use std::time::{Duration, Instant};

use horos_tools::{MAX_TOOLS, Policy, Registry, Rule, reload};

use super::world::{File, key, kinds, names, scale};

fn count() -> usize {
    scale(1_000, MAX_TOOLS)
}

/// What a measure may take here.
fn within(release: Duration) -> Duration {
    if cfg!(debug_assertions) { release * 250 } else { release * 2 }
}

/// The best of some: what it takes when nobody else has the processor.
fn best<T>(mut work: impl FnMut() -> T) -> Duration {
    (0..5)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(work());
            begun.elapsed()
        })
        .min()
        .unwrap()
}

fn filled() -> File {
    let file = File::new();
    file.write(&format!(
        r#"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {})
        INSERT INTO mcp_tools_registry (tool_name, tool_category, title, description, handler_type, mode, input_schema)
        SELECT printf('tool_%05d', i), 'group ' || (i % 97), 'Tool number ' || i,
            'Finds whatever is known of the article with number ' || i || ' in region ' || (i % 31) || ', and how much of it there is',
            'echo', 'readonly',
            '{{"type":"object","properties":{{"sku":{{"type":"string","maxLength":64}},"region' || (i % 31) || '":{{"type":"integer"}}}},"required":["sku"]}}'
        FROM n"#,
        count()
    ));
    file
}

#[test]
fn ten_thousand_tools_are_read_and_one_that_changes_is_taken_up_in_little_time() {
    let file = filled();
    let registry = Registry::new(kinds().0, Vec::new());
    let begun = Instant::now();
    assert_eq!(reload::load(&registry, &file.path).unwrap().changed, count());
    let first = begun.elapsed();
    let mut edit = 0;
    let one = best(|| {
        edit += 1;
        file.write(&format!("UPDATE mcp_tools_registry SET timeout_ms = {edit} WHERE tool_name = 'tool_00500'"));
        let begun = Instant::now();
        assert_eq!(reload::load(&registry, &file.path).unwrap().changed, 1);
        begun.elapsed()
    });
    let begun = Instant::now();
    file.write("UPDATE mcp_tools_registry SET timeout_ms = 77 WHERE tool_name = 'tool_00500'");
    let write = begun.elapsed();
    let none = best(|| reload::load(&registry, &file.path).unwrap());
    eprintln!("{} tools: {first:?}; one of them and its write: {one:?}; its write: {write:?}; none: {none:?}", count());
    assert!(first < within(Duration::from_secs(2)), "{first:?}");
    assert!(none < within(Duration::from_millis(25)), "{none:?}");
    assert!(one < within(Duration::from_millis(50)), "{one:?}");
    assert_eq!(names(&registry).len(), count());
}

#[test]
fn a_search_among_ten_thousand_tools_takes_little_time() {
    let file = filled();
    let registry = Registry::new(kinds().0, Vec::new());
    reload::load(&registry, &file.path).unwrap();
    let snapshot = registry.snapshot();
    for query in [
        "article 471",
        "tool_00471",
        "finds whatever is known of the article in region 7 and how much there is",
        "t",
        "a b c d e f g h i j k l m n o p",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    ] {
        let took = best(|| snapshot.search(query, 10, |_| true));
        eprintln!("{query:?}: {took:?}");
        assert!(took < within(Duration::from_millis(2)), "{query:?}: {took:?}");
    }
    let best = &snapshot.search("article 471", 1, |_| true)[0];
    assert_eq!(&*best.spec.name, "tool_00471");
}

#[test]
fn ten_thousand_tools_and_a_hundred_rules_are_decided_in_little_time() {
    let file = filled();
    let registry = Registry::new(kinds().0, Vec::new());
    reload::load(&registry, &file.path).unwrap();
    let rule = |n: usize| match n % 3 {
        0 => Rule { tool: "*".into(), role: format!("scope{n}").into(), allows: true },
        1 => Rule { tool: format!("tool_0{}*", n % 10).into(), role: "shop".into(), allows: true },
        _ => Rule { tool: format!("tool_{n:05}").into(), role: "shop".into(), allows: false },
    };
    let policy = Policy::new((0..100).map(rule).collect());
    let snapshot = registry.snapshot();
    let caller = key("ana", &["shop"]);
    let mut may = 0;
    let listed = best(|| {
        let of = policy.of(&caller);
        may = snapshot.tools.values().filter(|tool| of.permits(tool)).count();
    });
    let one = best(|| (0..1_000).filter(|_| policy.permits(&caller, &snapshot.tools["tool_00471"])).count()) / 1_000;
    eprintln!("{} tools by 100 rules: {listed:?}; one call: {one:?}", count());
    assert!(may > count() / 2 && may < count(), "{may}");
    assert!(listed < within(Duration::from_millis(10)), "{listed:?}");
    assert!(one < within(Duration::from_micros(20)), "{one:?}");
}
