//! The one PostgreSQL of a benchmark: durable, on disk, the same for every competitor.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ambo_postgres::{Cluster, Place};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use tokio_postgres::Client;

use crate::database::{Database, connect, url_of};

/// What the private server is started with. All else is PostgreSQL's default.
const SETTINGS: [(&str, &str); 8] = [
    ("shared_buffers", "512MB"),
    // No checkpoint within a round: each round starts with one.
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
    // `wal` counts the worker's statements in the log.
    ("logging_collector", "on"),
    ("log_rotation_age", "0"),
    ("log_rotation_size", "0"),
    ("log_line_prefix", LOG_LINE_PREFIX),
    ("log_checkpoints", "off"),
];

/// Process and virtual transaction id in front of every line of the log.
pub const LOG_LINE_PREFIX: &str = "%p_%v_";

/// What the output states about the server.
const STATED: [&str; 10] = [
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_compression",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "max_connections",
    "autovacuum",
];

/// A running server and the superuser's connection to its `postgres` database.
#[derive(Debug)]
pub struct Server {
    /// The private server; none where the user gave a URL.
    cluster: Option<Cluster>,
    base_url: String,
    control: Client,
    settings: Map<String, Value>,
    /// Numbers the databases.
    next: AtomicU32,
}

impl Server {
    /// Takes the server at `url`, or starts a private one.
    pub async fn start(url: Option<&str>) -> Result<Server> {
        let (cluster, base_url) = match url {
            Some(url) => (None, url.to_owned()),
            None => {
                let cluster = tokio::task::spawn_blocking(start_private).await??;
                let url = cluster.url("postgres");
                (Some(cluster), url)
            }
        };
        let control = connect(&url_of(&base_url, "postgres")).await?;
        let mut settings = Map::new();
        for name in STATED {
            let value: String =
                control.query_one("select current_setting($1)", &[&name]).await?.try_get(0)?;
            settings.insert(name.to_owned(), value.into());
        }
        for name in ["fsync", "synchronous_commit"] {
            ensure!(settings[name] == "on", "{name} is off: the figures would mean nothing");
        }
        let data: String = control.query_one("show data_directory", &[]).await?.try_get(0)?;
        refuse_memory(Path::new(&data))?;
        // Whether commits wait behind a kernel that writes out all at once what was dirty for long: see `docs/guide/operate.md`.
        let kernel = std::fs::read_to_string("/proc/sys/vm/dirty_background_bytes");
        if let Ok(bytes) = kernel
            && Path::new(&data).exists()
        {
            settings.insert("vm.dirty_background_bytes".to_owned(), bytes.trim().into());
        }
        let server = Server { cluster, base_url, control, settings, next: AtomicU32::new(0) };
        server.drop_databases().await?;
        Ok(server)
    }

    /// Removes what the benchmark made.
    pub async fn stop(self) -> Result<()> {
        self.drop_databases().await?;
        match self.cluster {
            Some(cluster) => Ok(tokio::task::spawn_blocking(move || drop(cluster)).await?),
            None => Ok(()),
        }
    }

    async fn drop_databases(&self) -> Result<()> {
        let sql = r"select datname from pg_database where datname like 'ambo\_bench\_%'";
        for row in self.control.query(sql, &[]).await? {
            self.drop_database(row.try_get(0)?).await?;
        }
        Ok(())
    }

    async fn drop_database(&self, name: &str) -> Result<()> {
        let sql = format!("drop database if exists {name} with (force)");
        Ok(self.control.batch_execute(&sql).await?)
    }

    /// A database that nobody has used, and a checkpoint behind it.
    pub async fn fresh(&self) -> Result<Database> {
        self.fresh_from("template0").await
    }

    /// The same as a copy of another database.
    pub async fn fresh_from(&self, template: &str) -> Result<Database> {
        let name = format!("ambo_bench_{}", self.next.fetch_add(1, Ordering::Relaxed));
        let strategy = if template == "template0" { "wal_log" } else { "file_copy" };
        let version: i32 = self
            .control
            .query_one("select current_setting('server_version_num')::int4", &[])
            .await?
            .try_get(0)?;
        let strategy = if version >= 150_000 { format!(" strategy {strategy}") } else { String::new() };
        let sql = format!("create database {name} template {template}{strategy}");
        self.control.batch_execute(&sql).await?;
        self.control.batch_execute("checkpoint").await?;
        Ok(Database {
            url: url_of(&self.base_url, &name),
            name,
            control: connect(&url_of(&self.base_url, "postgres")).await?,
        })
    }

    /// Drops a database of [`fresh`](Self::fresh), whoever is still connected.
    pub async fn discard(&self, database: Database) -> Result<()> {
        self.drop_database(&database.name).await
    }

    /// A program that came with the server, or else one in PATH.
    pub async fn program(&self, name: &str) -> Result<PathBuf> {
        let sql = "select setting from pg_config where name = 'BINDIR'";
        let beside: String = self.control.query_one(sql, &[]).await?.try_get(0)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::iter::once(PathBuf::from(beside))
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(name))
            .find(|program| program.is_file())
            .with_context(|| format!("{name} is neither beside the server nor in PATH"))
    }

    /// What the output states about the server.
    pub fn settings(&self) -> &Map<String, Value> {
        &self.settings
    }

    /// The same as one line of text.
    pub fn settings_in_words(&self) -> String {
        let word =
            |(name, value): (&String, &Value)| format!("{name} {}", value.as_str().unwrap_or_default());
        self.settings.iter().map(word).collect::<Vec<_>>().join(", ")
    }
}

fn start_private() -> Result<Cluster> {
    let mut builder = Cluster::builder().temporary(Place::Disk).durable(true).max_connections(200);
    for (name, value) in SETTINGS {
        builder = builder.setting(name, value);
    }
    Ok(builder.start()?)
}

/// Refuses a data directory in memory: a commit there costs nothing. Seen only where `/proc/mounts` is.
fn refuse_memory(data: &Path) -> Result<()> {
    let Ok(mounts) = std::fs::read_to_string("/proc/mounts") else { return Ok(()) };
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((Path::new(fields.next()?), fields.next()?))
        })
        .filter(|(point, _)| data.starts_with(point))
        .max_by_key(|(point, _)| point.components().count());
    if let Some((_, kind @ ("tmpfs" | "ramfs"))) = kind {
        bail!("the data directory is in memory ({kind}): the figures would mean nothing");
    }
    Ok(())
}
