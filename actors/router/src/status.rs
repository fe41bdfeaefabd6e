//! What a node's router tells of itself, by [`horos_wire::protocol::router`].

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use horos_supervision::{ChildSpec, Context, Exchange, Handle, Service, ServiceSpec, exchange::RegisterError, service as hosted};
use horos_wire::{
    Role,
    protocol::{
        control::{Force, Problem},
        router::{
            self, BreakerList, BreakerState, BreakerStatus, EndpointStatus, GetService, ListBreakers, ListServices, NAME, PAGE, PAGE_BYTES,
            RouterError, RowInForce, RowProblem, ServiceDetail, ServiceList, ServiceStatus,
        },
    },
};
use tokio::runtime::Handle as Runtime;

use crate::{
    breaker::{self, Forced, Snapshot},
    counters::Figures,
    router::{Entry, Router},
    service::Endpoint,
};

/// The child that answers for `router` on this node.
///
/// # Errors
/// [`RegisterError`] when a service has taken the name.
pub fn child(exchange: &Exchange, runtime: &Runtime, router: Router) -> Result<ChildSpec, RegisterError> {
    let open = move |_: Context| {
        let router = router.clone();
        async move { Ok(Status(router)) }
    };
    hosted(exchange, runtime, ServiceSpec::new(NAME.parse().expect("a literal name")), open)
}

/// The first `most` services of `router`, by name: for metrics.
pub fn services(router: &Router, most: usize) -> Vec<ServiceStatus> {
    let table = router.table();
    let mut names: Vec<_> = table.keys().collect();
    names.sort_unstable();
    names.into_iter().take(most).map(|name| status(&table[name], false)).collect()
}

struct Status(Router);

impl Service for Status {
    type Protocol = router::Router;
}

impl Handle<ListServices> for Status {
    async fn handle(&mut self, ask: ListServices, cx: &Context) -> Result<ServiceList, RouterError> {
        let table = self.0.table();
        let mut names: Vec<_> = table.keys().filter(|name| ask.after.as_ref().is_none_or(|after| ***name > **after)).collect();
        names.sort_unstable();
        let (mut services, mut bytes, mut next) = (Vec::new(), 0, None);
        for name in names {
            if services.len() == PAGE || bytes > PAGE_BYTES {
                next = services.last().map(|status: &ServiceStatus| status.service.clone());
                break;
            }
            let status = status(&table[name], tells(cx));
            bytes += weight(&status);
            services.push(status);
        }
        Ok(ServiceList { services, next })
    }
}

impl Handle<GetService> for Status {
    async fn handle(&mut self, ask: GetService, cx: &Context) -> Result<ServiceDetail, RouterError> {
        let table = self.0.table();
        let entry = table.get(&*ask.service).ok_or(RouterError::NoSuchService(ask.service))?;
        let figures = figures(entry);
        let policies = entry.service.as_ref().map_or_else(String::new, |service| {
            let mut config = (**service.config()).clone();
            config.authorization = None;
            config.timeout_ms = Some(i64::try_from(service.timeout().as_millis()).unwrap_or(i64::MAX));
            config.breaker.get_or_insert_default();
            serde_json::to_string(&config).unwrap_or_default()
        });
        Ok(ServiceDetail {
            status: status(entry, tells(cx)),
            policies: policies.into(),
            waiting: entry
                .service
                .as_ref()
                .and_then(|service| service.limit())
                .map_or(0, |limit| u32::try_from(limit.waiting()).unwrap_or(u32::MAX)),
            overloaded: figures.overloaded,
            limited: figures.limited,
            refused: figures.refused,
            hedged: (figures.hedges, figures.hedges_won),
            fell_back: figures.fallbacks,
            over_budget: figures.over_budget,
        })
    }
}

