//! Limits that are lowered while their queue is at work: what has its place keeps it, and from then on no more is claimed than the
//! lower setting allows.

use std::time::Duration;

use ambo::{Ordered, QueueSettings, Rate};

use crate::limits::{Bench, job};

fn settings() -> QueueSettings {
    QueueSettings::default()
}

/// Three run, of one group or of three; the limit is lowered to one.
async fn assert_lowered(before: QueueSettings, after: QueueSettings, groups: [&str; 3]) {
    let bench = Bench::new(before, 2, 0).await;
    bench.enqueue((0..12).map(|n| job(groups[n as usize % 3], n))).await;
    bench.begun(3).await;
    bench.db.client.set_queue("q", &after).await.unwrap();
    assert_kept(&bench, &after).await;
}

/// Three of twelve are in execution, under a limit of one: as long as one of the three is left nobody begins, and after that one
/// runs at a time.
async fn assert_kept(bench: &Bench, limit: &QueueSettings) {
    bench.let_go(2);
    bench.db.until("select count(*) = 1 from ambo.claim").await;
    assert_eq!(bench.gauge.begun.lock().unwrap().len(), 3, "{limit:?}");
    bench.let_go(1);
    bench.begun(4).await;
    // What was in execution at the fourth beginning and after: the first three are gone.
    bench.gauge.forget();
    bench.let_go(9);
    bench.all_ended(12).await;
    assert_eq!(bench.gauge.most(), 1, "{limit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_limit_lets_nobody_in_until_it_is_kept() {
    assert_lowered(settings().concurrency(3), settings().concurrency(1), ["", "", ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_limit_of_groups_lets_nobody_in_until_it_is_kept() {
    assert_lowered(settings().group_concurrency(3), settings().group_concurrency(1), ["g"; 3]).await;
    // To be ordered is to have a limit of one.
    assert_lowered(settings().group_concurrency(3), settings().ordered(Ordered::Block), ["g"; 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_limit_of_an_ordered_queue_lets_nobody_in_until_it_is_kept() {
    let before = settings().ordered(Ordered::Block).concurrency(3);
    assert_lowered(before, settings().concurrency(1), ["a", "b", "c"]).await;
}

/// Three run that were claimed while there was no limit: they count to the one that is set then.
async fn assert_counted(before: &[QueueSettings], after: QueueSettings, groups: [&str; 3], workers: usize) {
    let bench = Bench::new(before[0].clone(), workers, 0).await;
    for next in &before[1..] {
        bench.db.client.set_queue("q", next).await.unwrap();
    }
    bench.enqueue((0..3).map(|n| job(groups[n as usize % 3], n))).await;
    bench.begun(3).await;
    bench.db.client.set_queue("q", &after).await.unwrap();
    bench.enqueue((3..12).map(|n| job(groups[n as usize % 3], n))).await;
    assert_kept(&bench, &after).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_claimed_while_there_was_no_limit_counts_to_the_next_one() {
    let none = [settings().groups()];
    assert_counted(&none, settings().concurrency(1), ["", "a", "b"], 2).await;
    assert_counted(&none, settings().group_concurrency(1), ["g"; 3], 2).await;
    assert_counted(&none, settings().ordered(Ordered::Block), ["g"; 3], 2).await;
    assert_counted(&none, settings().worker_concurrency(1), ["", "a", "b"], 1).await;
    let taken_away = [settings().concurrency(5), settings().concurrency(None)];
    assert_counted(&taken_away, settings().concurrency(1), ["", "a", "b"], 2).await;
}

/// What was claimed, when, and of which group, by the database's clock.
const TAKEN: &str = "create table taken (at timestamptz default clock_timestamp(), \"group\" text);
    create function take() returns trigger language plpgsql as $$
        begin insert into public.taken (\"group\") values (new.group_key); return null; end $$;
    create trigger take after insert on ambo.claim for each row execute function take()";

/// 1,000 runs of two groups at this rate, which is lowered: in the time after that no more is claimed than the lower one allows.
async fn assert_rate_lowered(set: impl Fn(Rate) -> QueueSettings, per_group: bool) {
    let second = Duration::from_secs(1);
    let bench = Bench::new(set(Rate::new(500, second).burst(60)), 2, 1).await;
    bench.db.sql.batch_execute(TAKEN).await.unwrap();
    bench.enqueue((0..1000).map(|n| job(if n % 2 == 0 { "a" } else { "b" }, n))).await;
    bench.begun(60).await;
    bench.db.client.set_queue("q", &set(Rate::new(20, second).burst(2))).await.unwrap();
    let lowered = "create table lowered as select clock_timestamp() as at";
    bench.db.sql.batch_execute(lowered).await.unwrap();
    bench.db.until("select count(*) >= 12 from taken t, lowered l where t.at > l.at").await;
    // A claim is noted a moment after it was counted: allow for one.
    let key = if per_group { "t.\"group\"" } else { "null::text" };
    let over = format!(
        "select max(c.n - (2 + 20 * extract(epoch from c.upto - l.at)))::float8 <= 1 from lowered l, (
             select t.at as upto, count(*) over (partition by {key} order by t.at) as n
             from taken t, lowered l where t.at > l.at) c"
    );
    let kept: bool = bench.db.sql.query_one(&over, &[]).await.unwrap().get(0);
    assert!(kept, "more was claimed than the lower rate allows");
    assert!(bench.db.number("select count(*) from ambo.ready").await > 0, "something waited all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_rate_holds_for_all_that_is_claimed_after_it() {
    assert_rate_lowered(|rate| settings().rate(rate), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_rate_of_groups_holds_for_all_that_is_claimed_after_it() {
    assert_rate_lowered(|rate| settings().ordered(Ordered::Skip).group_rate(rate), true).await;
}
