//! `ambo dead ...`: what can be typed of dead letters.

use ambo::RunId;
use clap::{Args, Subcommand};

use super::{Marks, Selection, State, Targets};

/// `ambo dead ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// List the dead, newest first: why, when and how often
    #[command(visible_alias = "ls")]
    List(DeadList),
    /// Group the dead by what they died of, the most frequent first
    Errors(DeadErrors),
    /// Run the dead again, from their checkpoints
    Redrive(DeadRedrive),
    /// Throw the dead away, with all that they recorded
    Purge(DeadTargets),
}

/// `ambo dead list`
#[derive(Debug, Args)]
pub(crate) struct DeadList {
    #[command(flatten)]
    pub(crate) marks: Marks,
    /// Only runs older than this one: the last of a page gives the next page
    #[arg(long, value_name = "ID")]
    pub(crate) before: Option<RunId>,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) limit: u32,
}

/// `ambo dead errors`
#[derive(Debug, Args)]
pub(crate) struct DeadErrors {
    #[command(flatten)]
    pub(crate) marks: Marks,
}

/// The dead that a command acts on: named, or found.
#[derive(Debug, Args)]
pub(crate) struct DeadTargets {
    /// The ids of the runs; without them, those of the dead that the options find
    pub(crate) ids: Vec<RunId>,
    #[command(flatten)]
    pub(crate) marks: Marks,
    /// Act on the runs that were found, instead of saying which they are
    #[arg(long)]
    pub(crate) yes: bool,
}

impl From<DeadTargets> for Targets {
    /// What is not named is looked for among the dead.
    fn from(DeadTargets { ids, marks, yes }: DeadTargets) -> Self {
        let state = ids.is_empty().then_some(State::Dead);
        Targets { ids, selection: Selection { marks, state }, yes }
    }
}

/// `ambo dead redrive`
#[derive(Debug, Args)]
pub(crate) struct DeadRedrive {
    #[command(flatten)]
    pub(crate) targets: DeadTargets,
    /// The queue that they go to [default: the one that they died in]
    #[arg(long, value_name = "NAME")]
    pub(crate) to_queue: Option<String>,
    /// So many a second, one after the other; it goes on without this command [default: all at once]
    #[arg(long, value_name = "NUMBER", value_parser = rate)]
    pub(crate) rate: Option<f64>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err("a number above zero, such as 10 or 0.5".to_owned()),
    }
}
