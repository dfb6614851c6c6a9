//! What a run waits for, and when it may leave memory while it does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::clock::DatabaseClock;
use crate::id::RunId;

/// How long a run waits in memory before it is parked, unless its worker says otherwise: a park and the claim after it
/// cost the database about as much as a step each.
pub(crate) const MOMENT: Duration = Duration::from_secs(1);

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// A time: nothing will end the wait sooner, so that there is little reason to stay.
    Time,
    /// Something from outside, that may be there at once.
    News,
}

/// What a call waits for, for whoever asks why a run is parked.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Awaited {
    pub(crate) position: Arc<str>,
    #[serde(rename = "for")]
    pub(crate) what: String,
    /// The run that it waits for.
    pub(crate) run: Option<RunId>,
}

/// So many are told of what a run waits for.
const AWAITED_MAX: usize = 10;

/// A run leaves memory: until then at most, and what it waits for, as JSON.
#[derive(Debug)]
pub(crate) struct Leave {
    pub(crate) due: Option<Timestamp>,
    pub(crate) awaits: Option<String>,
}

/// What the durable calls of one run are doing: at work, or waiting for something from outside.
#[derive(Debug)]
pub(crate) struct Waits {
    moment: Duration,
    state: Mutex<State>,
    changed: Notify,
    /// Something has come for the run: whoever waits looks again.
    nudged: Notify,
}

#[derive(Debug, Default)]
struct State {
    at_work: usize,
    /// Steps between two attempts, and looks at whether what a call waits for is there: neither leaves memory, and neither is
    /// anything that could kill a worker.
    pausing: usize,
    looking: usize,
    /// Since when nothing has been at work while something waits or pauses.
    rests_since: Option<Instant>,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    awaited: Awaited,
    /// From when on the run may leave memory for it.
    patient_until: Instant,
    /// When it ends by itself, in the database's time.
    due: Option<Timestamp>,
}

impl State {
    /// After every change of what is counted.
    fn count(&mut self) {
        if self.at_work == 0 && (self.pausing > 0 || !self.waiting.is_empty()) {
            self.rests_since.get_or_insert_with(Instant::now);
        } else {
            self.rests_since = None;
        }
    }
}

impl Waits {
    /// `moment`: how long the run waits in memory; a wait that is known to end sooner is not worth a park.
    pub(crate) fn new(moment: Duration) -> Self {
        Waits { moment, state: Mutex::default(), changed: Notify::new(), nudged: Notify::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While the guard lives a call of the run is at work, and the run stays in memory.
    pub(crate) fn work(self: &Arc<Self>) -> Work {
        let mut state = self.state();
        state.at_work += 1;
        state.count();
        drop(state);
        Work(self.clone())
    }

    /// While the guard lives a call that waits looks whether it need not any more: the run stays in memory, and waits.
    pub(crate) fn look(self: &Arc<Self>) -> Look {
        self.state().looking += 1;
        Look(self.clone())
    }

    /// For how long the run has done nothing but wait, in memory.
    pub(crate) fn rests_for(&self) -> Option<Duration> {
        self.state().rests_since.map(|since| since.elapsed())
    }

    /// While the guard lives a call waits, until `due` at most.
    pub(crate) fn wait(self: &Arc<Self>, what: For, due: Option<Timestamp>, awaited: Awaited) -> Wait {
        let patience = if what == For::Time { self.moment / 50 } else { self.moment };
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, Waiting { patient_until: Instant::now() + patience, due, awaited });
        state.count();
        drop(state);
        self.changed.notify_one();
        Wait { waits: self.clone(), number }
    }

    /// Something has come for the run.
    pub(crate) fn nudge(&self) {
        self.nudged.notify_waiters();
    }

    /// Returns at the next nudge after the first poll of the future.
    pub(crate) fn nudged(&self) -> tokio::sync::futures::Notified<'_> {
        self.nudged.notified()
    }

