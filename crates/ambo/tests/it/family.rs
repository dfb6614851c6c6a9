//! Children, compensations, events and drawn values.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::admin::Filter;
use ambo::{
    Code, Ctx, Enqueue, Error, Failure, QueueSettings, Result, Retry, RunId, SendSignal, Untyped, Worker,
    WorkerBuilder,
};

use crate::harness::{Database, database};

/// What was done, in its order.
#[derive(Default, Clone)]
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[ambo::workflow]
async fn double(cx: Ctx, n: i64) -> Result<i64> {
    let doubled = cx.step("double", || async { Ok::<_, Error>(2 * n) }).await?;
    match n {
        13 => Err(Error::application(&n, "unlucky")),
        _ => Ok(doubled),
    }
}

#[ambo::workflow]
async fn wait_for_word(cx: Ctx) -> Result<String> {
    let word: String = cx.signal("word").await?;
    Ok(word)
}

/// Starts so many children and gathers them in order.
#[ambo::workflow]
async fn fan(cx: Ctx, count: i64) -> Result<i64> {
    let mut children = Vec::new();
    for n in 0..count {
        children.push(cx.child::<double>(n).start()?);
    }
    let mut sum = 0;
    for child in children {
        sum += match cx.result_of(child).await {
            Ok(doubled) => doubled,
            Err(Failure::Application(error)) => -error.details::<i64>().unwrap_or(0),
            Err(Failure::Ambo(error)) => return Err(error),
        };
    }
    Ok(sum)
}

/// Waits for one child that is cancelled with it, and leaves one alone.
#[ambo::workflow]
async fn guardian(cx: Ctx) -> Result<String> {
    let child = cx.child::<wait_for_word>(()).start()?;
    let free = cx.child::<wait_for_word>(()).detached().start()?;
    cx.publish("children", &[child.run_id(), free.run_id()])?;
    Ok(cx.result_of(child).await?)
}

/// Starts three children, handles each as it ends, and then waits for a word.
#[ambo::workflow]
async fn harvest(cx: Ctx) -> Result<Vec<String>> {
    let journal = cx.state::<Journal>()?;
    let children: Vec<_> = (0..3).map(|_| cx.child::<wait_for_word>(()).start()).collect::<Result<_>>()?;
    cx.publish("children", &children.iter().map(ambo::Child::run_id).collect::<Vec<_>>())?;
    let handled = cx.map(children, 3, |mut branch: Ctx<'_>, child| {
        let journal = journal.clone();
        async move {
            let word = branch.result_of(child).await?;
            let handle = branch.step("handle", || async {
                journal.note(&*word);
                Ok::<_, Error>(())
            });
            handle.await?;
            Ok(word)
        }
    });
    handled.await.into_iter().collect()
}

/// The first of many to be heard, and then the word of another.
#[ambo::workflow]
async fn auction(cx: Ctx, bidders: Vec<String>) -> Result<(usize, String, String)> {
    let bids: Vec<_> = bidders.iter().map(|name| cx.signal::<String>(name)).collect();
    let (winner, bid) = cx.race(bids).await?;
    let word: String = cx.signal("word").await?;
    Ok((winner, bid?, word))
}

#[ambo::workflow]
async fn trip(cx: Ctx, ends: String) -> Result<()> {
    let journal = cx.state::<Journal>()?;
    for stage in ["flight", "hotel", "car"] {
        let (doing, undoing) = (journal.clone(), journal.clone());
        let step = cx.step(stage, || async {
            doing.note(stage);
            Ok::<_, Error>(())
        });
        step.await?;
        let ends = ends.clone();
        cx.compensate_with(format!("cancel {stage}"), Retry::none(), move |attempt| {
            let (journal, ends) = (undoing.clone(), ends.clone());
            async move {
                if stage == "hotel" && ends.starts_with("stuck") {
                    return Err(Error::application(&(), "the hotel does not answer"));
                }
                journal.note(format!("cancel {stage}, attempt {}", attempt.number()));
                Ok(())
            }
        });
    }
    match ends.as_str() {
        "well" => Ok(()),
        "by signal" | "stuck, by signal" => cx.signal("never").await,
        "by panic" => panic!("lost"),
        _ => Err(Error::application(&(), "no money")),
    }
}

#[ambo::workflow]
async fn draw(cx: Ctx) -> Result<Vec<String>> {
    let drawn = vec![cx.now()?.to_string(), cx.random()?.to_string(), cx.uuid()?.to_string()];
    cx.publish("drawn", &drawn)?;
    cx.signal::<()>("go on").await?;
    cx.publish("drawn", &"the end")?;
    Ok(drawn)
}

#[ambo::workflow]
async fn listen(cx: Ctx, to: RunId) -> Result<Vec<String>> {
    cx.event(to, "drawn").await
}

