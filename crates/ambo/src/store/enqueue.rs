//! Enqueue: one run or many; the parameters are the same for our own connection and for users' drivers.

use std::time::Duration;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::connect::{Session, from_driver};
use super::schema::Schema;
use super::types::{Interval, JsonText};
use crate::error::Result;
use crate::payload::Json;
use crate::vault::Vault;

/// A run to be enqueued or started. `None` means the default of the SQL function.
#[derive(Debug, Clone)]
pub(crate) struct NewRun {
    /// Where Ambo is installed in the caller's database.
    pub(crate) schema: Schema,
    pub(crate) workflow: String,
    pub(crate) input: Json,
    pub(crate) queue: String,
    pub(crate) key: Option<String>,
    pub(crate) priority: i32,
    pub(crate) delay: Option<Duration>,
    pub(crate) at: Option<jiff::Timestamp>,
    pub(crate) attributes: Option<Json>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) attempts: i32,
    pub(crate) key_lifetime: Option<Duration>,
    pub(crate) terms: Terms,
    /// What becomes of the input; `None`: what the connection says.
    pub(crate) vault: Option<Vault>,
}

impl NewRun {
    /// About what it takes to send it.
    pub(crate) fn bytes(&self) -> usize {
        self.input.len() + self.attributes.as_ref().map_or(0, |attributes| attributes.len()) + 200
    }
}

/// What most runs are not given: the rule of the key, and by when to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) dedup: bool,
    pub(crate) throttle: Option<Duration>,
    pub(crate) debounce: Option<Duration>,
    pub(crate) debounce_max: Option<Duration>,
    pub(crate) start_by: Option<jiff::Timestamp>,
    pub(crate) start_within: Option<Duration>,
    pub(crate) group: Option<String>,
    pub(crate) weight: Option<i32>,
}

/// The statement that enqueues one run on a connection of the user's: text in, text out (see `on`).
const ENQUEUE_ONE: &str = "select run_id::text, is_new::text from ambo.enqueue($1::text, $2::text::json, \
     $3::text, $4::text, $5::text::int4, $6::text::interval, $7::text::timestamptz, $8::text::jsonb, \
     $9::text::interval, $10::text::int4, $11::text::interval)";
/// The same for a run with terms.
const ENQUEUE_ON_TERMS: &str = "select run_id::text, is_new::text from ambo.enqueue($1::text, $2::text::json, \
     $3::text, $4::text, $5::text::int4, $6::text::interval, $7::text::timestamptz, $8::text::jsonb, \
     $9::text::interval, $10::text::int4, $11::text::interval, p_dedup => $12::text::bool, \
     p_throttle => $13::text::interval, p_debounce => $14::text::interval, p_debounce_max => $15::text::interval, \
     p_start_by => $16::text::timestamptz, p_start_within => $17::text::interval, p_group => $18::text, \
     p_weight => $19::text::int4)";

/// The same for many runs: of each parameter a JSON array, or null where no run has a value of its own.
const ENQUEUE_MANY: &str =
    "select json_agg(json_build_array(e.run_id, e.is_new) order by e.n)::text from ambo.enqueue_workflows(
     (select array_agg(x) from json_array_elements_text($1::text::json) x),
     (select array_agg(x) from json_array_elements($2::text::json) x),
     (select array_agg(x) from json_array_elements_text($3::text::json) x),
     (select array_agg(x) from json_array_elements_text($4::text::json) x),
     (select array_agg(x::int4) from json_array_elements_text($5::text::json) x),
     (select array_agg(x::interval) from json_array_elements_text($6::text::json) x),
     (select array_agg(x::timestamptz) from json_array_elements_text($7::text::json) x),
     (select array_agg(x::jsonb) from json_array_elements_text($8::text::json) x),
     (select array_agg(x::interval) from json_array_elements_text($9::text::json) x),
     (select array_agg(x::int4) from json_array_elements_text($10::text::json) x),
     (select array_agg(x::interval) from json_array_elements_text($11::text::json) x),
     dedups => (select array_agg(x::bool) from json_array_elements_text($12::text::json) x),
     throttles => (select array_agg(x::interval) from json_array_elements_text($13::text::json) x),
     debounces => (select array_agg(x::interval) from json_array_elements_text($14::text::json) x),
     debounce_maxes => (select array_agg(x::interval) from json_array_elements_text($15::text::json) x),
     start_bys => (select array_agg(x::timestamptz) from json_array_elements_text($16::text::json) x),
     start_withins => (select array_agg(x::interval) from json_array_elements_text($17::text::json) x),
     group_keys => (select array_agg(x) from json_array_elements_text($18::text::json) x),
     weights => (select array_agg(x::int4) from json_array_elements_text($19::text::json) x))
     with ordinality as e (run_id, is_new, n)";

