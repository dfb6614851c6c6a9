//! Races: the first of several calls to end wins, and the winner is recorded.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::call::{Call, face};
use super::step::recorded;
use crate::engine::run::Run;
use crate::error::{Code, Error, Result};

pub(crate) const NAME: &str = "ambo:race";

/// A race that was built. See [`Ctx::race`](crate::Ctx::race).
#[must_use = "a race does nothing until it is awaited"]
pub struct Race<'a, T>(Call<'a, (), Result<(usize, T)>>);

face!(Race<'a, T>, (), Result<(usize, T)>);

/// Which of two calls ended first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first one.
    Left(A),
    /// The second one.
    Right(B),
}

impl<'a, T: Send + 'a> Race<'a, T> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, calls: Vec<BoxFuture<'a, T>>) -> Self {
        Race(Call::new((), move |()| race(run, position, calls)))
    }
}

/// The losers come once more through what they had recorded, and no further: what undoes it is registered there.
async fn come_through<T>(run: &Arc<Run>, mut losers: Vec<BoxFuture<'_, T>>) {
    let _held = run.hold_back();
    let mut rests = pin!(run.rests());
    std::future::poll_fn(|cx| {
        losers.retain_mut(|loser| loser.as_mut().poll(cx).is_pending());
        rests.as_mut().poll(cx)
    })
    .await;
}

async fn race<T>(run: &Arc<Run>, position: Arc<str>, mut calls: Vec<BoxFuture<'_, T>>) -> Result<(usize, T)> {
    if calls.is_empty() {
        return Err(Error::new(Code::InvalidOption, "a race of no calls has no winner"));
    }
    if let Some(winner) = recorded::<usize, Error>(run, &position, NAME).await {
        let winner = winner?;
        if winner >= calls.len() {
            let text = format!("position {position} of run {} recorded another race", run.id);
            return run.die(Error::new(Code::NonDeterminism, text)).await;
        }
        let call = calls.swap_remove(winner);
        come_through(run, calls).await;
        return Ok((winner, call.await));
    }
    run.rig.before(run, &position, NAME).await;
    let mut refused = vec![false; calls.len()];
    let (winner, value) = std::future::poll_fn(|cx| {
        for (number, call) in calls.iter_mut().enumerate() {
            let told = run.told();
            let polled = call.as_mut().poll(cx);
            refused[number] |= run.told() != told;
            if let Poll::Ready(value) = polled {
                return Poll::Ready((number, value));
            }
        }
        Poll::Pending
    })
    .await;
    drop(calls);
    // Of calls that were refused none has won. A step that was finished beside them has, also in a replay.
    if !refused[winner] {
        run.record(position, NAME.into(), Ok(winner.to_string().into()), Duration::ZERO);
    }
    Ok((winner, value))
}
