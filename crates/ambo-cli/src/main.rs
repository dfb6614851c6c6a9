//! The binary `ambo`: reads the command line, runs one command, and turns its end into an exit status.

mod args;
mod command;
mod database;
mod dev_home;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Arguments;
use crate::output::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.global.json);
    // The library's own log is for whoever looks for a fault: RUST_LOG=ambo=debug.
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(output, &error.into()),
    };
    let ended = runtime.block_on(command::run(arguments, output));
    // Nothing is waited for: what still starts or connects when a command has ended is not wanted any more.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| failure::report(output, &error))
}
