//! What a benchmark says: its arguments, its rounds, and one JSON object a line.

use std::io::Write as _;

use serde::Serialize;

/// Rounds that a figure is the median of, unless the command line says otherwise. Fewer are not judged.
pub(crate) const ROUNDS: usize = 7;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    /// Rounds to measure; one more comes first and is thrown away.
    pub(crate) rounds: usize,
    /// Short rounds, to see that it works; the figures are worth little.
    pub(crate) quick: bool,
    /// Whether the floor is measured: `--ours` leaves it out, for a profiler.
    pub(crate) floor: bool,
    /// Metrics to measure; all when empty.
    only: Vec<String>,
}

impl Arguments {
    /// Reads the command line; `known` are the metrics there are.
    pub(crate) fn read(known: &[&str]) -> anyhow::Result<Self> {
        let mut arguments = Self { rounds: ROUNDS, quick: false, floor: true, only: Vec::new() };
        let mut given = std::env::args().skip(1);
        while let Some(argument) = given.next() {
            match argument.as_str() {
                // Cargo says it to every benchmark.
                "--bench" => {}
                "--quick" => (arguments.quick, arguments.rounds) = (true, 3),
                "--ours" => arguments.floor = false,
                "--rounds" => arguments.rounds = given.next().unwrap_or_default().parse::<usize>()?.max(1),
                name if known.contains(&name) => arguments.only.push(argument),
                other => anyhow::bail!("no metric {other:?}; there are {}; options are --rounds N, --quick and --ours", known.join(" ")),
            }
        }
        Ok(arguments)
    }

    /// Whether any of `metrics` is asked for.
    pub(crate) fn wants(&self, metrics: &[&str]) -> bool {
        self.only.is_empty() || metrics.iter().any(|metric| self.only.iter().any(|asked| asked == metric))
    }
}

/// What is asked of a metric.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// The ratio to the floor, at least.
    RatioAtLeast(f64),
    /// The ratio to the floor, at most.
    RatioAtMost(f64),
    /// The value, at least.
    AtLeast(f64),
    /// The value, at most.
    AtMost(f64),
}

/// One metric's rounds.
#[derive(Clone, Debug)]
pub(crate) struct Metric {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    values: Vec<f64>,
    floors: Vec<f64>,
}

#[derive(Serialize)]
struct Line {
    metric: &'static str,
    value: f64,
    unit: &'static str,
    floor: Option<f64>,
    ratio: Option<f64>,
    /// Between the quartiles of what the goal judges: the ratio where it is one, else the value.
    spread: f64,
}

impl Metric {
    pub(crate) fn new(name: &'static str, unit: &'static str, goal: Goal) -> Self {
        Self { name, unit, goal, values: Vec::new(), floors: Vec::new() }
    }

    /// Takes a round's figure.
    pub(crate) fn round(&mut self, value: f64) {
        self.values.push(value);
    }

    /// Takes a round's figure and the floor's.
    pub(crate) fn beside(&mut self, value: f64, floor: f64) {
        self.values.push(value);
        self.floors.push(floor);
    }

    /// Forgets what was measured so far: it warmed up.
    pub(crate) fn forget(&mut self) {
        self.values.clear();
        self.floors.clear();
    }

    /// Writes the metric to stdout, and how it stands to its goal to stderr.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        if self.values.is_empty() {
            return Ok(());
        }
        // Each round's own ratio: floor and figure of one round met the same machine.
        let ratios: Vec<f64> = self.values.iter().zip(&self.floors).map(|(value, floor)| value / floor).collect();
        let by_ratio = matches!(self.goal, Goal::RatioAtLeast(_) | Goal::RatioAtMost(_));
        let judged = if by_ratio { &ratios } else { &self.values };
        let (middle, spread) = (quantile(judged, 0.5), quantile(judged, 0.75) - quantile(judged, 0.25));
        let line = Line {
            metric: self.name,
            value: rounded(quantile(&self.values, 0.5)),
            unit: self.unit,
            floor: (!self.floors.is_empty()).then(|| rounded(quantile(&self.floors, 0.5))),
            ratio: (!ratios.is_empty()).then(|| rounded(quantile(&ratios, 0.5))),
            spread: rounded(spread),
        };
        writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&line)?)?;
        let (reached, asked) = match self.goal {
            Goal::RatioAtLeast(goal) => (middle >= goal, format!("at least {goal} x the floor")),
            Goal::RatioAtMost(goal) => (middle <= goal, format!("at most {goal} x the floor")),
            Goal::AtLeast(goal) => (middle >= goal, format!("at least {goal} {}", self.unit)),
            Goal::AtMost(goal) => (middle <= goal, format!("at most {goal} {}", self.unit)),
        };
        let told = if reached { "reached" } else { "MISSED" };
        eprintln!("# {told}: {} is {} (between the quartiles {}), asked for {asked}", self.name, rounded(middle), rounded(spread));
        Ok(())
    }
}

/// The value that the share `at` of `values` does not exceed, between neighbours by proportion.
pub(crate) fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = at * last as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (position - position.floor())
}

fn rounded(value: f64) -> f64 {
    let places = if value.abs() >= 100.0 { 1.0 } else { 1000.0 };
    (value * places).round() / places
}
