//! The order of `b` and `d` would depend on timing: each block needs a branch of its own.
#![allow(unused)]

use ambo::{Ctx, Error, Result};

#[ambo::workflow]
async fn quote(cx: Ctx, item: u32) -> Result<u32> {
    let left = async {
        let a = cx.step("a", || async { Ok::<_, Error>(item) }).await?;
        cx.step("b", || async { Ok::<_, Error>(a + 1) }).await
    };
    let right = async {
        let c = cx.step("c", || async { Ok::<_, Error>(item) }).await?;
        cx.step("d", || async { Ok::<_, Error>(c + 1) }).await
    };
    let (left, right) = tokio::join!(left, right);
    Ok(left? + right?)
}

fn main() {}
