//! The examples run to their ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::empty_database;

/// Those that run by themselves, on a database of their own. The others need tables or another program.
const NAMES: &[&str] = &[
    "attributes",
    "branch",
    "child",
    "compensate",
    "continue_as_new",
    "debounce",
    "event",
    "gather",
    "graph",
    "join",
    "map",
    "mend",
    "patched",
    "retry",
    "schedule",
    "select",
    "signal",
    "sleep",
    "testing",
    "time_limit",
    "update",
    "vault",
];

#[tokio::test]
async fn every_example_runs_to_its_end() {
    let binaries = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples");
    for names in NAMES.chunks(4) {
        let running = names.iter().map(|name| run(&binaries, name));
        futures_util::future::join_all(running).await;
    }
}

async fn run(binaries: &Path, name: &str) {
    let (url, _) = empty_database().await;
    let mut command = tokio::process::Command::new(binaries.join(name));
    command.env("DATABASE_URL", url).stdin(Stdio::null()).kill_on_drop(true);
    let limit = Duration::from_secs(60);
    let ended =
        tokio::time::timeout(limit, command.output()).await.unwrap_or_else(|_| panic!("{name} hangs"));
    let ended = ended.unwrap_or_else(|error| panic!("{name}: {error}; examples are built with the tests"));
    assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
    assert!(!ended.stdout.is_empty(), "{name} says nothing");
}

#[test]
fn an_example_is_short() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for file in std::fs::read_dir(sources).unwrap() {
        let path = file.unwrap().path();
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 80, "{} has {lines} lines", path.display());
    }
}
