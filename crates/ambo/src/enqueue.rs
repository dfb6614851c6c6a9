//! Enqueue and start: the options of a new run, and where it goes.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::context::attribute;
use crate::error::{Code, Error, Result};
use crate::handle::Handle;
use crate::id::RunId;
use crate::on::On;
use crate::payload;
use crate::store::Schema;
use crate::store::enqueue::{NewRun, Terms};
use crate::vault::Vault;
use crate::vault::place::Place;
use crate::worker::Worker;
use crate::workflow::Workflow;

/// A run to be: options with defaults, then [`on`](Enqueue::on) a transaction, the client, or
/// [`start`](Enqueue::start) in a worker.
///
/// # Example: both or neither
/// ```no_run
/// # use ambo::{Ctx, Result};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Order { id: u64 }
/// #[ambo::workflow]
/// async fn fulfil(cx: Ctx, order: Order) -> Result<()> {
///     cx.step("ship", || async { Ok::<_, ambo::Error>(()) }).await?;
///     Ok(())
/// }
///
/// # async fn example(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let tx = client.transaction().await?;
/// tx.execute("insert into orders values (1001)", &[]).await?;
/// let run = fulfil::enqueue(Order { id: 1001 }).key("order-1001").on(&tx).await?;
/// tx.rollback().await?;                    // neither: no order, no run
/// # Ok(()) }
/// ```
#[must_use = "nothing is enqueued until `.on(...)` or `.start(...)` is awaited"]
pub struct Enqueue<W> {
    run: Result<NewRun>,
    workflow: PhantomData<fn() -> W>,
}

/// A run that was enqueued, or found by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The id of the run.
    pub run: RunId,
    /// False if the key named a run that was there already; nothing was enqueued then.
    pub is_new: bool,
}

impl Enqueued {
    /// Reads the answer of the SQL function: id and `true` or `false`.
    pub(crate) fn read(row: &[Option<String>]) -> Result<Self> {
        match row {
            [Some(run), Some(is_new)] => Ok(Enqueued { run: run.parse()?, is_new: is_new == "true" }),
            _ => Err(Error::new(Code::Database, "the enqueue gave no answer")),
        }
    }

    /// The same for many: a JSON array of pairs of the two.
    pub(crate) fn read_many(row: &[Option<String>]) -> Result<Vec<Self>> {
        let pairs: Option<Vec<(uuid::Uuid, bool)>> =
            row.first().and_then(|text| serde_json::from_str(text.as_deref()?).ok());
        let Some(pairs) = pairs else {
            return Err(Error::new(Code::Database, "the enqueue gave no answer"));
        };
        Ok(pairs.into_iter().map(|(run, is_new)| Enqueued { run: run.into(), is_new }).collect())
    }
}

/// The workflow of a run that is enqueued by name only.
#[derive(Debug)]
pub struct Untyped;

impl Enqueue<Untyped> {
    /// A run of a workflow that this program knows only by name.
    pub fn named(workflow: impl Into<String>, input: &impl Serialize) -> Self {
        Enqueue::build(workflow.into(), input)
    }
}

impl<W: Workflow> Enqueue<W> {
    /// A run of the workflow `W`.
    pub fn new(input: W::Input) -> Self {
        Enqueue::build(W::NAME.to_owned(), &input)
    }

    /// Starts the run at once in `worker`, without a queue. Run, key and claim are durable when this returns, before
    /// the first effect. If the key names a run that is there already, the handle is that run's.
    ///
    /// # Errors
    /// What [`on`](Enqueue::on) may report; `AMBO005` if a delay or any other term of waiting was given; `AMBO020` if the worker does not know the
    /// workflow; `AMBO043` if it is stopping.
    ///
    /// # Cancel safety
    /// If the future is dropped the run may have started all the same; with a key, asking again finds it.
    pub async fn start(self, worker: &Worker) -> Result<Handle<W>> {
        let enqueued = worker.start_run(self.run?).await?;
        Ok(worker.client().handle(enqueued.run))
    }
}

