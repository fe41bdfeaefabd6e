//! Who may come in: credentials, what they prove, how often they may ask, and the scope that a service wants.

use std::{future::poll_fn, num::NonZeroU32, sync::Arc, task::Poll};

use horos_wire::principal::{Denied, Principal, Scope};
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::{
    Guard,
    credentials::{Malformed, Shown},
    visit::{Budget, Visit},
};
use crate::{
    Access, Credential,
    metrics::Failure,
    problem::Problem,
    rate::{Key, Limiter, Wait, address_key},
};

/// Who is there.
#[derive(Debug, Default)]
pub(crate) struct Proved {
    /// Whose scopes count: the key's, where there is one, else the token's.
    pub(crate) principal: Option<Arc<Principal>>,
    /// Whom the token proved.
    pub(crate) user: Option<Arc<Principal>>,
}

impl Proved {
    pub(crate) fn may(&self, scope: &Scope) -> bool {
        self.principal.as_ref().is_some_and(|principal| principal.may(scope))
    }
}

/// Why it is not known who is there.
enum Unproved {
    Denied(Denied),
    /// This address has guessed too often.
    Guessed(Wait),
}

/// A request as one of the wrong guesses that its address may make: counted once at most.
struct Guess<'a> {
    limiter: &'a Limiter,
    address: Key,
    per_minute: NonZeroU32,
    now: Instant,
    counted: bool,
}

impl Guess<'_> {
    fn look(&self) -> Result<(), Unproved> {
        self.limiter.look(&self.address, self.per_minute, self.now).map_err(Unproved::Guessed)
    }

    fn count(&mut self) -> Result<(), Unproved> {
        if !std::mem::replace(&mut self.counted, true) {
            self.limiter.take(&self.address, self.per_minute, self.now).map_err(Unproved::Guessed)?;
        }
        Ok(())
    }
}

impl Guard {
    /// Lets in who has what `access` wants; does not look at credentials where it wants none, or where it is `known` who asks. Where
    /// the service decides, credentials that are shown must be right, and none need be.
    pub(super) async fn admit(
        &self,
        visit: &mut Visit<'_>,
        access: &Access,
        headers: &HeaderMap,
        known: Option<Proved>,
    ) -> Result<Proved, Problem> {
        let scope = match access {
            Access::Public => return Ok(Proved::default()),
            Access::PerRequest if known.is_none() && !visit.asks.proves() => return Ok(Proved::default()),
            Access::PerRequest => None,
            Access::Scope(scope) => Some(scope),
        };
        let proved = match known {
            Some(proved) => proved,
            None => self.prove(visit, headers).await?,
        };
        if scope.is_none_or(|scope| proved.may(scope)) { Ok(proved) } else { Err(self.forbidden(visit)) }
    }

    /// Somebody asked for what they may not do.
    fn forbidden(&self, visit: &Visit<'_>) -> Problem {
        if let Some(principal) = &visit.principal {
            self.parts.authenticator.wrong_scope(principal);
        }
        Problem::FORBIDDEN
    }

    /// What the service said of who asks, where it decides: as if it had been decided here.
    pub(super) fn decided(&self, visit: &Visit<'_>, status: StatusCode) -> Option<Problem> {
        match status {
            StatusCode::UNAUTHORIZED if visit.principal.is_none() => Some(self.unknown(Failure::Missing)),
            StatusCode::UNAUTHORIZED => Some(Problem::UNAUTHENTICATED),
            StatusCode::FORBIDDEN => Some(self.forbidden(visit)),
            _ => None,
        }
    }

