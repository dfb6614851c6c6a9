//! How a cluster comes up: its directories, its data (new, or a primary's), its port, its server.

use std::fs::DirBuilder;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, process, thread};

use super::{Cluster, PATIENCE, discard};
use crate::account::Account;
use crate::builder::{Origin, Whereabouts};
use crate::guard::{Guard, Orders};
use crate::place::Home;
use crate::wire::{self, Connection};
use crate::{Builder, Error};

/// How often a starting server is asked whether it is ready. It takes about 30 ms.
const POLL: Duration = Duration::from_millis(5);
/// How often a start is tried when a port was taken between its choice and its use, or a crashed server's children
/// have not all gone.
const TRIES: u32 = 50;

impl Cluster {
    pub(crate) fn create(wishes: Builder) -> Result<Self, Error> {
        let (account, home, existing) = match &wishes.home {
            Whereabouts::Temporary(place) => {
                let account = Account::choose(None)?;
                let home = Home::temporary(place, &account)?;
                (account, home, None)
            }
            Whereabouts::Persistent(root) => {
                let account = Account::choose(Some(&root.join("data")))?;
                let home = Home::persistent(root, &account)?;
                let existing = fs::read_to_string(home.data.join("PG_VERSION")).ok();
                (account, home, existing.and_then(|major| major.trim().parse().ok()))
            }
        };
        // From here a failure must remove what was made, which is for the drop of the cluster to do.
        let mut cluster = Self {
            binaries: wishes.choose_binaries(existing).inspect_err(|_| discard(&home))?,
            account,
            home,
            port: wishes.port.unwrap_or(0),
            wishes,
            guard: Mutex::new(None),
        };
        if existing.is_none() {
            cluster.make_data()?;
        }
        for _ in 0..TRIES {
            if cluster.wishes.port.is_none() {
                cluster.port = free_port()?;
            }
            let mut slot = cluster.guard.lock().unwrap_or_else(PoisonError::into_inner);
            match cluster.launch(&mut slot) {
                Ok(()) => break,
                Err(fall) if fall.port_taken && cluster.wishes.port.is_none() => {}
                Err(fall) => {
                    drop(slot);
                    return Err(fall.error);
                }
            }
        }
        if cluster.pid().is_none() {
            return Err(Error::new("no free port could be had on 127.0.0.1"));
        }
        Ok(cluster)
    }

    /// Runs `initdb`, or `pg_basebackup` for a standby, under a guard too: also a directory that is half made goes with
    /// its owner.
    fn make_data(&self) -> Result<(), Error> {
        let mut maker = match &self.wishes.origin {
            Some(origin) => self.basebackup(origin),
            None => self.initdb(),
        };
        if let Some(volume) = &self.wishes.wal_volume {
            maker.arg(format!("--waldir={}", self.wal_directory(volume)?.display()));
            if self.wishes.origin.is_none() {
                maker.arg("--wal-segsize=1");
            }
        }
        if !self.is_durable() {
            maker.arg("--no-sync");
        }
        let program = Path::new(maker.get_program()).to_owned();
        let name = program.file_name().unwrap_or_default().display();
        if !self.account.can("-x", &program) {
            return Err(Error::new(format!(
                "{} cannot run {}: it needs to be there, where every user may go",
                self.account.name(),
                program.display()
            )));
        }
        let guard = self.guarded(&maker)?;
        match guard.wait(PATIENCE) {
            Some(0) => {
                *self.locked() = Some(guard);
                Ok(())
            }
            status => {
                let said = self.home.last_words();
                let status =
                    status.map_or_else(|| "not within a minute".into(), |status| format!("status {status}"));
                Err(Error::new(format!("{name} failed ({status}); it said:\n{said}")))
            }
        }
    }

