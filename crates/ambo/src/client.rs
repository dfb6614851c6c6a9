//! The client: enqueue without a transaction of one's own, await results, and operate.

pub(crate) mod enqueuer;
pub(crate) mod waiter;

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::admin::{
    Act, Acted, Cancel, Cancelled, DeadError, DeadLetter, Filter, Reason, RunDetail, RunSummary, VitalSign,
    WaitingSignal, WorkerSummary, WorkflowSummary,
};
use crate::context::update;
use crate::enqueue::Enqueued;
use crate::error::{Code, Error, Result};
use crate::handle::Handle;
use crate::id::RunId;
use crate::on::sealed;
use crate::payload::Json;
use crate::store::admin::{self, Outcome};
use crate::store::connect::{Link, Session, Target};
use crate::store::enqueue::NewRun;
use crate::store::{Schema, migrate, why, workflow};
use crate::vault::Vault;
use crate::vault::place::{Place, Within};
use enqueuer::Enqueuer;
use waiter::Waiter;

/// A client of an Ambo installation: cheap to clone, connections opened when first needed and healed when cut.
///
/// It opens up to five: one to ask, two that commit enqueues together, one for enqueues with keys, one to
/// await results.
///
/// # Example
/// ```no_run
/// # async fn example() -> ambo::Result<()> {
/// let client = ambo::Client::connect("postgres://localhost/shop").await?;
/// let run = ambo::Enqueue::named("fulfil", &serde_json::json!({"id": 1001})).key("order-1001").on(&client).await?;
/// let again = ambo::Enqueue::named("fulfil", &serde_json::json!({"id": 1001})).key("order-1001").on(&client).await?;
/// assert!(again.run == run.run && !again.is_new);      // a key means one run
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
    vault: Vault,
}

/// Between two looks for what a run publishes: from, to.
const EVENT_LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The same where there are no notifications.
const EVENT_LOOKS_POOLED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

#[derive(Debug)]
struct Inner {
    target: Target,
    /// For questions and operators' acts; a tokio mutex because it is held while the database is asked.
    link: Mutex<Link>,
    enqueuer: Enqueuer,
    waiter: Arc<Waiter>,
}

impl Client {
    /// Connects, to the schema `ambo`, and checks that it fits.
    ///
    /// # Errors
    /// `AMBO040` if the database cannot be reached, `AMBO041` if the URL cannot be read, `AMBO010` if the schema is not
    /// there or has another version.
    pub async fn connect(url: &str) -> Result<Self> {
        Client::connect_in(url, "ambo").await
    }

    /// Connects to an installation under another schema name.
    ///
    /// # Errors
    /// As [`connect`](Client::connect).
    pub async fn connect_in(url: &str, schema: &str) -> Result<Self> {
        let client = Client::connect_unchecked(url, schema).await?;
        let session = client.session().await?;
        migrate::check(&session, &client.inner.target.schema).await?;
        Ok(client)
    }

    /// Connects without a look at the schema: to [`migrate`](Client::migrate).
    ///
    /// # Errors
    /// `AMBO040` and `AMBO041` as [`connect`](Client::connect).
    pub async fn connect_unchecked(url: &str, schema: &str) -> Result<Self> {
        let mut target = Target::parse(url, Schema::new(schema)?)?;
        target.detect_pooler().await?;
        let inner = Arc::new(Inner {
            link: Mutex::new(Link::new(target.clone(), "ambo client")),
            enqueuer: Enqueuer::new(target.clone()),
            waiter: Arc::new(Waiter::new(target.clone())),
            target,
        });
        Ok(Client { inner, vault: Vault::of_process() })
    }

    /// What becomes of payloads before they are recorded: of those that go through this client, its handles and the workers
    /// that are built with it. Default: the [default of the program](Vault::make_default).
    #[must_use]
    pub fn with_vault(mut self, vault: Vault) -> Self {
        self.vault = vault;
        self
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Installs or upgrades the schema; safe from any number of processes at once, and beside any load: nobody waits for it
    /// for longer than a moment. Answers the version before, 0 if there was none, and the version now. A schema that is
    /// newer than this program, and serves it, is left as it is.
    ///
    /// # Errors
    /// `AMBO010` if the schema is newer than this program and does not serve it; `AMBO050` with what the database says,
    /// also if a table was in use by long transactions for a minute: what was done until then stands, and the next call
    /// goes on from there.
    pub async fn migrate(&self) -> Result<(i32, i32)> {
        let session = self.session().await?;
        migrate::migrate(&session, &self.inner.target.schema).await
    }

    /// [`migrate`](Client::migrate), with a clock that a test can move.
    #[cfg(feature = "testing")]
    pub(crate) async fn migrate_to_test(&self) -> Result<()> {
        migrate::install_to_test(&self.session().await?).await
    }

    /// The version of the schema that this program works with.
    pub const SCHEMA_VERSION: i32 = migrate::SCHEMA_VERSION;

    /// The version of the schema in the database, 0 if it holds none; and the oldest version of a program that it serves.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn schema_version(&self) -> Result<(i32, i32)> {
        let found = migrate::installed(&self.session().await?, &self.inner.target.schema).await?;
        Ok(found.map_or((0, 0), |found| (found.version, found.serves_from)))
    }

