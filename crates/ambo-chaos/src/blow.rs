//! How a blow falls. Those on the servers take turns; all others fall at once.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::client::Clients;
use crate::pair::Pair;
use crate::plan::Blow;
use crate::proxy::{Fate, Proxy};
use crate::round::blocking;
use crate::staff::{NEXT_VERSION, Staff};

/// How long a worker is stopped at most, where nobody buries it: a lease, a grace, a beat, and room.
const UNBURIED: Duration = Duration::from_secs(10);
/// How long a migration tries: a failover and its own patience for tables in use are in it.
const MIGRATION: Duration = Duration::from_secs(20);
/// How slow the network is while a worker that was buried wakes.
const WAKING: Duration = Duration::from_millis(60);

/// What there is to hit.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) pair: Arc<tokio::sync::Mutex<Pair>>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) staff: Arc<Staff>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) began: Instant,
    /// What was done: its kind, and in words. A std mutex: never held across an await.
    pub(crate) done: Mutex<Vec<(&'static str, String)>>,
}

/// Ends one backend in the midst of a commit, else one in a transaction, else any.
const END_BACKEND: &str = "select a.application_name || ' ' || coalesce(a.wait_event, a.state)
    || ' ' || pg_terminate_backend(a.pid)
    from pg_stat_activity a where a.datname = 'chaos' and a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
    order by a.wait_event = 'SyncRep' desc nulls last, a.backend_xid is null, random() limit 1";

/// Lets a blow fall, and heals what it says is to heal.
pub(crate) async fn land(field: &Arc<Field>, blow: &Blow) -> Result<()> {
    let fell = field.began.elapsed();
    let words = match blow {
        Blow::KillWorker { .. } | Blow::StopWorker { .. } | Blow::BuryWorker { .. } | Blow::Upgrade => {
            on_worker(field, blow).await?
        }
        Blow::CrashDatabase | Blow::LosePrimary | Blow::FillVolume { .. } => on_server(field, blow).await?,
        Blow::EndBackends { times } => end_backends(field, *times).await?,
        Blow::Connections { fate, of, time } => Some(on_connections(field, *fate, *of, *time).await),
        Blow::Delay { most, time } => {
            field.proxy.delay(*most);
            tokio::time::sleep(*time).await;
            field.proxy.delay(Duration::ZERO);
            Some(format!("up to {} ms", most.as_millis()))
        }
        Blow::Clock { seconds, time } => {
            let jumped = field.staff.set_clock(*seconds);
            tokio::time::sleep(*time).await;
            field.staff.set_clock(0);
            jumped.then(|| format!("by {seconds} s"))
        }
        Blow::KillPgbench => {
            let clients = field.clients.clone();
            blocking(move || clients.kill_pgbench()).await?.then(String::new)
        }
    };
    // A blow that finds nothing to hit is none.
    if let Some(words) = words {
        let (from, to) = (fell.as_secs_f64(), field.began.elapsed().as_secs_f64());
        let mut done = field.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.push((blow.kind(), format!("{from:.2} to {to:.2} s: {} {words}", blow.kind())));
    }
    Ok(())
}

