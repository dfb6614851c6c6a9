//! Functions of which no workflow can be made.
#![allow(unused)]

use ambo::{Ctx, Result};

#[ambo::workflow]
fn not_async(cx: Ctx, order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::workflow]
async fn no_context(order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::workflow]
async fn borrowed_context(cx: &mut Ctx<'_>, order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::workflow]
async fn nothing() -> Result<u64> {
    Ok(1)
}

#[ambo::workflow]
async fn three_parameters(cx: Ctx, order: u64, customer: u64) -> Result<u64> {
    Ok(order + customer)
}

#[ambo::workflow]
async fn borrowed_input(cx: Ctx, order: &str) -> Result<usize> {
    Ok(order.len())
}

#[ambo::workflow]
async fn generic<T: Send>(cx: Ctx, order: T) -> Result<()> {
    Ok(())
}

#[ambo::workflow]
async fn hidden_generic(cx: Ctx, order: impl Send) -> Result<()> {
    Ok(())
}

#[ambo::workflow]
async fn named_lifetime<'run>(cx: Ctx<'run>, order: u64) -> Result<()> {
    Ok(())
}

#[ambo::workflow]
async fn no_result(cx: Ctx, order: u64) {}

struct Shop;

impl Shop {
    #[ambo::workflow]
    async fn method(&self, cx: Ctx, order: u64) -> Result<u64> {
        Ok(order)
    }
}

#[ambo::workflow]
async unsafe fn dangerous(cx: Ctx, order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::workflow]
struct Order;

#[ambo::workflow(queue = "orders")]
async fn unknown_option(cx: Ctx, order: u64) -> Result<u64> {
    Ok(order)
}

#[ambo::workflow(name = "")]
async fn empty_name(cx: Ctx, order: u64) -> Result<u64> {
    Ok(order)
}

fn main() {}
