//! Every function that a role may call, called with arguments that nobody should pass: each answer is a result or an error that says
//! whose fault it is, what a producer is answered is nobody else's payload, and the installation works afterwards.

use std::time::Duration;

use ambo::{Ctx, Enqueue, Error, Result, Schedule, Worker};
use tokio_postgres::error::{DbError, SqlState};

use crate::harness::{Database, connect, database};
use crate::random::Random;

/// Calls of each function; `AMBO_FUZZ_CALLS` makes it more.
const CALLS: usize = 25;

const TEXTS: &[&str] = &[
    "''",
    "' '",
    "'default'",
    "'victim'",
    "'queued'",
    "'dead'",
    "'Europe/Berlin'",
    "'* * * * *'",
    "'61 25 32 13 8'",
    r"E'\x01\x1f\x7f'",
    "'a''; drop schema ambo cascade; --'",
    r"'%s%n\0{}'",
    "U&'\\202E\\FFFD'",
    "repeat('x', 65536)",
    "repeat('ä', 201)",
    "repeat(chr(31), 3)",
];
const JSONS: &[&str] = &[
    "'null'",
    "'{}'",
    "'[]'",
    "'1e400'",
    r#"'"\u0000"'"#,
    r#"'{"concurrency": -1, "rate": {"limit": 1e30, "period": "-1 s"}, "ordered": 7}'"#,
    r#"'{"workflow": null, "input": {}, "delay": "x", "colour": 1}'"#,
    r#"'[{"workflow": "victim"}, null, 7, [], {"workflow": {}}]'"#,
    r#"'{"state": ["nowhere"], "parent": "x", "limit": -1, "text": ""}'"#,
    "repeat('[', 5000) || repeat(']', 5000)",
    "to_json(repeat('x', 3000000))::text",
];
const NUMBERS: &[&str] = &["0", "1", "-1", "2", "32767", "-32768"];
const LARGE: &[&str] = &["2147483647", "-2147483648", "100001"];
const SPANS: &[&str] =
    &["'0'", "'-1 day'", "'1 microsecond'", "'178000000 years'", "'1 month'", "'-178000000 years'"];
const TIMES: &[&str] =
    &["'infinity'", "'-infinity'", "'4714-01-01 BC'", "'294276-12-31'", "now()", "'epoch'"];
const SNAPSHOTS: &[&str] =
    &["'1:1:'", "'3:9:4,5'", "'1:9223372036854775807:'", "pg_current_snapshot()::text"];
const XIDS: &[&str] = &["'0'", "'3'", "'18446744073709551615'", "pg_current_xact_id()::text"];
const BOOLEANS: &[&str] = &["true", "false"];

/// An expression of this type that a caller should not have written; `null` among them.
fn hostile(random: &mut Random, kind: &str, run: &str) -> String {
    if random.once_in(5) {
        return format!("null::{kind}");
    }
    if let Some(element) = kind.strip_suffix("[]") {
        let elements: Vec<String> = (0..random.below(4)).map(|_| hostile(random, element, run)).collect();
        return format!("array[{}]::{kind}", elements.join(", "));
    }
    let value = match kind {
        "text" => random.pick(TEXTS).to_string(),
        "json" | "jsonb" => format!("({})", random.pick(JSONS)),
        "smallint" => random.pick(NUMBERS).to_string(),
        "integer" | "bigint" | "double precision" | "numeric" => {
            (if random.once_in(2) { random.pick(NUMBERS) } else { random.pick(LARGE) }).to_string()
        }
        "interval" => random.pick(SPANS).to_string(),
        "timestamp with time zone" => random.pick(TIMES).to_string(),
        "pg_snapshot" => format!("({})", random.pick(SNAPSHOTS)),
        "xid8" => format!("({})", random.pick(XIDS)),
        "boolean" => random.pick(BOOLEANS).to_string(),
        "uuid" => match random.below(4) {
            0 => "'00000000-0000-0000-0000-000000000000'".to_owned(),
            1 => "'ffffffff-ffff-ffff-ffff-ffffffffffff'".to_owned(),
            2 => "gen_random_uuid()".to_owned(),
            _ => format!("'{run}'"),
        },
        other => panic!("no hostile values of type {other}: add some"),
    };
    // Negative numbers bind weaker than the cast.
    format!("({value})::{kind}")
}

