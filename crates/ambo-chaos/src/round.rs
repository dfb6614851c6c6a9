//! One round: a world is set up, everything happens to it at once, peace comes, the books are kept.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ambo_postgres::{Binaries, Pooler};
use anyhow::{Context as _, Result, bail};

use crate::blow::{Field, land};
use crate::check::{Findings, LEFT, check};
use crate::client::{Clients, Pgbench, SCALE};
use crate::pair::Pair;
use crate::plan::{Plan, WORKERS};
use crate::proxy::Proxy;
use crate::random::Random;
use crate::staff::Staff;
use crate::witness::Witness;

/// Customers in Rust.
const CUSTOMERS: u64 = 4;
/// How long the world outside takes to answer at most, in a round with a short lease.
const SLOWNESS: Duration = Duration::from_millis(300);
/// How long nothing may happen, once there is peace, while there is something to do: a lease, a grace, and room.
const STILLNESS: Duration = Duration::from_secs(30);
/// How long the last runs may take to end in all.
const PEACE: Duration = Duration::from_secs(240);

/// What came of a round.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) findings: Findings,
    /// What was done, in words, in its order.
    pub(crate) done: Vec<String>,
    /// How often each kind of blow landed.
    pub(crate) kinds: Vec<&'static str>,
    /// From the peace to the end of the last run.
    pub(crate) recovered_in: Duration,
}

/// Plays a round. `folder` is new, and holds all evidence afterwards.
pub(crate) async fn play(plan: &Plan, binaries: &Binaries, folder: &Path) -> Result<Outcome> {
    let mut random = Random::new(!plan.seed);
    let (pair, proxy) = found(plan, binaries, folder).await?;
    let pair = Arc::new(tokio::sync::Mutex::new(pair));
    let proxy = Arc::new(proxy);
    let pooler = if plan.pooled { Some(Pooler::start(folder, proxy.port)?) } else { None };
    let port = pooler.as_ref().map_or(proxy.port, Pooler::port);
    let url = format!("postgres://postgres@127.0.0.1:{port}/chaos?sslmode=disable");
    // Then most runs that a stopped worker has in memory are in the midst of a step, and have something to record as it wakes.
    let witness = Witness::open(if plan.short_lease { SLOWNESS } else { Duration::ZERO }).await?;
    let (staff, clients) = {
        let (kept, target, address) = (folder.to_owned(), url.clone(), witness.address);
        let wrong_clock = plan.wrong_clock;
        let hire = move || Staff::hire(WORKERS as usize, &target, address, &kept, wrong_clock);
        let staff = blocking(hire).await?;
        let pgbench = Pgbench::find(binaries, folder, port)?;
        (Arc::new(staff), Arc::new(Clients::open(CUSTOMERS, &url, pgbench, &mut random)?))
    };
    let field =
        Arc::new(Field { pair, proxy, staff, clients, began: Instant::now(), done: Mutex::default() });
    storm(plan, &field).await?;

    let calm = Instant::now();
    peace(&field).await?;
    let field = Arc::into_inner(field).context("a blow is still falling")?;
    let clients = Arc::into_inner(field.clients).context("somebody is still with the clients")?;
    let receipts = clients.close().await?;
    let left = settle_down(&field.pair, &field.staff).await?;
    let recovered_in = calm.elapsed();

    let (staff, folder_of_evidence) = (field.staff.clone(), folder.to_owned());
    let testimony = witness.testimony();
    let mut findings = blocking(move || {
        let fallen = staff.fallen();
        drop(staff);
        let pair = field.pair.blocking_lock();
        pair.keep_logs()?;
        let mut findings = check(&pair, &receipts, &testimony, &folder_of_evidence)?;
        findings.violations.extend(fallen);
        if !findings.violations.is_empty() {
            keep_evidence(&pair, &receipts, &testimony, &folder_of_evidence)?;
        }
        Ok(findings)
    })
    .await?;
    if let Some(left) = left {
        findings.violations.insert(0, left);
    }
    drop(pooler);
    let done = field.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let kinds = done.iter().map(|(kind, _)| *kind).collect();
    let done = done.into_iter().map(|(_, words)| words).collect();
    Ok(Outcome { findings, done, kinds, recovered_in })
}

/// Servers, network, tables.
async fn found(plan: &Plan, binaries: &Binaries, folder: &Path) -> Result<(Pair, Proxy)> {
    let (binaries, folder, small_volume) = (binaries.clone(), folder.to_owned(), plan.small_volume);
    let pair = blocking(move || {
        let pair = Pair::start(&binaries, &folder, small_volume)?;
        pair.create_database()?;
        match Pgbench::find(&binaries, &folder, pair.port())? {
            Some(pgbench) => pgbench.initialise()?,
            None => pair.rows(&tables_of_pgbench()).map(drop)?,
        }
        Ok(pair)
    })
    .await?;
    let proxy = Proxy::before(pair.port()).await?;
    let client = ambo::Client::connect_unchecked(&pair.url(), "ambo").await?;
    client.migrate().await?;
    drop(client);
    let short_lease = plan.short_lease;
    let pair = blocking(move || {
        let mut pair = pair;
        pair.rows(include_str!("schema.sql"))?;
        if short_lease {
            pair.rows("update ambo.installation set lease = '2 seconds'")?;
        }
        pair.follow()?;
        Ok(pair)
    })
    .await?;
    Ok((pair, proxy))
}

