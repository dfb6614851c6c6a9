//! A step that is spawned away from its run.
#![allow(unused)]

use ambo::{Ctx, Error, Result};

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<u64> {
    let ship = cx.step("ship", move || async move { Ok::<_, Error>(order) });
    let shipped = tokio::spawn(ship).await;
    Ok(shipped.unwrap()?)
}

fn main() {}