    /// The time by the database's clock, the one that decides everything: what ages are reckoned from.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn now(&self) -> Result<jiff::Timestamp> {
        admin::now(&self.session().await?, self.schema()).await
    }

    /// The SQL that [`migrate`](Client::migrate) would run on an empty database.
    ///
    /// # Errors
    /// `AMBO041` for a schema name that would need quoting.
    pub fn migration_script(schema: &str) -> Result<String> {
        Ok(migrate::script(&Schema::new(schema)?))
    }

    pub(crate) async fn session(&self) -> Result<Session> {
        self.inner.link.lock().await.session().await.cloned()
    }

    pub(crate) fn target(&self) -> &Target {
        &self.inner.target
    }

    pub(crate) fn waiter(&self) -> &Arc<Waiter> {
        &self.inner.waiter
    }

    pub(crate) fn enqueuer(&self) -> &Enqueuer {
        &self.inner.enqueuer
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.inner.target.schema
    }

    /// A handle to a run, to await its result. No question is asked of the database yet.
    pub fn handle<W>(&self, run: RunId) -> Handle<W> {
        Handle::new(self.clone(), run)
    }

    pub(crate) async fn outcome(&self, run: RunId) -> Result<Outcome> {
        self.inner.waiter.outcome(run.as_uuid()).await
    }

    /// Runs, newest first. Errors that are encrypted or stored apart are shown as they are recorded if they cannot be opened.
    ///
    /// # Errors
    /// `AMBO005` for a state that there is not.
    pub async fn list_runs(&self, filter: &Filter) -> Result<Vec<RunSummary>> {
        let mut runs = admin::list_runs(&self.session().await?, self.schema(), filter).await?;
        for run in &mut runs {
            self.vault.show(&Place::Error(run.id.as_uuid()), &mut run.error).await;
        }
        Ok(runs)
    }

    /// One run, with its payloads and steps. What is encrypted or stored apart is shown as it is recorded if it cannot be
    /// opened.
    ///
    /// # Errors
    /// `AMBO033` if there is no such run.
    pub async fn show_run(&self, run: RunId) -> Result<RunDetail> {
        let mut detail = self.show_recorded(run).await?;
        let id = run.as_uuid();
        self.vault.show(&Place::Input { keyed: false }, &mut detail.input).await;
        self.vault.show(&Place::Output(id), &mut detail.output).await;
        self.vault.show(&Place::Error(id), &mut detail.summary.error).await;
        for step in &mut detail.steps {
            if let Some(within) = Within::of(&step.name) {
                self.vault.show_within(&within.place, within.member, &mut step.output).await;
            } else {
                self.vault.show(&Place::Step(&step.position), &mut step.output).await;
            }
            self.vault.show(&Place::Failure(&step.position), &mut step.error).await;
        }
        Ok(detail)
    }

    /// One run as it is recorded.
    pub(crate) async fn show_recorded(&self, run: RunId) -> Result<RunDetail> {
        let detail = admin::show_run(&self.session().await?, self.schema(), run.as_uuid()).await?;
        detail.ok_or_else(|| unknown(run))
    }

    /// Asks a run to end, with a reason or a [`Cancel`]: one that waits to be claimed at once, one in execution at its next durable
    /// call, or in the midst of a wait or of a step that [allows it](crate::Step::cancel_at_once).
    ///
    /// # Example: it ends within five minutes, undone or not
    /// ```no_run
    /// # async fn example(client: ambo::Client, run: ambo::RunId) -> ambo::Result<()> {
    /// use std::time::Duration;
    /// client.cancel(run, ambo::Cancel::new("withdrawn").grace(Duration::from_secs(300))).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `AMBO033` if there is no such run, `AMBO005` for the grace.
    pub async fn cancel(&self, run: RunId, cancel: impl Into<Cancel>) -> Result<Cancelled> {
        let (session, cancel) = (self.session().await?, cancel.into());
        let said = admin::cancel_run(&session, self.schema(), run.as_uuid(), &cancel).await?;
        Ok(match said.as_str() {
            "requested" => Cancelled::Requested,
            "cancelled" => Cancelled::AtOnce,
            _ => Cancelled::AlreadyEnded(said),
        })
    }

    /// What a run has published under a key after the value number `after` (0: from the first), in order, with their
    /// numbers: at most 1000 at a time. A reader that asks again after the last number that it has seen loses nothing and
    /// sees nothing twice.
    ///
    /// # Errors
    /// `AMBO028` for a value that is not a `T`, `AMBO033` if there is no such run, `AMBO040` if the database is away.
    pub async fn events<T: DeserializeOwned>(
        &self,
        run: RunId,
        key: &str,
        after: u32,
    ) -> Result<Vec<(u32, T)>> {
        let values = self.recorded_events(run, key, after).await?;
        self.read_events(key, values).await
    }

    /// The keys under which a run has published, in their order, each with the number of its last value.
    ///
    /// # Errors
    /// `AMBO033` if there is no such run, `AMBO040` if the database is away.
    pub async fn event_keys(&self, run: RunId) -> Result<Vec<(String, u32)>> {
        let keys =
            crate::store::signal::event_keys(&self.session().await?, self.schema(), run.as_uuid()).await?;
        Ok(keys.into_iter().map(|(key, number)| (key, number.unsigned_abs())).collect())
    }

    /// Events as they are recorded.
    async fn recorded_events(&self, run: RunId, key: &str, after: u32) -> Result<Vec<(i32, Json)>> {
        let session = self.session().await?;
        let after = i32::try_from(after).unwrap_or(i32::MAX);
        crate::store::signal::events(&session, self.schema(), run.as_uuid(), key, after).await
    }

    async fn read_events<T: DeserializeOwned>(
        &self,
        key: &str,
        values: Vec<(i32, Json)>,
    ) -> Result<Vec<(u32, T)>> {
        let what = format!("the event {key:?}");
        let mut events = Vec::with_capacity(values.len());
        for (number, value) in values {
            let value = self.vault.open(&Place::Event(key), &value).await?;
            events.push((number.unsigned_abs(), crate::payload::decode(&what, &value)?));
        }
        Ok(events)
    }

    /// [`events`](Client::events), but waits until there is one. Empty: the run has ended, and nothing more will come.
    ///
    /// # Errors
    /// As `events`.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing; call it again.
    pub async fn next_events<T: DeserializeOwned>(
        &self,
        run: RunId,
        key: &str,
        after: u32,
    ) -> Result<Vec<(u32, T)>> {
        let values = self.next_recorded_events(run, key, after).await?;
        self.read_events(key, values).await
    }

    async fn next_recorded_events(&self, run: RunId, key: &str, after: u32) -> Result<Vec<(i32, Json)>> {
        let (mut pause, longest) = if self.is_pooled() { EVENT_LOOKS_POOLED } else { EVENT_LOOKS };
        let news = self.waiter().listen(run.as_uuid());
        loop {
            let told = news.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let values = self.recorded_events(run, key, after).await?;
            if !values.is_empty() {
                return Ok(values);
            }
            let session = self.session().await?;
            let ended = crate::store::signal::has_ended(&session, self.schema(), run.as_uuid()).await?;
            if ended.ok_or_else(|| unknown(run))? {
                // Once more: it may have published between the two looks, and ended then.
                return self.recorded_events(run, key, after).await;
            }
            tokio::select! {
                () = told => {}
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(longest),
            }
        }
    }

    /// Sends a run a request under a topic, and waits until the run has [answered](crate::Ctx::answer) it. The key, 1 to 180
    /// bytes, means one request: sent again, after a lost connection or a crash, it is not handled twice, and gets the same
    /// answer.
    ///
    /// # Errors
    /// `AMBO001` for the key or topic, `AMBO003` if the key names another request, `AMBO004` or `AMBO007` for the payload, `AMBO033` if
    /// there is no such run, `AMBO034` if it has ended or ends without an answer, `AMBO038` if the run waits for another payload,
    /// `AMBO028` if the answer is not an `R`.
    ///
    /// # Cancel safety
    /// The request stays sent; ask again under the same key.
    pub async fn update<R: DeserializeOwned>(
        &self,
        run: RunId,
        topic: &str,
        payload: &impl serde::Serialize,
        key: &str,
    ) -> Result<R> {
        if key.is_empty() || key.len() > update::KEY_MAX || key.contains('\0') {
            let text =
                format!("the key of an update has 1 to 180 bytes and no NUL; this one has {}", key.len());
            return Err(Error::new(Code::InvalidName, text));
        }
        let answer = update::answer_key(key);
        let request = crate::Update { value: payload, key: key.to_owned() };
        // Sent again it is known by its key, also to a run that has ended since and takes no more signals.
        crate::SendSignal::new(run, topic, &request).key(answer.as_str()).on(self).await?;
        let mut answers = self.next_recorded_events(run, &answer, 0).await?;
        answers.truncate(1);
        if let Some(refused) = answers.first().and_then(|(_, first)| update::refused(first)) {
            return Err(refused);
        }
        let first = self.read_events::<R>(&answer, answers).await?.into_iter().next();
        first.map(|(_, answer)| answer).ok_or_else(|| {
            Error::new(Code::WrongState, format!("run {run} has ended and did not answer the update {key:?}"))
        })
    }

    /// The signals that wait for a run, the oldest first, at most 1000: those that it has not taken, and once it has ended those
    /// of which it failed, for it takes them again when it is retried.
    ///
    /// # Errors
    /// `AMBO033` if there is no such run, `AMBO040` if the database is away.
    pub async fn list_signals(&self, run: RunId) -> Result<Vec<WaitingSignal>> {
        let session = self.session().await?;
        let mut signals = crate::store::signal::list(&session, self.schema(), run.as_uuid()).await?;
        for signal in &mut signals {
            let place = Place::Signal { topic: &signal.topic, keyed: signal.key.is_some() };
            self.vault.show(&place, &mut signal.payload).await;
        }
        Ok(signals)
    }

    /// Takes back a signal that a run has not taken, or that did not fit the type that it waited for, by the number that the
    /// error (`AMBO038`) tells. Its key is free then. Says whether there was one.
    ///
    /// # Errors
    /// `AMBO034` if the run has taken it.
    pub async fn drop_signal(&self, run: RunId, number: i64) -> Result<bool> {
        crate::store::signal::drop_signal(&self.session().await?, self.schema(), run.as_uuid(), number).await
    }

    /// Runs a failed, cancelled or dead run again, from its checkpoints.
    ///
    /// # Errors
    /// `AMBO033` if there is no such run, `AMBO034` if it has not ended or has succeeded, `AMBO009` if its queue, or group, is being
    /// drained.
    pub async fn retry(&self, run: RunId) -> Result<()> {
        admin::retry_run(&self.session().await?, self.schema(), run.as_uuid()).await
    }

    /// Runs a run again from a position, as [`show_run`](Client::show_run) names it: it forgets what it recorded from there on
    /// and how it ended. What it did there is not undone; signals consumed there can be consumed again, children started there
    /// are cancelled, values published there are gone.
    ///
    /// # Errors
    /// `AMBO005` for what is not a position, `AMBO033` if there is no such run, `AMBO034` if it is neither parked nor ended, or
    /// what it did was undone, `AMBO009` if it has ended and its queue, or group, is being drained.
    pub async fn rewind(&self, run: RunId, position: &str) -> Result<()> {
        admin::rewind_run(&self.session().await?, self.schema(), run.as_uuid(), position).await
    }

    /// Starts a new run that begins with what another one had recorded before a position (`None`: with all of it). The other
    /// one stays as it is; the attribute `forked_from` of the new one names it.
    ///
    /// # Errors
    /// `AMBO005` for what is not a position, `AMBO033` if there is no such run, `AMBO009` if its queue, or group, is being drained.
    pub async fn fork(&self, run: RunId, position: Option<&str>) -> Result<RunId> {
        let fork = admin::fork_run(&self.session().await?, self.schema(), run.as_uuid(), position).await?;
        Ok(fork.into())
    }

    /// Does one thing to many runs, each on its own, and says what became of each: one that refuses it does not keep
    /// the others from it. [`list_runs`](Client::list_runs) finds them, and is the dry run.
    ///
    /// In the order in which they were enqueued, however they are given (lists are newest first): so the runs of a group go on in
    /// their order. Answers come as the runs were given.
    ///
    /// # Errors
    /// `AMBO040` if the database is away; up to 500 runs may have been acted on and not be told of then.
    pub async fn act(&self, act: &Act, runs: &[RunId]) -> Result<Vec<Acted>> {
        let mut given: Vec<(uuid::Uuid, usize)> = runs.iter().map(|run| run.as_uuid()).zip(0..).collect();
        given.sort_unstable();
        let mut acted = Vec::with_capacity(runs.len());
        for some in given.chunks(500) {
            let some: Vec<uuid::Uuid> = some.iter().map(|(run, _)| *run).collect();
            acted.extend(
                admin::act_on_runs(&self.session().await?, self.schema(), act, &some, acted.len()).await?,
            );
        }
        let mut acted: Vec<(usize, Acted)> = given.iter().map(|(_, at)| *at).zip(acted).collect();
        acted.sort_unstable_by_key(|(at, _)| *at);
        Ok(acted.into_iter().map(|(_, acted)| acted).collect())
    }

    /// The dead, newest first, with why, when and how often. To run them again or throw them away: [`act`](Client::act) with
    /// [`Act::Redrive`] or [`Act::PurgeDead`].
    ///
    /// # Errors
    /// `AMBO005` for attributes that are not an object, and for a state other than dead; `AMBO040` if the database is away.
    pub async fn dead_letters(&self, filter: &Filter) -> Result<Vec<DeadLetter>> {
        refuse_the_living(filter)?;
        admin::dead_letters(&self.session().await?, self.schema(), filter).await
    }

    /// The dead by what they died of, the most frequent first. Looks at the newest 100,000 that the filter leaves, whose limit means
    /// nothing here.
    ///
    /// # Errors
    /// As [`dead_letters`](Client::dead_letters).
    pub async fn dead_errors(&self, filter: &Filter) -> Result<Vec<DeadError>> {
        refuse_the_living(filter)?;
        admin::dead_errors(&self.session().await?, self.schema(), filter).await
    }

    /// Why a run is not running: every reason that holds, the first one first; never none.
    ///
    /// # Errors
    /// `AMBO033` if there is no such run.
    pub async fn why(&self, run: RunId) -> Result<Vec<Reason>> {
        why::why_run(&self.session().await?, self.schema(), run.as_uuid()).await
    }

    /// The workers that are registered, by id.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn list_workers(&self) -> Result<Vec<WorkerSummary>> {
        admin::list_workers(&self.session().await?, self.schema()).await
    }

    /// The workflows that workers have registered so far, by name.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn list_workflows(&self) -> Result<Vec<WorkflowSummary>> {
        workflow::list(&self.session().await?, self.schema(), None).await
    }

    /// What is known of one workflow: `None` if no worker has ever registered it.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn show_workflow(&self, name: &str) -> Result<Option<WorkflowSummary>> {
        let found = workflow::list(&self.session().await?, self.schema(), Some(name)).await?;
        Ok(found.into_iter().next())
    }

    /// The figures that `ambo doctor` looks at.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn vital_signs(&self) -> Result<Vec<VitalSign>> {
        admin::vital_signs(&self.session().await?, self.schema()).await
    }

    /// Whether a transaction pooler stands before the database; Ambo polls then.
    pub fn is_pooled(&self) -> bool {
        self.inner.target.pooled
    }

    /// Makes this database, restored or cloned from another, an installation of its own: only when the one that it
    /// came from does not run any more, or its runs would run twice.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn adopt(&self) -> Result<()> {
        admin::adopt(&self.session().await?, self.schema()).await
    }
}

