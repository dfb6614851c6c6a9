//! How a worker comes to its end: no more claims, time for what runs, then the stop. The clock of that, and the signals that
//! ask for it, are on the engine's thread: code that blocks the user's runtime holds up neither.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Engine;
use crate::error::Result;
use crate::worker::DRAIN;

/// Between two looks whether a run is left.
const GLANCE: Duration = Duration::from_millis(5);
/// A limit that is none; a longer one is no moment that a clock could show.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Engine {
    /// Stops claiming, and stops altogether when no run is left or `limit` is over. Told again, the earlier end counts. The
    /// loops notice at once.
    pub(crate) fn drain(&self, limit: Duration) {
        let end = Instant::now() + limit.min(NEVER);
        self.drain_end.send_modify(|known| *known = Some(known.map_or(end, |known| known.min(end))));
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain_end.borrow().is_some()
    }

    /// Returns as soon as a drain has begun.
    pub(crate) async fn drain_begun(&self) {
        let mut ends = self.drain_end.subscribe();
        // The sender is a field of this.
        let _ = ends.wait_for(Option::is_some).await;
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.life.borrow().as_ref().map_or(0, |life| life.in_flight())
    }
}

/// Waits for a drain, and stops the engine at its end.
pub(super) async fn end_in_time(engine: Arc<Engine>) {
    engine.drain_begun().await;
    // The end may be moved to an earlier time meanwhile.
    while engine.in_flight() > 0 && engine.drain_end.borrow().is_some_and(|end| Instant::now() < end) {
        tokio::time::sleep(GLANCE).await;
    }
    engine.stop.cancel();
}

/// Drains at the first signal, and at the second hands back at once what still runs.
pub(crate) async fn heed(engine: Arc<Engine>, mut signals: Signals) {
    signals.next().await;
    tracing::info!(in_flight = engine.in_flight(), "stopping: no more claims");
    engine.drain(DRAIN);
    signals.next().await;
    tracing::warn!(in_flight = engine.in_flight(), "told again to stop: what still runs is handed back now");
    engine.drain(Duration::ZERO);
}

/// The signals that ask a program to end: SIGTERM and Ctrl-C.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    /// Listens on the present runtime.
    pub(crate) fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        Ok(Signals {})
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