/// What `pgbench -i` makes, where there is no pgbench.
fn tables_of_pgbench() -> String {
    format!(
        "create table pgbench_branches (bid int primary key, bbalance int, filler char(88));
         create table pgbench_tellers (tid int primary key, bid int, tbalance int, filler char(84));
         create table pgbench_accounts (aid int primary key, bid int, abalance int, filler char(84));
         create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
         insert into pgbench_branches select b, 0 from generate_series(1, {SCALE}) b;
         insert into pgbench_tellers select t, (t - 1) / 10 + 1, 0 from generate_series(1, 10 * {SCALE}) t;
         insert into pgbench_accounts select a, (a - 1) / 100000 + 1, 0 from generate_series(1, 100000 * {SCALE}) a"
    )
}

/// All blows, each at its time, whatever else is going on.
async fn storm(plan: &Plan, field: &Arc<Field>) -> Result<()> {
    let mut falling = tokio::task::JoinSet::new();
    for (at, blow) in plan.blows.clone() {
        let field = field.clone();
        falling.spawn(async move {
            tokio::time::sleep_until((field.began + at).into()).await;
            land(&field, &blow).await.with_context(|| format!("{blow:?}"))
        });
    }
    while field.began.elapsed() < plan.length || !falling.is_empty() {
        let clients = field.clients.clone();
        blocking(move || clients.all_at_the_counter()).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        while let Some(landed) = falling.try_join_next() {
            landed??;
        }
    }
    Ok(())
}

/// Everything is whole again.
async fn peace(field: &Arc<Field>) -> Result<()> {
    let (pair, proxy, staff) = (field.pair.clone(), field.proxy.clone(), field.staff.clone());
    proxy.delay(Duration::ZERO);
    blocking(move || {
        let mut pair = pair.blocking_lock();
        pair.stand_up()?;
        pair.follow()?;
        proxy.move_to(pair.port());
        staff.set_clock(0);
        staff.all_at_work()
    })
    .await
}

/// Waits until nothing is left to do, and says what is if nothing happens any more.
async fn settle_down(pair: &Arc<tokio::sync::Mutex<Pair>>, staff: &Arc<Staff>) -> Result<Option<String>> {
    let (pair, staff) = (pair.clone(), staff.clone());
    blocking(move || {
        let pair = pair.blocking_lock();
        let began = Instant::now();
        let open = format!(
            "select (select count(*) from ambo.run) - (select count(*) from ambo.outcome) + ({LEFT}),
                    (select count(*) from ambo.outcome) + (select count(*) from ambo.checkpoint)"
        );
        let (mut done, mut moved) = (String::new(), began);
        loop {
            staff.all_at_work()?;
            let answer = pair.rows(&open)?.into_iter().next().unwrap_or_default();
            let [Some(left), Some(so_far)] = &answer[..] else { bail!("no answer") };
            if left == "0" {
                return Ok(None);
            }
            if *so_far != done {
                (done, moved) = (so_far.clone(), Instant::now());
            }
            for (waited, most, what) in [
                (moved.elapsed(), STILLNESS, "nothing happens any more, and there is something to do still"),
                (began.elapsed(), PEACE, "there is something to do still after minutes of peace"),
            ] {
                if waited > most {
                    return Ok(Some(format!("{left} × {what}")));
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
    .await
}

/// The tables, what the clients know and what the witness saw, beside the logs.
fn keep_evidence(
    pair: &Pair,
    receipts: &crate::client::Receipts,
    testimony: &crate::witness::Testimony,
    folder: &Path,
) -> Result<()> {
    fs::write(folder.join("receipts.txt"), format!("{receipts:#?}"))?;
    let lines: Vec<String> = testimony.effects.iter().map(|effect| format!("{effect:?}")).collect();
    fs::write(folder.join("witness.txt"), lines.join("\n"))?;
    fs::write(folder.join("seen.txt"), format!("{:#?}", testimony.seen))?;
    let tables = "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and not c.relispartition
          and (n.nspname = 'ambo' or c.relname in ('placed', 'posting', 'pgbench_history', 'pgbench_branches'))";
    for row in pair.rows(tables)? {
        let Some(Some(table)) = row.first() else { continue };
        let rows = pair.rows(&format!("select row_to_json(t)::text from {table} t"))?;
        let rows: Vec<String> = rows.into_iter().flatten().flatten().collect();
        fs::write(folder.join(format!("{table}.jsonl")), rows.join("\n"))?;
    }
    Ok(())
}

/// Servers and processes are waited for in a thread of their own.
pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(act).await.context("an act panicked")?
}
