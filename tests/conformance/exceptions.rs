//! The committed list of what is not as the suite wants it (`exceptions.txt`), held against what it found.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::suite::{Check, Found, Status, Suite};

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Our server, by the suite's clients.
    Server,
    /// Our client, by the suite's servers.
    Client,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// The way between the suite's bridge and what is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Http1,
    Http2,
    Http3,
    Quic,
}

impl Over {
    pub(crate) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Http3, Self::Quic];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Http3 => "http/3",
            Self::Quic => "quic",
        }
    }
}

/// A line of the list.
#[derive(Debug)]
struct Exception {
    suite: &'static str,
    side: &'static str,
    over: &'static str,
    scenario: &'static str,
    /// The one check of it that is meant; the others are to pass.
    check: Option<&'static str>,
}

impl Exception {
    /// All that are made.
    ///
    /// # Panics
    /// At a line that names nothing, or gives no reason.
    fn all() -> Vec<Self> {
        let lines = include_str!("exceptions.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(Self::read).collect()
    }

    fn read(line: &'static str) -> Self {
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap_or_else(|| panic!("exceptions.txt: {line}"));
        let (suite, side, over, scenario) = (next(), next(), next(), next());
        assert!(words.count() > 3, "exceptions.txt gives no reason: {line}");
        let known = |found: &str, names: &[&str]| assert!(names.contains(&found), "exceptions.txt: what is {found:?}? {line}");
        known(suite, &Suite::ALL.map(Suite::name).iter().copied().chain(["*"]).collect::<Vec<_>>());
        known(side, &[Side::Server.name(), Side::Client.name()]);
        known(over, &Over::ALL.map(Over::name).iter().copied().chain(["*"]).collect::<Vec<_>>());
        let (scenario, check) = scenario.split_once('#').map_or((scenario, None), |(scenario, check)| (scenario, Some(check)));
        Self { suite, side, over, scenario, check }
    }

    /// Whether it is made for this.
    fn is_for(&self, suite: Suite, side: Side, over: Over) -> bool {
        let is = |said: &str, name: &str| said == "*" || said == name;
        is(self.suite, suite.name()) && self.side == side.name() && is(self.over, over.name())
    }
}

/// Whether the list says of a scenario, by how its name begins, that it is not played.
pub(crate) fn is_left_out(suite: Suite, side: Side, over: Over, scenario: &str) -> bool {
    let begins = |exception: &Exception| exception.scenario.strip_suffix('*').is_some_and(|begins| scenario.starts_with(begins));
    Exception::all().iter().any(|exception| exception.is_for(suite, side, over) && begins(exception))
}

/// What the suite found is what the list says.
///
/// # Panics
/// When it is not, with all that differs.
pub(crate) fn as_listed(found: &Found, suite: Suite, side: Side, over: Over) {
    let exceptions: Vec<_> = Exception::all().into_iter().filter(|exception| exception.is_for(suite, side, over)).collect();
    let exceptions: Vec<_> = exceptions.iter().filter(|exception| !exception.scenario.ends_with('*')).collect();
    let (mut wrong, mut failed, mut not_played) = (String::new(), 0, 0);
    for (scenario, checks) in &found.checks {
        if is_left_out(suite, side, over, scenario) {
            not_played += 1;
            continue;
        }
        // A client that does not do a thing, such as reading resources, cannot do it wrong; a server is asked for everything.
        let beside = |status| status == Status::Info || (status == Status::Skipped && side == Side::Client);
        let bad: Vec<&Check> = checks.iter().filter(|check| check.status != Status::Success && !beside(check.status)).collect();
        let made: Vec<_> = exceptions.iter().filter(|exception| exception.scenario == scenario).collect();
        let whole = made.iter().any(|exception| exception.check.is_none());
        let is_made = |check: &Check| whole || made.iter().any(|exception| exception.check == Some(&*check.id));
        let seen = checks.iter().any(|check| check.status == Status::Success);
        let passed = seen && bad.is_empty();
        if whole && passed {
            let _ = writeln!(wrong, "{scenario} is an exception, and passes");
        }
        if !seen && bad.is_empty() && !whole {
            let _ = writeln!(wrong, "{scenario} looked at nothing");
        }
        for Check { id, status, error_message } in bad.iter().filter(|check| !is_made(check)) {
            let _ = writeln!(wrong, "{scenario}#{id} {status:?}: {}", error_message.as_deref().unwrap_or_default());
        }
        for check in made.iter().filter_map(|exception| exception.check) {
            if bad.iter().all(|found| found.id != check) {
                let _ = writeln!(wrong, "{scenario}#{check} is an exception, and passes, or is not there");
            }
        }
        failed += usize::from(!passed);
    }
    for exception in exceptions.iter().filter(|exception| !found.checks.contains_key(exception.scenario)) {
        let _ = writeln!(wrong, "{} is an exception, and the suite has none of that name", exception.scenario);
    }
    let (suite, side, over, scenarios) = (suite.name(), side.name(), over.name(), found.checks.len());
    assert!(wrong.is_empty(), "suite {suite}, {side} over {over}, {scenarios} scenarios:\n{wrong}\n{}", found.told);
    let passed = scenarios - failed - not_played;
    eprintln!(
        "suite {suite}, {side} over {over}: of {scenarios} scenarios {passed} passed, {failed} as listed did not, {not_played} left out"
    );
}

/// As rmcp's own report counts: 67 scenarios that the two revisions require of servers, and 50 of clients.
#[tokio::test]
async fn all_that_the_protocol_requires_is_asked_over_http_and_no_exception_is_made_of_it() {
    for (side, count) in [(Side::Server, 67), (Side::Client, 50)] {
        let mut required = 0;
        for suite in Suite::ALL.into_iter().filter(|suite| *suite != Suite::Extensions) {
            let asked = suite.scenarios(side).await;
            assert!(asked.len() > 15, "{suite:?} {side:?}: {asked:?}");
            for scenario in suite.required(side) {
                required += 1;
                assert!(asked.contains(&scenario), "{suite:?} has no {scenario}");
                for over in [Over::Http1, Over::Http2, Over::Http3] {
                    let made = Exception::all().into_iter().find(|it| it.is_for(suite, side, over) && it.scenario == scenario);
                    assert!(made.is_none(), "{made:?}");
                    assert!(!is_left_out(suite, side, over, &scenario), "{scenario} over {over:?}");
                }
            }
        }
        assert_eq!(required, count, "{side:?}");
    }
}

/// Of all that both releases of the suite have, whatever the revision, nothing is passed over in silence.
#[tokio::test]
async fn every_scenario_that_the_suite_knows_is_played_or_named_with_a_reason() {
    for side in [Side::Server, Side::Client] {
        let mut played = BTreeSet::new();
        for suite in Suite::ALL {
            let asked = suite.scenarios(side).await;
            // Of extensions our server offers none, and so is asked for none: each is named.
            let plays =
                |scenario: &String| suite != Suite::Extensions || side == Side::Client || is_left_out(suite, side, Over::Http1, scenario);
            played.extend(asked.into_iter().filter(plays));
        }
        for release in [Suite::Old, Suite::Extensions] {
            let known = release.known(side).await;
            let silent: Vec<_> = known.difference(&played).collect();
            assert!(known.len() > 20 && silent.is_empty(), "{side:?} of {}: {silent:?}", release.name());
        }
    }
}
