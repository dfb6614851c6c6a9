//! Flush: one batch of the journal, whatever it holds, and the reading back of one whose answer was lost.

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::enqueue::NewRun;
use super::schema::Schema;
use super::types::{Interval, JsonText};
use crate::error::Result;
use crate::payload::Json;

/// A checkpoint to be recorded: output or error.
#[derive(Debug)]
pub(crate) struct NewCheckpoint {
    pub(crate) run: Uuid,
    pub(crate) attempt: i32,
    pub(crate) position: std::sync::Arc<str>,
    pub(crate) name: std::borrow::Cow<'static, str>,
    pub(crate) output: Option<Json>,
    pub(crate) error: Option<Json>,
    pub(crate) elapsed_ms: i32,
}

/// An outcome to be recorded.
#[derive(Debug)]
pub(crate) struct NewOutcome {
    pub(crate) run: Uuid,
    pub(crate) attempt: i32,
    pub(crate) status: &'static str,
    pub(crate) output: Option<Json>,
    pub(crate) error: Option<Json>,
}

/// A value that a run publishes under a key.
#[derive(Debug)]
pub(crate) struct NewEvent {
    pub(crate) key: Box<str>,
    /// From 1 within the key.
    pub(crate) number: i32,
    pub(crate) value: Json,
}

/// An attribute that a run sets on itself.
#[derive(Debug)]
pub(crate) struct NewAttribute {
    pub(crate) key: Box<str>,
    pub(crate) value: Json,
}

/// A run that a run starts.
#[derive(Debug)]
pub(crate) struct NewChild {
    pub(crate) id: Uuid,
    pub(crate) run: NewRun,
    /// Inherited from the parent.
    pub(crate) deadline: Option<jiff::Timestamp>,
    pub(crate) detached: bool,
}

/// A run that leaves memory until it is due or woken.
#[derive(Debug, Default)]
pub(crate) struct NewPark {
    pub(crate) run: Uuid,
    pub(crate) attempt: i32,
    /// `None`: only something that comes for it wakes it.
    pub(crate) due: Option<jiff::Timestamp>,
    /// What it waits for, as JSON, for whoever asks.
    pub(crate) awaits: Option<String>,
    /// Why it is tried again from the beginning, if that is why.
    pub(crate) failure: Option<NewCheckpoint>,
    /// Positions, with commas between, that are to be recorded anew.
    pub(crate) forget: Option<String>,
    /// What it continues as new with: all that it has recorded is forgotten.
    pub(crate) state: Option<String>,
}

/// What one flush records.
#[derive(Debug, Default)]
pub(crate) struct Batch<'a> {
    pub(crate) checkpoints: Vec<&'a NewCheckpoint>,
    pub(crate) outcomes: Vec<&'a NewOutcome>,
    /// Each with the checkpoint that names it.
    pub(crate) events: Vec<(&'a NewCheckpoint, &'a NewEvent)>,
    pub(crate) children: Vec<(&'a NewCheckpoint, &'a NewChild)>,
    pub(crate) parks: Vec<&'a NewPark>,
    /// Each with the checkpoint that names it.
    pub(crate) attributes: Vec<(&'a NewCheckpoint, &'a NewAttribute)>,
    /// Parents of runs that end.
    pub(crate) woken: Vec<Uuid>,
    /// Of the runs that end or are parked, those that hold a slot.
    pub(crate) freed: Vec<Uuid>,
}

type Param<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// Records a batch; returns the runs whose claim this worker no longer holds.
pub(crate) async fn flush(
    session: &Session,
    schema: &Schema,
    worker: i64,
    batch: &Batch<'_>,
) -> Result<Vec<Uuid>> {
    let mut params: Vec<(Param<'_>, Type)> = vec![(Box::new(worker), Type::INT8)];
    batch.add_facts(&mut params);
    let plain = batch.events.is_empty()
        && batch.children.is_empty()
        && batch.parks.is_empty()
        && batch.attributes.is_empty()
        && batch.woken.is_empty();
    let sql = if plain {
        batch.add_freed(&mut params);
        "select ambo.flush($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
    } else {
        batch.add_events(&mut params);
        batch.add_children(&mut params);
        batch.add_parks(&mut params);
        batch.add_attributes(&mut params);
        batch.add_freed(&mut params);
        "select ambo.flush_all($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
         $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, \
         $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45)"
    };
    let params: Vec<(&(dyn ToSql + Sync), Type)> =
        params.iter().map(|(param, kind)| (&**param as &(dyn ToSql + Sync), kind.clone())).collect();
    let row = session.query_one(&schema.sql(sql), &params).await?;
    row.try_get(0).map_err(from_driver)
}

/// One array parameter: a column of the facts.
fn column<'a, F, T>(params: &mut Vec<(Param<'a>, Type)>, kind: Type, facts: &[F], of: impl Fn(&F) -> T)
where
    Vec<T>: ToSql + Sync + Send + 'a,
{
    params.push((Box::new(facts.iter().map(of).collect::<Vec<T>>()), kind));
}

/// The same of what few facts have: null where none does, and then nothing is sent or unnested.
fn rare<'a, F, T>(params: &mut Vec<(Param<'a>, Type)>, kind: Type, facts: &[F], of: impl Fn(&F) -> Option<T>)
where
    Vec<Option<T>>: ToSql + Sync + Send + 'a,
{
    let values: Vec<Option<T>> = facts.iter().map(of).collect();
    params.push((Box::new(values.iter().any(Option::is_some).then_some(values)), kind));
}

