//! What an operator sees: runs, queues, workers, and the health of the installation. All of it serialises, for
//! `--json` and dashboards.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::graph::Shape;
use crate::id::RunId;

/// Which runs to list; the default is the newest 50. What is set is looked for, all of it.
///
/// States, attributes and parents lead straight to their runs, however many others there are, and so does a workflow, queue or group
/// that is rare; one that is common is looked for from the newest run on. Text is looked for in all that the others leave: bound it
/// by [`since`](Filter::since).
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs of this queue.
    pub queue: Option<String>,
    /// Only runs of this group.
    pub group: Option<String>,
    /// Only runs in this state: ready, delayed, running, parked, succeeded, failed, cancelled or dead.
    pub state: Option<String>,
    /// Only runs that were enqueued at this time or later.
    pub since: Option<Timestamp>,
    /// Only runs that were enqueued before this time.
    pub until: Option<Timestamp>,
    /// Only runs that have these attributes, among others: a JSON object.
    pub attributes: Option<serde_json::Value>,
    /// Only children of this run; of those that it detached the [`parent`](RunSummary::parent) is none.
    pub parent: Option<RunId>,
    /// Only runs that hold this text, in whatever case, in their id, workflow, key, input, output or error.
    pub text: Option<String>,
    /// Only runs older than this one: the last of a page gives the next page, whatever is enqueued meanwhile.
    pub before: Option<RunId>,
    /// How many at most.
    pub limit: u32,
}

impl Default for Filter {
    fn default() -> Self {
        Filter {
            workflow: None,
            queue: None,
            group: None,
            state: None,
            since: None,
            until: None,
            attributes: None,
            parent: None,
            text: None,
            before: None,
            limit: 50,
        }
    }
}

/// A run in a list.
#[derive(Debug, Serialize)]
pub struct RunSummary {
    /// Its id.
    pub id: RunId,
    /// The name of its workflow.
    pub workflow: String,
    /// The queue that it came through.
    pub queue: String,
    /// Its group there, if it has one.
    pub group: Option<String>,
    /// ready, delayed, running, parked, succeeded, failed, cancelled or dead.
    pub state: String,
    /// How often it was claimed; 0 of what is ready, which does not say how often it was before.
    pub attempt: i32,
    /// Its idempotency key.
    pub key: Option<String>,
    /// Its priority; lower is first.
    pub priority: i16,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The worker that holds it.
    pub worker: Option<i64>,
    /// Why it failed, was cancelled or is dead.
    pub error: Option<Box<RawValue>>,
    /// The run that started it and did not detach it.
    pub parent: Option<RunId>,
    /// What it can be found by: given when it was enqueued, and set from inside.
    pub attributes: Option<Box<RawValue>>,
}

/// A run with its payloads and steps.
#[derive(Debug, Serialize)]
pub struct RunDetail {
    /// What the list shows.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// What it was given.
    pub input: Option<Box<RawValue>>,
    /// What it returned.
    pub output: Option<Box<RawValue>>,
    /// Somebody asked to cancel it and it has not ended yet.
    pub cancel_requested: bool,
    /// When it has to have ended since it was cancelled, undone or not. See [`Cancel::grace`].
    pub undo_by: Option<Timestamp>,
    /// The signals that it has not taken, by topic; those that wait longest first.
    pub signals: Vec<WaitingTopic>,
    /// What it recorded, in the order of positions.
    pub steps: Vec<StepSummary>,
}

/// The signals that wait for a run under one topic.
#[derive(Debug, Serialize, serde::Deserialize)]
pub struct WaitingTopic {
    /// The topic.
    pub topic: String,
    /// How many there are, counted up to 10,000 for all topics.
    pub count: i64,
    /// When the oldest of them was sent.
    pub oldest_at: Timestamp,
}

/// A signal that waits for a run. See [`Client::list_signals`](crate::Client::list_signals).
#[derive(Debug, Serialize)]
pub struct WaitingSignal {
    /// Its number, by which it can be [dropped](crate::Client::drop_signal).
    pub number: i64,
    /// Its topic.
    pub topic: String,
    /// Its idempotency key, or that of the update.
    pub key: Option<String>,
    /// It is an update: somebody waits for the answer.
    pub is_update: bool,
    /// When it was sent.
    pub sent_at: Timestamp,
    /// What was sent.
    pub payload: Option<Box<RawValue>>,
}

