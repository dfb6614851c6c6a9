//! `ambo dev`: a private PostgreSQL for development, with Ambo in it, for as long as this command runs.

mod child;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ambo_postgres::{Binaries, Cluster, Shutdown, default_cache};
use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Dev, Global};
use crate::command::migrate;
use crate::database::Database;
use crate::dev_home::{DevHome, Lock};
use crate::failure::Failure;
use crate::output::Output;

/// The name of the database.
const NAME: &str = "ambo";
/// How often it is looked whether the server still runs.
const LOOK: Duration = Duration::from_millis(500);
/// How often something is looked at that is to happen soon.
const SOON: Duration = Duration::from_millis(50);
/// How long a server of before may take to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// `ambo dev`
pub(crate) async fn dev(wanted: &Dev, global: &Global, output: Output) -> Result<ExitCode> {
    let mut stop = Stop::new()?;
    if let Some(database) = Database::named(global) {
        output.say(&format!("DATABASE_URL is set: using {}, starting no server", database.place()));
        migrate(&database, output).await?;
        return borrowed(wanted, &database, &mut stop, output).await;
    }
    let home = DevHome::new(&global.dir);
    home.prepare(|line| output.say(line))?;
    let lock = tokio::select! {
        taken = take(&home) => taken?,
        _ = stop.asked() => return Err(stopped_early().into()),
    };
    let lock = match lock {
        Taken::Ours(lock) => lock,
        Taken::Served(url) => {
            let database = Database::at(url, global);
            output.say(&format!("`ambo dev` runs here already: {}", database.place()));
            migrate(&database, output).await?;
            return borrowed(wanted, &database, &mut stop, output).await;
        }
    };

    let port = wanted.port;
    let starting = tokio::task::spawn_blocking({
        let home = home.clone();
        move || start(&home, port, output)
    });
    let cluster = tokio::select! {
        cluster = starting => cluster.context("the start of the server was abandoned")??,
        // What has been started so far ends with this process.
        _ = stop.asked() => return Err(stopped_early().into()),
    };
    let database = Database::at(cluster.url(NAME), global);
    let served = tokio::select! {
        served = serve(wanted, &database, &cluster, &home, output) => served,
        _ = stop.asked() => Err(stopped_early().into()),
    };
    let ended = match served {
        Ok(()) => attend(wanted, &database, &cluster, &mut stop, output).await,
        Err(error) => Err(error),
    };
    home.withdraw();
    let stopped = tokio::task::spawn_blocking(move || cluster.stop(Shutdown::Fast)).await;
    drop(lock);
    let code = ended?;
    stopped.context("the stop of the server was abandoned")??;
    output.say(&format!("stopped; the data stays in {}", home.path().display()));
    Ok(code)
}

/// Who serves the directory.
enum Taken {
    /// We shall.
    Ours(Lock),
    /// Another `ambo dev`, at this URL.
    Served(String),
}

/// Takes the directory, or waits until the other one that has it serves.
async fn take(home: &DevHome) -> Result<Taken> {
    let mut look = tokio::time::interval(SOON);
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        look.tick().await;
        if let Some(lock) = home.take()? {
            return Ok(Taken::Ours(lock));
        }
        if let Some(url) = home.running()? {
            return Ok(Taken::Served(url));
        }
        if Instant::now() > deadline {
            let message =
                format!("another `ambo dev` holds {} and does not get ready", home.path().display());
            return Err(Failure::failed(message, "stop it, or name another place with --dir").into());
        }
    }
}

