//! Installs and upgrades the schema: migrations once, functions whenever they changed, under one lock.

use tokio_postgres::types::Type;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use crate::error::{Code, Error, Result};

/// The version of the schema that this code works with: the number of the last migration.
pub(crate) const SCHEMA_VERSION: i32 = 1;

/// Tables, in the order in which they are applied; once released they do not change.
const MIGRATIONS: &[(i32, &str)] = &[(1, include_str!("../../sql/migrations/0001_initial.sql"))];

/// Functions: replaced on each migration, one verb a file.
const FUNCTIONS: &[&str] = &[
    include_str!("../../sql/functions/run_id.sql"),
    include_str!("../../sql/functions/wake.sql"),
    include_str!("../../sql/functions/queue.sql"),
    include_str!("../../sql/functions/object.sql"),
    include_str!("../../sql/functions/enqueue.sql"),
    include_str!("../../sql/functions/key.sql"),
    include_str!("../../sql/functions/expiry.sql"),
    include_str!("../../sql/functions/drain.sql"),
    include_str!("../../sql/functions/fan_in.sql"),
    include_str!("../../sql/functions/dead.sql"),
    include_str!("../../sql/functions/claim.sql"),
    include_str!("../../sql/functions/claim_queue.sql"),
    include_str!("../../sql/functions/start.sql"),
    include_str!("../../sql/functions/child.sql"),
    include_str!("../../sql/functions/event.sql"),
    include_str!("../../sql/functions/attribute.sql"),
    include_str!("../../sql/functions/park.sql"),
    include_str!("../../sql/functions/signal.sql"),
    include_str!("../../sql/functions/flush.sql"),
    include_str!("../../sql/functions/transaction.sql"),
    include_str!("../../sql/functions/worker.sql"),
    include_str!("../../sql/functions/workflow.sql"),
    include_str!("../../sql/functions/keeper.sql"),
    include_str!("../../sql/functions/partition.sql"),
    include_str!("../../sql/functions/admin.sql"),
    include_str!("../../sql/functions/list.sql"),
    include_str!("../../sql/functions/why.sql"),
    include_str!("../../sql/functions/fork.sql"),
    include_str!("../../sql/functions/schedule.sql"),
    include_str!("../../sql/functions/doctor.sql"),
    include_str!("../../sql/functions/role.sql"),
];

/// All of it as one script, for teams that apply SQL with a tool of their own.
pub(crate) fn script(schema: &Schema) -> String {
    format!("begin;\n\n{}\ncommit;\n", body(schema, 0))
}

/// What brings a database from version `from` to this one.
fn body(schema: &Schema, from: i32) -> String {
    let mut out = format!(
        "-- Ambo, schema version {SCHEMA_VERSION}.\n\
         set local client_min_messages = warning;\n\
         set local check_function_bodies = off;\n\
         select pg_advisory_xact_lock(hashtext('ambo.migrate'));\n\
         create schema if not exists {};\n\n",
        schema.name()
    );
    for (version, sql) in MIGRATIONS {
        if *version > from {
            out.push_str(&schema.sql(sql));
            out.push('\n');
        }
    }
    for sql in FUNCTIONS {
        out.push_str(&schema.sql(sql));
        out.push('\n');
    }
    out.push_str(&schema.sql(include_str!("../../sql/install.sql")));
    out.push_str(&schema.sql(&format!(
        "\nupdate ambo.installation set schema_version = {SCHEMA_VERSION};\nselect ambo.make_partitions();\n"
    )));
    out
}

/// Installs all of it in an empty database of a test: with a clock that can be moved, and room in the history for wherever it is
/// moved to.
#[cfg(feature = "testing")]
pub(crate) async fn install_to_test(session: &Session) -> Result<()> {
    let clock = include_str!("../../sql/testing.sql");
    let years = "update ambo.installation set partition_width = '36500 days', partitions_ahead = 2;";
    let body = test_time(&body(&Schema::default(), 0))
        .replacen("create schema if not exists ambo;", &format!("create schema ambo;\n{clock}"), 1)
        .replacen("select ambo.make_partitions();", &format!("{years}\nselect ambo.make_partitions();"), 1);
    session.batch(&format!("begin;\n{body}\ncommit;")).await
}

/// Whether a test may move the clock here: it still may after a program under test has migrated its database.
#[cfg(feature = "testing")]
async fn has_test_clock(session: &Session, schema: &Schema) -> Result<bool> {
    let sql = "select to_regclass($1 || '.test_clock') is not null";
    session.query_one(sql, &[(&schema.name(), Type::TEXT)]).await?.try_get(0).map_err(from_driver)
}

/// Has SQL ask the clock of tests, except where it names that of the server.
#[cfg(feature = "testing")]
fn test_time(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 1000);
    let mut rest = sql;
    while let Some(at) = rest.find("()") {
        let (before, after) = rest.split_at(at + 2);
        let clock = ["clock_timestamp()", "now()"].into_iter().find(|clock| {
            let word = before.strip_suffix(clock).map(|start| start.chars().next_back());
            word.is_some_and(|c| !c.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.'))
        });
        match clock {
            Some(clock) => {
                out.push_str(&before[..before.len() - clock.len()]);
                out.push_str("ambo.");
                out.push_str(clock);
            }
            None => out.push_str(before),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The version that the database holds; 0 if it holds none.
pub(crate) async fn version(session: &Session, schema: &Schema) -> Result<i32> {
    let row = session
        .query_one(
            "select to_regprocedure($1 || '.schema_version()') is not null",
            &[(&schema.name(), Type::TEXT)],
        )
        .await?;
    if !row.try_get::<_, bool>(0).map_err(from_driver)? {
        return Ok(0);
    }
    let row = session.query_one(&schema.sql("select ambo.schema_version()"), &[]).await?;
    row.try_get(0).map_err(from_driver)
}

/// Brings the database to this version and returns the version it had. Any number of processes may call it at once.
pub(crate) async fn migrate(session: &Session, schema: &Schema) -> Result<i32> {
    session
        .batch(&format!("begin; {}", schema.sql("select pg_advisory_xact_lock(hashtext('ambo.migrate'))")))
        .await?;
    let from = match version(session, schema).await {
        Ok(from) => from,
        Err(error) => {
            let _ = session.batch("rollback").await;
            return Err(error);
        }
    };
    if from > SCHEMA_VERSION {
        session.batch("rollback").await?;
        return Err(mismatch(from));
    }
    #[cfg_attr(not(feature = "testing"), allow(unused_mut))]
    let mut body = body(schema, from);
    #[cfg(feature = "testing")]
    if has_test_clock(session, schema).await? {
        body = test_time(&body);
    }
    let applied = session.batch(&format!("{body}\ncommit;")).await;
    if applied.is_err() {
        let _ = session.batch("rollback").await;
    }
    applied.map(|()| from)
}

/// Refuses a schema that this code does not fit.
pub(crate) async fn check(session: &Session, schema: &Schema) -> Result<()> {
    match version(session, schema).await? {
        SCHEMA_VERSION => Ok(()),
        other => Err(mismatch(other)),
    }
}

fn mismatch(found: i32) -> Error {
    let text = match found {
        0 => "the database holds no schema of Ambo; run: ambo migrate".to_owned(),
        n if n < SCHEMA_VERSION => {
            format!("the schema has version {n}, this program needs {SCHEMA_VERSION}; run: ambo migrate")
        }
        n => format!("the schema has version {n}, this program knows {SCHEMA_VERSION}; upgrade the program"),
    };
    Error::new(Code::SchemaMismatch, text)
}
