//! When to look at all claims, for those that this worker does not know: at once where an answer was lost, else now and then, and
//! never for more than a share of the time, since behind an old snapshot a look walks over all that is dead.

use std::time::Duration;

use tokio::time::Instant;

/// A piece that took a millisecond is followed by a pause of so many, where nothing is suspected.
const PAUSE: u32 = 50;

/// The looks of one life; each goes by pieces of the table, one with a heartbeat.
#[derive(Debug)]
pub(crate) struct Look {
    /// Between the beginnings of two looks, when nothing is suspected.
    patience: Duration,
    began: Instant,
    /// The piece that comes next, of a look that is under way.
    next: Option<i64>,
    is_urgent: bool,
    /// Before then the next piece is not looked at.
    due: Instant,
}

impl Look {
    pub(crate) fn new(now: Instant, patience: Duration) -> Self {
        Look { patience, began: now, next: None, is_urgent: false, due: now }
    }

    /// The piece to look at now, if any. `suspects` is asked where a suspicion would begin a look, and then forgets it: what is
    /// suspected in the midst of an urgent look is answered by the one after it.
    pub(crate) fn piece(&mut self, now: Instant, suspects: impl FnOnce() -> bool) -> Option<i64> {
        if !(self.is_urgent && self.next.is_some()) && suspects() {
            self.begin(now, true);
        } else if self.next.is_none() && now - self.began > self.patience {
            self.begin(now, false);
        }
        self.next.filter(|_| now >= self.due)
    }

    fn begin(&mut self, now: Instant, is_urgent: bool) {
        *self = Look { patience: self.patience, began: now, next: Some(0), is_urgent, due: now };
    }

    /// A piece was looked at from `began` on; `next` comes after it.
    pub(crate) fn looked(&mut self, began: Instant, now: Instant, next: Option<i64>) {
        self.next = next;
        self.due = if self.is_urgent { now } else { now + PAUSE * (now - began) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_look_takes_a_share_of_the_time_unless_something_is_suspected() {
        let start = Instant::now();
        let mut look = Look::new(start, MINUTE);
        assert_eq!(look.piece(start + MINUTE, || false), None);
        let mut now = start + MINUTE + MS;
        assert_eq!(look.piece(now, || false), Some(0));
        look.looked(now, now + 100 * MS, Some(4096));
        now += 100 * MS;
        assert_eq!(look.piece(now + 4999 * MS, || false), None);
        assert_eq!(look.piece(now + 5000 * MS, || false), Some(4096));
        // An answer is lost: from the beginning, without pauses.
        assert_eq!(look.piece(now + MS, || true), Some(0));
        look.looked(now, now + 100 * MS, Some(4096));
        now += 100 * MS;
        assert_eq!(look.piece(now, || unreachable!("it is kept for the look after this one")), Some(4096));
        look.looked(now, now + 100 * MS, None);
        now += 100 * MS;
        assert_eq!(look.piece(now, || true), Some(0), "what was suspected meanwhile");
        look.looked(now, now, None);
        assert_eq!(look.piece(now + MINUTE, || false), None);
        assert_eq!(look.piece(now + MINUTE + MS, || false), Some(0));
    }
}