/// Uses a database that is there without us: only a command is left to be run.
async fn borrowed(wanted: &Dev, database: &Database, stop: &mut Stop, output: Output) -> Result<ExitCode> {
    if !wanted.command.is_empty() {
        return child::run(&wanted.command, database.url(), stop, output).await;
    }
    if output.is_json {
        output.json(&json!({ "database": database.place(), "schema": database.schema() }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prepares the directory and starts the server; blocks.
fn start(home: &DevHome, port: Option<u16>, output: Output) -> Result<Cluster> {
    let say = |line: &str| output.say(line);
    let binaries = match home.data_version() {
        None => Binaries::find_or_fetch(&default_cache(), say)?,
        // Data is read by the version that made it.
        Some(major) => match Binaries::find() {
            Ok(found) if found.major() == major => found,
            _ => Binaries::for_version(major, &default_cache(), say)?,
        },
    };
    let deadline = Instant::now() + PATIENCE;
    // The server of an `ambo dev` that was killed a moment ago may still be stopping: its port is worth the wait.
    while home.server_lives() && Instant::now() < deadline {
        std::thread::sleep(SOON);
    }
    // The server would say so in its log, below what it said before.
    if let Some(port) = port.filter(|port| is_taken(*port)) {
        let message = format!("port {port} of 127.0.0.1 is taken by another program");
        return Err(Failure::failed(
            message,
            "name another one, or none: without --port it takes one that is free",
        )
        .into());
    }
    loop {
        let mut builder = Cluster::builder().binaries(binaries.clone()).data_dir(home.path());
        if let Some(port) = port.or_else(|| home.last_port().filter(|port| is_free(*port))) {
            builder = builder.port(port);
        }
        match builder.start() {
            // It has not quite gone.
            Err(error) if error.to_string().contains("postmaster.pid") && Instant::now() < deadline => {
                std::thread::sleep(SOON);
            }
            Err(error) => return Err(error).context("cannot start PostgreSQL"),
            Ok(cluster) => {
                let (version, port) = (cluster.binaries().version(), cluster.port());
                output
                    .say(&format!("PostgreSQL {version} on port {port}, data in {}", home.path().display()));
                return Ok(cluster);
            }
        }
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Not whether it may be used: one that we have no right to is free, and the server says what it lacks.
fn is_taken(port: u16) -> bool {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    bound.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
}

/// Makes the database, migrates it and says where it is.
async fn serve(
    wanted: &Dev,
    database: &Database,
    cluster: &Cluster,
    home: &DevHome,
    output: Output,
) -> Result<()> {
    cluster.create_database(NAME)?;
    migrate(database, output).await?;
    let url = database.url();
    home.announce(url).with_context(|| format!("cannot write to {}", home.path().display()))?;
    // With a command, stdout is the command's.
    if !wanted.command.is_empty() {
        output.say(url);
    } else if output.is_json {
        output.json(&json!({ "url": url, "schema": database.schema() }))?;
    } else {
        output.line(url)?;
        output.say("runs until Ctrl-C; other commands typed here find it by themselves");
    }
    Ok(())
}

async fn migrate(database: &Database, output: Output) -> Result<()> {
    let client = database.connect_unchecked().await?;
    output.say(&migrate::apply(&client, database).await?.sentence());
    Ok(())
}

/// Waits for the end: of the command, of our time, or of the server.
async fn attend(
    wanted: &Dev,
    database: &Database,
    cluster: &Cluster,
    stop: &mut Stop,
    output: Output,
) -> Result<ExitCode> {
    if !wanted.command.is_empty() {
        return child::run(&wanted.command, database.url(), stop, output).await;
    }
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = stop.asked() => return Ok(ExitCode::SUCCESS),
            _ = look.tick() => {
                if cluster.pid().is_none() {
                    return Err(Failure::failed(
                        "PostgreSQL ended by itself",
                        format!("its log says why: {}", cluster.log().display()),
                    )
                    .into());
                }
            }
        }
    }
}

fn stopped_early() -> Failure {
    Failure { message: "stopped before the server was ready".to_owned(), advice: None, status: 1 }
}

/// The signals that ask us to end.
#[derive(Debug)]
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Stop {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    /// Waits for any of them.
    async fn asked(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
            _ = self.hangup.recv() => Asked::Terminate,
        }
    }
}

/// How we were asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// By Ctrl-C, which reaches a command too.
    Interrupt,
    /// By a signal to us alone.
    Terminate,
}
