//! The arguments of `ambo queue`.

use std::str::FromStr;
use std::time::Duration;

use ambo::{Ordered, QueueSettings, Rate};
use clap::{Args, Subcommand};

use jiff::Timestamp;

use super::{span, time};

/// `ambo queue ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// List the queues, what waits in them and what limits them
    #[command(visible_alias = "ls")]
    List,
    /// Create a queue; one that exists stays as it is
    Create(QueueName),
    /// Set what holds for a queue, from the next claim on; makes the queue if there is none
    Set(Box<QueueSet>),
    /// Let no run of a queue, or of one group of it, be claimed; those in execution go on
    Pause(QueuePause),
    /// Let the runs of a paused queue or group be claimed again, and one that was drained take new ones
    Resume(QueuePause),
    /// Let a queue, or one group of it, take no new runs while those that wait are worked off
    Drain(QueuePause),
    /// End, as cancelled, the runs of a queue, or of one group of it, that wait and were never claimed
    Purge(QueuePurge),
    /// How many runs of a group are claimed for one of another
    Share(QueueShare),
    /// List the groups that are paused, drained or blocked, or have a share of their own
    Groups(QueueAny),
    /// List the groups of ordered queues that stand still because a run of theirs failed
    Blocked(QueueAny),
    /// Let a group that stands still go on without the run that failed
    Unblock(QueueGroup),
}

/// A command that takes nothing but a queue.
#[derive(Debug, Args)]
pub(crate) struct QueueName {
    /// The name of the queue
    pub(crate) name: String,
}

/// `ambo queue purge`
#[derive(Debug, Args)]
pub(crate) struct QueuePurge {
    /// The name of the queue
    pub(crate) name: String,
    /// Only this group
    #[arg(long, value_name = "KEY")]
    pub(crate) group: Option<String>,
    /// Only runs of this workflow
    #[arg(long, value_name = "NAME")]
    pub(crate) workflow: Option<String>,
    /// Only runs enqueued before then: a time, or a span such as 90m or 2d before now
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) until: Option<Timestamp>,
    /// End them, instead of saying how many they are
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `ambo queue pause`, `ambo queue resume`, `ambo queue drain`
#[derive(Debug, Args)]
pub(crate) struct QueuePause {
    /// The name of the queue
    pub(crate) name: String,
    /// Only this group
    #[arg(long, value_name = "KEY")]
    pub(crate) group: Option<String>,
}

/// `ambo queue unblock`
#[derive(Debug, Args)]
pub(crate) struct QueueGroup {
    /// The name of the queue
    pub(crate) name: String,
    /// The group
    pub(crate) group: String,
}

/// `ambo queue share`
#[derive(Debug, Args)]
pub(crate) struct QueueShare {
    /// The name of the queue
    pub(crate) name: String,
    /// The group
    pub(crate) group: String,
    /// For one run of a group whose share is 1
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) share: u32,
}

/// `ambo queue groups`, `ambo queue blocked`
#[derive(Debug, Args)]
pub(crate) struct QueueAny {
    /// Only of this queue
    pub(crate) name: Option<String>,
}

/// `ambo queue set`
#[derive(Debug, Args)]
pub(crate) struct QueueSet {
    /// The name of the queue
    pub(crate) name: String,
    /// Its runs may have groups, among which it takes turns; for good. Any other setting does it too
    #[arg(long)]
    pub(crate) groups: bool,
    /// Weight in execution at once, of all workers
    #[arg(long, value_name = "WEIGHT|none")]
    pub(crate) concurrency: Option<Setting<u32>>,
    /// Weight in execution at once, of each worker
    #[arg(long, value_name = "WEIGHT|none")]
    pub(crate) worker_concurrency: Option<Setting<u32>>,
    /// Weight in execution at once, of each group
    #[arg(long, value_name = "WEIGHT|none")]
    pub(crate) group_concurrency: Option<Setting<u32>>,
    /// Weight that is claimed in a time, such as 100/1m, and after a colon how much at once: 100/1m:10
    #[arg(long, value_name = "RATE|none")]
    pub(crate) rate: Option<Setting<Speed>>,
    /// The same of each group
    #[arg(long, value_name = "RATE|none")]
    pub(crate) group_rate: Option<Setting<Speed>>,
    /// One run of a group after the other; and if one fails, block, skip or dead
    #[arg(long, value_name = "POLICY|none")]
    pub(crate) ordered: Option<Setting<Policy>>,
    /// A priority that was passed over for so long is as urgent as the one before it
    #[arg(long, value_name = "TIME|none")]
    pub(crate) ageing: Option<Setting<Length>>,
}

impl QueueSet {
    /// The settings that were named.
    pub(crate) fn settings(&self) -> QueueSettings {
        let mut settings = QueueSettings::default();
        if self.groups {
            settings = settings.groups();
        }
        if let Some(Setting(limit)) = self.concurrency {
            settings = settings.concurrency(limit);
        }
        if let Some(Setting(limit)) = self.worker_concurrency {
            settings = settings.worker_concurrency(limit);
        }
        if let Some(Setting(limit)) = self.group_concurrency {
            settings = settings.group_concurrency(limit);
        }
        if let Some(Setting(rate)) = self.rate {
            settings = settings.rate(rate.map(|speed| speed.0));
        }
        if let Some(Setting(rate)) = self.group_rate {
            settings = settings.group_rate(rate.map(|speed| speed.0));
        }
        if let Some(Setting(policy)) = self.ordered {
            settings = settings.ordered(policy.map(|policy| policy.0));
        }
        if let Some(Setting(ageing)) = self.ageing {
            settings = settings.ageing(ageing.map(|ageing| ageing.0));
        }
        settings
    }
}

/// A value, or `none`, which takes a limit away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<T>(pub(crate) Option<T>);

impl<T: FromStr<Err: std::fmt::Display>> FromStr for Setting<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Setting(None)),
            _ => text.parse().map(|value| Setting(Some(value))).map_err(|error: T::Err| error.to_string()),
        }
    }
}

/// `100/1m` or `100/1m:10`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed(Rate);

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "write it as 100/1m, or with what is allowed at once as 100/1m:10".to_owned();
        let (limit, rest) = text.split_once('/').ok_or_else(form)?;
        let (period, burst) =
            rest.split_once(':').map_or((rest, None), |(period, burst)| (period, Some(burst)));
        let rate = Rate::new(limit.parse().map_err(|_| form())?, span(period)?);
        let burst = burst.map(str::parse).transpose().map_err(|_| form())?;
        Ok(Speed(burst.map_or(rate, |burst| rate.burst(burst))))
    }
}

/// `block`, `skip` or `dead`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy(Ordered);

impl FromStr for Policy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "block" => Ok(Policy(Ordered::Block)),
            "skip" => Ok(Policy(Ordered::Skip)),
            "dead" => Ok(Policy(Ordered::Dead)),
            _ => Err("one of block, skip, dead or none"),
        }
    }
}

/// A span of time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length(pub(crate) Duration);

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        span(text).map(Length)
    }
}
