//! Starts the shop, kills parts of it while it works, waits for the end, and has the books kept.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ambo_postgres::{Binaries, Cluster, Place};
use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::runtime::Runtime;

use crate::books::{Books, Mishaps};
use crate::front::{Way, way};
use crate::payment;

/// How large the shop is.
pub(crate) struct Plan {
    pub(crate) orders: u64,
    pub(crate) workers: usize,
    pub(crate) seed: u64,
}

/// What is done to the shop when so many per cent of the orders are fulfilled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blow {
    KillWorker,
    /// The front places the orders that it kept back, so that the crash hits a shop at work. After the recoveries.
    RushHour,
    CrashDatabase,
}

/// The crash comes last: for one lease (15 s) after a start of the server nobody is declared dead, since all session
/// locks are gone then, so a worker that is killed within it is recovered later.
const BLOWS: [(u64, Blow); 6] = [
    (10, Blow::KillWorker),
    (25, Blow::KillWorker),
    (40, Blow::KillWorker),
    (55, Blow::KillWorker),
    (70, Blow::RushHour),
    (80, Blow::CrashDatabase),
];

/// The runs of a killed worker that are not known to be claimed again yet.
struct Orphans {
    worker: i64,
    killed: Instant,
    runs: Vec<uuid::Uuid>,
}

/// A process of the shop. Its standard input is held open: when it closes, the process ends.
struct Staff(Child);

impl Staff {
    fn hire(args: &[&str]) -> Result<Staff> {
        let child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", args[0]))?;
        Ok(Staff(child))
    }

    /// The first line that it prints.
    fn line(&mut self) -> Result<String> {
        let out = self.0.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Says a line to it.
    fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.0.stdin.as_mut().context("no input")?;
        writeln!(input, "{line}").context("it does not listen")
    }
}

impl Drop for Staff {
    fn drop(&mut self) {
        // SIGKILL; it may be gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Shop {
    cluster: Cluster,
    url: String,
    payment: String,
    workers: Vec<Staff>,
    orphans: Vec<Orphans>,
    pool: PgPool,
    mishaps: Mishaps,
}

/// Runs the whole demo.
pub(crate) fn conduct(runtime: &Runtime, plan: &Plan) -> Result<Books> {
    let binaries = Binaries::find_or_fetch(&ambo_postgres::default_cache(), |said| eprintln!("{said}"))?;
    eprintln!("PostgreSQL {} on a private, durable cluster; {} orders", binaries.version(), plan.orders);
    let cluster = Cluster::builder().binaries(binaries).temporary(Place::Disk).durable(true).start()?;
    cluster.create_database("shop")?;
    let url = cluster.url("shop");
    let ledger = ledger_path();
    let books = open(runtime, plan, cluster, &url, &ledger);
    let _ = std::fs::remove_file(&ledger);
    books
}

/// Outside PostgreSQL, and outside what the cluster removes.
fn ledger_path() -> PathBuf {
    std::env::temp_dir().join(format!("ambo-demo-ledger-{}", std::process::id()))
}

fn open(
    runtime: &Runtime,
    plan: &Plan,
    cluster: Cluster,
    url: &str,
    ledger: &std::path::Path,
) -> Result<Books> {
    let ledger_name = ledger.to_string_lossy().into_owned();
    let mut service = Staff::hire(&["payment", &ledger_name, &plan.seed.to_string()])?;
    let payment = service.line()?;
    let pool = runtime.block_on(set_up(url))?;
    let mut shop = Shop {
        cluster,
        url: url.to_owned(),
        payment,
        workers: Vec::new(),
        orphans: Vec::new(),
        pool,
        mishaps: Mishaps::default(),
    };
    for _ in 0..plan.workers {
        shop.hire_worker()?;
    }
    let started = Instant::now();
    let mut front = Staff::hire(&["front", url, &plan.orders.to_string()])?;
    let elapsed = runtime.block_on(shop.work(plan, &mut front, started))?;
    let placed_all = front.0.wait()?.success();
    if !placed_all {
        bail!("the shop front failed");
    }
    runtime.block_on(async {
        let requests = payment::requests(&shop.payment).await?;
        Books::keep(&shop.pool, ledger, requests, plan.orders, &shop.mishaps, elapsed).await
    })
}

async fn set_up(url: &str) -> Result<PgPool> {
    ambo::Client::connect_unchecked(url, "ambo").await?.migrate().await?;
    let pool =
        PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(5)).connect(url).await?;
    sqlx::raw_sql(include_str!("schema.sql")).execute(&pool).await?;
    Ok(pool)
}

impl Shop {
    fn hire_worker(&mut self) -> Result<()> {
        self.workers.push(Staff::hire(&["worker", &self.url, &self.payment])?);
        Ok(())
    }

