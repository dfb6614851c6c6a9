//! What a program hears of its workers: spans around what its steps log, and metrics.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use ambo::{Ctx, Enqueue, Result, Retry, Worker};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use crate::harness::{Database, database};

/// The first try of its second step fails.
async fn charge(mut cx: Ctx<'_>, fails: bool) -> Result<u32> {
    cx.step("reserve", || async { Ok::<_, ambo::Error>(()) }).await?;
    let charge = cx.step_with("charge", async |attempt| {
        tracing::info!("asking the payment service");
        if attempt.number() == 1 { Err(ambo::Error::message("busy")) } else { Ok(attempt.number()) }
    });
    let tries = charge.retry(Retry::fixed(std::time::Duration::ZERO).max_attempts(2)).await?;
    if fails { Err(ambo::Error::message("secret of a customer").permanent()) } else { Ok(tries) }
}

/// One run that succeeds and one that fails.
async fn run_two(db: &Database) -> ambo::RunId {
    let worker = Worker::builder(&db.client).workflow_fn("charge", charge).start().await.unwrap();
    let good = Enqueue::named("charge", &false).on(&db.client).await.unwrap().run;
    let bad = Enqueue::named("charge", &true).on(&db.client).await.unwrap().run;
    db.client.handle::<ambo::Untyped>(good).result_as::<u32, ambo::Error>().await.unwrap();
    db.client.handle::<ambo::Untyped>(bad).result_as::<u32, ambo::Error>().await.unwrap_err();
    worker.drain(std::time::Duration::from_secs(10)).await;
    good
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_step_logs_says_of_which_run_step_and_attempt_it_is() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let db = database().await;
    let good = run_two(&db).await;
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let of_run =
        format!("run{{run={good} workflow=\"charge\" attempt=1}}:step{{position=\"2\" name=charge attempt=1");
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(&of_run) && line.ends_with("asking the payment service"))
        .collect();
    assert_eq!(said.len(), 2, "{log}");
    assert!(said[1].contains("attempt=2}"), "the second attempt says so: {}", said[1]);
    assert!(!log.contains("secret of a customer"), "what a run fails with is not logged: {log}");
}

type Meaning = (Option<Unit>, String);

/// What a recorder was told: meanings by name, sums by name and labels.
#[derive(Clone, Default)]
struct Told {
    meanings: Arc<Mutex<BTreeMap<String, Meaning>>>,
    sums: Arc<Mutex<BTreeMap<String, f64>>>,
}

impl Told {
    fn describe(&self, name: &KeyName, unit: Option<Unit>, meaning: &SharedString) {
        self.meanings.lock().unwrap().insert(name.as_str().to_owned(), (unit, meaning.to_string()));
    }

    fn meter(&self, key: &Key) -> Arc<Meter> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Meter { name: format!("{} {}", key.name(), labels.join(" ")), told: self.clone() })
    }

    fn sum(&self, name: &str) -> f64 {
        self.sums.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

struct Meter {
    name: String,
    told: Told,
}

impl Meter {
    fn add(&self, value: f64) {
        *self.told.sums.lock().unwrap().entry(self.name.clone()).or_default() += value;
    }
}

impl CounterFn for Meter {
    fn increment(&self, value: u64) {
        self.add(value as f64);
    }

    fn absolute(&self, _: u64) {
        unreachable!("nothing sets a counter");
    }
}

impl GaugeFn for Meter {
    fn increment(&self, _: f64) {
        unreachable!("a gauge is set");
    }

    fn decrement(&self, _: f64) {
        unreachable!("a gauge is set");
    }

    fn set(&self, value: f64) {
        self.told.sums.lock().unwrap().insert(self.name.clone(), value);
    }
}

impl HistogramFn for Meter {
    fn record(&self, value: f64) {
        self.add(value);
    }
}

impl Recorder for Told {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe(&name, unit, &meaning);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe(&name, unit, &meaning);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.describe(&name, unit, &meaning);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.meter(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.meter(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.meter(key))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_is_told_what_each_metric_means_and_what_happened() {
    let told = Told::default();
    metrics::set_global_recorder(told.clone()).expect("the only recorder of this process");
    let db = database().await;
    run_two(&db).await;
    let meanings = told.meanings.lock().unwrap().clone();
    for (name, meaning) in ambo::telemetry::ALL {
        let (unit, said) = meanings.get(*name).unwrap_or_else(|| panic!("{name} was not described"));
        assert_eq!(said, meaning);
        assert_eq!(*unit == Some(Unit::Seconds), name.ends_with("_seconds"), "{name}");
    }
    for (name, sum) in [
        ("ambo_runs_started_total workflow=charge", 2.0),
        ("ambo_runs_ended_total workflow=charge status=succeeded", 1.0),
        ("ambo_runs_ended_total workflow=charge status=failed", 1.0),
        ("ambo_runs_ended_total workflow=charge status=dead", 0.0),
        ("ambo_steps_ended_total workflow=charge succeeded=true", 4.0),
        ("ambo_steps_ended_total workflow=charge succeeded=false", 0.0),
        ("ambo_step_retries_total workflow=charge", 2.0),
        ("ambo_claim_runs ", 2.0),
        ("ambo_runs_in_flight ", 0.0),
        ("ambo_worker_fenced_total ", 0.0),
    ] {
        assert_eq!(told.sum(name), sum, "{name}");
    }
    // Of each run: its start, two steps, its end.
    assert!(told.sum("ambo_flush_facts ") >= 6.0, "{}", told.sum("ambo_flush_facts "));
    for name in ["ambo_step_seconds workflow=charge", "ambo_claim_seconds ", "ambo_flush_seconds "] {
        assert!(told.sum(name) > 0.0, "{name}");
    }
}