async fn on_worker(field: &Arc<Field>, blow: &Blow) -> Result<Option<String>> {
    let staff = field.staff.clone();
    match *blow {
        Blow::KillWorker { desk, vacant } => {
            let killed = staff.kill(desk);
            tokio::time::sleep(vacant).await;
            blocking(move || staff.fill(desk)).await?;
            Ok(killed.then(|| format!("at desk {desk}")))
        }
        Blow::StopWorker { desk, time } => {
            let stopped = staff.signal(desk, "STOP");
            tokio::time::sleep(time).await;
            // Another may sit there by now, and is not hurt by it.
            staff.signal(desk, "CONT");
            Ok(stopped.then(|| format!("at desk {desk}")))
        }
        Blow::BuryWorker { desk, late } => {
            let Some(pid) = staff.pid(desk).filter(|_| staff.signal(desk, "STOP")) else { return Ok(None) };
            let buried = burial(field, pid).await;
            tokio::time::sleep(late).await;
            // It shall not hear that it is dead before it has sent what it has to record.
            field.proxy.delay(WAKING);
            staff.signal(desk, "CONT");
            tokio::time::sleep(2 * WAKING).await;
            field.proxy.delay(Duration::ZERO);
            Ok(Some(match buried {
                Some(after) => format!("at desk {desk}, buried after {:.2} s", after.as_secs_f64()),
                None => format!("at desk {desk}, and nobody buried it"),
            }))
        }
        _ => {
            // First the schema: a program of the next version does not start on this one's.
            if tokio::time::timeout(MIGRATION, migrate(field)).await.is_err() {
                return Ok(None);
            }
            let renewed = blocking(move || {
                (0..staff.count()).try_fold(0, |renewed, desk| Ok(renewed + i32::from(staff.renew(desk, 2)?)))
            });
            let renewed = renewed.await?;
            Ok((renewed > 0).then(|| format!("of {renewed} workers, after the schema")))
        }
    }
}

/// Brings the schema to the next version, however often the server is lost meanwhile.
async fn migrate(field: &Arc<Field>) {
    loop {
        let url = field.pair.lock().await.url();
        if migrating(&url).await.is_ok_and(|status| status.success()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// This program as one of the version to come, which migrates.
async fn migrating(url: &str) -> Result<ExitStatus> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["migrate", url]).envs([NEXT_VERSION]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    // It ends when this is closed.
    let _stdin = child.stdin.take();
    Ok(child.wait().await?)
}

/// Waits until a worker process that is stopped has no row any more; says how long that took, if no longer than it may.
async fn burial(field: &Arc<Field>, pid: u32) -> Option<Duration> {
    let began = Instant::now();
    let sql = format!("select count(*) from ambo.worker where pid = {pid}");
    while began.elapsed() < UNBURIED {
        tokio::time::sleep(Duration::from_millis(20)).await;
        // Whoever does something to the servers has them; they may be down too.
        let Ok(pair) = field.pair.clone().try_lock_owned() else { continue };
        let sql = sql.clone();
        if blocking(move || pair.ask(&sql)).await.is_ok_and(|rows| rows.as_deref() == Some("0")) {
            return Some(began.elapsed());
        }
    }
    None
}

async fn on_server(field: &Arc<Field>, blow: &Blow) -> Result<Option<String>> {
    let (pair, proxy, blow) = (field.pair.clone(), field.proxy.clone(), blow.clone());
    blocking(move || {
        let mut pair = pair.blocking_lock();
        match blow {
            Blow::CrashDatabase => {
                pair.crash()?;
                Ok(Some(String::new()))
            }
            Blow::FillVolume { time } => {
                let how = |fell: bool| if fell { "the primary fell" } else { "the primary had room enough" };
                Ok(pair.fill_up(time)?.map(|fell| format!("for {} ms: {}", time.as_millis(), how(fell))))
            }
            _ => {
                if !pair.fail_over()? {
                    return Ok(None);
                }
                proxy.move_to(pair.port());
                // Life goes on without a standby for as long as the next one is made.
                pair.follow()?;
                Ok(Some(String::new()))
            }
        }
    })
    .await
}

async fn end_backends(field: &Arc<Field>, times: u64) -> Result<Option<String>> {
    let pair = field.pair.clone();
    blocking(move || {
        let mut ended = Vec::new();
        for _ in 0..times {
            // One at a time, so that other blows come in between.
            let Ok(pair) = pair.try_lock() else { break };
            ended.extend(pair.ask(END_BACKEND).ok().flatten());
            drop(pair);
            std::thread::sleep(Duration::from_millis(15));
        }
        Ok((!ended.is_empty()).then(|| format!("({})", ended.join(", "))))
    })
    .await
}

async fn on_connections(field: &Arc<Field>, fate: Fate, of: u64, time: Duration) -> String {
    let struck = field.proxy.strike(1, of, fate);
    if fate != Fate::Cut {
        tokio::time::sleep(time).await;
        field.proxy.close(&struck);
    }
    format!("({fate:?}, {})", struck.len())
}
