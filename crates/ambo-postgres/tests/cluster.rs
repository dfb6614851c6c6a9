//! What a cluster does while its owner lives: starts, answers, stops, crashes, comes back, goes.

use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use ambo_postgres::{Cluster, Place, Shutdown};

fn value(cluster: &Cluster, sql: &str) -> String {
    cluster.query("postgres", sql).unwrap()[0][0].clone().unwrap()
}

#[test]
fn a_temporary_cluster_answers_and_goes_with_its_directory() {
    let cluster = Cluster::builder()
        .temporary(Place::Memory)
        .max_connections(37)
        .setting("work_mem", "5MB")
        .start()
        .unwrap();
    let (pid, home) = (cluster.pid().unwrap(), cluster.data_dir().parent().unwrap().to_owned());
    assert_eq!(value(&cluster, "show max_connections"), "37");
    assert_eq!(value(&cluster, "show work_mem"), "5MB");
    assert_eq!(value(&cluster, "show fsync"), "off");
    assert_eq!(value(&cluster, "show synchronous_commit"), "on");
    assert_eq!(cluster.url("shop"), format!("postgres://postgres@127.0.0.1:{}/shop", cluster.port()));
    TcpStream::connect(("127.0.0.1", cluster.port())).unwrap();
    cluster.create_database("sh\"op").unwrap();
    cluster.create_database("sh\"op").unwrap();
    let rows = cluster.query("sh\"op", "select current_database(), null; select 2").unwrap();
    assert_eq!(rows, [vec![Some("sh\"op".into()), None], vec![Some("2".into())]]);
    let error = cluster.query("postgres", "select 1/0").unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"));
    drop(cluster);
    assert!(!home.exists());
    assert!(!is_alive(pid));
}

#[test]
fn a_standby_follows_its_primary_and_takes_over() {
    let primary = Cluster::builder().start().unwrap();
    if !primary.binaries().directory().join("pg_basebackup").exists() {
        eprintln!("skipped: this distribution has no pg_basebackup");
        return;
    }
    primary.query("postgres", "create table entry as select 1 as id").unwrap();
    let standby = Cluster::builder().standby_of(&primary).start().unwrap();
    assert_eq!(value(&standby, "select pg_is_in_recovery() and count(*) = 1 from entry"), "t");
    primary.query("postgres", "alter system set synchronous_standby_names = 'standby'").unwrap();
    primary.query("postgres", "select pg_reload_conf()").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while value(&primary, "select count(*) from pg_stat_replication where sync_state = 'sync'") != "1" {
        assert!(Instant::now() < deadline, "the standby is not synchronous");
        thread::sleep(Duration::from_millis(20));
    }
    primary.query("postgres", "insert into entry values (2)").unwrap();
    primary.kill().unwrap();
    standby.promote().unwrap();
    standby.promote().unwrap();
    standby.query("postgres", "insert into entry values (3)").unwrap();
    standby.restart(Shutdown::Fast).unwrap();
    assert_eq!(value(&standby, "select sum(id) from entry"), "6");
}

#[test]
fn the_write_ahead_log_is_kept_on_a_volume_of_its_own() {
    let volume = env::temp_dir().join(format!("ambo-wal-{}", process::id()));
    fs::create_dir_all(&volume).unwrap();
    // The server's user must be able to go there.
    fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let cluster = Cluster::builder().wal_volume(&volume).start().unwrap();
    let kept = fs::read_dir(&volume).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_link(cluster.data_dir().join("pg_wal")).unwrap(), kept.canonicalize().unwrap());
    assert_eq!(value(&cluster, "show wal_segment_size"), "1MB");
    drop(cluster);
    fs::remove_dir_all(&volume).unwrap();
}

