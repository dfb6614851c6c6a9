//! A managed queue while everything happens to it: workers are killed, leave and join, its limits are moved, runs of random groups,
//! priorities and weights come in waves. What was in execution is told by the runs themselves, by the database's clock:
//! the highest setting in force was never exceeded, order was kept, and all came to their end.
//! `AMBO_QUEUE_CHAOS` says how many times, each with a seed of its own; 500 make a night.

pub(crate) mod hold;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ambo::{Enqueue, Ordered, QueueSettings, Untyped, enqueue_all};

use crate::child::Child;
use crate::harness::{Database, database};
use crate::random::Random;
use hold::{Held, Span};

pub(crate) use hold::work;

/// Runs in one round, and the waves in which they come.
const RUNS: i32 = 240;
const WAVES: i32 = 6;
const WORKERS: usize = 3;
/// Workers that are killed in a round: what they held waits until they are found dead.
const KILLS: usize = 3;

/// What limits a queue; none: nothing does.
#[derive(Debug, Clone, Copy, Default)]
struct Limits {
    all: Option<u32>,
    worker: Option<u32>,
    group: Option<u32>,
}

impl Limits {
    fn random(random: &mut Random) -> Limits {
        let mut limit = |most: usize| (!random.once_in(4)).then(|| 1 + random.below(most) as u32);
        Limits { all: limit(9), worker: limit(4), group: limit(3) }
    }

    fn settings(self) -> QueueSettings {
        QueueSettings::default()
            .groups()
            .concurrency(self.all)
            .worker_concurrency(self.worker)
            .group_concurrency(self.group)
    }
}

/// Settings that may have been in force: from before they were asked for until after the next ones were.
#[derive(Debug)]
struct Era {
    from: f64,
    to: f64,
    limits: Limits,
}

/// The highest setting that can have been in force between two times; none: there was none.
fn highest(eras: &[Era], from: f64, to: f64, limit: impl Fn(&Limits) -> Option<u32>) -> Option<u32> {
    let in_force = eras.iter().filter(|era| era.from <= to && era.to >= from);
    in_force.map(|era| limit(&era.limits)).try_fold(0, |most, limit| limit.map(|limit| limit.max(most)))
}

/// At no moment more than the highest setting since what was in execution then took its places; but one that weighs more may be
/// alone.
fn assert_limit(
    what: &str,
    eras: &[Era],
    spans: &[&Span],
    limit: impl Fn(&Limits) -> Option<u32> + Copy,
    taken: impl Fn(&Span) -> f64,
) -> i32 {
    let mut most = 0;
    for at in spans {
        let running = spans.iter().filter(|span| span.begun <= at.begun && span.ended > at.begun);
        let (weight, since) = running.fold((0, taken(at)), |(weight, since), span| {
            (weight + span.slot.map_or(0, |slot| slot.1), since.min(taken(span)))
        });
        most = most.max(weight);
        if let Some(allowed) = highest(eras, since, at.begun, limit) {
            let running = || spans.iter().filter(|span| span.begun <= at.begun && span.ended > at.begun);
            assert!(
                weight <= allowed as i32 || allowed > 0 && running().count() == 1,
                "{what}: {weight} of {allowed}: {:#?}, {eras:#?}",
                running().collect::<Vec<_>>()
            );
        }
    }
    most
}

/// Spans that were counted, by something.
fn by<K: std::hash::Hash + Eq>(spans: &[Span], key: impl Fn(&Span) -> Option<K>) -> HashMap<K, Vec<&Span>> {
    let mut all: HashMap<K, Vec<&Span>> = HashMap::new();
    for span in spans.iter().filter(|span| span.slot.is_some()) {
        if let Some(key) = key(span) {
            all.entry(key).or_default().push(span);
        }
    }
    all
}

async fn clock(db: &Database) -> f64 {
    let now = "select extract(epoch from clock_timestamp())::float8";
    db.sql.query_one(now, &[]).await.expect(now).get(0)
}

struct Round {
    db: Database,
    random: Random,
    ordered: Option<Ordered>,
    workers: Vec<Child>,
    eras: Vec<Era>,
    enqueued: i32,
    kills: usize,
}

impl Round {
    async fn begin() -> Round {
        let db = database().await;
        db.sql.batch_execute(hold::TABLE).await.expect(hold::TABLE);
        let mut random = Random::new();
        let ordered =
            *random.pick(&[None, None, Some(Ordered::Skip), Some(Ordered::Dead), Some(Ordered::Block)]);
        let mut round =
            Round { db, random, ordered, workers: Vec::new(), eras: Vec::new(), enqueued: 0, kills: 0 };
        let ageing =
            round.random.once_in(2).then(|| Duration::from_millis(50 + round.random.below(500) as u64));
        let settings = QueueSettings::default().ordered(ordered).ageing(ageing);
        round.db.client.set_queue("q", &settings).await.unwrap();
        round.change().await;
        for _ in 0..WORKERS {
            round.join().await;
        }
        round
    }

