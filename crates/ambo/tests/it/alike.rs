//! A claim of lanes that are all alike takes a shorter way. Whatever stands in the queue and whatever its limits are, both ways choose
//! the same.

use std::fmt::Write;

use crate::harness::database;
use crate::random::Random;

/// Claims from the same lanes twice, the second time with turns that do not begin with 1, which is the long way, and takes both back.
const BOTH: &str = r#"
do $both$
declare
    v_lanes text[] := array(select 'w' || chr(31) || chr(31) || g from unnest(current_setting('test.groups')::text[]) g);
    v_count integer := cardinality(v_lanes);
    v_short text;
    v_long text;
    v_answer text;
    a record;
begin
    if current_setting('test.bare') = 'on' then
        v_lanes := v_lanes || 'w'::text;
        v_count := v_count + 1;
    end if;
    for v_offset in 0..1 loop
        begin
            select * into a from ambo.claim_queue(
                1, 'q', current_setting('test.most')::integer, null, v_lanes, array_fill(0::smallint, array[v_count]),
                array(select n + v_offset from generate_series(1, v_count) n), array_fill(1, array[v_count]),
                array_fill(0::bigint, array[v_count]),
                array(select 1 + n % current_setting('test.shares')::integer from generate_series(1, v_count) n)::smallint[],
                array_fill(current_setting('test.mine')::integer, array[v_count]), current_setting('test.mine')::integer,
                current_setting('test.mine')::integer, '{}', 0);
            v_answer := concat_ws(' ', a.runs, a.run_lanes, a.weights, a.attempts, a.losses, a.open, a.tried, a.left_lanes, a.left_seqs);
            raise exception using errcode = 'TEST0', message = 'taken back';
        exception when sqlstate 'TEST0' then
            if v_offset = 0 then v_short := v_answer; else v_long := v_answer; end if;
        end;
    end loop;
    if v_short is distinct from v_long then
        raise exception 'the short way: %, the long way: %', v_short, v_long;
    end if;
    perform set_config('test.claimed', coalesce(cardinality(a.runs), 0)::text, false);
end $both$"#;

#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_are_alike_are_chosen_from_as_all_are() {
    let db = database().await;
    let worker = "select ambo.register_worker('h', '1', 1, '{q}', '{w}', false)";
    db.sql.query_one(worker, &[]).await.unwrap();
    let mut random = Random::new();
    let mut claimed = 0;
    for round in 0..60 {
        // A rate of 1 in a day: what it has left does not change between the two.
        let mut limits = Vec::new();
        for (limit, value) in [
            ("concurrency", random.below(12).to_string()),
            ("worker_concurrency", random.below(12).to_string()),
            ("group_concurrency", random.below(4).to_string()),
            ("rate", format!(r#"{{"limit": 1, "period": "1 day", "burst": {}}}"#, 1 + random.below(9))),
            ("group_rate", format!(r#"{{"limit": 1, "period": "1 day", "burst": {}}}"#, 1 + random.below(5))),
        ] {
            let value = if random.once_in(3) { value } else { "null".to_owned() };
            limits.push(format!(r#""{limit}": {value}"#));
        }
        let settings = format!(r#"{{"groups": true, {}}}"#, limits.join(", "));
        db.sql.query_one("select ambo.set_queue('q', $1::text::jsonb)", &[&settings]).await.unwrap();
        let groups = 1 + random.below(6);
        let mut fill = String::from("delete from ambo.ready; delete from ambo.rate;");
        for _ in 0..random.below(40) {
            let group = match random.below(groups + 1) {
                0 => "null".to_owned(),
                group => format!("'g{group}'"),
            };
            let weight = if random.once_in(4) { 1 + random.below(6) } else { 1 };
            let _ = write!(
                fill,
                "select ambo.enqueue_workflow('w', '1', queue => 'q', group_key => {group}, weight => {weight});"
            );
        }
        db.sql.batch_execute(&fill).await.unwrap();
        let names: Vec<String> = (1..=groups).map(|group| format!("g{group}")).collect();
        let set = format!(
            "set test.groups = '{{{}}}'; set test.bare = '{}'; set test.most = '{}'; set test.shares = '{}'; set test.mine = '{}'",
            names.join(","),
            if random.once_in(2) { "on" } else { "off" },
            1 + random.below(20),
            1 + random.below(3),
            random.below(3),
        );
        db.sql.batch_execute(&set).await.unwrap();
        let ways = db.sql.batch_execute(BOTH).await;
        assert!(ways.is_ok(), "round {round}, {settings}, {set}: {:?}", ways.unwrap_err().as_db_error());
        claimed += db.number("select current_setting('test.claimed')::bigint").await;
    }
    assert!(claimed > 100, "{claimed} runs were claimed in all rounds: nothing was compared");
}
