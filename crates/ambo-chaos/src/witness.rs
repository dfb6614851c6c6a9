//! The outside world: effects that no database takes back, noted in the order in which they came. It knows fencing tokens:
//! an effect of an older attempt than one that it has seen of the run is refused.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// One effect.
#[derive(Debug, Clone)]
pub(crate) struct Effect {
    pub(crate) run: String,
    pub(crate) position: String,
    /// The claim under which it was made: the fencing token.
    pub(crate) attempt: u32,
    /// The try of the step within that claim.
    pub(crate) number: u32,
    /// The process that made it.
    pub(crate) process: String,
    pub(crate) accepted: bool,
}

#[derive(Debug, Default)]
struct Book {
    effects: Vec<Effect>,
    newest: HashMap<String, u32>,
}

/// The witness, in the process that is never killed.
#[derive(Debug)]
pub(crate) struct Witness {
    pub(crate) address: SocketAddr,
    book: Arc<Mutex<Book>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Witness {
    pub(crate) async fn open() -> Result<Witness> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let book = Arc::<Mutex<Book>>::default();
        let shared = book.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Ok(Witness { address, book, serving })
    }

    pub(crate) fn effects(&self) -> Vec<Effect> {
        locked(&self.book).effects.clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn locked(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(stream: TcpStream, book: Arc<Mutex<Book>>) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        let accepted = note(&line, &book);
        line.clear();
        let answer: &[u8] = if accepted { b"ok\n" } else { b"stale\n" };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// Notes what a line tells; a line that was cut short is nothing.
fn note(line: &str, book: &Mutex<Book>) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [run, position, attempt, number, process] = words[..] else { return false };
    if !line.ends_with('\n') {
        return false;
    }
    let (Ok(attempt), Ok(number)) = (attempt.parse::<u32>(), number.parse()) else { return false };
    let mut book = locked(book);
    let newest = book.newest.entry(run.to_owned()).or_default();
    let accepted = attempt >= *newest;
    *newest = attempt.max(*newest);
    let (run, position, process) = (run.to_owned(), position.to_owned(), process.to_owned());
    book.effects.push(Effect { run, position, attempt, number, process, accepted });
    accepted
}

/// Makes an effect, from a worker.
pub(crate) async fn tell(address: SocketAddr, line: String) -> ambo::Result<()> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    match answer.trim() {
        "ok" => Ok(()),
        _ => Err(ambo::Error::message("the witness has seen a newer attempt of this run")),
    }
}
