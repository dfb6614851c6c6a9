//! What the gate checks beyond the tests. All of it runs, also after a failure, so that one round shows everything.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::run::{cargo, has_cargo_command, locked, show};
use crate::{deny, exit_code, root, tidy};

pub(crate) fn check() -> Result<ExitCode> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, command: &mut Command| -> Result<()> {
        if !show(command)?.success() {
            failed.push(name);
        }
        Ok(())
    };
    let all = ["--workspace", "--all-features"];

    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    if Path::new(&root()).join("bench/Cargo.toml").exists() {
        step("format of bench", &mut cargo(&["fmt", "--manifest-path", "bench/Cargo.toml", "--check"]))?;
    }
    let mut clippy = cargo(&["clippy", "--all-targets"]);
    step("lints", clippy.args(all).args(locked()).args(["--", "-D", "warnings"]))?;
    // As a user has it: what only another feature, or another crate here, brings is missed where it is not enough.
    for features in [&[][..], &["--no-default-features"], &["--no-default-features", "--features", "sqlx"]] {
        let mut alone = cargo(&["clippy", "-p", "ambo", "--lib"]);
        step("the library alone", alone.args(features).args(locked()).args(["--", "-D", "warnings"]))?;
    }
    // Only libraries: the program `ambo` and the library `ambo` would be written to the same place.
    let mut docs = cargo(&["doc", "--no-deps", "--lib"]);
    step("documentation", docs.args(all).args(locked()).env("RUSTDOCFLAGS", "-D warnings"))?;
    if has_cargo_command("deny") {
        // Needs nothing but the lock file; the database of advisories is a repository elsewhere.
        let parts = ["licenses", "bans", "sources"];
        step("licences, bans and sources", cargo(&["deny", "--offline", "check"]).args(parts))?;
        if show(&mut cargo(&["deny", "fetch", "db"]))?.success() {
            step("advisories", &mut cargo(&["deny", "--offline", "check", "advisories"]))?;
        } else {
            eprintln!("the database of advisories cannot be had; advisories stay unchecked");
        }
    } else {
        eprintln!("cargo-deny is not installed; advisories stay unchecked");
    }
    // Always, so that what the gate says does not hang on what is installed.
    eprintln!("$ cargo xtask deny");
    if !deny::deny()? {
        failed.push("dependencies");
    }
    eprintln!("$ cargo xtask tidy");
    if !tidy::tidy()? {
        failed.push("tidiness");
    }

    if failed.is_empty() {
        eprintln!("check: all is well");
    } else {
        eprintln!("check: failed: {}", failed.join(", "));
    }
    Ok(exit_code(failed.is_empty()))
}
