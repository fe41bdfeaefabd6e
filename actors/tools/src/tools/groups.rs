//! Tools of two groups are not for one session: whoever has used one of a group gets no other group's until the session is over.
//!
//! `default` goes with all and changes nothing, so it is no way from one group to another. Where a request has no session, its caller's
//! id stands for one, since what came before it cannot be told from what comes after. A session counts as over some time after its last
//! call; until then it is remembered, and when there is no more room to remember, no group's tool is called: better none than a mix.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Caller;

/// The group that goes with all.
pub(crate) const DEFAULT: &str = "default";
/// A session that called no tool of its group for so long is over: twice what idle sessions live on any transport.
const OVER: Duration = Duration::from_secs(30 * 60);
/// Sessions with a group that are remembered: some 10 MiB.
const SESSIONS: usize = 65_536;
/// Of one caller, so that one alone does not take the room of all.
const SESSIONS_OF_ONE: usize = 256;

#[derive(Default)]
pub(super) struct Groups(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// By caller, then by session; the empty session is the caller without one.
    callers: HashMap<Box<str>, HashMap<Box<str>, Held>>,
    sessions: usize,
    /// When what is over was last looked for in all of it.
    swept: Option<Instant>,
}

struct Held {
    group: Box<str>,
    last: Instant,
}

/// Why a tool is not for this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Apart {
    /// The session has another group.
    Other,
    /// No more sessions can be told apart now.
    Full,
}

impl Groups {
    /// Has `caller`'s session be of `group`, if it may.
    pub(super) fn enter(&self, caller: &Caller, group: &str) -> Result<(), Apart> {
        if group == DEFAULT {
            return Ok(());
        }
        let now = Instant::now();
        let (id, session) = (caller.id(), caller.session.as_deref().unwrap_or_default());
        let table = &mut *self.0.lock();
        if let Some(held) = table.callers.get_mut(&*id).and_then(|sessions| sessions.get_mut(session)) {
            if *held.group == *group || held.is_over(now) {
                *held = Held { group: group.into(), last: now };
                return Ok(());
            }
            return Err(Apart::Other);
        }
        if table.sessions >= SESSIONS {
            table.sweep(now);
        }
        let full = table.sessions >= SESSIONS;
        let sessions = table.callers.entry(id.into()).or_default();
        if sessions.len() >= SESSIONS_OF_ONE {
            let before = sessions.len();
            sessions.retain(|_, held| !held.is_over(now));
            table.sessions -= before - sessions.len();
        }
        if full || sessions.len() >= SESSIONS_OF_ONE {
            return Err(Apart::Full);
        }
        sessions.insert(session.into(), Held { group: group.into(), last: now });
        table.sessions += 1;
        Ok(())
    }
}

impl Held {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= OVER
    }
}

impl Table {
    /// Forgets all that is over; at most once a minute, as it looks at everything.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.duration_since(swept) < Duration::from_secs(60)) {
            return;
        }
        self.swept = Some(now);
        self.callers.retain(|_, sessions| {
            sessions.retain(|_, held| !held.is_over(now));
            !sessions.is_empty()
        });
        self.sessions = self.callers.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::tests::caller;

    fn session(id: &str, session: Option<&str>) -> Caller {
        Caller { session: session.map(Into::into), ..caller(id) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_stays_with_the_first_group_that_it_used() {
        let groups = Groups::default();
        let one = session("ana", Some("s1"));
        assert_eq!(groups.enter(&one, DEFAULT), Ok(()));
        assert_eq!(groups.enter(&one, "payroll"), Ok(()));
        // What goes with all is no bridge.
        assert_eq!(groups.enter(&one, DEFAULT), Ok(()));
        assert_eq!(groups.enter(&one, "web"), Err(Apart::Other));
        assert_eq!(groups.enter(&session("ana", Some("s2")), "web"), Ok(()));
        // A session's name is its caller's own.
        assert_eq!(groups.enter(&session("bea", Some("s1")), "web"), Ok(()));
        tokio::time::advance(OVER - Duration::from_secs(1)).await;
        assert_eq!(groups.enter(&one, "web"), Err(Apart::Other));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(groups.enter(&one, "web"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_without_a_session_are_their_callers_one() {
        let groups = Groups::default();
        assert_eq!(groups.enter(&session("ana", None), "payroll"), Ok(()));
        assert_eq!(groups.enter(&session("ana", None), "web"), Err(Apart::Other));
        assert_eq!(groups.enter(&session("bea", None), "web"), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_past_those_that_can_be_told_apart_get_no_group() {
        let groups = Groups::default();
        for at in 0..SESSIONS_OF_ONE {
            assert_eq!(groups.enter(&session("ana", Some(&at.to_string())), "payroll"), Ok(()));
        }
        assert_eq!(groups.enter(&session("ana", Some("more")), "payroll"), Err(Apart::Full));
        assert_eq!(groups.enter(&session("ana", Some("more")), DEFAULT), Ok(()));
        assert_eq!(groups.enter(&session("ana", Some("0")), "web"), Err(Apart::Other), "none was forgotten for room");
        assert_eq!(groups.enter(&session("bea", Some("0")), "web"), Ok(()));
        tokio::time::advance(OVER).await;
        assert_eq!(groups.enter(&session("ana", Some("more")), "payroll"), Ok(()));
        assert_eq!(groups.0.lock().sessions, 2);
    }
}
