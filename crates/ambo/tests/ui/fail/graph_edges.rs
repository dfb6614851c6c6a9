//! The edges of a graph have types.

use ambo::{Graph, Node};

#[ambo::graph]
fn wrong_type(graph: &mut Graph, order: Node<u64>) -> Node<String> {
    graph.step("name", order, |name: String| async move { Ok(name) })
}

#[ambo::graph]
fn no_result(graph: &mut Graph, order: Node<u64>) -> u64 {
    graph.step("one", order, |order: u64| async move { Ok(order) });
    7
}

#[ambo::graph]
async fn not_async(graph: &mut Graph, order: Node<u64>) -> Node<u64> {
    order
}

#[ambo::graph]
fn no_graph(order: Node<u64>) -> Node<u64> {
    order
}

fn main() {}
