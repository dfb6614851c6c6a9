//! What can be typed: the options and commands, their help, and how their values are read.

mod dead;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod help;
mod queue;
mod retention;
mod schedule;
mod terms;
mod workflow;

use std::path::PathBuf;
use std::time::Duration;

use ambo::RunId;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::value::RawValue;

pub(crate) use self::dead::{Dead, DeadList};
pub(crate) use self::queue::{Queue, QueuePause, QueuePurge};
pub(crate) use self::retention::Keep;
pub(crate) use self::schedule::{Overlap, Schedule, ScheduleBackfill, ScheduleSet};
pub(crate) use self::terms::Terms;
pub(crate) use self::workflow::{Workflow, WorkflowShow};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "ambo",
    version,
    about = "Durable execution and a job queue in your own PostgreSQL",
    after_help = "Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage.",
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 80
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The database [default: the server of `ambo dev`, if it runs here]
    // Its value in the environment may hold a password, so help does not show it.
    #[arg(long, global = true, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// The schema in which Ambo is installed
    #[arg(long, global = true, value_name = "NAME", default_value = "ambo")]
    pub(crate) schema: String,
    /// Where `ambo dev` keeps its server
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "AMBO_DIR",
        hide_env_values = true,
        default_value = ".ambo"
    )]
    pub(crate) dir: PathBuf,
    /// Print JSON: one document, or one object a line for lists
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    pub(crate) json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install or upgrade the schema
    ///
    /// Safe to repeat, and from several places at once. Run it before the programs of a new version start.
    Migrate(Migrate),
    /// Run a private PostgreSQL for development
    ///
    /// Its data stays below `.ambo/`; it is migrated, and its URL printed. It runs until Ctrl-C, or until COMMAND,
    /// which finds the URL in DATABASE_URL, has ended. Other commands typed in the same directory find it by
    /// themselves. If DATABASE_URL is set, that database is migrated and used instead.
    Dev(Dev),
    /// List, show, enqueue, cancel, retry, rewind and fork runs; say why one waits
    #[command(subcommand)]
    Run(Run),
    /// List, create, limit, pause, drain, unblock and purge queues
    #[command(subcommand)]
    Queue(Queue),
    /// List, set, pause, trigger and backfill schedules
    #[command(subcommand)]
    Schedule(Schedule),
    /// List, group, redrive and purge dead runs
    #[command(subcommand)]
    Dead(Dead),
    /// Say how long history, the dead and keys are kept, or set it
    ///
    /// What is not named stays as it is. Then what holds is printed.
    Retention(Keep),
    /// List the workers
    #[command(subcommand)]
    Worker(Worker),
    /// List the workflows, and show what is known of one
    #[command(subcommand)]
    Workflow(Workflow),
    /// Check a program's workflows against recorded runs
    ///
    /// Runs PROGRAM, whose worker then checks instead of working: it replays the newest runs with its code of today and executes
    /// no step. Exit status 1, and the first difference of each run, where the code would not go on as recorded.
    ReplayCheck(ReplayCheck),
    /// Look for what is wrong, and say what to do about it
    ///
    /// Exit status 0 if all is well or only deserves a look, 1 if something is bad.
    Doctor,
    /// Make a restored or cloned database an installation of its own
    ///
    /// A database that was restored from a backup or cloned starts no worker: the one that it came from may still
    /// run, and then every run would be executed twice. Adopt it only when the other one is gone.
    Adopt(Adopt),
}

/// `ambo migrate`
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Print the SQL for an empty database instead of running it; needs no database
    #[arg(long)]
    pub(crate) print: bool,
}

/// `ambo replay-check`
#[derive(Debug, Args)]
pub(crate) struct ReplayCheck {
    /// Only runs of this workflow
    #[arg(long, value_name = "NAME")]
    pub(crate) workflow: Option<String>,
    /// Only runs in this state; ended runs are replayed to their end, others as far as they came
    #[arg(long, value_enum, value_name = "STATE")]
    pub(crate) state: Option<State>,
    /// How many runs at most, the newest
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    /// The program that starts the worker, and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<String>,
}

