//! Registration, heartbeat and the keeper's acts.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use crate::error::Result;
use crate::workflow::{GOES_ON, PIN};

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) queues: Vec<String>,
    pub(crate) workflows: Vec<String>,
    /// Whether the runs that it claims go on in workers of its version only.
    pub(crate) is_pinned: bool,
    /// How many runs it has in memory at most.
    pub(crate) max_in_flight: usize,
}

impl Registration {
    /// What the lanes that it serves are named after.
    pub(crate) fn lanes(&self) -> Vec<String> {
        let pinned = self.workflows.iter().map(|workflow| format!("{workflow}{PIN}{}", self.version));
        self.workflows.iter().cloned().chain(pinned.filter(|_| self.is_pinned)).collect()
    }

    /// The lanes that it serves in queues without groups: see `ambo.lane`.
    pub(crate) fn plain_lanes(&self) -> Vec<String> {
        let pins = ["", &*self.version];
        let pins = if self.is_pinned { &pins[..] } else { &pins[..1] };
        let going_on =
            |workflow| pins.iter().map(move |pin| format!("{workflow}{PIN}{pin}{PIN}{PIN}{GOES_ON}"));
        self.lanes().into_iter().chain(self.workflows.iter().flat_map(going_on)).collect()
    }
}

/// Registers under a new id; answers the id.
pub(crate) async fn register(
    session: &Session,
    schema: &Schema,
    registration: &Registration,
    holds_session: bool,
) -> Result<i64> {
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    let row = session
        .query_one(
            &schema.sql("select * from ambo.register_worker($1, $2, $3, $4, $5, $6, $7, $8)"),
            &[
                (&registration.name, Type::TEXT),
                (&registration.version, Type::TEXT),
                (&pid, Type::INT4),
                (&registration.queues, Type::TEXT_ARRAY),
                (&registration.workflows, Type::TEXT_ARRAY),
                (&holds_session, Type::BOOL),
                (&registration.is_pinned, Type::BOOL),
                (&i32::try_from(registration.max_in_flight).unwrap_or(i32::MAX), Type::INT4),
            ],
        )
        .await?;
    row.try_get(0).map_err(from_driver)
}

/// Takes the session lock of a worker on the connection of its heartbeat.
pub(crate) async fn hold(session: &Session, schema: &Schema, worker: i64) -> Result<bool> {
    let row = session.query_one(&schema.sql("select ambo.hold_worker($1)"), &[(&worker, Type::INT8)]).await?;
    row.try_get(0).map_err(from_driver)
}

/// Batches of one chore between two looks at the house.
const CHORE_ROUNDS: u32 = 30;

/// The answer to a heartbeat.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// False: this worker was declared dead and its runs are given to others.
    pub(crate) alive: bool,
    /// Something may have come for a run of this worker: ask with [`came_for`].
    pub(crate) look: bool,
    pub(crate) is_keeper: bool,
    /// To the keeper: workers to bury.
    pub(crate) dead: Vec<i64>,
    /// To the keeper: where the looks for due timers go on.
    pub(crate) timer_mark: Option<String>,
    /// The lease in milliseconds.
    pub(crate) lease_ms: i32,
    /// The time of the database, in microseconds since 1970.
    pub(crate) now_us: i64,
    /// To the keeper: ticks of schedules are due.
    pub(crate) schedules_due: bool,
    /// To the keeper: the grace of a cancel is over.
    pub(crate) graces_over: bool,
    /// How long until the next heartbeat has something to do: a tick after those, or the end of one that is silent.
    pub(crate) next_beat: Option<Duration>,
    /// Of the queues that it serves, those that are managed.
    pub(crate) managed: Vec<String>,
}

/// The time of the database, in microseconds since 1970.
pub(crate) async fn database_time(session: &Session, schema: &Schema) -> Result<i64> {
    super::admin::now(session, schema).await.map(|now| now.as_microsecond())
}

