//! Claims and starts under way: what they have claimed may be in the database before it is in memory.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Those of one life, by number.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<Numbers>);

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

/// Lives from before a claim is asked for until what it brought is in memory, or its answer is lost.
#[derive(Debug)]
pub(crate) struct Claiming<'a>(&'a UnderWay, u64);

impl UnderWay {
    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self) -> Claiming<'_> {
        let mut numbers = self.numbers();
        numbers.last += 1;
        let number = numbers.last;
        numbers.open.insert(number);
        Claiming(self, number)
    }

    /// The last one that has begun.
    pub(crate) fn last(&self) -> u64 {
        self.numbers().last
    }

    /// Whether all up to this one are done with.
    pub(crate) fn are_past(&self, number: u64) -> bool {
        self.numbers().open.first().is_none_or(|first| *first > number)
    }
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.0.numbers().open.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_before_a_look_is_waited_for_and_what_began_after_it_is_not() {
        let under_way = UnderWay::default();
        assert!(under_way.are_past(under_way.last()));
        let slow = under_way.begin();
        drop(under_way.begin());
        let look = under_way.last();
        let later = under_way.begin();
        assert!(!under_way.are_past(look));
        drop(slow);
        assert!(under_way.are_past(look));
        assert!(!under_way.are_past(under_way.last()));
        drop(later);
        assert!(under_way.are_past(under_way.last()));
    }
}
