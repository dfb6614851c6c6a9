//! What a run has recorded, as its body asks for it when it is replayed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::context::{attribute, race, signal};
use crate::error::{Code, Error};
use crate::payload;
use crate::store::claim::Checkpoint;

/// Where it is recorded that a run has failed and is being undone. Positions that begin with 0 lie before the first call of
/// any body.
pub(crate) const UNDO: &str = "0";
pub(crate) const UNDO_NAME: &str = "ambo:undo";
/// What a run that continued as new goes on with.
const CONTINUED: &str = "0.0";
/// A try of the whole body that failed, at `0.1` and on: its error, and until when the next one waits.
pub(crate) const RETRY_NAME: &str = "ambo:retry";
/// What the names of patches begin with.
const PATCH: &str = "ambo:patch ";

/// What a run takes along when it continues as new.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Continued {
    pub(crate) input: Box<RawValue>,
    /// The index of the last call at the top. The next is above it: a position, and with it an idempotency key, is never used
    /// twice by a run.
    pub(crate) from: u32,
    /// How often it has continued.
    pub(crate) times: u32,
    /// The number of the last value that was published, by key.
    pub(crate) published: HashMap<String, i32>,
}

impl Continued {
    /// What a checkpoint says that the run goes on with.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let output = checkpoint.output.as_deref().filter(|_| checkpoint.position == CONTINUED)?;
        serde_json::from_str(output).ok()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    /// Recorded calls by position, taken out as the body comes by. A std mutex: never held across an await.
    calls: Mutex<HashMap<String, Checkpoint>>,
    /// Positions below which calls are recorded: of branches.
    branches: HashSet<String>,
    /// The patches that were taken, by the position of the call before which they were asked for.
    patches: Mutex<HashMap<String, Vec<String>>>,
    /// The bytes of the attributes that the run has set, by key.
    attributes: Mutex<HashMap<String, usize>>,
    /// Positions of failures after which the body did not go on: what a retry of the run forgets.
    failures: Mutex<Vec<Arc<str>>>,
    has_failures: AtomicBool,
    /// Positions of calls that failed of what somebody can mend.
    to_mend: Mutex<Vec<Arc<str>>>,
    /// The last call at the top.
    top: AtomicU32,
    length: AtomicUsize,
    /// How many of the calls the body has come by, replayed or recorded.
    passed: AtomicUsize,
    /// In a rehearsal: the calls that came by and were not recorded. They never return.
    beyond: Option<Mutex<Vec<(String, String)>>>,
    /// One of those would have ended the run, and left no record but that.
    would_complete: AtomicBool,
    raced: bool,
    pub(crate) continued: Option<Continued>,
    /// How many tries of the body have failed.
    pub(crate) retries: u32,
    /// Until when the next try waits.
    pub(crate) not_before: Option<Timestamp>,
}

impl History {
    pub(crate) fn new(recorded: Vec<Checkpoint>) -> Self {
        let mut history = History {
            length: AtomicUsize::new(recorded.len()),
            passed: AtomicUsize::new(0),
            beyond: None,
            would_complete: AtomicBool::new(false),
            raced: recorded.iter().any(|checkpoint| checkpoint.name == race::NAME),
            calls: Mutex::default(),
            branches: HashSet::new(),
            patches: Mutex::default(),
            attributes: Mutex::new(recorded.iter().filter_map(attribute::was_set).collect()),
            failures: Mutex::default(),
            has_failures: AtomicBool::new(false),
            to_mend: Mutex::default(),
            top: AtomicU32::new(0),
            continued: None,
            retries: 0,
            not_before: None,
        };
        let mut calls = HashMap::with_capacity(recorded.len());
        for checkpoint in recorded {
            if let Some(checkpoint) = history.sort_out(checkpoint) {
                history.branches.extend(branches_around(&checkpoint.position));
                calls.insert(checkpoint.position.clone(), checkpoint);
            }
        }
        history.top = AtomicU32::new(history.from());
        history.calls = Mutex::new(calls);
        history
    }