pub(crate) async fn heartbeat(
    session: &Session,
    schema: &Schema,
    worker: i64,
    in_flight: i32,
    draining: bool,
    timer_mark: Option<&str>,
    graces_after: Option<Timestamp>,
) -> Result<Pulse> {
    let row = session
        .query_one(
            &schema.sql(
                "select alive, look, is_keeper, dead, timer_mark::text, lease_ms, now_us, schedules_due, next_beat_ms,
                        managed, graces_over
                 from ambo.heartbeat($1, $2, $3, $4::text::json, $5)",
            ),
            &[
                (&worker, Type::INT8),
                (&in_flight, Type::INT4),
                (&draining, Type::BOOL),
                (&timer_mark, Type::TEXT),
                (&graces_after, Type::TIMESTAMPTZ),
            ],
        )
        .await?;
    let pulse = || -> Result<Pulse, tokio_postgres::Error> {
        Ok(Pulse {
            alive: row.try_get(0)?,
            look: row.try_get::<_, Option<_>>(1)?.unwrap_or_default(),
            is_keeper: row.try_get(2)?,
            dead: row.try_get::<_, Option<_>>(3)?.unwrap_or_default(),
            timer_mark: row.try_get(4)?,
            lease_ms: row.try_get(5)?,
            now_us: row.try_get(6)?,
            schedules_due: row.try_get::<_, Option<_>>(7)?.unwrap_or_default(),
            next_beat: row.try_get::<_, Option<i64>>(8)?.map(|ms| Duration::from_millis(ms.unsigned_abs())),
            managed: row.try_get::<_, Option<_>>(9)?.unwrap_or_default(),
            graces_over: row.try_get::<_, Option<_>>(10)?.unwrap_or_default(),
        })
    };
    pulse().map_err(from_driver)
}

/// A run that somebody asked to cancel, and by when it has ended then.
pub(crate) type CancelledRun = (Uuid, Option<Timestamp>);

/// Of these runs, in a worker's memory, those that somebody asked to cancel, and those for which something has come.
pub(crate) async fn came_for(
    session: &Session,
    schema: &Schema,
    runs: &[Uuid],
) -> Result<(Vec<CancelledRun>, Vec<Uuid>)> {
    let sql = schema.sql("select cancelled, woken, undo_by_us from ambo.came_for($1)");
    let row = session.query_one(&sql, &[(&runs, Type::UUID_ARRAY)]).await?;
    let read = || -> Result<_, tokio_postgres::Error> {
        let (cancelled, by): (Vec<Uuid>, Vec<Option<i64>>) = (row.try_get(0)?, row.try_get(2)?);
        let by = by.into_iter().map(|by| Timestamp::from_microsecond(by?).ok());
        Ok((cancelled.into_iter().zip(by).collect(), row.try_get(1)?))
    };
    read().map_err(from_driver)
}

/// What burying a worker did.
#[derive(Debug)]
pub(crate) struct Burial {
    pub(crate) recovered: i32,
    pub(crate) dead_lettered: i32,
    pub(crate) buried: bool,
    /// A backend holds the lock of a worker that has long been silent, and the owner of the schema may not end it.
    pub(crate) held: bool,
    /// Where to go on; none at the end.
    pub(crate) next: Option<Walk>,
}

/// Where a burial stands.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Walk {
    /// Of the table of claims.
    page: i64,
    /// Some of the claims before were locked.
    left_behind: bool,
}

pub(crate) async fn bury(
    session: &Session,
    schema: &Schema,
    keeper: i64,
    worker: i64,
    limit: i32,
    walk: Walk,
) -> Result<Burial> {
    let sql = "select recovered, dead_lettered, buried, held, left_behind, next_page
        from ambo.bury_worker($1, $2, $3, $4, $5)";
    let row = session
        .query_one(
            &schema.sql(sql),
            &[
                (&keeper, Type::INT8),
                (&worker, Type::INT8),
                (&limit, Type::INT4),
                (&walk.page, Type::INT8),
                (&walk.left_behind, Type::BOOL),
            ],
        )
        .await?;
    let burial = || -> Result<Burial, tokio_postgres::Error> {
        Ok(Burial {
            recovered: row.try_get(0)?,
            dead_lettered: row.try_get(1)?,
            buried: row.try_get(2)?,
            held: row.try_get(3)?,
            next: match row.try_get(5)? {
                Some(page) => Some(Walk { page, left_behind: row.try_get(4)? }),
                None => None,
            },
        })
    };
    burial().map_err(from_driver)
}

/// Ends runs whose time to start is over, up to `limit`; answers where the next look goes on, and whether there may be more.
pub(crate) async fn expire_runs(
    session: &Session,
    schema: &Schema,
    limit: i32,
    mark: Option<&str>,
) -> Result<(i32, String, bool)> {
    let sql = schema.sql("select expired, mark::text, more from ambo.expire_runs($1, $2::text::json)");
    let row = session.query_one(&sql, &[(&limit, Type::INT4), (&mark, Type::TEXT)]).await?;
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    read().map_err(from_driver)
}

/// A version of workers that runs are pinned to.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) version: String,
    /// Whether such a worker lives; if not, runs wait for one.
    pub(crate) is_alive: bool,
    /// How long they wait.
    pub(crate) grace: Duration,
}

