//! Workflows that are declared as graphs: checked when they are built, run side by side, retried where they failed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambo::{Code, Ctx, Enqueue, Error, Failure, Graph, Node, Plan, Result, Retry, RunId, Untyped, Worker};
use serde::{Deserialize, Serialize};
use tokio::sync::{Barrier, Notify};

use crate::harness::{Database, database};

/// How often each node was called, and how often it is to fail.
#[derive(Default)]
struct Nodes {
    calls: Mutex<HashMap<&'static str, u32>>,
    failures: Mutex<HashMap<&'static str, u32>>,
}

impl Nodes {
    fn call(&self, node: &'static str) -> Result<u64> {
        *self.calls.lock().unwrap().entry(node).or_default() += 1;
        match self.failures.lock().unwrap().get_mut(node) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(Error::message(format!("{node} failed")))
            }
            _ => Ok(1),
        }
    }

    fn fail(&self, node: &'static str, times: u32) {
        self.failures.lock().unwrap().insert(node, times);
    }

    fn calls(&self) -> Vec<(&'static str, u32)> {
        let mut calls: Vec<_> = self.calls.lock().unwrap().clone().into_iter().collect();
        calls.sort_unstable();
        calls
    }
}

/// a and b from the input, c from a, d from b and c, and the sum of them; each waits for so many milliseconds.
fn sums(nodes: &Arc<Nodes>, pauses: [u64; 4]) -> Result<Plan<u64, u64>> {
    let body = |name: &'static str, pause: u64| {
        let nodes = nodes.clone();
        move |input: u64| {
            let nodes = nodes.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Ok(input + nodes.call(name)?)
            }
        }
    };
    Graph::build(|graph, input| {
        let a = graph.step("a", input, body("a", pauses[0]));
        let b = graph.step("b", input, body("b", pauses[1]));
        let c = graph.step("c", a, body("c", pauses[2]));
        let d = body("d", pauses[3]);
        let d = graph.step("d", (b, c), move |(b, c)| d(b + c));
        graph.step("sum", vec![a, b, c, d], |all: Vec<u64>| async move { Ok(all.iter().sum()) })
    })
}

async fn enqueue(db: &Database, workflow: &str, input: impl Serialize) -> RunId {
    Enqueue::named(workflow, &input).on(&db.client).await.unwrap().run
}

async fn result<T: serde::de::DeserializeOwned>(db: &Database, run: RunId) -> Result<T> {
    let handle = db.client.handle::<Untyped>(run);
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, handle.result_as::<T, Error>()).await.expect("an end").map_err(Error::from)
}