/// How many parameters a run without terms has, and which of them is the input.
const WITHOUT_TERMS: usize = 11;
const INPUT: usize = 1;
/// What a run is that was given nothing, by parameter.
const DEFAULTS: [Option<&str>; 19] = {
    let mut defaults = [None; 19];
    (defaults[2], defaults[4], defaults[9]) = (Some("default"), Some("0"), Some("5"));
    (defaults[11], defaults[18]) = (Some("false"), Some("1"));
    defaults
};

impl NewRun {
    /// As an object with the names of the arguments of the SQL function.
    pub(crate) fn json(&self) -> Result<String> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let span = |span: Duration| format!("\"{} microseconds\"", span.as_micros());
        let time = |at: jiff::Timestamp| format!("\"{at}\"");
        let terms = &self.terms;
        let fields = [
            ("workflow", Some(quoted(&self.workflow))),
            ("input", Some(self.input.to_string())),
            ("queue", Some(quoted(&self.queue))),
            ("key", self.key.as_deref().map(quoted)),
            ("priority", (self.priority != 0).then(|| self.priority.to_string())),
            ("delay", self.delay.map(span)),
            ("at", self.at.map(time)),
            ("attributes", self.attributes.as_deref().map(str::to_owned)),
            ("timeout", self.timeout.map(span)),
            ("attempts", (self.attempts != 5).then(|| self.attempts.to_string())),
            ("key_lifetime", self.key_lifetime.map(span)),
            ("dedup", terms.dedup.then(|| "true".to_owned())),
            ("throttle", terms.throttle.map(span)),
            ("debounce", terms.debounce.map(span)),
            ("debounce_max", terms.debounce_max.map(span)),
            ("start_by", terms.start_by.map(time)),
            ("start_within", terms.start_within.map(span)),
            ("group_key", terms.group.as_deref().map(quoted)),
            ("weight", terms.weight.map(|weight| weight.to_string())),
        ];
        let given = fields.iter().filter_map(|(name, value)| Some(format!("\"{name}\":{}", value.as_ref()?)));
        Ok(format!("{{{}}}", given.collect::<Vec<_>>().join(",")))
    }

    /// All that it is given as text, what is default too, in the order of the parameters of the statements.
    fn texts(&self) -> [Option<String>; 19] {
        let span = |span: Option<Duration>| span.map(|span| format!("{} microseconds", span.as_micros()));
        let terms = &self.terms;
        [
            Some(self.workflow.clone()),
            Some(self.input.to_string()),
            Some(self.queue.clone()),
            self.key.clone(),
            Some(self.priority.to_string()),
            span(self.delay),
            self.at.map(|at| at.to_string()),
            self.attributes.as_deref().map(str::to_owned),
            span(self.timeout),
            Some(self.attempts.to_string()),
            span(self.key_lifetime),
            Some(terms.dedup.to_string()),
            span(terms.throttle),
            span(terms.debounce),
            span(terms.debounce_max),
            terms.start_by.map(|at| at.to_string()),
            span(terms.start_within),
            terms.group.clone(),
            Some(terms.weight.unwrap_or(1).to_string()),
        ]
    }

    /// The statement that enqueues it on a connection of the user's, and its parameters.
    pub(crate) fn call(&self) -> (&'static str, Vec<Option<String>>) {
        let mut texts = self.texts().to_vec();
        if self.terms != Terms::default() {
            return (ENQUEUE_ON_TERMS, texts);
        }
        texts.truncate(WITHOUT_TERMS);
        (ENQUEUE_ONE, texts)
    }

    /// The statement that enqueues these, and its parameters.
    pub(crate) fn call_many(runs: &[NewRun]) -> (&'static str, Vec<Option<String>>) {
        let rows: Vec<_> = runs.iter().map(NewRun::texts).collect();
        let column = |nth: usize| {
            let given = |text: &&str| Some(*text) != DEFAULTS[nth];
            let column: Vec<Option<&str>> =
                rows.iter().map(|row| row[nth].as_deref().filter(given)).collect();
            column.iter().any(Option::is_some).then(|| serde_json::json!(column).to_string())
        };
        let mut columns: Vec<_> = (0..DEFAULTS.len()).map(column).collect();
        // As they are: what stands in an input need not be text to PostgreSQL.
        let inputs: Vec<&str> = runs.iter().map(|run| &*run.input).collect();
        columns[INPUT] = Some(format!("[{}]", inputs.join(",")));
        (ENQUEUE_MANY, columns)
    }
}

