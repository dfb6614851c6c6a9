//! All tests against one private PostgreSQL: each test makes databases of its own there.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::run::{cargo, forward, has_cargo_command, locked, show};
use crate::{Postgres, pg};

/// Where the tests find their server: the address of a database from which they can make others.
const URL: &str = "AMBO_TEST_URL";
/// Where the tests that start servers of their own find the programs: those of the same version.
const PROGRAMS: &str = "AMBO_PG_BIN";

pub(crate) fn test(wanted: &Postgres, filter: &[String]) -> Result<ExitCode> {
    let given = env::var(URL).ok().filter(|url| !url.is_empty() && wanted.pg.is_none());
    // Lives until the tests are over; it goes also if this process is killed.
    let cluster = if given.is_none() { Some(pg::start(wanted, false)?) } else { None };
    let mut environment: Vec<(&str, OsString)> = Vec::new();
    match (&cluster, given) {
        (Some(cluster), _) => {
            environment.push((URL, cluster.url("postgres").into()));
            environment.push((PROGRAMS, cluster.binaries().directory().as_os_str().to_owned()));
        }
        (None, given) => eprintln!("the tests run against {}", given.unwrap_or_default()),
    }
    let common = ["--workspace", "--all-features"];

    let mut tests = if has_cargo_command("nextest") {
        let mut tests = cargo(&["nextest", "run"]);
        if env::var_os("CI").is_some() {
            tests.args(["--profile", "ci"]);
        }
        tests
    } else {
        eprintln!("cargo-nextest is not installed; `cargo test` does as well, more slowly");
        let mut tests = cargo(&["test", "--all-targets", "--no-fail-fast"]);
        if !filter.is_empty() {
            // `cargo test` takes one name itself; what follows the dashes may be several.
            tests.args(common).args(locked()).arg("--").args(filter).envs(environment.clone());
            return show(&mut tests).map(forward);
        }
        tests
    };
    tests.args(common).args(locked()).args(filter).envs(environment.clone());
    let status = show(&mut tests)?;
    // A filter names tests, and examples in the documentation have no names to speak of.
    if !status.success() || !filter.is_empty() {
        return Ok(forward(status));
    }
    let mut examples = cargo(&["test", "--doc"]);
    examples.args(common).args(locked()).envs(environment);
    show(&mut examples).map(forward)
}