impl<W> Enqueue<W> {
    fn build(workflow: String, input: &impl Serialize) -> Self {
        let run = payload::encode("the input", input).map(|input| NewRun {
            schema: Schema::default(),
            workflow,
            input,
            queue: "default".to_owned(),
            key: None,
            priority: 0,
            delay: None,
            at: None,
            attributes: None,
            timeout: None,
            attempts: 5,
            key_lifetime: None,
            terms: Terms::default(),
            vault: None,
        });
        Enqueue { run, workflow: PhantomData }
    }

    /// What PostgreSQL could not hold as an integer is refused with the number that was given; the rest it refuses itself.
    fn count(mut self, what: &str, most: u32, given: u32, change: impl FnOnce(&mut NewRun, i32)) -> Self {
        match i32::try_from(given) {
            Ok(given) => self.set(|run| change(run, given)),
            Err(_) => {
                let text = format!("{what} is from 1 to {most}, not {given}");
                self.run = self.run.and(Err(Error::new(Code::InvalidOption, text)));
                self
            }
        }
    }

    fn set(mut self, change: impl FnOnce(&mut NewRun)) -> Self {
        if let Ok(run) = &mut self.run {
            change(run);
        }
        self
    }

    /// The schema in which Ambo is installed, for a transaction of the caller's. Default: `ambo`. The client and the
    /// worker know theirs.
    pub fn schema(mut self, name: &str) -> Self {
        match Schema::new(name) {
            Ok(schema) => self.set(|run| run.schema = schema),
            Err(error) => {
                self.run = Err(error);
                self
            }
        }
    }

    /// What becomes of the input before it is recorded. Default: the vault of the client or worker, or in a transaction of the
    /// caller's the [default of the program](Vault::make_default). A child's and a schedule's is always that of their worker or
    /// client.
    pub fn vault(self, vault: &Vault) -> Self {
        self.set(|run| run.vault = Some(vault.clone()))
    }

