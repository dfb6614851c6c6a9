//! Graphs with and without an input, and options.

use ambo::{Ctx, Graph, Node, Result, Retry};

async fn count(mut cx: Ctx<'_>, (name, _): (String, ())) -> Result<usize> {
    Ok(cx.step("count", || async { Ok::<_, ambo::Error>(name.len()) }).await?)
}

#[ambo::graph]
fn nightly(graph: &mut Graph) -> Node<usize> {
    let name = graph.step("name", (), |()| async { Ok("name".to_owned()) });
    let told = graph.step("tell", name, |_| async { Ok(()) });
    graph.sequence("count", (name, told), count)
}

/// Documented, and public.
#[ambo::graph(name = "shop.named", retry = Retry::exponential())]
pub fn named(graph: &mut Graph, name: Node<String>) -> Node<usize> {
    let len = graph.step("len", name, |name: String| async move { Ok(name.len()) });
    graph.retry(len, Retry::exponential());
    len
}

fn main() {
    let _ = nightly::enqueue();
    let _ = named::enqueue("name".to_owned());
    assert_eq!(named::NAME, "shop.named");
    assert_eq!(nightly::plan().unwrap().shape().nodes.len(), 4);
}