async fn places(db: &Database, run: RunId) -> Vec<(String, String)> {
    let steps = db.client.show_run(run).await.unwrap().steps;
    steps.into_iter().map(|step| (step.position, step.name)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_run_side_by_side_at_places_that_do_not_depend_on_timing() {
    let db = database().await;
    // Neither ends before both have begun.
    let meeting = Arc::new(Barrier::new(2));
    let meet = |meeting: &Arc<Barrier>| {
        let meeting = meeting.clone();
        move |(): ()| {
            let meeting = meeting.clone();
            async move {
                meeting.wait().await;
                Ok(1u64)
            }
        }
    };
    let plan: Plan<(), u64> = Graph::build(|graph, start| {
        let left = graph.step("left", start, meet(&meeting));
        let right = graph.step("right", (), meet(&meeting));
        graph.step("both", (left, right), |(left, right)| async move { Ok(left + right) })
    })
    .unwrap();
    let nodes = Arc::new(Nodes::default());
    let mut builder = Worker::builder(&db.client).graph("meet", plan);
    let timings = [[0, 0, 0, 0], [40, 0, 0, 0], [0, 40, 0, 0], [20, 0, 20, 0], [5, 30, 0, 5]];
    for (number, pauses) in timings.into_iter().enumerate() {
        builder = builder.graph(&format!("sums{number}"), sums(&nodes, pauses).unwrap());
    }
    let _worker = builder.start().await.unwrap();
    let run = enqueue(&db, "meet", ()).await;
    assert_eq!(result::<u64>(&db, run).await.unwrap(), 2);
    for (number, timing) in timings.iter().enumerate() {
        let run = enqueue(&db, &format!("sums{number}"), 10u64).await;
        // a 11, b 11, c 12, d 24
        assert_eq!(result::<u64>(&db, run).await.unwrap(), 58);
        let expected = [("1.1", "a"), ("2.1", "b"), ("3.1", "c"), ("4.1", "d"), ("5.1", "sum")];
        let expected: Vec<_> = expected.map(|(position, name)| (position.to_owned(), name.to_owned())).into();
        assert_eq!(places(&db, run).await, expected, "{timing:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_node_is_retried_without_the_others() {
    let db = database().await;
    let nodes = Arc::new(Nodes::default());
    nodes.fail("b", 1);
    // b fails at once; a, and c after it, go on to their end.
    let build = || Worker::builder(&db.client).graph("sums", sums(&nodes, [50, 0, 50, 0]).unwrap());
    let worker = build().start().await.unwrap();
    let run = enqueue(&db, "sums", 10u64).await;
    let error = result::<u64>(&db, run).await.unwrap_err();
    assert!(error.to_string().contains("b failed"), "{error}");
    assert_eq!(nodes.calls(), [("a", 1), ("b", 1), ("c", 1)], "what does not depend on it has ended");
    db.client.retry(run).await.unwrap();
    assert_eq!(result::<u64>(&db, run).await.unwrap(), 58);
    assert_eq!(nodes.calls(), [("a", 1), ("b", 2), ("c", 1), ("d", 1)]);
    worker.drain(Duration::from_secs(5)).await;

    // By the policy of the workflow, and both that failed at once.
    let nodes = Arc::new(Nodes::default());
    nodes.fail("b", 2);
    nodes.fail("c", 1);
    let worker = Worker::builder(&db.client)
        .graph("again", sums(&nodes, [0, 0, 0, 0]).unwrap())
        .retry("again", Retry::fixed(Duration::from_millis(1)).max_attempts(3));
    let _worker = worker.start().await.unwrap();
    let run = enqueue(&db, "again", 10u64).await;
    assert_eq!(result::<u64>(&db, run).await.unwrap(), 58);
    assert_eq!(nodes.calls(), [("a", 1), ("b", 3), ("c", 2), ("d", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_graph_is_said_before_it_runs() {
    let pass = |n: u64| async move { Ok(n) };
    let refused = |built: Result<Plan<u64, u64>>, text: &str| {
        let error = built.unwrap_err();
        assert_eq!(error.code(), Code::InvalidGraph, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(
        Graph::build(|graph, input| {
            let one = graph.step("one", input, pass);
            graph.step("one", one, pass)
        }),
        "two nodes are named \"one\"",
    );
    refused(
        Graph::build(|graph, input| {
            graph.step("forgotten", input, |n: u64| async move { Ok(n.to_string()) });
            graph.step("two", input, pass)
        }),
        "nobody takes the String that \"forgotten\" gives",
    );
    refused(
        Graph::build(|graph, _| graph.step("alone", (), |()| async { Ok(1) })),
        "nobody takes the u64 that \"input\"",
    );
    let mut stray = None;
    let fine: Result<Plan<u64, u64>> = Graph::build(|graph, input| {
        stray = Some(input);
        let ignored = graph.step("ignored", input, pass);
        graph.ignore(ignored);
        graph.step("effect", input, |_| async { Ok(()) });
        graph.step("two", input, pass)
    });
    fine.unwrap();
    refused(
        Graph::build(|graph, input| {
            graph.ignore(input);
            graph.step("other", stray.unwrap(), pass)
        }),
        "\"other\" takes the result of a node of another graph",
    );
    refused(Graph::build(|_, _| stray.unwrap()), "another graph");
    let named: Result<Plan<u64, u64>> = Graph::build(|graph, input| graph.step("", input, pass));
    assert_eq!(named.unwrap_err().code(), Code::InvalidName);
    let crowded = Graph::build(|graph, input| {
        let all: Vec<Node<u64>> = (0..1000).map(|n| graph.step(n.to_string(), input, pass)).collect();
        graph.step("all", all, |all| async move { Ok(all.len() as u64) })
    });
    refused(crowded, "1000 nodes");
    // And a worker says it too.
    let db = database().await;
    let error = Worker::builder(&db.client).workflow::<unused>().start().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidGraph);
}

#[ambo::graph]
fn unused(graph: &mut Graph, input: Node<u64>) -> Node<u64> {
    graph.step("unused", input, |n| async move { Ok(n) });
    input
}

#[derive(Debug, Serialize, Deserialize, PartialEq)]
enum Refused {
    Poor,
    Other(String),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused: {self:?}")
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Other(error.to_string())
    }
}

/// Waits for a word within a node, and counts with a value of the worker's.
async fn approve(mut cx: Ctx<'_>, cents: u64) -> Result<bool, Refused> {
    cx.state::<Notify>()?.notify_one();
    Ok(cx.signal::<bool>("approve").await? && cents < 1000)
}

#[ambo::graph(name = "shop.order", retry = Retry::fixed(Duration::from_millis(1)).max_attempts(2),
              permanent = |error| *error == Refused::Poor)]
fn order(graph: &mut Graph<Refused>, cents: Node<u64>) -> Node<String> {
    let approved = graph.sequence("approve", cents, approve);
    let keys = graph.step_with("reserve", (), |attempt, ()| async move { Ok(attempt.idempotency_key()) });
    graph.timeout(keys, Duration::from_secs(10));
    graph.retry(keys, Retry::exponential());
    graph.step("charge", (cents, approved, keys), |(cents, approved, key)| async move {
        if approved { Ok(format!("{cents} {key}")) } else { Err(Refused::Poor) }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_waits_parked_goes_on_elsewhere_and_fails_with_its_own_error() {
    let db = database().await;
    let build = || {
        let builder = Worker::builder(&db.client).workflow::<order>().state(Notify::new());
        builder.park_after(Duration::from_millis(20))
    };
    let first = build().start().await.unwrap();
    let run = order::enqueue(999).on(&db.client).await.unwrap().run;
    let poor = order::enqueue(1000).on(&db.client).await.unwrap().run;
    db.until("select count(*) = 2 from ambo.timer where attempt > 0").await;
    first.drain(Duration::ZERO).await;
    let _second = build().start().await.unwrap();
    for run in [run, poor] {
        ambo::SendSignal::new(run, "approve", &true).on(&db.client).await.unwrap();
    }
    assert_eq!(db.client.handle::<order>(run).result().await.unwrap(), format!("999 {run}/2.1"));
    let error = db.client.handle::<order>(poor).result().await.unwrap_err();
    assert!(matches!(error, Failure::Application(Refused::Poor)), "{error:?}");
    assert_eq!(db.number("select count(*) from ambo.checkpoint where name = 'reserve'").await, 2);
    assert_eq!(
        db.number("select count(*) from ambo.checkpoint where name = 'ambo:retry'").await,
        0,
        "permanent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_workers_say_of_their_workflows_can_be_asked() {
    async fn plain(mut cx: Ctx<'_>, n: u64) -> Result<Vec<u64>> {
        Ok(vec![cx.step("only", || async move { Ok::<_, Error>(n) }).await?])
    }
    let db = database().await;
    let build = |version: &str| {
        let builder = Worker::builder(&db.client).workflow::<order>().workflow_fn("plain", plain);
        builder.state(Notify::new()).version(version)
    };
    let one = build("1").start().await.unwrap();
    let two = build("1").start().await.unwrap();
    let known = db.client.list_workflows().await.unwrap();
    let names: Vec<&str> = known.iter().map(|workflow| workflow.name.as_str()).collect();
    assert_eq!(names, ["plain", "shop.order"]);
    assert_eq!((&*known[0].input, &*known[0].output, known[0].tries), ("u64", "Vec<u64>", 1));
    assert!(known[0].graph.is_none());
    assert_eq!((known[1].workers, &known[1].versions, known[1].tries), (2, &vec!["1".to_owned()], 2));
    assert_eq!(known[1].graph, Some(order::plan().unwrap().shape()));
    let written = db.number("select sum(xmin::text::bigint)::bigint from ambo.workflow").await;
    one.drain(Duration::ZERO).await;
    two.drain(Duration::ZERO).await;
    let again = build("1").start().await.unwrap();
    let same = db.number("select sum(xmin::text::bigint)::bigint from ambo.workflow").await;
    assert_eq!(same, written, "what has not changed is not written again");
    again.drain(Duration::ZERO).await;
    let _later = build("2").start().await.unwrap();
    let shown = db.client.show_workflow("shop.order").await.unwrap().unwrap();
    assert_eq!((&*shown.version, shown.workers), ("2", 1));
    assert!(db.client.show_workflow("none").await.unwrap().is_none());
}
