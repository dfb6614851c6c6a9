//! The clients: `pgbench` with a script of its own, and customers in Rust, some of whom change their mind.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambo::{Client, Enqueue, RunId};
use ambo_postgres::Binaries;
use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use crate::random::Random;
use crate::work::{ATTEMPTS, Order, settle};

/// pgbench's scale: so many branches.
pub(crate) const SCALE: u64 = 4;
/// Longer than a round; a pgbench that is left behind ends by itself.
const PGBENCH_SECONDS: &str = "60";

/// What the clients know of what they did.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    /// Marks of transactions whose commit was acknowledged.
    pub(crate) committed: BTreeSet<String>,
    /// Marks of those that were rolled back.
    pub(crate) rolled_back: BTreeSet<String>,
    /// Nobody knows, and both is right.
    pub(crate) unknown: u64,
    /// Runs that were enqueued without a transaction of the caller's, by their keys; acknowledged.
    pub(crate) keyed: Vec<(String, RunId)>,
}

/// The clients of a round.
#[derive(Debug)]
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    /// A std mutex: never held across an await.
    receipts: Arc<Mutex<Receipts>>,
    tasks: JoinSet<()>,
    pgbench: Option<Pgbench>,
}

impl Clients {
    /// Lets them come: `customers` in Rust, and pgbench where it is installed.
    pub(crate) fn open(
        customers: u64,
        url: &str,
        pgbench: Option<Pgbench>,
        random: &mut Random,
    ) -> Result<Clients> {
        let stop = Arc::new(AtomicBool::new(false));
        let receipts = Arc::<Mutex<Receipts>>::default();
        let mut tasks = JoinSet::new();
        for number in 0..customers {
            let customer = Customer {
                number,
                url: url.to_owned(),
                random: Random::new(random.below(u64::MAX)),
                stop: stop.clone(),
                receipts: receipts.clone(),
            };
            if number == 0 {
                tasks.spawn(customer.order_without_a_transaction());
            } else {
                tasks.spawn(customer.order());
            }
        }
        if let Some(pgbench) = &pgbench {
            pgbench.run()?;
        }
        Ok(Clients { stop, receipts, tasks, pgbench })
    }

    /// Kills pgbench, and lets another one come.
    pub(crate) fn kill_pgbench(&self) -> Result<bool> {
        let Some(pgbench) = &self.pgbench else { return Ok(false) };
        pgbench.end();
        pgbench.run()?;
        Ok(true)
    }

    /// A pgbench ends when all its connections are lost.
    pub(crate) fn all_at_the_counter(&self) -> Result<()> {
        self.pgbench.as_ref().map_or(Ok(()), Pgbench::run)
    }

    /// Nobody orders any more; returns when the last one has left.
    pub(crate) async fn close(mut self) -> Result<Receipts> {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(pgbench) = &self.pgbench {
            pgbench.end();
        }
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a customer panicked")?;
        }
        Ok(std::mem::take(&mut *locked(&self.receipts)))
    }
}

fn locked(receipts: &Mutex<Receipts>) -> MutexGuard<'_, Receipts> {
    receipts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A customer in Rust.
struct Customer {
    number: u64,
    url: String,
    random: Random,
    stop: Arc<AtomicBool>,
    receipts: Arc<Mutex<Receipts>>,
}

