//! One waiter a process: everyone who awaits an outcome, or what a run publishes, waits here, on one connection.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::engine::clock;
use crate::error::{Error, Result};
use crate::id;
use crate::store::admin::{self, Outcome};
use crate::store::connect::{Link, Notice, Session, Target};
use crate::store::flush::NewOutcome;
use crate::store::worker;

/// Between looks when no notification came: it covers those that were lost.
const POLL: Duration = Duration::from_secs(2);
/// Between looks where there are no notifications.
const POLL_POOLED: Duration = Duration::from_millis(100);
/// How long the waiter goes on listening when nobody waits any more.
const LINGER: Duration = Duration::from_secs(5);
/// Runs asked about in one statement.
const ASK: usize = 5000;

/// Since when somebody waits, and where the answer goes.
type Answer = (Instant, oneshot::Sender<Result<Outcome>>);

/// Those who wait, by run.
#[derive(Debug)]
pub(crate) struct Waiter {
    target: Target,
    waiting: Mutex<HashMap<Uuid, Waiting>>,
    /// Those who wait for what a run publishes: they look for themselves when told.
    listening: Mutex<HashMap<Uuid, Weak<Notify>>>,
    /// Somebody began to wait for a run that nobody in this process runs.
    arrived: Arc<Notify>,
    /// When the last look began that has ended.
    looked: watch::Sender<Option<Instant>>,
    running: AtomicBool,
    /// Where the watching task lives: the runtime that the client was made in.
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: Vec<Answer>,
    /// The run is executed in this process, which will tell: the database is asked only now and then.
    local: bool,
    /// The database was asked once whether there is such a run.
    known: bool,
}