/// `ambo dev`
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// The port to listen on [default: that of the last time if it is free, else any]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// A command to run with DATABASE_URL set; the server stops after it
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// `ambo run ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Run {
    /// List runs, newest first
    #[command(visible_alias = "ls")]
    List(RunList),
    /// Show one run: how it stands, and its steps; with --payload what it was given and what came of it
    Show(RunShow),
    /// Enqueue a run and print its id
    Enqueue(RunEnqueue),
    /// Ask runs to end: at once if they wait, else at their next durable call
    Cancel(RunCancel),
    /// Run failed, cancelled or dead runs again, from their checkpoints
    Retry(Targets),
    /// Run runs again from a position, forgetting what they recorded from there on
    ///
    /// What they did there is not undone. A run that is in a worker's memory is refused: cancel it first.
    Rewind(RunRewind),
    /// Start new runs with what others had recorded before a position
    Fork(RunFork),
    /// Send a signal to a run
    Signal(RunSignal),
    /// The signals that wait for a run, the oldest first; with --payload what they say
    Signals(RunShow),
    /// Take back a signal that a run has not taken, or that did not fit
    DropSignal(RunDropSignal),
    /// Send a request to a run, and print its answer
    Update(RunUpdate),
    /// What a run has published
    Events(RunEvents),
    /// Why a run is not running: every reason that holds
    Why(OneRun),
}

/// `ambo run signal`
#[derive(Debug, Args)]
pub(crate) struct RunSignal {
    /// The id of the run
    pub(crate) id: RunId,
    /// The topic that the run waits for
    pub(crate) topic: String,
    /// The payload as JSON; without it, null
    #[arg(value_parser = json, default_value = "null")]
    pub(crate) payload: Box<serde_json::value::RawValue>,
    /// For this run it means one signal
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
}

/// `ambo run drop-signal`
#[derive(Debug, Args)]
pub(crate) struct RunDropSignal {
    /// The id of the run
    pub(crate) id: RunId,
    /// The number of the signal, as `ambo run signals` or the error of the run tells it
    pub(crate) number: i64,
}

/// `ambo run update`
#[derive(Debug, Args)]
pub(crate) struct RunUpdate {
    /// The id of the run
    pub(crate) id: RunId,
    /// The topic that the run waits for
    pub(crate) topic: String,
    /// The payload as JSON; without it, null
    #[arg(value_parser = json, default_value = "null")]
    pub(crate) payload: Box<serde_json::value::RawValue>,
    /// It means one request: sent again, it gets the same answer
    #[arg(long, value_name = "KEY")]
    pub(crate) key: String,
}

/// `ambo run events`
#[derive(Debug, Args)]
pub(crate) struct RunEvents {
    /// The id of the run
    pub(crate) id: RunId,
    /// The key under which it publishes; without it, the keys that there are
    #[arg(required_if_eq("follow", "true"))]
    pub(crate) key: Option<String>,
    /// Only what came after this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) after: u32,
    /// Go on until the run has ended
    #[arg(long)]
    pub(crate) follow: bool,
}

/// Which runs: what is given must all be true of them.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    #[command(flatten)]
    pub(crate) marks: Marks,
    /// Only runs in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<State>,
}

/// The same, whatever state they are in.
#[derive(Debug, Args)]
pub(crate) struct Marks {
    /// Only runs of this workflow
    #[arg(long, value_name = "NAME")]
    pub(crate) workflow: Option<String>,
    /// Only runs of this queue
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<String>,
    /// Only runs of this group
    #[arg(long, value_name = "KEY")]
    pub(crate) group: Option<String>,
    /// Only runs with this attribute: KEY=VALUE, where VALUE is JSON or a text; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = attribute)]
    pub(crate) attribute: Vec<(String, serde_json::Value)>,
    /// Only children of this run, those too that it detached
    #[arg(long, value_name = "ID")]
    pub(crate) parent: Option<RunId>,
    /// Only runs with this text in their id, workflow, key, input, output or error
    #[arg(long)]
    pub(crate) text: Option<String>,
    /// Only runs enqueued since then: a time, or a span such as 90m or 2d before now
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) since: Option<Timestamp>,
    /// Only runs enqueued before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) until: Option<Timestamp>,
}

/// The runs that a command acts on: named, or found.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// The ids of the runs; without them, those that the options find
    pub(crate) ids: Vec<RunId>,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Act on the runs that were found, instead of saying which they are
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `ambo run rewind`
#[derive(Debug, Args)]
pub(crate) struct RunRewind {
    /// The position, as `ambo run show` prints it, that is the first to be executed again
    #[arg(long, value_name = "POSITION")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) targets: Targets,
}

/// `ambo run fork`
#[derive(Debug, Args)]
pub(crate) struct RunFork {
    /// The position that is the first to be executed; without it, all that was recorded is kept
    #[arg(long, value_name = "POSITION")]
    pub(crate) at: Option<String>,
    #[command(flatten)]
    pub(crate) targets: Targets,
}

/// `ambo run list`
#[derive(Debug, Args)]
pub(crate) struct RunList {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Only runs older than this one: the last of a page gives the next page
    #[arg(long, value_name = "ID")]
    pub(crate) before: Option<RunId>,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
}

