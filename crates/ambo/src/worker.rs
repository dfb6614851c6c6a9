//! The worker: a process (or part of one) that runs workflows.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::batch::{Batch, Collector};
use crate::client::Client;
use crate::engine::drain::{self, Signals};
use crate::engine::script::Rig;
use crate::engine::wait::MOMENT;
use crate::engine::{self, Engine, Life, failpoint};
use crate::enqueue::Enqueued;
use crate::error::{ApplicationError, Code, Error, Result};
use crate::graph::Plan;
use crate::id::WorkerId;
use crate::replay_check;
use crate::retry::Retry;
use crate::store::claim::ClaimedRun;
use crate::store::enqueue::{NewRun, Terms};
use crate::store::worker::Registration;
use crate::telemetry;
use crate::workflow::{PIN, Registry, States, Workflow, WorkflowFn};

/// Configures a [`Worker`].
#[must_use = "a worker runs once it is started"]
pub struct WorkerBuilder {
    client: Client,
    registry: Result<Registry>,
    states: States,
    name: String,
    version: String,
    queues: Vec<(String, u32)>,
    max_in_flight: usize,
    poll: Duration,
    park_after: Duration,
    history_max: usize,
    is_pinned: bool,
    rig: Rig,
}

impl WorkerBuilder {
    pub(crate) fn new(client: Client) -> Self {
        WorkerBuilder {
            client,
            registry: Ok(Registry::default()),
            states: States::default(),
            name: std::env::var("HOSTNAME").unwrap_or_else(|_| "worker".to_owned()),
            version: String::new(),
            queues: Vec::new(),
            max_in_flight: 1000,
            poll: Duration::from_secs(2),
            park_after: MOMENT,
            history_max: 100_000,
            is_pinned: false,
            rig: Rig::default(),
        }
    }

    fn register(mut self, add: impl FnOnce(&mut Registry) -> Result<()>) -> Self {
        if let Ok(registry) = &mut self.registry
            && let Err(error) = add(registry)
        {
            self.registry = Err(error);
        }
        self
    }

    /// Registers a workflow made with [`#[ambo::workflow]`](macro@crate::workflow), or by hand.
    pub fn workflow<W: Workflow>(self) -> Self {
        self.register(Registry::add::<W>)
    }

    /// Registers a plain async function under a name.
    ///
    /// # Example
    /// ```no_run
    /// # use ambo::{Client, Ctx, Result, Worker};
    /// async fn double(mut cx: Ctx<'_>, n: i64) -> Result<i64> {
    ///     Ok(cx.step("double", || async { Ok::<_, ambo::Error>(2 * n) }).await?)
    /// }
    /// # async fn example(client: &Client) -> Result<()> {
    /// let worker = Worker::builder(client).workflow_fn("double", double).start().await?;
    /// # Ok(()) }
    /// ```
    pub fn workflow_fn<F, I, O, E>(self, name: &str, function: F) -> Self
    where
        F: for<'run> WorkflowFn<'run, I, Output = Result<O, E>>,
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: ApplicationError,
    {
        self.register(|registry| registry.add_fn(name, function))
    }

    /// Registers a [graph](crate::Graph) under a name.
    pub fn graph<I, O, E>(self, name: &str, plan: Plan<I, O, E>) -> Self
    where
        I: DeserializeOwned + Send + Sync + 'static,
        O: Serialize + Clone + Send + Sync + 'static,
        E: ApplicationError + From<Error>,
    {
        self.register(|registry| registry.add_graph(name, plan))
    }

    /// Registers a handler of many runs at once under a name: as soon as `max` of them, at least 1, are in the memory of this
    /// worker, or the first has waited for `within`. It answers a result for each, in their order, and each ends by its own:
    /// one that fails does not fail the others. Each is enqueued, claimed and retried like any run. The handler makes no durable
    /// calls; what it does it does at least once, as a step. [`max_in_flight`](WorkerBuilder::max_in_flight) bounds a batch too.
    ///
    /// # Example
    /// ```no_run
    /// # use std::time::Duration;
    /// # use ambo::{Batch, Client, Error, Result, Worker};
    /// async fn index(batch: Batch<String>) -> Vec<Result<usize>> {
    ///     let words: Vec<&str> = batch.items.iter().map(|item| item.input.as_str()).collect();
    ///     // ... one request for all of them ...
    ///     words.iter().map(|word| if word.is_empty() { Err(Error::message("empty")) } else { Ok(word.len()) }).collect()
    /// }
    /// # async fn example(client: &Client) -> Result<()> {
    /// let worker = Worker::builder(client).batch("index", 100, Duration::from_millis(50), index).start().await?;
    /// # Ok(()) }
    /// ```
    pub fn batch<F, I, O, E, Fut>(self, name: &str, max: usize, within: Duration, handler: F) -> Self
    where
        F: Fn(Batch<I>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<O, E>>> + Send + 'static,
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        E: ApplicationError,
    {
        let body = Arc::new(Collector::new(handler, max, within));
        self.register(|registry| registry.add_body::<I, O>(name, body))
    }

    /// How often a run of a registered workflow is tried again when it fails; see [`Workflow::retry`]. For functions without a
    /// type of their own.
    ///
    /// # Errors
    /// [`start`](WorkerBuilder::start) fails with `AMBO020` if no workflow of this name was registered before.
    pub fn retry(self, workflow: &str, retry: Retry) -> Self {
        self.register(|registry| registry.set_retry(workflow, retry))
    }

    /// Registers every `#[ambo::workflow]` that is linked into the program.
    #[cfg(feature = "macros")]
    pub fn linked_workflows(mut self) -> Self {
        for crate::workflow::Registered(register) in inventory::iter::<crate::workflow::Registered> {
            self = register(self);
        }
        self
    }

    /// A value for workflows to use, found by its type with [`Ctx::state`](crate::Ctx::state).
    pub fn state<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.states.put(value);
        self
    }

