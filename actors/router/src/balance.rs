//! Which of a service's endpoints a call goes to.
//!
//! First the canaries' share, exactly; then the nearest endpoints of which one is healthy, and among those the less loaded of two
//! drawn by weight. Two choices avoid both the herd that runs to the least loaded and the blindness of chance ("The Power of Two
//! Choices in Randomized Load Balancing", Mitzenmacher, 2001). Pure: the clock and chance come with the question.

mod load;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

pub use load::{InFlight, Load};

use crate::config;

/// How far away an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Locality {
    /// On this node.
    Node,
    /// On a node of this node's role.
    Role,
    /// Elsewhere.
    Elsewhere,
}

/// An endpoint to choose.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What it counts among the others; 0 is only when no other is healthy.
    pub weight: u32,
    /// This share of the first attempts goes here before any other choice is made, and no other while another is healthy.
    pub canary_percent: Option<u32>,
    /// How far away it is.
    pub locality: Locality,
    /// What it has to do.
    pub load: Arc<Load>,
}

impl Candidate {
    /// Whether it takes part in the ordinary choice.
    fn is_regular(&self) -> bool {
        self.weight > 0 && self.canary_percent.is_none()
    }
}

/// The endpoints of a service, to choose from.
#[derive(Debug)]
pub struct Balance {
    candidates: Box<[Candidate]>,
    regular: u32,
    canaries: u32,
    /// First attempts, which decide whose turn a canary is.
    drawn: AtomicU64,
}

/// Calls after which the canaries have had exactly their shares.
const TURNS: u64 = 100;
/// Stepping so far through the turns visits each once, and spreads those of a share evenly: it has no factor in common with their
/// number, and is the golden section of it.
const STEP: u64 = 61;

impl Balance {
    /// A choice among `candidates`, of which only the first [`config::MAX_ENDPOINTS`] are seen.
    pub fn new(candidates: impl IntoIterator<Item = Candidate>) -> Self {
        let candidates: Box<[Candidate]> = candidates.into_iter().take(config::MAX_ENDPOINTS).collect();
        let mask =
            |of: fn(&Candidate) -> bool| candidates.iter().enumerate().filter(|(_, one)| of(one)).fold(0, |mask, (at, _)| mask | 1 << at);
        let regular = mask(Candidate::is_regular);
        let canaries = mask(|one| one.canary_percent.is_some_and(|percent| percent > 0));
        Self { regular, canaries, candidates, drawn: AtomicU64::new(0) }
    }

    /// The endpoints.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The endpoint for an attempt. `exclude` has a bit for each that this call has tried already: one of those is chosen only if no
    /// other is healthy, and one that is not healthy only if none is. `random` is all that is left to chance. None: there is none.
    pub fn choose(&self, now: Instant, exclude: u32, random: u64, healthy: impl Fn(usize) -> bool) -> Option<usize> {
        if self.candidates.len() < 2 {
            return (!self.candidates.is_empty()).then_some(0);
        }
        if exclude == 0
            && self.canaries != 0
            && let Some(canary) = self.canary(&healthy)
        {
            return Some(canary);
        }
        let all = u32::MAX >> (u32::BITS as usize - self.candidates.len());
        let (regular, reserve) = (self.regular, all & !self.regular);
        let untried = !exclude;
        [regular & untried, reserve & untried, regular & exclude, reserve & exclude]
            .into_iter()
            .filter(|pool| *pool != 0)
            .find_map(|pool| self.nearest(pool, now, random, &healthy))
            // None is healthy. Whose breaker lets nobody through says so, and when to come again.
            .or_else(|| Some([regular & untried, all & untried, all].into_iter().find(|pool| *pool != 0)?.trailing_zeros() as usize))
    }

    /// The canary whose turn it is, if it is one's.
    fn canary(&self, healthy: impl Fn(usize) -> bool) -> Option<usize> {
        let turn = self.drawn.fetch_add(1, Ordering::Relaxed) % TURNS * STEP % TURNS;
        let mut up_to = 0;
        let mut shares = self.candidates.iter().map(|one| {
            up_to += u64::from(one.canary_percent.unwrap_or(0));
            up_to
        });
        shares.position(|up_to| turn < up_to).filter(|at| healthy(*at))
    }

    /// One of the nearest of the pool that are healthy.
    fn nearest(&self, pool: u32, now: Instant, random: u64, healthy: impl Fn(usize) -> bool) -> Option<usize> {
        let (mut nearest, mut tier) = (0u32, Locality::Elsewhere);
        for at in bits(pool) {
            let locality = self.candidates[at].locality;
            if (nearest == 0 || locality <= tier) && healthy(at) {
                if locality < tier {
                    (nearest, tier) = (0, locality);
                }
                nearest |= 1 << at;
            }
        }
        match nearest.count_ones() {
            0 => None,
            1 => Some(nearest.trailing_zeros() as usize),
            _ => Some(self.of_two(nearest, now, random)),
        }
    }

    /// Draws two by weight, and takes the less loaded.
    fn of_two(&self, pool: u32, now: Instant, random: u64) -> usize {
        let total = bits(pool).map(|at| self.weight(at)).sum();
        let first = self.draw(pool, total, random as u32);
        let rest = pool & !(1 << first);
        let second = self.draw(rest, total - self.weight(first), (random >> 32) as u32);
        let [one, other] = [first, second].map(|at| {
            let load = &self.candidates[at].load;
            // As if each had a share of one call more than it has: with that a slow one is avoided also while nothing is in flight,
            // and the weights of idle ones are what the draw made of them.
            let calls = f64::from(load.in_flight()) / self.weight(at) as f64 + f64::from(pool.count_ones()) / total as f64;
            (calls, load.latency(now))
        });
        if load::less(other, one) { second } else { first }
    }

    fn draw(&self, pool: u32, total: u64, random: u32) -> usize {
        let mut at = (u64::from(random) * total) >> 32;
        for candidate in bits(pool) {
            let weight = self.weight(candidate);
            if at < weight {
                return candidate;
            }
            at -= weight;
        }
        pool.trailing_zeros() as usize
    }

    fn weight(&self, at: usize) -> u64 {
        u64::from(self.candidates[at].weight.max(1))
    }
}

fn bits(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let at = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(at)
    })
}

#[cfg(test)]
mod tests;
