//! Every metric, with its unit: names are constants here and nowhere else. Spans are `run` (run, workflow, attempt),
//! `step` and `transaction` (position, name, and the number of the attempt under way), on targets below `ambo`.
//!
//! Without a recorder of the `metrics` crate they cost next to nothing. Install the recorder before the first workflow is
//! registered: what was looked up before it counts nowhere.

use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// Runs taken into memory, by `workflow`.
pub const RUNS_STARTED: &str = "ambo_runs_started_total";
/// Runs that ended, by `workflow` and `status`.
pub const RUNS_ENDED: &str = "ambo_runs_ended_total";
/// Runs in memory.
pub const RUNS_IN_FLIGHT: &str = "ambo_runs_in_flight";
/// Steps that ended, by `workflow` and `succeeded`.
pub const STEPS_ENDED: &str = "ambo_steps_ended_total";
/// How long a step took, its retries included, in seconds, by `workflow`.
pub const STEP_SECONDS: &str = "ambo_step_seconds";
/// Attempts of steps that failed and were tried again, by `workflow`.
pub const STEP_RETRIES: &str = "ambo_step_retries_total";
/// Runs in one claim.
pub const CLAIM_RUNS: &str = "ambo_claim_runs";
/// How long a claim took, in seconds.
pub const CLAIM_SECONDS: &str = "ambo_claim_seconds";
/// Facts in one flush of the journal.
pub const FLUSH_FACTS: &str = "ambo_flush_facts";
/// How long a flush took, in seconds.
pub const FLUSH_SECONDS: &str = "ambo_flush_seconds";
/// Runs that the keeper took from dead workers, by `fate`: `ready` or `dead`.
pub const RUNS_RECOVERED: &str = "ambo_runs_recovered_total";
/// How often this worker learned that it had been declared dead.
pub const FENCED: &str = "ambo_worker_fenced_total";
/// Runs that only the sweep found; anything above zero is a bug in Ambo.
pub const SWEEP_FOUND: &str = "ambo_sweep_found_total";

/// All names with their meaning. A worker that starts describes them to the recorder.
pub const ALL: &[(&str, &str)] = &[
    (RUNS_STARTED, "runs taken into memory"),
    (RUNS_ENDED, "runs that ended"),
    (RUNS_IN_FLIGHT, "runs in memory"),
    (STEPS_ENDED, "steps that ended"),
    (STEP_SECONDS, "how long a step took, in seconds"),
    (STEP_RETRIES, "attempts of steps that were tried again"),
    (CLAIM_RUNS, "runs in one claim"),
    (CLAIM_SECONDS, "how long a claim took, in seconds"),
    (FLUSH_FACTS, "facts in one flush"),
    (FLUSH_SECONDS, "how long a flush took, in seconds"),
    (RUNS_RECOVERED, "runs taken from dead workers"),
    (FENCED, "times this worker was declared dead"),
    (SWEEP_FOUND, "runs that only the sweep found"),
];

/// Tells the recorder what each metric means, by the ending of its name: it sorts counters, times and the rest.
pub(crate) fn describe() {
    for (name, meaning) in ALL.iter().copied() {
        if name.ends_with("_total") {
            describe_counter!(name, meaning);
        } else if name.ends_with("_seconds") {
            describe_histogram!(name, Unit::Seconds, meaning);
        } else if name == RUNS_IN_FLIGHT {
            describe_gauge!(name, Unit::Count, meaning);
        } else {
            describe_histogram!(name, Unit::Count, meaning);
        }
    }
}

/// The counters of one workflow, looked up once: with no recorder they cost nothing, with one an addition.
#[derive(Clone)]
pub(crate) struct WorkflowMeters {
    runs_started: Counter,
    runs_ended: [(&'static str, Counter); 4],
    steps_succeeded: Counter,
    steps_failed: Counter,
    step_retries: Counter,
    step_seconds: Histogram,
}

impl WorkflowMeters {
    pub(crate) fn new(workflow: &str) -> Self {
        let workflow = workflow.to_owned();
        let ended = |status: &'static str| {
            (status, counter!(RUNS_ENDED, "workflow" => workflow.clone(), "status" => status))
        };
        WorkflowMeters {
            runs_started: counter!(RUNS_STARTED, "workflow" => workflow.clone()),
            runs_ended: [ended("succeeded"), ended("failed"), ended("cancelled"), ended("dead")],
            steps_succeeded: counter!(STEPS_ENDED, "workflow" => workflow.clone(), "succeeded" => "true"),
            steps_failed: counter!(STEPS_ENDED, "workflow" => workflow.clone(), "succeeded" => "false"),
            step_retries: counter!(STEP_RETRIES, "workflow" => workflow.clone()),
            step_seconds: histogram!(STEP_SECONDS, "workflow" => workflow.clone()),
        }
    }

    pub(crate) fn run_started(&self) {
        self.runs_started.increment(1);
    }

    pub(crate) fn run_ended(&self, status: &str) {
        if let Some((_, counter)) = self.runs_ended.iter().find(|(known, _)| *known == status) {
            counter.increment(1);
        }
    }

    pub(crate) fn step_ended(&self, succeeded: bool, elapsed: Duration) {
        let counter = if succeeded { &self.steps_succeeded } else { &self.steps_failed };
        counter.increment(1);
        self.step_seconds.record(elapsed.as_secs_f64());
    }

    pub(crate) fn step_retried(&self) {
        self.step_retries.increment(1);
    }
}

impl std::fmt::Debug for WorkflowMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkflowMeters")
    }
}

pub(crate) fn in_flight(runs: usize) {
    gauge!(RUNS_IN_FLIGHT).set(runs as f64);
}

pub(crate) fn claimed(runs: usize, elapsed: Duration) {
    histogram!(CLAIM_RUNS).record(runs as f64);
    histogram!(CLAIM_SECONDS).record(elapsed.as_secs_f64());
}

pub(crate) fn flushed(facts: usize, elapsed: Duration) {
    histogram!(FLUSH_FACTS).record(facts as f64);
    histogram!(FLUSH_SECONDS).record(elapsed.as_secs_f64());
}

pub(crate) fn recovered(ready: i32, dead: i32) {
    counter!(RUNS_RECOVERED, "fate" => "ready").increment(u64::from(ready.unsigned_abs()));
    counter!(RUNS_RECOVERED, "fate" => "dead").increment(u64::from(dead.unsigned_abs()));
}

pub(crate) fn fenced() {
    counter!(FENCED).increment(1);
}

pub(crate) fn sweep_found() {
    counter!(SWEEP_FOUND).increment(1);
}
