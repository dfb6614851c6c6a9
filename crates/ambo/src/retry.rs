//! How often, and after which pauses, a step or a run that failed is tried again.

use std::time::Duration;

/// The retry policy of a step or a workflow: exponential pauses with jitter.
///
/// # Example: five attempts
/// ```
/// use std::time::Duration;
/// let retry = ambo::Retry::exponential().max_attempts(5).initial(Duration::from_millis(50));
/// assert_eq!(retry.pause_after(1, 1.0), Some(Duration::from_millis(50)));
/// assert_eq!(retry.pause_after(4, 1.0), Some(Duration::from_millis(400)));
/// assert_eq!(retry.pause_after(5, 1.0), None);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    max_attempts: u32,
    initial: Duration,
    factor: f64,
    max: Duration,
}

impl Retry {
    /// One attempt, no retry: the default of a step.
    pub const fn none() -> Self {
        Retry { max_attempts: 1, initial: Duration::ZERO, factor: 1.0, max: Duration::ZERO }
    }

    /// Ten attempts; pauses from 100 ms, doubled each time, up to 60 s.
    pub const fn exponential() -> Self {
        Retry {
            max_attempts: 10,
            initial: Duration::from_millis(100),
            factor: 2.0,
            max: Duration::from_secs(60),
        }
    }

    /// The same pause between all attempts, ten of them.
    pub const fn fixed(pause: Duration) -> Self {
        Retry { max_attempts: 10, initial: pause, factor: 1.0, max: pause }
    }

    /// How often the step is tried at most, the first time included; at least 1.
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = if attempts == 0 { 1 } else { attempts };
        self
    }

    /// The pause after the first attempt.
    pub const fn initial(mut self, pause: Duration) -> Self {
        self.initial = pause;
        self
    }

    /// By what each pause is longer than the one before; below 1 it is taken as 1.
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = if factor >= 1.0 { factor } else { 1.0 };
        self
    }

    /// The longest pause.
    pub const fn max_pause(mut self, pause: Duration) -> Self {
        self.max = pause;
        self
    }

    /// How many attempts there are at most.
    pub(crate) const fn attempts_max(&self) -> u32 {
        self.max_attempts
    }

    /// Whether there is more than one attempt.
    pub(crate) const fn retries(&self) -> bool {
        self.max_attempts > 1
    }

    /// The pause after attempt `attempt` (from 1), or `None` when that was the last. `jitter` between 0 and 1
    /// scales the pause from half of it to all of it.
    pub fn pause_after(&self, attempt: u32, jitter: f64) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let exponent = attempt.saturating_sub(1).min(1000) as i32;
        let full = self.initial.as_secs_f64() * self.factor.powi(exponent);
        let capped = full.min(self.max.as_secs_f64());
        Some(Duration::from_secs_f64(capped * (0.5 + 0.5 * jitter.clamp(0.0, 1.0))))
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry::none()
    }
}