impl sealed::Enqueue for &Client {
    #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
    async fn ask(
        self,
        _: &crate::store::Schema,
        sql: &str,
        args: &[Option<String>],
    ) -> Result<Vec<Option<String>>> {
        self.session().await?.call(&self.schema().sql(sql), args).await
    }

    #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
    fn vault(&self) -> Vault {
        self.vault.clone()
    }

    #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
    async fn enqueue(self, run: NewRun) -> Result<Enqueued> {
        self.inner.enqueuer.enqueue(run).await
    }

    #[allow(private_interfaces, reason = "sealed: nobody outside calls it")]
    async fn enqueue_many(self, runs: Vec<NewRun>) -> Result<Vec<Enqueued>> {
        let session = self.session().await?;
        let answers =
            crate::store::enqueue::enqueue(&session, self.schema(), &runs.iter().collect::<Vec<_>>()).await?;
        Ok(answers.into_iter().map(|(run, is_new)| Enqueued { run: run.into(), is_new }).collect())
    }
}

/// Of the dead: what is in another state is none of them.
fn refuse_the_living(filter: &Filter) -> Result<()> {
    match filter.state.as_deref() {
        None | Some("dead") => Ok(()),
        Some(state) => Err(Error::new(
            Code::InvalidOption,
            format!("the dead are looked for, and not what is {state:?}"),
        )),
    }
}

pub(crate) fn unknown(run: RunId) -> Error {
    Error::new(Code::UnknownRun, format!("there is no run {run}"))
}
