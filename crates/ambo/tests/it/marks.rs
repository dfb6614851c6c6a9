//! The low-water mark of a lane: what commits late, below it, is claimed all the same, and nothing walks over the
//! dead. Everything here goes through the SQL functions, with no sweep to hide a loss.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::harness::{Database, connect, database};
use crate::random::Random;

const QUEUES: [&str; 2] = ["default", "other"];
const WORKFLOWS: [&str; 2] = ["a", "b"];
const CLAIM: &str = "select run_id, lows, late::text[], held_lanes, held from ambo.claim($1, $2, $3, $4, $5, $6, $7::text[]::xid8[], $8, $9)";
const FIND_LANES: &str = "select queue, workflow, priority from ambo.find_lanes($1, $2, $3, $4, $5)";

/// What a worker's claimer remembers: its marks, and the transactions that were in progress.
struct Claimer {
    worker: i64,
    sql: tokio_postgres::Client,
    lanes: Vec<(String, String, i16, i64)>,
    late: Vec<String>,
    /// What the marks have passed: of which lane, and where.
    held: Vec<((String, String, i16), i64)>,
    /// Broken on purpose: forgets the transactions that were in progress.
    forgetful: bool,
}

/// The marks that a claim answered; they count once it is known to have committed.
struct Marks {
    lows: Vec<i64>,
    late: Vec<String>,
    held: Vec<(i32, i64)>,
}

impl Claimer {
    async fn new(db: &Database) -> Self {
        let sql = connect(&db.url).await;
        let register = "select worker_id from ambo.register_worker('marks', '', 0, $1, $2, false)";
        let names: (Vec<&str>, Vec<&str>) = (QUEUES.to_vec(), WORKFLOWS.to_vec());
        let worker = sql.query_one(register, &[&names.0, &names.1]).await.unwrap().get(0);
        Claimer { worker, sql, lanes: Vec::new(), late: Vec::new(), held: Vec::new(), forgetful: false }
    }

    /// As the engine does: looks for new lanes, then claims up to `limit` runs.
    async fn claim(&mut self, limit: i32) -> (Vec<Uuid>, Marks) {
        let column = |which: fn(&(String, String, i16, i64)) -> String| -> Vec<String> {
            self.lanes.iter().map(which).collect()
        };
        let (queues, workflows) = (column(|lane| lane.0.clone()), column(|lane| lane.1.clone()));
        let priorities: Vec<i16> = self.lanes.iter().map(|lane| lane.2).collect();
        let all: (Vec<&str>, Vec<&str>) = (QUEUES.to_vec(), WORKFLOWS.to_vec());
        let found = self
            .sql
            .query(FIND_LANES, &[&all.0, &all.1, &queues, &workflows, &priorities])
            .await
            .expect("find lanes");
        self.lanes.extend(found.iter().map(|row| (row.get(0), row.get(1), row.get(2), 0)));
        if self.lanes.len() > 1 {
            self.lanes.rotate_left(1);
        }
        self.lanes.sort_by_key(|lane| lane.2);

        let queues: Vec<&str> = self.lanes.iter().map(|lane| lane.0.as_str()).collect();
        let workflows: Vec<&str> = self.lanes.iter().map(|lane| lane.1.as_str()).collect();
        let priorities: Vec<i16> = self.lanes.iter().map(|lane| lane.2).collect();
        let lows: Vec<i64> = self.lanes.iter().map(|lane| lane.3).collect();
        let number = |place: &(String, String, i16)| {
            self.lanes.iter().position(|lane| (&lane.0, &lane.1, lane.2) == (&place.0, &place.1, place.2))
        };
        let (held_lanes, held): (Vec<i32>, Vec<i64>) = self
            .held
            .iter()
            .filter_map(|(place, seq)| Some((i32::try_from(number(place)? + 1).unwrap(), *seq)))
            .unzip();
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 9] = [
            (&self.worker, Type::INT8),
            (&limit, Type::INT4),
            (&queues, Type::TEXT_ARRAY),
            (&workflows, Type::TEXT_ARRAY),
            (&priorities, Type::INT2_ARRAY),
            (&lows, Type::INT8_ARRAY),
            (&self.late, Type::TEXT_ARRAY),
            (&held_lanes, Type::INT4_ARRAY),
            (&held, Type::INT8_ARRAY),
        ];
        let rows = self.sql.query_typed(CLAIM, &params).await.expect("claim");
        let mut marks = Marks { lows, late: Vec::new(), held: Vec::new() };
        let mut runs = Vec::new();
        for row in rows {
            match row.get::<_, Option<Uuid>>(0) {
                Some(run) => runs.push(run),
                None => {
                    marks.lows = row.get::<_, Option<_>>(1).unwrap_or_default();
                    marks.late = row.get(2);
                    let of: Vec<i32> = row.get::<_, Option<_>>(3).unwrap_or_default();
                    marks.held =
                        of.into_iter().zip(row.get::<_, Option<Vec<i64>>>(4).unwrap_or_default()).collect();
                }
            }
        }
        (runs, marks)
    }

    fn keep(&mut self, marks: Marks) {
        for (lane, low) in self.lanes.iter_mut().zip(marks.lows) {
            lane.3 = low;
        }
        let place = |n: i32| {
            let lane = &self.lanes[usize::try_from(n - 1).unwrap()];
            (lane.0.clone(), lane.1.clone(), lane.2)
        };
        self.held = marks.held.into_iter().map(|(n, seq)| (place(n), seq)).collect();
        self.late = if self.forgetful { Vec::new() } else { marks.late };
    }

    /// After a claim that did not commit, as after a connection that was cut: begins anew.
    fn forget(&mut self) {
        self.lanes.clear();
        self.late.clear();
        self.held.clear();
    }
}

