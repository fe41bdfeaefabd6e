//! How the owner is doing, as far as this node can tell.

use std::fmt;

use http::StatusCode;
use jiff::Timestamp;
use tokio::sync::watch;

/// How the owner is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody has asked it yet.
    Unknown,
    /// It says that it is ready.
    Ready {
        /// When it first said so.
        since: Timestamp,
    },
    /// It is not: requests are passed on all the same, as far as it takes them.
    Away {
        /// When that was first noticed.
        since: Timestamp,
        /// Why, as of the last look.
        why: Why,
    },
}

/// Why the owner is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No connection.
    Unreachable,
    /// Whoever is there is not the owner.
    Stranger,
    /// It was asked and did not answer, or not in time.
    Silent,
    /// It answered something else than 200: 503 while it starts or stops, 404 or 401 where it is something else altogether.
    Status(StatusCode),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("cannot be reached"),
            Self::Stranger => f.write_str("did not prove who it is"),
            Self::Silent => f.write_str("does not answer"),
            Self::Status(status) => write!(f, "is not ready (status {})", status.as_u16()),
        }
    }
}

impl Owner {
    /// Whether it says that it is ready.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }

    /// What it is after a look. Since when does not change while the answer is the same.
    fn seen(self, look: Result<(), Why>, now: Timestamp) -> Self {
        match (self, look) {
            (Self::Ready { since }, Ok(())) => Self::Ready { since },
            (_, Ok(())) => Self::Ready { since: now },
            (Self::Away { since, .. }, Err(why)) => Self::Away { since, why },
            (_, Err(why)) => Self::Away { since: now, why },
        }
    }
}

/// Takes in what a look at the owner showed, and tells whoever watches if it changed.
pub(super) fn look(owner: &watch::Sender<Owner>, look: Result<(), Why>) {
    owner.send_if_modified(|owner| {
        let seen = owner.seen(look, Timestamp::now());
        std::mem::replace(owner, seen) != seen
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_is_when_it_changed_and_not_when_it_was_last_seen() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let owner = Owner::Unknown.seen(Err(Why::Unreachable), at(1));
        assert_eq!(owner, Owner::Away { since: at(1), why: Why::Unreachable });
        let owner = owner.seen(Err(Why::Status(StatusCode::NOT_FOUND)), at(2));
        assert_eq!(owner, Owner::Away { since: at(1), why: Why::Status(StatusCode::NOT_FOUND) });
        let owner = owner.seen(Ok(()), at(3)).seen(Ok(()), at(4));
        assert_eq!(owner, Owner::Ready { since: at(3) });
        assert!(owner.is_ready());
    }

    #[test]
    fn whoever_watches_hears_of_changes_only() {
        let (sender, mut receiver) = watch::channel(Owner::Unknown);
        look(&sender, Ok(()));
        assert!(receiver.has_changed().unwrap() && receiver.borrow_and_update().is_ready());
        look(&sender, Ok(()));
        assert!(!receiver.has_changed().unwrap());
    }
}