    /// A queue to serve, created if it is not there; call it for each. Default: `default` alone.
    pub fn queue(self, name: impl Into<String>) -> Self {
        self.weighted_queue(name, 1)
    }

    /// A queue to serve with a weight, from 1 to 1000; one without counts as 1. While several have runs waiting, each has the part
    /// of the runs that are begun here that its weight is of all their weights; one that has none leaves its part to the others.
    /// Priorities then hold within a queue. Where no queue has a weight above 1, they hold among all that have no limits.
    pub fn weighted_queue(mut self, name: impl Into<String>, weight: u32) -> Self {
        self.queues.push((name.into(), weight));
        self
    }

    /// The name of the worker in lists and logs. Default: the host's name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The version of the program, shown in lists. Default: empty.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// How many calls a run may record before it ends as dead (`AMBO036`), at least 1; one that is to go on for ever
    /// [continues as new](crate::Ctx::continue_as_new). Default: 100,000.
    pub fn history_limit(mut self, calls: usize) -> Self {
        self.history_max = calls.max(1);
        self
    }

    /// Pins runs to the [version](WorkerBuilder::version): one that this worker begins, or takes over unpinned, goes on in workers
    /// of this version only, as long as there are any. A minute after the last one was seen (`pin_grace` of
    /// `ambo.installation`), any worker may have it: it should know how to go on, by [`patched`](crate::Ctx::patched).
    pub fn pinned(mut self) -> Self {
        self.is_pinned = true;
        self
    }

    #[cfg(feature = "testing")]
    pub(crate) fn rig(mut self, rig: Rig) -> Self {
        self.rig = rig;
        self
    }

    /// How many runs are in memory at once, at least 1. Default: 1000. Fewer where those there are came with more than 128 MiB of inputs
    /// and records: then nothing is claimed until some have ended.
    pub fn max_in_flight(mut self, runs: usize) -> Self {
        self.max_in_flight = runs.max(1);
        self
    }

