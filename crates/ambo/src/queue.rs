//! Queues: what holds for them and for their groups.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::admin::{GroupSummary, Purge, QueueSummary};
use crate::client::Client;
use crate::error::Result;
use crate::id::RunId;
use crate::store::queue;

/// What holds for a queue: limits, and what they are of. `None` leaves a setting as it is, `Some(None)` takes it away.
///
/// Limits are of *weight*: each run counts its [`weight`](crate::Enqueue::weight), 1 unless it was given another. They hold
/// exactly, for all workers together, also while workers die, join and leave, and from the next claim on.
///
/// # Example: one run of a tenant at a time, ten in all
/// ```
/// # use ambo::QueueSettings;
/// let settings = QueueSettings::default().concurrency(10).group_concurrency(1);
/// assert_eq!(serde_json::to_string(&settings).unwrap(), r#"{"concurrency":10,"group_concurrency":1}"#);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct QueueSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<Option<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_concurrency: Option<Option<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_concurrency: Option<Option<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<Option<Rate>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_rate: Option<Option<Rate>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ordered: Option<Option<Ordered>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ageing: Option<Option<Span>>,
}

impl QueueSettings {
    /// The queue takes groups, for good. So it does with any other setting; alone, this makes it take turns among them.
    pub fn groups(mut self) -> Self {
        self.groups = Some(true);
        self
    }

    /// In execution at once, of all workers. A run that is parked is not in execution. Default: no limit.
    pub fn concurrency(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.concurrency = Some(limit.into());
        self
    }

    /// In execution at once, of each worker. Default: no limit but that of the worker itself.
    pub fn worker_concurrency(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.worker_concurrency = Some(limit.into());
        self
    }

    /// In execution at once, of each group. Default: no limit.
    pub fn group_concurrency(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.group_concurrency = Some(limit.into());
        self
    }

    /// How much is claimed in a time. Default: no limit.
    pub fn rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.rate = Some(rate.into());
        self
    }

    /// How much of each group is claimed in a time. Default: no limit.
    pub fn group_rate(mut self, rate: impl Into<Option<Rate>>) -> Self {
        self.group_rate = Some(rate.into());
        self
    }

    /// The runs of a group one after the other, in the order of their lane: the next is claimed when the last has ended, parked
    /// or not; and what then if it failed. Default: not.
    pub fn ordered(mut self, ordered: impl Into<Option<Ordered>>) -> Self {
        self.ordered = Some(ordered.into());
        self
    }

    /// A priority of which a worker has claimed nothing for so long is claimed as if it were the one before it; after twice as long, the one
    /// before that. When it has had a turn it waits anew. Above zero, up to a year. Default: not.
    pub fn ageing(mut self, ageing: impl Into<Option<std::time::Duration>>) -> Self {
        self.ageing = Some(ageing.into().map(Span));
        self
    }
}

/// Weight that may be claimed in a time: in any span not more than `burst + limit * span / period`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rate {
    limit: u32,
    period: Span,
    burst: u32,
}

impl Rate {
    /// `limit` a `period` in the long run, from 1, and as much at once.
    pub fn new(limit: u32, period: std::time::Duration) -> Self {
        Rate { limit, period: Span(period), burst: limit }
    }

    /// How much at once, from 1. Default: the limit.
    pub fn burst(mut self, burst: u32) -> Self {
        self.burst = burst;
        self
    }
}

/// What becomes of a group of an ordered queue when one of its runs has failed or is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ordered {
    /// It stands still until the run was retried and succeeded, or the group is unblocked.
    Block,
    /// It goes on with the next.
    Skip,
    /// It goes on with the next; the failed one is among the dead letters.
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) std::time::Duration);

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} microseconds", self.0.as_micros()))
    }
}

/// A group of an ordered queue that stands still, and why.
#[derive(Debug, Serialize)]
pub struct BlockedGroup {
    /// The queue.
    pub queue: String,
    /// The group.
    pub group: Option<String>,
    /// The run that failed.
    pub run: RunId,
    /// When it did.
    pub since: Timestamp,
    /// Why.
    pub error: Option<Box<RawValue>>,
}

impl Client {
    /// Creates a queue; says whether it is new.
    ///
    /// # Errors
    /// `AMBO001` for a name that is empty or longer than 200 bytes.
    pub async fn create_queue(&self, name: &str) -> Result<bool> {
        queue::create_queue(&self.session().await?, self.schema(), name).await
    }