/// A caller with a connection, and perhaps a transaction open.
struct Enqueuer {
    sql: tokio_postgres::Client,
    open: bool,
    savepoint: bool,
}

/// The whole scene: callers, claimers, and what has been claimed by whom.
struct Scene {
    db: Database,
    random: Random,
    enqueuers: Vec<Enqueuer>,
    claimers: Vec<Claimer>,
    /// A claimer in the middle of a claim, and what it will have claimed.
    midway: Option<(usize, Vec<Uuid>, Marks)>,
    claimed: BTreeMap<Uuid, usize>,
}

impl Scene {
    async fn new() -> Self {
        let db = database().await;
        db.sql.batch_execute("select ambo.create_queue('other')").await.unwrap();
        let mut enqueuers = Vec::new();
        for _ in 0..5 {
            enqueuers.push(Enqueuer { sql: connect(&db.url).await, open: false, savepoint: false });
        }
        let claimers = vec![Claimer::new(&db).await, Claimer::new(&db).await, Claimer::new(&db).await];
        Scene { db, random: Random::new(), enqueuers, claimers, midway: None, claimed: BTreeMap::new() }
    }

    async fn step(&mut self) {
        match self.random.below(16) {
            0..10 => self.caller().await,
            10..14 => self.claim().await,
            14 => self.midway().await,
            _ => self.pause().await,
        }
    }

    /// One caller does one thing: begins, enqueues, commits, rolls back, in whole or in part.
    async fn caller(&mut self) {
        let n = self.random.below(self.enqueuers.len());
        let act = self.random.below(12);
        let enqueue = self.enqueue();
        let caller = &mut self.enqueuers[n];
        let sql = match act {
            _ if !caller.open && act < 9 => {
                caller.open = true;
                "begin".to_owned()
            }
            0..8 => enqueue,
            8 if caller.savepoint => {
                caller.savepoint = false;
                "rollback to savepoint s".to_owned()
            }
            8 | 9 if caller.open => {
                caller.savepoint = true;
                "savepoint s".to_owned()
            }
            9 => enqueue,
            _ if !caller.open => enqueue,
            _ => {
                caller.open = false;
                caller.savepoint = false;
                if act == 10 { "rollback".to_owned() } else { "commit".to_owned() }
            }
        };
        caller.sql.batch_execute(&sql).await.expect(&sql);
    }

