//! The requests of a session that are in hand: who is to be answered where.
//!
//! rmcp is given numbers of ours in place of the client's ids. So no answer goes to another request than its own, whatever ids a client
//! uses twice, and whatever still runs that it has cancelled.

use std::{collections::HashMap, sync::Arc};

use rmcp::model::{ProgressToken, RequestId};
use tokio::sync::{Notify, mpsc};

use super::{bounds::Held, outbox::Out};

/// Where an answer goes.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// To the first stream.
    First,
    /// To the request's own.
    Own(mpsc::Sender<Out>),
}

/// Held by a request until its handler has ended and its answer is written, cancelled or not.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) _held: [Held; 3],
    /// Last: it is told when the others are free.
    pub(super) _settled: Settled,
}

/// Tells when it goes.
#[derive(Debug)]
pub(super) struct Settled(pub(super) Arc<Notify>);

impl Drop for Settled {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct Entry {
    /// As the client wrote it.
    pub(super) id: Box<str>,
    pub(super) way: Way,
    token: Option<ProgressToken>,
    /// Whether it lasts until it is cancelled: a subscription.
    lasting: bool,
    pub(super) place: Arc<Place>,
}

/// The requests in hand, by number. Bounded by the places.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<i64, Entry>,
    ids: HashMap<Box<str>, i64>,
    tokens: HashMap<ProgressToken, i64>,
    last: i64,
}

impl Table {
    pub(super) fn has(&self, id: &str) -> bool {
        self.ids.contains_key(id)
    }

    /// Enters a request; nothing if its id is in use.
    pub(super) fn enter(&mut self, id: &str, way: Way, token: Option<ProgressToken>, lasting: bool, place: Arc<Place>) -> Option<i64> {
        if self.has(id) {
            return None;
        }
        self.last += 1;
        let number = self.last;
        self.ids.insert(id.into(), number);
        if let Some(token) = &token {
            self.tokens.insert(token.clone(), number);
        }
        self.entries.insert(number, Entry { id: id.into(), way, token, lasting, place });
        Some(number)
    }

    /// Takes out what is answered or cancelled.
    pub(super) fn leave(&mut self, number: i64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.ids.remove(&entry.id);
        if let Some(token) = &entry.token
            && self.tokens.get(token) == Some(&number)
        {
            self.tokens.remove(token);
        }
        Some(entry)
    }

    /// The request that the client calls so.
    pub(super) fn number(&self, id: &str) -> Option<i64> {
        self.ids.get(id).copied()
    }

    pub(super) fn get(&self, id: &RequestId) -> Option<&Entry> {
        self.entries.get(&number(id)?)
    }

    /// The request whose progress `token` tells.
    pub(super) fn by_token(&self, token: &ProgressToken) -> Option<&Entry> {
        self.entries.get(self.tokens.get(token)?)
    }

    /// Those that end only when they are cancelled.
    pub(super) fn lasting(&self) -> Vec<i64> {
        self.entries.iter().filter(|(_, entry)| entry.lasting).map(|(number, _)| *number).collect()
    }
}

/// The number that rmcp was given as an id.
pub(super) fn number(id: &RequestId) -> Option<i64> {
    match id {
        RequestId::Number(number) => Some(*number),
        RequestId::String(_) => None,
    }
}