    /// How long an idle worker sleeps that no notification wakes; jittered by a quarter. Default: 2 s, at least 10 ms.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll = interval.max(Duration::from_millis(10));
        self
    }

    /// How long a run that waits for a signal, an event or a child stays in memory before it is parked; one that sleeps
    /// for longer than this leaves at once. Default: 1 s.
    pub fn park_after(mut self, moment: Duration) -> Self {
        self.park_after = moment;
        self
    }

    /// Registers the worker and starts it, on a thread of its own; workflows run on the present tokio runtime.
    ///
    /// Under `ambo replay-check` (the environment variable `AMBO_REPLAY_CHECK`) it does neither: it checks its workflows
    /// against recorded runs, prints what it found and ends the process; see [`replay_check`](mod@crate::replay_check).
    ///
    /// # Errors
    /// `AMBO020` for two workflows of one name, or none; `AMBO001` for a name; `AMBO037` for a graph; `AMBO041` for pins without a version; `AMBO010` if the schema does not fit;
    /// `AMBO011` if the database was restored or cloned; `AMBO040` if it cannot be reached.
    pub async fn start(self) -> Result<Worker> {
        if let Ok(wanted) = std::env::var(replay_check::VARIABLE) {
            match replay_check::serve(self, &wanted).await? {}
        }
        telemetry::describe();
        let (client, engine) = self.engine()?;
        let engine = Arc::new(engine);
        let (thread, ended) = spawn_thread(engine.clone()).await?;
        Ok(Worker { client, engine, thread, ended: Some(ended) })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether a workflow of this name is registered.
    pub(crate) fn knows(&self, workflow: &str) -> bool {
        self.registry.as_ref().is_ok_and(|registry| registry.contains(workflow))
    }

    /// All that a worker consists of, not started.
    pub(crate) fn engine(self) -> Result<(Client, Engine)> {
        let registry = self.registry?;
        let workflows = registry.names();
        if workflows.is_empty() {
            return Err(Error::new(
                Code::Registration,
                "no workflow is registered; call `.workflow::<name>()`",
            ));
        }
        if self.is_pinned && (self.version.is_empty() || self.version.contains(['\0', PIN])) {
            return Err(Error::new(
                Code::Configuration,
                "a worker that pins runs has a version without control characters; set it with `.version(...)`",
            ));
        }
        if cfg!(panic = "abort") {
            tracing::warn!("panics abort this program: a panic in a step will cost the whole worker");
        }
        let mut queues = self.queues;
        if queues.is_empty() {
            queues.push(("default".to_owned(), 1));
        }
        // Of one that is named twice the greater weight counts.
        queues.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        queues.dedup_by(|next, kept| next.0 == kept.0);
        if let Some((queue, weight)) = queues.iter().find(|(_, weight)| !(1..=1000).contains(weight)) {
            return Err(Error::new(
                Code::Configuration,
                format!("the weight of queue {queue} is from 1 to 1000, not {weight}"),
            ));
        }
        for (what, text) in [("name", &self.name), ("version", &self.version)] {
            if text.len() > 200 || text.contains('\0') {
                return Err(Error::new(
                    Code::Configuration,
                    format!(
                        "the {what} of a worker has at most 200 bytes and no NUL among them, not {}",
                        text.len()
                    ),
                ));
            }
        }
        let is_weighted = queues.iter().any(|(_, weight)| *weight > 1);
        let engine = Engine {
            target: Arc::new(self.client.target().clone()),
            registration: Registration {
                name: self.name,
                version: self.version,
                queues: queues.iter().map(|(queue, _)| queue.clone()).collect(),
                workflows,
                is_pinned: self.is_pinned,
                max_in_flight: self.max_in_flight,
            },
            weights: is_weighted.then_some(queues),
            registry,
            states: self.states,
            max_in_flight: self.max_in_flight,
            history_max: self.history_max,
            poll: self.poll,
            park_after: self.park_after,
            rig: self.rig,
            runtime: Handle::current(),
            waiter: self.client.waiter().clone(),
            vault: self.client.vault().clone(),
            life: watch::channel(None).0,
            clock: Arc::new(engine::clock::DatabaseClock::new()),
            // The default, until the first heartbeat says what it is.
            lease_ms: Arc::new(AtomicI32::new(15_000)),
            drain_end: watch::channel(None).0,
            stop: CancellationToken::new(),
        };
        Ok((self.client, engine))
    }
}

/// Starts the engine's thread; returns once it has registered, with its runtime and what tells that it has ended.
async fn spawn_thread(engine: Arc<Engine>) -> Result<(Handle, oneshot::Receiver<()>)> {
    let (first, registered) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = runtime.handle().clone();
    std::thread::Builder::new().name("ambo-engine".to_owned()).spawn(move || {
        let local = tokio::task::LocalSet::new();
        let rig = engine.rig.clone();
        local.block_on(&runtime, engine::live(engine, first));
        // With them go the connections, and only then is the worker gone for the others.
        drop((local, runtime));
        rig.gone();
        let _ = end.send(());
    })?;
    registered.await.map_err(|_| Error::new(Code::Stopping, "the engine's thread ended"))??;
    Ok((thread, ended))
}

/// A running worker.
///
/// # Example: run until SIGTERM, then finish what has begun
/// ```no_run
/// # use ambo::{Client, Ctx, Result, Worker};
/// # #[ambo::workflow] async fn fulfil(cx: Ctx, order: u64) -> Result<()> { Ok(()) }
/// # async fn example(client: &Client) -> Result<()> {
/// Worker::builder(client).workflow::<fulfil>().start().await?.run_until_signal().await
/// # }
/// ```
///
/// Dropped without [`drain`](Worker::drain), it stops at once and its runs are handed back.
pub struct Worker {
    client: Client,
    engine: Arc<Engine>,
    /// The runtime of the engine's thread.
    thread: Handle,
    ended: Option<oneshot::Receiver<()>>,
}

/// How long a worker that was told to stop lets runs finish before it hands them back.
pub const DRAIN: Duration = Duration::from_secs(25);

impl Worker {
    /// A worker for the installation of `client`, to be configured.
    pub fn builder(client: &Client) -> WorkerBuilder {
        WorkerBuilder::new(client.clone())
    }

    /// The client that the worker was built with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The present id; a worker that was declared dead comes back under another. `None` in between.
    pub fn id(&self) -> Option<WorkerId> {
        self.engine.life.borrow().as_ref().map(|life| life.id())
    }

