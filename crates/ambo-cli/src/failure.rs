//! How a command fails: one line that says what is wrong, one that says what to do, and an exit status.

use std::fmt;
use std::io;
use std::process::ExitCode;

use ambo::Code;

use crate::output::{BAD, Output, clean, styled};

/// What was typed or set is wrong.
pub(crate) const USAGE: u8 = 2;
/// The command failed.
pub(crate) const FAILED: u8 = 1;

/// A failure that is ready to be read.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) advice: Option<String>,
    /// The exit status.
    pub(crate) status: u8,
}

impl Failure {
    /// Something was typed or set wrongly.
    pub(crate) fn usage(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Failure { message: message.into(), advice: Some(advice.into()), status: USAGE }
    }

    /// Something did not work, and here is what to do.
    pub(crate) fn failed(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Failure { message: message.into(), advice: Some(advice.into()), status: FAILED }
    }

    /// An error of the library; `place` is the database, if it was being connected to.
    pub(crate) fn explain(error: &ambo::Error, place: Option<&str>) -> Self {
        let code = error.code();
        let page = format!("docs/errors/{code}.md");
        let advice = match advice(code, error.sqlstate(), place) {
            Some(advice) => format!("{advice} ({page})"),
            None => format!("see {page}"),
        };
        let status = if code == Code::Configuration { USAGE } else { FAILED };
        Failure { message: error.to_string(), advice: Some(advice), status }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What to do about an error, where that can be said from here.
fn advice(code: Code, sqlstate: Option<&str>, place: Option<&str>) -> Option<String> {
    let fixed = match (code, sqlstate, place) {
        (Code::Unavailable, None, Some(place)) => {
            return Some(format!(
                "is a PostgreSQL server running at {place}, and can it be reached from here?"
            ));
        }
        (Code::Unavailable, Some("53300"), _) => {
            "the server has no connection left: close some, or raise max_connections"
        }
        (Code::Unavailable, ..) => "try again when the database accepts connections and writes",
        (Code::Configuration, ..) => "check --database-url or DATABASE_URL, and --schema",
        (Code::UnknownQueue, ..) => "`ambo queue list` shows the queues, `ambo queue create NAME` makes one",
        (Code::NotAdopted, ..) => "`ambo adopt --help` says when it may be adopted",
        (Code::NoPartition, ..) => "`ambo migrate` makes partitions; a live worker keeps making them",
        (Code::UnknownRun, ..) => {
            "`ambo run list` shows the runs; history older than the retention is dropped"
        }
        (Code::WrongState, ..) => "`ambo run show ID` says how it stands",
        (Code::Database, Some("3D000"), Some(place)) => {
            return Some(format!("create the database, or correct the URL: {place}"));
        }
        (Code::Database, Some("28P01" | "28000"), Some(place)) => {
            return Some(format!("check user and password in the URL: {place}"));
        }
        (Code::Database, Some("42501"), _) => {
            "the role lacks a privilege: be a member of ambo_observer to look, of ambo_operator to act, or the owner (docs/guide/roles.md)"
        }
        _ => return None,
    };
    Some(fixed.to_owned())
}

/// Prints why a command failed and answers with its exit status.
pub(crate) fn report(output: Output, error: &anyhow::Error) -> ExitCode {
    // Whoever read our data wants no more of it: `ambo run list | head`.
    let is_broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<io::Error>().is_some_and(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let explained;
    let failure = match (error.downcast_ref::<Failure>(), error.downcast_ref::<ambo::Error>()) {
        (Some(failure), _) => failure,
        (None, Some(error)) => {
            explained = Failure::explain(error, None);
            &explained
        }
        (None, None) => {
            explained = Failure { message: format!("{error:#}"), advice: None, status: FAILED };
            &explained
        }
    };
    // A message of several lines says on each what to type; only what would steer the terminal goes.
    for (number, line) in failure.message.lines().enumerate() {
        let head = if number == 0 { styled(BAD, "error:") + " " } else { "  ".to_owned() };
        output.say(&format!("{head}{}", clean(line.trim_start())));
    }
    if let Some(advice) = &failure.advice {
        output.say(&format!("  {advice}"));
    }
    ExitCode::from(failure.status)
}