#[test]
fn committed_data_survives_a_crash_and_every_kind_of_stop() {
    let cluster = Cluster::builder().start().unwrap();
    let port = cluster.port();
    cluster.query("postgres", "create table entry (id int)").unwrap();
    cluster.query("postgres", "insert into entry values (1)").unwrap();
    cluster.kill().unwrap();
    assert_eq!(cluster.pid(), None);
    cluster.query("postgres", "select 1").unwrap_err();
    cluster.start().unwrap();
    cluster.start().unwrap();
    for how in [Shutdown::Smart, Shutdown::Fast, Shutdown::Immediate] {
        cluster.query("postgres", "insert into entry select count(*) + 1 from entry").unwrap();
        let before = cluster.pid();
        cluster.restart(how).unwrap();
        assert_ne!(cluster.pid(), before);
    }
    cluster.stop(Shutdown::Fast).unwrap();
    cluster.stop(Shutdown::Fast).unwrap();
    cluster.start().unwrap();
    assert_eq!(value(&cluster, "select string_agg(id::text, ' ' order by id) from entry"), "1 2 3 4");
    assert_eq!(cluster.port(), port);
    let home = cluster.data_dir().parent().unwrap().to_owned();
    cluster.kill().unwrap();
    drop(cluster);
    assert!(!home.exists());
}

#[test]
fn a_killed_server_takes_its_backends_along() {
    let cluster = Cluster::builder().start().unwrap();
    let backends: Vec<u32> = thread::scope(|scope| {
        let busy = scope.spawn(|| cluster.query("postgres", "select pg_sleep(60)"));
        let backends = loop {
            let rows = cluster
                .query("postgres", "select pid from pg_stat_activity where wait_event = 'PgSleep'")
                .unwrap();
            if !rows.is_empty() {
                break rows.iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect();
            }
        };
        cluster.kill().unwrap();
        busy.join().unwrap().unwrap_err();
        backends
    });
    await_that("the backends are gone", || backends.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn kept_data_is_taken_up_again_without_tcp_too() {
    let root = Path::new("/tmp").join(format!("ambo kept {}", process::id()));
    let directory = root
        .join("a directory whose path is far too long for the address of a socket, as some are")
        .join("db");
    let first = Cluster::builder().data_dir(&directory).start().unwrap();
    assert_eq!(value(&first, "show fsync"), "on");
    first.query("postgres", "create table kept as select 7 as id").unwrap();
    drop(first);
    assert!(directory.join("data/PG_VERSION").exists());
    let second = Cluster::builder().data_dir(&directory).tcp(false).start().unwrap();
    assert_eq!(value(&second, "select id from kept"), "7");
    assert_eq!(value(&second, "show listen_addresses"), "");
    assert!(second.url("x").contains("?host=%2F"));
    let taken = Cluster::builder().data_dir(&directory).port(second.port()).start().unwrap_err();
    assert!(taken.to_string().contains("already exists"), "{taken}");
    assert_eq!(value(&second, "select id from kept"), "7");
    let run = second.socket_dir().to_owned();
    drop(second);
    assert!(!run.exists());
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn a_server_that_refuses_to_start_says_why_and_leaves_nothing() {
    let place = env::temp_dir().join(format!("ambo-refused-{}", process::id()));
    let builder = Cluster::builder().temporary(Place::In(place.clone()));
    let error = builder.setting("shared_buffers", "nonsense").start().unwrap_err();
    assert!(error.to_string().contains("invalid value for parameter \"shared_buffers\""), "{error}");
    let left = walk(&place);
    assert!(left.iter().all(|path| !path.ends_with("data")), "{left:?}");
    fs::remove_dir_all(place).unwrap();
}

fn walk(path: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.flat_map(|entry| [walk(&entry.path()), vec![entry.path()]].concat()).collect()
}

/// A zombie is gone: whoever is its parent now may never ask for its status.
fn is_alive(pid: u32) -> bool {
    let state =
        process::Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap().stdout;
    !(state.is_empty() || state.starts_with(b"Z"))
}

fn await_that(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited 20 s until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
