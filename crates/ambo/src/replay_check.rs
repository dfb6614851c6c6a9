//! The replay check: recorded runs against the code of today, before that code meets them in production.
//!
//! The body of each run is called with what the run had recorded as its only world: a call that was recorded answers, one that
//! was not never returns, and nothing is written. What the code does otherwise than the record is a [`Difference`]. No step is
//! executed; code between the durable calls is.
//!
//! From the command line: `ambo replay-check -- ./my-worker`. In a test: with runs of the database, or with histories that
//! were kept as files by `ambo run show ID --json`.
//!
//! # Example: a call that was renamed is found
//! ```
//! # use ambo::{Client, Ctx, Enqueue, Error, Result, Worker, admin::Filter};
//! async fn before(mut cx: Ctx<'_>, _: u64) -> Result<()> {
//!     Ok(cx.step("charge", || async { Ok::<_, Error>(()) }).await?)
//! }
//! async fn after(mut cx: Ctx<'_>, _: u64) -> Result<()> {
//!     Ok(cx.step("charge the card", || async { Ok::<_, Error>(()) }).await?)
//! }
//! # #[tokio::main(flavor = "multi_thread")] async fn main() -> Result<()> {
//! # let cluster = ambo_postgres::Cluster::builder().temporary(ambo_postgres::Place::Memory).durable(false).start().unwrap();
//! # let client = Client::connect_unchecked(&cluster.url("postgres"), "ambo").await?;
//! # client.migrate().await?;
//! let worker = Worker::builder(&client).workflow_fn("fulfil", before).start().await?;
//! let run = Enqueue::named("fulfil", &1001).on(&client).await?.run;
//! # client.handle::<ambo::Untyped>(run).result_as::<(), Error>().await.map_err(Error::from)?;
//!
//! let histories = client.histories(&Filter::default()).await?;
//! let differences = Worker::builder(&client).workflow_fn("fulfil", after).replay_check(histories).await?;
//! assert_eq!(differences[0].run, run);
//! assert_eq!(differences[0].position.as_deref(), Some("1"));
//! assert!(differences[0].text.contains("charge the card"));
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::admin::{Filter, RunDetail};
use crate::client::Client;
use crate::engine::rehearse;
use crate::error::{Code, Error, Result};
use crate::id::RunId;
use crate::store::claim::Checkpoint;
use crate::worker::WorkerBuilder;

/// The variable in which `ambo replay-check` tells a program to check and not to work.
pub(crate) const VARIABLE: &str = "AMBO_REPLAY_CHECK";
/// Runs checked at once.
const AT_ONCE: usize = 64;
/// Runs read at once.
const PAGE: u32 = 200;

/// A run as it was recorded.
#[derive(Debug, Deserialize)]
pub struct History {
    pub(crate) id: RunId,
    pub(crate) workflow: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) queue: String,
    #[serde(default)]
    pub(crate) key: Option<String>,
    #[serde(default)]
    pub(crate) parent: Option<RunId>,
    #[serde(default)]
    pub(crate) input: Option<Box<RawValue>>,
    #[serde(default)]
    pub(crate) output: Option<Box<RawValue>>,
    #[serde(default)]
    pub(crate) error: Option<Box<RawValue>>,
    steps: Vec<Recorded>,
}

#[derive(Debug, Deserialize)]
struct Recorded {
    position: String,
    name: String,
    #[serde(default)]
    output: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<Box<RawValue>>,
}

impl History {
    /// Reads what `ambo run show ID --json` prints.
    ///
    /// # Errors
    /// `AMBO028` if it is something else.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| {
            let text = format!(
                "this is not a history, as `ambo run show ID --json` prints it: line {} column {}",
                error.line(),
                error.column()
            );
            Error::new(Code::NotDecodable, text)
        })
    }

    pub(crate) fn checkpoints(&self) -> Vec<Checkpoint> {
        let text = |json: &Option<Box<RawValue>>| json.as_ref().map(|json| json.get().into());
        let checkpoint = |step: &Recorded| Checkpoint {
            position: step.position.clone(),
            name: step.name.clone(),
            output: text(&step.output),
            error: text(&step.error),
        };
        self.steps.iter().map(checkpoint).collect()
    }
}