impl Customer {
    fn is_closed(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn draw(&mut self) -> Order {
        let aid = 1 + self.random.below(100_000 * SCALE) as i32;
        Order {
            aid,
            bid: 1 + self.random.below(SCALE) as i32,
            tid: 1 + self.random.below(10 * SCALE) as i32,
            delta: self.random.below(10_001) as i32 - 5000,
            legs: self.random.below(4) as u32,
            nap: self.random.below(4),
            pair: self.random.once_in(4),
        }
    }

    /// pgbench's transaction with an enqueue in it, again and again.
    async fn order(mut self) {
        let mut count = 0;
        while !self.is_closed() {
            let connected = tokio_postgres::connect(&self.url, tokio_postgres::NoTls);
            let Ok(Ok((mut sql, connection))) = tokio::time::timeout(Duration::from_secs(3), connected).await
            else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let driving = tokio::spawn(connection);
            while !self.is_closed() {
                count += 1;
                let mark = format!("{}-{count}", self.number);
                // Nothing may hang for as long as a half-open connection would let it.
                let placed = tokio::time::timeout(Duration::from_secs(8), self.place(&mut sql, &mark));
                if !matches!(placed.await, Ok(true)) {
                    break;
                }
                let pause = self.random.time(40..250);
                tokio::time::sleep(pause).await;
            }
            driving.abort();
        }
    }

    /// One order; false if the connection is of no more use.
    async fn place(&mut self, sql: &mut tokio_postgres::Client, mark: &str) -> bool {
        let order = self.draw();
        // Until its commit is sent it is none, whatever happens.
        locked(&self.receipts).rolled_back.insert(mark.to_owned());
        let Order { aid, bid, tid, delta, .. } = order;
        let statements = format!(
            "update pgbench_accounts set abalance = abalance + ({delta}) where aid = {aid};
             update pgbench_tellers set tbalance = tbalance + ({delta}) where tid = {tid};
             update pgbench_branches set bbalance = bbalance + ({delta}) where bid = {bid};
             insert into pgbench_history (tid, bid, aid, delta, mtime) values ({tid}, {bid}, {aid}, {delta}, now())"
        );
        let changes_its_mind = self.random.once_in(5);
        let Ok(tx) = sql.transaction().await else { return false };
        if tx.batch_execute(&statements).await.is_err() {
            return false;
        }
        let Ok(enqueued) = Enqueue::<settle>::new(order).attempts(ATTEMPTS).on(&tx).await else {
            return false;
        };
        let note = format!(
            "insert into placed (run, source, mark) values ('{}', 'customer', '{mark}')",
            enqueued.run
        );
        if tx.batch_execute(&note).await.is_err() {
            return false;
        }
        if changes_its_mind {
            return tx.rollback().await.is_ok();
        }
        {
            // Before the answer: a task that is dropped meanwhile does not know either.
            let mut receipts = locked(&self.receipts);
            receipts.rolled_back.remove(mark);
            receipts.unknown += 1;
        }
        let committed = tx.commit().await.is_ok();
        if committed {
            let mut receipts = locked(&self.receipts);
            receipts.unknown -= 1;
            receipts.committed.insert(mark.to_owned());
        }
        committed
    }

    /// Orders through the group commit of the client, each with a key, until it is acknowledged.
    async fn order_without_a_transaction(mut self) {
        let client = loop {
            match Client::connect(&self.url).await {
                Ok(client) => break client,
                Err(_) if self.is_closed() => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let mut count = 0;
        while !self.is_closed() {
            count += 1;
            let (order, key) = (self.draw(), format!("key-{count}"));
            loop {
                let enqueue = Enqueue::<settle>::new(order).key(&key).attempts(ATTEMPTS).on(&client);
                match tokio::time::timeout(Duration::from_secs(8), enqueue).await {
                    Ok(Ok(enqueued)) => {
                        locked(&self.receipts).keyed.push((key, enqueued.run));
                        break;
                    }
                    _ if self.is_closed() => {
                        locked(&self.receipts).unknown += 1;
                        return;
                    }
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
            let pause = self.random.time(40..300);
            tokio::time::sleep(pause).await;
        }
    }
}

/// The program `pgbench`, which comes with most distributions of the server.
#[derive(Debug)]
pub(crate) struct Pgbench {
    program: std::path::PathBuf,
    script: std::path::PathBuf,
    log: std::path::PathBuf,
    port: u16,
    running: Mutex<Option<Child>>,
}

impl Pgbench {
    /// Finds the program beside the server's, or in `PATH`; it connects to `port`.
    pub(crate) fn find(binaries: &Binaries, folder: &Path, port: u16) -> Result<Option<Pgbench>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::iter::once(binaries.directory().to_owned())
            .chain(std::env::split_paths(&path))
            .map(|directory| directory.join("pgbench"))
            .find(|program| program.is_file());
        let Some(program) = found else { return Ok(None) };
        let script = folder.join("order.pgbench");
        std::fs::write(&script, include_str!("order.pgbench"))?;
        let log = folder.join("pgbench.log");
        Ok(Some(Pgbench { program, script, log, port, running: Mutex::default() }))
    }

    fn command(&self) -> Result<Command> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-s", &SCALE.to_string()]);
        command.args(["-p", &self.port.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// `pgbench -i`.
    pub(crate) fn initialise(&self) -> Result<()> {
        let done = self.command()?.args(["-i", "-q", "chaos"]).status()?;
        anyhow::ensure!(done.success(), "pgbench -i failed, see {}", self.log.display());
        Ok(())
    }

    /// Runs one, unless one runs.
    fn run(&self) -> Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = running.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));
        if !runs {
            let mut command = self.command()?;
            command.args(["-n", "-c", "3", "-j", "1", "-T", PGBENCH_SECONDS, "-f"]).arg(&self.script);
            *running = Some(command.arg("chaos").spawn().context("pgbench does not start")?);
        }
        Ok(())
    }

    fn end(&self) {
        let ended = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = ended {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        self.end();
    }
}