/// The states of a run.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum State {
    /// Waits to be claimed.
    Ready,
    /// Becomes ready later.
    Delayed,
    /// Is executed by a worker.
    Running,
    /// Waits outside of every worker's memory, for a time or for something to come.
    Parked,
    /// Returned a result.
    Succeeded,
    /// Returned an error.
    Failed,
    /// Was asked to end.
    Cancelled,
    /// Cannot be executed.
    Dead,
}

impl State {
    /// As the database calls it.
    pub(crate) fn name(self) -> Option<String> {
        Some(self.to_possible_value()?.get_name().to_owned())
    }
}

/// A command that takes nothing but a run.
#[derive(Debug, Args)]
pub(crate) struct OneRun {
    /// The id of the run
    pub(crate) id: RunId,
}

/// `ambo run show` and `ambo run signals`
#[derive(Debug, Args)]
pub(crate) struct RunShow {
    /// The id of the run
    pub(crate) id: RunId,
    /// Show payloads, as input, output, results of steps, and the details of errors; without it only how large they are
    ///
    /// Those that are encrypted are opened with the keys in AMBO_KEYRING (ID:BASE64,...), those that are stored apart from the
    /// folder in AMBO_OBJECTS.
    #[arg(long)]
    pub(crate) payload: bool,
}

/// `ambo run cancel`
#[derive(Debug, Args)]
pub(crate) struct RunCancel {
    #[command(flatten)]
    pub(crate) targets: Targets,
    /// Why; recorded with the run
    #[arg(long, value_name = "TEXT", default_value = "by an operator")]
    pub(crate) reason: String,
    /// They end within this span, such as 30s or 10m, undone or not: what is left then makes them dead
    #[arg(long, value_name = "SPAN", value_parser = span)]
    pub(crate) grace: Option<Duration>,
}

/// `ambo run enqueue`
#[derive(Debug, Args)]
pub(crate) struct RunEnqueue {
    /// The registered name of the workflow
    pub(crate) workflow: String,
    /// Its input as JSON; `-` reads it from stdin
    #[arg(default_value = "null", value_parser = input)]
    pub(crate) input: Input,
    /// The queue in which the run waits
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) queue: String,
    /// An idempotency key: the same key means the same run
    #[arg(long)]
    pub(crate) key: Option<String>,
    #[command(flatten)]
    pub(crate) terms: Terms,
    /// What the run can be found by: KEY=VALUE, where VALUE is JSON or a text; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = attribute)]
    pub(crate) attribute: Vec<(String, serde_json::Value)>,
    /// Whose run it is, in a queue with groups
    #[arg(long, value_name = "KEY")]
    pub(crate) group: Option<String>,
    /// How much it counts towards the limits of its queue
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) weight: u32,
    /// Lower is claimed first
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) priority: i16,
    /// Not before this time has passed, such as 90s, 10m or 2d
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) delay: Option<Duration>,
    /// Fail the run if it takes longer than this
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) timeout: Option<Duration>,
    /// How many workers may die with the run before it is dead
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) attempts: u32,
}

/// The input of a run: given, or still to be read.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// JSON.
    Json(Box<RawValue>),
    /// Comes from stdin.
    Stdin,
}

/// `ambo worker ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Worker {
    /// List the workers that are registered
    #[command(visible_alias = "ls")]
    List,
}

/// `ambo adopt`
#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// The installation that this database came from does not run any more
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Reads the input of a run, which must be JSON before anything is asked of the database.
fn input(text: &str) -> Result<Input, String> {
    if text == "-" { Ok(Input::Stdin) } else { json(text).map(Input::Json) }
}

/// Reads JSON and keeps its text.
pub(crate) fn json(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("not JSON: {error}; a text needs its quotes, as in '\"text\"'"))
}

/// Reads an attribute: what is not JSON is a text.
fn attribute(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as customer=1001")?;
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// Reads a time: as RFC 3339 writes it, or a span before now.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = span(text)
        .map_err(|_| "expected a time such as 2026-05-01T08:00:00Z, or a span such as 2d".to_owned())?;
    Timestamp::now().checked_sub(ago).map_err(|_| "that is too long ago".to_owned())
}

/// Reads a span of time: `90s`, `1h30m`, `2 days`, or as ISO 8601 writes it.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a span of time such as 90s, 10m or 2d".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let length = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    Duration::try_from(length).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(span("2d"), Ok(Duration::from_secs(2 * 86_400)));
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "90", "-5s", "1 month", "soon"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_input_is_json_or_comes_from_stdin() {
        assert!(matches!(input("-"), Ok(Input::Stdin)));
        assert!(matches!(input(" {\"id\": 1} "), Ok(Input::Json(_))));
        assert!(input("hello").unwrap_err().contains("needs its quotes"));
    }
}
