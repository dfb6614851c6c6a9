//! The workflows that wait: for a time, for signals, for children.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use ambo::{Client, Ctx, Worker};
use anyhow::Result;
use futures_util::future::try_join_all;
use jiff::Timestamp;

use super::ambo::{OneStep, install};
use crate::process::serve;

type Body<'run, O> = Pin<Box<dyn Future<Output = ambo::Result<O>> + Send + 'run>>;

/// Sleeps until a time, in milliseconds since 1970.
pub struct Sleeper;

impl ambo::Workflow for Sleeper {
    type Input = i64;
    type Output = ();
    type Error = ambo::Error;
    const NAME: &'static str = "sleeper";

    fn run<'run>(mut cx: Ctx<'run>, until: i64) -> Body<'run, ()> {
        Box::pin(async move {
            let until = Timestamp::from_millisecond(until).map_err(ambo::Error::other)?;
            cx.sleep_until(until).await
        })
    }
}

/// Answers each of so many signals with an event.
pub struct Talker;

/// The topic of the signals, and the key of the answers.
pub const ASKED: &str = "asked";
pub const ANSWERED: &str = "answered";

impl ambo::Workflow for Talker {
    type Input = i64;
    type Output = i64;
    type Error = ambo::Error;
    const NAME: &'static str = "talker";

    fn run<'run>(mut cx: Ctx<'run>, times: i64) -> Body<'run, i64> {
        Box::pin(async move {
            let mut sum = 0;
            for _ in 0..times {
                let asked: i64 = cx.signal(ASKED).await?;
                sum += asked;
                cx.publish(ANSWERED, &asked)?;
            }
            Ok(sum)
        })
    }
}

/// Starts so many one-step children and adds up their results in order.
pub struct Parent;

impl ambo::Workflow for Parent {
    type Input = i64;
    type Output = i64;
    type Error = ambo::Error;
    const NAME: &'static str = "parent";

    fn run<'run>(mut cx: Ctx<'run>, children: i64) -> Body<'run, i64> {
        Box::pin(async move {
            let mut started = Vec::new();
            for n in 0..children {
                started.push(cx.child::<OneStep>(n).start()?);
            }
            let waits: Vec<_> = started.into_iter().map(|child| cx.result_of(child)).collect();
            let results = try_join_all(waits).await?;
            Ok(results.into_iter().sum())
        })
    }
}

/// A worker that knows them, in a database that is made ready first.
pub async fn launch(url: &str, park_after: Option<Duration>) -> Result<Worker> {
    install(url).await?;
    let client = Client::connect(url).await?;
    let mut builder = Worker::builder(&client)
        .workflow::<OneStep>()
        .workflow::<Sleeper>()
        .workflow::<Talker>()
        .workflow::<Parent>();
    if let Some(moment) = park_after {
        builder = builder.park_after(moment);
    }
    Ok(builder.start().await?)
}

/// The hidden process of `sleepers`: a worker until its standard input ends.
pub async fn work(url: &str) -> Result<()> {
    let _worker = launch(url, None).await?;
    serve().await
}
