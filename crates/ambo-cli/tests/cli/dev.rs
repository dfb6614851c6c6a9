//! `ambo dev`: starts, serves, and leaves nothing running, however it ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use serde_json::Value;

use crate::harness::{Database, Ended, Sql, command};

/// A directory of a project; goes with the value.
struct Project(PathBuf);

impl Project {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ambo-cli-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().canonicalize().expect("a temporary directory").join(name);
        fs::create_dir_all(&path).expect("a directory");
        Project(path)
    }

    /// `ambo` typed in this directory.
    fn ambo(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.current_dir(&self.0);
        command
    }

    /// Waits until no process has anything to do with the directory.
    fn await_silence(&self) {
        let name = self.0.to_string_lossy().into_owned();
        await_that("no process knows the directory", || {
            let all = Command::new("ps").args(["-eo", "args="]).output().expect("ps").stdout;
            !String::from_utf8_lossy(&all).lines().any(|line| line.contains(&name))
        });
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running `ambo dev` that has printed its URL.
struct Dev {
    child: Child,
    url: String,
}

impl Dev {
    fn start(project: &Project) -> Self {
        let mut dev = project.ambo(&["dev"]);
        let mut child = dev.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ambo starts");
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut url).expect("stdout");
        if url.is_empty() {
            let mut said = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut said);
            panic!("`ambo dev` printed no URL: {said}");
        }
        Dev { child, url: url.trim().to_owned() }
    }

    /// Sends a signal and waits for the end; answers with the exit status and what was said.
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        kill(signal, self.child.id());
        let mut said = String::new();
        let _ = self.child.stderr.take().expect("piped").read_to_string(&mut said);
        (self.child.wait().expect("ended").code(), said)
    }
}

#[test]
fn it_serves_until_it_is_told_to_stop_and_keeps_the_data() {
    let project = Project::new();
    let dev = Dev::start(&project);
    let url = dev.url.clone();
    assert!(url.starts_with("postgres://postgres@127.0.0.1:"), "{url}");
    Sql::connect(&url).run("create table kept (n integer); insert into kept values (7)");
    // Other commands find it by themselves, here and nowhere else.
    Ended::of(&mut project.ambo(&["run", "enqueue", "fulfil"]), "").done();
    let elsewhere = Project::new();
    Ended::of(&mut elsewhere.ambo(&["run", "list"]), "").failed(2);
    let (code, said) = dev.end("TERM");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("schema ambo: installed, version 1") && said.contains("stopped; the data stays"),
        "{said}"
    );
    project.await_silence();
    Ended::of(&mut project.ambo(&["run", "list"]), "").failed(2);
    assert!(!project.0.join(".ambo/url").exists());

    let again = Dev::start(&project);
    assert_eq!(again.url, url, "the port stays");
    assert_eq!(Sql::connect(&again.url).text("select n from kept"), "7");
    assert!(Ended::of(&mut project.ambo(&["run", "list"]), "").done().contains("fulfil"));
    let (code, said) = again.end("INT");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("version 1 already"), "{said}");
    project.await_silence();
}

#[test]
fn a_healthy_installation_has_nothing_to_complain_of() {
    let project = Project::new();
    let dev = Dev::start(&project);
    Sql::connect(&dev.url).run(
        "select ambo.register_worker('host-1', '1', 1, '{default}', '{fulfil}', false);
         select ambo.enqueue_workflow('fulfil', '{}');
         select ambo.heartbeat(1, 0, false);
         update ambo.heartbeat set at = at + interval '1 hour';
         update ambo.keeper set renewed_at = now() + interval '1 hour';",
    );
    let doctor = Ended::of(&mut project.ambo(&["doctor"]), "");
    assert_eq!((doctor.code, doctor.stderr.as_str()), (0, "all is well\n"), "{doctor:?}");
    assert!(doctor.stdout.lines().all(|line| line.starts_with("ok ")), "{doctor:?}");
    let json = Ended::of(&mut project.ambo(&["doctor", "--json"]), "").done();
    let report: Value = serde_json::from_str(&json).expect("a report");
    assert_eq!(report["status"], "ok");
    dev.end("TERM");
}

#[test]
fn nothing_is_left_running_when_it_is_killed() {
    let project = Project::new();
    let dev = Dev::start(&project);
    let url = dev.url.clone();
    dev.end("KILL");
    project.await_silence();
    // The URL that it left is not believed.
    Ended::of(&mut project.ambo(&["run", "list"]), "").failed(2);
    // Killed and started at once: the new one waits for the old server to go.
    Dev::start(&project).end("KILL");
    let dev = Dev::start(&project);
    assert_eq!(dev.url, url);
    dev.end("TERM");
    project.await_silence();
}

