//! A node exists before another can take its result: there is no cycle, and no input that is missing.

use ambo::{Graph, Node};

#[ambo::graph]
fn cycle(graph: &mut Graph, order: Node<u64>) -> Node<u64> {
    let one = graph.step("one", (order, two), |(order, two): (u64, u64)| async move { Ok(order + two) });
    let two = graph.step("two", one, |one: u64| async move { Ok(one) });
    two
}

fn main() {}
