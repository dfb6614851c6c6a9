//! A private PostgreSQL of one's own, for development, tests, benchmarks and demonstrations.
//!
//! [`Cluster`] makes a data directory, starts a real server on it and stops it again. [`Binaries`] finds the
//! programs that this needs, or fetches them. Nothing here is for production: anybody who can reach the loopback
//! interface of the machine can log in.
//!
//! What it promises:
//!
//! - **Nothing is left running.** The server dies with its owner, however the owner dies: also by `SIGKILL`, which
//!   no destructor survives. Temporary data goes with it.
//! - **Nothing of yours is touched.** Each cluster has its own directory, its own port and its own socket. An
//!   installed server that runs already is neither used nor disturbed.
//! - **Root is no obstacle.** PostgreSQL refuses to run as root, so the server runs as `postgres` or `nobody` then.
//!
//! Everything here blocks; in async code call it from a blocking thread. Only Unix-like systems are served; on
//! others the crate is empty.
//!
//! # Example: a server for one program
//!
//! ```no_run
//! use ambo_postgres::{Cluster, Place};
//!
//! # fn main() -> Result<(), ambo_postgres::Error> {
//! let cluster = Cluster::builder().temporary(Place::Memory).max_connections(50).start()?;
//! cluster.create_database("shop")?;
//! println!("connect to {}", cluster.url("shop"));
//! drop(cluster); // stopped, and its directory is gone
//! # Ok(())
//! # }
//! ```
//!
//! # Example: a crash, and life after it
//!
//! ```no_run
//! use ambo_postgres::{Cluster, Place, Shutdown};
//!
//! # fn main() -> Result<(), ambo_postgres::Error> {
//! let cluster = Cluster::builder().temporary(Place::Disk).durable(true).start()?;
//! cluster.kill()?; // as the kernel's out-of-memory killer would
//! cluster.start()?; // recovers, on the same port
//! cluster.restart(Shutdown::Fast)?;
//! # Ok(())
//! # }
//! ```
#![cfg(unix)]

mod account;
mod binaries;
mod builder;
mod cluster;
mod error;
mod guard;
mod parent;
mod place;
mod pooler;
mod wire;

pub use binaries::{Binaries, OLDEST_MAJOR, default_cache};
pub use builder::Builder;
pub use cluster::{Cluster, Shutdown};
pub use error::Error;
pub use parent::exit_with_parent;
pub use place::Place;
pub use pooler::Pooler;