#[test]
fn nothing_is_left_running_when_it_is_stopped_while_it_starts() {
    for (signal, delay_ms) in [("TERM", 30), ("KILL", 120), ("TERM", 300), ("KILL", 600)] {
        let project = Project::new();
        let mut dev = project.ambo(&["dev"]);
        let mut child = dev.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("ambo starts");
        // The moment is what is tested here; nothing tells of it.
        thread::sleep(Duration::from_millis(delay_ms));
        kill(signal, child.id());
        child.wait().expect("ended");
        project.await_silence();
        // And what it left can be taken up.
        assert_eq!(Dev::start(&project).end("TERM").0, Some(0));
        project.await_silence();
    }
}

#[test]
fn a_command_finds_the_database_and_its_end_is_the_end() {
    let project = Project::new();
    let ambo = env!("CARGO_BIN_EXE_ambo");
    let script = format!("'{ambo}' run enqueue fulfil && echo \"$DATABASE_URL\"; exit 7");
    let ended = Ended::of(&mut project.ambo(&["dev", "--", "sh", "-c", &script]), "");
    assert_eq!(ended.code, 7, "{ended:?}");
    let url = ended.stdout.lines().nth(1).unwrap_or_default();
    assert!(url.starts_with("postgres://postgres@127.0.0.1:"), "{ended:?}");
    project.await_silence();
    let missing = Ended::of(&mut project.ambo(&["dev", "--", "no-such-program"]), "");
    assert!(missing.failed(1).contains("cannot run `no-such-program`"));
    project.await_silence();
}

#[test]
fn a_command_does_not_outlive_it() {
    for signal in ["TERM", "KILL"] {
        let project = Project::new();
        let name = project.0.join("forever").to_string_lossy().into_owned();
        let script = "echo ready; while :; do sleep 0.1; done";
        let mut dev = project.ambo(&["dev", "--", "sh", "-c", script, &name]);
        let mut child = dev.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("ambo starts");
        let mut ready = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut ready).expect("stdout");
        assert_eq!(ready, "ready\n");
        kill(signal, child.id());
        let code = child.wait().expect("ended").code();
        assert_eq!(code, (signal == "TERM").then_some(128 + 15));
        project.await_silence();
    }
}

#[test]
fn a_second_one_uses_the_first() {
    let project = Project::new();
    let dev = Dev::start(&project);
    let ended = Ended::of(&mut project.ambo(&["dev", "--", "sh", "-c", "echo $DATABASE_URL"]), "");
    assert!(ended.stderr.contains("runs here already"), "{ended:?}");
    assert_eq!(ended.done().trim(), dev.url);
    // It is still there.
    assert_eq!(Sql::connect(&dev.url).text("select 1"), "1");
    dev.end("TERM");
}

#[test]
fn a_port_that_is_taken_is_said_to_be() {
    let project = Project::new();
    // A log of before, in which the reason would not be found.
    assert_eq!(Dev::start(&project).end("TERM").0, Some(0));
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = other.local_addr().expect("an address").port().to_string();
    let ended = Ended::of(&mut project.ambo(&["dev", "--port", &port]), "");
    let said = ended.failed(1);
    assert!(said.contains(&format!("port {port} of 127.0.0.1 is taken")), "{said}");
    assert!(!said.contains("LOG:"), "{said}");
    project.await_silence();
}

#[test]
fn a_url_file_that_is_none_is_named() {
    let project = Project::new();
    let home = project.0.join(".ambo");
    fs::create_dir(&home).expect("a directory");
    let lock = fs::File::create(home.join("lock")).expect("a file");
    lock.lock().expect("the lock of a running `ambo dev`");
    for garbage in ["", "garbage", "postgres://[::1"] {
        fs::write(home.join("url"), garbage).expect("a file");
        let ended = Ended::of(&mut project.ambo(&["run", "list"]), "");
        let said = ended.failed(1);
        assert!(said.contains(".ambo/url holds no URL") && !said.contains("DATABASE_URL"), "{said}");
    }
}

#[test]
fn a_database_that_is_named_is_used_instead() {
    let project = Project::new();
    let db = Database::empty();
    let mut dev = project.ambo(&["dev"]);
    let ended = Ended::of(dev.env("DATABASE_URL", &db.url), "");
    assert!(ended.stderr.contains("DATABASE_URL is set") && ended.stderr.contains("installed"), "{ended:?}");
    ended.done();
    assert!(!project.0.join(".ambo").exists());
    db.ambo(&["run", "list"]).done();
}

#[test]
fn the_directory_keeps_itself_out_of_repositories() {
    let project = Project::new();
    let dev = Dev::start(&project);
    let home = Path::new(&project.0).join(".ambo");
    assert_eq!(fs::read_to_string(home.join(".gitignore")).expect("a file"), "*\n");
    assert_eq!(fs::read_to_string(home.join("url")).expect("a file").trim(), dev.url);
    dev.end("TERM");
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("/bin/sh").args(["-c", "kill -s $0 $1", signal, &pid.to_string()]).status();
    assert!(status.expect("sh").success());
}

fn await_that(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done() {
        assert!(Instant::now() < deadline, "waited two minutes until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