    /// The queue in which the run waits. Default: `default`. It must exist.
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.set(|run| run.queue = queue.into())
    }

    /// An idempotency key, 1 to 512 bytes: for its lifetime it means one run of the workflow. The same key with
    /// another input is an error (`AMBO003`).
    pub fn key(self, key: impl Into<String>) -> Self {
        self.set(|run| run.key = Some(key.into()))
    }

    /// How long the key names the run at least; never shorter than the run. Default: 30 days.
    pub fn key_lifetime(self, lifetime: Duration) -> Self {
        self.set(|run| run.key_lifetime = Some(lifetime))
    }

    /// The [key](Enqueue::key) names the run only while that is queued or running: another enqueue with it gets that run
    /// (`is_new` is false), whatever its input. Once the run has ended the key is free at once.
    pub fn dedup(self) -> Self {
        self.set(|run| run.terms.dedup = true)
    }

    /// One run of the [key](Enqueue::key) in this period, from the enqueue of the last one on, up to a year; within it
    /// another enqueue gets that run, whatever its input and whether it has ended.
    pub fn throttle(self, period: Duration) -> Self {
        self.set(|run| run.terms.throttle = Some(period))
    }

    /// The run is delayed by this quiet period, up to a year. Until that is over another enqueue with the
    /// [key](Enqueue::key) gets the same run, gives it its own input (nothing else) and delays it anew. After it, the next
    /// one is a new run. By when it has to start moves with it: give it [`start_within`](Enqueue::start_within), for a fixed
    /// [`start_by`](Enqueue::start_by) is refused.
    pub fn debounce(self, quiet: Duration) -> Self {
        self.set(|run| run.terms.debounce = Some(quiet))
    }

    /// However often it is [debounced](Enqueue::debounce), the run becomes ready so long after its first enqueue. Default: no
    /// limit.
    pub fn debounce_max(self, longest: Duration) -> Self {
        self.set(|run| run.terms.debounce_max = Some(longest))
    }

    /// The run is claimed for the first time before this time, of the database's clock, or not at all: it is dead then
    /// (`AMBO032`). Not beside [`debounce`](Enqueue::debounce).
    pub fn start_by(self, time: Timestamp) -> Self {
        self.set(|run| run.terms.start_by = Some(time))
    }

    /// [`start_by`](Enqueue::start_by), so long after the enqueue, or after the time until which the run is delayed or
    /// [debounced](Enqueue::debounce).
    pub fn start_within(self, span: Duration) -> Self {
        self.set(|run| run.terms.start_within = Some(span))
    }

    /// Whose run it is, in a queue with groups: a tenant, a customer, an account. 1 to 200 bytes. The queue takes turns among its
    /// groups, and may limit each or keep it in order; see [`QueueSettings`](crate::QueueSettings).
    pub fn group(self, group: impl Into<String>) -> Self {
        self.set(|run| run.terms.group = Some(group.into()))
    }

    /// How much the run counts towards the limits of its queue: 1 to 10,000. Default: 1. One that weighs more than a limit
    /// counts as much as that.
    pub fn weight(self, weight: u32) -> Self {
        self.count("weight", 10_000, weight, |run, weight| run.terms.weight = Some(weight))
    }

    /// Lower is claimed first, -32768 to 32767. Default: 0.
    pub fn priority(self, priority: i32) -> Self {
        self.set(|run| run.priority = priority)
    }

    /// The run is claimed this long after the enqueue at the earliest, up to 10 years. It takes its place in a group then.
    pub fn delay(self, delay: Duration) -> Self {
        self.set(|run| run.delay = Some(delay))
    }

    /// The run is claimed at this time, of the database's clock, at the earliest.
    pub fn at(self, at: Timestamp) -> Self {
        // Any time that is past means at once.
        self.set(|run| run.at = Some(at.max(Timestamp::UNIX_EPOCH)))
    }

    /// How long the run may take, from its first claim, up to 10 years. Default: no limit. After it, what it did
    /// is [undone](crate::Ctx::compensate), which has no limit, and it has failed (`AMBO024`).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.set(|run| run.timeout = Some(timeout))
    }

    /// How many workers may die with the run, without progress, before it is dead-lettered: 1 to 1000. Default: 5.
    pub fn attempts(self, attempts: u32) -> Self {
        self.count("attempts", 1000, attempts, |run, attempts| run.attempts = attempts)
    }

    /// Attributes to find the run by: a JSON object, up to 64 KiB. They are stored as `jsonb`.
    pub fn attributes(mut self, attributes: &impl Serialize) -> Self {
        // They stay in the database, as they are: it searches them.
        match attribute::given(attributes) {
            Ok(json) => self.set(|run| run.attributes = Some(json)),
            Err(error) => {
                self.run = Err(error);
                self
            }
        }
    }

    /// Enqueues on a connection or transaction of the caller's: the run exists if and only if that commits; nothing
    /// of ours is awaited after it. On `&client` it is durable when this returns, in a commit shared with others.
    ///
    /// # Errors
    /// `AMBO001` name or key, `AMBO002` no such queue, `AMBO003` key with another input, `AMBO004` input or attributes too large,
    /// `AMBO005` an option, `AMBO007` input not encodable, `AMBO008` a queue without groups, `AMBO009` one that is drained,
    /// `AMBO010` no schema; `AMBO040` if the database is away.
    /// A refused enqueue leaves the caller's transaction failed, as every error does in PostgreSQL.
    ///
    /// # Cancel safety
    /// If the future is dropped the run may have been enqueued.
    pub async fn on(self, connection: impl On) -> Result<Enqueued> {
        let mut run = self.run?;
        run.seal(&connection.vault()).await?;
        connection.enqueue(run).await
    }

    pub(crate) fn into_run(self) -> Result<NewRun> {
        self.run
    }
}

/// Seconds.
const YEAR: u64 = 365 * 86_400;
/// The period of a throttle, or the quiet that a debounce waits for.
const QUIET_MAX: Duration = Duration::from_secs(YEAR);
/// How long a run may take, or wait.
const TIMEOUT_MAX: Duration = Duration::from_secs(10 * YEAR);
const SPAN_MAX: Duration = Duration::from_secs(100 * YEAR);

