//! What a step did outlives a crash that follows, though the user's own sessions do not wait for the disk.

use ambo::{Ctx, Result, Worker};
use sqlx::postgres::PgPool;

use crate::harness::{connect, empty_database};
use crate::stage::{Stage, pool};

#[derive(Clone)]
struct Elsewhere(PgPool);

/// A commit that says how it is made: a trigger that is put off until then, after all statements of the step.
const TELLING: &str = "create table written (how text not null);
    create table told (commits text not null);
    create function tell() returns trigger language plpgsql as
        $$ begin insert into told values (current_setting('synchronous_commit')); return null; end $$;
    create constraint trigger tell after insert on written deferrable initially deferred
        for each row execute function tell();";

async fn write(tx: &mut sqlx::PgConnection, how: &str) -> Result<()> {
    // As the role or the database may have it too.
    sqlx::query("set local synchronous_commit = off").execute(&mut *tx).await?;
    sqlx::query("insert into written values ($1)").bind(how).execute(&mut *tx).await?;
    Ok(())
}

/// A step, one in another database, and one that ends the run.
async fn writes(mut cx: Ctx<'_>, _: ()) -> Result<()> {
    let (pool, elsewhere) = (cx.state::<PgPool>()?, cx.state::<Elsewhere>()?);
    cx.transaction("step").run(&*pool, async |mut tx| write(&mut tx, "step").await).await?;
    let witnessed = cx.transaction("elsewhere").witnessed();
    witnessed.run(&elsewhere.0, async |mut tx| write(&mut tx, "elsewhere").await).await?;
    Ok(cx.complete_in(&*pool, async |mut tx| write(&mut tx, "end").await).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commit_of_a_step_waits_for_the_disk_whatever_the_users_session_does() {
    let stage = Stage::set().await;
    let (url, _) = empty_database().await;
    let other = connect(&url).await;
    ambo::install_witness(&pool(&url).await).await.unwrap();
    for sql in [&stage.db.sql, &other] {
        sql.batch_execute(TELLING).await.unwrap();
    }
    let builder = Worker::builder(&stage.db.client).state(stage.pool.clone());
    let builder = builder.state(Elsewhere(pool(&url).await)).workflow_fn("writes", writes);
    let _worker = builder.start().await.unwrap();
    let run = ambo::Enqueue::named("writes", &()).on(&stage.db.client).await.unwrap().run;
    stage.end(run).await.unwrap();
    for (sql, steps) in [(&stage.db.sql, 2), (&other, 1)] {
        let rows = sql.query("select commits from told", &[]).await.unwrap();
        let told: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(told, vec!["on"; steps]);
    }
}