pub(crate) async fn pins(session: &Session, schema: &Schema) -> Result<Vec<Pin>> {
    let rows = session.query(&schema.sql("select version, is_alive, grace_ms from ambo.pins()"), &[]).await?;
    rows.iter()
        .map(|row| {
            let grace = Duration::from_millis(row.try_get::<_, i64>(2)?.unsigned_abs());
            Ok(Pin { version: row.try_get(0)?, is_alive: row.try_get(1)?, grace })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)
}

/// Gives runs that are pinned to these versions to any worker, up to `limit`; answers how many.
pub(crate) async fn release_pins(
    session: &Session,
    schema: &Schema,
    versions: &[String],
    limit: i32,
) -> Result<i32> {
    let sql = schema.sql("select ambo.release_pins($1, $2)");
    let row = session.query_one(&sql, &[(&versions, Type::TEXT_ARRAY), (&limit, Type::INT4)]).await?;
    row.try_get(0).map_err(from_driver)
}

/// Where the looks for cancels whose grace is over go on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graces {
    /// None was over by then whose run had not ended.
    pub(crate) after: Option<Timestamp>,
    /// The snapshot of the last look.
    since: Option<String>,
}

/// Ends such runs that nobody has in execution, up to `limit`; answers how many, and whether there may be more.
pub(crate) async fn end_unclaimed(
    session: &Session,
    schema: &Schema,
    limit: i32,
    graces: &mut Graces,
) -> Result<(i32, bool)> {
    let sql = "select ended, after, since::text, more from ambo.end_unclaimed($1, $2, $3::text::pg_snapshot)";
    let row = session
        .query_one(
            &schema.sql(sql),
            &[(&limit, Type::INT4), (&graces.after, Type::TIMESTAMPTZ), (&graces.since, Type::TEXT)],
        )
        .await?;
    let read =
        || Ok((Graces { after: row.try_get(1)?, since: row.try_get(2)? }, row.try_get(0)?, row.try_get(3)?));
    let (next, ended, more) = read().map_err(from_driver)?;
    *graces = next;
    Ok((ended, more))
}

/// What the rare duties have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum House {
    /// Nothing.
    InOrder,
    /// One of them may have more to do.
    More,
    /// What somebody else had a lock on.
    Busy,
}

/// The rare duties: partitions ahead, partitions past retention, keys past their lifetime. Each is a statement of
/// its own, so that one that cannot get its lock does not keep the others from being done.
pub(crate) async fn keep_house(session: &Session, schema: &Schema) -> Result<House> {
    let (mut left, mut first_error) = (House::InOrder, None);
    for sql in [
        "select ambo.make_partitions()::text",
        "select ambo.drop_partition()::text",
        "select ambo.expire_keys(10000)::text",
        "select ambo.expire_heads(10000)::text",
        "select ambo.expire_dead(10000)::text",
    ] {
        match chore(session, &schema.sql(sql)).await {
            Ok(more) => left = left.max(if more { House::More } else { House::InOrder }),
            // A lock was not to be had within its 50 ms.
            Err(error) if error.sqlstate() == Some("55P03") => left = House::Busy,
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(left), Err)
}

/// One duty, again while it finds a full batch to do. Says whether there may be more: partitions are dropped one at a time, for
/// everybody waits meanwhile.
async fn chore(session: &Session, sql: &str) -> Result<bool> {
    for _ in 0..CHORE_ROUNDS {
        let row = session.query_one(sql, &[]).await?;
        match row.try_get::<_, Option<String>>(0).map_err(from_driver)?.as_deref() {
            Some("10000") => {}
            answer => return Ok(answer == Some("true")),
        }
    }
    Ok(true)
}

/// `held`: what it still has in memory.
pub(crate) async fn leave(
    session: &Session,
    schema: &Schema,
    worker: i64,
    held: &[(Uuid, i32)],
) -> Result<i32> {
    let (runs, attempts): (Vec<Uuid>, Vec<i32>) = held.iter().copied().unzip();
    let row = session
        .query_one(
            &schema.sql("select ambo.leave($1, $2, $3)"),
            &[(&worker, Type::INT8), (&runs, Type::UUID_ARRAY), (&attempts, Type::INT4_ARRAY)],
        )
        .await?;
    row.try_get::<_, i32>(0).map_err(from_driver)
}

/// Takes the locks that show enqueuers that somebody sleeps, or gives them back.
pub(crate) async fn show_asleep(session: &Session, schema: &Schema, lock: &str, asleep: bool) -> Result<()> {
    let verb = if asleep { "pg_advisory_lock_shared" } else { "pg_advisory_unlock_shared" };
    session
        .query(
            &schema.sql(&format!(
                "select {verb}(hashtext('ambo.{lock}'), slot) from generate_series(0, 15) slot"
            )),
            &[],
        )
        .await?;
    Ok(())
}
