use super::*;
use proptest::prelude::*;

fn sources() -> Sources {
    Sources { data: "/data".into(), ..Sources::default() }
}

fn problems(text: &str) -> Vec<String> {
    Config::from_text(&sources(), text).unwrap_err().iter().map(ToString::to_string).collect()
}

fn with_environment(pairs: &[(&str, &str)]) -> Sources {
    let environment = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Sources { environment, ..sources() }
}

fn settings(role: Role) -> Settings {
    Settings {
        cluster: "horos".parse().unwrap(),
        name: if role == Role::Fo { "fo-1" } else { "bo-1" }.parse().unwrap(),
        role,
        listen: None,
        seeds: Vec::new(),
        control_owner: None,
    }
}

#[test]
fn the_written_file_reads_back_as_the_defaults_with_and_without_its_comment_marks() {
    for role in [Role::Bo, Role::Fo] {
        let text = template(&settings(role));
        assert_eq!(Config::from_text(&sources(), &text).unwrap(), Config::defaults(role, Path::new("/data")));
        let spelt_out: String = text
            .lines()
            .map(|line| match line.trim_start().strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("  {rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert!(spelt_out.contains("\n  heartbeat: \"500ms\"\n"), "{spelt_out}");
        assert_eq!(Config::from_text(&sources(), &spelt_out).unwrap(), Config::defaults(role, Path::new("/data")));
    }
}

#[test]
fn where_others_are_told_to_dial_is_a_list_of_places_that_can_be_dialled() {
    let advertise = |text: &str| Config::from_text(&sources(), &format!("listen: {{ advertise: {text} }}")).map(|it| it.listen.advertise);
    let shown = |places: Vec<Advertised>| places.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown(advertise("[192.0.2.7, \"bo-1.example.org:7400\"]").unwrap()), ["192.0.2.7", "bo-1.example.org:7400"]);
    let environment = with_environment(&[("HOROS__LISTEN__ADVERTISE", "192.0.2.7:9,2001:db8::7")]);
    let config = Config::from_text(&environment, "").unwrap();
    assert_eq!(shown(config.listen.advertise.clone()), ["192.0.2.7:9", "2001:db8::7"]);
    assert_eq!(Config::from_text(&sources(), &config.to_value().to_string()).unwrap().listen, config.listen);
    for (text, what) in [
        ("[\"0.0.0.0:7400\"]", "nowhere that others could dial"),
        ("[\"bo-1\"]", "host:port"),
        ("[192.0.2.1, 192.0.2.2, 192.0.2.3, 192.0.2.4, 192.0.2.5]", "4 at most"),
    ] {
        let problems = advertise(text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(problems.len() == 1 && problems[0].contains("listen.advertise") && problems[0].contains(what), "{problems:?}");
    }
}

#[test]
fn the_written_file_keeps_what_init_was_told() {
    let told = Settings {
        cluster: "shop".parse().unwrap(),
        name: "fo-7".parse().unwrap(),
        role: Role::Fo,
        listen: Some("0.0.0.0:9000".parse().unwrap()),
        seeds: vec![Seed { name: Some("bo-1".parse().unwrap()), role: Some(Role::Bo), address: "bo.example.org:7400".parse().unwrap() }],
        control_owner: Some("bo-9".parse().unwrap()),
    };
    let config = Config::from_text(&sources(), &template(&told)).unwrap();
    assert_eq!((config.cluster.name, config.node.name, config.node.role), (told.cluster, told.name, told.role));
    assert_eq!((Some(config.listen.cluster), config.peers), (told.listen, told.seeds));
    assert_eq!(Some(config.control.owner), told.control_owner);
}

#[test]
fn every_problem_is_told_at_once_with_its_line() {
    let text = "\
cluster: {name: Shop!}
node:
  name: bo
  rolle: bo
listen:
  cluster: localhost
peers:
  seeds:
    - address: nowhere
    - {name: fo-2}
liveness:
  hartbeat: 1s
  suspect: 1500
limits:
  mailbox: 0
  in-flight-bytes: 8MB
store: 12
log:
  level: loud
unknown: 1
";
    let told = problems(text);
    for wanted in [
        "horos.yaml:1: cluster.name: \"Shop!\" is no name",
        "horos.yaml:3: node.name: \"bo\" is a role",
        "horos.yaml:4: node.rolle: unknown key; did you mean role?",
        "horos.yaml:6: listen.cluster: expected an IP address and a port",
        "horos.yaml:9: peers.seeds[0].address: expected host:port",
        "horos.yaml:10: peers.seeds[1]: has no address",
        "horos.yaml:12: liveness.hartbeat: unknown key; did you mean heartbeat?",
        "horos.yaml:13: liveness.suspect: 1500 of what? write the unit",
        "horos.yaml:15: limits.mailbox: 0 is out of range, use 1 to 1000000",
        "horos.yaml:16: limits.in-flight-bytes: no unit \"MB\"",
        "horos.yaml:17: store: expected a section",
        "horos.yaml:19: log.level: \"loud\" is no level",
        "horos.yaml:20: unknown: unknown key; known here: cluster, node",
    ] {
        assert!(told.iter().any(|it| it.starts_with(wanted)), "{wanted:?} is missing from {told:#?}");
    }
    assert_eq!(told.len(), 13, "{told:#?}");
}

#[test]
fn times_that_contradict_each_other_are_refused_together() {
    let told = problems("liveness: {heartbeat: 1s, suspect: 1500ms, down: 2s}\n");
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].contains("liveness.suspect: suspect 1500ms must be at least twice the heartbeat 2s"), "{told:#?}");
}