    /// Returns when the run does nothing but wait, has done so for a moment, and will for longer.
    pub(crate) async fn long(&self, clock: &DatabaseClock) -> Leave {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.verdict(clock) {
                Verdict::Stay => changed.await,
                Verdict::After(moment) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(moment) => {}
                    }
                }
                Verdict::Leave(leave) => return leave,
            }
        }
    }

    /// Something is done with. Where no call waits the run stays in any case, and to say so would cost it another poll, after
    /// every step.
    fn tell(&self, mut state: std::sync::MutexGuard<'_, State>) {
        state.count();
        let is_waiting = !state.waiting.is_empty();
        drop(state);
        if is_waiting {
            self.changed.notify_one();
        }
    }

    fn verdict(&self, clock: &DatabaseClock) -> Verdict {
        let state = self.state();
        let Some(patient_until) = state.waiting.values().map(|waiting| waiting.patient_until).max() else {
            return Verdict::Stay;
        };
        let due = state.waiting.values().filter_map(|waiting| waiting.due).min();
        if state.at_work + state.looking + state.pausing > 0
            || due.is_some_and(|due| clock.until(due) < self.moment)
        {
            return Verdict::Stay;
        }
        if patient_until > Instant::now() {
            return Verdict::After(patient_until);
        }
        let awaited: Vec<&Awaited> =
            state.waiting.values().map(|waiting| &waiting.awaited).take(AWAITED_MAX).collect();
        Verdict::Leave(Leave { due, awaits: serde_json::to_string(&awaited).ok() })
    }
}

enum Verdict {
    Stay,
    After(Instant),
    Leave(Leave),
}

/// A call at work.
#[derive(Debug)]
pub(crate) struct Work(Arc<Waits>);

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.at_work -= 1;
        self.0.tell(state);
    }
}

impl Work {
    /// While the guard lives the call does nothing, as between two attempts. It stays in memory, where it counts them.
    pub(crate) fn pause(&self) -> Pause<'_> {
        let mut state = self.0.state();
        state.at_work -= 1;
        state.pausing += 1;
        state.count();
        Pause(self)
    }
}

/// A call at work that does nothing for a while.
#[derive(Debug)]
pub(crate) struct Pause<'w>(&'w Work);

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut state = self.0.0.state();
        state.pausing -= 1;
        state.at_work += 1;
        state.count();
    }
}

/// A call that waits, and looks.
#[derive(Debug)]
pub(crate) struct Look(Arc<Waits>);

impl Drop for Look {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.looking -= 1;
        self.0.tell(state);
    }
}

/// A call that waits.
#[derive(Debug)]
pub(crate) struct Wait {
    waits: Arc<Waits>,
    number: u64,
}

impl Wait {
    /// The same wait, to another time: how long it has been patient stays.
    pub(crate) fn put_off(&self, due: Timestamp) {
        if let Some(waiting) = self.waits.state().waiting.get_mut(&self.number) {
            waiting.due = Some(due);
        }
        self.waits.changed.notify_one();
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut state = self.waits.state();
        state.waiting.remove(&self.number);
        state.count();
        drop(state);
        self.waits.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::{DatabaseClock, For, MOMENT, Waits};

    /// Counts how often the task that waits would be polled again.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn the_end_of_a_call_wakes_the_run_only_where_another_call_waits() {
        let (waits, clock, wakes) =
            (Arc::new(Waits::new(MOMENT)), DatabaseClock::new(), Arc::new(Wakes::default()));
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut long = pin!(waits.long(&clock));
        assert!(long.as_mut().poll(&mut cx).is_pending());
        for _ in 0..10 {
            drop(waits.work());
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "woken by steps beside which nothing waits");

        let awaited = super::Awaited { position: "1".into(), what: "the signal".into(), run: None };
        let (work, wait) = (waits.work(), waits.wait(For::News, None, awaited));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "not told of the call that waits");
        assert!(long.as_mut().poll(&mut cx).is_pending());
        drop(work);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2, "not told that only the wait is left");
        drop(wait);
    }
}