impl NewRun {
    /// What PostgreSQL could not even be sent, for text has no NUL there; and what is too large.
    pub(crate) fn check(&self, vault: &Vault) -> Result<()> {
        let texts = [
            ("workflow", Some(&self.workflow)),
            ("queue", Some(&self.queue)),
            ("key", self.key.as_ref()),
            ("group", self.terms.group.as_ref()),
        ];
        for (what, text) in texts {
            if text.is_some_and(|text| text.contains('\0')) {
                return Err(Error::new(Code::InvalidName, format!("the {what} holds a NUL byte")));
            }
        }
        self.check_spans()?;
        vault.check("the input", &self.input)
    }

    /// What PostgreSQL could not hold as an interval is refused before it gets there; what else there is to say of a span, it
    /// says.
    fn check_spans(&self) -> Result<()> {
        let terms = &self.terms;
        let spans = [
            ("timeout", self.timeout, TIMEOUT_MAX),
            ("delay", self.delay, TIMEOUT_MAX),
            ("key_lifetime", self.key_lifetime, SPAN_MAX),
            ("throttle", terms.throttle, QUIET_MAX),
            ("debounce", terms.debounce, QUIET_MAX),
            ("debounce_max", terms.debounce_max, SPAN_MAX),
            ("start_within", terms.start_within, TIMEOUT_MAX),
        ];
        for (what, span, most) in spans {
            if let Some(span) = span.filter(|span| *span > most) {
                let most = match most.as_secs() / YEAR {
                    1 => "a year".to_owned(),
                    years => format!("{years} years"),
                };
                let text = format!("{what} is above zero and {most} at most, not {span:?}");
                return Err(Error::new(Code::InvalidOption, text));
            }
        }
        Ok(())
    }

    /// Checks it, and puts what is recorded in the place of the input: by the run's own vault, or by that of where it goes.
    pub(crate) async fn seal(&mut self, vault: &Vault) -> Result<()> {
        let own = self.vault.take();
        let vault = own.as_ref().unwrap_or(vault);
        self.check(vault)?;
        if !vault.is_empty() {
            self.input = vault.seal(&Place::Input { keyed: self.key.is_some() }, &self.input).await?;
        }
        Ok(())
    }
}

/// What one call may take: the server takes no message of 1 GiB.
const CALL_BYTES: usize = 512 << 20;

/// Enqueues many runs in one call, each with its own options; answers in their order. For up to 100,000 runs and 512 MiB.
///
/// On a connection or transaction of the caller's the runs exist if and only if that commits, as with [`Enqueue::on`].
///
/// # Errors
/// As [`Enqueue::on`]; one refused run refuses all. `AMBO006` for more than that; `AMBO005` for runs of different [schemas](Enqueue::schema).
///
/// # Cancel safety
/// If the future is dropped the runs may have been enqueued: all or none.
pub async fn enqueue_all<W>(
    connection: impl On,
    runs: impl IntoIterator<Item = Enqueue<W>>,
) -> Result<Vec<Enqueued>> {
    let mut new: Vec<NewRun> = Vec::new();
    for run in runs {
        let mut run = run.into_run()?;
        run.seal(&connection.vault()).await?;
        if new.first().is_some_and(|first| first.schema != run.schema) {
            return Err(Error::new(Code::InvalidOption, "the runs of one call go into one schema"));
        }
        new.push(run);
    }
    if new.is_empty() {
        return Ok(Vec::new());
    }
    let bytes: usize = new.iter().map(NewRun::bytes).sum();
    if bytes > CALL_BYTES {
        let text =
            format!("one call takes 512 MiB at most, not {} MiB; enqueue in several calls", bytes >> 20);
        return Err(Error::new(Code::InvalidBulk, text));
    }
    connection.enqueue_many(new).await
}

impl<W> fmt::Debug for Enqueue<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workflow = self.run.as_ref().map(|run| run.workflow.as_str());
        f.debug_struct("Enqueue").field("workflow", &workflow).finish_non_exhaustive()
    }
}
