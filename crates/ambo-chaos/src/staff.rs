//! The worker processes: hired, killed, stopped, replaced by a newer version.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result};

/// Makes a process one of the version to come, which has another schema; the tests of upgrades use it too.
pub(crate) const NEXT_VERSION: (&str, &str) = ("AMBO_NEXT_VERSION", "1");
/// How long a worker that was told to leave may take to hand back what it has.
const LEAVE: Duration = Duration::from_secs(4);

/// All workers of a round. Dropped, they are killed.
#[derive(Debug)]
pub(crate) struct Staff {
    url: String,
    witness: SocketAddr,
    folder: PathBuf,
    /// Where the wrong time of the workers is read from, and the library that makes it so.
    clock: Option<(PathBuf, PathBuf)>,
    /// A std mutex: held for moments only.
    desks: Mutex<Desks>,
}

#[derive(Debug)]
struct Desks {
    workers: Vec<Option<Worker>>,
    version: u32,
    hired: u32,
    /// Processes that ended though nobody ended them.
    fallen: Vec<String>,
}

#[derive(Debug)]
struct Worker {
    process: Child,
    name: String,
    version: u32,
}

impl Staff {
    pub(crate) fn hire(
        count: usize,
        url: &str,
        witness: SocketAddr,
        folder: &Path,
        with_clock: bool,
    ) -> Result<Staff> {
        let clock = match faketime().filter(|_| with_clock) {
            Some(library) => {
                let file = folder.join("clock");
                fs::write(&file, "+0\n")?;
                Some((file, library))
            }
            None => None,
        };
        let workers = (0..count).map(|_| None).collect();
        let desks = Mutex::new(Desks { workers, version: 1, hired: 0, fallen: Vec::new() });
        let staff = Staff { url: url.to_owned(), witness, folder: folder.to_owned(), clock, desks };
        for desk in 0..count {
            staff.fill(desk)?;
        }
        Ok(staff)
    }

    /// Puts a worker at a desk that has none.
    pub(crate) fn fill(&self, desk: usize) -> Result<()> {
        let mut desks = self.desks();
        if desks.workers[desk].is_none() {
            desks.hired += 1;
            let (name, version) = (format!("w{}", desks.hired), desks.version);
            let process = self.start(&name, version)?;
            desks.workers[desk] = Some(Worker { process, name, version });
        }
        Ok(())
    }

    fn start(&self, name: &str, version: u32) -> Result<Child> {
        let log = File::create(self.folder.join(format!("{name}.log")))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").args([&self.url, &self.witness.to_string(), name, &version.to_string()]);
        if let Some((file, library)) = &self.clock {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", file);
            // What jumps in a real machine is the time of day.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
        }
        if version > 1 {
            command.envs([NEXT_VERSION]);
        }
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "ambo=info".into()));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        command.spawn().context("a worker does not start")
    }

    /// Sends a signal to the worker at a desk; false if there is none.
    pub(crate) fn signal(&self, desk: usize, name: &str) -> bool {
        let desks = self.desks();
        desks.workers[desk].as_ref().is_some_and(|worker| send(&worker.process, name))
    }

    /// The process at a desk.
    pub(crate) fn pid(&self, desk: usize) -> Option<u32> {
        self.desks().workers[desk].as_ref().map(|worker| worker.process.id())
    }

    /// SIGKILL; the desk is empty.
    pub(crate) fn kill(&self, desk: usize) -> bool {
        let worker = self.desks().workers[desk].take();
        worker.map(end).is_some()
    }

    /// The next workers are of this version; one of an older version is told to leave, and replaced at once.
    pub(crate) fn renew(&self, desk: usize, version: u32) -> Result<bool> {
        let old = {
            let mut desks = self.desks();
            desks.version = version;
            if desks.workers[desk].as_ref().is_some_and(|worker| worker.version >= version) {
                return Ok(false);
            }
            desks.workers[desk].take()
        };
        self.fill(desk)?;
        if let Some(mut old) = old {
            send(&old.process, "TERM");
            let told = Instant::now();
            while told.elapsed() < LEAVE && old.process.try_wait().is_ok_and(|ended| ended.is_none()) {
                thread::sleep(Duration::from_millis(20));
            }
            end(old);
        }
        Ok(true)
    }

    /// The clock of all workers jumps by so many seconds from the right time; false if it cannot.
    pub(crate) fn set_clock(&self, seconds: i64) -> bool {
        let Some((file, _)) = &self.clock else { return false };
        // Renamed into place: nobody reads half of it.
        let new = file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).and_then(|()| fs::rename(new, file)).is_ok()
    }

    /// Everybody at work: stopped ones go on, empty desks are filled. Notes who has ended by itself.
    pub(crate) fn all_at_work(&self) -> Result<()> {
        let count = {
            let mut desks = self.desks();
            let mut fallen = Vec::new();
            for desk in &mut desks.workers {
                if let Some(worker) = desk {
                    send(&worker.process, "CONT");
                    if let Ok(Some(status)) = worker.process.try_wait() {
                        fallen.push(format!("{} ended by itself: {status}", worker.name));
                        *desk = None;
                    }
                }
            }
            desks.fallen.extend(fallen);
            desks.workers.len()
        };
        (0..count).try_for_each(|desk| self.fill(desk))
    }

    pub(crate) fn fallen(&self) -> Vec<String> {
        self.desks().fallen.clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.desks().workers.len()
    }

    fn desks(&self) -> MutexGuard<'_, Desks> {
        self.desks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Staff {
    fn drop(&mut self) {
        let workers: Vec<Worker> = self.desks().workers.iter_mut().filter_map(Option::take).collect();
        workers.into_iter().for_each(end);
    }
}

/// std can only kill.
fn send(process: &Child, signal: &str) -> bool {
    let pid = process.id().to_string();
    let mut kill = Command::new("kill");
    kill.args(["-s", signal, &pid]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn end(mut worker: Worker) {
    // It may be gone already.
    let _ = worker.process.kill();
    let _ = worker.process.wait();
}

/// The library that gives a process another time, where it is installed.
pub(crate) fn faketime() -> Option<PathBuf> {
    let mut found = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| {
        let folder = entry.path();
        folder.join("faketime/libfaketimeMT.so.1")
    });
    found.find(|library| library.is_file())
}
