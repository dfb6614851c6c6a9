//! Random programs of durable calls, run by workers that are killed all the time, against a model that never crashes: the
//! same results, and every effect as often as it may be. `AMBO_PROGRAMS` says how many, in batches of 200; 10,000 make a night.

mod tale;

use std::sync::Arc;
use std::time::Duration;

use ambo::{Ctx, Either, Enqueue, Error, Result, RunId, SendSignal, Untyped, WorkerBuilder, Workflow};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::child::Child;
use crate::harness::{Database, database};
use crate::random::Random;
use crate::trace;
use crate::workflows::Ledger;
use tale::{Tale, Teller};

/// A durable call, or several at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Op {
    Step,
    Transaction,
    FailingStep,
    Sleep(u64),
    Signal(String),
    Publish,
    Draw,
    Race(String, u64),
    Child(Vec<Op>),
    Join(Vec<Op>, Vec<Op>),
    Map(Vec<Vec<Op>>, usize),
    Patch,
    Tale(Tale),
}

pub(crate) fn register(builder: WorkerBuilder, ledger: Arc<Ledger>) -> WorkerBuilder {
    builder.workflow::<Program>().workflow::<Teller>().state(ledger)
}

struct Program;

impl Workflow for Program {
    type Input = Vec<Op>;
    type Output = Vec<String>;
    type Error = Error;
    const NAME: &'static str = "program";

    fn run<'run>(mut cx: Ctx<'run>, ops: Vec<Op>) -> BoxFuture<'run, Result<Vec<String>>> {
        Box::pin(async move { play(&mut cx, &ops).await })
    }
}

fn play<'a, 'run: 'a>(cx: &'a mut Ctx<'run>, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<String>>> {
    Box::pin(async move {
        let mut said = Vec::new();
        for op in ops {
            said.push(act(cx, op).await?);
        }
        Ok(said)
    })
}

async fn act(cx: &mut Ctx<'_>, op: &Op) -> Result<String> {
    let (ledger, run) = (cx.state::<Arc<Ledger>>()?, cx.run_id().to_string());
    let effect = |attempt: ambo::Attempt| {
        let (ledger, run) = (&ledger, &run);
        async move { ledger.effect(run, &attempt.idempotency_key(), &attempt.idempotency_key()).await }
    };
    Ok(match op {
        Op::Step => cx.step_with("step", effect).await?.to_string(),
        Op::Transaction => {
            let counted = cx.transaction("count").run(&ledger.database, async |tx| {
                let insert = "insert into counted (run) values ($1)";
                tx.execute(insert, &[&run]).await.map_err(Error::other)?;
                Ok::<_, Error>("counted".to_owned())
            });
            counted.await?
        }
        Op::FailingStep => {
            let failed = cx.step("fails", async || Err::<(), _>(Error::application(&1, "on purpose"))).await;
            if failed.is_err() { "failed".to_owned() } else { "?".to_owned() }
        }
        Op::Sleep(ms) => {
            cx.sleep(Duration::from_millis(*ms)).await?;
            "slept".to_owned()
        }
        Op::Signal(topic) => cx.signal(topic).await?,
        Op::Publish => {
            cx.publish("said", &run)?;
            "published".to_owned()
        }
        // Another value in a replay would be another name, and that would stop the run.
        Op::Draw => {
            let drawn = (cx.random()?, cx.uuid()?, cx.now()?);
            cx.step(format!("drew {drawn:?}"), async || Ok::<_, Error>("drew".to_owned())).await?
        }
        Op::Race(topic, ms) => {
            let (signal, sleep) = (cx.signal::<String>(topic), cx.sleep(Duration::from_millis(*ms)));
            let winner = match cx.select(signal, sleep).await?.1 {
                Either::Left(signal) => signal.map(|_| "signal")?,
                Either::Right(slept) => slept.map(|()| "sleep")?,
            };
            cx.step(winner, async || Ok::<_, Error>("raced".to_owned())).await?
        }
        Op::Child(ops) => {
            let child = cx.child::<Program>(ops.clone()).start()?;
            cx.result_of(child).await?.join("+")
        }
        Op::Join(left, right) => {
            let (mut one, mut two) = (cx.branch(), cx.branch());
            let (one, two) = tokio::join!(play(&mut one, left), play(&mut two, right));
            format!("({})({})", one?.join("+"), two?.join("+"))
        }
        Op::Map(items, limit) => {
            let played =
                cx.map(items.clone(), *limit, |mut cx, ops| async move { play(&mut cx, &ops).await });
            let said: Result<Vec<Vec<String>>> = played.await.into_iter().collect();
            said?.concat().join("*")
        }
        Op::Patch => {
            cx.set_attribute("patched", &true)?;
            let name = if cx.patched("new")? { "new" } else { "old" };
            cx.step(name, async || Ok::<_, Error>(name.to_owned())).await?
        }
        Op::Tale(tale) => {
            let child = cx.child::<Teller>(*tale).start()?;
            let published = match tale {
                Tale::Watched => cx.event::<String>(child.run_id(), "told").await? + " ",
                _ => String::new(),
            };
            match cx.result_of(child).await.map_err(Error::from) {
                Ok(said) => published + &said,
                Err(error) if error.code() == ambo::Code::Application => "undone".to_owned(),
                Err(error) => return Err(error),
            }
        }
    })
}