    /// Takes what is not a call out of the way.
    fn sort_out(&mut self, checkpoint: Checkpoint) -> Option<Checkpoint> {
        let output = checkpoint.output.as_deref().unwrap_or("null");
        if checkpoint.position == CONTINUED {
            self.continued = Continued::of(&checkpoint);
        } else if checkpoint.name == RETRY_NAME {
            self.retries += 1;
            self.not_before = self.not_before.max(serde_json::from_str(output).ok());
        } else if let Some(name) = checkpoint.name.strip_prefix(PATCH) {
            let place = checkpoint.position.rsplitn(3, '.').nth(2).unwrap_or_default().to_owned();
            let patches = self.patches.get_mut().unwrap_or_else(PoisonError::into_inner);
            patches.entry(place).or_default().push(name.to_owned());
        } else {
            return Some(checkpoint);
        }
        None
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<String, Checkpoint>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, Vec<Arc<str>>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of the call before the first one.
    pub(crate) fn from(&self) -> u32 {
        self.continued.as_ref().map_or(0, |continued| continued.from)
    }

    /// The index of the last call that was built at the top.
    pub(crate) fn top(&self) -> u32 {
        self.top.load(Ordering::Acquire)
    }

    /// How many recorded calls lie behind the body: in a replay as many as there were when it came here first, and not what it
    /// has recorded since, or it would decide otherwise.
    pub(crate) fn passed(&self) -> usize {
        self.passed.load(Ordering::Relaxed)
    }

    /// One more call is recorded; answers how many there are.
    pub(crate) fn grow(&self) -> usize {
        self.passed.fetch_add(1, Ordering::Relaxed);
        self.length.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A call was built: where it stands, the body has gone on after what had failed.
    pub(crate) fn built(&self, branch: &str, index: u32) {
        if branch.is_empty() {
            self.top.store(index, Ordering::Release);
        }
        if self.has_failures.load(Ordering::Relaxed) {
            self.failures().retain(|position| !is_within(position, branch));
        }
    }

    /// The body was told of a failure.
    pub(crate) fn fail(&self, position: &str) {
        self.has_failures.store(true, Ordering::Relaxed);
        self.failures().push(position.into());
    }

    /// The failures that led to the end of the body.
    pub(crate) fn unhandled(&self) -> Vec<Arc<str>> {
        self.failures().clone()
    }

    /// The body is told of a failure; if it [is to be mended](Error::is_to_be_mended), so is a run that ends with it.
    pub(crate) fn note(&self, position: &Arc<str>, error: &Error) {
        if error.is_to_be_mended() {
            self.to_mend.lock().unwrap_or_else(PoisonError::into_inner).push(position.clone());
        }
    }

    /// Whether one of the failures that led to the end of the body is to be mended.
    pub(crate) fn is_to_be_mended(&self) -> bool {
        let to_mend = self.to_mend.lock().unwrap_or_else(PoisonError::into_inner);
        self.failures().iter().any(|position| to_mend.contains(position))
    }

    /// What has failed so far is not tried again, whatever becomes of the run.
    pub(crate) fn settle(&self) {
        self.failures().clear();
    }

    /// Whether a call at this position was recorded and has not been replayed yet.
    pub(crate) fn has(&self, position: &str) -> bool {
        self.calls().contains_key(position)
    }

    /// Whether something was recorded that the body has not come by yet, or never will.
    pub(crate) fn is_replayed(&self) -> bool {
        !self.calls().is_empty()
    }

    /// The recorded call at a position, if there is one. Another name than the recorded one stops the run: it
    /// waits among the dead, with its history, until code that fits it is there.
    pub(crate) fn replay(&self, run: Uuid, position: &str, name: &str) -> Result<Option<Checkpoint>, Error> {
        let recorded = self.calls().remove(position);
        match recorded {
            Some(recorded) if recorded.name != name => {
                Err(misfit(run, position, &format!("{:?}", recorded.name), &format!("calls {name:?}")))
            }
            // What a signal has refused stands below it.
            None if self.branches.contains(position) && !name.starts_with(signal::NAME) => {
                Err(misfit(run, position, "a branch with calls of its own", &format!("calls {name:?}")))
            }
            other => {
                if let (None, Some(beyond)) = (&other, &self.beyond) {
                    let call = (position.to_owned(), name.to_owned());
                    beyond.lock().unwrap_or_else(PoisonError::into_inner).push(call);
                }
                if other.is_some() {
                    self.passed.fetch_add(1, Ordering::Relaxed);
                }
                if other.as_ref().is_some_and(|recorded| recorded.error.is_some()) && position != UNDO {
                    self.fail(position);
                }
                Ok(other)
            }
        }
    }

    /// A branch begins at a position: no call was recorded there.
    pub(crate) fn enter(&self, run: Uuid, position: &str) -> Result<(), Error> {
        match self.calls().get(position) {
            Some(call) => Err(misfit(run, position, &format!("{:?}", call.name), "begins a branch")),
            None => Ok(()),
        }
    }

    /// Comes by a call that belongs to another one and is of no use any more, if it is recorded.
    pub(crate) fn pass(&self, position: &str) {
        if self.calls().remove(position).is_some() {
            self.passed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Why what the run did is being undone, as it was recorded.
    pub(crate) fn undone_for(&self) -> Option<Box<str>> {
        self.calls().get(UNDO)?.error.clone()
    }

    /// An attribute is to be set; answers the bytes of all that are, with it.
    pub(crate) fn set_attribute(&self, key: &str, bytes: usize) -> usize {
        let mut attributes = self.attributes.lock().unwrap_or_else(PoisonError::into_inner);
        let others: usize =
            attributes.iter().filter(|(known, _)| *known != key).map(|(_, bytes)| bytes).sum();
        attributes.insert(key.to_owned(), bytes);
        others + bytes
    }

    /// From now on the record is all there is.
    pub(crate) fn rehearse(&mut self) {
        self.beyond = Some(Mutex::default());
    }

    pub(crate) fn is_rehearsed(&self) -> bool {
        self.beyond.is_some()
    }

    pub(crate) fn is_beyond(&self) -> bool {
        self.beyond
            .as_ref()
            .is_some_and(|calls| !calls.lock().unwrap_or_else(PoisonError::into_inner).is_empty())
    }

    /// The calls that came by in a rehearsal and were not recorded, in their order.
    pub(crate) fn beyond(&self) -> Vec<(String, String)> {
        let beyond = self.beyond.as_ref().map(|beyond| beyond.lock().unwrap_or_else(PoisonError::into_inner));
        beyond.map(|beyond| beyond.clone()).unwrap_or_default()
    }

    /// A call came by with which the run ends where it succeeds, and it is not recorded.
    pub(crate) fn complete(&self) {
        self.would_complete.store(true, Ordering::Relaxed);
    }

    pub(crate) fn would_complete(&self) -> bool {
        self.would_complete.load(Ordering::Relaxed)
    }

    /// Whether a race is recorded.
    pub(crate) fn raced(&self) -> bool {
        self.raced
    }

    /// What was recorded and not asked for, in the order of positions.
    pub(crate) fn left(&self) -> Vec<(String, String)> {
        let mut left: Vec<_> =
            self.calls().values().map(|call| (call.position.clone(), call.name.clone())).collect();
        left.sort_by_key(|(position, _)| {
            position.split('.').map(|index| index.parse().unwrap_or(0)).collect::<Vec<u32>>()
        });
        left.retain(|(position, _)| position != UNDO);
        left
    }

    /// A call, or a branch, that is recorded behind the last one which the body has built at the top. Code that makes the same calls
    /// comes by there before it ends, whatever became of what lies within branches.
    pub(crate) fn ahead(&self) -> Option<(String, String)> {
        let next = self.top() + 1;
        self.left().into_iter().find(|(position, _)| is_at_or_after(position, "", next))
    }

    /// Whether the patch `name` is in force before the call with index `next` of a branch; a patch that is new here comes with
    /// the position and the name under which it is to be recorded.
    pub(crate) fn patch(&self, branch: &str, next: u32, name: &str) -> Patch {
        let place = if branch.is_empty() { next.to_string() } else { format!("{branch}.{next}") };
        let mut patches = self.patches.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = patches.entry(place.clone()).or_default();
        if taken.iter().any(|known| known == name) {
            return Patch::Taken;
        }
        if self.calls().keys().any(|position| is_at_or_after(position, branch, next)) {
            return Patch::Passed;
        }
        taken.push(name.to_owned());
        Patch::New(format!("{place}.0.{}", taken.len()).into(), format!("{PATCH}{name}"))
    }
}

/// What became of a patch at its place.
pub(crate) enum Patch {
    /// It was taken here before.
    Taken,
    /// The run had gone on from here before the patch was in the code.
    Passed,
    New(Arc<str>, String),
}

/// The positions of the branches that a call lies in. What belongs to a call itself lies at an index 0 below it.
fn branches_around(position: &str) -> impl Iterator<Item = String> {
    let dots = position.match_indices('.').map(|(at, _)| at);
    dots.filter(|at| !position[at + 1..].starts_with('0')).map(|at| position[..at].to_owned())
}

fn misfit(run: Uuid, position: &str, recorded: &str, found: &str) -> Error {
    let text = format!(
        "position {position} of run {run} holds {recorded}, but the code now {found} there; \
         deploy code that makes the same calls, then retry the run"
    );
    Error::new(Code::NonDeterminism, text)
}

/// Whether a position lies in a branch or below it.
fn is_within(position: &str, branch: &str) -> bool {
    branch.is_empty() || position.strip_prefix(branch).is_some_and(|rest| rest.starts_with('.'))
}

/// Whether a position is that of the call `index` of the branch, of a later one, or below one of these.
fn is_at_or_after(position: &str, branch: &str, index: u32) -> bool {
    let inner = match branch {
        "" => Some(position),
        _ => position.strip_prefix(branch).and_then(|rest| rest.strip_prefix('.')),
    };
    let first = inner.and_then(|inner| inner.split('.').next()).and_then(|first| first.parse::<u32>().ok());
    first.is_some_and(|first| first >= index)
}

/// What is recorded of a run that continues as new.
pub(crate) fn continued(
    history: &History,
    input: &str,
    published: HashMap<String, i32>,
) -> Result<String, Error> {
    let input = RawValue::from_string(input.to_owned())?;
    let times = history.continued.as_ref().map_or(0, |before| before.times) + 1;
    let state = Continued { input, from: history.top(), times, published };
    payload::encode("what the run continues with", &state).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(position: &str, name: &str) -> Checkpoint {
        Checkpoint { position: position.into(), name: name.into(), output: Some("1".into()), error: None }
    }

    #[test]
    fn a_patch_is_in_force_where_nothing_had_gone_on_without_it() {
        let history = History::new(vec![checkpoint("1", "a"), checkpoint("2.4", "b"), checkpoint("10", "c")]);
        assert!(matches!(history.patch("", 10, "p"), Patch::Passed));
        assert!(matches!(history.patch("2", 4, "p"), Patch::Passed));
        assert!(matches!(history.patch("2", 5, "p"), Patch::New(at, _) if &*at == "2.5.0.1"));
        assert!(matches!(history.patch("", 11, "p"), Patch::New(at, _) if &*at == "11.0.1"));
        assert!(matches!(history.patch("", 11, "p"), Patch::Taken));
        assert!(matches!(history.patch("", 11, "q"), Patch::New(at, _) if &*at == "11.0.2"));
    }

    #[test]
    fn a_recorded_patch_is_found_at_its_place() {
        let history = History::new(vec![
            checkpoint("2.5.0.1", "ambo:patch p"),
            checkpoint("2.5", "after"),
            checkpoint("3", "b"),
        ]);
        assert!(matches!(history.patch("2", 5, "p"), Patch::Taken));
        assert!(matches!(history.patch("2", 5, "q"), Patch::Passed));
    }

    #[test]
    fn what_is_recorded_behind_the_last_call_at_the_top_is_ahead() {
        let history =
            History::new(vec![checkpoint("0", UNDO_NAME), checkpoint("2.7", "b"), checkpoint("3.1", "c")]);
        history.built("", 1);
        assert_eq!(history.ahead(), Some(("2.7".into(), "b".into())));
        history.built("", 2);
        assert_eq!(history.ahead(), Some(("3.1".into(), "c".into())));
        history.built("", 3);
        assert_eq!(history.ahead(), None, "what is left within a branch may be of one that was dropped");
    }

    #[test]
    fn a_failure_is_handled_by_the_next_call_of_its_branch_or_above() {
        let history = History::new(Vec::new());
        history.fail("4.2");
        history.built("5", 1);
        history.built("4.3", 1);
        assert_eq!(history.unhandled().len(), 1);
        history.built("4", 3);
        assert!(history.unhandled().is_empty());
        history.fail("7");
        history.built("8", 1);
        assert_eq!(history.unhandled().len(), 1);
        history.built("", 9);
        assert!(history.unhandled().is_empty());
    }
}
