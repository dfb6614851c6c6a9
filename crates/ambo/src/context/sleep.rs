//! Sleep: until a time of the database's clock, in memory for a moment, parked for longer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::call::{Call, face};
use super::step::replay;
use crate::engine::run::Run;
use crate::engine::wait::{Awaited, For};
use crate::error::{Error, Result};
use crate::payload;

/// A sleep that was built. See [`Ctx::sleep`](crate::Ctx::sleep).
#[must_use = "a sleep does nothing until it is awaited"]
pub struct Sleep<'a>(Call<'a, (), Result<()>>);

face!(Sleep<'a>, (), Result<()>);

/// Until when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    For(Duration),
    At(Timestamp),
}

impl<'a> Sleep<'a> {
    pub(crate) fn new(run: &'a Arc<Run>, position: Arc<str>, until: Until) -> Self {
        Sleep(Call::new((), move |()| async move {
            let due = due_at(run, &position, "ambo:sleep", until).await?;
            sleep_until(run, &position, due).await
        }))
    }
}

/// The time until which a call at this position waits: drawn once, by the database's clock, and recorded.
pub(crate) async fn due_at(
    run: &Arc<Run>,
    position: &Arc<str>,
    name: &'static str,
    until: Until,
) -> Result<Timestamp> {
    if let Some(recorded) = replay::<Timestamp, Error>(run, position, name).await {
        return Ok(recorded?);
    }
    let due = match until {
        Until::At(due) => due,
        Until::For(span) => {
            let span = jiff::SignedDuration::try_from(span).unwrap_or(jiff::SignedDuration::MAX);
            run.clock.now().saturating_add(span).unwrap_or(Timestamp::MAX)
        }
    };
    let json = payload::encode("the time of a wait", &due)?;
    run.record(position.clone(), name.into(), Ok(json), Duration::ZERO);
    Ok(due)
}

async fn sleep_until(run: &Arc<Run>, position: &Arc<str>, due: Timestamp) -> Result<()> {
    loop {
        let nudged = run.waits.nudged();
        tokio::pin!(nudged);
        nudged.as_mut().enable();
        if run.clock.until(due).is_zero() {
            return Ok(());
        }
        if let Some(why) = run.refusal_at_rest().await {
            return Err(why);
        }
        let awaited = Awaited { position: position.clone(), what: "its time".into(), run: None };
        let _waits = run.waits.wait(For::Time, Some(due), awaited);
        tokio::select! {
            () = run.clock.sleep_until(due) => {}
            () = nudged => {}
        }
    }
}