/// What a program says if nothing ever goes wrong.
fn model(ops: &[Op]) -> Vec<String> {
    let one = |op: &Op| match op {
        Op::Step => "1".to_owned(),
        Op::Transaction => "counted".to_owned(),
        Op::FailingStep => "failed".to_owned(),
        Op::Sleep(_) => "slept".to_owned(),
        Op::Signal(topic) => topic.clone(),
        Op::Publish => "published".to_owned(),
        Op::Draw => "drew".to_owned(),
        Op::Race(..) => "raced".to_owned(),
        Op::Child(ops) => model(ops).join("+"),
        Op::Join(left, right) => format!("({})({})", model(left).join("+"), model(right).join("+")),
        Op::Map(items, _) => items.iter().map(|ops| model(ops)).collect::<Vec<_>>().concat().join("*"),
        Op::Patch => "new".to_owned(),
        Op::Tale(tale) => tale.model(),
    };
    ops.iter().map(one).collect()
}

/// A random program. Only the run itself is sent signals, not its children.
fn program(random: &mut Random, depth: usize, topics: &mut Vec<String>, is_child: bool) -> Vec<Op> {
    let mut ops = Vec::new();
    for _ in 0..1 + random.below(4) {
        let topic = format!("topic {}", topics.len());
        ops.push(match random.below(if depth == 0 { 10 } else { 13 }) {
            0 => Op::Step,
            1 => Op::Transaction,
            2 => Op::FailingStep,
            3 => Op::Sleep([0, 5, 60, 300][random.below(4)]),
            4 if !is_child => {
                topics.push(topic.clone());
                Op::Signal(topic)
            }
            5 => Op::Publish,
            6 => Op::Draw,
            7 if !is_child => {
                topics.push(topic.clone());
                Op::Race(topic, 50)
            }
            8 => Op::Patch,
            9 => Op::Tale(match random.below(4) {
                0 => Tale::Undone(random.below(4)),
                1 => Tale::Retried(random.below(3) as u32),
                2 => Tale::Continued(random.below(4)),
                _ => Tale::Watched,
            }),
            10 => Op::Child(program(random, depth - 1, &mut Vec::new(), true)),
            11 => {
                let items = (0..1 + random.below(4)).map(|_| program(random, depth - 1, topics, is_child));
                Op::Map(items.collect(), 1 + random.below(3))
            }
            12 => {
                let left = program(random, depth - 1, topics, is_child);
                Op::Join(left, program(random, depth - 1, topics, is_child))
            }
            _ => Op::Step,
        });
    }
    ops
}

/// The sum of what each operation counts.
fn count(ops: &[Op], what: &dyn Fn(&Op) -> usize) -> i64 {
    let within = |op: &Op| match op {
        Op::Child(ops) => count(ops, what),
        Op::Join(left, right) => count(left, what) + count(right, what),
        Op::Map(items, _) => items.iter().map(|ops| count(ops, what)).sum(),
        _ => 0,
    };
    ops.iter().map(|op| what(op) as i64 + within(op)).sum()
}

/// Sends each topic its signal, in its own time; some twice, under one key.
async fn send_signals(url: String, mut wanted: Vec<(RunId, String)>, mut random: Random) {
    let client = ambo::Client::connect(&url).await.expect("connect");
    while !wanted.is_empty() {
        let (run, topic) = wanted.swap_remove(random.below(wanted.len()));
        for _ in 0..1 + random.below(2) {
            // A race may have been lost, and its run have ended.
            let _ = SendSignal::new(run, &topic, &topic).key(&topic).on(&client).await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(20) as u64)).await;
    }
}