/// A recorded call of a run.
#[derive(Debug, Serialize)]
pub struct StepSummary {
    /// Its position.
    pub position: String,
    /// Its name.
    pub name: String,
    /// The claim of the run under which it was recorded.
    pub attempt: i32,
    /// When it was recorded.
    pub recorded_at: Timestamp,
    /// How long it took, its retries included, in milliseconds.
    pub elapsed_ms: i32,
    /// Its result.
    pub output: Option<Box<RawValue>>,
    /// Its error.
    pub error: Option<Box<RawValue>>,
}

/// A reason why a run is not running. See [`Client::why`](crate::Client::why).
#[derive(Debug, Serialize)]
pub struct Reason {
    /// ended, running, members, delayed, parked, moving, no worker, queue paused, group paused, group in order, group limit, queue
    /// limit, worker limit, workers full, rate, group rate, behind others, less urgent, ready.
    pub reason: String,
    /// The same in a sentence, with names and numbers.
    pub explanation: String,
    /// The run that stands in the way, or that a parked one waits for, or the first of them.
    pub run: Option<RunId>,
    /// When it will be over, as far as that is known.
    pub until: Option<Timestamp>,
}

/// A queue.
#[derive(Debug, Serialize)]
pub struct QueueSummary {
    /// Its name.
    pub name: String,
    /// Nothing is claimed from it.
    pub paused: bool,
    /// It takes no new runs.
    pub draining: bool,
    /// How many runs wait, counted up to 10,000.
    pub ready: i64,
    /// There may be more than were counted.
    pub ready_is_capped: bool,
    /// When the oldest of those counted was enqueued.
    pub oldest_ready_at: Option<Timestamp>,
    /// What holds for it, as [`Client::set_queue`](crate::Client::set_queue) takes it; spans are as PostgreSQL writes them.
    pub settings: Option<Box<RawValue>>,
}

/// A group for which something is set, or that stands still. See [`Client::list_groups`](crate::Client::list_groups).
#[derive(Debug, Serialize)]
pub struct GroupSummary {
    /// Its queue.
    pub queue: String,
    /// Its key.
    pub group: String,
    /// Nothing is claimed from it.
    pub paused: bool,
    /// It takes no new runs.
    pub draining: bool,
    /// How many of its runs are claimed for one of a group whose share is 1.
    pub share: i32,
    /// The run that failed, where it stands still for that.
    pub blocked_by: Option<RunId>,
}

/// Which waiting runs of a queue to purge. See [`Client::purge_queue`](crate::Client::purge_queue).
#[derive(Debug, Clone, Default)]
pub struct Purge {
    /// The queue.
    pub queue: String,
    /// Only runs of this group.
    pub group: Option<String>,
    /// Only runs of this workflow.
    pub workflow: Option<String>,
    /// Only runs that were enqueued before this time.
    pub until: Option<Timestamp>,
    /// Only counts them.
    pub dry_run: bool,
}

/// A worker.
#[derive(Debug, Serialize)]
pub struct WorkerSummary {
    /// Its id.
    pub id: i64,
    /// The name that it gave itself.
    pub name: String,
    /// The version of its program.
    pub version: String,
    /// Its process id, on its machine.
    pub pid: i32,
    /// When it registered.
    pub started_at: Timestamp,
    /// Since its last heartbeat, in milliseconds.
    pub silent_ms: i64,
    /// Runs in its memory.
    pub in_flight: i32,
    /// It finishes what it has and claims no more.
    pub draining: bool,
    /// It does the housekeeping at present.
    pub is_keeper: bool,
    /// The queues that it serves.
    pub queues: Vec<String>,
    /// The workflows that it knows.
    pub workflows: Vec<String>,
}

/// A workflow, as the worker that registered last has it.
#[derive(Debug, Serialize)]
pub struct WorkflowSummary {
    /// Its name.
    pub name: String,
    /// When it was first registered as it is now.
    pub declared_at: Timestamp,
    /// The version of the program that registered it so.
    pub version: String,
    /// The type of its input, as the code names it.
    pub input: String,
    /// The type of its result.
    pub output: String,
    /// How often a run is tried in all.
    pub tries: i64,
    /// Its nodes and edges, if it is declared as a graph.
    pub graph: Option<Shape>,
    /// How many living workers know it.
    pub workers: i64,
    /// The versions of these, the empty one left out.
    pub versions: Vec<String>,
}

/// One figure of the installation's health.
#[derive(Debug, Serialize)]
pub struct VitalSign {
    /// What it is.
    pub name: String,
    /// Its value, as text.
    pub value: String,
}

