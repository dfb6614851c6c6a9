//! The commands, one file each; here the one that was typed is chosen.

mod adopt;
mod dead;
#[cfg(unix)]
mod dev;
mod doctor;
mod migrate;
mod queue;
mod replay_check;
mod retention;
mod run;
mod schedule;
mod worker;
mod workflow;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Arguments, Command};
use crate::database::Database;
use crate::output::Output;

/// Runs the command; an error is yet to be printed.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<ExitCode> {
    let global = arguments.global;
    let done = match arguments.command {
        // These do without a database, or find one themselves.
        Command::Migrate(wanted) if wanted.print => migrate::print(&global, output),
        #[cfg(unix)]
        Command::Dev(wanted) => return dev::dev(&wanted, &global, output).await,
        #[cfg(not(unix))]
        Command::Dev(_) => Err(crate::failure::Failure::failed(
            "`ambo dev` runs on Unix-like systems only",
            "start a PostgreSQL yourself and set DATABASE_URL",
        )
        .into()),
        command => {
            let database = Database::find(&global)?;
            match command {
                Command::Migrate(_) => migrate::migrate(&database, output).await,
                Command::Run(wanted) => run::run(wanted, &database, output).await,
                Command::Queue(wanted) => queue::queue(wanted, &database, output).await,
                Command::Schedule(wanted) => schedule::schedule(wanted, &database, output).await,
                Command::Dead(wanted) => dead::dead(wanted, &database, output).await,
                Command::Retention(wanted) => retention::retention(&wanted, &database, output).await,
                Command::Worker(wanted) => worker::worker(&wanted, &database, output).await,
                Command::Workflow(wanted) => workflow::workflow(&wanted, &database, output).await,
                Command::ReplayCheck(wanted) => {
                    return replay_check::replay_check(&wanted, &database, output).await;
                }
                Command::Doctor => return doctor::doctor(&database, output).await,
                Command::Adopt(wanted) => adopt::adopt(&wanted, &database, output).await,
                Command::Dev(_) => Ok(()),
            }
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}
