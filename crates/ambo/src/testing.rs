//! Testing workflows, on a real PostgreSQL of the test's own: time that is skipped, steps that are answered for, workers that die.
//!
//! A [`Testbed`] is a database with Ambo in it, on a server that belongs to the test program (or the one that `AMBO_TEST_URL`
//! names) and goes with it. Its workers are the ones of production, with a script beside them. What differs is the clock: in a
//! testbed's database Ambo's time can be moved, and timers are due that would take days.
//!
//! Needs the feature `testing`: put `ambo = { ..., features = ["testing"] }` into the `dev-dependencies`.
//!
//! # Example
//! ```no_run
//! use std::time::Duration;
//!
//! use ambo::testing::Testbed;
//! use ambo::{Ctx, Result};
//!
//! #[ambo::workflow]
//! async fn fulfil(cx: Ctx, order: u64) -> Result<String> {
//!     let charge = cx.step("charge", || async { Err::<u64, _>(ambo::Error::message("no gateway here")) }).await?;
//!     cx.sleep(Duration::from_hours(24)).await?;
//!     Ok(cx.step("ship", || async move { Ok::<_, ambo::Error>(format!("{order} for {charge}")) }).await?)
//! }
//!
//! #[tokio::test]
//! async fn an_order_ships_a_day_later_whatever_crashes() -> Result<()> {
//!     let bed = Testbed::new().await?;
//!     bed.start(|worker| worker.workflow::<fulfil>()).await?;
//!     bed.step("charge").fails(ambo::Error::message("declined")).times(1);
//!     bed.step("charge").returns(&990);
//!     bed.crash_before("ship");
//!
//!     let run = fulfil::enqueue(7).on(bed.client()).await?.run;
//!     assert!(bed.client().handle::<fulfil>(run).result().await.is_err(), "declined");
//!     bed.client().retry(run).await?;
//!     bed.skip(Duration::from_hours(24)).await?;
//!     bed.crashed().await?;
//!     bed.restart().await?;
//!     assert_eq!(bed.client().handle::<fulfil>(run).result().await?, "7 for 990");
//!     Ok(())
//! }
//! # fn main() {}
//! ```

mod enqueued;
mod server;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::client::Client;
use crate::engine::script::{Act, Rig, Script, What};
use crate::error::{ApplicationError, Code, Error, Failure, Result, to_error};
use crate::handle::Handle;
use crate::payload;
use crate::store::testing as store;
use crate::worker::{Worker, WorkerBuilder};
use crate::workflow::Workflow;
pub use enqueued::{EnqueuedRun, enqueued_in};
pub use server::{DatabaseUrl, create_database};

/// How long a test waits for what should come within milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the database.
const LOOK: Duration = Duration::from_millis(5);
/// How long a run waits in the memory of a testbed's worker: shorter than in production, so that tests see it parked.
const PARK_AFTER: Duration = Duration::from_millis(20);

type Configure = Box<dyn Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync>;

/// A database with Ambo in it, dropped with the value, and what is told to the workers that work on it.
pub struct Testbed {
    client: Client,
    script: Arc<Script>,
    /// The worker that `start` started, and how to start another.
    present: tokio::sync::Mutex<(Option<Worker>, Option<Configure>)>,
    /// How many of the script's dead were buried.
    buried: Mutex<usize>,
    // Dropped last: it takes the database with it.
    url: DatabaseUrl,
}

impl Testbed {
    /// Makes a database and installs Ambo in it. The first in a program also starts the server.
    ///
    /// # Errors
    /// If there is no PostgreSQL to start, or it cannot be reached.
    pub async fn new() -> Result<Self> {
        let url = create_database().await?;
        let client = Client::connect_unchecked(&url, "ambo").await?;
        client.migrate_to_test().await?;
        Ok(Testbed {
            client,
            script: Arc::default(),
            present: tokio::sync::Mutex::new((None, None)),
            buried: Mutex::new(0),
            url,
        })
    }

    /// The address of the database, for the application's own pool and tables.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A worker to be configured and started by hand, beside the one of [`start`](Testbed::start); it obeys the script too.
    pub fn worker(&self) -> WorkerBuilder {
        Worker::builder(&self.client).park_after(PARK_AFTER).rig(Rig::of(&self.script))
    }