/// One call, some of the arguments that have defaults left out.
fn call(
    random: &mut Random,
    name: &str,
    arguments: &[String],
    kinds: &[String],
    needed: usize,
    run: &str,
) -> String {
    let mut given = Vec::new();
    for (n, (argument, kind)) in arguments.iter().zip(kinds).enumerate() {
        if n < needed || random.once_in(3) {
            given.push(format!("{argument} => {}", hostile(random, kind, run)));
        }
    }
    format!("select * from ambo.{name}({})", given.join(", "))
}

/// Whether an error says what the caller did wrong: a code of ours, or, before a function is entered, bad data and what is too
/// deep or too large for PostgreSQL.
fn is_fair(error: &DbError) -> bool {
    let class = &error.code().code()[..2];
    let inside = error.where_().is_some_and(|context| context.contains("function"));
    class == "AM" || ["22", "54"].contains(&class) && !inside || *error.code() == SqlState::UNDEFINED_OBJECT
}

#[ambo::workflow]
async fn victim(mut cx: Ctx, n: u32) -> Result<u32> {
    Ok(cx.step("add", async || Ok::<u32, Error>(n + 1)).await?)
}

/// Every function of a role, the installation's own adoption apart: that is meant to take effect.
async fn functions(db: &Database, role: &str) -> Vec<tokio_postgres::Row> {
    let functions = "select p.proname::text, coalesce(p.proargnames, '{}')::text[],
            array(select format_type(t, null) from unnest(p.proargtypes) t), (p.pronargs - p.pronargdefaults)::int
        from pg_proc p join ambo.privileges() g on g.function_name = p.proname
        where p.pronamespace = 'ambo'::regnamespace and $1 = any (g.roles) and p.proname <> 'adopt' order by 1";
    db.sql.query(functions, &[&role]).await.unwrap()
}

/// The input of a run that nobody here is told of, though its key can be guessed.
const SECRET: &str = "swordfish";

/// What somebody might try who guesses the key.
const GUESSES: &[&str] = &[
    "select * from ambo.enqueue_workflow('victim', '1', queue => 'vault', key => 'queued')",
    "select * from ambo.enqueue_workflow('victim', '1', key => 'queued')",
    "select * from ambo.enqueue_workflows(array['victim', 'victim'], array['1', '2']::json[], keys => array['queued', 'queued'])",
];

/// Calls every function of a role, each so many times, and says which errors are not fair. Counts what was answered.
struct Attack {
    random: Random,
    sql: tokio_postgres::Client,
    calls: usize,
    run: String,
    answered: usize,
    unfair: Vec<String>,
}

impl Attack {
    async fn begin(db: &Database, run: ambo::RunId) -> Attack {
        let calls = std::env::var("AMBO_FUZZ_CALLS").map_or(CALLS, |calls| calls.parse().expect("a number"));
        let sql = connect(&db.url).await;
        sql.batch_execute("set statement_timeout = '10s'").await.unwrap();
        Attack { random: Random::new(), sql, calls, run: run.to_string(), answered: 0, unfair: Vec::new() }
    }

    async fn by(&mut self, db: &Database, role: &str, is_fair: impl Fn(&DbError) -> bool) {
        self.sql.batch_execute(&format!("set role ambo_{role}")).await.unwrap();
        if role == "producer" {
            for guess in GUESSES {
                self.ask(role, guess, &is_fair).await;
            }
        }
        for function in functions(db, role).await {
            let (name, arguments, kinds): (&str, Vec<String>, Vec<String>) =
                (function.get(0), function.get(1), function.get(2));
            let needed = usize::try_from(function.get::<_, i32>(3)).unwrap();
            for _ in 0..self.calls {
                let sql = call(&mut self.random, name, &arguments, &kinds, needed, &self.run);
                self.ask(role, &sql, &is_fair).await;
            }
        }
        self.sql.batch_execute("reset role").await.unwrap();
    }

