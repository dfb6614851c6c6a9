//! `cargo xtask`: what a developer of Ambo and the gate both type. Each command is one file beside this one.
//!
//! Results go to stdout, talk goes to stderr, and the exit code is that of the program that was run.

mod check;
mod deny;
mod pg;
mod run;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Builds, tests and measures Ambo.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs all tests against one private PostgreSQL, with cargo-nextest if it is installed.
    ///
    /// The tests find the server in `AMBO_TEST_URL`. If that is set already, and no version is asked for, they run
    /// there instead.
    Test {
        #[command(flatten)]
        postgres: Postgres,
        /// Names of tests, or options of the test runner.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// Checks formatting, lints, documentation, licences and tidiness.
    Check,
    /// Checks licences, sources and bans of the dependencies by `deny.toml`: what cargo-deny does, but for advisories.
    Deny,
    /// Checks the rules of the code base that no linter knows: heads, lengths, names, layers.
    Tidy,
    /// Builds and runs the demonstration: kills everything, loses nothing.
    Demo {
        /// Arguments of the demonstration, such as `--short`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds and runs the chaos: kills, crashes, cuts and fills everything at once, and keeps the books.
    Chaos {
        /// Its arguments, such as `--seed N`, `--seconds N` or `--rounds N`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Builds and runs a benchmark.
    Bench {
        /// The benchmark and its arguments, such as `--quick` or `--json`; none lists the benchmarks.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Starts a private PostgreSQL, prints its address, and keeps it until Ctrl-C.
    Pg {
        #[command(flatten)]
        postgres: Postgres,
        /// On disk and durable rather than in memory.
        #[arg(long)]
        disk: bool,
    },
}

/// Which PostgreSQL.
#[derive(Args, Debug)]
struct Postgres {
    /// The major version, such as 15 or 18; fetched if it is not installed. Default: what is installed.
    #[arg(long, value_name = "VERSION")]
    pg: Option<u32>,
    /// If none can be found or fetched, installs one with the machine's package tool.
    #[arg(long)]
    install: bool,
}

fn main() -> Result<ExitCode> {
    match Xtask::parse().command {
        Command::Test { postgres, filter } => test::test(&postgres, &filter),
        Command::Check => check::check(),
        Command::Deny => deny::deny().map(exit_code),
        Command::Tidy => tidy::tidy().map(exit_code),
        Command::Demo { arguments } => run::demo(&arguments),
        Command::Chaos { arguments } => run::chaos(&arguments),
        Command::Bench { arguments } => run::bench(&arguments),
        Command::Pg { postgres, disk } => pg::keep(&postgres, disk),
    }
}

fn exit_code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new(".")).to_owned()
}
