//! `transaction`: the program pgbench, and its statements for the engines.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::engine::Transfer;

/// The TPC-B statements of pgbench in their order: accounts, balance, tellers, branches, history.
pub const TPC_B: [&str; 5] = [
    "update public.pgbench_accounts set abalance = abalance + $1 where aid = $2",
    "select abalance from public.pgbench_accounts where aid = $1",
    "update public.pgbench_tellers set tbalance = tbalance + $1 where tid = $2",
    "update public.pgbench_branches set bbalance = bbalance + $1 where bid = $2",
    "insert into public.pgbench_history (tid, bid, aid, delta, mtime) \
     values ($1, $2, $3, $4, current_timestamp)",
];

/// Clients of pgbench, and runs at once.
pub const CLIENTS: i64 = 16;

/// Accounts and tellers of a branch, as pgbench makes them.
const ACCOUNTS: u64 = 100_000;
const TELLERS: u64 = 10;

/// A transfer as pgbench draws one: uniform over the scale. The same number gives the same transfer.
pub fn transfer(number: u64, scale: u64) -> Transfer {
    let draw = |salt: u64, below: u64| (mix(number.wrapping_mul(4).wrapping_add(salt)) % below) as i32;
    Transfer {
        aid: draw(0, ACCOUNTS * scale) + 1,
        bid: draw(1, scale) + 1,
        tid: draw(2, TELLERS * scale) + 1,
        delta: draw(3, 10_001) - 5_000,
    }
}

/// The finaliser of SplitMix64: numbers that look random and are the same every time.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `pgbench -i`.
pub async fn initialize(pgbench: &Path, url: &str, scale: u64) -> Result<()> {
    output(Command::new(pgbench).args(["-i", "-q", "-s"]).arg(scale.to_string()).arg(url)).await?;
    Ok(())
}

/// `pgbench -M prepared -c 16 -j 2`; gives the transactions a second.
pub async fn run_for(pgbench: &Path, url: &str, time: Duration) -> Result<f64> {
    let seconds = time.as_secs().max(1).to_string();
    let clients = CLIENTS.to_string();
    let arguments = ["-n", "-M", "prepared", "-c", &clients, "-j", "2", "-T", &seconds, url];
    let printed = output(Command::new(pgbench).args(arguments)).await?;
    let tps = printed
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next())
        .with_context(|| format!("pgbench printed no tps: {printed}"))?;
    Ok(tps.parse()?)
}

async fn output(command: &mut Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let error = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "pgbench: {}: {error}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::transfer;

    #[test]
    fn transfers_stay_within_the_scale() {
        for number in 0..1000 {
            let t = transfer(number, 10);
            assert!((1..=1_000_000).contains(&t.aid) && (1..=10).contains(&t.bid));
            assert!((1..=100).contains(&t.tid) && (-5000..=5000).contains(&t.delta));
        }
    }
}
