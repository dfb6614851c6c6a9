//! The outside world: effects that no database takes back, noted in the order in which they came. It knows fencing tokens:
//! an effect of an older attempt than one that it has seen of the run is refused. And it knows since when it has seen which
//! attempt at work, by the clock that the server has too.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::random::Random;

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

/// What it has seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Testimony {
    pub(crate) effects: Vec<Effect>,
    /// When an attempt of a run was seen first, in microseconds since 1970.
    pub(crate) seen: HashMap<String, BTreeMap<u32, i64>>,
}

/// The witness, in the process that is never killed.
#[derive(Debug)]
pub(crate) struct Witness {
    pub(crate) address: SocketAddr,
    book: Arc<Mutex<Testimony>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Witness {
    /// It takes up to so long for an answer; what it has noted counts from the beginning.
    pub(crate) async fn open(slowness: Duration) -> Result<Witness> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let book = Arc::<Mutex<Testimony>>::default();
        let shared = book.clone();
        let serving = tokio::spawn(async move {
            let mut random = Random::new(0);
            while let Ok((stream, _)) = listener.accept().await {
                let pause = random.time(0..slowness.as_millis() as u64 + 1);
                tokio::spawn(serve(stream, shared.clone(), pause));
            }
        });
        Ok(Witness { address, book, serving })
    }

    pub(crate) fn testimony(&self) -> Testimony {
        locked(&self.book).clone()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn locked(book: &Mutex<Testimony>) -> MutexGuard<'_, Testimony> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(stream: TcpStream, book: Arc<Mutex<Testimony>>, pause: Duration) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        let accepted = note(&line, &book);
        line.clear();
        tokio::time::sleep(pause).await;
        let answer: &[u8] = if accepted { b"ok\n" } else { b"stale\n" };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// Notes what a line tells; a line that was cut short is nothing.
fn note(line: &str, book: &Mutex<Testimony>) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [run, attempt, ref effect @ ..] = words[..] else { return false };
    let Ok(attempt) = attempt.parse::<u32>() else { return false };
    if !line.ends_with('\n') {
        return false;
    }
    let mut book = locked(book);
    let seen = book.seen.entry(run.to_owned()).or_default();
    let accepted = seen.last_key_value().is_none_or(|(newest, _)| attempt >= *newest);
    seen.entry(attempt).or_insert_with(now);
    if let [position, number, process] = effect[..]
        && let Ok(number) = number.parse()
    {
        let (run, position, process) = (run.to_owned(), position.to_owned(), process.to_owned());
        book.effects.push(Effect { run, position, attempt, number, process, accepted });
    }
    accepted
}

fn now() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64)
}

/// Says that an attempt of a run is at work, from a worker; it does not matter whether that is heard.
pub(crate) async fn arrive(address: SocketAddr, line: String) {
    if let Ok(mut stream) = TcpStream::connect(address).await {
        let _ = stream.write_all(line.as_bytes()).await;
    }
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

#[cfg(test)]
mod tests {
    use super::{Testimony, note};
    use std::sync::Mutex;

    #[test]
    fn an_attempt_is_refused_once_a_later_one_was_seen() {
        let book = Mutex::<Testimony>::default();
        assert!(note("run 1 2 1 w1\n", &book));
        assert!(note("run 2\n", &book), "one that only arrives");
        assert!(!note("run 1 3 1 w1\n", &book));
        assert!(note("run 2 3 1 w2\n", &book));
        assert!(!note("run 3 4 1 w", &book), "cut short");
        let book = book.into_inner().expect("nobody panicked");
        let accepted: Vec<bool> = book.effects.iter().map(|effect| effect.accepted).collect();
        assert_eq!(accepted, [true, false, true]);
        let attempts: Vec<u32> = book.seen["run"].keys().copied().collect();
        assert_eq!(attempts, [1, 2]);
        assert!(book.seen["run"][&1] <= book.seen["run"][&2]);
    }
}
