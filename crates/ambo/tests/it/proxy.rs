//! A proxy before the server that knows its protocol: counts round trips, and loses what a test wants lost.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What becomes of the next COMMIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lose {
    /// It passes, like everything.
    Nothing,
    /// It reaches the server, and its answer reaches nobody.
    Answer,
    /// It does not reach the server, which sees the connection closed.
    Commit,
    /// It does not reach the server, which sees nothing: its end stays open.
    Everything,
}

pub(crate) struct Proxy {
    /// Instead of the server's; without TLS, which could not be read.
    pub(crate) url: String,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    lose: AtomicU8,
    lost: AtomicU64,
    round_trips: AtomicU64,
    keeps_options: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
}

/// One connection, by the name that its client gave.
#[derive(Default)]
struct Connection {
    name: OnceLock<String>,
    cut: Notify,
    is_mute: AtomicBool,
}

impl Proxy {
    /// A proxy before the database with this address.
    pub(crate) async fn before(url: &str) -> Proxy {
        let config: tokio_postgres::Config = url.parse().expect("a URL");
        let tokio_postgres::config::Host::Tcp(host) = &config.get_hosts()[0] else { panic!("no TCP host") };
        let target = format!("{host}:{}", config.get_ports()[0]);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let here = listener.local_addr().expect("an address");
        let (before, database) = url.rsplit_once('/').expect("a URL with a database");
        let user = before.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')).map(|(user, _)| user);
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let database = database.split('?').next().expect("a database");
        let url = format!("postgres://{user}{here}/{database}?sslmode=disable");
        let state = Arc::new(State::default());
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.expect("the server");
                client.set_nodelay(true).expect("nodelay");
                server.set_nodelay(true).expect("nodelay");
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let swallows = Arc::new(AtomicBool::new(false));
                let connection = Arc::<Connection>::default();
                shared.connections.lock().expect("no panic").push(connection.clone());
                let ways = (shared.clone(), connection.clone(), swallows.clone());
                let answers = tokio::spawn(answers(from_server, to_client, ways));
                tokio::spawn(requests(from_client, to_server, shared.clone(), connection, answers, swallows));
            }
        });
        Proxy { url, state, accepting }
    }

    /// Loses the next COMMIT in this way, once.
    pub(crate) fn lose(&self, what: Lose) {
        self.state.lose.store(what as u8, Ordering::SeqCst);
    }

    /// From now on the startup options of a client reach nobody, as in a pooler.
    pub(crate) fn keep_options(&self) {
        self.state.keeps_options.store(true, Ordering::SeqCst);
    }

    /// Closes the ends of the clients with this name. The server sees nothing: what it does for them goes on.
    pub(crate) fn cut(&self, name: &str) {
        self.named(name).for_each(|connection| connection.cut.notify_one());
    }

    /// From the next execution of a statement on, the clients with this name hear nothing of the server, which hears all of
    /// them.
    pub(crate) fn mute(&self, name: &str) {
        self.named(name).for_each(|connection| connection.is_mute.store(true, Ordering::SeqCst));
    }

    fn named(&self, name: &str) -> impl Iterator<Item = Arc<Connection>> {
        let connections = self.state.connections.lock().expect("no panic").clone();
        connections.into_iter().filter(move |connection| connection.name.get().is_some_and(|own| own == name))
    }

    /// How many were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// How often the server said that it was done and waits for more.
    pub(crate) fn round_trips(&self) -> u64 {
        self.state.round_trips.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One message with a tag: the tag, and all of its bytes.
async fn message(from: &mut OwnedReadHalf) -> std::io::Result<(u8, Vec<u8>)> {
    let mut bytes = vec![0; 5];
    from.read_exact(&mut bytes).await?;
    let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
    bytes.resize(1 + length, 0);
    from.read_exact(&mut bytes[5..]).await?;
    Ok((bytes[0], bytes))
}

/// `swallows`: from now on nothing is passed on, and the client's end is closed when the server has answered a commit.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (state, connection, swallows): (Arc<State>, Arc<Connection>, Arc<AtomicBool>),
) {
    let mut is_silent = false;
    while let Ok((tag, bytes)) = message(&mut from).await {
        // What only prepares a statement is answered: parameters were not bound yet.
        is_silent |= tag == b'2' && connection.is_mute.load(Ordering::SeqCst);
        if is_silent {
            continue;
        }
        if swallows.load(Ordering::SeqCst) {
            if tag == b'C' && (bytes[5..].starts_with(b"COMMIT") || bytes[5..].starts_with(b"ROLLBACK")) {
                return;
            }
            continue;
        }
        if tag == b'Z' {
            state.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// A startup message, its names and values each ended by a zero, without `options`.
fn without_options(start: &[u8]) -> Vec<u8> {
    let mut out = start[..4].to_vec();
    let words: Vec<&[u8]> = start[4..].split(|byte| *byte == 0).collect();
    for pair in words.chunks_exact(2).filter(|pair| !pair[0].is_empty() && pair[0] != b"options") {
        for word in pair {
            out.extend_from_slice(word);
            out.push(0);
        }
    }
    out.push(0);
    out
}

/// What the client calls itself in its startup message.
fn client_name(start: &[u8]) -> String {
    let mut words = start[4..].split(|byte| *byte == 0);
    words.find(|word| *word == b"application_name");
    String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned()
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: Arc<State>,
    connection: Arc<Connection>,
    answers: tokio::task::JoinHandle<()>,
    swallows: Arc<AtomicBool>,
) {
    // The first message has no tag.
    let Ok(length) = from.read_u32().await else { return };
    let mut start = vec![0; length as usize - 4];
    if from.read_exact(&mut start).await.is_err() {
        return;
    }
    if state.keeps_options.load(Ordering::SeqCst) {
        start = without_options(&start);
    }
    let length = start.len() as u32 + 4;
    if to.write_all(&length.to_be_bytes()).await.is_err() {
        return;
    }
    connection.name.get_or_init(|| client_name(&start));
    let mut sent = to.write_all(&start).await.is_ok();
    while sent {
        let message = tokio::select! {
            message = message(&mut from) => message,
            () = connection.cut.notified() => {
                answers.abort();
                let _ = answers.await;
                drop(from);
                return std::future::pending().await;
            }
        };
        let Ok((tag, bytes)) = message else { return };
        let is_commit = tag == b'Q' && bytes[5..].to_ascii_lowercase().starts_with(b"commit");
        let lose = if is_commit { state.lose.swap(Lose::Nothing as u8, Ordering::SeqCst) } else { 0 };
        if lose != Lose::Nothing as u8 {
            state.lost.fetch_add(1, Ordering::SeqCst);
            // The task holds the client's end: dropped, that is closed.
            if lose == Lose::Answer as u8 {
                swallows.store(true, Ordering::SeqCst);
                to.write_all(&bytes).await.expect("the server");
            } else {
                answers.abort();
            }
            let _ = answers.await;
            if lose == Lose::Everything as u8 {
                drop(from);
                std::future::pending::<()>().await;
            }
            return;
        }
        sent = to.write_all(&bytes).await.is_ok();
    }
}
