//! Installs and upgrades the schema: migrations once, functions whenever they changed, under one lock, and so that nobody
//! who is at work has to wait for it.

#[cfg(feature = "failpoints")]
mod next;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_postgres::types::Type;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use crate::engine::clock::jitter;
use crate::error::{Code, Error, Result};

/// The version of the schema that this code works with: the number of the last migration.
pub(crate) const SCHEMA_VERSION: i32 = 1;

/// The oldest version of a program that a schema of this version serves: its tables and functions have everything that
/// those programs call, with the signatures that they know. Programs of the version before are always among them.
const SERVES_FROM: i32 = 1;

/// How long a migration may wait for the lock of a table, which everybody after it waits for too.
const LOCK_TIMEOUT: &str = "25ms";
/// How long it tries again, each time after a pause, while others hold the tables.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before it asks for the lock of a table it waits, and nobody with it, for whoever has been in a transaction there for longer than
/// this, at most so long. Whoever has been there for less is likely to be gone before the lock times out.
const SETTLED: Duration = Duration::from_millis(15);
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

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
    include_str!("../../sql/functions/timer.sql"),
    include_str!("../../sql/functions/partition.sql"),
    include_str!("../../sql/functions/retention.sql"),
    include_str!("../../sql/functions/admin.sql"),
    include_str!("../../sql/functions/list.sql"),
    include_str!("../../sql/functions/why.sql"),
    include_str!("../../sql/functions/fork.sql"),
    include_str!("../../sql/functions/cron.sql"),
    include_str!("../../sql/functions/schedule.sql"),
    include_str!("../../sql/functions/doctor.sql"),
    include_str!("../../sql/functions/role.sql"),
];

/// All that stands in the schema is Ambo's: it takes away what the public may do there. And it is text of one encoding: in a database that
/// knows none, a byte that is no character of any would keep all that comes with it from being read.
const REFUSE_OTHERS: &str = "do $$ begin
    if current_setting('server_encoding') <> 'UTF8' then
        raise exception 'AMBO041: the database has the encoding %; Ambo needs UTF8', current_setting('server_encoding')
            using errcode = 'AM041', hint = 'Make one: create database NAME encoding ''UTF8'' template template0.';
    end if;
    if to_regprocedure('ambo.schema_version()') is not null then
        raise exception 'AMBO041: the schema % holds Ambo already, and this script is to install it', 'ambo' using errcode = 'AM041',
            hint = format('To bring it up to date: ambo --schema %s migrate.', 'ambo');
    end if;
    if exists (select from pg_namespace n where n.nspname = 'ambo'
               and (exists (select from pg_class c where c.relnamespace = n.oid)
                    or exists (select from pg_proc p where p.pronamespace = n.oid)))
    then
        raise exception 'AMBO041: the schema % holds what is not of Ambo', 'ambo' using errcode = 'AM041',
            hint = 'Install it in a schema of its own: ambo --schema NAME migrate.';
    end if;
end $$;
";

/// The version of this program. The tests of upgrades have one of the version to come.
fn newest() -> i32 {
    #[cfg(feature = "failpoints")]
    if next::is_wanted() {
        return SCHEMA_VERSION + 1;
    }
    SCHEMA_VERSION
}

