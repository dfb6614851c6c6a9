//! What a test has told the workers to do otherwise: answers in place of steps, and where to die. See [`testing`](crate::testing).
//! Without the feature `testing` there is nothing here that costs anything.

use std::sync::Arc;

use crate::error::Error;
use crate::payload::Json;

#[cfg(feature = "testing")]
pub(crate) use scripted::{Act, Script, What};

/// What one worker has of it: the script, if there is one, and its own end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rig(#[cfg(feature = "testing")] Option<Arc<scripted::Stage>>);

#[cfg(not(feature = "testing"))]
impl Rig {
    pub(crate) async fn before(&self, _: &Arc<super::run::Run>, _: &str, _: &str) {}

    pub(crate) fn loses(&self, _: i64, _: &str, _: &str) -> bool {
        false
    }

    pub(crate) fn answer(&self, _: &str, _: &str) -> Option<Result<Json, Error>> {
        None
    }

    pub(crate) async fn killed(&self) {
        std::future::pending().await
    }

    pub(crate) fn is_killed(&self) -> bool {
        false
    }

    pub(crate) async fn beat(&self) {
        std::future::pending().await
    }

    pub(crate) fn gone(&self) {}
}

#[cfg(feature = "testing")]
mod scripted {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

    use tokio::sync::{Notify, watch};
    use tokio_util::sync::CancellationToken;

    use super::{Error, Json, Rig};
    use crate::engine::run::Run;

    /// What is to happen at a call, named by its name or its position.
    #[derive(Debug)]
    pub(crate) struct Act {
        pub(crate) call: String,
        pub(crate) what: What,
        /// How often; `None`: always.
        pub(crate) times: Option<u32>,
    }

    #[derive(Debug, Clone)]
    pub(crate) enum What {
        /// The step answers this, and its body is not called.
        Return(Json),
        /// The step fails with this error, and its body is not called.
        Fail(Json),
        /// The worker dies when all before the call is durable and the call has not acted.
        CrashBefore,
        /// The worker dies when the call has acted and nothing of that is recorded.
        CrashAfter,
    }

    /// What all workers of a test share.
    #[derive(Debug, Default)]
    pub(crate) struct Script {
        acts: Mutex<Vec<Act>>,
        attempts: Mutex<HashMap<String, u32>>,
        stages: Mutex<Vec<Weak<Stage>>>,
        /// The ids of workers that died by it and are gone.
        pub(crate) dead: watch::Sender<Vec<i64>>,
    }

    /// What one worker has.
    #[derive(Debug)]
    pub(crate) struct Stage {
        script: Arc<Script>,
        killed: CancellationToken,
        /// The life in which it died.
        worker: Mutex<Option<i64>>,
        beat: Notify,
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Script {
        /// Answers the number of the act.
        pub(crate) fn add(&self, act: Act) -> usize {
            let mut acts = lock(&self.acts);
            acts.push(act);
            acts.len() - 1
        }

        pub(crate) fn limit(&self, act: usize, times: u32) {
            lock(&self.acts)[act].times = Some(times);
        }

        /// What an act of one of these kinds says of this call; it is used up by that.
        fn take(&self, position: &str, name: &str, is_wanted: impl Fn(&What) -> bool) -> Option<What> {
            let mut acts = lock(&self.acts);
            let mut fitting = acts.iter_mut().filter(|act| act.call == name || act.call == position);
            let act = fitting.find(|act| act.times != Some(0) && is_wanted(&act.what))?;
            act.times = act.times.map(|times| times - 1);
            Some(act.what.clone())
        }

        /// How often a step was tried.
        pub(crate) fn attempts(&self, call: &str) -> u32 {
            lock(&self.attempts).get(call).copied().unwrap_or_default()
        }

        /// All workers of this process ask the database for its time now.
        pub(crate) fn beat(&self) {
            lock(&self.stages).retain(|stage| {
                let stage = stage.upgrade();
                if let Some(stage) = &stage {
                    stage.beat.notify_one();
                }
                stage.is_some()
            });
        }
    }

    impl Rig {
        pub(crate) fn of(script: &Arc<Script>) -> Self {
            let stage = Arc::new(Stage {
                script: script.clone(),
                killed: CancellationToken::new(),
                worker: Mutex::default(),
                beat: Notify::new(),
            });
            lock(&script.stages).push(Arc::downgrade(&stage));
            Rig(Some(stage))
        }

        /// Ends the worker as SIGKILL would.
        pub(crate) fn kill(&self, worker: i64) {
            if let Some(stage) = &self.0 {
                *lock(&stage.worker) = Some(worker);
                stage.killed.cancel();
            }
        }

        /// Stands before a call that is not recorded.
        pub(crate) async fn before(&self, run: &Arc<Run>, position: &str, name: &str) {
            let Some(stage) = &self.0 else { return };
            if stage.script.take(position, name, |what| matches!(what, What::CrashBefore)).is_some() {
                run.barrier().await;
                self.kill(run.worker);
                std::future::pending::<()>().await;
            }
        }

        /// Whether the worker died with what the call did unrecorded. A call that does not wait takes effect by its record alone, so
        /// that it dies here too where it was to die before: one that waits has come by [`before`](Rig::before).
        pub(crate) fn loses(&self, worker: i64, position: &str, name: &str) -> bool {
            let Some(stage) = &self.0 else { return false };
            let dies = |what: &What| matches!(what, What::CrashAfter | What::CrashBefore);
            let is_lost = stage.script.take(position, name, dies).is_some();
            if is_lost {
                self.kill(worker);
            }
            is_lost
        }

        /// The answer in place of an attempt of a step.
        pub(crate) fn answer(&self, position: &str, name: &str) -> Option<Result<Json, Error>> {
            let script = &self.0.as_ref()?.script;
            *lock(&script.attempts).entry(name.to_owned()).or_default() += 1;
            match script.take(position, name, |what| matches!(what, What::Return(_) | What::Fail(_)))? {
                What::Return(json) => Some(Ok(json)),
                What::Fail(error) => Some(Err(serde_json::from_str(&error).unwrap_or_else(Error::from))),
                What::CrashBefore | What::CrashAfter => None,
            }
        }

        pub(crate) async fn killed(&self) {
            match &self.0 {
                Some(stage) => stage.killed.cancelled().await,
                None => std::future::pending().await,
            }
        }

        pub(crate) fn is_killed(&self) -> bool {
            self.0.as_ref().is_some_and(|stage| stage.killed.is_cancelled())
        }

        /// Returns when the test has moved the clock.
        pub(crate) async fn beat(&self) {
            match &self.0 {
                Some(stage) => stage.beat.notified().await,
                None => std::future::pending().await,
            }
        }

        /// The worker that was killed has closed its connections.
        pub(crate) fn gone(&self) {
            if let Some(stage) = &self.0
                && let Some(worker) = *lock(&stage.worker)
            {
                stage.script.dead.send_modify(|dead| dead.push(worker));
            }
        }
    }
}
