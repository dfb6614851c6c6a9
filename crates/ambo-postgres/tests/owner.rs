//! What happens when a cluster's owner is killed, and when the parent of a worker process is.
//!
//! The test program starts itself again as the owner: the tests named `as_...` do something only then.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use ambo_postgres::{Cluster, Place};

/// Names the file that the owner writes to when it is ready: a process id a line, then a directory.
const REPORT: &str = "AMBO_TEST_OWNER_REPORT";

#[test]
fn a_server_and_its_data_go_when_the_owner_is_killed() {
    for (role, how) in [("as_owner", "KILL"), ("as_owner", "INT"), ("as_owner_of_fallen_server", "KILL")] {
        let (mut owner, report) = start(role);
        let lines = await_report(&report);
        let (pid, home) = (&lines[0], Path::new(&lines[1]));
        assert!(home.exists());
        assert!(role != "as_owner" || is_alive(pid));
        signal(how, owner.id());
        owner.wait().unwrap();
        await_that("the server and its directory are gone", || !is_alive(pid) && !home.exists());
        fs::remove_file(report).unwrap();
    }
}

#[test]
fn nothing_is_left_when_the_owner_is_killed_while_it_starts_a_server() {
    for delay_ms in [20, 60, 120, 250, 400, 500, 550, 600, 650] {
        let place = env::temp_dir().join(format!("ambo-early-{}-{delay_ms}", process::id()));
        fs::create_dir_all(&place).unwrap();
        let mut owner = owner("as_early_owner", &place);
        thread::sleep(Duration::from_millis(delay_ms));
        owner.kill().unwrap();
        owner.wait().unwrap();
        let name = place.to_string_lossy().into_owned();
        await_that("no process knows the directory", || {
            let all = Command::new("ps").args(["-eo", "args="]).output().unwrap().stdout;
            !String::from_utf8_lossy(&all).lines().any(|line| line.contains(&name))
        });
        await_that("the data is gone", || !contains_data(&place));
        fs::remove_dir_all(place).unwrap();
    }
}

#[test]
fn a_worker_exits_with_its_parent() {
    let (mut parent, report) = start("as_parent");
    let worker = await_report(&report).remove(0);
    assert!(is_alive(&worker));
    parent.kill().unwrap();
    parent.wait().unwrap();
    await_that("the worker is gone", || !is_alive(&worker));
    fs::remove_file(report).unwrap();
}

#[test]
fn as_owner() {
    let Some(report) = env::var_os(REPORT) else { return };
    let cluster = Cluster::builder().temporary(Place::Memory).start().unwrap();
    cluster.create_database("x").unwrap();
    tell(&report, &[cluster.pid().unwrap().to_string(), home(&cluster)]);
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn as_owner_of_fallen_server() {
    let Some(report) = env::var_os(REPORT) else { return };
    let cluster = Cluster::builder().temporary(Place::Memory).start().unwrap();
    let pid = cluster.pid().unwrap();
    cluster.kill().unwrap();
    tell(&report, &[pid.to_string(), home(&cluster)]);
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn as_early_owner() {
    let Some(place) = env::var_os(REPORT) else { return };
    let cluster = Cluster::builder().temporary(Place::In(place.into())).start().unwrap();
    thread::sleep(Duration::from_secs(60));
    drop(cluster);
}

#[test]
fn as_parent() {
    let Some(report) = env::var_os(REPORT) else { return };
    let mut worker = owner("as_worker", Path::new("unused"));
    // Kept apart from the child, whose `wait` would close it.
    let _lifeline = worker.stdin.take();
    tell(&report, &[worker.id().to_string()]);
    worker.wait().unwrap();
}

#[test]
fn as_worker() {
    if env::var_os(REPORT).is_some() {
        ambo_postgres::exit_with_parent();
        thread::sleep(Duration::from_secs(60));
    }
}

fn start(role: &str) -> (Child, PathBuf) {
    let report = env::temp_dir().join(format!("ambo-report-{}-{role}", process::id()));
    let _ = fs::remove_file(&report);
    (owner(role, &report), report)
}

fn owner(role: &str, report: &Path) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", role, "--nocapture"]).env(REPORT, report);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn home(cluster: &Cluster) -> String {
    cluster.data_dir().parent().unwrap().display().to_string()
}

fn tell(report: &std::ffi::OsStr, lines: &[String]) {
    let unfinished = PathBuf::from(report).with_extension("unfinished");
    fs::write(&unfinished, lines.join("\n")).unwrap();
    fs::rename(unfinished, report).unwrap();
}

fn await_report(report: &Path) -> Vec<String> {
    await_that("the owner reports", || report.exists());
    fs::read_to_string(report).unwrap().lines().map(str::to_owned).collect()
}

fn contains_data(path: &Path) -> bool {
    let mut entries = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.any(|path| path.ends_with("data") || path.ends_with("server.log") || contains_data(&path))
}

fn signal(name: &str, pid: u32) {
    let status = Command::new("/bin/sh").args(["-c", "kill -s $0 $1", name, &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// A zombie is gone: whoever is its parent now may never ask for its status.
fn is_alive(pid: &str) -> bool {
    let state = Command::new("ps").args(["-o", "stat=", "-p", pid]).output().unwrap().stdout;
    !(state.is_empty() || state.starts_with(b"Z"))
}

fn await_that(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited 20 s until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