    /// Who sent the request, by what it shows; counts what proves nobody, and what somebody asks.
    pub(super) async fn prove(&self, visit: &mut Visit<'_>, headers: &HeaderMap) -> Result<Proved, Problem> {
        if !visit.asks.proves() {
            return Err(self.unknown(Failure::Missing));
        }
        let shown = Shown::read(headers, visit.asks);
        let per_minute = NonZeroU32::new(self.config.limits.guesses_per_address).unwrap_or(NonZeroU32::MIN);
        let address = address_key(visit.client);
        let mut guess = Guess { limiter: &self.guesses, address, per_minute, now: visit.started, counted: false };
        // Looked at before and counted after: right credentials cost nothing.
        let proved = match (guess.look(), shown) {
            (Ok(()), Ok(shown)) => self.check(shown, &mut guess).await,
            (Ok(()), Err(Malformed)) => Err(Unproved::Denied(Denied::Malformed)),
            // Who guesses must not shut out others behind the same address, so what was proved before is let through.
            (Err(guessed), shown) => shown.ok().and_then(|shown| self.remembered(shown)).ok_or(guessed),
        };
        let proved = match proved {
            Ok(proved) => proved,
            Err(Unproved::Denied(denied)) => {
                if denied != Denied::Unavailable {
                    // Refused here is refused by the next look.
                    let _counted = guess.count();
                }
                return Err(self.unknown(Failure::Denied(denied)));
            }
            Err(Unproved::Guessed(wait)) => {
                let wait = Some(wait.seconds());
                visit.budget = Some(Budget { policy: "guesses", per_minute: per_minute.get(), left: 0, wait });
                return Err(Problem::RATE_GUESSES);
            }
        };
        visit.principal = proved.principal.clone();
        self.count_identity(visit, proved.principal.as_deref())?;
        let user = proved.user.as_deref().filter(|user| proved.principal.as_ref().is_some_and(|principal| principal.id != user.id));
        self.count_identity(visit, user)?;
        Ok(proved)
    }

    async fn check(&self, shown: Shown, guess: &mut Guess<'_>) -> Result<Proved, Unproved> {
        let key = match shown.key {
            Some(key) => Some(self.look_up(key, guess).await?),
            None => None,
        };
        let user = match shown.token {
            Some(token) => Some(self.look_up(token, guess).await?),
            None => None,
        };
        Ok(Proved { principal: key.or_else(|| user.clone()), user })
    }

    /// Who is there, if that is known without looking anything up.
    fn remembered(&self, shown: Shown) -> Option<Proved> {
        let recall = |credential: Option<Credential>| match credential {
            Some(credential) => self.parts.authenticator.recall(&credential)?.ok().map(Some),
            None => Some(None),
        };
        let (key, user) = (recall(shown.key)?, recall(shown.token)?);
        Some(Proved { principal: key.or_else(|| user.clone()), user })
    }

    async fn look_up(&self, credential: Credential, guess: &mut Guess<'_>) -> Result<Arc<Principal>, Unproved> {
        if let Some(known) = self.parts.authenticator.recall(&credential) {
            return known.map_err(Unproved::Denied);
        }
        let mut verified = self.parts.authenticator.verify(credential);
        let at_once = poll_fn(|cx| match verified.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => Poll::Ready(None),
        });
        let answer = match at_once.await {
            Some(answer) => answer,
            // What has to be waited for is hardly ever right, and is counted while it waits: else an address could guess as
            // often as it can have requests in flight.
            None => {
                guess.count()?;
                verified.await
            }
        };
        answer.map_err(Unproved::Denied)
    }

    fn count_identity(&self, visit: &mut Visit<'_>, principal: Option<&Principal>) -> Result<(), Problem> {
        let Some(principal) = principal else { return Ok(()) };
        let limit = match principal.per_minute {
            None if self.config.limits.per_identity == 0 => return Ok(()),
            None => self.config.limits.per_identity,
            Some(own) => own,
        };
        let counted = match NonZeroU32::new(limit) {
            Some(limit) => self.count(&self.identities, &self.identities.name_key(&principal.id), limit, "identity", visit),
            // Nothing a minute is nothing.
            None => {
                visit.budget = Some(Budget { policy: "identity", per_minute: 0, left: 0, wait: Some(60) });
                Err(())
            }
        };
        counted.map_err(|()| Problem::RATE_IDENTITY)
    }

    fn unknown(&self, failure: Failure) -> Problem {
        self.parts.metrics.failed(failure);
        if failure == Failure::Denied(Denied::Unavailable) { Problem::UNCHECKED } else { Problem::UNAUTHENTICATED }
    }
}