    fn enqueue(&mut self) -> String {
        let random = &mut self.random;
        let (queue, workflow) = (*random.pick(&QUEUES), *random.pick(&WORKFLOWS));
        let priority = random.pick(&[-1, 0, 0, 0, 1]);
        if random.once_in(8) {
            // More than a claim takes, in one transaction.
            return format!(
                "select ambo.enqueue_workflows(array_agg('{workflow}'::text), array_agg('1'::json),
                        queues => array_agg('{queue}'::text)) from generate_series(1, {})",
                3 + random.below(12)
            );
        }
        format!("select ambo.enqueue_workflow('{workflow}', queue => '{queue}', priority => {priority})")
    }

    async fn claim(&mut self) {
        let n = self.random.below(self.claimers.len());
        let limit = 1 + self.random.below(6) as i32;
        if self.midway.as_ref().is_some_and(|midway| midway.0 == n) {
            return;
        }
        let (runs, marks) = self.claimers[n].claim(limit).await;
        self.claimers[n].keep(marks);
        self.took(n, runs);
    }

    /// Leaves a claimer in the middle of its claim, or lets the one that is there commit, roll back or die.
    async fn midway(&mut self) {
        let Some((n, runs, marks)) = self.midway.take() else {
            let n = self.random.below(self.claimers.len());
            self.claimers[n].sql.batch_execute("begin").await.unwrap();
            let (runs, marks) = self.claimers[n].claim(4).await;
            self.midway = Some((n, runs, marks));
            return;
        };
        match self.random.below(3) {
            0 => {
                self.claimers[n].sql.batch_execute("commit").await.unwrap();
                self.claimers[n].keep(marks);
                self.took(n, runs);
            }
            1 => {
                self.claimers[n].sql.batch_execute("rollback").await.unwrap();
                self.claimers[n].forget();
            }
            _ => {
                let pid: i32 =
                    self.claimers[n].sql.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
                self.db.sql.execute("select pg_terminate_backend($1)", &[&pid]).await.unwrap();
                self.db
                    .until(&format!("select not exists (select from pg_stat_activity where pid = {pid})"))
                    .await;
                self.claimers[n].sql = connect(&self.db.url).await;
                self.claimers[n].forget();
            }
        }
    }

    async fn pause(&mut self) {
        let (queue, paused) = (*self.random.pick(&QUEUES), self.random.once_in(2));
        self.db.sql.execute("select ambo.pause_queue($1, $2)", &[&queue, &paused]).await.unwrap();
    }

    fn took(&mut self, claimer: usize, runs: Vec<Uuid>) {
        for run in runs {
            let before = self.claimed.insert(run, claimer);
            assert_eq!(before, None, "run {run} was claimed twice");
        }
    }

    /// Everybody ends what they have open, and one claimer, whichever it is, takes what there is. Returns how many
    /// runs it could not see.
    async fn settle(&mut self) -> i64 {
        while self.midway.is_some() {
            self.midway().await;
        }
        for caller in &mut self.enqueuers {
            if std::mem::take(&mut caller.open) {
                let end = if self.random.once_in(4) { "rollback" } else { "commit" };
                caller.sql.batch_execute(end).await.unwrap();
            }
            caller.savepoint = false;
        }
        for queue in QUEUES {
            self.db.sql.execute("select ambo.pause_queue($1, false)", &[&queue]).await.unwrap();
        }
        let n = self.random.below(self.claimers.len());
        // Two claims in a row that find nothing: what is left then is lost to this claimer.
        let mut empty = 0;
        while empty < 2 {
            let (runs, marks) = self.claimers[n].claim(9).await;
            self.claimers[n].keep(marks);
            empty = if runs.is_empty() { empty + 1 } else { 0 };
            self.took(n, runs);
        }
        self.db.number("select count(*) from ambo.ready").await
    }
}

#[tokio::test]
async fn every_committed_run_is_claimed_once_whatever_was_open_when() {
    let mut scene = Scene::new().await;
    for round in 0..200 {
        for _ in 0..10 + scene.random.below(30) {
            scene.step().await;
        }
        let lost = scene.settle().await;
        assert_eq!(lost, 0, "in round {round}, a claimer could not see {lost} committed runs");
    }
    let db = &scene.db;
    assert_eq!(db.number("select count(*) from ambo.run").await, scene.claimed.len() as i64);
    assert_eq!(db.number("select count(*) from ambo.claim").await, scene.claimed.len() as i64);
    assert!(scene.claimed.len() > 1000, "the rounds did too little: {}", scene.claimed.len());
}

