//! Why the durable calls of a run are refused: it was cancelled, its time is up, or what it did is being undone.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::run::Run;
use crate::error::{Code, Error};

/// Between two looks of a refused call while the vault opens what others have recorded.
const LOOK: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refusal {
    /// It was asked to end.
    cancelled: AtomicBool,
    /// By when a cancelled run has ended, undone or not.
    undo_by: Mutex<Option<Timestamp>>,
    /// Its time is up.
    overdue: AtomicBool,
    /// It was when the run was claimed.
    is_late: bool,
    /// Why an earlier claim began to undo what the run did.
    undone_for: OnceLock<Error>,
    /// The body is past and what it did is being undone: what undoes is not refused.
    undoing: AtomicBool,
    /// When a call that does not wait was last passed over: in which poll of the body, and how many calls that had come by.
    passed_over: Mutex<Option<(u64, usize)>>,
    /// Recorded payloads that are being opened: whoever asked for them is still on its way through the record.
    opening: AtomicUsize,
}

impl Refusal {
    pub(crate) fn new(cancelled: bool, is_late: bool) -> Self {
        Refusal { cancelled: AtomicBool::new(cancelled), is_late, ..Refusal::default() }
    }
}

/// While it lives a call reads what it had recorded.
#[derive(Debug)]
pub(crate) struct Reading<'r>(&'r AtomicUsize);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Run {
    /// Somebody asked it to end, perhaps by a time; told more than once, by the earlier.
    pub(crate) fn cancel(&self, by: Option<Timestamp>) {
        let mut undo_by = self.refusal.undo_by.lock().unwrap_or_else(PoisonError::into_inner);
        *undo_by = match (*undo_by, by) {
            (Some(before), Some(by)) => Some(before.min(by)),
            (before, by) => before.or(by),
        };
        drop(undo_by);
        self.refusal.cancelled.store(true, Ordering::Release);
        self.nudge();
    }

    /// Whether it was asked to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.refusal.cancelled.load(Ordering::Acquire)
    }

    fn undo_by(&self) -> Option<Timestamp> {
        *self.refusal.undo_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the grace of its cancel is over.
    pub(crate) fn is_grace_over(&self) -> bool {
        self.undo_by().is_some_and(|by| self.clock.until(by).is_zero())
    }

    /// Returns when the grace of its cancel is over.
    pub(crate) async fn grace_over(&self) {
        loop {
            let nudged = self.waits.nudged();
            tokio::pin!(nudged);
            nudged.as_mut().enable();
            match self.undo_by() {
                None => nudged.await,
                Some(by) => tokio::select! {
                    () = self.clock.sleep_until(by) => return,
                    () = nudged => {}
                },
            }
        }
    }

    /// Its time is up: calls are refused from now on, and attempts under way dropped.
    pub(crate) fn expire(&self) {
        self.refusal.overdue.store(true, Ordering::Release);
        self.nudge();
    }

    /// Whether it was told that its time is up.
    pub(crate) fn has_expired(&self) -> bool {
        self.refusal.overdue.load(Ordering::Acquire)
    }

    /// Whether its time was up when it was claimed.
    pub(crate) fn was_claimed_late(&self) -> bool {
        self.refusal.is_late
    }

    /// An earlier claim of it began to undo what it did, for this reason.
    pub(crate) fn undone_for(&self, why: Error) {
        let _ = self.refusal.undone_for.set(why);
    }

    /// The body is past: from now on what it did is undone, cancelled or not.
    pub(crate) fn begin_undoing(&self) {
        self.refusal.undoing.store(true, Ordering::Release);
    }

    /// Whether its body is past and what it did is being undone.
    pub(crate) fn is_undoing(&self) -> bool {
        self.refusal.undoing.load(Ordering::Acquire)
    }

    /// Why durable calls are refused; not those that undo.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let refusal = &self.refusal;
        if self.is_undoing() {
            None
        } else if self.is_cancelled() {
            Some(cancelled())
        } else if self.has_expired() {
            Some(overdue())
        } else {
            refusal.undone_for.get().map(|why| match why.code() {
                Code::RunTimeout => overdue(),
                _ => Error::new(Code::Cancelled, "the run has failed, and what it did is being undone"),
            })
        }
    }

    /// Whether a call that does not wait (a start of a child, a value that is published) may act; fails where durable calls are
    /// refused. It cannot be told when the body has [come to rest](Run::refusal_at_rest): in a replay it is passed over until
    /// then (`false`), and answers as if it had acted. The next call that waits is told, and such a body does not succeed.
    pub(crate) fn admits(&self) -> Result<bool, Error> {
        let Some(why) = self.refusal() else { return Ok(true) };
        if !self.history.is_replayed() {
            return Err(why);
        }
        let (poll, passed) = (self.polls(), self.history.passed());
        let mut before = self.refusal.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
        let at_rest = before.is_some_and(|(earlier, at)| earlier != poll && at == passed);
        if at_rest && self.refusal.opening.load(Ordering::Acquire) == 0 {
            return Err(why);
        }
        *before = Some((poll, passed));
        Ok(false)
    }

    /// Whether a call answered as if it had acted.
    pub(crate) fn has_passed_over(&self) -> bool {
        self.refusal.passed_over.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// [`refusal`](Run::refusal), told when the body has come to rest: a branch that hears of it at once could end the body
    /// before the others have come through what they had recorded, and what undoes that would not be registered.
    pub(crate) async fn refusal_at_rest(&self) -> Option<Error> {
        self.refusal()?;
        loop {
            let passed = self.history.passed();
            if self.refusal.opening.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            tokio::task::yield_now().await;
            if self.history.passed() == passed && self.refusal.opening.load(Ordering::Acquire) == 0 {
                return self.refusal();
            }
        }
    }

    /// Returns when durable calls are refused, and why.
    pub(crate) async fn refused(&self) -> Error {
        self.refused_where(|| true).await
    }

    /// Returns when an attempt under way is to be dropped, and why: its time is up, or the run is cancelled and its step has
    /// said that this is enough.
    pub(crate) async fn dropped(&self, at_once: bool) -> Error {
        self.refused_where(|| at_once || self.has_expired()).await
    }

    async fn refused_where(&self, counts: impl Fn() -> bool) -> Error {
        loop {
            let nudged = self.waits.nudged();
            tokio::pin!(nudged);
            nudged.as_mut().enable();
            if let Some(why) = self.refusal().filter(|_| counts()) {
                return why;
            }
            nudged.await;
        }
    }

    /// Returns when its body could have come back from where it is, or from what it had recorded.
    pub(crate) async fn comes_back(&self, moment: Duration) {
        loop {
            tokio::time::sleep(moment).await;
            if self.refusal.opening.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }

    /// Says that a call reads what it had recorded.
    pub(crate) fn reading(&self) -> Reading<'_> {
        self.refusal.opening.fetch_add(1, Ordering::AcqRel);
        Reading(&self.refusal.opening)
    }
}

pub(crate) fn overdue() -> Error {
    Error::new(Code::RunTimeout, "the run took longer than its timeout")
}

pub(crate) fn cancelled() -> Error {
    Error::new(Code::Cancelled, "the run was cancelled")
}