    fn initdb(&self) -> Command {
        let mut initdb = self.binaries.command("initdb");
        initdb.arg("-D").arg(&self.home.data);
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]);
        initdb
    }

    fn basebackup(&self, origin: &Origin) -> Command {
        let mut backup = self.binaries.command("pg_basebackup");
        backup.arg("-D").arg(&self.home.data);
        backup.args(["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--dbname"]);
        backup.arg(format!(
            "host={} port={} user=postgres application_name=standby",
            origin.socket_dir.display(),
            origin.port
        ));
        backup
    }

    /// A new directory for the write-ahead log, where the server's user may write.
    fn wal_directory(&self, volume: &Path) -> Result<PathBuf, Error> {
        let failed =
            |error| Error::io(format!("cannot keep the write-ahead log in {}", volume.display()), error);
        let directory = volume.canonicalize().map_err(failed)?.join(format!("pg_wal-{}", process::id()));
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        self.account.own(&directory)?;
        Ok(directory)
    }

    /// Starts the server under a new guard and waits until it answers.
    pub(super) fn launch(&self, slot: &mut Option<Guard>) -> Result<(), Fall> {
        if slot.as_ref().is_some_and(|guard| guard.exited().is_none()) {
            return Ok(());
        }
        let server = self.server_command();
        let deadline = Instant::now() + PATIENCE;
        for tries in 1.. {
            let said_before = fs::metadata(&self.home.log).map_or(0, |log| log.len());
            let guard = self.guarded(&server)?;
            // Two guards for a moment, and the older one leaves the directories to the newer.
            if let Some(older) = slot.replace(guard) {
                older.release();
            }
            let guard = slot.as_ref().expect("the guard was just put here");
            while guard.exited().is_none() {
                match self.probe(guard.pid()) {
                    Ok(()) => return Ok(()),
                    Err(error) if Instant::now() > deadline => {
                        return Err(Error::new(format!("PostgreSQL does not get ready: {error}")).into());
                    }
                    // Not there yet, or recovering from a crash.
                    Err(_) => thread::sleep(POLL),
                }
            }
            let log = fs::read(&self.home.log).unwrap_or_default();
            let said =
                String::from_utf8_lossy(log.get(said_before as usize..).unwrap_or_default()).into_owned();
            // The children of a crashed server let go of its memory a little after it.
            let still_dying = said.contains("still in use") && said.contains("shared memory");
            if !(still_dying && tries < TRIES && Instant::now() < deadline) {
                let port_taken =
                    said.contains("could not bind") || said.contains("could not create any TCP/IP");
                let error =
                    Error::new(format!("PostgreSQL does not start; it said:\n{}", self.home.last_words()));
                return Err(Fall { error, port_taken });
            }
            thread::sleep(Duration::from_millis(100));
        }
        unreachable!("the loop above ends by returning")
    }

    /// Whether the server with process id `pid` answers.
    fn probe(&self, pid: u32) -> Result<(), Error> {
        // Else the answer could be that of another server on the same directory, which makes ours refuse to start.
        let lock = fs::read_to_string(self.home.data.join("postmaster.pid")).unwrap_or_default();
        if lock.lines().next().and_then(|owner| owner.trim().parse().ok()) != Some(pid) {
            return Err(Error::new("the server has not taken its data directory"));
        }
        Connection::open(&self.home.run, self.port, "postgres").map(drop)
    }

    fn server_command(&self) -> Command {
        let mut server = self.binaries.command("postgres");
        server.arg("-D").arg(&self.home.data);
        let mut set = |name: &str, value: &str| {
            server.arg("-c").arg(format!("{name}={value}"));
        };
        set("port", &self.port.to_string());
        set("listen_addresses", if self.wishes.tcp { "127.0.0.1" } else { "" });
        set("max_connections", &self.wishes.max_connections.to_string());
        set("unix_socket_directories", &wire::quoted(&self.home.run.to_string_lossy()));
        if !self.is_durable() {
            set("fsync", "off");
            set("full_page_writes", "off");
        }
        if self.wishes.wal_volume.is_some() {
            // Else a full volume would not show until the log has outgrown what is kept for later.
            set("wal_recycle", "off");
            set("min_wal_size", "2MB");
        }
        for (name, value) in &self.wishes.settings {
            set(name, value);
        }
        server
    }

    fn is_durable(&self) -> bool {
        self.wishes.durable.unwrap_or(matches!(self.wishes.home, Whereabouts::Persistent(_)))
    }

    fn guarded(&self, program: &Command) -> Result<Guard, Error> {
        let temporary = self.home.remove[0].is_some();
        let orders = Orders {
            // Data that goes needs no goodbye; data that stays is better closed in peace.
            last: if temporary { "QUIT" } else { "INT" },
            remove: self.home.remove.each_ref().map(Option::as_deref),
            log: &self.home.log,
        };
        Guard::start(&self.account, &orders, program)
    }
}

/// Why a server is not up.
pub(super) struct Fall {
    pub(super) error: Error,
    port_taken: bool,
}

impl From<Error> for Fall {
    fn from(error: Error) -> Self {
        Self { error, port_taken: false }
    }
}

fn free_port() -> Result<u16, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Error::io("no free port on 127.0.0.1", error))
}
