//! Randomness, the monotonic clock of the process, and the database's clock as the process knows it. Only the last
//! one decides anything.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;
use uuid::Uuid;

/// A number in `[0, 1)`, to keep processes that started together from polling together.
pub(crate) fn jitter() -> f64 {
    static STATE: OnceLock<RandomState> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = STATE.get_or_init(RandomState::new).build_hasher();
    hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
    (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64
}

/// The database's clock, carried on by the monotonic one between two heartbeats: the wall clock of this machine may be
/// wrong, and is never asked.
#[derive(Debug)]
pub(crate) struct DatabaseClock {
    began: Instant,
    /// The database's time when the process began, in microseconds since 1970.
    began_us: AtomicI64,
    /// It has jumped: whoever sleeps by it looks again.
    jumped: Notify,
}

/// What is no drift.
const JUMP_US: i64 = 100_000;
/// No timer of this process runs for longer: the database's clock is looked at again.
const LOOK: Duration = Duration::from_secs(60);

impl DatabaseClock {
    pub(crate) fn new() -> Self {
        DatabaseClock { began: Instant::now(), began_us: AtomicI64::new(0), jumped: Notify::new() }
    }

    /// The database has just said its time, in microseconds since 1970.
    pub(crate) fn set(&self, now_us: i64) {
        let began_us = now_us - self.elapsed_us();
        let before = self.began_us.swap(began_us, Ordering::AcqRel);
        if (began_us - before).abs() > JUMP_US {
            self.jumped.notify_waiters();
        }
    }

    fn elapsed_us(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    pub(crate) fn now(&self) -> Timestamp {
        let now = self.began_us.load(Ordering::Acquire).saturating_add(self.elapsed_us());
        Timestamp::from_microsecond(now).unwrap_or(Timestamp::MAX)
    }

    /// How long it is until then; zero if it has passed.
    pub(crate) fn until(&self, then: Timestamp) -> Duration {
        let left = then.as_microsecond().saturating_sub(self.now().as_microsecond());
        Duration::from_micros(u64::try_from(left).unwrap_or(0))
    }

    /// Sleeps until a time of the database's clock, wherever that jumps meanwhile.
    pub(crate) async fn sleep_until(&self, then: Timestamp) {
        loop {
            let jumped = self.jumped.notified();
            tokio::pin!(jumped);
            jumped.as_mut().enable();
            let left = self.until(then);
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => {}
                () = jumped => {}
            }
        }
    }

    /// Sleeps for so long, by the database's clock.
    pub(crate) async fn sleep(&self, span: Duration) {
        let span = jiff::SignedDuration::try_from(span).unwrap_or(jiff::SignedDuration::MAX);
        self.sleep_until(self.now().saturating_add(span).unwrap_or(Timestamp::MAX)).await;
    }

    /// A run id of now, as the database makes them: it falls into a partition that there is.
    pub(crate) fn new_run_id(&self) -> Uuid {
        let ms = u64::try_from(self.now().as_millisecond()).unwrap_or(0);
        let random = Uuid::new_v4();
        uuid::Builder::from_unix_timestamp_millis(ms, random.as_bytes()[6..].try_into().unwrap_or(&[0; 10]))
            .into_uuid()
    }
}

/// Milliseconds since the process first asked, never 0: for pacing and reports only.
pub(crate) fn monotonic_ms() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(std::time::Instant::now).elapsed().as_millis())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn jitter_spreads_over_its_range() {
        let values: Vec<f64> = (0..1000).map(|_| super::jitter()).collect();
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
        assert!(values.iter().any(|v| *v < 0.1) && values.iter().any(|v| *v > 0.9));
    }
}
