//! A service as it is called: its endpoints opened, its policies at work.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use horos_wire::{CallContext, CallError, NoEffect};

use crate::{
    backoff::Backoff,
    balance::{Balance, Candidate, InFlight, Load, Locality},
    breaker::{Breaker, Breakers, Outcome, Ticket},
    budget::{Budget, Withdrawal},
    call::{Attempted, judged},
    config::{self, Config, Problem},
    counters::{Counters, EndpointCounters},
    limit::{Limit, Permit},
    policy::Policies,
    rate::Rate,
    spec::{Place, Spec},
    strategy::{Strategies, Target},
};

/// A route in force. Whoever calls by it holds it; it is let go of with the last call.
#[derive(Debug)]
pub(crate) struct Service {
    name: Box<str>,
    config: Arc<Config>,
    endpoints: Box<[Endpoint]>,
    balance: Balance,
    budget: Option<Arc<Budget>>,
    limit: Option<Arc<Limit>>,
    rate: Option<Arc<Rate>>,
    policies: Policies,
    counters: Arc<Counters>,
    taken_up: SystemTime,
}

/// One of its endpoints.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) place: Place,
    pub(crate) key: Box<str>,
    target: Target,
    load: Arc<Load>,
    /// None for an actor that is called by name, without a route.
    breaker: Option<Arc<Breaker>>,
    pub(crate) counters: Arc<EndpointCounters>,
}

/// How far an endpoint is from the node that calls.
pub(crate) trait Distance {
    fn to(&self, target: &Target) -> Locality;
}

