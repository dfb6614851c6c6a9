//! Behind a transaction pooler: a real one, where it is installed.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ambo::{Client, Ctx, Enqueue, Error, Result, Untyped, Worker};
use ambo_postgres::{Cluster, Place, Pooler};

use crate::harness::database_at;
use crate::proxy::Proxy;

/// A folder that every user can enter, gone with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = std::env::temp_dir().join(format!("ambo-pooled-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("its mode");
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn noop(client: &Client) {
    let run = ambo::enqueue_all(client, [Enqueue::named("noop", &())]).await.unwrap()[0].run;
    let handle = client.handle::<Untyped>(run);
    let result = tokio::time::timeout(Duration::from_secs(20), handle.result_as::<i64, Error>()).await;
    assert_eq!(result.expect("the run is stranded").unwrap(), 7);
}

/// Another program, which calls itself as connections of ours do, in the midst of a transaction.
async fn another(url: &str, name: &str) -> (tokio_postgres::Client, i32) {
    let mut config: tokio_postgres::Config = url.parse().unwrap();
    let (client, connection) =
        config.application_name(name).connect(tokio_postgres::NoTls).await.expect("another program");
    tokio::spawn(connection);
    client.batch_execute("begin; insert into entry default values").await.unwrap();
    let backend = client.simple_query("select pg_backend_pid()").await.unwrap();
    let backend = backend.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    (client, backend.expect("a process id"))
}

/// What a worker lost is served, one transaction each, by the backends that serve everybody: the one that it was given first may
/// be another's by now.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_connects_anew_behind_a_pooler_ends_no_backend_of_others() {
    if !Pooler::is_installed() {
        eprintln!("skipped: no pgbouncer is installed");
        return;
    }
    let start = || Cluster::builder().temporary(Place::Memory).durable(false).start().expect("a server");
    let cluster = tokio::task::spawn_blocking(start).await.unwrap();
    let db = database_at(&cluster.url("postgres")).await;
    db.sql.batch_execute("create table entry (n bigserial primary key)").await.unwrap();
    let folder = Folder::new();
    let config: tokio_postgres::Config = db.url.parse().unwrap();
    let pooler = Pooler::start(&folder.0, config.get_ports()[0]).expect("a pooler");
    let name = config.get_dbname().unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/{name}?sslmode=disable", pooler.port());
    let pooled = "select coalesce(array_agg(pid), '{}') from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend' and pid <> all ($1)";
    let direct: Vec<i32> = db.sql.query_one(pooled, &[&Vec::<i32>::new()]).await.unwrap().get(0);
    let begun = Instant::now();
    while tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the pooler does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let proxy = Proxy::before(&url).await;
    let client = Client::connect(&proxy.url).await.expect("a client");
    assert!(client.is_pooled());
    let worker =
        Worker::builder(&client).workflow_fn("noop", async |_: Ctx<'_>, (): ()| -> Result<i64> { Ok(7) });
    let worker = worker.start().await.unwrap();
    noop(&client).await;

    let mut entries = 0;
    for role in ["ambo worker claims", "ambo worker journal"] {
        // Others have all backends that the pooler had until now, whichever of them the worker was given.
        let had: Vec<i32> = db.sql.query_one(pooled, &[&direct]).await.unwrap().get(0);
        let mut others = Vec::new();
        let begun = Instant::now();
        loop {
            let has: Vec<i32> = db.sql.query_one(pooled, &[&direct]).await.unwrap().get(0);
            let is_held = |backend: &i32| others.iter().any(|(_, theirs)| theirs == backend);
            if has.iter().filter(|backend| had.contains(backend)).all(is_held) {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "of {had:?} some are not to be had");
            let (other, backend) = another(&url, role).await;
            if had.contains(&backend) {
                others.push((other, backend));
            } else {
                // The ones that are left are busy for the worker just now.
                drop(other);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        proxy.cut(role);
        noop(&client).await;
        for (other, backend) in others {
            let committed = other.batch_execute("commit").await;
            committed.unwrap_or_else(|error| panic!("another's backend {backend} was ended: {error:?}"));
            entries += 1;
        }
        assert_eq!(db.number("select count(*) from entry").await, entries);
    }
    worker.drain(Duration::ZERO).await;
}