#[test]
fn the_defaults_are_the_links_own() {
    let (limits, liveness) = (Limits::default(), Liveness::default());
    let link = horos_link::Admission::default();
    assert_eq!((limits.handshakes as usize, limits.handshakes_per_address as usize), (link.handshakes, link.handshakes_per_address));
    assert_eq!((limits.connections as usize, limits.handshake_timeout), (link.sessions, link.handshake_timeout));
    let link = horos_link::Limits::default();
    assert_eq!((limits.out_buffer.bytes(), limits.in_flight_messages), (link.out_buffer, link.in_flight_messages));
    assert_eq!(limits.in_flight_bytes.0, link.in_flight_bytes);
    let link = horos_wire::session::Liveness::default();
    assert_eq!((liveness.heartbeat, liveness.suspect, liveness.down), (link.heartbeat, link.suspect, link.down));
}

#[test]
fn a_relative_data_directory_is_joined_once() {
    // It was joined twice, so that `init` and `bo` with the default directory did not find each other's keys.
    let relative = Sources { data: "shop".into(), ..Sources::default() };
    let config = Config::from_text(&relative, "identity:\n  dir: keys\n").unwrap();
    assert_eq!(config.identity.dir, Path::new("shop/keys"));
    let config = Config::from_text(&relative, "").unwrap();
    assert_eq!(config.identity.dir, Path::new("shop/identity"));
}

#[test]
fn options_win_over_the_environment_and_that_over_the_file() {
    let file = "node: {name: from-file}\nlimits: {mailbox: 1, out-buffer: 2MiB, connections: 9}\n";
    let sources = with_environment(&[("HOROS__LIMITS__OUT_BUFFER", "3MiB"), ("HOROS__LIMITS__MAILBOX", "4"), ("HOME", "/x")])
        .flag("limits.mailbox", Some(5), "--mailbox")
        .flag("node.name", None::<&str>, "--name");
    let config = Config::from_text(&sources, file).unwrap();
    assert_eq!((config.limits.mailbox, config.limits.out_buffer, config.limits.connections), (5, ByteSize::mib(3), 9));
    assert_eq!(config.node.name.as_str(), "from-file");
}

#[test]
fn a_number_may_be_a_name_where_a_name_is_wanted() {
    let config = Config::from_text(&with_environment(&[("HOROS__NODE__NAME", "42")]), "").unwrap();
    assert_eq!(config.node.name.as_str(), "42");
}

#[test]
fn seeds_come_from_the_environment_as_addresses_or_as_a_list() {
    for text in ["192.0.2.1:7400, bo.example.org:7401", "[{address: 192.0.2.1:7400}, {address: \"bo.example.org:7401\"}]"] {
        let config = Config::from_text(&with_environment(&[("HOROS__PEERS__SEEDS", text)]), "").unwrap();
        let shown: Vec<_> = config.peers.iter().map(|seed| seed.address.to_string()).collect();
        assert_eq!(shown, ["192.0.2.1:7400", "bo.example.org:7401"]);
    }
}

#[test]
fn a_wrong_variable_and_a_wrong_option_are_told_with_their_own_names() {
    let sources = with_environment(&[("HOROS__LIVENES__DOWN", "3s"), ("HOROS__DRAIN__TIMEOUT", "soon")]).flag(
        "listen.cluster",
        Some("x"),
        "--listen",
    );
    let told: Vec<_> = Config::from_text(&sources, "").unwrap_err().iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|it| it == "environment HOROS__LIVENES__DOWN: livenes: unknown key; did you mean liveness?"), "{told:#?}");
    assert!(told.iter().any(|it| it.starts_with("environment HOROS__DRAIN__TIMEOUT: drain.timeout: expected a span")), "{told:#?}");
    assert!(told.iter().any(|it| it.starts_with("option --listen: listen.cluster: expected an IP address")), "{told:#?}");
}

#[test]
fn a_broken_file_hides_no_problem_of_the_other_sources() {
    let told: Vec<_> = Config::from_text(&with_environment(&[("HOROS__DRAIN__TIMEOUT", "soon")]), "node: {name: [\n")
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(told[0].starts_with("horos.yaml:"), "{told:#?}");
}

#[test]
fn the_command_for_one_role_refuses_the_directory_of_another() {
    let told = Config::from_text(&sources().role(Role::Fo), "node: {role: bo}\n").unwrap_err().to_string();
    assert!(told.contains("name that of a fo with --data"), "{told}");
    assert_eq!(Config::from_text(&sources().role(Role::Fo), "").unwrap().listen.cluster.port(), FO_PORT);
}

#[test]
fn a_missing_file_says_what_writes_one() {
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources { data: dir.path().into(), ..Sources::default() };
    assert!(Config::load(&sources).unwrap_err().to_string().contains("init --data"));
    assert!(Config::load(&sources.optional()).is_ok());
}

#[test]
fn a_file_without_end_is_refused_and_not_read() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join(FILE)).unwrap();
    assert!(Config::load(&Sources { data: dir.path().into(), ..Sources::default() }).is_err());
}

#[test]
fn ten_lines_of_aliases_do_not_unfold_into_gigabytes() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        text += &format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1);
    }
    assert!(Config::from_text(&sources(), &text).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,300}") {
        let _ = Config::from_text(&sources(), &text);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_reader_panic(cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..8)) {
        let mut text: Vec<char> = template(&settings(Role::Bo)).replace("  #", "  ").chars().collect();
        for (at, with) in cuts {
            let at = at.index(text.len());
            text[at] = with;
        }
        let _ = Config::from_text(&sources(), &text.into_iter().collect::<String>());
    }

    #[test]
    fn no_variable_makes_the_reader_panic(name in "[A-Z_]{0,40}", value in ".{0,60}") {
        let _ = Config::from_text(&with_environment(&[(&format!("{PREFIX}{name}"), &value)]), "liveness: {down: 4s}");
    }
}
