//! A running server: made, started, asked, stopped, crashed and started again.

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::account::Account;
use crate::builder::Whereabouts;
use crate::guard::{Guard, Orders};
use crate::place::Home;
use crate::wire::{self, Connection};
use crate::{Binaries, Builder, Error};

/// How long the making of a data directory, a start with recovery, or a stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a starting server is asked whether it is ready. It takes about 30 ms.
const POLL: Duration = Duration::from_millis(5);
/// How often a start is tried when a port was taken between its choice and its use, or a crashed server's children
/// have not all gone.
const TRIES: u32 = 50;

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
        guard.signal("KILL");
        if !children.is_empty() {
            let mut kill = Command::new("/bin/sh");
            kill.args(["-c", "kill -s KILL \"$@\"", "sh"]).args(children).stderr(Stdio::null());
            // Children that have gone by themselves make it fail; that is as well.
            let _ = kill.status();
        }
        match guard.wait(PATIENCE) {
            Some(_) => Ok(()),
            None => Err(Error::new("the killed server does not end")),
        }
    }

    /// Starts a server that was stopped or killed, or that fell, on the same data and port. One that runs is left alone.
    ///
    /// # Errors
    ///
    /// If it does not start; the message holds the end of its log.
    pub fn start(&self) -> Result<(), Error> {
        let mut slot = self.locked();
        match self.launch(&mut slot) {
            Ok(()) => Ok(()),
            Err(fall) => Err(fall.error),
        }
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

    /// Runs `initdb`, under a guard too: also a directory that is half made goes with its owner.
    fn make_data(&self) -> Result<(), Error> {
        let mut initdb = self.binaries.command("initdb");
        initdb.arg("-D").arg(&self.home.data);
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]);
        if !self.is_durable() {
            initdb.arg("--no-sync");
        }
        if !self.account.can("-x", Path::new(initdb.get_program())) {
            return Err(Error::new(format!(
                "{} cannot run {}: it needs to be where every user may go",
                self.account.name(),
                initdb.get_program().display()
            )));
        }
        let guard = self.guarded(&initdb)?;
        match guard.wait(PATIENCE) {
            Some(0) => {
                *self.locked() = Some(guard);
                Ok(())
            }
            status => {
                let said = self.home.last_words();
                let status =
                    status.map_or_else(|| "not within a minute".into(), |status| format!("status {status}"));
                Err(Error::new(format!("initdb failed ({status}); it said:\n{said}")))
            }
        }
    }

    /// Starts the server under a new guard and waits until it answers.
    fn launch(&self, slot: &mut Option<Guard>) -> Result<(), Fall> {
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
        for (name, value) in &self.wishes.settings {
            set(name, value);
        }
        server
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

    fn is_durable(&self) -> bool {
        self.wishes.durable.unwrap_or(matches!(self.wishes.home, Whereabouts::Persistent(_)))
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

/// Why a server is not up.
struct Fall {
    error: Error,
    port_taken: bool,
}

impl From<Error> for Fall {
    fn from(error: Error) -> Self {
        Self { error, port_taken: false }
    }
}

fn discard(home: &Home) {
    for directory in home.remove.iter().flatten() {
        // Already removed by the guard, as a rule.
        let _ = fs::remove_dir_all(directory);
    }
}

fn free_port() -> Result<u16, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Error::io("no free port on 127.0.0.1", error))
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<OsString> {
    let Ok(processes) = fs::read_dir("/proc") else {
        let found = Command::new("pgrep").arg("-P").arg(pid.to_string()).output();
        let found =
            found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        return found.split_whitespace().map(OsString::from).collect();
    };
    processes
        .flatten()
        .filter(|process| parent(&process.path()) == Some(pid))
        .map(|process| process.file_name())
        .collect()
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
