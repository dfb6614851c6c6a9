//! Running other programs from the root of the workspace, with their output for all to see; the demonstration, the
//! chaos and the benchmarks are no more than that.

use std::env;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result};

use crate::root;

/// The demonstration starts, and crashes, a server of its own.
pub(crate) fn demo(arguments: &[String]) -> Result<ExitCode> {
    let mut demo = cargo(&["run", "--release", "--package", "ambo-demo"]);
    demo.args(locked()).arg("--").args(arguments);
    show(&mut demo).map(forward)
}

/// The chaos starts, and crashes, servers of its own.
pub(crate) fn chaos(arguments: &[String]) -> Result<ExitCode> {
    let mut chaos = cargo(&["run", "--release", "--package", "ambo-chaos"]);
    chaos.args(locked()).arg("--").args(arguments);
    show(&mut chaos).map(forward)
}

/// The benchmarks start a server of their own too. They are a workspace of their own, as they depend on the peers.
pub(crate) fn bench(arguments: &[String]) -> Result<ExitCode> {
    let mut bench =
        cargo(&["run", "--release", "--manifest-path", "bench/Cargo.toml", "--bin", "ambo-bench"]);
    bench.args(locked()).arg("--").args(arguments);
    show(&mut bench).map(forward)
}

/// `cargo` with these arguments, from the root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(root());
    cargo
}

/// `--locked` on CI, where a lock file that is out of date is a fault; elsewhere it is about to be updated.
pub(crate) fn locked() -> Option<&'static str> {
    env::var_os("CI").map(|_| "--locked")
}

/// Says what is run, and runs it.
pub(crate) fn show(command: &mut Command) -> Result<ExitStatus> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let program = command.get_program().to_string_lossy().into_owned();
    let program = program.rsplit('/').next().unwrap_or_default();
    eprintln!("$ {program} {}", words.join(" "));
    command.status().with_context(|| format!("cannot run {program}"))
}

/// True if `cargo NAME` is installed.
pub(crate) fn has_cargo_command(name: &str) -> bool {
    cargo(&[name, "--version"]).output().is_ok_and(|output| output.status.success())
}

/// A program's own exit code; one that a signal ended counts as failed.
pub(crate) fn forward(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
