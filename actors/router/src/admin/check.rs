//! Whether a route makes sense, before it is written and when it is shown: everything that is wrong with it, at once.

use horos_wire::protocol::control::{ControlError, MAX_CONFIG, MAX_ENDPOINT, MAX_SERVICE, Problem, Strategy};

use crate::{
    config,
    spec::{Row, Spec},
    strategy::{Strategies, StrategyError},
};

/// What the names begin with that rows were given which had none.
pub const UNNAMED: &str = "unnamed:";

/// What is wrong with the name of a service, if anything is.
pub fn check_name(service: &str) -> Result<(), config::Problem> {
    let odd = |c: char| c.is_control() || c.is_whitespace();
    let what = if service.starts_with(UNNAMED) {
        "the row had no name where it comes from: set the route under its name, and delete this one".to_owned()
    } else if service.is_empty() || service.len() > MAX_SERVICE || service.contains(odd) {
        format!("a service's name is 1 to {MAX_SERVICE} bytes without spaces")
    } else {
        return Ok(());
    };
    Err(config::Problem::new("service_name", what))
}

/// Everything that is wrong with a row, by what `strategies` there are.
pub(super) fn problems(row: &Row, strategies: &Strategies) -> Vec<Problem> {
    let mut found = Vec::new();
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if row.endpoint.as_deref().is_some_and(|endpoint| endpoint.len() > MAX_ENDPOINT || endpoint.contains(odd)) {
        found.push(config::Problem::new("endpoint", format!("an endpoint is at most {MAX_ENDPOINT} bytes without spaces")));
    }
    if row.config.as_deref().is_some_and(|config| config.len() > MAX_CONFIG) {
        found.push(config::Problem::new("config", format!("a configuration is at most {MAX_CONFIG} bytes")));
    }
    if let Err(more) = Spec::new(row.clone(), strategies) {
        // One word for each place: what is too long is not read as well.
        let known: Vec<Box<str>> = found.iter().map(|problem| problem.key.clone()).collect();
        found.extend(more.into_iter().filter(|problem| !known.contains(&problem.key)));
    }
    found.into_iter().map(|config::Problem { key, what }| Problem { key, what }).collect()
}

/// Whether `row` may be written.
///
/// # Errors
/// [`ControlError::NotImplemented`] or [`ControlError::Wrong`].
pub(super) fn check(row: &Row, strategies: &Strategies) -> Result<(), ControlError> {
    if let (Err(StrategyError::NotImplemented(_) | StrategyError::Unknown(..)), Ok(strategy)) =
        (strategies.get(&row.strategy), row.strategy.parse::<Strategy>())
    {
        return Err(ControlError::NotImplemented { strategy, available: strategies.names().map(Into::into).collect() });
    }
    let wrong = problems(row, strategies);
    if wrong.is_empty() { Ok(()) } else { Err(ControlError::Wrong(wrong)) }
}
