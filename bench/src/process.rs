//! A worker in a process of its own; killed when dropped.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const MIB: f64 = 1024.0 * 1024.0;

/// This program, as a worker until its standard input ends.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts it, and waits until it says that it is ready.
    pub async fn start(command: &str, url: &str) -> Result<Process> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([command, url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = process.stdout.take().context("the worker has no stdout")?;
        let ready = BufReader::new(said).lines().next_line().await?;
        ensure!(ready.as_deref() == Some("ready"), "the worker process ended");
        Ok(Process(process))
    }

    /// Its resident memory, in MiB.
    pub fn resident(&self) -> Result<f64> {
        let pid = self.0.id().context("the worker process has ended")?;
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))
            .context("the memory of a process is read from /proc, which this system does not have")?;
        let pages: f64 = pages.split(' ').nth(1).context("statm has a second field")?.parse()?;
        Ok(pages * 4096.0 / MIB)
    }
}

/// The other side: says that it is ready, and waits until nobody needs it any more.
pub async fn serve() -> Result<()> {
    println!("ready");
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await.context("cannot read stdin")?;
    Ok(())
}