    /// How many runs are in memory.
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// Runs until SIGTERM or Ctrl-C, then [drains](Worker::drain) for up to 25 s; a second signal ends that at once.
    ///
    /// # Errors
    /// If the signals cannot be listened to.
    pub async fn run_until_signal(self) -> Result<()> {
        let signals = {
            let _thread = self.thread.enter();
            Signals::listen()?
        };
        self.thread.spawn(drain::heed(self.engine.clone(), signals));
        self.ended().await;
        Ok(())
    }

    /// Runs until `stop` completes, then [drains](Worker::drain) for up to 25 s.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        stop.await;
        tracing::info!(in_flight = self.in_flight(), "stopping: no more claims");
        self.drain(DRAIN).await;
    }

    /// Stops claiming, lets runs finish for up to `limit`, hands the others back, and leaves. Runs that are handed
    /// back go on elsewhere from their checkpoints, with no attempt counted.
    ///
    /// One that blocks its thread then is given 5 s to yield, and handed back all the same; what its step still does it may do
    /// beside the next attempt. Where it blocks a current-thread runtime this returns when it yields, and tokio drops no runtime
    /// before: a program that must end by then calls `std::process::exit`. Put what blocks into `tokio::task::spawn_blocking`.
    pub async fn drain(self, limit: Duration) {
        self.engine.drain(limit);
        self.ended().await;
    }

    async fn ended(mut self) {
        if let Some(ended) = self.ended.take() {
            let _ = ended.await;
        }
    }

    /// Ends as SIGKILL would: nothing is handed back, and nothing more is recorded. Answers who has died, unless it had ended.
    #[cfg(feature = "testing")]
    pub(crate) async fn kill(mut self) -> Option<i64> {
        let mut ended = self.ended.take()?;
        // It may be about to be born.
        let life = tokio::select! {
            life = self.life() => life.ok().map(|life| life.worker),
            _ = &mut ended => return None,
        };
        if let Some(worker) = life {
            self.engine.rig.kill(worker);
        }
        let _ = ended.await;
        life
    }

    /// Starts a run at once: durable with its claim when this returns.
    pub(crate) async fn start_run(&self, run: NewRun) -> Result<Enqueued> {
        if run.delay.is_some() || run.at.is_some() || run.terms != Terms::default() {
            return Err(Error::new(
                Code::InvalidOption,
                "a run that starts at once has no delay, no time to start by, no group, and no rule of its key; enqueue it",
            ));
        }
        if !self.engine.registry.contains(&run.workflow) {
            let text = format!("this worker does not know the workflow {:?}", run.workflow);
            return Err(Error::new(Code::Registration, text));
        }
        let life = self.life().await?;
        let (new, mut run) = (run.clone(), run);
        run.seal(self.client.vault()).await?;
        let _under_way = life.under_way.begin();
        let doubt = Doubt(Some(&life));
        let answer = self.client.enqueuer().start(run, life.worker).await;
        failpoint::reach("start-answered");
        if !answer.as_ref().is_err_and(Error::is_unavailable) {
            doubt.resolve();
        }
        let enqueued = answer?;
        if enqueued.is_new {
            self.client.waiter().expect(enqueued.run.as_uuid());
            life.adopt(&self.engine, claimed(enqueued, new));
        }
        Ok(enqueued)
    }

    /// The present life, waited for while the worker registers anew.
    async fn life(&self) -> Result<Arc<Life>> {
        let mut lives = self.engine.life.subscribe();
        let stopping = || Error::new(Code::Stopping, "the worker is stopping");
        if self.engine.is_draining() || self.engine.stop.is_cancelled() {
            return Err(stopping());
        }
        let life = lives.wait_for(Option::is_some).await.map_err(|_| stopping())?.clone();
        life.ok_or_else(stopping)
    }
}

/// A start whose answer was lost, or that nobody waited for, may have left a claim that this worker does not know:
/// it is looked for then.
struct Doubt<'a>(Option<&'a Arc<Life>>);

impl Doubt<'_> {
    fn resolve(mut self) {
        self.0 = None;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(life) = self.0 {
            life.suspicion.store(true, Ordering::Release);
        }
    }
}

/// A run that was started, as if it had been claimed.
fn claimed(enqueued: Enqueued, run: NewRun) -> ClaimedRun {
    ClaimedRun {
        id: enqueued.run.as_uuid(),
        workflow: run.workflow,
        queue: run.queue,
        input: run.input,
        attempt: 1,
        losses: 0,
        attempts_max: i16::try_from(run.attempts).unwrap_or(i16::MAX),
        key: run.key,
        time_left: run.timeout,
        cancelled: false,
        undo_left: None,
        too_late: false,
        parent: None,
        slot: None,
        history: Vec::new(),
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.engine.drain(Duration::ZERO);
        self.engine.stop.cancel();
    }
}

impl fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerBuilder")
            .field("name", &self.name)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("id", &self.id())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
