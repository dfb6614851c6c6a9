//! `ambo retention`: what can be typed.

use std::time::Duration;

use ambo::Retention;
use clap::Args;

use super::queue::{Length, Setting};
use super::span;

/// `ambo retention`
#[derive(Debug, Args)]
pub(crate) struct Keep {
    /// What has ended leaves after this, a partition at a time; an hour at least
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) history: Option<Duration>,
    /// The dead leave after this, sooner or later than other history; none: with it
    #[arg(long, value_name = "TIME|none")]
    pub(crate) dead: Option<Setting<Length>>,
    /// An idempotency key names its run for this long at least
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) keys: Option<Duration>,
}

impl Keep {
    /// What was named; `None`: nothing.
    pub(crate) fn retention(&self) -> Option<Retention> {
        let mut retention = Retention::default();
        if let Some(history) = self.history {
            retention = retention.history(history);
        }
        if let Some(Setting(dead)) = self.dead {
            retention = retention.dead(dead.map(|span| span.0));
        }
        if let Some(keys) = self.keys {
            retention = retention.keys(keys);
        }
        (retention != Retention::default()).then_some(retention)
    }
}
