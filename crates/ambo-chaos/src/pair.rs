//! The primary and its synchronous standby: crashed, lost, promoted, filled up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ambo_postgres::{Binaries, Builder, Cluster, Place, Shutdown};
use anyhow::{Context as _, Result, bail};

use crate::volume::Volume;

/// How long a standby may take to be in step with its primary.
const PATIENCE: Duration = Duration::from_secs(30);

/// Both servers. Everything here blocks.
#[derive(Debug)]
pub(crate) struct Pair {
    primary: Cluster,
    /// In step: what the primary has acknowledged, it has.
    standby: Option<Cluster>,
    /// Where the log of the first primary is kept.
    volume: Option<Volume>,
    /// Where the logs of the servers are kept that are gone.
    folder: PathBuf,
    lost: u32,
}

impl Pair {
    /// A primary; its log on a small volume of its own if that is asked for and permitted.
    pub(crate) fn start(binaries: &Binaries, folder: &Path, with_volume: bool) -> Result<Pair> {
        let volume = if with_volume { Some(Volume::mount(folder)?) } else { None };
        let mut builder = settings(Cluster::builder().binaries(binaries.clone()));
        if let Some(volume) = &volume {
            builder = builder.wal_volume(volume.path()).setting("max_wal_size", "32MB");
        }
        let primary = builder.start()?;
        Ok(Pair { primary, standby: None, volume, folder: folder.to_owned(), lost: 0 })
    }

    pub(crate) fn port(&self) -> u16 {
        self.primary.port()
    }

    pub(crate) fn url(&self) -> String {
        self.primary.url("chaos")
    }

    /// The first column of the first row, in the database of the bank.
    pub(crate) fn ask(&self, sql: &str) -> Result<Option<String>> {
        let rows = self.primary.query("chaos", sql)?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    pub(crate) fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        Ok(self.primary.query("chaos", sql)?)
    }

    pub(crate) fn create_database(&self) -> Result<()> {
        Ok(self.primary.create_database("chaos")?)
    }

    /// Gives the primary a standby, and lets every commit wait for it from now on.
    pub(crate) fn follow(&mut self) -> Result<()> {
        if self.standby.is_some() {
            return Ok(());
        }
        let standby = settings(Cluster::builder().standby_of(&self.primary)).start()?;
        // What the primary is told next comes with its log only as far as it is data, and settings are not.
        set(&standby, "alter system reset synchronous_standby_names")?;
        set(&self.primary, "alter system set synchronous_standby_names = 'standby'")?;
        let asked = Instant::now();
        let in_step = "select count(*) from pg_stat_replication where sync_state = 'sync'";
        while self.ask(in_step)?.as_deref() != Some("1") {
            if asked.elapsed() > PATIENCE {
                bail!("the standby does not get in step");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // A commit that waits: all that came before is at the standby too when it returns.
        self.ask("select pg_logical_emit_message(true, 'chaos', 'in step')::text")?;
        self.standby = Some(standby);
        Ok(())
    }

    /// An immediate stop, and a start with recovery.
    pub(crate) fn crash(&self) -> Result<()> {
        Ok(self.primary.restart(Shutdown::Immediate)?)
    }

    /// The primary is gone for good, and the standby takes its place.
    pub(crate) fn fail_over(&mut self) -> Result<bool> {
        let Some(standby) = self.standby.take() else { return Ok(false) };
        self.primary.kill()?;
        standby.promote()?;
        self.keep_log(&self.primary)?;
        self.lost += 1;
        self.primary = standby;
        self.volume = None;
        Ok(true)
    }

    /// No room for the log, for so long; the primary falls as a rule, and is started when there is room again.
    /// Answers whether it had.
    pub(crate) fn fill_up(&self, time: Duration) -> Result<Option<bool>> {
        let Some(volume) = &self.volume else { return Ok(None) };
        volume.fill();
        std::thread::sleep(time);
        let has_fallen = self.ask("select 1").is_err();
        volume.free();
        self.stand_up()?;
        Ok(Some(has_fallen))
    }

    /// Starts the primary if it has fallen.
    pub(crate) fn stand_up(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.primary.start().map_err(anyhow::Error::from).and_then(|()| self.ask("select 1")) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(error).context("the primary does not come back");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Keeps the logs of the servers that are left, as evidence.
    pub(crate) fn keep_logs(&self) -> Result<()> {
        self.keep_log(&self.primary)?;
        if let Some(standby) = &self.standby {
            fs::copy(standby.log(), self.folder.join("standby.log"))?;
        }
        Ok(())
    }

    fn keep_log(&self, server: &Cluster) -> Result<()> {
        let name = format!("primary-{}.log", self.lost + 1);
        fs::copy(server.log(), self.folder.join(name)).map(drop).context("the log of a server")
    }
}

/// What both servers are started with.
fn settings(builder: Builder) -> Builder {
    [
        // A standby that comes back finds what it missed.
        ("wal_keep_size", "64MB"),
        ("wal_retrieve_retry_interval", "100ms"),
        ("wal_receiver_status_interval", "1s"),
        // Half-open connections are found in seconds, as on a system that is set up to survive.
        ("tcp_keepalives_idle", "5"),
        ("log_lock_waits", "on"),
        ("log_line_prefix", "%m [%p] %a "),
    ]
    .into_iter()
    .fold(builder.temporary(Place::Memory).durable(false).max_connections(200), |builder, (name, value)| {
        builder.setting(name, value)
    })
}

fn set(server: &Cluster, sql: &str) -> Result<()> {
    server.query("postgres", sql)?;
    server.query("postgres", "select pg_reload_conf()")?;
    Ok(())
}
