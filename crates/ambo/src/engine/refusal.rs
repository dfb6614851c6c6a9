//! Why the durable calls of a run are refused: it was cancelled, its time is up, or what it did is being undone.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::run::Run;
use crate::error::{Code, Error};

/// Between two looks of one whether the steps that it waits for are still polled.
const CALL: Duration = Duration::from_millis(100);
/// How many polls of the body it takes, at most, until a future that was woken has been polled.
pub(super) const ROUNDS: u64 = 3;

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
    /// All of it is.
    undone: AtomicBool,
    /// Since which poll of the body calls that do not wait are passed over, and how many calls and [answers](Self::answered)
    /// had come by then.
    passed_over: Mutex<Option<(u64, (usize, u64))>>,
    /// Recorded payloads that are being opened: whoever asked for them is still on its way through the record.
    opening: AtomicUsize,
    /// Attempts under way that a cancel does not drop.
    finishing: AtomicUsize,
    /// Asks them to say that somebody still polls them.
    roll_call: Notify,
    /// How many have.
    answered: AtomicU64,
    /// How many calls were told.
    told: AtomicU64,
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

/// While it lives an attempt is under way that a cancel does not drop.
struct Finishing<'r>(&'r Run);

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        if self.0.refusal.finishing.fetch_sub(1, Ordering::AcqRel) == 1 && self.0.refusal().is_some() {
            self.0.nudge();
        }
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

    /// All that it did is undone.
    pub(crate) fn undone(&self) {
        self.refusal.undone.store(true, Ordering::Release);
    }

    pub(crate) fn is_undone(&self) -> bool {
        self.refusal.undone.load(Ordering::Acquire)
    }

    /// Why durable calls are refused; not those that undo.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let refusal = &self.refusal;
        if self.is_undoing() {
            None
        } else if self.is_cancelled() {
            Some(cancelled(None))
        } else if self.has_expired() {
            Some(overdue())
        } else {
            refusal.undone_for.get().map(|why| match why.code() {
                Code::RunTimeout if is_own(why) => overdue(),
                _ => Error::new(Code::Cancelled, "the run has failed, and what it did is being undone"),
            })
        }
    }

    /// Whether a call that does not wait (a start of a child, a value that is published) may act; fails where durable calls are
    /// refused. It cannot be told when the body has [come to rest](Run::refusal_at_rest): in a replay, and beside a step that is
    /// finished, it is passed over until then (`false`), and answers as if it had acted. The next call that waits is told, and
    /// such a body does not succeed.
    pub(crate) fn admits(&self) -> Result<bool, Error> {
        let Some(why) = self.refusal() else { return Ok(true) };
        let refusal = &self.refusal;
        let finishes = self.finishes();
        if self.history.is_replayed() || finishes {
            refusal.roll_call.notify_waiters();
            let (poll, at) =
                (self.polls(), (self.history.passed(), refusal.answered.load(Ordering::Acquire)));
            let mut before = refusal.passed_over.lock().unwrap_or_else(PoisonError::into_inner);
            let since = before.filter(|(_, known)| *known == at).map_or(poll, |(since, _)| since);
            *before = Some((since, at));
            let rounds = if finishes { ROUNDS } else { 1 };
            if poll - since < rounds || refusal.opening.load(Ordering::Acquire) > 0 {
                return Ok(false);
            }
        }
        refusal.told.fetch_add(1, Ordering::AcqRel);
        Err(why)
    }

    /// Whether a call answered as if it had acted.
    pub(crate) fn has_passed_over(&self) -> bool {
        self.refusal.passed_over.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// [`refusal`](Run::refusal), told when the body has come to rest: a branch that hears of it at once could end the body
    /// before the others have come through what they had recorded, or before a step is finished that runs beside it, and what
    /// undoes that would not be registered.
    pub(crate) async fn refusal_at_rest(&self) -> Option<Error> {
        self.refusal()?;
        // It does not leave memory when the last step has ended and nobody has told the others yet: nothing would wake it.
        let _at_work = self.waits.work();
        let round = async || {
            if self.waits_for_steps().await {
                return false;
            }
            tokio::task::yield_now().await;
            true
        };
        while !self.is_still(round()).await {}
        let why = self.refusal();
        self.refusal.told.fetch_add(u64::from(why.is_some()), Ordering::AcqRel);
        why
    }

    /// How many calls were told that they are refused.
    pub(crate) fn told(&self) -> u64 {
        self.refusal.told.load(Ordering::Acquire)
    }

    /// Runs an attempt that is finished though the run is cancelled, unless it is dropped `at_once`: until then no call is told.
    pub(crate) async fn finish<T>(&self, at_once: bool, mut attempt: Pin<&mut impl Future<Output = T>>) -> T {
        if at_once {
            return attempt.await;
        }
        self.refusal.finishing.fetch_add(1, Ordering::AcqRel);
        let _finishing = Finishing(self);
        loop {
            tokio::select! {
                biased;
                ended = &mut attempt => return ended,
                () = self.refusal.roll_call.notified() => {
                    self.refusal.answered.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
    }

    /// Whether an attempt is under way that is finished first.
    fn finishes(&self) -> bool {
        self.refusal.finishing.load(Ordering::Acquire) > 0 && !self.has_expired()
    }

    /// Waits a while for steps that are finished first; `false`: there are none. One that is held and not polled, as by code
    /// that comes back to it after this very call, is not waited for: it would never end.
    async fn waits_for_steps(&self) -> bool {
        if !self.finishes() {
            return false;
        }
        let nudged = self.waits.nudged();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        let before = self.refusal.answered.load(Ordering::Acquire);
        self.refusal.roll_call.notify_waiters();
        for _ in 0..ROUNDS {
            tokio::task::yield_now().await;
        }
        if self.refusal.answered.load(Ordering::Acquire) == before {
            return false;
        }
        if self.finishes() {
            let _ = tokio::time::timeout(CALL, nudged).await;
        }
        true
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
            if !self.is_reading() {
                return;
            }
        }
    }

    /// Whether a call is reading what it had recorded.
    pub(super) fn is_reading(&self) -> bool {
        self.refusal.opening.load(Ordering::Acquire) > 0
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

pub(crate) fn cancelled(reason: Option<&str>) -> Error {
    let text = "the run was cancelled";
    Error::new(Code::Cancelled, reason.map_or_else(|| text.to_owned(), |reason| format!("{text}: {reason}")))
}

/// Whether a cancel or a time limit is that of the run itself: one of its child is not marked as permanent.
pub(crate) fn is_own(why: &Error) -> bool {
    matches!(why.code(), Code::Cancelled | Code::RunTimeout) && why.is_permanent()
}
