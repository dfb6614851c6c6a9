//! `search`: a page of runs by each of their properties, out of ten million.

use std::time::{Duration, Instant};

use ambo::admin::{Filter, RunSummary};
use ambo::{Client, RunId};
use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;

use crate::bench::{Bench, Sample, Samples};
use crate::database::{Database, connect};
use crate::engine::ambo::install;
use crate::report::{Bar, Better, Line};

const HISTORY: &str = include_str!("search/history.sql");
/// Runs in one call of `bench.fill`.
const BATCH: i64 = 100_000;
const DAYS: i32 = 10;

const NOTE: &str = "10,000,000 runs (--quick: 200,000) of ten days, loaded by SQL: of a hundred one failed, one is ready, one parked, \
    ten have attributes, ten are children; 300 searches of each kind (--quick: 100) one after the other, each for a page of 50 \
    and by its cursor for the next; p99_ms is the worst of the kinds";

/// What is looked for, and what its figures are called.
const KINDS: [(&str, &str, &str); 15] = [
    ("newest", "newest_p50_ms", "newest_p99_ms"),
    ("workflow", "workflow_p50_ms", "workflow_p99_ms"),
    ("rare_workflow", "rare_workflow_p50_ms", "rare_workflow_p99_ms"),
    ("queue", "queue_p50_ms", "queue_p99_ms"),
    ("ready", "ready_p50_ms", "ready_p99_ms"),
    ("running", "running_p50_ms", "running_p99_ms"),
    ("parked", "parked_p50_ms", "parked_p99_ms"),
    ("succeeded", "succeeded_p50_ms", "succeeded_p99_ms"),
    ("failed", "failed_p50_ms", "failed_p99_ms"),
    ("dead", "dead_p50_ms", "dead_p99_ms"),
    ("time", "time_p50_ms", "time_p99_ms"),
    ("attribute", "attribute_p50_ms", "attribute_p99_ms"),
    ("parent", "parent_p50_ms", "parent_p99_ms"),
    ("text_of_an_hour", "text_of_an_hour_p50_ms", "text_of_an_hour_p99_ms"),
    ("next_page", "next_page_p50_ms", "next_page_p99_ms"),
];
const NEXT_PAGE: usize = KINDS.len() - 1;
const WORST: &str = "p99_ms";
const TEXT: &str = "text_of_a_day_s";

/// Measures it: the same history in every round, since nothing changes it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let runs = if bench.quick { 200_000 } else { 10_000_000 };
    let database = bench.server.fresh().await?;
    fill(&database, runs).await?;
    let mut samples = Samples::default();
    for round in 1..=bench.rounds.unwrap_or(if bench.quick { 1 } else { 3 }) {
        for (metric, figure) in measure(&database, runs, if bench.quick { 100 } else { 300 }).await? {
            eprintln!("search: round {round}: ambo: {metric} {figure:.2}");
            samples.add(metric, "ambo", figure);
        }
    }
    bench.server.discard(database).await?;
    let line =
        |metric| Line::new("search", metric, Better::Lower, Bar::Open, NOTE).peers(&samples, &["ambo"]);
    let kinds = KINDS.iter().flat_map(|(_, p50, p99)| [line(p50), line(p99)]);
    Ok([line(WORST)].into_iter().chain(kinds).chain([line(TEXT)]).collect())
}

