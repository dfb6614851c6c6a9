//! `ambo-bench`: Ambo, its peers and plain PostgreSQL doing the same work on the same server, in turn.
//!
//! `ambo-bench NAME [--quick] [--json]`; figures go to stdout, talk to stderr. See README.md.

mod bench;
mod database;
mod engine;
mod jobs;
mod load;
mod process;
mod report;
mod scenario;
mod server;
mod statement_log;
mod swept;
mod yardstick;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::engine::Setting;
use crate::scenario::Name;
use crate::server::Server;

/// Measures Ambo against its peers and against plain PostgreSQL.
#[derive(Parser, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
struct Args {
    /// The scenario, or `all`.
    #[arg(value_enum, required = true)]
    name: Option<Name>,
    /// Fewer and shorter rounds: at most 40 s a scenario.
    #[arg(long)]
    quick: bool,
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// How many rounds; the figures are the medians. Default: 3, with --quick 1 to 3 by scenario.
    #[arg(long)]
    rounds: Option<usize>,
    /// Measures these only, e.g. `ambo,prototype`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Sets the peers up so in every scenario. Unset: `default` where the system idles, else `fastest`.
    #[arg(long, value_enum)]
    peers: Option<Setting>,
    /// A server to use instead of a private one. Its databases named `ambo_bench_*` are dropped.
    #[arg(long, env = "AMBO_BENCH_URL", hide_env_values = true)]
    url: Option<String>,
    /// With `pinned`: instead, a steady load of Ambo for so many seconds, with history dropped meanwhile.
    #[arg(long, value_name = "SECONDS")]
    soak: Option<u64>,
    /// With `pinned`: how long something is held open each time, in seconds. Default: 600.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["quick", "soak"])]
    held: Option<u64>,
    #[command(subcommand)]
    hidden: Option<Hidden>,
}

#[derive(Subcommand, Debug)]
enum Hidden {
    /// The other process of `latency`: enqueues a run for each line on stdin.
    #[command(hide = true)]
    EnqueueOnDemand { engine: String, url: String },
    /// The other process of `sleepers`: a worker until its stdin ends.
    #[command(hide = true)]
    Work { url: String },
    /// One of `fleet`: likewise.
    #[command(hide = true)]
    WorkJobs { url: String },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    match &args.hidden {
        Some(Hidden::EnqueueOnDemand { engine, url }) => {
            return scenario::latency::enqueue_on_demand(engine, url).await;
        }
        Some(Hidden::Work { url }) => return engine::waiting::work(url).await,
        Some(Hidden::WorkJobs { url }) => return jobs::ambo::work(url).await,
        None => {}
    }
    let names = match args.name {
        Some(Name::All) | None => Name::EACH.to_vec(),
        Some(name) => vec![name],
    };
    swept::listen()?;
    let server = Server::start(args.url.as_deref()).await?;
    let bench = Bench {
        server,
        quick: args.quick,
        rounds: args.rounds,
        held: args.held,
        only: args.only,
        peers: args.peers,
    };
    eprintln!("PostgreSQL: {}", bench.server.settings_in_words());
    let mut lines = Vec::new();
    for name in names {
        let measured = match args.soak {
            Some(seconds) if name == Name::Pinned => scenario::pinned::soak(&bench, seconds).await?,
            _ => name.run(&bench).await?,
        };
        for line in measured {
            if args.json {
                println!("{}", line.to_json(&bench));
            }
            lines.push(line);
        }
    }
    if !args.json {
        println!("{}", report::table(&lines));
    }
    bench.server.stop().await
}