async fn assert_exact(db: &Database, programs: &[(RunId, Vec<Op>)]) {
    let sum = |what: &dyn Fn(&Op) -> usize| programs.iter().map(|(_, ops)| count(ops, what)).sum::<i64>();
    let all = |what: &dyn Fn(&Op) -> bool| sum(&|op| usize::from(what(op)));
    let children = all(&|op| matches!(op, Op::Child(_) | Op::Tale(_)));
    let runs = programs.len() as i64 + children;
    assert_eq!(db.number("select count(*) from ambo.run").await, runs, "one child per parent and position");
    let undone = all(&|op| matches!(op, Op::Tale(Tale::Undone(_))));
    assert_eq!(
        db.number("select count(*) from ambo.outcome where status = 'succeeded'").await,
        runs - undone
    );
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'failed'").await, undone);
    let transactions = all(&|op| matches!(op, Op::Transaction));
    assert_eq!(db.number("select count(*) from counted").await, transactions, "once each");
    let published = all(&|op| matches!(op, Op::Publish | Op::Tale(Tale::Watched)));
    assert_eq!(db.number("select count(*) from ambo.event").await, published, "once each");
    let steps = sum(&|op| match op {
        Op::Step => 1,
        Op::Tale(tale) => tale.effects(),
        _ => 0,
    });
    assert_eq!(db.number("select count(distinct key) from effect").await, steps, "each at least once");
    let again =
        "select count(*) from effect e join ambo.checkpoint c on e.key = c.run_id || '/' || c.position
        where e.at > c.recorded_at";
    assert_eq!(db.number(again).await, 0, "a recorded step ran again");
    for left in ["ready where not wakes", "claim", "timer", "transaction_marker", "cancel_request"] {
        assert_eq!(db.number(&format!("select count(*) from ambo.{left}")).await, 0, "{left}");
    }
}

/// What has not ended, and how it stands.
async fn stuck(db: &Database) -> String {
    let stuck = "select coalesce(string_agg(format(E'\\n%s %s claim %s timer %s ready %s wake %s signals %s last %s input %s', r.id,
            ambo.live_state(r.id), (select c.worker_id || '/' || c.attempt from ambo.claim c where c.run_id = r.id),
            (select t.due_at from ambo.timer t where t.run_id = r.id),
            array(select y.wakes from ambo.ready y where y.run_id = r.id),
            (select count(*) from ambo.wake w where w.run_id = r.id),
            array(select s.topic from ambo.signal s where s.run_id = r.id order by seq),
            array(select c.position || ' ' || c.name from ambo.checkpoint c where c.run_id = r.id order by recorded_at), r.input), ''), 'none')
        from ambo.run r where not exists (select from ambo.outcome o where o.run_id = r.id)";
    db.sql.query_one(stuck, &[]).await.expect(stuck).get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_end_as_if_nothing_had_crashed() {
    let mut left = std::env::var("AMBO_PROGRAMS").map_or(BATCH, |count| count.parse().expect("a number"));
    while left > 0 {
        let count = left.min(BATCH);
        batch(count).await;
        left -= count;
    }
}

/// Runs in one database, with a seed of its own.
const BATCH: usize = 200;

async fn batch(count: usize) {
    let mut random = Random::new();
    let db = database().await;
    Ledger::prepare(&db).await;
    trace::begin(&db).await;
    let (mut programs, mut wanted) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut topics = Vec::new();
        let ops = program(&mut random, 2, &mut topics, false);
        let run = Enqueue::<Program>::new(ops.clone()).on(&db.client).await.unwrap().run;
        wanted.extend(topics.into_iter().map(|topic| (run, topic)));
        programs.push((run, ops));
    }
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(Child::start("programs", &db.url, &[]));
    }
    let signals = tokio::spawn(send_signals(db.url.clone(), wanted, Random::new()));
    let ended =
        "select count(*) from ambo.outcome o join ambo.run r on r.id = o.run_id where r.parent_id is null";
    let mut kills = 0;
    for share in 1..8 {
        db.until(&format!("select ({ended}) >= {}", count * share / 8)).await;
        let mut victim = workers.swap_remove(random.below(workers.len()));
        victim.kill().await;
        kills += 1;
        workers.push(Child::start("programs", &db.url, &[]));
    }
    signals.await.unwrap();
    let all = format!("select ({ended}) = {count}");
    if tokio::time::timeout(Duration::from_secs(25), db.until(&all)).await.is_err() {
        panic!("stuck: {}", stuck(&db).await);
    }
    for (run, ops) in &programs {
        let said: Vec<String> =
            db.client.handle::<Untyped>(*run).result_as::<_, Error>().await.expect("a result");
        assert_eq!(said, model(ops), "run {run}: {ops:?}");
    }
    let events = trace::assert_follows_the_protocol(&db).await;
    println!("{count} programs, {kills} kills, {events} events that follow the protocol");
    assert_exact(&db, &programs).await;
    println!("{count} programs, {kills} kills");
}
