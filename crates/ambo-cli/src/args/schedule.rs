//! Arguments of `ambo schedule`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{attribute, json, span, time};

/// `ambo schedule ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Schedule {
    /// List the schedules and their next times
    #[command(visible_alias = "ls")]
    List,
    /// Create a schedule, or change the one of this name
    Set(ScheduleSet),
    /// Let no tick of a schedule come; its runs go on
    Pause(ScheduleName),
    /// Let the ticks of a paused schedule come again
    Resume(ScheduleName),
    /// Enqueue a run of a schedule now, beside its ticks, and print its id
    Trigger(ScheduleName),
    /// Enqueue the runs of ticks that are past, as far as there were none
    Backfill(ScheduleBackfill),
    /// Delete a schedule; its runs stay
    Delete(ScheduleName),
}

/// A command that takes nothing but a schedule.
#[derive(Debug, Args)]
pub(crate) struct ScheduleName {
    /// The name of the schedule
    pub(crate) name: String,
}

/// `ambo schedule set`
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("times").required(true),
    override_usage = "ambo schedule set [OPTIONS] --cron <PATTERN> <NAME> <WORKFLOW> [INPUT]
       ambo schedule set [OPTIONS] --every <TIME> <NAME> <WORKFLOW> [INPUT]"
)]
pub(crate) struct ScheduleSet {
    /// The name of the schedule
    pub(crate) name: String,
    /// The registered name of the workflow
    pub(crate) workflow: String,
    /// The input of its runs as JSON
    #[arg(default_value = "null", value_parser = json)]
    pub(crate) input: Box<RawValue>,
    /// When: a cron pattern of five fields, or six with seconds first
    #[arg(long, value_name = "PATTERN", group = "times")]
    pub(crate) cron: Option<String>,
    /// How often, such as 90s or 1h, from 1s
    #[arg(long, value_name = "TIME", value_parser = span, group = "times")]
    pub(crate) every: Option<Duration>,
    /// The time zone of the pattern, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "NAME", requires = "cron")]
    pub(crate) timezone: Option<String>,
    /// What a tick does while the run of the one before has not ended
    #[arg(long, value_enum, default_value = "skip")]
    pub(crate) overlap: Overlap,
    /// Each run begins so much later at most, at random
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "0s")]
    pub(crate) jitter: Duration,
    /// Ticks that were missed are made up for if they are no longer ago than this
    #[arg(long, value_name = "TIME", value_parser = span, default_value = "60s")]
    pub(crate) catch_up: Duration,
    /// The queue of its runs
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) queue: String,
    /// What its runs can be found by: KEY=VALUE, where VALUE is JSON or a text; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = attribute)]
    pub(crate) attribute: Vec<(String, serde_json::Value)>,
    /// Lower is claimed first
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i16,
    /// Fail a run if it takes longer than this
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) timeout: Option<Duration>,
    /// How many workers may die with a run before it is dead
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) attempts: u32,
}

/// What a tick does while the run of the one before has not ended.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Overlap {
    /// Nothing: this tick has no run.
    Skip,
    /// It waits for that end.
    Queue,
    /// It asks that run to end, and begins.
    Cancel,
    /// It begins beside it.
    Allow,
}

/// `ambo schedule backfill`
#[derive(Debug, Args)]
pub(crate) struct ScheduleBackfill {
    /// The name of the schedule
    pub(crate) name: String,
    /// From this time on: a time, or a span such as 2d before now
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) from: Timestamp,
    /// Before this time [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) to: Option<Timestamp>,
}
