//! An error of the application that cannot be written down.
#![allow(unused)]

use std::fmt;

use ambo::Ctx;

#[derive(Debug)]
struct Declined;

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("declined")
    }
}

#[ambo::workflow]
async fn fulfil(cx: Ctx, order: u64) -> Result<u64, Declined> {
    Ok(order)
}

fn main() {}
