//! Whether a claim of this process missed a run: Ambo counts what only its sweep found, and one such run spoils a figure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, ensure};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

static FOUND: OnceLock<Arc<AtomicU64>> = OnceLock::new();

/// Hears of that one counter, and costs the others nothing.
struct Sweep;

/// Begins to count; before the first worker.
pub fn listen() -> Result<()> {
    metrics::set_global_recorder(Sweep).context("another recorder of metrics is installed")
}

/// Fails where the sweep found any.
pub fn ensure_none() -> Result<()> {
    let found = FOUND.get().map_or(0, |found| found.load(Ordering::Relaxed));
    ensure!(
        found == 0,
        "{found} runs were found by the sweep only, which is a bug in Ambo: its claims passed them over"
    );
    Ok(())
}

impl Recorder for Sweep {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() == ambo::telemetry::SWEEP_FOUND {
            true => Counter::from_arc(FOUND.get_or_init(Arc::default).clone()),
            false => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
