//! Who comes first: the more urgent, what has begun, each group in its turn, and in a group what was enqueued first.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::{Ctx, Enqueue, Error, Ordered, QueueSettings, Rate, Result, RunId, SendSignal, Untyped, Worker};
use tokio::sync::Semaphore;

use crate::harness::{Database, connect, database};
use crate::limits::{Bench, Job, job};
use crate::random::Random;

impl Bench {
    /// Enqueues all of it in one transaction.
    async fn place(&self, runs: impl IntoIterator<Item = (&'static str, Job, i32)>) -> Vec<RunId> {
        let runs = runs.into_iter().map(|(workflow, job, priority)| {
            let run = Enqueue::<Untyped>::named(workflow, &job).queue("q").weight(job.weight as u32);
            let run = run.priority(priority);
            if let Some(group) = job.group { run.group(group) } else { run }
        });
        ambo::enqueue_all(&self.db.client, runs).await.unwrap().into_iter().map(|new| new.run).collect()
    }

    /// How many of the first `count` that began are such.
    async fn of_the_first(&self, count: usize, is_such: impl Fn(Option<&str>, u32) -> bool) -> usize {
        self.begun(count).await;
        let begun = self.gauge.begun.lock().unwrap();
        begun.iter().take(count).filter(|(group, number)| is_such(group.as_deref(), *number)).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_more_urgent_comes_first_whatever_limits_and_groups_there_are() {
    let settings = QueueSettings::default();
    for (settings, groups) in [
        (settings.clone().worker_concurrency(8), 1),
        (settings.clone().concurrency(4), 0),
        (settings.clone().concurrency(4), 3),
        (settings.concurrency(40).group_concurrency(5), 3),
    ] {
        let mut bench = Bench::new(settings.clone(), 0, 1).await;
        let runs = (0..120).map(|n| {
            let group = if groups == 0 { String::new() } else { format!("g{}", n % groups) };
            ("work", job(&group, n), if n < 60 { 5 } else { 0 })
        });
        bench.place(runs).await;
        bench.add_worker().await;
        let urgent = bench.of_the_first(60, |_, number| number >= 60).await;
        // What is claimed together begins in any order, and a group that is full leaves its place to the less urgent.
        assert!(urgent >= 48, "{urgent} of the first 60 were urgent, with {settings:?}");
        bench.all_ended(120).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_one_turn_whatever_workflows_its_runs_are_of() {
    for concurrency in [2, 12] {
        let mut bench = Bench::new(QueueSettings::default().concurrency(concurrency), 0, 0).await;
        let of_a = (0..120).map(|n| (["work", "more work"][n as usize % 2], job("a", n), 0));
        let of_b = (0..60).map(|n| ("work", job("b", n), 0));
        bench.place(of_a.chain(of_b)).await;
        bench.add_worker().await;
        // What is claimed together begins in any order: so sixty begin before another one may be claimed.
        for begun in (0..60).step_by(concurrency as usize) {
            bench.let_go(if begun == 0 { 0 } else { concurrency as usize });
            bench.begun(begun + concurrency as usize).await;
        }
        let of_a = bench.of_the_first(60, |group, _| group == Some("a")).await;
        assert!((26..=34).contains(&of_a), "{of_a} of 60 turns were a's, a half are 30");
        bench.let_go(120 + concurrency as usize);
        bench.all_ended(180).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_had_also_where_there_is_room_for_less() {
    for concurrency in [1, 2, 4] {
        let mut bench = Bench::new(QueueSettings::default().concurrency(concurrency), 0, 1).await;
        bench.db.client.share_group("q", "a", 3).await.unwrap();
        bench.place((0..300).map(|n| ("work", job(["a", "b", "c"][n as usize % 3], n), 0))).await;
        bench.add_worker().await;
        let of_a = bench.of_the_first(120, |group, _| group == Some("a")).await;
        assert!(
            (66..=78).contains(&of_a),
            "{of_a} of 120 turns with room for {concurrency}, three of five are 72"
        );
        bench.all_ended(300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_in_order_keeps_it_whatever_workflows_its_runs_are_of() {
    let bench = Bench::new(QueueSettings::default().ordered(Ordered::Skip), 2, 1).await;
    // Each enqueue is visible before the next one begins, while they are claimed.
    for n in 0..150 {
        bench.place([(["work", "more work"][n as usize % 3 % 2], job(&format!("g{}", n % 2), n), 0)]).await;
    }
    bench.all_ended(150).await;
    let begun = bench.gauge.begun.lock().unwrap();
    for parity in 0..2 {
        let of_one: Vec<u32> = begun.iter().map(|(_, number)| *number).filter(|n| n % 2 == parity).collect();
        assert!(of_one.is_sorted(), "{of_one:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_weighs_more_than_one_limit_counts_whole_for_the_others() {
    let settings = QueueSettings::default;
    for (settings, most) in [
        (settings().concurrency(10).group_concurrency(2), 8),
        (settings().concurrency(10).rate(Rate::new(1000, Duration::from_secs(1)).burst(1)), 8),
        (settings().concurrency(4).ordered(Ordered::Skip), 4),
        (settings().concurrency(3), 4),
        (settings().worker_concurrency(3), 4),
    ] {
        let bench = Bench::new(settings.clone(), 1, 5).await;
        let runs = (0..40).map(|n| ("work", Job { weight: 4, ..job(&format!("g{}", n % 10), n) }, 0));
        bench.place(runs).await;
        bench.all_ended(40).await;
        assert_eq!(bench.gauge.most(), most, "{settings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_weighs_more_than_its_worker_has_places_is_claimed() {
    let db = database().await;
    db.client.set_queue("q", &QueueSettings::default().groups()).await.unwrap();
    let begun = Arc::<Begun>::default();
    let _worker = worker(&db, &begun, 2).await;
    Enqueue::named("waits", &0).queue("q").weight(1000).on(&db.client).await.unwrap();
    db.until("select count(*) = 1 from ambo.checkpoint").await;
}

/// The numbers of the runs in the order in which they began or went on, and what lets those go that hold a place.
struct Begun {
    numbers: Mutex<Vec<u32>>,
    gate: Semaphore,
}

impl Begun {
    async fn count(&self, count: usize) {
        while self.numbers.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Default for Begun {
    fn default() -> Self {
        Begun { numbers: Mutex::default(), gate: Semaphore::new(0) }
    }
}

/// Holds its place until it is let go.
async fn holds(cx: Ctx<'_>, number: u32) -> Result<()> {
    let begun = cx.state::<Arc<Begun>>()?;
    begun.numbers.lock().unwrap().push(number);
    begun.gate.acquire().await.map_err(Error::other)?.forget();
    Ok(())
}

/// Waits for a signal, parked.
async fn waits(mut cx: Ctx<'_>, number: u32) -> Result<()> {
    cx.step("begin", || async { Ok::<_, Error>(()) }).await?;
    cx.signal::<()>("go").await?;
    cx.state::<Arc<Begun>>()?.numbers.lock().unwrap().push(number);
    Ok(())
}

async fn worker(db: &Database, begun: &Arc<Begun>, places: usize) -> Worker {
    let builder =
        Worker::builder(&db.client).queue("q").workflow_fn("holds", holds).workflow_fn("waits", waits);
    let builder = builder.park_after(Duration::from_millis(10)).max_in_flight(places);
    builder.state(begun.clone()).start().await.unwrap()
}

/// What is in the way of what has begun: nothing, a limit, groups.
fn kinds() -> [Option<QueueSettings>; 3] {
    [None, Some(QueueSettings::default().concurrency(1)), Some(QueueSettings::default().groups())]
}

async fn queue(settings: Option<&QueueSettings>) -> Database {
    let db = database().await;
    db.client.create_queue("q").await.unwrap();
    if let Some(settings) = settings {
        db.client.set_queue("q", settings).await.unwrap();
    }
    db
}

async fn enqueue(db: &Database, workflow: &str, numbers: std::ops::Range<u32>) -> Vec<RunId> {
    let runs = numbers.map(|number| Enqueue::<Untyped>::named(workflow, &number).queue("q"));
    ambo::enqueue_all(&db.client, runs).await.unwrap().into_iter().map(|new| new.run).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_worker_is_gone_goes_on_before_others_begin() {
    for settings in kinds() {
        let db = queue(settings.as_ref()).await;
        let begun = Arc::<Begun>::default();
        let first = worker(&db, &begun, 1).await;
        enqueue(&db, "holds", 0..1).await;
        begun.count(1).await;
        enqueue(&db, "holds", 1..30).await;
        first.drain(Duration::ZERO).await;
        let _second = worker(&db, &begun, 1).await;
        begun.gate.add_permits(30);
        db.until("select count(*) = 30 from ambo.outcome").await;
        let numbers = begun.numbers.lock().unwrap().clone();
        assert_eq!(numbers[..2], [0, 0], "{settings:?}: {numbers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_for_which_something_came_goes_on_before_others_begin() {
    for settings in kinds() {
        let db = queue(settings.as_ref()).await;
        let begun = Arc::<Begun>::default();
        let _worker = worker(&db, &begun, 1).await;
        let parked = enqueue(&db, "waits", 98..100).await;
        db.until("select count(*) = 2 from ambo.timer").await;
        // The first one brings the lane, of which the worker hears within a moment.
        SendSignal::new(parked[0], "go", &()).on(&db.client).await.unwrap();
        begun.count(1).await;
        enqueue(&db, "holds", 0..30).await;
        begun.count(2).await;
        SendSignal::new(parked[1], "go", &()).on(&db.client).await.unwrap();
        begun.gate.add_permits(30);
        db.until("select count(*) = 32 from ambo.outcome").await;
        let numbers = begun.numbers.lock().unwrap().clone();
        let place = numbers.iter().position(|number| *number == 99).unwrap();
        // It is woken by one claim and claimed by another.
        assert!(place <= 8, "{settings:?}: {numbers:?}");
    }
}

/// What a transaction brings that was open at the last claim is found by its xid, not by its lane: it has its turn all the same.
#[tokio::test]
async fn what_committed_late_does_not_come_before_what_is_more_urgent() {
    let db = database().await;
    let register = "select worker_id from ambo.register_worker('w', '1', 0, '{default}', '{a}', false)";
    let worker = db.number(register).await;
    let open = connect(&db.url).await;
    let enqueue = "begin; select count(*) from ambo.enqueue_workflows(array_fill('a'::text, '{30}'), array_fill('1'::json, '{30}'))";
    open.batch_execute(enqueue).await.unwrap();
    let xid: String = open.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    db.sql.batch_execute("select pg_current_xact_id()").await.unwrap();
    open.batch_execute("commit").await.unwrap();
    let urgent =
        "select ambo.enqueue_workflow('a', priority => -5), ambo.enqueue_workflow('a', priority => 5)";
    db.sql.batch_execute(urgent).await.unwrap();
    // As sorted by the worker, and with a mark above what was late.
    let claim = format!(
        "select array_agg(priority::integer order by n) from ambo.claim({worker}, 2, '{{default,default,default}}', '{{a,a,a}}', '{{-5,0,5}}',
         '{{0,60000,0}}', '{{{xid}}}') with ordinality as c (run_id, workflow, queue, input, attempt, losses, priority, key,
         attempts_max, time_left_ms, cancelled, seq, lows, late, parent_id, nudged, too_late, undo_left_ms, n) where run_id is not null"
    );
    let claimed = async || db.sql.query_one(&claim, &[]).await.unwrap().get::<_, Vec<i32>>(0);
    assert_eq!(claimed().await, [-5, 0]);
    for _ in 0..14 {
        assert_eq!(claimed().await, [0, 0]);
    }
    assert_eq!(claimed().await, [0, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_to_start_by_a_time_and_did_not_blocks_its_group() {
    let bench = Bench::new(QueueSettings::default().ordered(Ordered::Block), 0, 1).await;
    let late =
        Enqueue::named("work", &job("g", 0)).queue("q").group("g").start_within(Duration::from_millis(1));
    let late = late.on(&bench.db.client).await.unwrap().run;
    bench.place([("work", job("g", 1), 0), ("work", job("h", 2), 0)]).await;
    // The keeper's act, before anybody claims.
    bench.db.until("select bool_or(start_by < clock_timestamp()) from ambo.ready").await;
    assert_eq!(bench.db.number("select expired::bigint from ambo.expire_runs(10)").await, 1);
    let mut bench = bench;
    bench.add_worker().await;
    bench.all_ended(2).await;
    let blocked = bench.db.client.blocked_groups(Some("q")).await.unwrap();
    assert_eq!((blocked.len(), blocked[0].run), (1, late));
    bench.db.client.retry(late).await.unwrap();
    bench.all_ended(3).await;
    let numbers: Vec<u32> = bench.gauge.begun.lock().unwrap().iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, [2, 0, 1]);
}

/// Whatever is known already, every lane that holds a run is found, once, and none that nobody asked for.
#[tokio::test]
async fn every_lane_that_is_not_known_is_found() {
    let db = database().await;
    let mut random = Random::new();
    db.sql.batch_execute("select ambo.create_queue('other')").await.unwrap();
    let mut lanes: Vec<(String, String, i16)> = Vec::new();
    for priority in [-32768, -7, -1, 0, 1, 2, 3, 900, 32767] {
        for (queue, workflow) in
            ["default", "other"].iter().flat_map(|queue| ["a", "b", "c"].map(|workflow| (queue, workflow)))
        {
            if random.once_in(2) {
                let sql = format!(
                    "select ambo.enqueue_workflow('{workflow}', queue => '{queue}', priority => {priority})"
                );
                db.sql.batch_execute(&sql).await.expect(&sql);
                lanes.push(((*queue).to_owned(), workflow.to_owned(), priority));
            }
        }
    }
    let find = "select queue, workflow, priority from ambo.find_lanes($1, $2, $3, $4, $5)";
    for _ in 0..200 {
        let workflows = random.pick(&[vec!["a", "b"], vec!["b"], vec!["c", "a", "b", "d"]]).clone();
        let queues =
            random.pick(&[vec!["other"], vec!["default", "other"], vec!["nowhere", "default"]]).clone();
        let mut known: Vec<_> = lanes.iter().filter(|_| random.once_in(3)).cloned().collect();
        // And one that is empty by now.
        known.push(("other".to_owned(), "a".to_owned(), 5));
        let columns = (
            known.iter().map(|lane| lane.0.as_str()).collect::<Vec<_>>(),
            known.iter().map(|lane| lane.1.as_str()).collect::<Vec<_>>(),
            known.iter().map(|lane| lane.2).collect::<Vec<_>>(),
        );
        let found =
            db.sql.query(find, &[&queues, &workflows, &columns.0, &columns.1, &columns.2]).await.unwrap();
        let mut found: Vec<(String, String, i16)> =
            found.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        let is_asked_for = |lane: &&(String, String, i16)| {
            queues.contains(&lane.0.as_str()) && workflows.contains(&lane.1.as_str()) && !known.contains(lane)
        };
        let mut wanted: Vec<_> = lanes.iter().filter(is_asked_for).cloned().collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    }
}
