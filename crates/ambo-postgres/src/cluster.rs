//! A running server: asked, stopped, crashed and started again. How it comes up is in `launch`.

mod launch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::account::Account;
use crate::guard::Guard;
use crate::place::Home;
use crate::wire::{self, Connection};
use crate::{Binaries, Builder, Error};

/// How long the making of a data directory, a start with recovery, or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// A private PostgreSQL server and its data.
///
/// Shared by reference among threads. Dropping it stops the server and removes temporary data; so does the end of
/// this process, whatever ends it.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    account: Account,
    home: Home,
    wishes: Builder,
    port: u16,
    // Held while the server starts or stops, so that two threads cannot do both at once.
    guard: Mutex<Option<Guard>>,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Waits until the last client has gone, at most a minute.
    Smart,
    /// Rolls back what is open, cuts the clients off, writes everything out. As an administrator restarts a server.
    Fast,
    /// Cuts everything off; the next start recovers from the write-ahead log.
    Immediate,
}

impl Shutdown {
    fn signal(self) -> &'static str {
        match self {
            Self::Smart => "TERM",
            Self::Fast => "INT",
            Self::Immediate => "QUIT",
        }
    }
}

impl Cluster {
    /// Starts to describe a cluster. Without more said: temporary, in memory, not durable.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The address of `database` for any driver: `postgres://postgres@127.0.0.1:PORT/database`.
    ///
    /// Without TCP the address names the socket's directory, which not every driver understands.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let database = percent_encoded(database);
        if self.wishes.tcp {
            format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
        } else {
            let directory = percent_encoded(&self.home.run.to_string_lossy());
            format!("postgres://postgres@/{database}?host={directory}&port={}", self.port)
        }
    }

    /// The directory of the server's socket, which is named `.s.PGSQL.PORT`.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.home.run
    }

    /// The directory of the data.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.home.data
    }

    /// The file that the server writes its log to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.home.log
    }

    /// The port; the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The programs that the cluster uses.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The process id of the server's main process; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.locked().as_ref().filter(|guard| guard.exited().is_none()).map(Guard::pid)
    }

    /// Makes a database, unless it exists.
    ///
    /// # Errors
    ///
    /// If the server is stopped or refuses.
    pub fn create_database(&self, name: &str) -> Result<(), Error> {
        match self.query("postgres", &format!("create database {}", wire::quoted(name))) {
            Err(error) if error.sqlstate() == Some("42P04") => Ok(()),
            made => made.map(drop),
        }
    }

    /// Runs one or more statements on a connection of their own, as superuser; returns their rows as text, null as
    /// `None`. For setting a stage and looking at it, not for speed.
    ///
    /// # Errors
    ///
    /// If the server is stopped or refuses; then none of several statements has taken effect.
    pub fn query(&self, database: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        Connection::open(&self.home.run, self.port, database)?.query(sql)
    }

    /// Makes a standby a primary: it accepts writes when this returns. A primary stays one.
    ///
    /// # Errors
    ///
    /// If the server is stopped, or not promoted within a minute.
    pub fn promote(&self) -> Result<(), Error> {
        let promoted = self.query(
            "postgres",
            "select case when pg_is_in_recovery() then pg_promote(true, 60) else true end",
        )?;
        match promoted.first().and_then(|row| row.first()) {
            Some(Some(answer)) if answer == "t" => Ok(()),
            _ => Err(Error::new("the standby was not promoted within a minute")),
        }
    }

    /// Stops the server; one that is stopped stays so. The data stays until the cluster is dropped.
    ///
    /// # Errors
    ///
    /// If it has not ended within a minute.
    pub fn stop(&self, how: Shutdown) -> Result<(), Error> {
        Self::end(&mut self.locked(), how)
    }

    /// Ends the server's processes with `SIGKILL`, as a crash does: no goodbye to clients, nothing written out.
    ///
    /// # Errors
    ///
    /// If the processes have not ended within a minute.
    pub fn kill(&self) -> Result<(), Error> {
        let mut slot = self.locked();
        let Some(guard) = slot.as_mut() else { return Ok(()) };
        // Stopped first, so that it cannot start another child while we look for them.
        guard.signal("STOP");
        let children = children(guard.pid());
        let mut memory = shared_memory(&guard.pid().to_string());
        // Some of it only the children have mapped.
        memory.extend(children.iter().flat_map(|child| shared_memory(child)));
        guard.signal("KILL");
        if !children.is_empty() {
            let mut kill = Command::new("/bin/sh");
            kill.args(["-c", "kill -s KILL \"$@\"", "sh"]).args(children).stderr(Stdio::null());
            // Children that have gone by themselves make it fail; that is as well.
            let _ = kill.status();
        }
        let ended = guard.wait(PATIENCE);
        // The next start would remove these, but there may be none.
        for file in memory {
            let _ = fs::remove_file(file);
        }
        ended.map(drop).ok_or_else(|| Error::new("the killed server does not end"))
    }

    /// Starts a server that was stopped or killed, or that fell, on the same data and port. One that runs is left alone.
    ///
    /// # Errors
    ///
    /// If it does not start; the message holds the end of its log.
    pub fn start(&self) -> Result<(), Error> {
        let mut slot = self.locked();
        self.launch(&mut slot).map_err(|fall| fall.error)
    }

    /// Stops the server and starts it again.
    ///
    /// # Errors
    ///
    /// As [`Cluster::stop`] and [`Cluster::start`].
    pub fn restart(&self, how: Shutdown) -> Result<(), Error> {
        let mut slot = self.locked();
        Self::end(&mut slot, how)?;
        self.launch(&mut slot).map_err(|fall| fall.error)
    }

    fn end(slot: &mut Option<Guard>, how: Shutdown) -> Result<(), Error> {
        let Some(guard) = slot else { return Ok(()) };
        guard.signal(how.signal());
        match guard.wait(PATIENCE) {
            Some(_) => Ok(()),
            None => {
                Err(Error::new("the server did not stop within a minute; some client may still be connected"))
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Guard>> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The guard stops the server and removes the directories. What follows is for when there is none.
        drop(self.locked().take());
        discard(&self.home);
    }
}

fn discard(home: &Home) {
    for directory in home.remove.iter().flatten() {
        // Already removed by the guard, as a rule.
        let _ = fs::remove_dir_all(directory);
    }
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else {
        let found = Command::new("pgrep").arg("-P").arg(pid.to_string()).output();
        let found =
            found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        return found.split_whitespace().map(str::to_owned).collect();
    };
    processes
        .flatten()
        .filter(|process| parent(&process.path()) == Some(pid))
        .filter_map(|process| process.file_name().into_string().ok())
        .collect()
}

/// The files of shared memory that the process `pid` has mapped; only Linux shows them as files.
fn shared_memory(pid: &str) -> Vec<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find("/dev/shm/PostgreSQL.").map(|at| &line[at..]));
    files.filter(|file| !file.contains(' ')).map(PathBuf::from).collect()
}

/// The parent of a process, from its `stat`: the second field after the name, which may itself hold parentheses.
fn parent(process: &Path) -> Option<u32> {
    let stat = fs::read_to_string(PathBuf::from(process).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