/// Enqueues in one call; answers in the order given: the id, and whether it is new.
pub(crate) async fn enqueue(
    session: &Session,
    schema: &Schema,
    runs: &[&NewRun],
) -> Result<Vec<(Uuid, bool)>> {
    let workflows: Vec<&str> = runs.iter().map(|run| run.workflow.as_str()).collect();
    let inputs: Vec<JsonText<&str>> = runs.iter().map(|run| JsonText(&*run.input)).collect();
    let queues = optional(runs, |run| (run.queue != "default").then_some(run.queue.as_str()));
    let keys = optional(runs, |run| run.key.as_deref());
    let priorities = optional(runs, |run| (run.priority != 0).then_some(run.priority));
    let delays = optional(runs, |run| run.delay.map(Interval));
    let ats = optional(runs, |run| run.at);
    let attributes = optional(runs, |run| run.attributes.as_deref().map(JsonText));
    let timeouts = optional(runs, |run| run.timeout.map(Interval));
    let attempts = optional(runs, |run| (run.attempts != 5).then_some(run.attempts));
    let key_lifetimes = optional(runs, |run| run.key_lifetime.map(Interval));
    let dedups = optional(runs, |run| run.terms.dedup.then_some(true));
    let throttles = optional(runs, |run| run.terms.throttle.map(Interval));
    let debounces = optional(runs, |run| run.terms.debounce.map(Interval));
    let debounce_maxes = optional(runs, |run| run.terms.debounce_max.map(Interval));
    let start_bys = optional(runs, |run| run.terms.start_by);
    let start_withins = optional(runs, |run| run.terms.start_within.map(Interval));
    let groups = optional(runs, |run| run.terms.group.as_deref());
    let weights = optional(runs, |run| run.terms.weight);
    let rows = session
        .query(
            &schema.sql(
                "select * from ambo.enqueue_workflows($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
                 dedups => $12, throttles => $13, debounces => $14, debounce_maxes => $15, start_bys => $16, \
                 start_withins => $17, group_keys => $18, weights => $19)",
            ),
            &[
                (&workflows, Type::TEXT_ARRAY),
                (&inputs, Type::JSON_ARRAY),
                (&queues, Type::TEXT_ARRAY),
                (&keys, Type::TEXT_ARRAY),
                (&priorities, Type::INT4_ARRAY),
                (&delays, Type::INTERVAL_ARRAY),
                (&ats, Type::TIMESTAMPTZ_ARRAY),
                (&attributes, Type::JSONB_ARRAY),
                (&timeouts, Type::INTERVAL_ARRAY),
                (&attempts, Type::INT4_ARRAY),
                (&key_lifetimes, Type::INTERVAL_ARRAY),
                (&dedups, Type::BOOL_ARRAY),
                (&throttles, Type::INTERVAL_ARRAY),
                (&debounces, Type::INTERVAL_ARRAY),
                (&debounce_maxes, Type::INTERVAL_ARRAY),
                (&start_bys, Type::TIMESTAMPTZ_ARRAY),
                (&start_withins, Type::INTERVAL_ARRAY),
                (&groups, Type::TEXT_ARRAY),
                (&weights, Type::INT4_ARRAY),
            ],
        )
        .await?;
    read_ids(&rows)
}

pub(crate) fn read_ids(rows: &[tokio_postgres::Row]) -> Result<Vec<(Uuid, bool)>> {
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(from_driver)
}

/// A parameter array, or null where no run has a value of its own: then nothing is sent or unnested.
pub(super) fn optional<'a, T>(
    runs: &[&'a NewRun],
    value: impl Fn(&'a NewRun) -> Option<T>,
) -> Option<Vec<Option<T>>> {
    let values: Vec<Option<T>> = runs.iter().map(|run| value(run)).collect();
    values.iter().any(Option::is_some).then_some(values)
}
