//! What the runs in this worker's memory take of the limits of their queues, and which queues are managed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a run takes of the limits of its queue.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) queue: Arc<str>,
    pub(crate) group: Option<Arc<str>>,
    pub(crate) weight: i32,
    /// The count that it was counted in.
    pub(crate) count: u64,
    /// What becomes of its group when it fails, in a queue that is ordered.
    pub(crate) ordered: Option<Arc<str>>,
}

/// The weight in execution in one queue.
#[derive(Debug, Default)]
struct Use {
    total: i32,
    /// The same, whoever counts it.
    here: i32,
    groups: HashMap<Arc<str>, i32>,
    /// Which count this is: when it becomes doubtful another one begins, from nothing.
    count: u64,
}

/// All of it, of one life of a worker.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    uses: Mutex<HashMap<Arc<str>, Use>>,
    managed: Mutex<Vec<Arc<str>>>,
    /// A claim found runs for which there was no room.
    pub(crate) blocked: AtomicBool,
}

impl Slots {
    fn uses(&self) -> MutexGuard<'_, HashMap<Arc<str>, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The managed queues that the worker serves, as of the last heartbeat.
    pub(crate) fn managed(&self) -> Vec<Arc<str>> {
        self.managed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says which queues are managed; answers whether one has become so.
    pub(crate) fn set_managed(&self, queues: &[String]) -> bool {
        let mut managed = self.managed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = queues.iter().any(|queue| !managed.iter().any(|known| **known == **queue));
        if is_new || queues.len() != managed.len() {
            *managed = queues.iter().map(|queue| queue.as_str().into()).collect();
        }
        is_new
    }

    /// The weight in execution in a queue that is counted here, the number of this count, and all that is in execution.
    pub(crate) fn total(&self, queue: &Arc<str>) -> (i32, u64, i32) {
        let mut uses = self.uses();
        let used = uses.entry(queue.clone()).or_default();
        (used.total, used.count, used.here)
    }

    /// The weight in execution of groups of a queue, in their order.
    pub(crate) fn of_groups<'a>(
        &self,
        queue: &str,
        groups: impl Iterator<Item = Option<&'a str>>,
    ) -> Vec<i32> {
        let uses = self.uses();
        let used = uses.get(queue);
        groups
            .map(|group| {
                used.zip(group).and_then(|(used, group)| used.groups.get(group).copied()).unwrap_or(0)
            })
            .collect()
    }

    /// Counts a run that was claimed; here only if it belongs to this count: the database tells of all before it.
    pub(crate) fn take(&self, slot: &Slot) {
        let mut uses = self.uses();
        let used = uses.entry(slot.queue.clone()).or_default();
        used.here += slot.weight;
        if used.count != slot.count {
            return;
        }
        used.total += slot.weight;
        if let Some(group) = &slot.group {
            *used.groups.entry(group.clone()).or_default() += slot.weight;
        }
    }

    /// A run does not execute here any more, and the database knows it. Says whether somebody waits for that.
    pub(crate) fn free(&self, slot: &Slot) -> bool {
        let mut uses = self.uses();
        if let Some(used) = uses.get_mut(&slot.queue) {
            used.here -= slot.weight;
        }
        if let Some(used) = uses.get_mut(&slot.queue)
            && used.count == slot.count
        {
            used.total -= slot.weight;
            if let Some(group) = &slot.group
                && let Some(weight) = used.groups.get_mut(group)
            {
                *weight -= slot.weight;
                if *weight <= 0 {
                    used.groups.remove(group);
                }
            }
        }
        self.blocked.load(Ordering::Acquire)
    }

    /// What this worker's runs take is doubtful: from now on the database tells.
    pub(crate) fn recount(&self, queue: &str) {
        if let Some(used) = self.uses().get_mut(queue) {
            *used = Use { count: used.count + 1, here: used.here, ..Use::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(slots: &Slots, group: &str, weight: i32) -> Slot {
        let queue: Arc<str> = "q".into();
        let count = slots.total(&queue).1;
        let slot = Slot { queue, group: Some(group.into()), weight, count, ordered: None };
        slots.take(&slot);
        slot
    }

    #[test]
    fn what_is_taken_is_counted_until_it_is_freed() {
        let slots = Slots::default();
        let (one, two) = (slot(&slots, "a", 2), slot(&slots, "b", 1));
        assert_eq!(slots.total(&"q".into()).0, 3);
        assert_eq!(slots.of_groups("q", [Some("a"), None, Some("c")].into_iter()), [2, 0, 0]);
        slots.free(&one);
        slots.free(&two);
        assert_eq!(slots.total(&"q".into()).0, 0);
    }

    #[test]
    fn what_was_claimed_before_a_recount_is_not_counted_after_it() {
        let slots = Slots::default();
        let queue: Arc<str> = "q".into();
        slots.total(&queue);
        slots.recount("q");
        let late = Slot { queue: queue.clone(), group: None, weight: 2, count: 0, ordered: None };
        slots.take(&late);
        assert_eq!(slots.total(&queue), (0, 1, 2));
        slots.free(&late);
        assert_eq!(slots.total(&queue), (0, 1, 0));
    }

    #[test]
    fn what_was_counted_before_a_recount_is_not_freed_after_it() {
        let slots = Slots::default();
        let before = slot(&slots, "a", 2);
        slots.recount("q");
        assert_eq!(slots.total(&"q".into()), (0, 1, 2), "what runs here is known all the same");
        let after = slot(&slots, "a", 1);
        slots.free(&before);
        assert_eq!(slots.total(&"q".into()), (1, 1, 1));
        slots.free(&after);
        assert_eq!(slots.total(&"q".into()), (0, 1, 0));
    }
}
