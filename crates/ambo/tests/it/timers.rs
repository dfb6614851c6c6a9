//! The mark of the looks for due timers: what comes to stand below it is fired all the same, and nothing walks over the dead.
//! Everything here goes through the SQL function, with marks of the test's own.

use crate::harness::{Database, connect, database};
use crate::random::Random;

/// Who looks for due timers, and where it goes on.
struct Keeper {
    sql: tokio_postgres::Client,
    mark: Option<String>,
    /// What it forgets from look to look: broken on purpose.
    forgets: Option<&'static str>,
}

/// What a look did; the mark counts once the look is known to have committed.
struct Look {
    fired: i32,
    mark: String,
    wait_ms: Option<i64>,
}

impl Keeper {
    async fn new(db: &Database) -> Self {
        Keeper { sql: connect(&db.url).await, mark: None, forgets: None }
    }

    async fn look(&self, limit: i32) -> Look {
        let look = "select fired, mark::text, wait_ms from ambo.fire_timers($1, $2::text::json)";
        let row = self.sql.query_one(look, &[&limit, &self.mark]).await.expect("a look");
        Look { fired: row.get(0), mark: row.get(1), wait_ms: row.get(2) }
    }

    fn keep(&mut self, look: Look) {
        let mut mark: serde_json::Value = serde_json::from_str(&look.mark).unwrap();
        if let Some(part) = self.forgets {
            mark.as_object_mut().unwrap().remove(part).expect("a part of the mark");
        }
        self.mark = Some(mark.to_string());
    }

    /// Looks and keeps the mark; answers how many were fired.
    async fn fire(&mut self, limit: i32) -> i32 {
        let look = self.look(limit).await;
        let fired = look.fired;
        self.keep(look);
        fired
    }
}

/// Delays a run to a time around now, most of them past: as after a clock that went back, or in a transaction that began long ago.
const DELAY: &str = "select ambo.enqueue_workflow('a', delay => '1 hour') from generate_series(1, {n});
    update ambo.timer set due_at = clock_timestamp() + interval '{ms} ms', xid = pg_current_xact_id()
    where due_at > clock_timestamp() + interval '50 minutes'";
const ANY: &str = "select run_id from ambo.timer order by random() limit 1 for update skip locked";

fn delay(n: usize, ms: i64) -> String {
    DELAY.replace("{n}", &n.to_string()).replace("{ms}", &ms.to_string())
}

/// A caller with a connection, and perhaps a transaction open.
struct Caller {
    sql: tokio_postgres::Client,
    open: bool,
}

/// Callers that delay, move and take out timers, keepers that look, and one that is in the middle of a look.
struct Scene {
    db: Database,
    random: Random,
    callers: Vec<Caller>,
    keepers: Vec<Keeper>,
    midway: Option<(usize, Look)>,
    fired: i64,
}

impl Scene {
    async fn new(forgets: Option<&'static str>) -> Self {
        let db = database().await;
        let mut callers = Vec::new();
        for _ in 0..4 {
            callers.push(Caller { sql: connect(&db.url).await, open: false });
        }
        let mut keepers = vec![Keeper::new(&db).await, Keeper::new(&db).await];
        keepers.iter_mut().for_each(|keeper| keeper.forgets = forgets);
        Scene { db, random: Random::new(), callers, keepers, midway: None, fired: 0 }
    }

    async fn step(&mut self) {
        match self.random.below(16) {
            0..10 => self.caller().await,
            10..14 => {
                let n = self.random.below(self.keepers.len());
                let limit = 1 + self.random.below(6) as i32;
                if self.midway.as_ref().is_none_or(|midway| midway.0 != n) {
                    self.fired += i64::from(self.keepers[n].fire(limit).await);
                }
            }
            _ => self.midway().await,
        }
    }

    /// One caller does one thing: begins, delays a run or several, moves one, takes one out, commits, rolls back.
    async fn caller(&mut self) {
        let n = self.random.below(self.callers.len());
        let (act, many) = (self.random.below(12), self.random.once_in(6));
        let ms = self.random.below(2000) as i64 - 1980;
        let count = if many { 3 + self.random.below(15) } else { 1 };
        let caller = &mut self.callers[n];
        let sql = match act {
            0..3 if !caller.open => {
                caller.open = true;
                "begin".to_owned()
            }
            0..6 => delay(count, ms),
            6 | 7 => format!(
                "update ambo.timer set due_at = clock_timestamp() + interval '{ms} ms', xid = pg_current_xact_id()
                 where run_id in ({ANY})"
            ),
            8 => format!("delete from ambo.timer where run_id in ({ANY})"),
            _ if !caller.open => delay(count, ms),
            _ => {
                caller.open = false;
                if act == 9 { "rollback".to_owned() } else { "commit".to_owned() }
            }
        };
        caller.sql.batch_execute(&sql).await.expect(&sql);
    }

    /// Leaves a keeper in the middle of a look, or lets the one that is there commit or roll back.
    async fn midway(&mut self) {
        let Some((n, look)) = self.midway.take() else {
            let n = self.random.below(self.keepers.len());
            self.keepers[n].sql.batch_execute("begin").await.unwrap();
            self.midway = Some((n, self.keepers[n].look(4).await));
            return;
        };
        let commits = self.random.once_in(2);
        self.keepers[n].sql.batch_execute(if commits { "commit" } else { "rollback" }).await.unwrap();
        if commits {
            self.fired += i64::from(look.fired);
            self.keepers[n].keep(look);
        }
    }

