//! The payment service: a process with a ledger of its own, outside PostgreSQL. It fails on purpose: before it has
//! charged, after it has charged but before it answers, or it is slow. The same key is charged once.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The ledger: one line a charge, on disk before the answer.
struct Ledger {
    file: File,
    charges: HashMap<String, u64>,
    requests: u64,
    random: u64,
}

/// What happens to a request.
enum Fate {
    Good,
    FailsBefore,
    LosesAnswer,
    Slow,
}

impl Ledger {
    /// A xorshift: the same seed, the same mishaps.
    fn fate(&mut self) -> Fate {
        self.requests += 1;
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        match self.random % 100 {
            0..5 => Fate::FailsBefore,
            5..10 => Fate::LosesAnswer,
            10..12 => Fate::Slow,
            _ => Fate::Good,
        }
    }

    fn charge(&mut self, key: &str, cents: &str) -> std::io::Result<u64> {
        if let Some(number) = self.charges.get(key) {
            return Ok(*number);
        }
        let number = self.charges.len() as u64 + 1;
        writeln!(self.file, "{number} {key} {cents}")?;
        self.file.sync_data()?;
        self.charges.insert(key.to_owned(), number);
        Ok(number)
    }
}

/// Serves until its parent is gone. Prints the address that it listens on.
pub(crate) async fn serve(path: &Path, seed: u64) -> Result<()> {
    let file = File::options().create(true).append(true).open(path).context("the ledger")?;
    let ledger = Ledger { file, charges: HashMap::new(), requests: 0, random: seed | 1 };
    let ledger = Arc::new(Mutex::new(ledger));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream, ledger.clone()));
    }
}

async fn answer(stream: TcpStream, ledger: Arc<Mutex<Ledger>>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    let (key, cents) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if key == "requests" {
        let requests = ledger.lock().unwrap_or_else(PoisonError::into_inner).requests;
        stream.write_all(format!("{requests}\n").as_bytes()).await?;
        return Ok(());
    }
    if !line.ends_with('\n') || cents.parse::<i64>().is_err() {
        // Whoever asked died before the question was out.
        return Ok(());
    }
    let fate = ledger.lock().unwrap_or_else(PoisonError::into_inner).fate();
    if let Fate::FailsBefore = fate {
        return Ok(());
    }
    if let Fate::Slow = fate {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let number = ledger.lock().unwrap_or_else(PoisonError::into_inner).charge(key, cents)?;
    if let Fate::LosesAnswer = fate {
        return Ok(());
    }
    stream.write_all(format!("{number}\n").as_bytes()).await?;
    Ok(())
}

/// Asks the service: charges `cents` under `key`, and gives the number of the charge.
pub(crate) async fn charge(address: &str, key: String, cents: i64) -> ambo::Result<u64> {
    ask(address, &format!("{key} {cents}\n")).await
}

/// How many requests to charge the service has seen.
pub(crate) async fn requests(address: &str) -> ambo::Result<u64> {
    ask(address, "requests\n").await
}

async fn ask(address: &str, question: &str) -> ambo::Result<u64> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.write_all(question.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    line.trim().parse().map_err(|_| ambo::Error::message("the payment service gave no answer"))
}