impl Waiter {
    pub(crate) fn new(target: Target) -> Self {
        let arrived = Arc::new(Notify::new());
        let runtime = tokio::runtime::Handle::current();
        Waiter {
            target,
            waiting: Mutex::default(),
            listening: Mutex::default(),
            arrived,
            looked: watch::Sender::new(None),
            running: AtomicBool::new(false),
            runtime,
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run is started in this process: whoever asks for it later need not ask the database.
    pub(crate) fn expect(&self, run: Uuid) {
        self.waiting().insert(run, Waiting { local: true, known: true, answers: Vec::new() });
    }

    /// Waits for the outcome of a run.
    pub(crate) async fn outcome(self: &Arc<Self>, run: Uuid) -> Result<Outcome> {
        let (answer, answered) = oneshot::channel();
        let local = {
            let mut all = self.waiting();
            let waiting = all.entry(run).or_default();
            waiting.answers.push((Instant::now(), answer));
            waiting.local
        };
        if !local {
            self.watch();
        }
        match answered.await {
            Ok(outcome) => outcome,
            // The task ended with its runtime; another one may have the client still.
            Err(_) => Err(Error::new(crate::Code::Unavailable, "the runtime that waited has ended")),
        }
    }

    fn watch(self: &Arc<Self>) {
        if !self.running.swap(true, Ordering::AcqRel) {
            self.runtime.spawn(watch(self.clone()));
        }
        self.arrived.notify_one();
    }

    /// Returns when the database was asked, by a look that began after this call, about all that is waited for.
    pub(crate) async fn asked(self: &Arc<Self>) {
        let since = Instant::now();
        let mut looked = self.looked.subscribe();
        self.watch();
        // The sender is a field of this.
        let _ = looked.wait_for(|begun| begun.is_some_and(|begun| begun >= since)).await;
    }

    /// An outcome became durable in this process, by a flush that was sent at `sent`.
    pub(crate) fn settle(&self, run: Uuid, outcome: &NewOutcome, sent: Instant) {
        self.answer(run, sent, || {
            Ok(Outcome {
                status: outcome.status.to_owned(),
                output: outcome.output.clone(),
                error: outcome.error.clone(),
            })
        });
    }

    /// A run left this process without an outcome: from now on the database is asked.
    pub(crate) fn lose(self: &Arc<Self>, run: Uuid) {
        let somebody_waits = {
            let mut all = self.waiting();
            match all.get_mut(&run) {
                Some(waiting) if !waiting.answers.is_empty() => {
                    waiting.local = false;
                    true
                }
                Some(_) => {
                    all.remove(&run);
                    false
                }
                None => false,
            }
        };
        if somebody_waits {
            self.watch();
        }
    }

    /// What is told whenever there may be something new of a run, as long as it is kept.
    pub(crate) fn listen(self: &Arc<Self>, run: Uuid) -> Arc<Notify> {
        let news = {
            let mut all = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.get(&run).and_then(Weak::upgrade);
            let news = known.unwrap_or_default();
            all.insert(run, Arc::downgrade(&news));
            news
        };
        self.watch();
        news
    }

    /// There may be something new of a run, or of any.
    pub(crate) fn tell(&self, run: Option<Uuid>) {
        self.tell_of(|listened| run.is_none_or(|run| run == *listened));
    }

    fn tell_of(&self, is_meant: impl Fn(&Uuid) -> bool) {
        let all = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.iter().filter(|(listened, _)| is_meant(listened));
        for news in told.filter_map(|(_, news)| news.upgrade()) {
            news.notify_waiters();
        }
    }

    fn is_listened(&self) -> bool {
        let mut all = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, news| news.strong_count() > 0);
        !all.is_empty()
    }

    /// What a notification says: runs, or nothing, which means any.
    fn hear(&self, notice: &Notice) {
        match notice {
            Notice::Notified(_, runs) if !runs.is_empty() => {
                let tags: HashSet<u16> = id::tags(runs).collect();
                self.tell_of(|listened| tags.contains(&id::tag(listened)));
            }
            Notice::Notified(..) | Notice::Lost => self.tell(None),
        }
    }

    /// The runs to ask the database about.
    fn wanted(&self) -> Vec<Uuid> {
        let mut all = self.waiting();
        all.retain(|_, waiting| {
            waiting.local || waiting.answers.iter().any(|(_, answer)| !answer.is_closed())
        });
        all.iter().filter(|(_, waiting)| !waiting.local).map(|(run, _)| *run).collect()
    }

    /// Answers those who have waited since before `as_of`. Whoever came later may have retried the run and wait for
    /// another outcome than this one: for them the database is asked again. Only where the run was started here
    /// they all wait for its first outcome.
    fn answer(&self, run: Uuid, as_of: Instant, outcome: impl Fn() -> Result<Outcome>) {
        let mut all = self.waiting();
        let Some(waiting) = all.get_mut(&run) else { return };
        let first = std::mem::take(&mut waiting.local);
        let told: Vec<Answer> =
            waiting.answers.extract_if(.., |(since, _)| first || *since <= as_of).collect();
        if waiting.answers.is_empty() {
            all.remove(&run);
        } else {
            self.arrived.notify_one();
        }
        drop(all);
        for (_, answer) in told {
            let _ = answer.send(outcome());
        }
    }

    /// Those of the runs that the database was not asked about yet.
    fn new_among(&self, runs: &[Uuid]) -> Vec<Uuid> {
        let all = self.waiting();
        runs.iter().copied().filter(|run| all.get(run).is_some_and(|waiting| !waiting.known)).collect()
    }

    fn known(&self, runs: &[Uuid]) {
        let mut all = self.waiting();
        for run in runs {
            if let Some(waiting) = all.get_mut(run) {
                waiting.known = true;
            }
        }
    }
}

/// Asks for outcomes while somebody waits, and goes on showing itself for a while after: whoever waits for one run
/// mostly waits for another soon.
async fn watch(waiter: Arc<Waiter>) {
    let (sender, mut notices) = mpsc::unbounded_channel();
    let mut link = Link::new(waiter.target.clone(), "ambo client waiter").with_notices(sender);
    let mut listening: Option<u64> = None;
    loop {
        let begun = Instant::now();
        let wanted = waiter.wanted();
        if wanted.is_empty() && !waiter.is_listened() {
            if tokio::time::timeout(LINGER, waiter.arrived.notified()).await.is_err() {
                if let (Some(_), Ok(session)) = (listening.take(), link.session().await) {
                    let _ = worker::show_asleep(session, &waiter.target.schema, "wait", false).await;
                }
                waiter.arrived.notified().await;
            }
            continue;
        }
        if let Err(error) = look(&waiter, &mut link, &mut listening, &wanted).await {
            listening = None;
            link.recover(&error).await;
            continue;
        }
        link.recovered();
        waiter.looked.send_replace(Some(begun));
        let poll = if waiter.target.pooled { POLL_POOLED } else { POLL };
        tokio::select! {
            () = waiter.arrived.notified() => {}
            Some(notice) = notices.recv() => {
                // What came meanwhile is covered by the same look.
                waiter.hear(&notice);
                let mut lost = matches!(notice, Notice::Lost);
                while let Ok(more) = notices.try_recv() {
                    waiter.hear(&more);
                    lost |= matches!(more, Notice::Lost);
                }
                if lost {
                    listening = None;
                }
            }
            () = tokio::time::sleep(poll.mul_f64(0.75 + 0.5 * clock::jitter())) => {}
        }
    }
}

/// One look. Shows first that somebody waits, so that whatever commits after the look is told.
async fn look(waiter: &Waiter, link: &mut Link, listening: &mut Option<u64>, wanted: &[Uuid]) -> Result<()> {
    let session: Session = link.session().await?.clone();
    let schema = &waiter.target.schema;
    if !waiter.target.pooled && *listening != Some(session.number) {
        session.batch(&format!("listen \"{}\"", schema.channel("outcome"))).await?;
        worker::show_asleep(&session, schema, "wait", true).await?;
        *listening = Some(session.number);
        // What was published before that told nobody.
        waiter.tell(None);
    }
    for some in wanted.chunks(ASK) {
        // Whoever waits for a run that there is not learns it, at the first look.
        let new = waiter.new_among(some);
        let asked = Instant::now();
        for (run, outcome) in admin::outcomes(&session, schema, some, &new).await? {
            waiter.answer(run, asked, || outcome.clone().ok_or_else(|| super::unknown(run.into())));
        }
        waiter.known(&new);
    }
    Ok(())
}
