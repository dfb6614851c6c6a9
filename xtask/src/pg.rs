//! The private PostgreSQL of the tests, and of a developer who wants one to look at.

use std::process::ExitCode;
use std::thread;

use ambo_postgres::{Binaries, Cluster, Place, default_cache};
use anyhow::Result;

use crate::Postgres;

/// The tests run in parallel, each with a few workers of a few connections.
const CONNECTIONS: u32 = 300;

/// Starts a cluster and keeps it until this process ends.
pub(crate) fn keep(wanted: &Postgres, disk: bool) -> Result<ExitCode> {
    let cluster = start(wanted, disk)?;
    eprintln!("log: {}", cluster.log().display());
    eprintln!("stop it with Ctrl-C; its data goes with it");
    println!("{}", cluster.url("postgres"));
    loop {
        // Ctrl-C ends us without a destructor; the cluster's guard sees it.
        thread::park();
    }
}

/// Starts the cluster that is wanted, and says which.
pub(crate) fn start(wanted: &Postgres, disk: bool) -> Result<Cluster> {
    let binaries = find(wanted)?;
    let place = if disk { Place::Disk } else { Place::Memory };
    let cluster = Cluster::builder()
        .binaries(binaries)
        .temporary(place)
        .durable(disk)
        .max_connections(CONNECTIONS)
        .start()?;
    eprintln!(
        "PostgreSQL {} ({}) on port {}, data in {}",
        cluster.binaries().version(),
        cluster.binaries().directory().display(),
        cluster.port(),
        cluster.data_dir().display()
    );
    Ok(cluster)
}

fn find(wanted: &Postgres) -> Result<Binaries> {
    let say = |line: &str| eprintln!("{line}");
    let found = match wanted.pg {
        Some(major) => Binaries::for_version(major, &default_cache(), say),
        None => Binaries::find_or_fetch(&default_cache(), say),
    };
    match found {
        Err(error) if wanted.install && wanted.pg.is_none() && error.is_missing() => {
            eprintln!("{error}");
            Ok(Binaries::install(say)?)
        }
        found => Ok(found?),
    }
}
