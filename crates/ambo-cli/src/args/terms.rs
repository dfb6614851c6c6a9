//! What `ambo run enqueue` may say of the key and the time of a run.

use std::time::Duration;

use ambo::Enqueue;
use clap::Args;

use super::span;

/// The rule of the key, and by when to start.
#[derive(Debug, Args)]
pub(crate) struct Terms {
    /// The key means its run only until that has ended
    #[arg(long, requires = "key", conflicts_with_all = ["throttle", "debounce"])]
    pub(crate) dedup: bool,
    /// The key means its run for this time from its enqueue on
    #[arg(long, value_name = "TIME", value_parser = span, requires = "key", conflicts_with = "debounce")]
    pub(crate) throttle: Option<Duration>,
    /// Delay the run by this time, and anew with every enqueue of its key until it starts
    #[arg(long, value_name = "TIME", value_parser = span, requires = "key", conflicts_with = "delay")]
    pub(crate) debounce: Option<Duration>,
    /// But by this time from the first of them at most
    #[arg(long, value_name = "TIME", value_parser = span, requires = "debounce")]
    pub(crate) debounce_max: Option<Duration>,
    /// Start the run within this time, or let it be dead
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) start_within: Option<Duration>,
}

impl Terms {
    /// Gives them to a run.
    pub(crate) fn give<W>(&self, mut run: Enqueue<W>) -> Enqueue<W> {
        if self.dedup {
            run = run.dedup();
        }
        if let Some(period) = self.throttle {
            run = run.throttle(period);
        }
        if let Some(quiet) = self.debounce {
            run = run.debounce(quiet);
        }
        if let Some(longest) = self.debounce_max {
            run = run.debounce_max(longest);
        }
        match self.start_within {
            Some(within) => run.start_within(within),
            None => run,
        }
    }
}
