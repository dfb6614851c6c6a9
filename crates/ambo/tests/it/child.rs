//! Worker processes that can be killed: this test binary runs itself again, and `child_process` is what it runs.
//!
//! The parent holds the child's standard input, so that no child outlives its test. What a child has to say it
//! prints as a line that begins with `@`.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ambo::{Client, Enqueue, Worker};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

use crate::harness::connect;
use crate::workflows::{self, Charge, Ledger, say};

/// Longer than anything here takes on a slow machine: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of ours that can be killed.
pub(crate) struct Child {
    process: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
    _stdin: Option<ChildStdin>,
}

impl Child {
    /// Runs `role` on the database `url`, with more settings in the environment.
    pub(crate) fn start(role: &str, url: &str, settings: &[(&str, &str)]) -> Child {
        let mut process = Command::new(std::env::current_exe().expect("this binary"))
            .args(["child::child_process", "--exact", "--nocapture", "--test-threads=1"])
            .env("AMBO_CHILD", role)
            .env("AMBO_CHILD_URL", url)
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(if std::env::var_os("AMBO_TEST_LOG").is_some() {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .kill_on_drop(true)
            .spawn()
            .expect("start a child");
        let lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        Child { _stdin: process.stdin.take(), process, lines }
    }

    /// A worker that has registered; returns its id too.
    pub(crate) async fn worker(url: &str, settings: &[(&str, &str)]) -> (Child, i64) {
        let mut child = Child::start("worker", url, settings);
        let id = child.says("worker").await.parse().expect("a worker's id");
        (child, id)
    }

    /// The rest of the next line that begins with `word`.
    pub(crate) async fn says(&mut self, word: &str) -> String {
        let said = async {
            while let Some(line) = self.lines.next_line().await.expect("read from the child") {
                // The test runner prints the name of the test before our first line.
                let Some((_, said)) = line.split_once("@ ") else { continue };
                let (first, rest) = said.split_once(' ').unwrap_or((said, ""));
                if first == word {
                    return rest.to_owned();
                }
            }
            panic!("the child ended and never said {word:?}");
        };
        tokio::time::timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("the child never said {word:?}"))
    }

    /// Sends a signal: KILL, STOP, CONT or TERM.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.id().expect("the child has not been waited for").to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status().expect("run kill");
        assert!(sent.success(), "kill -s {name} {pid}");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id().expect("the child has not been waited for")
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.process.wait()).await;
        ended.expect("the child does not end").expect("wait for the child")
    }

    /// SIGKILL, and until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.signal("KILL");
        self.ended().await;
    }
}

/// Not a test of its own: what the processes that tests start run. Does nothing in a test run.
#[test]
fn child_process() {
    let Ok(role) = std::env::var("AMBO_CHILD") else { return };
    let url = std::env::var("AMBO_CHILD_URL").expect("AMBO_CHILD_URL");
    ambo_postgres::exit_with_parent();
    if std::env::var_os("AMBO_TEST_LOG").is_some() {
        let _ =
            tracing_subscriber::fmt().with_env_filter("ambo=debug").with_writer(std::io::stderr).try_init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "worker" => worker(&url).await,
            "signalled" => signalled(&url).await,
            "starter" => starter(&url).await,
            "enqueuer" => enqueuer(&url).await,
            "programs" => programs(&url).await,
            "migrate" => migrate(&url).await,
            "holder" => crate::queue_chaos::work(&url).await,
            other => panic!("there is no role {other}"),
        }
    });
}

async fn start(url: &str) -> Worker {
    let client = Client::connect(url).await.expect("connect");
    let mut builder = workflows::register(Worker::builder(&client), Ledger::open(url).await);
    if let Ok(limit) = std::env::var("AMBO_CHILD_IN_FLIGHT") {
        builder = builder.max_in_flight(limit.parse().expect("a number"));
    }
    builder.start().await.expect("worker")
}

/// Works until SIGTERM, and tells its id whenever it has a new one.
async fn worker(url: &str) {
    let worker = Arc::new(start(url).await);
    let watched = worker.clone();
    let watch = tokio::spawn(async move {
        let mut known = None;
        loop {
            if let Some(id) = watched.id().filter(|id| known != Some(*id)) {
                known = Some(id);
                say(&format!("worker {id}"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    terminated.recv().await;
    watch.abort();
    let _ = watch.await;
    let limit = std::env::var("AMBO_CHILD_DRAIN_MS")
        .map_or(ambo::DRAIN, |ms| Duration::from_millis(ms.parse().expect("milliseconds")));
    Arc::into_inner(worker).expect("nobody else has it").drain(limit).await;
    say("drained");
}

/// Works as programs do, until a signal.
async fn signalled(url: &str) {
    let worker = start(url).await;
    say("worker");
    worker.run_until_signal().await.expect("signals");
    say("drained");
}

/// Migrates, and says from which version to which.
async fn migrate(url: &str) {
    let client = Client::connect_unchecked(url, "ambo").await.expect("connect");
    let (before, now) = client.migrate().await.expect("migrate");
    say(&format!("migrated {before} {now}"));
}

/// Runs random programs until it is killed.
async fn programs(url: &str) {
    let client = Client::connect(url).await.expect("connect");
    let builder = Worker::builder(&client).park_after(Duration::from_millis(30)).max_in_flight(50);
    let builder = crate::program::register(builder, Ledger::open(url).await);
    let _worker = builder.start().await.expect("worker");
    std::future::pending::<()>().await;
}

/// Starts two runs of its own at once.
async fn starter(url: &str) {
    let worker = start(url).await;
    for n in 0..2 {
        let run = Enqueue::<Charge>::new(n).key(format!("direct-{n}")).start(&worker).await.expect("start");
        say(&format!("started {}", run.run_id()));
    }
    std::future::pending::<()>().await;
}

/// Places orders, each with its run in one transaction. With `AMBO_CHILD_HOLD` the last one is left open.
async fn enqueuer(url: &str) {
    let mut sql = connect(url).await;
    let hold = std::env::var("AMBO_CHILD_HOLD").is_ok();
    for order in 0.. {
        let tx = sql.transaction().await.unwrap();
        tx.execute("insert into orders values ($1)", &[&order]).await.unwrap();
        Enqueue::named("charge", &order).on(&tx).await.expect("enqueue");
        if hold && order == 3 {
            say("holding");
            std::future::pending::<()>().await;
        }
        tx.commit().await.unwrap();
        say(&format!("placed {order}"));
    }
}
