//! What Ambo is measured against where no peer can follow: plain PostgreSQL, and the least code for the job.

pub mod checkpoint_rows;
pub mod pgbench;
pub mod prototype;
pub mod user_transaction;