#[ambo::workflow]
async fn spread(cx: Ctx, limit: usize) -> Result<Vec<i64>> {
    let doubled = cx.map((0..10).collect(), limit, |mut cx: Ctx<'_>, n: i64| async move {
        let doubled = cx.step("double", || async { Ok::<_, Error>(2 * n) }).await?;
        cx.step("halve", || async { Ok::<_, Error>(doubled / 2) }).await
    });
    doubled.await.into_iter().map(|n| Ok(n?)).collect()
}

fn builder(db: &Database, journal: &Journal) -> WorkerBuilder {
    Worker::builder(&db.client)
        .workflow::<double>()
        .workflow::<wait_for_word>()
        .workflow::<fan>()
        .workflow::<guardian>()
        .workflow::<harvest>()
        .workflow::<auction>()
        .workflow::<trip>()
        .workflow::<draw>()
        .workflow::<listen>()
        .workflow::<spread>()
        .state(journal.clone())
}

async fn outcome<T: serde::de::DeserializeOwned>(db: &Database, run: RunId) -> Result<T> {
    let handle = db.client.handle::<Untyped>(run);
    let limit = Duration::from_secs(30);
    Ok(tokio::time::timeout(limit, handle.result_as::<T, Error>()).await.expect("an end")?)
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_gathered_in_order_and_their_failures_come_through() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    let run = fan::enqueue(100).on(&db.client).await.unwrap().run;
    let expected: i64 = (0..100).filter(|n| *n != 13).map(|n| 2 * n).sum::<i64>() - 13;
    assert_eq!(outcome::<i64>(&db, run).await.unwrap(), expected);
    assert_eq!(db.number("select count(*) from ambo.run where parent_id is not null").await, 100);
    assert_eq!(db.number("select count(distinct parent_id) from ambo.run").await, 1);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_handled_as_they_end_and_gathered_in_order() {
    let db = database().await;
    let journal = Journal::default();
    let worker = builder(&db, &journal).start().await.unwrap();
    let run = harvest::enqueue().on(&db.client).await.unwrap().run;
    let children: [RunId; 3] = db.client.handle::<harvest>(run).event("children").await.unwrap();
    let say = async |child: usize, word: &str| {
        SendSignal::new(children[child], "word", &word).on(&db.client).await.unwrap();
    };
    let handled = |count: u32| {
        format!("select count(*) = {count} from ambo.checkpoint where run_id = '{run}' and name = 'handle'")
    };
    say(2, "third").await;
    db.until(&handled(1)).await;
    say(0, "first").await;
    db.until(&handled(2)).await;
    // Rebuilt elsewhere, it does not handle them again.
    worker.drain(Duration::ZERO).await;
    let worker = builder(&db, &journal).start().await.unwrap();
    say(1, "second").await;
    assert_eq!(outcome::<Vec<String>>(&db, run).await.unwrap(), ["first", "second", "third"]);
    assert_eq!(journal.all(), ["third", "first", "second"]);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_many_calls_wins_and_stays_the_winner() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    let bidders = ["ann", "bob", "cy"].map(str::to_owned).to_vec();
    let run = auction::enqueue(bidders).on(&db.client).await.unwrap().run;
    let say =
        async |topic: &str, word: &str| SendSignal::new(run, topic, &word).on(&db.client).await.unwrap();
    say("bob", "ten").await;
    db.until("select count(*) = 1 from ambo.timer where attempt > 0").await;
    // It is rebuilt for the word, and ann, who is there by now, would win this time.
    say("ann", "nine").await;
    say("word", "sold").await;
    let (winner, bid, word) = outcome::<(usize, String, String)>(&db, run).await.unwrap();
    assert_eq!((winner, &*bid, &*word), (1, "ten", "sold"));
    let none = auction::enqueue(Vec::new()).on(&db.client).await.unwrap().run;
    let error = outcome::<(usize, String, String)>(&db, none).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidOption, "a race of none");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn children_are_listed_with_those_that_are_detached() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    let run = guardian::enqueue().on(&db.client).await.unwrap().run;
    let [child, free]: [RunId; 2] = db.client.handle::<guardian>(run).event("children").await.unwrap();
    db.until("select count(*) = 2 from ambo.child").await;
    let family = Filter { parent: Some(run), ..Filter::default() };
    let listed = db.client.list_runs(&family).await.unwrap();
    let listed: HashMap<_, _> = listed.iter().map(|run| (run.id, run.parent)).collect();
    assert_eq!(listed, HashMap::from([(free, None), (child, Some(run))]));
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_parent_is_woken_by_its_child() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    let run = guardian::enqueue().on(&db.client).await.unwrap().run;
    let [child, free]: [RunId; 2] = db.client.handle::<guardian>(run).event("children").await.unwrap();
    db.until("select count(*) = 3 from ambo.timer where attempt > 0").await;
    SendSignal::new(child, "word", &"grown up").on(&db.client).await.unwrap();
    assert_eq!(outcome::<String>(&db, run).await.unwrap(), "grown up");
    SendSignal::new(free, "word", &"free").on(&db.client).await.unwrap();
    assert_eq!(outcome::<String>(&db, free).await.unwrap(), "free");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_cancelled_with_its_parent_unless_it_is_detached() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    let run = guardian::enqueue().on(&db.client).await.unwrap().run;
    let [child, free]: [RunId; 2] = db.client.handle::<guardian>(run).event("children").await.unwrap();
    db.client.cancel(run, "enough").await.unwrap();
    assert_eq!(outcome::<String>(&db, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(outcome::<String>(&db, child).await.unwrap_err().code(), Code::Cancelled);
    SendSignal::new(free, "word", &"free").on(&db.client).await.unwrap();
    assert_eq!(outcome::<String>(&db, free).await.unwrap(), "free");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_is_undone_in_reverse() {
    for ends in ["well", "badly", "by panic"] {
        let db = database().await;
        let journal = Journal::default();
        let worker = builder(&db, &journal).start().await.unwrap();
        let run = trip::enqueue(ends.to_owned()).on(&db.client).await.unwrap().run;
        let ended = outcome::<()>(&db, run).await;
        let mut expected = vec!["flight", "hotel", "car"];
        if ends == "well" {
            ended.unwrap();
        } else {
            let code = if ends == "badly" { Code::Application } else { Code::Panicked };
            assert_eq!(ended.unwrap_err().code(), code, "the failure itself is the outcome");
            expected.extend(["cancel car, attempt 1", "cancel hotel, attempt 1", "cancel flight, attempt 1"]);
            let again = db.client.retry(run).await.unwrap_err();
            assert_eq!(again.code(), Code::WrongState, "what was undone cannot be retried");
        }
        assert_eq!(journal.all(), expected, "{ends}");
        worker.drain(Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_that_is_parked_undoes_what_it_did() {
    let db = database().await;
    let journal = Journal::default();
    let worker = builder(&db, &journal).start().await.unwrap();
    let run = trip::enqueue("by signal".to_owned()).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.timer where attempt > 0").await;
    db.client.cancel(run, "changed my mind").await.unwrap();
    assert_eq!(outcome::<()>(&db, run).await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(
        journal.all()[3..],
        ["cancel car, attempt 1", "cancel hotel, attempt 1", "cancel flight, attempt 1"]
    );
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_undone_leaves_the_run_dead_and_a_retry_goes_on_there() {
    let db = database().await;
    let journal = Journal::default();
    let worker = builder(&db, &journal).start().await.unwrap();
    let run = trip::enqueue("stuck".to_owned()).on(&db.client).await.unwrap().run;
    let error = outcome::<()>(&db, run).await.unwrap_err();
    assert_eq!(error.code(), Code::NotCompensated);
    assert!(error.to_string().contains("cancel hotel"), "{error}");
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'dead'").await, 1);
    assert_eq!(journal.all().len(), 4, "{:?}", journal.all());
    db.client.retry(run).await.unwrap();
    assert_eq!(outcome::<()>(&db, run).await.unwrap_err().code(), Code::NotCompensated);
    assert_eq!(journal.all().len(), 4, "what was undone is not undone again");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_cancelled_run_that_could_not_be_undone_goes_on_undoing() {
    let db = database().await;
    let journal = Journal::default();
    let worker = builder(&db, &journal).start().await.unwrap();
    let run = trip::enqueue("stuck, by signal".to_owned()).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.timer where attempt > 0").await;
    db.client.cancel(run, "changed my mind").await.unwrap();
    assert_eq!(outcome::<()>(&db, run).await.unwrap_err().code(), Code::NotCompensated);
    db.client.retry(run).await.unwrap();
    assert_eq!(outcome::<()>(&db, run).await.unwrap_err().code(), Code::NotCompensated, "it waits again");
    assert_eq!(journal.all().len(), 4, "{:?}", journal.all());
    let forked = db.client.fork(run, None).await.unwrap_err();
    assert_eq!(forked.code(), Code::WrongState, "what was undone is not gone on with");
    let histories = db.client.histories(&ambo::admin::Filter::default()).await.unwrap();
    assert_eq!(builder(&db, &journal).replay_check(histories).await.unwrap(), [], "to undo is no difference");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drawn_values_and_events_are_the_same_after_a_replay() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    let run = draw::enqueue().on(&db.client).await.unwrap().run;
    let listener = listen::enqueue(run).on(&db.client).await.unwrap().run;
    let drawn: Vec<String> = db.client.handle::<draw>(run).event("drawn").await.unwrap();
    assert_eq!(outcome::<Vec<String>>(&db, listener).await.unwrap(), drawn);
    db.until(&format!("select count(*) = 1 from ambo.timer where run_id = '{run}'")).await;
    SendSignal::new(run, "go on", &()).on(&db.client).await.unwrap();
    assert_eq!(outcome::<Vec<String>>(&db, run).await.unwrap(), drawn);
    let stream: Vec<(u32, serde_json::Value)> = db.client.events(run, "drawn", 0).await.unwrap();
    assert_eq!(stream.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2], "published once each");
    assert_eq!(stream[1].1, "the end");
    let rest: Vec<(u32, serde_json::Value)> = db.client.next_events(run, "drawn", 2).await.unwrap();
    assert!(rest.is_empty(), "the run has ended, nothing more comes");
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_runs_its_items_in_branches_of_their_own() {
    let db = database().await;
    let worker = builder(&db, &Journal::default()).start().await.unwrap();
    for limit in [1, 3, 100] {
        let run = spread::enqueue(limit).on(&db.client).await.unwrap().run;
        assert_eq!(outcome::<Vec<i64>>(&db, run).await.unwrap(), (0..10).collect::<Vec<_>>());
    }
    assert_eq!(db.number("select count(distinct position) from ambo.checkpoint").await, 20);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_in_a_queue_that_is_not_there_stops_its_parent_with_the_code() {
    let db = database().await;
    let worker = Worker::builder(&db.client)
        .workflow_fn("parent", async |mut cx: Ctx<'_>, _: ()| -> Result<()> {
            cx.child::<double>(1).with(|child| child.queue("nowhere")).start()?;
            cx.step("after", async || Ok::<_, Error>(())).await?;
            Ok(())
        })
        .start()
        .await
        .unwrap();
    let run = Enqueue::named("parent", &()).on(&db.client).await.unwrap().run;
    assert_eq!(outcome::<()>(&db, run).await.unwrap_err().code(), Code::UnknownQueue);
    assert_eq!(db.number("select count(*) from ambo.run").await, 1);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_has_a_group_and_a_weight_and_what_it_cannot_have_is_named() {
    let db = database().await;
    let settings = QueueSettings::default().group_concurrency(2);
    db.client.set_queue("q", &settings).await.unwrap();
    let worker = Worker::builder(&db.client)
        .queue("default")
        .queue("q")
        .workflow::<double>()
        .workflow_fn("parent", async |mut cx: Ctx<'_>, what: String| -> Result<i64> {
            let child = cx.child::<double>(1).with(|child| match what.as_str() {
                "group" => child.queue("q").group("g").weight(2),
                "key" => child.key("k"),
                _ => child.start_within(Duration::from_secs(60)),
            });
            let child = child.start()?;
            Ok(cx.result_of(child).await?)
        })
        .start()
        .await
        .unwrap();
    for (what, refused) in [("key", "key"), ("time", "time to start by")] {
        let run = Enqueue::named("parent", &what).on(&db.client).await.unwrap().run;
        let error = outcome::<i64>(&db, run).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidOption);
        assert!(error.to_string().contains(&format!("a child takes no {refused}")), "{error}");
    }
    let run = Enqueue::named("parent", &"group").on(&db.client).await.unwrap().run;
    assert_eq!(outcome::<i64>(&db, run).await.unwrap(), 2);
    assert_eq!(db.number("select count(*) from ambo.run where group_key = 'g' and weight = 2").await, 1);
    worker.drain(Duration::ZERO).await;
}

#[tokio::test]
async fn a_cancel_reaches_the_end_of_a_chain_of_thousands() {
    let db = database().await;
    let chain =
        "select ambo.enqueue_workflows(array_fill('w'::text, '{5000}'), array_fill('1'::json, '{5000}'));
        create table link as select id, lag(id) over (order by id) as parent from ambo.run;
        update ambo.run r set parent_id = l.parent from link l where l.id = r.id;
        insert into ambo.child (run_id, child_id) select parent, id from link where parent is not null;
        analyze ambo.run; analyze ambo.child";
    db.sql.batch_execute(chain).await.unwrap();
    // In its middle one has ended: what is below it is left alone.
    let middle = "insert into ambo.outcome (run_id, attempt, status)
        select id, 1, 'succeeded' from ambo.run order by id offset 4000 limit 1";
    db.sql.batch_execute(middle).await.unwrap();
    let cancel = "select ambo.cancel_run(id, 'enough') from link where parent is null";
    assert_eq!(db.sql.query_one(cancel, &[]).await.unwrap().get::<_, &str>(0), "cancelled");
    assert_eq!(db.number("select count(*) from ambo.outcome where status = 'cancelled'").await, 4000);
}
