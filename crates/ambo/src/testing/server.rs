//! The server of a test program, and a database of it for each test.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use ambo_postgres::{Cluster, Place};

use crate::client::Client;
use crate::error::{Error, Result};

/// Where a server is, if there is one already: the address of a database from which others can be made.
const URL: &str = "AMBO_TEST_URL";

/// The address of a database, which is dropped with the value.
pub struct DatabaseUrl {
    url: String,
    name: String,
    server: String,
}

impl Deref for DatabaseUrl {
    type Target = str;

    fn deref(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DatabaseUrl").field(&self.name).finish()
    }
}

/// The server: started by the first who asks, stopped at the end of the program, whatever ends it.
fn server() -> Result<String> {
    static SERVER: OnceLock<(String, Option<Cluster>)> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((url, _)) = SERVER.get() {
        return Ok(url.clone());
    }
    let server = match std::env::var(URL) {
        Ok(url) if !url.is_empty() => (url, None),
        _ => {
            let cluster =
                Cluster::builder().temporary(Place::Memory).durable(false).start().map_err(Error::other)?;
            (cluster.url("postgres"), Some(cluster))
        }
    };
    Ok(SERVER.get_or_init(|| server).0.clone())
}

/// Makes an empty database on the server of the test program, for tests that do not want a whole [`Testbed`](super::Testbed).
///
/// # Errors
/// If there is no PostgreSQL to start, or it cannot be reached.
pub async fn create_database() -> Result<DatabaseUrl> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = tokio::task::spawn_blocking(server).await.map_err(Error::other)??;
    let name = format!("ambo_test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let session = Client::connect_unchecked(&server, "ambo").await?.session().await?;
    session.batch(&format!("drop database if exists {name}")).await?;
    session.batch(&format!("create database {name}")).await?;
    let (base, options) =
        server.split_once('?').map_or((&*server, None), |(base, options)| (base, Some(options)));
    let base = base.rsplit_once('/').map_or(base, |(base, _)| base);
    let url = match options {
        Some(options) => format!("{base}/{name}?{options}"),
        None => format!("{base}/{name}"),
    };
    Ok(DatabaseUrl { url, name, server })
}

impl Drop for DatabaseUrl {
    fn drop(&mut self) {
        // The server goes with the program; what matters until then is the room in memory.
        let (name, server) = (std::mem::take(&mut self.name), std::mem::take(&mut self.server));
        let dropping = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
                return;
            };
            let _ = runtime.block_on(async {
                let session = Client::connect_unchecked(&server, "ambo").await?.session().await?;
                session.batch(&format!("drop database if exists {name} with (force)")).await
            });
        });
        let _ = dropping.join();
    }
}
