//! `enqueue_tx`: one enqueue inside a user's transaction, beside one insert of the user's.

use anyhow::{Result, ensure};

use crate::bench::Bench;
use crate::engine::ambo::{ENQUEUE, install};
use crate::report::{Bar, Better, Line};
use crate::yardstick::user_transaction::commit_for;

const METRIC: &str = "enqueues_per_s";
const NOTE: &str = "32 connections, each begin, insert, [enqueue,] commit, a round trip each; \
    insert_alone: without the enqueue; bare_rows: the same rows by a statement of the tables' owner, no function, no check; \
    no worker runs; dbos and durare cannot enqueue in the caller's transaction";

/// What an enqueue writes, and nothing else: how much of its cost are the rows and their round trip.
const BARE_ROWS: &str = "with run as (
        insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input)
        values (ambo.new_run_id(), 5, 0, 1, 'one_step', 'bench', to_json($1::bigint)) returning id)
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow)
    select nextval('ambo.ready_seq'), pg_current_xact_id(), id, 0, 0, 0, 1, 'bench', 'one_step' from run";

/// Measures it.
pub async fn run(bench: &Bench) -> Result<Vec<Line>> {
    let time = bench.time(3000, 6000);
    let samples = bench
        .rounds("enqueue_tx", 3, &["ambo", "insert_alone", "bare_rows"], async |competitor, database| {
            match competitor {
                "ambo" | "bare_rows" => {
                    install(&database.url).await?;
                    let enqueue = if competitor == "ambo" { ENQUEUE } else { BARE_ROWS };
                    let rate = commit_for(database, Some(enqueue), time).await?;
                    let runs = database.count("select count(*) from ambo.run").await?;
                    let rows = database.count("select count(*) from customer_order").await?;
                    ensure!(runs == rows, "{runs} runs for {rows} transactions");
                    Ok(vec![(METRIC, rate)])
                }
                "insert_alone" => Ok(vec![(METRIC, commit_for(database, None, time).await?)]),
                other => anyhow::bail!("no {other} here"),
            }
        })
        .await?;
    let line = Line::new("enqueue_tx", METRIC, Better::Higher, Bar::Ratio(0.6), NOTE)
        .peers(&samples, &["ambo"])
        .yardstick(&samples, "insert_alone", None)
        .aside(&samples, "bare_rows");
    Ok(vec![line])
}
