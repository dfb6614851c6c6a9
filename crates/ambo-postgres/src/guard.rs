//! The guard: a small shell process between us and a server, which outlives us just long enough to clean up.
//!
//! The guard holds the reading end of a pipe of which we hold the only writing end. While we live we write words
//! to it: names of signals for the server. When we end, however we end, the kernel closes the pipe; the guard then
//! stops the server and removes the temporary directories. It runs in a process group of its own, so that Ctrl-C
//! in a terminal reaches us and not the server.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::account::Account;

/// The program that the guard runs.
///
/// Two processes of the shell: the first waits for the server, the second for our words, as no shell can await both.
/// A server that has only just been started ignores the signal (shells start background commands so), hence the
/// repetition; a server that will not end within half a minute is killed. `ended` says that the server's id is free
/// for others and must not be signalled any more.
const SCRIPT: &str = r#"
trap '' HUP INT TERM PIPE
last=$1 log=$2 remove=$3 remove_too=$4
shift 4
exec 3<&0 </dev/null
"$@" >>"$log" 2>&1 3<&- &
pid=$!
echo "pid $pid"
(
  while read -r word <&3; do
    case $word in
      keep) exit 3 ;;
      ended) pid= ;;
      *) kill -s "$word" "$pid" ;;
    esac
  done
  tries=0
  while [ -n "$pid" ] && kill -s "$last" "$pid"; do
    sleep 0.1 || sleep 1
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || last=KILL
  done
  exit 0
) 2>/dev/null &
watch=$!
exec 3<&-
wait "$pid"
echo "exit $?" 2>/dev/null
wait "$watch" || exit 0
[ -z "$remove" ] || rm -rf -- "$remove"
[ -z "$remove_too" ] || rm -rf -- "$remove_too"
"#;

/// What a guard does when we are gone.
pub(crate) struct Orders<'a> {
    /// The signal that ends the program, `QUIT` or `INT`.
    pub(crate) last: &'static str,
    /// At most two directories to remove.
    pub(crate) remove: [Option<&'a Path>; 2],
    /// Where the program's output is appended.
    pub(crate) log: &'a Path,
}

/// A running guard with its program. Dropping it ends the program and obeys the orders.
pub(crate) struct Guard {
    shell: Child,
    words: Words,
    exit: Arc<Exit>,
    pid: u32,
    last: &'static str,
}

/// The writing end of the pipe; shared with the thread that reads the guard's answers.
type Words = Arc<Mutex<Option<ChildStdin>>>;

#[derive(Default)]
struct Exit {
    status: Mutex<Option<i32>>,
    changed: Condvar,
}

impl Guard {
    /// Starts `program`, prepared with its arguments and environment, under a guard.
    pub(crate) fn start(account: &Account, orders: &Orders<'_>, program: &Command) -> Result<Self, Error> {
        let failed = |error| Error::io("cannot start the shell that guards PostgreSQL", error);
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT, "ambo-postgres-guard", orders.last]).arg(orders.log);
        for directory in orders.remove {
            shell.arg(directory.unwrap_or_else(|| Path::new("")));
        }
        shell.arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        // Not our current directory: the other user may not be able to enter it.
        shell
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        account.apply(&mut shell);
        let mut shell = shell.spawn().map_err(failed)?;
        let words: Words = Arc::new(Mutex::new(shell.stdin.take()));
        let mut answers = BufReader::new(shell.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        answers.read_line(&mut line).map_err(failed)?;
        let Some(pid) = line.trim().strip_prefix("pid ").and_then(|pid| pid.parse().ok()) else {
            drop(locked(&words).take());
            let _ = shell.wait();
            return Err(Error::new("the shell that guards PostgreSQL did not say what it started"));
        };
        let exit = Arc::new(Exit::default());
        let (their_words, their_exit) = (Arc::clone(&words), Arc::clone(&exit));
        thread::Builder::new()
            .name("ambo-postgres-guard".into())
            .spawn(move || listen(answers, &their_words, &their_exit))
            .map_err(failed)?;
        Ok(Self { shell, words, exit, pid, last: orders.last })
    }

    /// The process id of the program.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The program's exit status if it has ended; 128 and more for a signal.
    pub(crate) fn exited(&self) -> Option<i32> {
        *locked(&self.exit.status)
    }

    /// Sends a signal, by its name without `SIG`, to the program. One that has ended is left alone.
    pub(crate) fn signal(&self, name: &str) {
        if self.exited().is_none() {
            say(&self.words, name);
        }
    }

    /// Waits for the program to end.
    pub(crate) fn wait(&self, at_most: Duration) -> Option<i32> {
        let deadline = Instant::now() + at_most;
        let mut status = locked(&self.exit.status);
        while status.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            status = self.exit.changed.wait_timeout(status, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *status
    }

    /// Ends the guard of a program that has ended, and leaves the directories: another guard has them now.
    pub(crate) fn release(mut self) {
        say(&self.words, "keep");
        self.last = "";
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.last.is_empty() && self.exited().is_none() {
            self.signal(self.last);
            // Most servers end in a few milliseconds; one that does not is the guard's business from here.
            self.wait(Duration::from_secs(2));
        }
        drop(locked(&self.words).take());
        let _ = self.shell.wait();
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("pid", &self.pid)
            .field("exited", &self.exited())
            .finish_non_exhaustive()
    }
}

/// Reads the guard's answers until it ends.
fn listen(answers: BufReader<impl std::io::Read>, words: &Words, exit: &Exit) {
    let mut status = None;
    for line in answers.lines().map_while(Result::ok) {
        if let Some(code) = line.strip_prefix("exit ") {
            say(words, "ended");
            status = code.parse().ok();
            break;
        }
    }
    *locked(&exit.status) = Some(status.unwrap_or(-1));
    exit.changed.notify_all();
}

fn say(words: &Words, word: &str) {
    if let Some(pipe) = locked(words).as_mut() {
        // A guard that is gone has been killed by somebody; the wait for its program will tell.
        let _ = writeln!(pipe, "{word}");
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
