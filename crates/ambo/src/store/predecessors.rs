//! Whom a link ends before it goes on: what served its lost connections, and nobody else.

use std::time::Duration;

use super::connect::{Backend, Link, Session, Target};
use super::schema::Schema;
use super::test_server::server;

async fn is_alive(session: &Session) -> bool {
    session.query_one("select 1", &[]).await.is_ok()
}

/// A server that was restarted gives out its process ids anew.
#[tokio::test]
async fn a_backend_with_the_process_id_of_an_earlier_one_is_left_alone() {
    let (url, _cluster) = server();
    let target = Target::parse(&url, Schema::new("ambo").unwrap()).unwrap();
    let role = "ambo test of predecessors";
    let (lost, another) = (target.open(role, None).await.unwrap(), target.open(role, None).await.unwrap());
    let mut link = Link::new(target, role);
    link.session().await.unwrap();
    let earlier = Backend { since: 0, ..another.backend.unwrap() };
    link.predecessors.extend([lost.backend, Some(earlier)]);
    let awaited = tokio::time::timeout(Duration::from_secs(20), link.await_predecessors()).await;
    awaited.expect("it waits for ever").unwrap();
    assert!(!is_alive(&lost).await, "what was asked for on a lost connection may still commit");
    assert!(is_alive(&another).await, "another's backend was ended");
    assert!(is_alive(link.session().await.unwrap()).await);
    assert!(!link.has_predecessors());
}