/// Shows that the test above can fail: without the memory of what was in progress, runs are lost.
#[tokio::test]
async fn a_claimer_without_memory_of_open_transactions_loses_runs() {
    let mut scene = Scene::new().await;
    for claimer in &mut scene.claimers {
        claimer.forgetful = true;
    }
    for _ in 0..150 {
        for _ in 0..10 + scene.random.below(30) {
            scene.step().await;
        }
        if scene.settle().await > 0 {
            return;
        }
    }
    panic!("no run was lost although the claimers forget: the rounds prove nothing");
}

#[tokio::test]
async fn a_run_held_uncommitted_while_its_queue_is_paused_is_claimed_after() {
    let db = database().await;
    let mut claimer = Claimer::new(&db).await;
    let caller = connect(&db.url).await;
    let enqueue = "select ambo.enqueue_workflow('a')";
    db.sql.batch_execute(enqueue).await.unwrap();
    caller.batch_execute("begin").await.unwrap();
    caller.batch_execute(enqueue).await.unwrap();
    db.sql.batch_execute(enqueue).await.unwrap();
    let (runs, marks) = claimer.claim(10).await;
    claimer.keep(marks);
    assert_eq!(runs.len(), 2);
    db.sql.batch_execute("select ambo.pause_queue('default', true)").await.unwrap();
    caller.batch_execute("commit").await.unwrap();
    for _ in 0..2 {
        let (runs, marks) = claimer.claim(10).await;
        claimer.keep(marks);
        assert_eq!(runs.len(), 0, "a paused queue gives nothing");
    }
    db.sql.batch_execute("select ambo.pause_queue('default', false)").await.unwrap();
    let (runs, _) = claimer.claim(10).await;
    assert_eq!(runs.len(), 1, "the run that committed during the pause is there");
}

#[tokio::test]
async fn the_very_first_run_is_not_below_the_mark() {
    let db = database().await;
    let mut claimer = Claimer::new(&db).await;
    claimer.lanes.push(("default".into(), "a".into(), 0, 0));
    let (_, marks) = claimer.claim(10).await;
    claimer.keep(marks);
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    let (runs, _) = claimer.claim(10).await;
    assert_eq!(runs.len(), 1);
}

/// Where much is waiting, what commits late lies above the mark and has its turn: to look for it with each claim until then would
/// make claims the slower, the more there is to do.
#[tokio::test]
async fn what_commits_late_above_the_mark_is_not_looked_for_again() {
    let enqueue = |size: i64| {
        format!(
            "select count(*) from ambo.enqueue_workflows(
                array_fill('a'::text, array[{size}]), array_fill('1'::json, array[{size}]))"
        )
    };
    // With fewer than are looked at, and with more.
    for size in [500, 3000] {
        let db = database().await;
        let mut claimer = Claimer::new(&db).await;
        db.sql.batch_execute(&enqueue(1000)).await.unwrap();
        let open = connect(&db.url).await;
        open.batch_execute(&format!("begin; {}", enqueue(size))).await.unwrap();
        let xid: String = open.query_one("select pg_current_xact_id()::text", &[]).await.unwrap().get(0);
        let mut claim = async || {
            let (runs, marks) = claimer.claim(100).await;
            claimer.keep(marks);
            (runs.len() as i64, claimer.late.contains(&xid))
        };
        assert_eq!(claim().await, (100, true), "it may still bring something below the mark");
        open.batch_execute("commit").await.unwrap();
        for _ in 0..9 + size / 100 {
            assert_eq!(claim().await, (100, false));
        }
        assert_eq!(claim().await, (0, false));
    }
}