/// Writes the history over two connections, and does what autovacuum would have done by then.
async fn fill(database: &Database, runs: i64) -> Result<()> {
    let began = Instant::now();
    install(&database.url).await?;
    let connection = connect(&database.url).await?;
    connection.batch_execute(HISTORY).await?;
    connection.execute("select bench.make_past($1)", &[&DAYS]).await?;
    connection.execute("update bench.total set runs = $1", &[&runs]).await?;
    let mut writers = JoinSet::new();
    for writer in 0..2 {
        let url = database.url.clone();
        writers.spawn(async move {
            let connection = connect(&url).await?;
            for batch in (0..runs.div_euclid(BATCH)).filter(|batch| batch % 2 == writer) {
                let (from, to) = (batch * BATCH + 1, (batch + 1) * BATCH);
                connection.execute("select bench.fill($1, $2)", &[&from, &to]).await?;
                if batch % 10 == 0 {
                    // The WAL of all of it would take as much room as the history.
                    connection.batch_execute("checkpoint").await?;
                }
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    connection.batch_execute("vacuum (analyze)").await?;
    connection.batch_execute("checkpoint").await?;
    let bytes = database.ask("select pg_database_size($1)", &[&database.name]).await?;
    eprintln!(
        "search: {runs} runs, {} MB, written in {:.0} s",
        bytes / 1_000_000,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn measure(database: &Database, runs: i64, searches: i64) -> Result<Sample> {
    let client = Client::connect(&database.url).await?;
    let connection = connect(&database.url).await?;
    let mut times = Vec::new();
    for _ in KINDS {
        times.push(Histogram::<u64>::new(3)?);
    }
    for search in 0..searches {
        // Another run each time, from all over the history.
        let n = (search * 7_919 * 100_003) % (runs / 100 * 97) + 1;
        for (kind, (name, ..)) in KINDS.iter().enumerate().take(NEXT_PAGE) {
            let (mut filter, most) = filter(name, n, runs, &connection).await?;
            let page = timed(&client, &filter, &mut times[kind]).await?;
            ensure!(!page.is_empty(), "no runs by {name} for run {n}");
            ensure!(page.len() <= most, "{} runs by {name} for run {n}", page.len());
            if let [.., last] = &page[..]
                && page.len() == 50
            {
                filter.before = Some(last.id);
                let next = timed(&client, &filter, &mut times[NEXT_PAGE]).await?;
                ensure!(next.iter().all(|run| run.id < last.id), "the next page is not older");
            }
        }
    }
    let mut sample = Sample::new();
    for ((_, p50, p99), times) in KINDS.iter().zip(&times) {
        sample.push((p50, times.value_at_quantile(0.5) as f64 / 1000.0));
        sample.push((p99, times.value_at_quantile(0.99) as f64 / 1000.0));
    }
    let worst = times.iter().map(|times| times.value_at_quantile(0.99)).max().unwrap_or(0);
    sample.insert(0, (WORST, worst as f64 / 1000.0));
    // What no index knows, in a tenth of the runs: once. In all ten million it takes longer than the client lets a statement run.
    let sql = "select (extract(epoch from until) * 1000)::bigint from bench.total";
    let until = jiff::Timestamp::from_millisecond(ask(&connection, sql, &[]).await?)?;
    let of_a_day = Filter {
        text: Some(note_of(runs - runs / 20, &connection).await?),
        since: Some(until - Duration::from_secs(24 * 3600)),
        ..Filter::default()
    };
    let began = Instant::now();
    ensure!(client.list_runs(&of_a_day).await?.len() == 1, "the text of one run is in one run");
    sample.push((TEXT, began.elapsed().as_secs_f64()));
    Ok(sample)
}

async fn timed(client: &Client, filter: &Filter, times: &mut Histogram<u64>) -> Result<Vec<RunSummary>> {
    let began = Instant::now();
    let page = client.list_runs(filter).await?;
    times.record(u64::try_from(began.elapsed().as_micros())?)?;
    Ok(page)
}

/// The search of a kind that leads to run `n` or its like, and the most runs that there may be of it.
async fn filter(
    kind: &str,
    n: i64,
    runs: i64,
    connection: &tokio_postgres::Client,
) -> Result<(Filter, usize)> {
    let mut filter = Filter::default();
    let mut most = 50;
    match kind {
        "newest" => {}
        "workflow" => filter.workflow = Some(format!("workflow {}", n % 30)),
        "rare_workflow" => filter.workflow = Some("rare".into()),
        "queue" => filter.queue = Some(format!("queue {}", n % 10)),
        "time" => {
            let at =
                ask::<i64>(connection, "select (extract(epoch from bench.at($1)) * 1000)::bigint", &[&n])
                    .await?;
            filter.since = Some(jiff::Timestamp::from_millisecond(at)?);
            filter.until = Some(jiff::Timestamp::from_millisecond(at + 3_600_000)?);
        }
        "attribute" => {
            let sql = "select bench.pick($1, 6, $2)";
            // Of a tenth of the runs, so that a hundredth of them has as many values as that: ten runs each.
            let customer: i64 =
                ask(connection, sql, &[&attributed(n, connection).await?, &(runs / 100)]).await?;
            filter.attributes = Some(json!({ "customer": customer }));
        }
        "parent" => {
            let parent = n - n % 100 + 100;
            let id: uuid::Uuid = ask(connection, "select bench.id($1, bench.at($1))", &[&parent]).await?;
            filter.parent = Some(RunId::from(id));
            most = 10;
        }
        "text_of_an_hour" => {
            let newest = runs - n % (runs / 500);
            let until = ask::<i64>(
                connection,
                "select (extract(epoch from until) * 1000)::bigint from bench.total",
                &[],
            );
            let hour = Duration::from_secs(3600);
            filter.since = Some(jiff::Timestamp::from_millisecond(until.await?)? - hour);
            filter.text = Some(note_of(newest, connection).await?);
            most = 1;
        }
        state => filter.state = Some(state.into()),
    }
    Ok((filter, most))
}

/// The first run from `n` on that has attributes.
async fn attributed(n: i64, connection: &tokio_postgres::Client) -> Result<i64> {
    let sql = "select g from generate_series($1::bigint, $1 + 1000) g where bench.pick(g, 5, 10) = 0 limit 1";
    ask(connection, sql, &[&n]).await
}

/// What stands in the input of run `n` alone.
async fn note_of(n: i64, connection: &tokio_postgres::Client) -> Result<String> {
    ask(connection, "select md5((-$1::bigint)::text)", &[&n]).await
}

async fn ask<T>(
    connection: &tokio_postgres::Client,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<T>
where
    T: for<'row> tokio_postgres::types::FromSql<'row>,
{
    Ok(connection.query_one(sql, parameters).await?.try_get(0)?)
}
