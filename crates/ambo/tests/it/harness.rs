//! A database of its own for each test, and what tests ask of it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use ambo::Client;
use ambo_postgres::{Cluster, Place};

/// The server: the one that `cargo xtask test` started, or one of our own.
fn server() -> &'static str {
    static SERVER: OnceLock<(String, Option<Cluster>)> = OnceLock::new();
    let (url, _) = SERVER.get_or_init(|| match std::env::var("AMBO_TEST_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let cluster = Cluster::builder()
                .temporary(Place::Memory)
                .durable(false)
                .start()
                .expect("a private PostgreSQL");
            (cluster.url("postgres"), Some(cluster))
        }
    });
    url
}

/// A database with Ambo in it, dropped with the value.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) client: Client,
    /// A plain connection, for what a user or an observer would do.
    pub(crate) sql: tokio_postgres::Client,
    name: String,
    server: String,
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("connect");
    tokio::spawn(connection);
    client
}

/// An empty database, without Ambo.
pub(crate) async fn empty_database() -> (String, String) {
    empty_database_at(server()).await
}

async fn empty_database_at(server: &str) -> (String, String) {
    copy_of("template1", server).await
}

async fn copy_of(template: &str, server: &str) -> (String, String) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if std::env::var_os("AMBO_TEST_LOG").is_some() {
        let _ = tracing_subscriber::fmt().with_env_filter("ambo=debug").with_test_writer().try_init();
    }
    let name = format!("t_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let admin = connect(server).await;
    let create = format!("create database {name} template {template}");
    admin.batch_execute(&create).await.expect("create database");
    (at(server, &name), name)
}

/// The URL of another database of a server.
fn at(server: &str, database: &str) -> String {
    format!("{}/{database}", server.rsplit_once('/').expect("a URL with a database").0)
}

/// A database with Ambo installed: a copy of one, for to migrate each takes half a second.
pub(crate) async fn database() -> Database {
    let (url, name) = copy_of(&installed(server()).await, server()).await;
    let client = Client::connect_unchecked(&url, "ambo").await.expect("connect");
    client.adopt().await.expect("adopt");
    opened(url, name, client, server()).await
}

/// A database with Ambo installed, on a server of the test's own.
pub(crate) async fn database_at(server: &str) -> Database {
    let (url, name) = empty_database_at(server).await;
    let client = migrated(&url).await;
    opened(url, name, client, server).await
}

async fn migrated(url: &str) -> Client {
    let client = Client::connect_unchecked(url, "ambo").await.expect("connect");
    client.migrate().await.expect("migrate");
    client
}

async fn opened(url: String, name: String, client: Client, server: &str) -> Database {
    let sql = connect(&url).await;
    Database { url, client, sql, name, server: server.to_owned() }
}

/// The database that others are copied from, named by what is installed in it: the first test that wants it makes it.
async fn installed(server: &str) -> String {
    let mut hasher = DefaultHasher::new();
    Client::migration_script("ambo").expect("a script").hash(&mut hasher);
    let name = format!("installed_{:016x}", hasher.finish());
    let admin = connect(server).await;
    let lock = format!("select pg_advisory_lock(hashtext('{name}'))");
    admin.batch_execute(&lock).await.expect("lock");
    let exists = "select exists (select from pg_database where datname = $1)";
    if !admin.query_one(exists, &[&name]).await.expect(exists).get::<_, bool>(0) {
        let (url, unfinished) = empty_database_at(server).await;
        drop(migrated(&url).await);
        // Cuts off what the client has left behind; its new name says that it is whole.
        let close = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1";
        admin.execute(close, &[&unfinished]).await.expect(close);
        let done = format!("alter database {unfinished} rename to {name}");
        admin.batch_execute(&done).await.expect("rename");
    }
    name
}

impl Database {
    /// The first column of the first row, as a number.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.sql.query_one(sql, &[]).await.expect(sql).get(0)
    }

    /// Waits until a query answers true: the database is the signal, not time.
    pub(crate) async fn until(&self, sql: &str) {
        for _ in 0..3000 {
            if self.sql.query_one(sql, &[]).await.expect(sql).get::<_, bool>(0) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("never became true: {sql}");
    }

    /// Waits for so many heartbeats of the only worker.
    pub(crate) async fn heartbeats(&self, count: u32) {
        for _ in 0..count {
            let at = self.sql.query_one("select at::text from ambo.heartbeat", &[]).await.unwrap();
            let at: String = at.get(0);
            self.until(&format!("select at > '{at}' from ambo.heartbeat")).await;
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The server goes with its directory; what matters during a run is the room in memory.
        let (name, server) = (std::mem::take(&mut self.name), std::mem::take(&mut self.server));
        let drop = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(async {
                    let admin = connect(&server).await;
                    let _ =
                        admin.batch_execute(&format!("drop database if exists {name} with (force)")).await;
                });
            }
        });
        let _ = drop.join();
    }
}