impl<'a> Batch<'a> {
    fn add_facts(&self, params: &mut Vec<(Param<'a>, Type)>) {
        let facts = &self.checkpoints;
        column(params, Type::UUID_ARRAY, facts, |c| c.run);
        column(params, Type::INT4_ARRAY, facts, |c| c.attempt);
        column(params, Type::TEXT_ARRAY, facts, |c| &*c.position);
        column(params, Type::TEXT_ARRAY, facts, |c| &*c.name);
        column(params, Type::JSON_ARRAY, facts, |c| c.output.as_deref().map(JsonText));
        rare(params, Type::JSON_ARRAY, facts, |c| c.error.as_deref().map(JsonText));
        column(params, Type::INT4_ARRAY, facts, |c| c.elapsed_ms);
        let facts = &self.outcomes;
        column(params, Type::UUID_ARRAY, facts, |o| o.run);
        column(params, Type::INT4_ARRAY, facts, |o| o.attempt);
        column(params, Type::TEXT_ARRAY, facts, |o| o.status);
        column(params, Type::JSON_ARRAY, facts, |o| o.output.as_deref().map(JsonText));
        rare(params, Type::JSON_ARRAY, facts, |o| o.error.as_deref().map(JsonText));
    }

    fn add_events(&self, params: &mut Vec<(Param<'a>, Type)>) {
        let facts = &self.events;
        column(params, Type::UUID_ARRAY, facts, |(at, _)| at.run);
        column(params, Type::INT4_ARRAY, facts, |(at, _)| at.attempt);
        column(params, Type::TEXT_ARRAY, facts, |(_, event)| &*event.key);
        column(params, Type::INT4_ARRAY, facts, |(_, event)| event.number);
        column(params, Type::JSON_ARRAY, facts, |(_, event)| JsonText(&*event.value));
    }

    fn add_children(&self, params: &mut Vec<(Param<'a>, Type)>) {
        let facts = &self.children;
        column(params, Type::UUID_ARRAY, facts, |(at, _)| at.run);
        column(params, Type::INT4_ARRAY, facts, |(at, _)| at.attempt);
        column(params, Type::UUID_ARRAY, facts, |(_, child)| child.id);
        column(params, Type::TEXT_ARRAY, facts, |(_, child)| child.run.workflow.as_str());
        column(params, Type::JSON_ARRAY, facts, |(_, child)| JsonText(&*child.run.input));
        column(params, Type::TEXT_ARRAY, facts, |(_, child)| child.run.queue.as_str());
        column(params, Type::INT4_ARRAY, facts, |(_, child)| child.run.priority);
        column(params, Type::INTERVAL_ARRAY, facts, |(_, child)| child.run.delay.map(Interval));
        column(params, Type::JSONB_ARRAY, facts, |(_, child)| child.run.attributes.as_deref().map(JsonText));
        column(params, Type::INTERVAL_ARRAY, facts, |(_, child)| child.run.timeout.map(Interval));
        column(params, Type::TIMESTAMPTZ_ARRAY, facts, |(_, child)| child.deadline);
        column(params, Type::INT4_ARRAY, facts, |(_, child)| child.run.attempts);
        column(params, Type::BOOL_ARRAY, facts, |(_, child)| child.detached);
        column(params, Type::TEXT_ARRAY, facts, |(_, child)| child.run.terms.group.as_deref());
        column(params, Type::INT4_ARRAY, facts, |(_, child)| child.run.terms.weight.unwrap_or(1));
    }

    fn add_parks(&self, params: &mut Vec<(Param<'a>, Type)>) {
        let facts = &self.parks;
        column(params, Type::UUID_ARRAY, facts, |park| park.run);
        column(params, Type::INT4_ARRAY, facts, |park| park.attempt);
        column(params, Type::TIMESTAMPTZ_ARRAY, facts, |park| park.due);
        column(params, Type::TEXT_ARRAY, facts, |park| park.awaits.as_deref());
        column(params, Type::TEXT_ARRAY, facts, |park| park.forget.as_deref());
        column(params, Type::TEXT_ARRAY, facts, |park| park.state.as_deref());
        column(params, Type::UUID_ARRAY, &self.woken, |run| *run);
    }

    fn add_freed(&self, params: &mut Vec<(Param<'a>, Type)>) {
        column(params, Type::UUID_ARRAY, &self.freed, |run| *run);
    }

    fn add_attributes(&self, params: &mut Vec<(Param<'a>, Type)>) {
        let facts = &self.attributes;
        column(params, Type::UUID_ARRAY, facts, |(at, _)| at.run);
        column(params, Type::INT4_ARRAY, facts, |(at, _)| at.attempt);
        column(params, Type::TEXT_ARRAY, facts, |(_, attribute)| &*attribute.key);
        column(params, Type::JSON_ARRAY, facts, |(_, attribute)| JsonText(&*attribute.value));
    }
}

/// Which facts of these runs the database holds: position (`None` for an outcome) and attempt.
pub(crate) async fn recorded(
    session: &Session,
    schema: &Schema,
    runs: &[Uuid],
) -> Result<Vec<(Uuid, Option<String>, i32)>> {
    let rows =
        session.query(&schema.sql("select * from ambo.recorded($1)"), &[(&runs, Type::UUID_ARRAY)]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)
}