    /// Starts the worker of this test. Called again, it ends the one before as a crash would.
    ///
    /// # Errors
    /// As [`WorkerBuilder::start`].
    pub async fn start(
        &self,
        configure: impl Fn(WorkerBuilder) -> WorkerBuilder + Send + Sync + 'static,
    ) -> Result<()> {
        self.present.lock().await.1 = Some(Box::new(configure));
        self.restart().await
    }

    /// Starts the worker of this test anew; one that is still there ends as a crash would end it. What that one was at is taken
    /// over at once.
    ///
    /// # Errors
    /// `AMBO041` if none was started before, else as [`WorkerBuilder::start`].
    pub async fn restart(&self) -> Result<()> {
        let mut present = self.present.lock().await;
        if let Some(worker) = present.0.take() {
            self.kill(worker).await?;
        }
        let configure = present.1.as_ref().ok_or_else(|| {
            Error::new(Code::Configuration, "no worker was started that could be started again: use `start`")
        })?;
        present.0 = Some(configure(self.worker()).start().await?);
        Ok(())
    }

    /// Ends a worker as SIGKILL would: nothing is handed back, nothing more is recorded. Another one takes its runs at once.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn kill(&self, worker: Worker) -> Result<()> {
        let worker = worker.kill().await;
        self.bury().await?;
        match worker {
            Some(worker) => self.disown(worker).await,
            None => Ok(()),
        }
    }

    /// What becomes of a step, or a transaction step, of this name; or at this position.
    pub fn step(&self, call: impl Into<String>) -> ScriptedStep<'_> {
        ScriptedStep { script: &self.script, call: call.into() }
    }

    /// How often a step of this name was tried so far, by whatever worker and run; attempts that the script answered count.
    pub fn attempts(&self, step: &str) -> u32 {
        self.script.attempts(step)
    }

    /// The next worker that comes to this durable call dies there: all before it is durable, and it has not acted. `call` is the
    /// name of a step, or a position, in whatever run; `ambo run show` prints those of other calls too, such as `ambo:sleep`. A call that
    /// does not wait (a start of a child, `publish`, `answer`, `set_attribute`, `now` and the like) takes effect by its record alone: there it is
    /// the same as [`crash_after`](Testbed::crash_after), and what was recorded just before may be lost with it.
    pub fn crash_before(&self, call: impl Into<String>) {
        self.script.add(Act { call: call.into(), what: What::CrashBefore, times: Some(1) });
    }

    /// The next worker that comes to this durable call dies after it: it has taken effect, and nothing of that is recorded. The next one
    /// does it again; a transaction step, whose effect and record are one, it finds done.
    pub fn crash_after(&self, call: impl Into<String>) {
        self.script.add(Act { call: call.into(), what: What::CrashAfter, times: Some(1) });
    }

    /// Waits until a worker has died by [`crash_before`](Testbed::crash_before) or [`crash_after`](Testbed::crash_after), once for each
    /// of them. Then [`restart`](Testbed::restart).
    ///
    /// # Errors
    /// `AMBO042` if none has within 30 s.
    pub async fn crashed(&self) -> Result<()> {
        let mut dead = self.script.dead.subscribe();
        let buried = *self.buried.lock().unwrap_or_else(PoisonError::into_inner);
        let died = tokio::time::timeout(PATIENCE, dead.wait_for(|dead| dead.len() > buried)).await;
        if died.is_err() {
            return Err(Error::new(Code::WaitTimeout, "no worker came to the call at which it was to die"));
        }
        self.bury().await
    }

    /// Lets go of the workers that the script killed.
    async fn bury(&self) -> Result<()> {
        let dead: Vec<i64> = {
            let mut buried = self.buried.lock().unwrap_or_else(PoisonError::into_inner);
            let dead = self.script.dead.borrow();
            let fresh = dead[*buried..].to_vec();
            *buried = dead.len();
            fresh
        };
        for worker in dead {
            self.disown(worker).await?;
        }
        Ok(())
    }

    async fn disown(&self, worker: i64) -> Result<()> {
        store::disown_worker(&self.client.session().await?, worker).await?;
        // Whoever is there finds it at once.
        self.script.beat();
        Ok(())
    }

    /// Waits until all runs have ended, are parked or are delayed, and then moves time: what is due within `span` is due now.
    /// Sleeps, timeouts of waits and runs, pauses between attempts, schedules, lifetimes of keys: everything of Ambo's. The
    /// application's own clocks stay; `timeout` of a step, which limits the time of its code, does too.
    ///
    /// # Errors
    /// `AMBO042` if a run is still at work after 30 s: see [`skip_at_once`](Testbed::skip_at_once).
    pub async fn skip(&self, span: Duration) -> Result<()> {
        self.settled().await?;
        self.skip_at_once(span).await
    }

    /// [`skip`](Testbed::skip) without waiting: also for a run that pauses between two attempts of a step.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn skip_at_once(&self, span: Duration) -> Result<()> {
        store::skip_time(&self.client.session().await?, span).await?;
        self.script.beat();
        Ok(())
    }

    /// Waits until all runs have ended, are parked or are delayed.
    ///
    /// # Errors
    /// `AMBO042` if one is still at work after 30 s.
    pub async fn settled(&self) -> Result<()> {
        self.rest().await.map(drop)
    }

    /// Waits until nothing is at work, and says how long it is until something is due then.
    async fn rest(&self) -> Result<Option<Duration>> {
        let session = self.client.session().await?;
        let mut at_work = String::new();
        let settling = async {
            loop {
                match store::at_work(&session).await? {
                    (Some(run), _) => at_work = run,
                    (None, due) => return Ok(due),
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let settled = tokio::time::timeout(PATIENCE, settling).await;
        settled.unwrap_or_else(|_| {
            let text = format!("a run is still at work, or there is no worker for it: {at_work}");
            Err(Error::new(Code::WaitTimeout, text))
        })
    }

    /// Waits as [`skip`](Testbed::skip) does, and moves time to when the next thing is due; says by how much. `None`: nothing will be
    /// due by itself.
    ///
    /// # Errors
    /// As `skip`.
    pub async fn skip_to_next(&self) -> Result<Option<Duration>> {
        let Some(span) = self.rest().await? else { return Ok(None) };
        self.skip_at_once(span).await?;
        Ok(Some(span))
    }

    /// The result of a run, however long it sleeps: time is skipped whenever everything waits for it.
    ///
    /// # Errors
    /// As [`Handle::result`]; `AMBO042` if the run waits for something that does not come by itself.
    pub async fn result<W: Workflow>(&self, handle: &Handle<W>) -> Result<W::Output, Failure<W::Error>> {
        let result = handle.result();
        tokio::pin!(result);
        loop {
            let due = tokio::select! {
                biased;
                result = &mut result => return result,
                due = self.skip_to_next() => due.map_err(Failure::Ambo)?,
            };
            if due.is_none() {
                // It may have ended meanwhile.
                return tokio::time::timeout(Duration::from_secs(1), result).await.unwrap_or_else(|_| {
                    let text = "the run waits for something that does not come by itself";
                    Err(Failure::Ambo(Error::new(Code::WaitTimeout, text)))
                });
            }
        }
    }
}

/// What becomes of a step: see [`Testbed::step`]. Several say so in their order, each as often as it was told.
#[derive(Debug)]
#[must_use = "nothing is scripted until `returns` or `fails`"]
pub struct ScriptedStep<'a> {
    script: &'a Script,
    call: String,
}

impl<'a> ScriptedStep<'a> {
    /// Its attempts answer this, without calling its code: always, or as often as [`times`](Scripted::times) says.
    ///
    /// # Panics
    /// If the value cannot be written as JSON.
    pub fn returns<T: Serialize + ?Sized>(self, value: &T) -> Scripted<'a> {
        let json = payload::encode("the scripted result of a step", &value);
        self.add(What::Return(json.unwrap_or_else(|error| panic!("{error}"))))
    }

    /// Its attempts fail with this, without calling its code: its retry policy decides what follows. Always, or as often as
    /// [`times`](Scripted::times) says.
    pub fn fails<E: ApplicationError>(self, error: E) -> Scripted<'a> {
        self.add(What::Fail(crate::engine::executor::encode_error(&to_error(error))))
    }

    fn add(self, what: What) -> Scripted<'a> {
        let Self { script, call } = self;
        let number = script.add(Act { call, what, times: None });
        Scripted { script, number }
    }
}

/// What was scripted.
#[derive(Debug)]
pub struct Scripted<'a> {
    script: &'a Script,
    number: usize,
}

impl Scripted<'_> {
    /// So often and not more; afterwards what was scripted next, or the step's own code.
    pub fn times(self, times: u32) {
        self.script.limit(self.number, times);
    }
}

impl fmt::Debug for Testbed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Testbed").field("url", &&*self.url).finish_non_exhaustive()
    }
}