    /// Watches until every order is fulfilled, and strikes on the way.
    async fn work(&mut self, plan: &Plan, front: &mut Staff, started: Instant) -> Result<Duration> {
        let goal = (1..=plan.orders).filter(|id| way(*id) != Way::RolledBack).count() as u64;
        let bar = progress(goal);
        let mut blows = BLOWS.iter();
        let mut next = blows.next();
        let mut said = Instant::now();
        loop {
            let fulfilled = self.fulfilled().await?;
            bar.set_position(fulfilled);
            bar.set_message(format!(
                "{} workers killed, {} crashes of the database",
                self.mishaps.workers_killed, self.mishaps.database_crashes
            ));
            if bar.is_hidden() && said.elapsed() > Duration::from_secs(5) {
                said = Instant::now();
                eprintln!(
                    "{fulfilled} of {goal} orders fulfilled, {} workers killed",
                    self.mishaps.workers_killed
                );
            }
            self.find_orphans().await?;
            if fulfilled >= goal && self.orphans.is_empty() {
                bar.finish_and_clear();
                return Ok(started.elapsed());
            }
            if started.elapsed() > Duration::from_secs(600) {
                bail!("only {fulfilled} of {goal} orders were fulfilled in ten minutes");
            }
            if let Some((percent, blow)) = next
                && fulfilled * 100 >= goal * percent
                && (*blow == Blow::KillWorker || self.orphans.is_empty())
            {
                match blow {
                    Blow::KillWorker => self.kill_worker().await?,
                    Blow::RushHour => front.tell("the rest")?,
                    Blow::CrashDatabase => self.crash_database()?,
                }
                next = blows.next();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks until the database answers: it may be coming back from a crash.
    async fn ask<T>(&self, sql: &'static str, worker: Option<i64>, dead: &[uuid::Uuid]) -> Result<T>
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut last = None;
        for _ in 0..300 {
            match sqlx::query_scalar(sql).bind(worker).bind(dead).fetch_one(&self.pool).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(last.map_or_else(|| anyhow::anyhow!("no answer"), Into::into))
    }

    async fn fulfilled(&self) -> Result<u64> {
        let count: i64 = self
            .ask(
                "select count(*) from ambo.outcome where $1::bigint is null and $2::uuid[] is not null",
                None,
                &[],
            )
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Kills the worker that holds the most runs and hires another.
    async fn kill_worker(&mut self) -> Result<()> {
        // One that was killed a moment ago may still hold the most.
        let pids: Vec<i32> = self
            .ask(
                "select coalesce(array_agg(h.pid order by h.runs desc), '{}') from (
                     select w.pid, count(c.run_id) as runs
                     from ambo.worker w left join ambo.claim c on c.worker_id = w.id
                     where w.dead_at is null and $1::bigint is null and $2::uuid[] is not null
                     group by w.id) h",
                None,
                &[],
            )
            .await?;
        let place_of = |pid: i32| self.workers.iter().position(|staff| staff.0.id() == pid.unsigned_abs());
        let Some((pid, place)) = pids.iter().find_map(|pid| Some((*pid, place_of(*pid)?))) else {
            bail!("no worker of this shop is registered");
        };
        let worker: i64 =
            self.ask("select id from ambo.worker where pid = $1 and $2::uuid[] is not null order by id desc limit 1", Some(pid.into()), &[]).await?;
        drop(self.workers.swap_remove(place));
        let killed = Instant::now();
        self.mishaps.workers_killed += 1;
        let held: Vec<uuid::Uuid> = self
            .ask(
                "select array(select c.run_id from ambo.claim c where c.worker_id = $1 and $2::uuid[] is not null)",
                Some(worker),
                &[],
            )
            .await?;
        self.hire_worker()?;
        self.mishaps.runs_recovered += held.len() as u64;
        self.orphans.push(Orphans { worker, killed, runs: held });
        Ok(())
    }

    /// Which runs of killed workers were claimed again or have ended by now. Each counts once: its heir may be killed too.
    async fn find_orphans(&mut self) -> Result<()> {
        let mut place = 0;
        while let Some(Orphans { worker, killed, runs }) = self.orphans.get(place) {
            let idle: Vec<uuid::Uuid> = self
                .ask(
                    "select array(select r from unnest($2::uuid[]) r
                     where not exists (select from ambo.claim c where c.run_id = r and c.worker_id <> $1)
                       and not exists (select from ambo.outcome o where o.run_id = r))",
                    Some(*worker),
                    runs,
                )
                .await?;
            let elapsed = killed.elapsed();
            if !idle.is_empty() && elapsed > Duration::from_secs(60) {
                bail!("{} runs of a killed worker were not claimed again in a minute", idle.len());
            }
            if !idle.is_empty() {
                self.orphans[place].runs = idle;
                place += 1;
            } else {
                self.mishaps.slowest_recovery = self.mishaps.slowest_recovery.max(elapsed);
                self.orphans.swap_remove(place);
            }
        }
        Ok(())
    }

    /// Kills every process of the server, as a power cut would, and starts it again on the same data.
    fn crash_database(&mut self) -> Result<()> {
        self.cluster.kill()?;
        self.cluster.start()?;
        self.mishaps.database_crashes += 1;
        Ok(())
    }
}

/// A bar on a terminal; elsewhere there are lines now and then.
fn progress(goal: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(goal);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} fulfilled  {msg}") {
        bar.set_style(style);
    }
    bar
}