    async fn ask(&mut self, role: &str, sql: &str, is_fair: impl Fn(&DbError) -> bool) {
        let answer = match self.sql.simple_query(sql).await {
            Ok(answer) => {
                self.answered += 1;
                format!("{answer:?}")
            }
            Err(error) => {
                let fault = error.as_db_error().unwrap_or_else(|| panic!("{error} after {sql:.2000}"));
                if !is_fair(fault) {
                    let code = fault.code().code();
                    self.unfair.push(format!("{role}: {code} {fault:?}\n    {sql:.600}"));
                }
                format!("{fault:?}")
            }
        };
        // Whoever may look at runs may look at their payloads.
        let is_told = role == "producer" && answer.contains(SECRET);
        assert!(!is_told, "{sql:.600} gave away another's payload: {answer:.600}");
    }

    fn assert_fair(mut self) {
        self.unfair.sort_by_key(|text| text[..40].to_owned());
        assert!(
            self.unfair.is_empty(),
            "{} errors blame nobody:\n{}",
            self.unfair.len(),
            self.unfair.join("\n")
        );
        assert!(self.answered > self.calls, "nothing was let through: nothing was shown");
    }
}

/// A run of this queue ends, and soon.
async fn assert_works(db: &Database, queue: &str) {
    let run = Enqueue::<victim>::new(1).queue(queue).on(&db.client).await.unwrap().run;
    let handle = db.client.handle::<victim>(run);
    let result = tokio::time::timeout(Duration::from_secs(30), handle.result());
    assert_eq!(result.await.expect("in time").unwrap(), 2, "{queue}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_argument_of_any_function_stalls_crashes_or_confuses_anything() {
    let db = database().await;
    for queue in ["safe", "vault"] {
        db.client.create_queue(queue).await.unwrap();
    }
    let worker = Worker::builder(&db.client).workflow::<victim>().queue("safe").queue("default");
    let _worker = worker.start().await.unwrap();
    let daily = Schedule::every("victim", Duration::from_secs(86_400), Enqueue::named("victim", &7));
    daily.set(&db.client).await.unwrap();
    Enqueue::named("victim", &SECRET).queue("vault").key("queued").on(&db.client).await.unwrap();
    let old = Enqueue::named("victim", &7).queue("safe").on(&db.client).await.unwrap().run;
    let mut attack = Attack::begin(&db, old).await;
    attack.by(&db, "producer", is_fair).await;
    // A producer stands in nobody's way.
    assert_works(&db, "default").await;
    for role in ["observer", "operator"] {
        attack.by(&db, role, is_fair).await;
    }
    attack.assert_fair();
    // What an operator did to queues and workflows stands; a queue that was not named works.
    assert_works(&db, "safe").await;
}

/// A worker is trusted with what it claims: its functions take the numbers of workers and runs for what they say. What may not be is that
/// one call breaks what the others rest on, or takes its time over it.
#[tokio::test(flavor = "multi_thread")]
async fn no_argument_of_a_workers_functions_stops_the_other_workers() {
    let db = database().await;
    db.client.create_queue("safe").await.unwrap();
    let _worker = Worker::builder(&db.client).workflow::<victim>().queue("safe").start().await.unwrap();
    let old = Enqueue::named("victim", &7).queue("safe").on(&db.client).await.unwrap().run;
    let mut attack = Attack::begin(&db, old).await;
    // Of ours, or what PostgreSQL says of data, of a missing row or column value, and of what is too large; nothing internal, no time-out.
    let is_harmless = |fault: &DbError| {
        ["AM", "22", "23", "54", "55"].contains(&&fault.code().code()[..2]) || is_fair(fault)
    };
    attack.by(&db, "worker", is_harmless).await;
    attack.assert_fair();
    assert_works(&db, "safe").await;
}
