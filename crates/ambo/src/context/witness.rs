//! The witness: exactly once in a database other than the one that Ambo lives in.
//!
//! The two databases have no commit in common. So the step leaves a row, its witness, in one commit with the user's
//! writes; the checkpoint follows in the journal. A run that is replayed without the checkpoint finds the witness. A
//! worker that was thought dead has no fence there: a later attempt that goes past the step leaves a tombstone, with
//! which that worker's witness conflicts.

use crate::error::{Error, Result};
use crate::on::{Database, Isolation, Token};

/// The SQL that [`install_witness`] runs, for teams that apply SQL with a tool of their own. It may be run again.
pub const WITNESS_SQL: &str = include_str!("../../sql/witness.sql");

/// Installs, or brings up to date, the table of witnesses in a database in which transaction steps are run with
/// [`witnessed`](crate::TransactionStep::witnessed): the schema `ambo_witness`, whatever the schema of Ambo is called.
///
/// Witnesses stay until `select ambo_witness.prune('60 days')` is run there, with an age that no run reaches.
///
/// # Errors
/// `AMBO040` if the database is away; `AMBO050` with what it says, for instance that the role may not create a schema.
///
/// # Cancel safety
/// All of it is installed or nothing.
pub async fn install_witness<D: Database>(database: &D) -> Result<()> {
    let mut connection = database.begin(Isolation::ReadCommitted, Token(())).await?;
    let quiet = "select set_config('client_min_messages', 'warning', true), \
                 pg_advisory_xact_lock(hashtext('ambo_witness'))::text";
    // One statement, as everything that goes through a user's driver.
    let install = format!("do $ambo$ begin\n{WITNESS_SQL}\nend $ambo$");
    for sql in [quiet, &install] {
        if let Err(error) = D::call(&mut connection, sql, &[], Token(())).await {
            D::rollback(connection, Token(())).await;
            return Err(refused(error));
        }
    }
    D::commit(connection, Token(())).await
}

fn refused(error: Error) -> Error {
    let text = format!("the witness could not be installed: {}", error.text());
    let sqlstate = error.sqlstate().map(str::to_owned);
    let refused = Error::new(error.code(), text).with_source(error);
    match sqlstate {
        Some(sqlstate) => refused.with_sqlstate(&sqlstate),
        None => refused,
    }
}
