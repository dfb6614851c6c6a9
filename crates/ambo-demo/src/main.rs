//! The demo: a shop in several processes. Orders, payments, stock and shipments go on while workers are killed and
//! PostgreSQL crashes; in the end everything is counted. The program runs itself again for each role.

mod books;
mod conductor;
mod front;
mod payment;
mod worker;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// A shop whose workers are killed and whose database crashes: everything is counted in the end.
#[derive(Parser, Debug)]
#[command(name = "demo", bin_name = "cargo xtask demo")]
struct Args {
    /// A small form, for a quick look and for the gate.
    #[arg(long)]
    short: bool,
    /// How many orders are tried [default: 20000; with --short 3000].
    #[arg(long)]
    orders: Option<u64>,
    /// How many worker processes fulfil them.
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// What decides which payments go wrong.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the books as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What one process of the shop does.
#[derive(Subcommand, Debug)]
enum Role {
    /// Places orders.
    #[command(hide = true)]
    Front { url: String, orders: u64 },
    /// Charges cards, badly.
    #[command(hide = true)]
    Payment { ledger: std::path::PathBuf, seed: u64 },
    /// Fulfils orders.
    #[command(hide = true)]
    Worker { url: String, payment: String },
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if args.role.is_some() {
        // A child must not outlive the demo, however that ends; the front sees to that itself.
        if !matches!(args.role, Some(Role::Front { .. })) {
            ambo_postgres::exit_with_parent();
        }
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match args.role {
        Some(Role::Front { url, orders }) => runtime.block_on(front::place(&url, orders)),
        Some(Role::Payment { ledger, seed }) => runtime.block_on(payment::serve(&ledger, seed)),
        Some(Role::Worker { url, payment }) => runtime.block_on(worker::work(&url, payment)),
        None => {
            let orders = args.orders.unwrap_or(if args.short { 3_000 } else { 20_000 });
            let plan =
                conductor::Plan { orders: orders.max(100), workers: args.workers.max(2), seed: args.seed };
            let books = conductor::conduct(&runtime, &plan)?;
            books.print(args.json)?;
            return Ok(if books.all_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }?;
    Ok(ExitCode::SUCCESS)
}
