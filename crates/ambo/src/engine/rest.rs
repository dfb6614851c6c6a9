//! How a replay comes to rest before anything decides its course that did not come first the first time.
//!
//! A recorded failure is there at once, and whoever joins branches drops the others when one fails: they would not come through
//! what they had recorded, and what undoes that would not be registered. So a failure is answered when the body
//! has come as far through its record as it can without it, and what is not recorded begins behind that.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::refusal::ROUNDS;
use super::run::Run;

/// Between two looks while the vault opens what others have recorded.
const LOOK: Duration = Duration::from_millis(5);
/// After so many rounds in which nothing comes by, what holds others back would have come to rest if it were polled.
const PATIENCE: u64 = 3 * ROUNDS;

/// While it lives calls that are not recorded do not begin.
#[derive(Debug)]
pub(crate) struct HeldBack<'r>(&'r AtomicUsize);

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Run {
    /// Returns when the body has come as far through its record as it can: at once where nothing of it is left.
    pub(crate) async fn rests(&self) {
        if !self.history.is_replayed() {
            return;
        }
        let _at_work = self.waits.work();
        let rounds = async || {
            for _ in 0..ROUNDS {
                come_round().await;
            }
            true
        };
        while !self.is_still(rounds()).await {}
    }

    /// Whether no call read its record or came by it while `rounds` went by, and these say so too.
    pub(super) async fn is_still(&self, rounds: impl Future<Output = bool>) -> bool {
        let passed = self.history.passed();
        if self.is_reading() {
            tokio::time::sleep(LOOK).await;
            return false;
        }
        rounds.await && self.history.passed() == passed && !self.is_reading()
    }

    /// Calls that are not recorded wait for what holds them back.
    pub(crate) fn hold_back(&self) -> HeldBack<'_> {
        self.held_back.fetch_add(1, Ordering::AcqRel);
        HeldBack(&self.held_back)
    }

    /// Before a recorded failure is answered.
    pub(crate) async fn fails_at_rest(&self) {
        let _held = self.hold_back();
        self.rests().await;
    }

    /// Before a call that is not recorded begins. What holds it back and is not polled any more is not waited for.
    pub(crate) async fn goes_on_at_rest(&self) {
        self.rests().await;
        let round = async || {
            come_round().await;
            true
        };
        let mut quiet = 0;
        while self.held_back.load(Ordering::Acquire) > 0 && quiet <= PATIENCE {
            quiet = if self.is_still(round()).await { quiet + 1 } else { 0 };
        }
    }
}

/// Until the next poll, which is asked for at once: also by code that blocks on a call within a poll of its own.
async fn come_round() {
    let mut came = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut came, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