    /// Stops (or resumes) the claiming of a queue's runs.
    ///
    /// # Errors
    /// `AMBO002` if there is no such queue.
    pub async fn pause_queue(&self, name: &str, paused: bool) -> Result<()> {
        queue::pause_queue(&self.session().await?, self.schema(), name, paused).await
    }

    /// Lets a queue take no new runs (`AMBO009`) while those that wait are worked off; or, with `false`, lets it take runs again.
    /// What runs themselves start there is taken all the same; of what had ended only a run that blocks its group may be retried there.
    ///
    /// # Errors
    /// `AMBO002` if there is no such queue.
    pub async fn drain_queue(&self, name: &str, draining: bool) -> Result<()> {
        queue::drain_queue(&self.session().await?, self.schema(), name, None, draining).await
    }

    /// The same for one group of a queue. When it has been worked off it may be gone for good, or go on elsewhere.
    ///
    /// # Errors
    /// `AMBO001` for the group, `AMBO002` if there is no such queue, `AMBO008` if it has no groups.
    pub async fn drain_group(&self, queue: &str, group: &str, draining: bool) -> Result<()> {
        queue::drain_queue(&self.session().await?, self.schema(), queue, Some(group), draining).await
    }

    /// Ends, as cancelled, the runs of a queue, or of one group of it, that wait, or are delayed, and were never claimed; says how many there were.
    /// In batches of 1000, each of them a commit.
    ///
    /// # Errors
    /// `AMBO002` if there is no such queue, `AMBO040` if the database is away: a part may have been ended then.
    pub async fn purge_queue(&self, purge: &Purge) -> Result<u64> {
        let session = self.session().await?;
        let (mut all, mut after) = (0, None);
        loop {
            let (purged, last) = queue::purge_queue(&session, self.schema(), purge, after.as_deref()).await?;
            all += u64::from(purged.unsigned_abs());
            after = last;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Sets what holds for a queue, from the next claim on: within a second where a worker has not known it as one with
    /// settings. Makes the queue if there is none. Runs in execution stay so; what was claimed before the queue had any
    /// setting is not counted.
    ///
    /// # Errors
    /// `AMBO001` for the name, `AMBO005` for a setting out of its range.
    pub async fn set_queue(&self, name: &str, settings: &QueueSettings) -> Result<()> {
        queue::set_queue(&self.session().await?, self.schema(), name, settings).await
    }

    /// Stops (or resumes) the claiming of the runs of one group of a queue.
    ///
    /// # Errors
    /// `AMBO001` for the group, `AMBO002` if there is no such queue, `AMBO008` if it has no groups.
    pub async fn pause_group(&self, queue: &str, group: &str, paused: bool) -> Result<()> {
        queue::set_group(&self.session().await?, self.schema(), queue, group, Some(paused), None).await
    }

    /// How many runs of a group are claimed for one of a group whose share is 1: 1 to 100. Default: 1.
    ///
    /// # Errors
    /// As [`pause_group`](Client::pause_group); `AMBO005` for the share.
    pub async fn share_group(&self, queue: &str, group: &str, share: u32) -> Result<()> {
        queue::set_group(&self.session().await?, self.schema(), queue, group, None, Some(share)).await
    }

    /// The groups, or those of this queue, for which something is set or that stand still: paused, drained, with a share of their own, or
    /// blocked by a run that failed. Others there are as soon as a run names them.
    ///
    /// # Errors
    /// `AMBO002` if there is no such queue, `AMBO040` if the database is away.
    pub async fn list_groups(&self, queue: Option<&str>) -> Result<Vec<GroupSummary>> {
        queue::list_groups(&self.session().await?, self.schema(), queue).await
    }

    /// The groups of ordered queues, or of this one, that stand still because a run of theirs failed.
    ///
    /// # Errors
    /// `AMBO002` if there is no such queue, `AMBO040` if the database is away.
    pub async fn blocked_groups(&self, queue: Option<&str>) -> Result<Vec<BlockedGroup>> {
        queue::blocked_groups(&self.session().await?, self.schema(), queue).await
    }

    /// Lets a group that is blocked go on without the run that failed; says whether it was blocked. To have that run executed
    /// again, [`retry`](Client::retry) it before, while its group still waits for it: it is the next of it then.
    ///
    /// # Errors
    /// `AMBO002` if there is no such queue, `AMBO040` if the database is away.
    pub async fn unblock_group(&self, queue: &str, group: &str) -> Result<bool> {
        queue::unblock_group(&self.session().await?, self.schema(), queue, group).await
    }

    /// The queues, by name.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn list_queues(&self) -> Result<Vec<QueueSummary>> {
        queue::list_queues(&self.session().await?, self.schema()).await
    }
}
