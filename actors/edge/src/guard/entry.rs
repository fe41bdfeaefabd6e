//! Who may come in: credentials, what they prove, how often they may ask, and the scope that a service wants.

use std::{num::NonZeroU32, sync::Arc};

use horos_wire::principal::{Denied, Principal, Scope};
use http::HeaderMap;

use super::{
    Guard,
    credentials::{Malformed, Shown},
    visit::{Budget, Visit},
};
use crate::{Access, Credential, metrics::Failure, problem::Problem, rate::address_key};

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

impl Guard {
    /// Lets in who has what `access` wants; does not look at credentials where it wants none, or where it is `known` who asks.
    pub(super) async fn admit(
        &self,
        visit: &mut Visit,
        access: &Access,
        headers: &HeaderMap,
        known: Option<Proved>,
    ) -> Result<Proved, Problem> {
        let Access::Scope(scope) = access else { return Ok(Proved::default()) };
        let proved = match known {
            Some(proved) => proved,
            None => self.prove(visit, headers).await?,
        };
        if proved.may(scope) {
            return Ok(proved);
        }
        if let Some(principal) = &proved.principal {
            self.parts.authenticator.wrong_scope(principal);
        }
        Err(Problem::FORBIDDEN)
    }

    /// Who sent the request, by what it shows; counts what proves nobody, and what somebody asks.
    pub(super) async fn prove(&self, visit: &mut Visit, headers: &HeaderMap) -> Result<Proved, Problem> {
        if !visit.asks.proves {
            return Err(self.unknown(Failure::Missing));
        }
        let shown = Shown::read(headers);
        let guesses = NonZeroU32::new(self.config.limits.guesses_per_address).unwrap_or(NonZeroU32::MIN);
        let address = address_key(visit.client);
        // Looked at before and counted after: right credentials cost nothing. What is being looked up at this moment is not
        // counted yet, so an address gets as many more as it can have in flight.
        let proved = match (self.guesses.look(&address, guesses, visit.started), shown) {
            (Ok(()), Ok(shown)) => self.check(shown).await,
            (Ok(()), Err(Malformed)) => Err(Denied::Malformed),
            // Who guesses must not shut out others behind the same address, so what was proved before is let through.
            (Err(wait), shown) => match shown.ok().and_then(|shown| self.remembered(shown)) {
                Some(proved) => Ok(proved),
                None => {
                    let wait = Some(wait.seconds());
                    visit.budget = Some(Budget { policy: "guesses", per_minute: guesses.get(), left: 0, wait });
                    return Err(Problem::RATE_GUESSES);
                }
            },
        };
        let proved = proved.map_err(|denied| {
            if denied != Denied::Unavailable {
                // Refused here is refused by the next look.
                let _counted = self.guesses.take(&address, guesses, visit.started);
            }
            self.unknown(Failure::Denied(denied))
        })?;
        visit.principal = proved.principal.clone();
        self.count_identity(visit, proved.principal.as_deref())?;
        let user = proved.user.as_deref().filter(|user| proved.principal.as_ref().is_some_and(|principal| principal.id != user.id));
        self.count_identity(visit, user)?;
        Ok(proved)
    }

    async fn check(&self, shown: Shown) -> Result<Proved, Denied> {
        let key = match shown.key {
            Some(key) => Some(self.look_up(key).await?),
            None => None,
        };
        let user = match shown.token {
            Some(token) => Some(self.look_up(token).await?),
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

    async fn look_up(&self, credential: Credential) -> Result<Arc<Principal>, Denied> {
        match self.parts.authenticator.recall(&credential) {
            Some(known) => known,
            None => self.parts.authenticator.verify(credential).await,
        }
    }

    fn count_identity(&self, visit: &mut Visit, principal: Option<&Principal>) -> Result<(), Problem> {
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
