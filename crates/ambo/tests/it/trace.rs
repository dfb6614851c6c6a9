//! What the database really did, held to the protocol of the model: triggers write down what becomes of each run's rows.

use ambo_model::run::Place;
use ambo_model::trace::{Event, replay};
use uuid::Uuid;

use crate::child::Child;
use crate::harness::{Database, database};
use crate::workflows::Ledger;

/// Writes down every event from now on. The number is drawn within the transaction, so that a run's events, whose rows
/// are locked from one to the next, have the order in which they happened.
pub(crate) async fn begin(db: &Database) {
    let triggers = "
        create table event (n bigserial primary key, xid xid8 default pg_current_xact_id(), run uuid, kind text, worker bigint, attempt int, position text);
        create function note_event() returns trigger language plpgsql as $$
        declare
            v jsonb := to_jsonb(case when tg_op = 'DELETE' then old else new end);
        begin
            insert into public.event (run, kind, worker, attempt, position)
            values ((v ->> 'run_id')::uuid, tg_argv[0], (v ->> 'worker_id')::bigint, (v ->> 'attempt')::int, v ->> 'position');
            return null;
        end $$;
        create trigger note after insert on ambo.ready for each row when (not new.wakes) execute function note_event('ready');
        create trigger note after insert on ambo.timer for each row execute function note_event('timer');
        create trigger note after insert on ambo.claim for each row execute function note_event('claimed');
        create trigger note after insert on ambo.checkpoint for each row execute function note_event('recorded');
        create trigger forget after delete on ambo.checkpoint for each row execute function note_event('forgotten');
        create trigger note after insert on ambo.outcome for each row execute function note_event('ended');";
    db.sql.batch_execute(triggers).await.unwrap();
}

/// Every event since [`begin`] is one that the protocol allows, and each run ended. Answers how many events there were.
pub(crate) async fn assert_follows_the_protocol(db: &Database) -> usize {
    // What one transaction does happens at once: what it writes of a run's history comes before it moves the run.
    let events = "select run, kind, worker, attempt, position from event
        order by min(n) over (partition by xid, run), kind in ('ready', 'timer'), n";
    let trace: Vec<(Uuid, Event)> = db.sql.query(events, &[]).await.unwrap().iter().map(event).collect();
    let runs = match replay(&trace) {
        Ok(runs) => runs,
        Err(breach) => {
            let run = trace[breach.at].0;
            let story: Vec<&Event> =
                trace[..=breach.at].iter().filter(|(id, _)| *id == run).map(|(_, event)| event).collect();
            panic!("run {run}: {:?} at the end of {story:#?}", breach.why);
        }
    };
    let ended = runs.values().filter(|run| run.place == Place::Ended).count();
    assert_eq!(ended, runs.len(), "the trace has runs that did not end");
    trace.len()
}

fn event(row: &tokio_postgres::Row) -> (Uuid, Event) {
    let attempt = || u32::try_from(row.get::<_, i32>(3)).unwrap();
    let event = match row.get::<_, &str>(1) {
        "ready" => Event::Ready,
        "timer" => Event::Timer,
        "claimed" => Event::Claimed { worker: row.get(2), attempt: attempt() },
        "recorded" => Event::Recorded { position: row.get(4), attempt: attempt() },
        "forgotten" => Event::Forgotten { position: row.get(4) },
        "ended" => Event::Ended { attempt: attempt() },
        other => panic!("there is no event {other}"),
    };
    (row.get(0), event)
}

#[tokio::test]
async fn what_killed_and_paused_workers_did_follows_the_protocol() {
    const RUNS: i64 = 1500;
    let db = database().await;
    Ledger::prepare(&db).await;
    begin(&db).await;
    db.sql.batch_execute("update ambo.installation set lease = '2 seconds'").await.unwrap();
    let settings = [("AMBO_CHILD_IN_FLIGHT", "100")];
    let (mut killed, _) = Child::worker(&db.url, &settings).await;
    let (mut paused, paused_id) = Child::worker(&db.url, &settings).await;
    let (_other, _) = Child::worker(&db.url, &settings).await;
    let enqueue = format!(
        "select count(*) from ambo.enqueue_workflows(array_fill('charge'::text, array[{RUNS}]),
         array_fill('1'::json, array[{RUNS}]))"
    );
    db.sql.batch_execute(&enqueue).await.unwrap();
    db.until("select count(*) > 100 from ambo.outcome").await;
    paused.signal("STOP");
    killed.kill().await;
    db.until(&format!("select not exists (select from ambo.worker where id = {paused_id})")).await;
    // It comes back with all that it had under way, and finds that it is dead.
    paused.signal("CONT");
    paused.says("worker").await;
    db.until(&format!("select count(*) = {RUNS} from ambo.outcome")).await;
    let handed_over = "select count(*) from event where kind = 'claimed' and attempt > 1";
    assert!(db.number(handed_over).await > 0, "no run was lost: nothing was shown");
    let events = assert_follows_the_protocol(&db).await;
    println!("{events} events of {RUNS} runs follow the protocol");
}
