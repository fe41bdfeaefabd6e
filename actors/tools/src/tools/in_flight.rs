//! Calls in hand: how many there may be, in all and by one caller.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Counts them. No larger than what is in hand: a caller without a call has no entry.
pub(super) struct InFlight {
    most: usize,
    most_of_one: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    all: usize,
    callers: HashMap<Arc<str>, usize>,
}

/// A call in hand, until it is dropped.
pub(super) struct Place<'a> {
    counts: &'a InFlight,
    caller: Arc<str>,
}

impl InFlight {
    pub(super) fn new(most: usize, most_of_one: usize) -> Self {
        Self { most, most_of_one, table: Mutex::default() }
    }

    /// One more by `caller`, if there is room.
    pub(super) fn take(&self, caller: &str) -> Option<Place<'_>> {
        let table = &mut *self.table.lock();
        if table.all >= self.most {
            return None;
        }
        let caller = match table.callers.get_key_value(caller) {
            Some((_, count)) if *count >= self.most_of_one => return None,
            Some((known, _)) => known.clone(),
            None => caller.into(),
        };
        *table.callers.entry(caller.clone()).or_default() += 1;
        table.all += 1;
        Some(Place { counts: self, caller })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let table = &mut *self.counts.table.lock();
        table.all -= 1;
        if let Some(count) = table.callers.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                table.callers.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_does_not_take_the_room_of_all_and_what_ends_makes_room() {
        let counts = InFlight::new(3, 2);
        let (one, two) = (counts.take("ana").unwrap(), counts.take("ana").unwrap());
        assert!(counts.take("ana").is_none());
        let three = counts.take("bea").unwrap();
        assert!(counts.take("cleo").is_none());
        drop(one);
        drop(two);
        assert_eq!(counts.table.lock().callers.len(), 1);
        let _four = counts.take("ana").unwrap();
        drop(three);
        assert_eq!(counts.table.lock().all, 1);
    }
}