fn migrations() -> impl Iterator<Item = (i32, &'static str)> {
    #[cfg(feature = "failpoints")]
    let next = next::is_wanted().then_some((SCHEMA_VERSION + 1, next::MIGRATION));
    #[cfg(not(feature = "failpoints"))]
    let next: Option<(i32, &'static str)> = None;
    MIGRATIONS.iter().copied().chain(next)
}

/// All of it as one script, for teams that apply SQL with a tool of their own.
pub(crate) fn script(schema: &Schema) -> String {
    format!("begin;\n\n{}\ncommit;\n", everything(schema))
}

/// What makes an empty database one of this version.
fn everything(schema: &Schema) -> String {
    let mut out = format!(
        "-- Ambo, schema version {}.\n\
         set local client_min_messages = warning;\n\
         set local standard_conforming_strings = on;\n\
         set local check_function_bodies = off;\n\
         select pg_advisory_xact_lock(hashtext('ambo.migrate'));\n\
         {}\
         create schema if not exists {};\n\n",
        newest(),
        schema.sql(REFUSE_OTHERS),
        schema.name()
    );
    for (_, sql) in migrations() {
        out.push_str(&schema.sql(sql));
        out.push('\n');
    }
    out.push_str(&functions(schema));
    out.push_str(&schema.sql("select ambo.revoke_defaults(null);\n"));
    out
}

/// What brings the functions to this version, and says so. Takes no lock that anyone at work would wait for.
fn functions(schema: &Schema) -> String {
    let mut out = "set local client_min_messages = warning;\nset local standard_conforming_strings = on;\n\
         set local check_function_bodies = off;\n\n"
        .to_owned();
    for sql in FUNCTIONS {
        out.push_str(&schema.sql(sql));
        out.push('\n');
    }
    #[cfg(feature = "failpoints")]
    if next::is_wanted() {
        out.push_str(&schema.sql(next::FUNCTIONS));
    }
    out.push_str(&schema.sql(include_str!("../../sql/install.sql")));
    out.push_str(&schema.sql(&format!(
        "\nupdate ambo.installation set schema_version = {0}, tables_version = {0}, serves_from = {SERVES_FROM};\n\
         select ambo.make_partitions();\n",
        newest()
    )));
    out
}

/// Installs all of it in an empty database of a test: with a clock that can be moved, and room in the history for wherever it is
/// moved to.
#[cfg(feature = "testing")]
pub(crate) async fn install_to_test(session: &Session) -> Result<()> {
    let clock = include_str!("../../sql/testing.sql");
    let years = "update ambo.installation set partition_width = '36500 days', partitions_ahead = 2;";
    let body = test_time(&everything(&Schema::default()))
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

/// What a database holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Installed {
    /// Of tables and functions.
    pub(crate) version: i32,
    /// Of the tables: higher in the midst of an upgrade.
    tables: i32,
    /// The oldest program that it serves.
    pub(crate) serves_from: i32,
}

impl Installed {
    fn serves(self, program: i32) -> bool {
        (self.serves_from..=self.version).contains(&program)
    }
}

/// What the database holds; nothing if Ambo is not installed there.
pub(crate) async fn installed(session: &Session, schema: &Schema) -> Result<Option<Installed>> {
    let row = session
        .query_one(
            "select to_regprocedure($1 || '.schema_version()') is not null",
            &[(&schema.name(), Type::TEXT)],
        )
        .await?;
    if !row.try_get::<_, bool>(0).map_err(from_driver)? {
        return Ok(None);
    }
    let sql = "select version, tables_version, serves_from from ambo.schema_version()";
    let row = session.query_one(&schema.sql(sql), &[]).await?;
    let read = || -> Result<_, tokio_postgres::Error> {
        Ok(Installed { version: row.try_get(0)?, tables: row.try_get(1)?, serves_from: row.try_get(2)? })
    };
    read().map(Some).map_err(from_driver)
}

/// Brings the database to this version and returns the version it had and has. Any number of processes may call it at
/// once, and beside any load: each table is changed in a transaction of its own, which gives up rather than let others
/// wait, and comes back. A schema that is newer than this program is left alone, and fits if it serves it.
pub(crate) async fn migrate(session: &Session, schema: &Schema) -> Result<(i32, i32)> {
    let began = Instant::now();
    let mut before = None;
    loop {
        let step = step(session, schema).await;
        if step.is_err() {
            let _ = session.batch("rollback").await;
        }
        match step {
            Ok(Step { found, done }) => {
                let before = *before.get_or_insert(found);
                if let Some(now) = done {
                    return Ok((before, now));
                }
            }
            Err(error) if is_passing(&error) && began.elapsed() < PATIENCE => {
                tracing::info!(%error, "a table is in use; the migration comes back for it");
                tokio::time::sleep(Duration::from_millis(100).mul_f64(0.5 + jitter())).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the same may succeed a moment later.
fn is_passing(error: &Error) -> bool {
    // 55P03: somebody holds a table. 40P01: two waited for each other, and we are the one that can wait. XX000: the keeper
    // made a partition while we changed what belongs to its parent.
    matches!(error.sqlstate(), Some("55P03" | "40P01"))
        || error.sqlstate() == Some("XX000") && error.text().contains("concurrently updated")
}

/// One transaction of a migration.
struct Step {
    /// The version before it.
    found: i32,
    /// The version after all of them, if this was the last.
    done: Option<i32>,
}

async fn step(session: &Session, schema: &Schema) -> Result<Step> {
    session
        .batch(&format!("begin; {}", schema.sql("select pg_advisory_xact_lock(hashtext('ambo.migrate'))")))
        .await?;
    let Some(found) = installed(session, schema).await? else {
        // Nobody can be at work here.
        session.batch(&format!("{}\ncommit;", everything(schema))).await?;
        return Ok(Step { found: 0, done: Some(newest()) });
    };
    if found.version > newest() {
        session.batch("rollback").await?;
        return if found.serves(newest()) {
            Ok(Step { found: found.version, done: Some(found.version) })
        } else {
            Err(mismatch(Some(found)))
        };
    }
    let (sql, done) = match migrations().find(|(version, _)| *version > found.tables) {
        Some((version, sql)) => {
            settle(session, schema).await?;
            let noted = format!("{sql}\nupdate ambo.installation set tables_version = {version};");
            (schema.sql(&noted).into_owned(), None)
        }
        None => (functions(schema), Some(newest())),
    };
    #[cfg(feature = "testing")]
    let sql = if has_test_clock(session, schema).await? { test_time(&sql) } else { sql };
    session.batch(&format!("set local lock_timeout = '{LOCK_TIMEOUT}';\n{sql}\ncommit;")).await?;
    Ok(Step { found: found.version, done })
}

/// Waits until nobody is in a long transaction that has come upon a table of ours. To ask for a lock at any time and give up
/// after [`LOCK_TIMEOUT`] would come at the right moment now and then: with a client that is always in some transaction of
/// 300 ms, after some ten seconds.
async fn settle(session: &Session, schema: &Schema) -> Result<()> {
    let began = Instant::now();
    // Since when each transaction has been seen; those of the first look began nobody knows when.
    let mut known: Option<HashMap<String, Option<Instant>>> = None;
    let sql = "select distinct l.virtualtransaction from pg_locks l
        join pg_class c on c.oid = l.relation and c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p')
        where l.granted and l.pid <> pg_backend_pid()
          and l.database = (select d.oid from pg_database d where d.datname = current_database())";
    loop {
        let now = Instant::now();
        let mut present = HashMap::new();
        for row in session.query(sql, &[(&schema.name(), Type::TEXT)]).await? {
            let holder: String = row.try_get(0).map_err(from_driver)?;
            let since = known.as_ref().and_then(|known| known.get(&holder).copied().unwrap_or(Some(now)));
            present.insert(holder, since);
        }
        let settled = present.values().all(|since| since.is_some_and(|since| now - since < SETTLED));
        if settled || began.elapsed() > SETTLES_WITHIN {
            return Ok(());
        }
        known = Some(present);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Refuses a schema that this code does not fit.
pub(crate) async fn check(session: &Session, schema: &Schema) -> Result<()> {
    match installed(session, schema).await? {
        Some(found) if found.serves(newest()) => Ok(()),
        other => Err(mismatch(other)),
    }
}

fn mismatch(found: Option<Installed>) -> Error {
    let program = newest();
    let text = match found {
        None => "the database holds no schema of Ambo; run: ambo migrate".to_owned(),
        Some(Installed { version, .. }) if version < program => {
            format!("the schema has version {version}, this program needs {program}; run: ambo migrate")
        }
        Some(Installed { version, serves_from, .. }) => format!(
            "the schema has version {version} and serves programs from version {serves_from} on, this program is of \
             version {program}; upgrade the program"
        ),
    };
    Error::new(Code::SchemaMismatch, text)
}
