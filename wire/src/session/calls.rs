//! Which answer belongs to which call.

/// Calls that may wait for an answer on one session; the next is refused as overloaded.
pub const MAX_CALLS: usize = 65_536;

/// Calls in flight, by correlation.
///
/// A correlation is an index and the index's generation, so an answer that comes after its caller gave
/// up finds nothing, even when the index has been given to another call since.
#[derive(Debug)]
pub struct Calls<W> {
    slots: Vec<Slot<W>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<W> {
    generation: u32,
    waiter: Option<W>,
}

impl<W> Default for Calls<W> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<W> Calls<W> {
    /// Registers a call; `None` when [`MAX_CALLS`] are in flight.
    pub fn insert(&mut self, waiter: W) -> Option<u64> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.waiter = Some(waiter);
            return Some(correlation(index, slot.generation));
        }
        if self.slots.len() >= MAX_CALLS {
            return None;
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot { generation: 1, waiter: Some(waiter) });
        Some(correlation(index, 1))
    }

    /// Takes the waiter of a call: its answer has come, or it has given up. `None` when it is not in flight.
    pub fn take(&mut self, correlation: u64) -> Option<W> {
        let (index, generation) = (correlation as u32, (correlation >> 32) as u32);
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != generation {
            return None;
        }
        let waiter = slot.waiter.take()?;
        // Zero is skipped, so that no correlation is ever 0, which means a cast.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(index);
        Some(waiter)
    }

    /// Whether a call is in flight.
    pub fn contains(&self, correlation: u64) -> bool {
        let (index, generation) = (correlation as u32, (correlation >> 32) as u32);
        self.slots.get(index as usize).is_some_and(|slot| slot.generation == generation && slot.waiter.is_some())
    }

    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether none is in flight.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes every waiter: the session is over.
    pub fn drain(&mut self) -> impl Iterator<Item = W> + use<W> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.waiter)
    }
}

const fn correlation(index: u32, generation: u32) -> u64 {
    ((generation as u64) << 32) | index as u64
}
