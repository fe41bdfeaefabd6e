//! Every actor of the process, for the watchdog: weak references, so being counted keeps nothing alive.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::{vitals::Vitals, watchdog};

/// As many entries as there are slots in the process, plus those that died since the watchdog's last walk.
static CENSUS: Mutex<Vec<Weak<Vitals>>> = Mutex::new(Vec::new());

/// Enters `vitals`, and sees to it that the watchdog runs.
pub(crate) fn enter(vitals: &Arc<Vitals>) {
    CENSUS.lock().push(Arc::downgrade(vitals));
    watchdog::wake();
}

/// Collects the living into `into` and forgets the dead. `into` is the caller's to keep, so that a walk allocates nothing.
pub(crate) fn living(into: &mut Vec<Arc<Vitals>>) {
    CENSUS.lock().retain(|weak| {
        let Some(vitals) = weak.upgrade() else { return false };
        into.push(vitals);
        true
    });
}
