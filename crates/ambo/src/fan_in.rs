//! Fan-in: runs, and one that starts when all of them have ended.

use serde::Deserialize;

use crate::enqueue::{Enqueue, Enqueued};
use crate::error::Result;
use crate::id::RunId;
use crate::on::On;
use crate::payload;
use crate::store::enqueue::NewRun;

const ENQUEUE: &str = "select ambo.enqueue_fan_in($1::text::json, $2::text::json)::text";

/// Runs, and one that starts when all of them have ended, however that was: enqueued in one transaction, and started by the
/// transaction in which the last of them ends.
///
/// # Example
/// ```no_run
/// # use ambo::{Client, Ctx, FanIn, Result};
/// #[ambo::workflow]
/// async fn resize(cx: Ctx, photo: u64) -> Result<()> { Ok(()) }
/// #[ambo::workflow]
/// async fn publish(cx: Ctx, album: u64) -> Result<()> { Ok(()) }
///
/// # async fn example(client: &Client) -> Result<()> {
/// let album = FanIn::of((1..=1000).map(resize::enqueue)).then(publish::enqueue(7).key("album-7")).on(client).await?;
/// println!("run {} comes after {} others", album.then.run, album.members.len());
/// # Ok(()) }
/// ```
#[must_use = "nothing is enqueued until `.then(...).on(...)` is awaited"]
#[derive(Debug)]
pub struct FanIn {
    members: Result<Vec<NewRun>>,
}

/// A fan-in that is complete.
#[must_use = "nothing is enqueued until `.on(...)` is awaited"]
#[derive(Debug)]
pub struct FanInThen {
    members: Result<Vec<NewRun>>,
    then: Result<NewRun>,
}

/// A fan-in that was enqueued, or found by the key of the run that comes last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FannedIn {
    /// The run that starts when all members have ended.
    pub then: Enqueued,
    /// The members, in the order given; of a fan-in that was found, in the order of their ids.
    pub members: Vec<Enqueued>,
}

impl FanIn {
    /// The members: up to 100,000. They have no dedup, throttle or debounce, and no key that names a run already: give the run
    /// that comes last a key, by which a repetition finds all of them.
    pub fn of<W>(runs: impl IntoIterator<Item = Enqueue<W>>) -> Self {
        FanIn { members: Ok(Vec::new()) }.and(runs)
    }

    /// More members, of another workflow.
    pub fn and<W>(mut self, runs: impl IntoIterator<Item = Enqueue<W>>) -> Self {
        if let Ok(members) = &mut self.members {
            let more: Result<Vec<NewRun>> = runs.into_iter().map(Enqueue::into_run).collect();
            match more {
                Ok(more) => members.extend(more),
                Err(error) => self.members = Err(error),
            }
        }
        self
    }

    /// The run that starts when all members have ended: succeeded, failed, cancelled or dead. It has no delay and no time to
    /// start by. Its children are the members: it finds them with [`Filter::parent`](crate::admin::Filter::parent).
    pub fn then<W>(self, run: Enqueue<W>) -> FanInThen {
        FanInThen { members: self.members, then: run.into_run() }
    }
}

#[derive(Deserialize)]
struct One {
    run: RunId,
    is_new: bool,
}

impl From<One> for Enqueued {
    fn from(One { run, is_new }: One) -> Self {
        Enqueued { run, is_new }
    }
}

#[derive(Deserialize)]
struct Answer {
    then: One,
    members: Vec<One>,
}

impl FanInThen {
    /// Enqueues all of it on a connection or transaction of the caller's, or on the client, where it is durable when this
    /// returns.
    ///
    /// # Errors
    /// Those of [`Enqueue::on`], for each of the runs; `AMBO005` for an option that a fan-in does not know, or a member that is
    /// there already. One refused run refuses all.
    ///
    /// # Cancel safety
    /// If the future is dropped it may have been enqueued; with a key of the run that comes last, asking again finds it.
    pub async fn on(self, connection: impl On) -> Result<FannedIn> {
        let (mut members, mut then, vault) = (self.members?, self.then?, connection.vault());
        for run in members.iter_mut().chain([&mut then]) {
            run.seal(&vault).await?;
        }
        let schema = then.schema.clone();
        let members: Result<Vec<String>> = members.iter().map(NewRun::json).collect();
        let args = [Some(format!("[{}]", members?.join(","))), Some(then.json()?)];
        let row = connection.ask(&schema, ENQUEUE, &args).await?;
        let text = row.into_iter().next().flatten().unwrap_or_default();
        let answer: Answer = payload::decode("the answer to a fan-in", &text)?;
        let members = answer.members.into_iter().map(Enqueued::from).collect();
        Ok(FannedIn { then: answer.then.into(), members })
    }
}
