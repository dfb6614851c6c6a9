//! Managed queues: limits that hold, turns that are taken, orders that are kept, by several workers at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::{Ctx, Enqueue, Error, Ordered, QueueSettings, Rate, Result, RunId, Untyped, Worker, enqueue_all};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::harness::{Database, database};

/// What a run weighs, and whose it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) group: Option<String>,
    pub(crate) weight: i64,
    pub(crate) number: u32,
    pub(crate) fails: bool,
}

/// Weight in execution, now and at the most, in all and by group; and the order in which runs began.
#[derive(Default)]
pub(crate) struct Gauge {
    all: Level,
    groups: Mutex<HashMap<String, Arc<Level>>>,
    pub(crate) begun: Mutex<Vec<(Option<String>, u32)>>,
    ended: Mutex<Vec<(Option<String>, u32)>>,
    /// How long a run takes; 0: until the test lets it go.
    ms: AtomicI64,
}

#[derive(Default)]
struct Level {
    now: AtomicI64,
    most: AtomicI64,
}

impl Level {
    fn add(&self, weight: i64) {
        let now = self.now.fetch_add(weight, Ordering::SeqCst) + weight;
        self.most.fetch_max(now, Ordering::SeqCst);
    }
}

impl Gauge {
    fn group(&self, name: &str) -> Arc<Level> {
        self.groups.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    /// What was is over: the most is from now on.
    pub(crate) fn forget(&self) {
        self.all.most.store(self.all.now.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    pub(crate) fn most(&self) -> i64 {
        self.all.most.load(Ordering::SeqCst)
    }

    fn most_of_a_group(&self) -> i64 {
        let groups = self.groups.lock().unwrap();
        groups.values().map(|level| level.most.load(Ordering::SeqCst)).max().unwrap_or(0)
    }
}

/// What lets runs go that wait for it.
pub(crate) struct Gate(Semaphore);

async fn work(cx: Ctx<'_>, job: Job) -> Result<u32> {
    let (gauge, gate) = (cx.state::<Arc<Gauge>>()?, cx.state::<Arc<Gate>>()?);
    gauge.begun.lock().unwrap().push((job.group.clone(), job.number));
    gauge.all.add(job.weight);
    let level = job.group.as_deref().map(|group| gauge.group(group));
    if let Some(level) = &level {
        level.add(job.weight);
    }
    match gauge.ms.load(Ordering::SeqCst) {
        0 => gate.0.acquire().await.map_err(Error::other)?.forget(),
        ms => tokio::time::sleep(Duration::from_millis(ms.unsigned_abs())).await,
    }
    gauge.all.add(-job.weight);
    if let Some(level) = &level {
        level.add(-job.weight);
    }
    gauge.ended.lock().unwrap().push((job.group.clone(), job.number));
    if job.fails { Err(Error::application(&0, "as it was told").permanent()) } else { Ok(job.number) }
}

pub(crate) struct Bench {
    pub(crate) db: Database,
    pub(crate) gauge: Arc<Gauge>,
    gate: Arc<Gate>,
    pub(crate) workers: Vec<Worker>,
}

impl Bench {
    pub(crate) async fn new(settings: QueueSettings, workers: usize, ms: i64) -> Bench {
        let db = database().await;
        db.client.set_queue("q", &settings).await.unwrap();
        let mut bench =
            Bench { db, gauge: Arc::default(), gate: Arc::new(Gate(Semaphore::new(0))), workers: Vec::new() };
        bench.gauge.ms.store(ms, Ordering::SeqCst);
        for _ in 0..workers {
            bench.add_worker().await;
        }
        bench
    }

    pub(crate) async fn add_worker(&mut self) {
        let worker = Worker::builder(&self.db.client)
            .queue("q")
            .workflow_fn("work", work)
            .workflow_fn("more work", work)
            .state(self.gauge.clone())
            .state(self.gate.clone())
            .start();
        self.workers.push(worker.await.unwrap());
    }

    pub(crate) async fn enqueue(&self, jobs: impl IntoIterator<Item = Job>) -> Vec<RunId> {
        let runs = jobs.into_iter().map(|job| {
            let run = Enqueue::<Untyped>::named("work", &job).queue("q").weight(job.weight as u32);
            match job.group {
                Some(group) => run.group(group),
                None => run,
            }
        });
        enqueue_all(&self.db.client, runs).await.unwrap().into_iter().map(|new| new.run).collect()
    }

    pub(crate) async fn all_ended(&self, count: usize) {
        self.db.until(&format!("select count(*) = {count} from ambo.outcome")).await;
        self.db.until("select count(*) = 0 from ambo.claim").await;
    }

    pub(crate) async fn begun(&self, count: usize) {
        for _ in 0..3000 {
            if self.gauge.begun.lock().unwrap().len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} of {count} began", self.gauge.begun.lock().unwrap().len());
    }

    pub(crate) fn let_go(&self, count: usize) {
        self.gate.0.add_permits(count);
    }
}

pub(crate) fn job(group: &str, number: u32) -> Job {
    Job { group: Some(group.to_owned()).filter(|group| !group.is_empty()), weight: 1, number, fails: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_runs_are_in_execution_than_a_queue_allows_whatever_their_weight() {
    let bench = Bench::new(QueueSettings::default().concurrency(7), 3, 3).await;
    let jobs = (0..300).map(|n| Job { weight: 1 + i64::from(n % 3), ..job("", n) });
    bench.enqueue(jobs).await;
    bench.all_ended(300).await;
    let most = bench.gauge.most();
    assert!((5..=7).contains(&most), "{most} of 7");
    assert_eq!(bench.db.number("select count(*) from ambo.claim where slot is not null").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_group_has_more_than_its_limit_and_all_have_something() {
    let bench = Bench::new(QueueSettings::default().group_concurrency(2), 3, 2).await;
    bench.enqueue((0..600).map(|n| job(&format!("g{}", n % 20), n))).await;
    bench.all_ended(600).await;
    assert_eq!(bench.gauge.most_of_a_group(), 2);
    assert!(bench.gauge.most() > 10, "groups run beside each other: {}", bench.gauge.most());
    assert_eq!(bench.db.number("select count(*) from ambo.claim where slot is not null").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_keeps_to_its_own_limit() {
    let bench = Bench::new(QueueSettings::default().worker_concurrency(2), 2, 0).await;
    bench.enqueue((0..20).map(|n| job("", n))).await;
    bench.begun(4).await;
    bench.db.until("select max(n) = 2 and sum(n) = 4 from (select count(*) as n from ambo.claim group by worker_id) c").await;
    bench.let_go(20);
    bench.all_ended(20).await;
    assert!(bench.gauge.most() <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_changes_holds_from_the_next_claim_on() {
    let bench = Bench::new(QueueSettings::default().concurrency(1), 2, 0).await;
    bench.enqueue((0..20).map(|n| job("", n))).await;
    bench.begun(1).await;
    bench.db.client.set_queue("q", &QueueSettings::default().concurrency(5)).await.unwrap();
    bench.begun(5).await;
    bench.db.client.set_queue("q", &QueueSettings::default().concurrency(2)).await.unwrap();
    bench.let_go(4);
    bench.begun(6).await;
    bench.db.until("select count(*) = 2 from ambo.claim").await;
    bench.db.client.set_queue("q", &QueueSettings::default().concurrency(None)).await.unwrap();
    bench.begun(20).await;
    bench.let_go(20);
    bench.all_ended(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_claimed_in_any_span_than_the_rate_allows() {
    let rate = Rate::new(100, Duration::from_secs(1)).burst(10);
    let bench = Bench::new(QueueSettings::default().rate(rate), 2, 1).await;
    // The clock is read after the tokens were counted, and before what is left of them is written down.
    let note = "create table seen (at timestamptz default clock_timestamp());
        create function note() returns trigger language plpgsql as
            $$ begin insert into public.seen default values; return null; end $$;
        create trigger note after insert on ambo.claim for each row execute function note();";
    bench.db.sql.batch_execute(note).await.unwrap();
    bench.enqueue((0..120).map(|n| job("", n))).await;
    bench.all_ended(120).await;
    let over = "
        select max((select count(*) from seen b where b.at between a.at and z.at)
                   - (10 + 100 * extract(epoch from z.at - a.at)))::float8
        from seen a join seen z on z.at >= a.at";
    let over: f64 = bench.db.sql.query_one(over, &[]).await.unwrap().get(0);
    assert!(over < 1e-6, "{over} above the rate");
    assert_eq!(bench.db.number("select count(*) from seen").await, 120);
    let span = "select extract(epoch from max(ended_at) - min(ended_at))::float8 from ambo.outcome";
    let span: f64 = bench.db.sql.query_one(span, &[]).await.unwrap().get(0);
    assert!(span > 0.9, "110 runs at 100 a second took {span} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_million_and_one_of_its_own_both_have_their_turn() {
    let bench = Bench::new(QueueSettings::default().concurrency(4), 1, 0).await;
    bench.enqueue((0..5000).map(|n| job("many", n))).await;
    bench.begun(4).await;
    bench.enqueue((0..3).map(|n| job(&format!("one {n}"), n))).await;
    bench.let_go(8);
    bench.begun(12).await;
    let begun = bench.gauge.begun.lock().unwrap().clone();
    let ones = begun.iter().filter(|(group, _)| group.as_deref() != Some("many")).count();
    assert_eq!(ones, 3, "{begun:?}");
    bench.let_go(6000);
    bench.all_ended(5003).await;
    let of_many: Vec<u32> = bench
        .gauge
        .begun
        .lock()
        .unwrap()
        .iter()
        .filter(|(group, _)| group.as_deref() == Some("many"))
        .map(|(_, number)| *number)
        .collect();
    // Within a group, first come, first served. A run that begins overtakes only those that hold one of the other three
    // places and are slower to say so, however slow they are.
    let strays = of_many
        .iter()
        .enumerate()
        .find(|(at, number)| of_many[at + 1..].iter().filter(|later| later < number).count() > 3);
    assert_eq!(strays, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_a_greater_share_has_more_turns() {
    let bench = Bench::new(QueueSettings::default().concurrency(8), 1, 0).await;
    bench.db.client.share_group("q", "heavy", 3).await.unwrap();
    bench.enqueue((0..400).map(|n| job(if n % 2 == 0 { "heavy" } else { "light" }, n))).await;
    bench.let_go(200);
    bench.begun(208).await;
    let begun = bench.gauge.begun.lock().unwrap().clone();
    let heavy = begun[8..200].iter().filter(|(group, _)| group.as_deref() == Some("heavy")).count();
    assert!((130..=158).contains(&heavy), "{heavy} of 192 turns, three quarters are 144");
    bench.let_go(400);
    bench.all_ended(400).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_in_order_runs_one_after_the_other_also_when_parked() {
    let bench = Bench::new(QueueSettings::default().ordered(Ordered::Skip), 3, 1).await;
    bench.enqueue((0..200).map(|n| Job { fails: n % 7 == 0, ..job(&format!("g{}", n % 5), n) })).await;
    bench.all_ended(200).await;
    assert_eq!(bench.gauge.most_of_a_group(), 1);
    let mut last = HashMap::new();
    for (group, number) in bench.gauge.ended.lock().unwrap().iter() {
        assert!(last.insert(group.clone(), *number).is_none_or(|last| last < *number), "{group:?} {number}");
    }
    bench.db.until("select count(*) = 0 from ambo.claim where slot is not null").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_run_failed_stands_still_until_somebody_looks() {
    let bench = Bench::new(QueueSettings::default().ordered(Ordered::Block), 2, 1).await;
    let runs = bench.enqueue((0..4).map(|n| Job { fails: n == 1, ..job("g", n) })).await;
    bench.enqueue([job("other", 9)]).await;
    bench.all_ended(3).await;
    let blocked = bench.db.client.blocked_groups(Some("q")).await.unwrap();
    assert_eq!(blocked.len(), 1);
    assert_eq!((blocked[0].run, blocked[0].group.as_deref()), (runs[1], Some("g")));
    // Once more, and it fails again: the next ones still wait.
    bench.db.client.retry(runs[1]).await.unwrap();
    bench.begun(4).await;
    bench.all_ended(3).await;
    assert!(bench.db.client.unblock_group("q", "g").await.unwrap());
    bench.all_ended(5).await;
    assert!(!bench.db.client.unblock_group("q", "g").await.unwrap());

    // Where failure does not block any more, what stood still goes on.
    bench.enqueue([Job { fails: true, ..job("h", 5) }, job("h", 6)]).await;
    bench.all_ended(6).await;
    bench.db.client.set_queue("q", &QueueSettings::default().ordered(Ordered::Dead)).await.unwrap();
    bench.all_ended(7).await;
    let runs = bench.enqueue([Job { fails: true, ..job("g", 10) }, job("g", 11)]).await;
    bench.all_ended(9).await;
    assert_eq!(bench.db.client.show_run(runs[0]).await.unwrap().summary.state, "dead");
    bench.db.until("select count(*) = 0 from ambo.claim where slot is not null").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_not_urgent_has_its_turn_by_ageing_and_without_it_comes_last() {
    for ageing in [None, Some(Duration::from_millis(20))] {
        let mut bench = Bench::new(QueueSettings::default().concurrency(1).ageing(ageing), 0, 2).await;
        let patient = Enqueue::<Untyped>::named("work", &job("", 999)).queue("q").priority(5);
        patient.on(&bench.db.client).await.unwrap();
        bench.enqueue((0..300).map(|n| job("", n))).await;
        bench.add_worker().await;
        bench.all_ended(301).await;
        let begun = bench.gauge.begun.lock().unwrap();
        let turn = begun.iter().position(|(_, number)| *number == 999).unwrap();
        assert_eq!(turn == 300, ageing.is_none(), "its turn was {turn} with {ageing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_has_no_place_and_its_group_waits_for_it() {
    let mut bench =
        Bench::new(QueueSettings::default().ordered(Ordered::Block).worker_concurrency(3), 1, 0).await;
    bench.enqueue((0..9).map(|n| job(if n % 3 == 0 { "g" } else { "" }, n))).await;
    bench.begun(3).await;
    assert_eq!(bench.db.number("select count(*) from ambo.claim").await, 3, "its worker keeps to its limit");
    bench.workers.remove(0).drain(Duration::ZERO).await;
    assert_eq!(bench.db.number("select count(*) from ambo.claim where slot is not null").await, 0);
    assert_eq!(bench.db.number("select count(*) from ambo.head").await, 1);
    bench.add_worker().await;
    bench.let_go(20);
    bench.all_ended(9).await;
    bench.db.until("select not exists (select from ambo.claim) and not exists (select from ambo.head)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_group_waits_and_the_others_do_not() {
    let bench = Bench::new(QueueSettings::default().groups(), 1, 1).await;
    bench.db.client.pause_group("q", "a", true).await.unwrap();
    bench.enqueue((0..10).map(|n| job(if n % 2 == 0 { "a" } else { "b" }, n))).await;
    bench.all_ended(5).await;
    bench.db.client.pause_group("q", "a", false).await.unwrap();
    bench.all_ended(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_gets_groups_later_keeps_what_waits_in_it() {
    let db = database().await;
    db.client.create_queue("q").await.unwrap();
    let mut bench =
        Bench { db, gauge: Arc::default(), gate: Arc::new(Gate(Semaphore::new(0))), workers: Vec::new() };
    bench.gauge.ms.store(1, Ordering::SeqCst);
    bench.add_worker().await;
    bench.db.client.pause_queue("q", true).await.unwrap();
    let refused = Enqueue::<Untyped>::named("work", &1).queue("q").group("g").on(&bench.db.client).await;
    assert_eq!(refused.unwrap_err().code(), ambo::Code::NoGroups);
    bench.enqueue((0..50).map(|n| job("", n))).await;
    bench.db.client.set_queue("q", &QueueSettings::default().concurrency(2)).await.unwrap();
    bench.enqueue((0..50).map(|n| job("g", n))).await;
    bench.db.client.pause_queue("q", false).await.unwrap();
    bench.all_ended(100).await;
    assert!(bench.gauge.most() <= 2);
}
