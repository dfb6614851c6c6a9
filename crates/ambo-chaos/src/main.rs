//! Chaos: a bank whose transactions enqueue work, and everything that production does to its database, its network and its
//! workers, at once. After each round the books are kept. The program runs itself again for its workers.

mod blow;
mod check;
mod client;
mod pair;
mod plan;
mod proxy;
mod random;
mod round;
mod staff;
mod volume;
mod witness;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ambo_postgres::{Binaries, Pooler};
use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::plan::Plan;
use crate::round::Outcome;

/// Does to a database and its workers what production does to them, all at once, and keeps the books.
///
/// Each round has a world of its own, and a plan that its seed repeats: `--seed N --rounds 1`.
#[derive(Parser, Debug)]
#[command(name = "chaos", bin_name = "cargo xtask chaos", args_conflicts_with_subcommands = true)]
struct Args {
    /// The seed of the first round; the next ones count up from it [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Begin no round after so many seconds [default: 60, or without end where --rounds is given].
    #[arg(long)]
    seconds: Option<u64>,
    /// At most so many rounds; at least one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Print the plans of the rounds, and do nothing.
    #[arg(long)]
    plan: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What another process of the bank does.
#[derive(Subcommand, Debug)]
enum Role {
    /// Executes runs.
    #[command(hide = true)]
    Worker(work::Post),
    /// Migrates a database, and ends.
    #[command(hide = true)]
    Migrate { url: String },
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(role) = args.role {
        ambo_postgres::exit_with_parent();
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
        return runtime.block_on(play(role)).map(|()| ExitCode::SUCCESS);
    }
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let first = args.seed.unwrap_or(now);
    if args.plan {
        (0..args.rounds.unwrap_or(1)).for_each(|round| println!("{}", adapt(Plan::draw(first + round))));
        return Ok(ExitCode::SUCCESS);
    }
    let seconds = args.seconds.unwrap_or_else(|| if args.rounds.is_some() { u64::MAX } else { 60 });
    run(&runtime, first, args.rounds.unwrap_or(u64::MAX), Duration::from_secs(seconds))
}

/// Another process of the bank.
async fn play(role: Role) -> Result<()> {
    match role {
        Role::Worker(post) => work::work(post).await,
        Role::Migrate { url } => {
            ambo::Client::connect_unchecked(&url, "ambo").await?.migrate().await?;
            Ok(())
        }
    }
}

/// Round after round, until one finds something.
fn run(runtime: &tokio::runtime::Runtime, first: u64, rounds: u64, time: Duration) -> Result<ExitCode> {
    let binaries = Binaries::find_or_fetch(&ambo_postgres::default_cache(), |said| eprintln!("{said}"))?;
    eprintln!("PostgreSQL {}, primary and synchronous standby; seed {first}", binaries.version());
    missing().iter().for_each(|what| eprintln!("skipped: {what}"));
    let (began, mut sum) = (Instant::now(), Sum::default());
    for number in 0..rounds {
        if number > 0 && began.elapsed() >= time {
            break;
        }
        let plan = adapt(Plan::draw(first + number));
        let folder = evidence_folder(plan.seed)?;
        fs::write(folder.join("plan.txt"), plan.to_string())?;
        // Dropped in its midst a round takes with it what it has started and mounted.
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = round::play(&plan, &binaries, &folder) => Some(outcome),
                _ = told_to_end() => None,
            }
        });
        let Some(outcome) = outcome else {
            fs::remove_dir_all(&folder)?;
            eprintln!(
                "stopped in the round with seed {}; of the {} before it nothing was violated",
                plan.seed, sum.rounds
            );
            return Ok(ExitCode::from(130));
        };
        let outcome =
            outcome.with_context(|| format!("the round with seed {} could not be played", plan.seed))?;
        sum.add(&outcome);
        let says: Vec<String> =
            outcome.findings.figures.iter().map(|(name, count)| format!("{count} {name}")).collect();
        eprintln!(
            "seed {}: {} blows, all ended after {:.1} s of peace; {}",
            plan.seed,
            outcome.done.len(),
            outcome.recovered_in.as_secs_f64(),
            says.join(", ")
        );
        fs::write(folder.join("done.txt"), outcome.done.join("\n"))?;
        if !outcome.findings.violations.is_empty() {
            sum.print(began.elapsed());
            println!("\nVIOLATED in the round with seed {}:", plan.seed);
            outcome.findings.violations.iter().for_each(|violation| println!("  {violation}"));
            println!("again: cargo xtask chaos --seed {} --rounds 1", plan.seed);
            println!("evidence: {}", folder.display());
            return Ok(ExitCode::FAILURE);
        }
        fs::remove_dir_all(&folder)?;
    }
    sum.print(began.elapsed());
    missing().iter().for_each(|what| println!("\nskipped: {what}"));
    println!("\nNothing was violated.");
    Ok(ExitCode::SUCCESS)
}

/// Ctrl-C or SIGTERM.
async fn told_to_end() -> Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => Ok(pressed?),
        _ = terminated.recv() => Ok(()),
    }
}

/// What cannot be done on this machine.
fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !Pooler::is_installed() {
        missing.push("no pooler in between (no pgbouncer; on Debian: apt-get install pgbouncer)");
    }
    if staff::faketime().is_none() {
        missing.push("no clock jumps (no libfaketime; on Debian: apt-get install libfaketime)");
    }
    if !can_mount() {
        missing.push("no full WAL volume (mounting is not permitted here)");
    }
    missing
}

fn can_mount() -> bool {
    static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CAN.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("ambo-chaos-probe-{}", std::process::id()));
        let can = fs::create_dir_all(&folder).is_ok() && volume::Volume::mount(&folder).is_ok();
        let _ = fs::remove_dir(&folder);
        can
    })
}

/// A plan without what this machine has not.
fn adapt(mut plan: Plan) -> Plan {
    plan.pooled &= Pooler::is_installed();
    plan.wrong_clock &= staff::faketime().is_some();
    plan.small_volume = plan.small_volume && can_mount();
    plan
}

/// A new folder that the user of the servers can enter.
fn evidence_folder(seed: u64) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let name = format!("ambo-chaos-{seed}-{}", std::process::id());
    let folder = Path::new("/var/tmp").join(name);
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// All rounds together.
#[derive(Debug, Default)]
struct Sum {
    rounds: u64,
    blows: BTreeMap<&'static str, u64>,
    figures: BTreeMap<&'static str, u64>,
    slowest: Duration,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        outcome.kinds.iter().for_each(|kind| *self.blows.entry(kind).or_default() += 1);
        for (name, count) in &outcome.findings.figures {
            *self.figures.entry(name).or_default() += count;
        }
        self.slowest = self.slowest.max(outcome.recovered_in);
    }

    fn print(&self, took: Duration) {
        println!("\n{} rounds in {:.1} minutes", self.rounds, took.as_secs_f64() / 60.0);
        println!("\ndone to it");
        self.blows.iter().for_each(|(kind, count)| println!("{count:>9}  {kind}"));
        println!("\nfound");
        self.figures.iter().for_each(|(name, count)| println!("{count:>9}  {name}"));
        println!(
            "{:>9.1}  seconds of peace until the last run had ended, at most",
            self.slowest.as_secs_f64()
        );
    }
}