/// One transaction brings a run below the mark and, before it, many to a queue that nobody here serves.
#[tokio::test]
async fn a_late_run_is_not_hidden_by_those_of_another_queue() {
    let db = database().await;
    let mut claimer = Claimer::new(&db).await;
    db.sql.batch_execute("select ambo.create_queue('elsewhere'), ambo.enqueue_workflow('a')").await.unwrap();
    let open = connect(&db.url).await;
    let both = "begin; select count(*) from ambo.enqueue_workflows(array_fill('a'::text, array[3000]),
            array_fill('1'::json, array[3000]), array_fill('elsewhere'::text, array[3000]));
        select ambo.enqueue_workflow('a')";
    open.batch_execute(both).await.unwrap();
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    let (runs, marks) = claimer.claim(10).await;
    claimer.keep(marks);
    assert_eq!(runs.len(), 2, "the mark is above what is to come");
    open.batch_execute("commit").await.unwrap();
    assert_eq!(claimer.claim(10).await.0.len(), 1);
}

/// Blocks of the table of waiting runs and its indexes that one claim touches.
async fn blocks_of_a_claim(claimer: &mut Claimer) -> (Vec<Uuid>, i64) {
    let count = "select sum(pg_stat_get_xact_blocks_fetched(o))::bigint from unnest(array[
        'ambo.ready'::regclass, 'ambo.ready_pkey'::regclass, 'ambo.ready_xid'::regclass]) o";
    claimer.sql.batch_execute("begin").await.unwrap();
    // The figure holds what earlier transactions of the session have not reported yet.
    let before: i64 = claimer.sql.query_one(count, &[]).await.unwrap().get(0);
    let (runs, marks) = claimer.claim(100).await;
    let after: i64 = claimer.sql.query_one(count, &[]).await.unwrap().get(0);
    let blocks = after - before;
    claimer.sql.batch_execute("commit").await.unwrap();
    claimer.keep(marks);
    (runs, blocks)
}

#[tokio::test]
async fn a_claim_does_not_walk_over_the_dead_behind_a_pinned_snapshot() {
    let db = database().await;
    let mut claimer = Claimer::new(&db).await;
    let pin = connect(&db.url).await;
    pin.batch_execute("begin isolation level repeatable read; select 1").await.unwrap();
    let flood = "select count(*) from ambo.enqueue_workflows(
        array_fill('a'::text, array[50000]), array_fill('1'::json, array[50000]))";
    for _ in 0..2 {
        db.sql.batch_execute(flood).await.unwrap();
        // As autovacuum may find it: all of one transaction, which any plan is soon to come by.
        db.sql.batch_execute("analyze ambo.ready").await.unwrap();
        for _ in 0..5 {
            let (runs, marks) = claimer.claim(10_000).await;
            assert_eq!(runs.len(), 10_000);
            claimer.keep(marks);
        }
    }
    for _ in 0..3 {
        db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
        let (runs, blocks) = blocks_of_a_claim(&mut claimer).await;
        assert_eq!(runs.len(), 1);
        println!("with marks: {blocks} blocks");
        assert!(blocks < 100, "one claim behind 100,000 dead rows touched {blocks} blocks");
        let (runs, blocks) = blocks_of_a_claim(&mut claimer).await;
        assert!(runs.is_empty() && blocks < 100, "an empty claim touched {blocks} blocks");
    }
    // A transaction that commits late, with more than a claim takes, and with many more.
    for size in [1000, 6000] {
        let late = connect(&db.url).await;
        let many = format!(
            "begin; select count(*) from ambo.enqueue_workflows(
                array_fill('a'::text, array[{size}]), array_fill('1'::json, array[{size}]))"
        );
        late.batch_execute(&many).await.unwrap();
        db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
        assert_eq!(blocks_of_a_claim(&mut claimer).await.0.len(), 1, "the mark is above what is to come");
        late.batch_execute("commit").await.unwrap();
        let mut most = 0;
        for _ in 0..size / 100 {
            let (runs, blocks) = blocks_of_a_claim(&mut claimer).await;
            assert_eq!(runs.len(), 100);
            most = most.max(blocks);
        }
        assert!(blocks_of_a_claim(&mut claimer).await.0.is_empty());
        println!("{size} late: {most} blocks at most");
        assert!(most < 1200, "a claim of what came late touched {most} blocks");
    }
    // That the figure means something: without marks, the same claim walks.
    db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    claimer.forget();
    let (runs, blocks) = blocks_of_a_claim(&mut claimer).await;
    assert_eq!(runs.len(), 1);
    println!("without: {blocks} blocks");
    assert!(blocks > 1000, "without marks a claim touched {blocks} blocks only");
}