impl Service {
    /// Opens what `spec` says. What `before` counts and holds of the same service goes on.
    ///
    /// # Errors
    /// What is missing on this node.
    pub(crate) fn open(
        spec: &Spec,
        strategies: &Strategies,
        breakers: &Breakers,
        distance: &impl Distance,
        before: Option<&Service>,
    ) -> Result<Self, Vec<Problem>> {
        let now = Instant::now();
        let (name, config) = (&spec.row.service, &spec.config);
        let policy = config.breaker.unwrap_or_default();
        let mut problems = Vec::new();
        let mut opened = Vec::with_capacity(spec.places.len());
        for place in &spec.places {
            let target = strategies
                .get(&place.strategy)
                .map_err(|error| error.to_string())
                .and_then(|strategy| strategy.open(name, &place.endpoint, config));
            match target {
                Ok(target) => opened.push((place, target)),
                Err(what) => problems.push(Problem::new(place.key(), what)),
            }
        }
        let policies = strategies.policies(name, config).unwrap_or_else(|wrong| {
            problems.extend(wrong);
            Policies::default()
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        let known = |key: &str| before.and_then(|before| before.endpoints.iter().find(|endpoint| *endpoint.key == *key));
        let endpoint = |(place, target): (&Place, Target)| {
            let key: Box<str> = place.key().into();
            let known = known(&key);
            let load = known.map_or_else(|| Load::new(now), |known| known.load.clone());
            let counters = known.map_or_else(Arc::default, |known| known.counters.clone());
            // Nobody cannot fail.
            let breaker = (!matches!(target, Target::Nobody(_))).then(|| breakers.breaker(name, &key, policy));
            Endpoint { place: place.clone(), key, target, load, breaker, counters }
        };
        let endpoints: Box<[Endpoint]> = opened.into_iter().map(endpoint).collect();
        let balance = Balance::new(endpoints.iter().map(|endpoint| endpoint.candidate(distance.to(&endpoint.target))));
        let budget = config.retry.or(config.hedge.map(|_| config::Retry::default())).map(|retry| {
            let same = before.and_then(|before| before.budget.clone()).unwrap_or_else(|| Arc::new(Budget::new(&retry, now)));
            same.set(&retry);
            same
        });
        let limit = config.concurrency.map(|to| {
            let same = before.and_then(|before| before.limit.clone()).unwrap_or_else(|| Limit::new(&to));
            same.set(&to);
            same
        });
        let rate = config.rate.map(|to| {
            let same = before.and_then(|before| before.rate.clone()).unwrap_or_else(|| Arc::new(Rate::new(&to, now)));
            same.set(&to, now);
            same
        });
        let counters = before.map_or_else(Arc::default, |before| before.counters.clone());
        Ok(Self {
            name: name.clone(),
            config: config.clone(),
            endpoints,
            balance,
            budget,
            limit,
            rate,
            policies,
            counters,
            taken_up: SystemTime::now(),
        })
    }

    /// An actor that is called by its name, without a route: no policy but the deadline's.
    pub(crate) fn unrouted(name: &str) -> Result<Self, NoEffect> {
        let address = name.parse().map_err(|_| NoEffect::NoSuchActor(name.into()))?;
        let endpoint = Endpoint {
            place: Place { strategy: "quic".into(), endpoint: Box::default(), weight: 1, canary_percent: None },
            key: Box::default(),
            target: Target::Actor(address),
            load: Load::new(Instant::now()),
            breaker: None,
            counters: Arc::default(),
        };
        Ok(Self {
            name: name.into(),
            config: Arc::default(),
            balance: Balance::new([endpoint.candidate(Locality::Node)]),
            endpoints: Box::new([endpoint]),
            budget: None,
            limit: None,
            rate: None,
            policies: Policies::default(),
            counters: Arc::default(),
            taken_up: SystemTime::now(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(crate) fn places(&self) -> usize {
        self.endpoints.len()
    }

    pub(crate) fn target(&self, place: usize) -> &Target {
        &self.endpoints[place].target
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn limit(&self) -> Option<&Limit> {
        self.limit.as_deref()
    }

    pub(crate) fn policies(&self) -> &Policies {
        &self.policies
    }

    pub(crate) fn taken_up(&self) -> SystemTime {
        self.taken_up
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.config.timeout()
    }

    /// What one attempt is given, of a call that may be made twice.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        let given = self.config.retry.and_then(|retry| retry.attempt_ms).map(Duration::from_millis);
        given.unwrap_or_else(|| self.timeout())
    }

    pub(crate) fn retry(&self) -> Option<config::Retry> {
        self.config.retry
    }

    pub(crate) fn hedge(&self) -> Option<Duration> {
        self.config.hedge.map(|hedge| Duration::from_millis(hedge.after_ms))
    }

    pub(crate) fn fallback(&self) -> Option<&str> {
        self.config.fallback.as_deref()
    }

    /// Whether a call may come to more than one attempt.
    pub(crate) fn repeats(&self) -> bool {
        self.budget.is_some()
    }

    /// Whether a call of `method` may be made twice with the effect of one: its route says so, or it has a key by which its callee
    /// knows it again.
    pub(crate) fn is_idempotent(&self, method: &str, context: &CallContext) -> bool {
        self.config.is_idempotent(method) || context.claims.as_ref().is_some_and(|claims| claims.idempotency_key.is_some())
    }

    /// Takes a call in hand, within the service's rate and concurrency.
    pub(crate) async fn enter(self: &Arc<Self>, now: Instant, until: Instant) -> Result<Entered, NoEffect> {
        if let Some(rate) = &self.rate
            && let Err(retry_after) = rate.check(now)
        {
            self.counters.limited();
            return Err(NoEffect::Overloaded(format!("{} is called too often; again in {retry_after:?}", self.name).into()));
        }
        let permit = match &self.limit {
            None => None,
            Some(limit) => match limit.acquire(until).await {
                Ok(permit) => Some(permit),
                Err(_) => {
                    self.counters.overloaded();
                    return Err(NoEffect::Overloaded(format!("{} has as many calls in hand and in wait as it may", self.name).into()));
                }
            },
        };
        if let Some(budget) = &self.budget {
            budget.call(now);
        }
        self.counters.begun();
        Ok(Entered { counters: self.counters.clone(), _permit: permit })
    }

    /// How long its rate lets nobody through; none where it would let a call through now.
    pub(crate) fn limited_for(&self, now: Instant) -> Option<Duration> {
        self.rate.as_ref()?.wait(now)
    }

    /// A place to make an attempt at, and not one of `tried` unless there is no other.
    pub(crate) fn admit(&self, now: Instant, tried: u32) -> Result<Admission<'_>, NoEffect> {
        let ready = |place: usize| self.endpoints[place].breaker.as_ref().is_none_or(|breaker| breaker.is_ready(now));
        let mut soonest: Option<Duration> = None;
        let mut at = |place: usize| {
            let endpoint = &self.endpoints[place];
            match endpoint.breaker.as_ref().map(|breaker| breaker.admit(now)).transpose() {
                Ok(ticket) => Some(Admission { place, ticket, in_flight: endpoint.load.begin(), counters: &endpoint.counters }),
                Err(rejected) => {
                    soonest = Some(soonest.map_or(rejected.retry_after, |soonest| soonest.min(rejected.retry_after)));
                    None
                }
            }
        };
        let chosen = if self.endpoints.len() == 1 { Some(0) } else { self.balance.choose(now, tried, rand::random(), ready) };
        let chosen = chosen.unwrap_or_default();
        // The choice knows the breakers as they were a moment ago; whichever lets the call through after all is better than none.
        let others = (0..self.endpoints.len()).filter(|place| *place != chosen);
        let admission = at(chosen).or_else(|| others.into_iter().find_map(&mut at));
        admission.ok_or_else(|| NoEffect::CircuitOpen { retry_after: soonest.unwrap_or_default() })
    }

    /// Whether there is an endpoint that is not of `tried`.
    pub(crate) fn has_untried(&self, tried: u32) -> bool {
        (tried.count_ones() as usize) < self.endpoints.len()
    }

    /// How long the retry after `made` others waits, `asked` at least.
    pub(crate) fn wait(&self, made: u32, asked: Option<Duration>) -> Duration {
        self.config.retry.map_or(Duration::ZERO, |retry| Backoff::new(&retry).wait(made, asked, &mut rand::rng()))
    }

    /// Takes what another attempt costs from the budget.
    pub(crate) fn withdraw(&self, now: Instant) -> Option<Withdrawal> {
        let withdrawal = self.budget.as_ref()?.withdraw(now);
        if withdrawal.is_none() {
            self.counters.over_budget();
        }
        withdrawal
    }
}

impl Endpoint {
    fn candidate(&self, locality: Locality) -> Candidate {
        let Place { weight, canary_percent, .. } = self.place;
        Candidate { weight, canary_percent, locality, load: self.load.clone() }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    pub(crate) fn breaker(&self) -> Option<&Arc<Breaker>> {
        self.breaker.as_ref()
    }
}

/// A call in hand.
#[derive(Debug)]
pub(crate) struct Entered {
    counters: Arc<Counters>,
    _permit: Option<Permit>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.counters.let_go();
    }
}

/// An attempt that may be made. Dropped, it was cancelled, and says nothing of the endpoint.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    place: usize,
    ticket: Option<Ticket>,
    in_flight: InFlight,
    counters: &'a EndpointCounters,
}

impl Admission<'_> {
    pub(crate) fn place(&self) -> usize {
        self.place
    }

    /// The attempt, begun at `began` and given until `given`, has ended so at `now`.
    pub(crate) fn ended<T, E>(self, outcome: &Result<T, Attempted<E>>, began: Instant, given: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        let judged = judged(outcome, given.saturating_duration_since(began));
        let failure = match outcome {
            Err(Attempted { error: CallError::NoEffect(why), .. }) if judged == Outcome::Failure => Some(why.to_string()),
            Err(Attempted { error: CallError::Unknown(why), .. }) if judged == Outcome::Failure => Some(why.to_string()),
            _ => None,
        };
        self.counters.ended(took, failure);
        if judged != Outcome::Ignored {
            self.in_flight.answered(took, now, judged == Outcome::Success);
        }
        let Some(ticket) = self.ticket else { return };
        let asked = match outcome {
            Err(Attempted { retry_after: Some(asked), .. }) => Some(*asked),
            Err(Attempted { error: CallError::NoEffect(NoEffect::CircuitOpen { retry_after }), .. }) => Some(*retry_after),
            _ => None,
        };
        let breaker = asked.map(|asked| (ticket.breaker().clone(), asked));
        ticket.record(judged, took, now);
        if let Some((breaker, asked)) = breaker {
            breaker.retry_after(asked, now);
        }
    }
}