    /// Everybody ends what they have open, and one keeper, whichever it is, looks. Returns how many timers it missed.
    async fn settle(&mut self) -> i64 {
        while self.midway.is_some() {
            self.midway().await;
        }
        for caller in &mut self.callers {
            if std::mem::take(&mut caller.open) {
                let end = if self.random.once_in(4) { "rollback" } else { "commit" };
                caller.sql.batch_execute(end).await.unwrap();
            }
        }
        let now = self.db.number("select (extract(epoch from clock_timestamp()) * 1000000)::int8").await;
        let n = self.random.below(self.keepers.len());
        let mut empty = 0;
        while empty < 2 {
            let fired = self.keepers[n].fire(9).await;
            self.fired += i64::from(fired);
            empty = if fired == 0 { empty + 1 } else { 0 };
        }
        let missed =
            format!("select count(*) from ambo.timer where extract(epoch from due_at) * 1000000 <= {now}");
        self.db.number(&missed).await
    }

    async fn round(&mut self) -> i64 {
        for _ in 0..10 + self.random.below(30) {
            self.step().await;
        }
        self.settle().await
    }
}

#[tokio::test]
async fn every_timer_is_fired_whatever_was_open_and_however_far_below_the_mark_it_came_to_be() {
    let mut scene = Scene::new(None).await;
    for round in 0..200 {
        let missed = scene.round().await;
        assert_eq!(missed, 0, "in round {round}, a keeper could not see {missed} timers that were due");
    }
    assert_eq!(scene.db.number("select count(*) from ambo.ready").await, scene.fired, "each once");
    assert!(scene.fired > 1000, "the rounds did too little: {}", scene.fired);
}

/// Shows that the test above can fail: each part of the mark is needed.
#[tokio::test]
async fn a_keeper_that_forgets_what_was_open_or_held_loses_timers() {
    for part in ["since", "held"] {
        let mut scene = Scene::new(Some(part)).await;
        let mut rounds = 0..300;
        while scene.round().await == 0 {
            assert!(rounds.next().is_some(), "no timer was lost without {part:?}: the rounds prove nothing");
        }
    }
}

#[tokio::test]
async fn a_clock_that_went_back_holds_up_no_timer() {
    let db = database().await;
    let mut keeper = Keeper::new(&db).await;
    keeper.fire(10).await;
    // As if the last look had been an hour from now.
    let mut mark: serde_json::Value = serde_json::from_str(keeper.mark.as_ref().unwrap()).unwrap();
    mark["due"] = (jiff::Timestamp::now() + std::time::Duration::from_secs(3600)).to_string().into();
    keeper.mark = Some(mark.to_string());
    db.sql.batch_execute("select ambo.enqueue_workflow('a', delay => '100 ms')").await.unwrap();
    let look = keeper.look(10).await;
    assert!(look.fired == 1 || look.wait_ms.is_some_and(|wait| wait <= 100), "{:?}", look.wait_ms);
    let fired = look.fired;
    keeper.keep(look);
    db.until("select not exists (select from ambo.timer where due_at > clock_timestamp())").await;
    assert_eq!(fired + keeper.fire(10).await, 1);
}

#[tokio::test]
async fn more_locked_timers_than_are_remembered_hold_the_mark() {
    let db = database().await;
    let mut keeper = Keeper::new(&db).await;
    db.sql.batch_execute(&delay(500, -1000)).await.unwrap();
    let caller = connect(&db.url).await;
    caller.batch_execute("begin; select from ambo.timer for update").await.unwrap();
    db.sql.batch_execute(&delay(1, -2000)).await.unwrap();
    assert_eq!(keeper.fire(1000).await, 1, "the others are locked");
    assert!(keeper.mark.as_ref().unwrap().len() < 1000, "not remembered one by one");
    caller.batch_execute("rollback").await.unwrap();
    assert_eq!(keeper.fire(1000).await, 500);
}

#[tokio::test]
async fn the_next_keeper_goes_on_where_the_last_one_was() {
    let db = database().await;
    let register = "select worker_id from ambo.register_worker('w', '1', 0, '{default}', '{a}', false)";
    let (first, second) = (db.number(register).await, db.number(register).await);
    let beat = async |worker: i64, mark: Option<&str>| -> Option<String> {
        let beat = "select timer_mark::text from ambo.heartbeat($1, 0, false, $2::text::json)";
        db.sql.query_one(beat, &[&worker, &mark]).await.unwrap().get(0)
    };
    assert_eq!(beat(first, None).await, None);
    assert_eq!(beat(first, Some("{\"due\":1}")).await.as_deref(), Some("{\"due\":1}"));
    assert_eq!(beat(second, Some("{\"due\":2}")).await, None, "it is not the keeper");
    assert_eq!(beat(first, None).await.as_deref(), Some("{\"due\":1}"), "where it left it");
    db.sql.execute("select ambo.leave($1)", &[&first]).await.unwrap();
    assert_eq!(beat(second, Some("{\"due\":2}")).await.as_deref(), Some("{\"due\":1}"));
    // On a server that was promoted its snapshot means nothing.
    db.sql.batch_execute("update ambo.keeper set server = 'another'").await.unwrap();
    assert_eq!(beat(second, Some("{\"due\":2}")).await, None);
}