/// A run that ended as dead.
#[derive(Debug, Serialize)]
pub struct DeadLetter {
    /// Its id.
    pub id: RunId,
    /// The name of its workflow.
    pub workflow: String,
    /// The queue that it came through.
    pub queue: String,
    /// Its group there, if it has one.
    pub group: Option<String>,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// When it died.
    pub died_at: Timestamp,
    /// How often it was claimed.
    pub attempts: i32,
    /// How often its body failed and was tried again, by the policy of its workflow.
    pub tries: i64,
    /// What it died of, such as AMBO026.
    pub code: Option<String>,
    /// The message of its last error.
    pub message: Option<String>,
    /// The last error, whole.
    pub error: Option<Box<RawValue>>,
}

/// The dead of one workflow and queue that died of the same.
#[derive(Debug, Serialize)]
pub struct DeadError {
    /// The name of the workflow.
    pub workflow: String,
    /// The queue.
    pub queue: String,
    /// What they died of, such as AMBO026.
    pub code: Option<String>,
    /// The message, its numbers and ids replaced by `#`.
    pub message: Option<String>,
    /// How many there are.
    pub runs: i64,
    /// When the first one died.
    pub first_at: Timestamp,
    /// When the last one died.
    pub last_at: Timestamp,
    /// The newest of them.
    pub newest: RunId,
    /// There are more of them than the newest 100,000, which were looked at.
    pub is_capped: bool,
}

/// How long what has ended is kept; spans are as PostgreSQL writes them. See [`Client::retention`](crate::Client::retention).
#[derive(Debug, Serialize)]
pub struct RetentionSummary {
    /// History, from a day on which all of it has ended.
    pub history: String,
    /// The dead; none: as long as other history.
    pub dead: Option<String>,
    /// For how long an idempotency key names its run at least.
    pub keys: String,
}

/// What can be done to many runs at once. See [`Client::act`](crate::Client::act).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Act {
    /// Ask them to end: as [`Client::cancel`](crate::Client::cancel).
    Cancel(Cancel),
    /// Run them again from their checkpoints: as [`Client::retry`](crate::Client::retry).
    Retry,
    /// Run them again from a position: as [`Client::rewind`](crate::Client::rewind).
    Rewind(String),
    /// Start new runs from a position of theirs: as [`Client::fork`](crate::Client::fork).
    Fork(Option<String>),
    /// Run dead ones again from their checkpoints, perhaps elsewhere, perhaps one after the other.
    Redrive {
        /// The queue that they go to. Default: the one that they died in.
        queue: Option<String>,
        /// So many a second, one after the other, from now on; it goes on without whoever asked for it. Default: all at once.
        per_second: Option<f64>,
    },
    /// Throw dead ones away, with all that they recorded.
    PurgeDead,
}

/// What became of one of the runs that were acted on.
#[derive(Debug, Serialize)]
pub struct Acted {
    /// The run.
    pub id: RunId,
    /// cancelled, requested, ready, delayed, purged, the id of the fork, the state in which it had ended; or why the act was refused.
    pub answer: String,
    /// The SQLSTATE of a refusal, such as AM034.
    pub refused: Option<String>,
}

/// How a run is asked to end. A text is the reason alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    pub(crate) reason: String,
    pub(crate) grace: Option<Duration>,
}

impl Cancel {
    /// Why; recorded with the request, up to 1000 characters of it.
    pub fn new(reason: impl Into<String>) -> Self {
        Cancel { reason: reason.into(), grace: None }
    }

    /// The run ends within this span from now on, above zero and at most ten years, and so do its children: what is not undone by then
    /// makes it dead (`AMBO039`), and a [retry](crate::Client::retry) goes on undoing. A step that does not allow to be dropped is
    /// dropped then too. Asked again, the earlier end counts. Default: it ends when its code has come back and it is undone,
    /// however long that takes.
    pub fn grace(mut self, span: Duration) -> Self {
        self.grace = Some(span);
        self
    }
}

impl<T: Into<String>> From<T> for Cancel {
    fn from(reason: T) -> Self {
        Cancel::new(reason)
    }
}

/// What a request to cancel did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cancelled {
    /// The run waited to be claimed and has ended as cancelled.
    AtOnce,
    /// The run is in execution; it ends at its next durable call, or at once in a wait or a step that allows it.
    Requested,
    /// The run had ended before, in this state.
    AlreadyEnded(String),
}
