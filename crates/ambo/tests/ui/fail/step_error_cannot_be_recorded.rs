//! A step whose error cannot be written down.
#![allow(unused)]

use ambo::{Ctx, Result};

#[ambo::workflow]
async fn fulfil(cx: Ctx, path: String) -> Result<String> {
    let text = cx.step("read", || async { std::fs::read_to_string(&path) }).await;
    Ok(text.unwrap_or_default())
}

fn main() {}
