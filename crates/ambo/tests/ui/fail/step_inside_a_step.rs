//! A step that holds a step: replayed, the outer one would hide the inner one's position.
#![allow(unused)]

use ambo::{Ctx, Error, Result};

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<u64> {
    let shipped = cx
        .step("outer", || async {
            let inner = cx.step("inner", || async { Ok::<_, Error>(order) }).await?;
            Ok::<_, Error>(inner)
        })
        .await?;
    Ok(shipped)
}

fn main() {}
