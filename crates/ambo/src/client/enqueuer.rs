//! Group commit for enqueues and starts without a transaction of the caller's: those that come while a batch is
//! under way make the next one.

use std::sync::OnceLock;

use tokio::sync::{mpsc, oneshot};

use crate::engine::journal::{FLUSH_BYTES, pieces};
use crate::enqueue::Enqueued;
use crate::error::{Code, Error, Result};
use crate::store::connect::{Link, Target};
use crate::store::enqueue::{self, NewRun};
use crate::store::start;

/// Runs in one batch.
const BATCH: usize = 1000;
/// Requests waiting at most: beyond it, callers wait to be taken in.
const WAITING: usize = 10_000;

/// Connections for runs with keys: as many may wait for somebody's key before all others do.
const KEYED: usize = 4;

/// A batch of so many shows that many callers wait, and that as many will come again at once.
const BUSY: usize = 16;
/// How long they are given to come: a call costs the server a fixed part as dear as some tens of runs.
const GATHER: std::time::Duration = std::time::Duration::from_millis(1);

/// A run, what to do with it, and where the answer goes.
#[derive(Debug)]
struct Request {
    run: NewRun,
    /// The worker in which it starts at once; `None`: it is enqueued.
    worker: Option<i64>,
    answer: oneshot::Sender<Result<Enqueued>>,
}

/// The lanes, opened when first used. Runs with keys go apart, one by one: they may have to wait for a transaction
/// of somebody else's that holds the key.
#[derive(Debug)]
pub(crate) struct Enqueuer {
    target: Target,
    plain: OnceLock<mpsc::Sender<Request>>,
    keyed: OnceLock<mpsc::Sender<Request>>,
}

impl Enqueuer {
    pub(crate) fn new(target: Target) -> Self {
        Enqueuer { target, plain: OnceLock::new(), keyed: OnceLock::new() }
    }

    pub(crate) async fn enqueue(&self, run: NewRun) -> Result<Enqueued> {
        self.ask(run, None).await
    }

    pub(crate) async fn start(&self, run: NewRun, worker: i64) -> Result<Enqueued> {
        self.ask(run, Some(worker)).await
    }

    async fn ask(&self, run: NewRun, worker: Option<i64>) -> Result<Enqueued> {
        let lane = if run.key.is_some() {
            self.keyed.get_or_init(|| self.open(KEYED, 1))
        } else {
            self.plain.get_or_init(|| self.open(2, BATCH))
        };
        let (answer, answered) = oneshot::channel();
        let gone =
            || Error::new(Code::Unavailable, "the runtime that this client was used in first has ended");
        lane.send(Request { run, worker, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Connections that take batches in turn: one gathers while the other commits.
    fn open(&self, connections: usize, batch: usize) -> mpsc::Sender<Request> {
        let (sender, requests) = mpsc::channel(WAITING);
        let requests = std::sync::Arc::new(tokio::sync::Mutex::new(requests));
        for _ in 0..connections {
            let link = Link::new(self.target.clone(), "ambo client enqueue");
            tokio::spawn(serve(link, requests.clone(), batch));
        }
        sender
    }
}

async fn serve(
    mut link: Link,
    requests: std::sync::Arc<tokio::sync::Mutex<mpsc::Receiver<Request>>>,
    batch: usize,
) {
    let mut taken = Vec::with_capacity(batch);
    let mut last = 0;
    loop {
        {
            let mut requests = requests.lock().await;
            if requests.recv_many(&mut taken, batch).await == 0 {
                return;
            }
            if last >= BUSY && taken.len() < last {
                gather(&mut requests, &mut taken, last.min(batch)).await;
            }
        }
        last = taken.len();
        for group in by_worker(std::mem::take(&mut taken)) {
            commit(&mut link, group).await;
        }
    }
}

/// Waits, for a moment only, until as many requests have come as the last batch had.
async fn gather(requests: &mut mpsc::Receiver<Request>, taken: &mut Vec<Request>, wanted: usize) {
    let moment = tokio::time::sleep(GATHER);
    tokio::pin!(moment);
    while taken.len() < wanted {
        let room = wanted - taken.len();
        tokio::select! {
            biased;
            received = requests.recv_many(taken, room) => if received == 0 { return },
            () = &mut moment => return,
        }
    }
}

/// Requests for one worker, or for the queues, together: mostly there is one group.
fn by_worker(requests: Vec<Request>) -> Vec<Vec<Request>> {
    let mut groups: Vec<Vec<Request>> = Vec::new();
    for request in requests {
        match groups.iter_mut().find(|group| group[0].worker == request.worker) {
            Some(group) => group.push(request),
            None => groups.push(vec![request]),
        }
    }
    groups
}

/// One batch, sent in pieces where it is large: a message to the server is below 1 GiB. A batch that was refused is split, until
/// those who are at fault have the error to themselves.
async fn commit(link: &mut Link, requests: Vec<Request>) {
    let mut pending = pieces(requests, |request| request.run.bytes(), FLUSH_BYTES);
    pending.reverse();
    while let Some(mut requests) = pending.pop() {
        match attempt(link, &requests).await {
            Ok(answers) => {
                link.recovered();
                for (request, (run, is_new)) in requests.into_iter().zip(answers) {
                    // Whoever asked may be gone.
                    let _ = request.answer.send(Ok(Enqueued { run: run.into(), is_new }));
                }
            }
            // The answer is lost, perhaps not the enqueue: only the caller knows whether asking again is right.
            Err(error) if requests.len() == 1 || error.is_unavailable() => {
                if error.is_unavailable() {
                    link.recover(&error).await;
                }
                for request in requests {
                    let copy = Error::new(error.code(), error.text());
                    let copy = match error.sqlstate() {
                        Some(sqlstate) => copy.with_sqlstate(sqlstate),
                        None => copy,
                    };
                    let _ = request.answer.send(Err(copy));
                }
            }
            Err(_) => {
                let upper = requests.split_off(requests.len() / 2);
                pending.push(upper);
                pending.push(requests);
            }
        }
    }
}

async fn attempt(link: &mut Link, requests: &[Request]) -> Result<Vec<(uuid::Uuid, bool)>> {
    let schema = link.schema().clone();
    let session = link.session().await?.clone();
    let runs: Vec<&NewRun> = requests.iter().map(|request| &request.run).collect();
    match requests[0].worker {
        Some(worker) => start::start(&session, &schema, worker, &runs).await,
        None => enqueue::enqueue(&session, &schema, &runs).await,
    }
}