    /// Other limits.
    async fn change(&mut self) {
        let limits = Limits::random(&mut self.random);
        let from = clock(&self.db).await;
        self.db.client.set_queue("q", &limits.settings()).await.unwrap();
        let now = clock(&self.db).await;
        if let Some(last) = self.eras.last_mut() {
            last.to = now;
        }
        self.eras.push(Era { from, to: f64::INFINITY, limits });
    }

    async fn join(&mut self) {
        let mut worker = Child::start("holder", &self.db.url, &[]);
        worker.says("working").await;
        self.workers.push(worker);
    }

    /// One worker goes, killed or as it should, and another one comes.
    async fn replace(&mut self, signal: &str) {
        let mut worker = self.workers.swap_remove(self.random.below(self.workers.len()));
        let pid = worker.pid().cast_signed();
        worker.signal(signal);
        worker.ended().await;
        self.gone(pid).await;
        self.join().await;
    }

    /// What a process that is gone had in execution has ended.
    async fn gone(&self, pid: i32) {
        self.db.sql.execute("insert into gone (pid) values ($1)", &[&pid]).await.unwrap();
    }

    async fn enqueue(&mut self, count: i32) {
        let groups = 1 + self.random.below(8);
        let mut runs = Vec::new();
        for number in self.enqueued..self.enqueued + count {
            let random = &mut self.random;
            let held = Held {
                number,
                group: (!random.once_in(5)).then(|| format!("g{}", random.below(groups))),
                priority: random.below(3) as i32 - 1,
                ms: random.below(40) as u64,
                fails: random.once_in(15),
                kills: false,
            };
            let run = Enqueue::<Untyped>::named("hold", &held).queue("q").priority(held.priority);
            let run = run.weight(1 + random.below(3) as u32);
            runs.push(if let Some(group) = &held.group { run.group(group) } else { run });
        }
        enqueue_all(&self.db.client, runs).await.unwrap();
        self.enqueued += count;
    }

    /// Groups that stand still: their run is tried again, or they go on without it.
    async fn look_after_the_blocked(&mut self) {
        for blocked in self.db.client.blocked_groups(Some("q")).await.unwrap() {
            let Some(group) = blocked.group else { continue };
            if self.random.once_in(3) {
                self.db.client.retry(blocked.run).await.unwrap();
            } else {
                self.db.client.unblock_group("q", &group).await.unwrap();
            }
        }
    }