impl From<RunDetail> for History {
    fn from(run: RunDetail) -> Self {
        let recorded = |step: crate::admin::StepSummary| Recorded {
            position: step.position,
            name: step.name,
            output: step.output,
            error: step.error,
        };
        History {
            id: run.summary.id,
            workflow: run.summary.workflow,
            state: run.summary.state,
            queue: run.summary.queue,
            key: run.summary.key,
            parent: run.summary.parent,
            input: run.input,
            output: run.output,
            error: run.summary.error,
            steps: run.steps.into_iter().map(recorded).collect(),
        }
    }
}

/// The first thing that the code does otherwise than a run had recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: String,
    /// Where, if it is a call.
    pub position: Option<String>,
    /// What is recorded and what the code does. Holds no payloads.
    pub text: String,
    /// It was not compared: what is recorded cannot be read here, for a key or an object is missing.
    #[serde(default)]
    pub is_unread: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.workflow, self.run, self.text)
    }
}

impl Client {
    /// The histories of runs that have begun, newest first, as many as the filter allows.
    ///
    /// # Errors
    /// Those of [`list_runs`](Client::list_runs).
    pub async fn histories(&self, filter: &Filter) -> Result<Vec<History>> {
        let mut page = Filter { limit: filter.limit.min(PAGE), ..filter.clone() };
        let mut histories = Vec::new();
        loop {
            let runs = self.list_runs(&page).await?;
            for run in &runs {
                let run = self.show_recorded(run.id).await?;
                let has_begun = run.summary.attempt > 0 || !run.steps.is_empty();
                if has_begun && histories.len() < filter.limit as usize {
                    histories.push(run.into());
                }
            }
            page.before = runs.last().map(|run| run.id);
            if runs.len() < page.limit as usize || histories.len() >= filter.limit as usize {
                return Ok(histories);
            }
        }
    }
}

impl WorkerBuilder {
    /// Checks the code that is registered here against recorded runs; see [`replay_check`](crate::replay_check). One difference
    /// a run at most, in the order of the histories. Runs of workflows that are not registered are one too.
    ///
    /// # Errors
    /// `AMBO020` or `AMBO001` for what is registered, `AMBO040` if the database's time cannot be asked for.
    pub async fn replay_check(self, histories: impl IntoIterator<Item = History>) -> Result<Vec<Difference>> {
        let stage = Arc::new(rehearse::Stage::set(self).await?);
        let checks = histories.into_iter().map(|history| {
            let stage = stage.clone();
            async move { stage.rehearse(&history).await }
        });
        Ok(futures_util::stream::iter(checks)
            .buffered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await)
    }
}

/// What `ambo replay-check` asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) workflow: Option<String>,
    pub(crate) state: Option<String>,
    pub(crate) limit: u32,
}

/// What it is answered, on a line of its own on stdout.
#[derive(Debug, Serialize)]
struct Report {
    checked: usize,
    unknown: BTreeMap<String, usize>,
    differences: Vec<Difference>,
}

/// Checks as `ambo replay-check` asked for, prints the answer and ends the process.
pub(crate) async fn serve(builder: WorkerBuilder, wanted: &str) -> Result<std::convert::Infallible> {
    let wanted: Wanted = serde_json::from_str(wanted)?;
    let filter =
        Filter { workflow: wanted.workflow, state: wanted.state, limit: wanted.limit, ..Filter::default() };
    let mut histories = builder.client().histories(&filter).await?;
    // A program need not have all workflows of a database.
    let mut unknown = BTreeMap::new();
    histories.retain(|history| {
        let knows = builder.knows(&history.workflow);
        if !knows {
            *unknown.entry(history.workflow.clone()).or_insert(0) += 1;
        }
        knows
    });
    let checked = histories.len();
    let differences = builder.replay_check(histories).await?;
    let code = i32::from(!differences.is_empty());
    println!("\n{VARIABLE} {}", serde_json::to_string(&Report { checked, unknown, differences })?);
    std::process::exit(code)
}
