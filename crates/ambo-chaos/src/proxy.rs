//! The network between everybody and the primary: it moves with the primary, and it can be slow, cut, deaf or half closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What is the matter with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing.
    Open,
    /// Nothing comes through any more, and neither end hears of it.
    Deaf,
    /// The server sees its client gone; the client sees nothing, and nothing comes through.
    ClientGone,
    /// The client sees its server gone; the server sees nothing, and nothing comes through.
    ServerGone,
    /// Closed at both ends.
    Cut,
}

/// A proxy before the primary, wherever that is.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    target: AtomicU16,
    /// Each piece of data waits for a time up to so many microseconds.
    delay_us: AtomicU64,
    next: AtomicU64,
    /// A std mutex: never held across an await.
    open: Mutex<HashMap<u64, watch::Sender<Fate>>>,
}

impl State {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<Fate>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Before the server on this port.
    pub(crate) async fn before(target: u16) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State { target: target.into(), ..State::default() });
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, shared.clone()));
            }
        });
        Ok(Proxy { port, state, accepting })
    }

    /// The primary is on another port now: everybody is cut off and finds it when they come back.
    pub(crate) fn move_to(&self, target: u16) {
        self.state.target.store(target, Ordering::SeqCst);
        self.strike(1, 1, Fate::Cut);
    }

    /// Slows down what is sent, by up to this long a piece. Zero: no more.
    pub(crate) fn delay(&self, most: Duration) {
        self.state.delay_us.store(most.as_micros() as u64, Ordering::SeqCst);
    }

    /// Does this to `part` of `of` connections; returns which they are.
    pub(crate) fn strike(&self, part: u64, of: u64, fate: Fate) -> Vec<u64> {
        let open = self.state.open();
        let struck: Vec<u64> = open.keys().copied().filter(|id| (id * 7 + id / 3) % of < part).collect();
        for id in &struck {
            set(&open[id], fate);
        }
        struck
    }

    /// What was deaf or half closed is found out at last: these connections are closed.
    pub(crate) fn close(&self, struck: &[u64]) {
        let open = self.state.open();
        for fate in struck.iter().filter_map(|id| open.get(id)) {
            set(fate, Fate::Cut);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.strike(1, 1, Fate::Cut);
    }
}

fn set(fate: &watch::Sender<Fate>, new: Fate) {
    fate.send_if_modified(|now| {
        // What is half closed does not open again.
        let worse = *now == Fate::Open || new == Fate::Cut;
        if worse {
            *now = new;
        }
        worse
    });
}

async fn carry(client: TcpStream, state: Arc<State>) {
    let target = state.target.load(Ordering::SeqCst);
    // The client of a server that is down sees its connection closed.
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (fate, told) = watch::channel(Fate::Open);
    let id = state.next.fetch_add(1, Ordering::Relaxed);
    state.open().insert(id, fate);
    // The primary may have moved since we asked where it is; then nobody else would cut this one.
    if state.target.load(Ordering::SeqCst) == target {
        tokio::select! {
            () = pump(from_client, to_server, told.clone(), Fate::ClientGone, &state) => {}
            () = pump(from_server, to_client, told, Fate::ServerGone, &state) => {}
        }
    }
    state.open().remove(&id);
}

/// Carries one direction until it ends. `gone` is the fate in which the receiving end sees a close.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut told: watch::Receiver<Fate>,
    gone: Fate,
    state: &State,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => Some(read),
            _ = told.wait_for(|fate| *fate != Fate::Open) => None,
        };
        let Some(read) = read else {
            if *told.borrow() == gone {
                let _ = to.shutdown().await;
            }
            let _ = told.wait_for(|fate| *fate == Fate::Cut).await;
            return;
        };
        let Ok(length @ 1..) = read else { return };
        let most = state.delay_us.load(Ordering::SeqCst);
        if most > 0 {
            // Where in the range does not matter; that it varies does.
            let part = (length as u64 * 2_654_435_761 + most) % most;
            tokio::time::sleep(Duration::from_micros(part)).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