/// A transaction of a user that cancels a waiting run and then stays open holds its row, and holds back vacuum, too.
#[tokio::test]
async fn a_run_that_somebody_has_locked_does_not_have_each_claim_walk_over_what_died_since() {
    let db = database().await;
    let mut claimer = Claimer::new(&db).await;
    let mut holders = Vec::new();
    let hold = async |run: Uuid| {
        let holder = connect(&db.url).await;
        holder.batch_execute(&format!("begin; select ambo.cancel_run('{run}')")).await.unwrap();
        holder
    };
    for _ in 0..2 {
        let run = db.sql.query_one("select ambo.enqueue_workflow('a')", &[]).await.unwrap().get(0);
        holders.push(hold(run).await);
        // Of a lane that has others before, between and behind.
        db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
    }
    let flood = "select count(*) from ambo.enqueue_workflows(
        array_fill('a'::text, array[50000]), array_fill('1'::json, array[50000]))";
    db.sql.batch_execute(flood).await.unwrap();
    // And one whose transaction has enqueued many more.
    let amid = "select run_id from ambo.ready order by seq offset 20000 limit 1";
    holders.push(hold(db.sql.query_one(amid, &[]).await.unwrap().get(0)).await);
    let mut claimed = 0;
    while claimed < 50_001 {
        let (runs, marks) = claimer.claim(10_000).await;
        assert!(!runs.is_empty(), "{claimed}");
        claimed += runs.len();
        claimer.keep(marks);
    }
    for _ in 0..3 {
        db.sql.batch_execute("select ambo.enqueue_workflow('a')").await.unwrap();
        let (runs, blocks) = blocks_of_a_claim(&mut claimer).await;
        assert_eq!(runs.len(), 1);
        println!("{blocks} blocks");
        assert!(blocks < 100, "one claim beside locked runs touched {blocks} blocks");
    }
    for (holder, end) in holders.iter().zip(["rollback", "commit", "rollback"]) {
        holder.batch_execute(end).await.unwrap();
    }
    assert_eq!(blocks_of_a_claim(&mut claimer).await.0.len(), 2, "what was let go is there");
    assert_eq!(blocks_of_a_claim(&mut claimer).await.0.len(), 0);
    assert!(db.number("select count(*) from ambo.ready").await == 0);
}

/// A sequence's row, read while it is drawn from, may say up to 32 more than was drawn: a mark that was set by it passed rows whose
/// transactions had no xid yet, once in some ten million runs, and only the sweep found them, minutes later.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_is_never_read_ahead_of_what_was_drawn() {
    let db = database().await;
    let by_row = "select count(*) from pg_proc where pronamespace = 'ambo'::regnamespace
        and (prosrc || coalesce(pg_get_function_sqlbody(oid), '')) ~* '\\m(from|join)\\s+ambo\\.\\w+_seq\\M'";
    assert_eq!(db.number(by_row).await, 0, "pg_sequence_last_value reads it under its lock");
    let draws = "do $$ begin for n in 1..200000 loop perform nextval('ambo.ready_seq'); end loop; end $$";
    let drawing: Vec<_> = (0..2)
        .map(|_| {
            let url = db.url.clone();
            tokio::spawn(async move { connect(&url).await.batch_execute(draws).await.unwrap() })
        })
        .collect();
    let ahead = "create table ahead as select 0 as n;
        do $$ declare v_last bigint; begin
            for n in 1..50000 loop
                v_last := pg_sequence_last_value('ambo.ready_seq');
                update ahead set n = ahead.n + 1 where v_last >= nextval('ambo.ready_seq');
            end loop;
        end $$";
    db.sql.batch_execute(ahead).await.unwrap();
    assert_eq!(db.number("select n::bigint from ahead").await, 0);
    for draws in drawing {
        draws.await.unwrap();
    }
}
