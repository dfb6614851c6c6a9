//! The server of the tests that stand beside the code.

use ambo_postgres::{Cluster, Place};

/// The URL of the test run's server, or of one of our own, which lives as long as what comes with it.
pub(super) fn server() -> (String, Option<Cluster>) {
    match std::env::var("AMBO_TEST_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let cluster =
                Cluster::builder().temporary(Place::Memory).durable(false).start().expect("a server");
            (cluster.url("postgres"), Some(cluster))
        }
    }
}