    async fn until_all_ended(&mut self) {
        let begun = Instant::now();
        let ended = "select count(*) from ambo.outcome";
        loop {
            match self.random.below(12) {
                0..3 if self.enqueued < RUNS => self.enqueue(RUNS / WAVES).await,
                3 | 4 => self.change().await,
                5 if self.kills < KILLS => {
                    self.kills += 1;
                    self.replace("KILL").await;
                }
                6 => self.replace("TERM").await,
                7 | 8 => self.look_after_the_blocked().await,
                9 => {
                    let group = format!("g{}", self.random.below(8));
                    self.db.client.pause_group("q", &group, true).await.unwrap();
                    self.db.client.pause_group("q", &group, false).await.unwrap();
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            if self.enqueued == RUNS && self.db.number(ended).await == i64::from(RUNS) {
                return;
            }
            if begun.elapsed() > Duration::from_secs(60) {
                panic!("{} of {RUNS} runs ended; limits {:?}", self.db.number(ended).await, self.eras.last());
            }
        }
    }

    async fn assert_nothing_is_lost_or_left(&self) {
        self.db.until("select not exists (select from ambo.claim)").await;
        assert_eq!(self.db.number("select count(*) from ambo.ready where not wakes").await, 0);
        assert_eq!(
            self.db.number("select count(*) from ambo.claim where slot is not null").await,
            0,
            "a place is taken by nobody"
        );
        let heads = "select count(*) from ambo.head h where not exists (select from ambo.outcome o
            where o.run_id = h.run_id and o.status in ('failed', 'dead'))";
        assert_eq!(self.db.number(heads).await, 0, "a group waits for nobody");
        let wrong = "select count(*) from ambo.outcome o join ambo.run r on r.id = o.run_id
            where (o.status <> 'succeeded') <> (r.input ->> 'fails')::boolean";
        assert_eq!(self.db.number(wrong).await, 0, "a run has another outcome than its own");
        let never =
            "select count(*) from ambo.run r where not exists (select from span s where s.run = r.id)";
        assert_eq!(self.db.number(never).await, 0, "a run ended that was never in execution");
    }

    fn assert_limits(&self, spans: &[Span]) {
        let counted: Vec<&Span> = spans.iter().filter(|span| span.slot.is_some()).collect();
        let all = assert_limit("the queue", &self.eras, &counted, |limits| limits.all, |span| span.placed);
        let mut most = (0, 0);
        for (worker, spans) in by(spans, |span| Some(span.worker)) {
            let what = format!("worker {worker}");
            most.0 = most.0.max(assert_limit(
                &what,
                &self.eras,
                &spans,
                |limits| limits.worker,
                |span| span.claimed,
            ));
        }
        let of_group = |limits: &Limits| if self.ordered.is_some() { Some(1) } else { limits.group };
        for (group, spans) in by(spans, |span| span.group.clone()) {
            most.1 = most.1.max(assert_limit(&group, &self.eras, &spans, of_group, |span| span.placed));
        }
        println!(
            "{} settings, {} spans, {} kills, {:?}: at most {all} in all, {} in a worker, {} in a group",
            self.eras.len(),
            spans.len(),
            self.kills,
            self.ordered,
            most.0,
            most.1
        );
    }

    /// Claims of a lane are in the order of its enqueues; in an ordered group, so are the runs themselves.
    fn assert_order(&self, spans: &[Span]) {
        for (lane, mut spans) in by(spans, |span| Some(span.lane.clone())) {
            spans.retain(|span| span.attempt == 1);
            spans.sort_by_key(|span| span.slot);
            for pair in spans.windows(2) {
                assert!(pair[0].number < pair[1].number, "{lane}: {:?} before {:?}", pair[0], pair[1]);
            }
        }
        if self.ordered.is_none() {
            return;
        }
        for (lane, spans) in by(spans, |span| span.group.is_some().then(|| span.lane.clone())) {
            for pair in spans.windows(2) {
                let in_order = pair[0].number <= pair[1].number && pair[0].ended <= pair[1].begun;
                assert!(in_order, "{lane}: {:?} and then {:?}", pair[0], pair[1]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_order_hold_whatever_happens_to_workers_and_settings() {
    let rounds = std::env::var("AMBO_QUEUE_CHAOS").map_or(1, |rounds| rounds.parse().expect("a number"));
    for _ in 0..rounds {
        let mut round = Round::begin().await;
        round.until_all_ended().await;
        for mut worker in std::mem::take(&mut round.workers) {
            let pid = worker.pid().cast_signed();
            worker.kill().await;
            round.gone(pid).await;
        }
        round.assert_nothing_is_lost_or_left().await;
        let spans = hold::spans(&round.db).await;
        round.assert_limits(&spans);
        round.assert_order(&spans);
    }
}

/// Keeps one worker alive until the test is over: a new one for each that ends.
pub(crate) async fn revive(url: String) {
    loop {
        Child::start("holder", &url, &[]).ended().await;
    }
}

#[tokio::test]
async fn a_run_that_kills_its_workers_is_dead_by_its_attempts_and_its_group_is_told_of() {
    let db = database().await;
    db.sql.batch_execute(hold::TABLE).await.expect(hold::TABLE);
    // One at a time: what a worker holds when it dies has lost an attempt too. Its group takes no place when it is dead.
    let settings = QueueSettings::default().ordered(Ordered::Block).concurrency(1);
    db.client.set_queue("q", &settings).await.unwrap();
    let held = |number: i32, group: &str, kills| {
        let held = Held { number, group: Some(group.into()), priority: 0, ms: 1, fails: false, kills };
        Enqueue::<Untyped>::named("hold", &held).queue("q").group(group).attempts(2)
    };
    let runs = (0..9).map(|n| held(n, if n < 3 { "guilty" } else { "innocent" }, n == 1));
    let runs = enqueue_all(&db.client, runs).await.unwrap();
    let workers = tokio::spawn(revive(db.url.clone()));
    db.until("select count(*) = 8 from ambo.outcome").await;
    let all = ambo::admin::Filter { limit: 100, ..ambo::admin::Filter::default() };
    let dead = db.client.dead_letters(&all).await.unwrap();
    assert_eq!(dead.len(), 1, "only the guilty run is dead");
    assert_eq!((dead[0].id, dead[0].code.as_deref()), (runs[1].run, Some("AMBO026")));
    assert_eq!(db.number("select count(*) from span where number = 1").await, 2, "it was given its attempts");
    assert_eq!(db.number("select count(*) from span where number = 2").await, 0, "the next one waits");
    let blocked = db.client.blocked_groups(Some("q")).await.unwrap();
    assert_eq!((blocked.len(), blocked[0].run), (1, runs[1].run));
    db.client.unblock_group("q", "guilty").await.unwrap();
    db.until("select count(*) = 9 from ambo.outcome").await;
    workers.abort();
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'succeeded'").await, 8);
    db.until("select not exists (select from ambo.claim) and not exists (select from ambo.head)").await;
}