impl Handle<ListBreakers> for Status {
    async fn handle(&mut self, ask: ListBreakers, cx: &Context) -> Result<BreakerList, RouterError> {
        let table = self.0.table();
        let mut all: Vec<(&str, &Endpoint)> = table
            .values()
            .filter_map(|entry| entry.service.as_ref())
            .flat_map(|service| service.endpoints().iter().map(|endpoint| (service.name(), endpoint)))
            .filter(|(_, endpoint)| endpoint.breaker().is_some())
            .collect();
        let place = |(name, endpoint): &(&str, &Endpoint)| ((*name).to_owned(), endpoint.key.to_string());
        all.sort_by_cached_key(place);
        let after = ask.after.map(|(service, key)| (service.into_string(), key.into_string()));
        let (mut breakers, mut bytes, mut next) = (Vec::<BreakerStatus>::new(), 0, None);
        for one in all.into_iter().filter(|one| after.as_ref().is_none_or(|after| place(one) > *after)) {
            if breakers.len() == PAGE || bytes > PAGE_BYTES {
                next = breakers.last().map(|last| (last.service.clone(), last.key.clone()));
                break;
            }
            let (service, endpoint) = one;
            let Some(snapshot) = endpoint.breaker().map(|breaker| breaker.snapshot(Instant::now())) else { continue };
            let last_error = endpoint.counters.last_error().filter(|_| tells(cx));
            bytes += service.len() + endpoint.key.len() + last_error.as_deref().map_or(0, str::len) + 64;
            breakers.push(BreakerStatus {
                service: service.into(),
                key: endpoint.key.clone(),
                state: state(&snapshot),
                forced: force(&snapshot),
                until_ms: snapshot.open_for_ms,
                failures_in_row: snapshot.failures,
                transitions: snapshot.generation,
                opened_ms: snapshot.opened_ms_ago.map(|ago| unix_ms(SystemTime::now()) - i64::try_from(ago).unwrap_or(i64::MAX)),
                last_error,
            });
        }
        Ok(BreakerList { breakers, next })
    }
}

/// Whether the caller is told texts of errors, which may name what is behind: no FO of another's.
fn tells(cx: &Context) -> bool {
    cx.caller().is_local() || cx.caller().node().role != Role::Fo
}

fn figures(entry: &Entry) -> Figures {
    entry.service.as_ref().map(|service| service.counters().figures()).unwrap_or_default()
}

fn status(entry: &Entry, tells: bool) -> ServiceStatus {
    let figures = figures(entry);
    let row = entry
        .in_force
        .as_ref()
        .zip(entry.service.as_ref())
        .map(|(row, service)| RowInForce { version: row.version(), taken_up_ms: unix_ms(service.taken_up()) });
    let problem = entry.wrong.as_ref().map(|(problems, since)| RowProblem {
        version: entry.row.version(),
        since_ms: unix_ms(*since),
        problems: problems.iter().map(|problem| Problem { key: problem.key.clone(), what: problem.what.clone() }).collect(),
    });
    let endpoints = entry.service.iter().flat_map(|service| service.endpoints()).map(|one| endpoint(one, tells)).collect();
    ServiceStatus {
        service: entry.row.service.clone(),
        row,
        problem,
        strategy: entry.in_force.as_ref().map_or_else(Box::default, |row| row.strategy.clone()),
        endpoints,
        in_flight: figures.in_flight,
        calls: figures.calls,
        failures: figures.failures,
        retries: figures.retries,
        latency: figures.latency,
    }
}

fn endpoint(endpoint: &Endpoint, tells: bool) -> EndpointStatus {
    let snapshot = endpoint.breaker().map(|breaker| breaker.snapshot(Instant::now()));
    EndpointStatus {
        key: endpoint.key.clone(),
        strategy: endpoint.place.strategy.clone(),
        endpoint: endpoint.place.endpoint.clone(),
        weight: endpoint.place.weight,
        canary_percent: endpoint.place.canary_percent,
        breaker: snapshot.as_ref().map_or(BreakerState::Closed, state),
        forced: snapshot.as_ref().map_or(Force::Auto, force),
        until_ms: snapshot.as_ref().and_then(|snapshot| snapshot.open_for_ms),
        in_flight: endpoint.in_flight(),
        calls: endpoint.counters.calls(),
        failures: endpoint.counters.failures(),
        latency: endpoint.counters.latency(),
        last_error: endpoint.counters.last_error().filter(|_| tells),
    }
}

fn state(snapshot: &Snapshot) -> BreakerState {
    match snapshot.state {
        breaker::State::Closed => BreakerState::Closed,
        breaker::State::Open => BreakerState::Open,
        breaker::State::HalfOpen => BreakerState::HalfOpen,
    }
}

fn force(snapshot: &Snapshot) -> Force {
    match snapshot.forced {
        None => Force::Auto,
        Some(Forced::Open) => Force::Open,
        Some(Forced::Closed) => Force::Closed,
    }
}

/// What a status takes, nearly: its texts.
fn weight(status: &ServiceStatus) -> usize {
    let endpoint = |one: &EndpointStatus| 2 * one.endpoint.len() + one.last_error.as_deref().map_or(0, str::len) + 96;
    let problem = |one: &Problem| one.key.len() + one.what.len();
    let problems = status.problem.iter().flat_map(|problem| &problem.problems).map(problem).sum::<usize>();
    status.service.len() + status.endpoints.iter().map(endpoint).sum::<usize>() + problems + 128
}

fn unix_ms(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
