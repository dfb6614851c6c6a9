//! The load: so many enqueues a second, whatever becomes of the ones before; and what is seen of it in this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::engine::{Producer, Workflow, ended};

/// Enqueues that have not been answered; more are not begun.
const OPEN: i64 = 5000;
/// Samples of the time from commit to start a second, about.
const SAMPLES: f64 = 1000.0;

/// Every so many inputs a run is timed; 0 while nobody looks.
static EVERY: AtomicI64 = AtomicI64::new(0);
/// Inputs are never used twice in a process.
static NEXT: AtomicI64 = AtomicI64::new(0);
/// Runs of which either the commit or the start is known.
static HALVES: Mutex<Option<HashMap<i64, Half>>> = Mutex::new(None);
/// Commit, and from there to the start of the body.
static SEEN: Mutex<Vec<(Instant, Duration)>> = Mutex::new(Vec::new());

#[derive(Clone, Copy)]
enum Half {
    Committed(Instant),
    Started(Instant),
}

/// Called at the beginning of the one-step workflow.
pub fn note_start(input: i64) {
    note(input, Half::Started(Instant::now()));
}

fn note(input: i64, half: Half) {
    let every = EVERY.load(Ordering::Relaxed);
    if every == 0 || input % every != 0 {
        return;
    }
    let mut halves = HALVES.lock().unwrap_or_else(PoisonError::into_inner);
    let halves = halves.get_or_insert_default();
    let (committed, started) = match (halves.remove(&input), half) {
        (Some(Half::Committed(committed)), Half::Started(started))
        | (Some(Half::Started(started)), Half::Committed(committed)) => (committed, started),
        _ => {
            halves.insert(input, half);
            return;
        }
    };
    // A run may start before the answer to its commit is back: that is at once.
    let took = started.saturating_duration_since(committed);
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).push((committed, took));
}

/// What was seen since the last time.
pub fn take_seen() -> Vec<(Instant, Duration)> {
    std::mem::take(&mut SEEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The load while it runs.
pub struct Pulse {
    pub rate: f64,
    stopped: Arc<AtomicBool>,
    beating: tokio::task::JoinHandle<Result<i64>>,
}

impl Pulse {
    /// Begins to enqueue at this rate.
    pub fn start<P: Producer>(producer: &P, rate: f64) -> Pulse {
        EVERY.store((rate / SAMPLES).ceil().max(1.0) as i64, Ordering::Relaxed);
        let stopped = Arc::new(AtomicBool::new(false));
        let beating = tokio::spawn(beat(producer.clone(), rate, stopped.clone()));
        Pulse { rate, stopped, beating }
    }

    /// Stops it, and waits for the last answers; how many runs were enqueued.
    pub async fn stop(self) -> Result<i64> {
        self.stopped.store(true, Ordering::Relaxed);
        let enqueued = self.beating.await?;
        EVERY.store(0, Ordering::Relaxed);
        take_seen();
        enqueued
    }
}

async fn beat<P: Producer>(producer: P, rate: f64, stopped: Arc<AtomicBool>) -> Result<i64> {
    let (open, failed) = (Arc::new(AtomicI64::new(0)), Arc::new(Mutex::new(None)));
    let (began, mut sent) = (Instant::now(), 0);
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    while !stopped.load(Ordering::Relaxed) {
        ticks.tick().await;
        let due = (rate * began.elapsed().as_secs_f64()) as i64 - sent;
        for _ in 0..due.min(OPEN - open.load(Ordering::Relaxed)) {
            let (producer, open, failed) = (producer.clone(), open.clone(), failed.clone());
            open.fetch_add(1, Ordering::Relaxed);
            sent += 1;
            tokio::spawn(async move {
                let input = NEXT.fetch_add(1, Ordering::Relaxed);
                match producer.enqueue(Workflow::OneStep, input).await {
                    Ok(_) => note(input, Half::Committed(Instant::now())),
                    Err(error) => {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
    while open.load(Ordering::Relaxed) > 0 {
        ticks.tick().await;
    }
    match failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => bail!("an enqueue failed: {error:#}"),
        None => Ok(sent),
    }
}

/// How many runs have ended so far.
pub fn served() -> i64 {
    ended()
}
