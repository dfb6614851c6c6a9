//! Search: every filter, stable pages, attributes from inside, and plans that do not read what they need not.

use ambo::admin::Filter;
use ambo::{Code, Ctx, Enqueue, Error, QueueSettings, Result, RunId, Untyped, Worker};
use serde_json::json;

use crate::harness::{Database, database};

#[ambo::workflow]
async fn ship(cx: Ctx, order: i64) -> Result<i64> {
    cx.set_attribute("stage", &"packing")?;
    let parcel = cx.step("pack", || async { Ok::<_, Error>(order + 1) }).await?;
    cx.set_attribute("parcel", &parcel)?;
    cx.set_attribute("stage", &"shipped")?;
    if order < 0 { Err(Error::message("there is no such order")) } else { Ok(parcel) }
}

async fn ids(db: &Database, filter: Filter) -> Vec<RunId> {
    db.client.list_runs(&filter).await.unwrap().into_iter().map(|run| run.id).collect()
}

/// In the order of a list: by the time in their ids, and within a millisecond by what else is in them.
fn newest<const N: usize>(mut runs: [RunId; N]) -> [RunId; N] {
    runs.sort_by(|a, b| b.cmp(a));
    runs
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_found_by_each_of_their_properties() {
    let db = database().await;
    let given = json!({ "customer": 7, "stage": "new" });
    let attributed = ship::enqueue(1).attributes(&given).on(&db.client).await.unwrap().run;
    let plain = ship::enqueue(2).key("order-2").on(&db.client).await.unwrap().run;
    let bad = ship::enqueue(-1).on(&db.client).await.unwrap().run;
    let other = Enqueue::named("other", &json!({"note": "Find Me"})).on(&db.client).await.unwrap().run;
    let at_enqueue = Filter { attributes: Some(json!({"customer": 7, "stage": "new"})), ..Filter::default() };
    assert_eq!(ids(&db, at_enqueue.clone()).await, [attributed]);
    let _worker = Worker::builder(&db.client).workflow::<ship>().start().await.unwrap();
    db.until("select count(*) = 3 from ambo.outcome").await;

    assert_eq!(ids(&db, at_enqueue).await, [], "the run has set another stage");
    let by = |attributes| Filter { attributes: Some(attributes), ..Filter::default() };
    assert_eq!(ids(&db, by(json!({"customer": 7, "stage": "shipped"}))).await, [attributed], "given and set");
    assert_eq!(ids(&db, by(json!({"parcel": 3}))).await, [plain]);
    assert_eq!(ids(&db, by(json!({"stage": "shipped"}))).await, newest([bad, plain, attributed]));
    assert_eq!(ids(&db, by(json!({"stage": "packing"}))).await, [], "the last value stands");

    let state = |state: &str| Filter { state: Some(state.into()), ..Filter::default() };
    assert_eq!(ids(&db, state("failed")).await, [bad]);
    assert_eq!(ids(&db, state("ready")).await, [other]);
    assert_eq!(ids(&db, state("succeeded")).await, newest([plain, attributed]));
    assert_eq!(ids(&db, state("running")).await, []);
    let workflow = Filter { workflow: Some("other".into()), ..Filter::default() };
    assert_eq!(ids(&db, workflow).await, [other]);
    let text = |text: &str| Filter { text: Some(text.into()), ..Filter::default() };
    assert_eq!(ids(&db, text("find me")).await, [other]);
    assert_eq!(ids(&db, text("ORDER-2")).await, [plain]);
    assert_eq!(ids(&db, text("no such order")).await, [bad]);
    assert_eq!(ids(&db, text("100%_")).await, [], "no pattern");
    let soon = db.client.now().await.unwrap();
    let past = Filter { since: Some(soon), ..Filter::default() };
    assert_eq!(ids(&db, past).await, []);
    let future = Filter { until: Some(soon), workflow: Some("ship".into()), ..Filter::default() };
    assert_eq!(ids(&db, future).await, newest([bad, plain, attributed]));
    let shown = db.client.show_run(attributed).await.unwrap();
    assert_eq!(
        shown.summary.attributes.unwrap().get(),
        r#"{"stage": "shipped", "parcel": 2, "customer": 7}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_and_the_dead_are_found_by_their_group() {
    let db = database().await;
    for queue in ["mail", "other"] {
        db.client.set_queue(queue, &QueueSettings::default().groups()).await.unwrap();
    }
    let enqueue = async |queue: &str, group: Option<&str>| {
        let run = Enqueue::<Untyped>::named("send", &1).queue(queue);
        let run = if let Some(group) = group { run.group(group) } else { run };
        run.on(&db.client).await.unwrap().run
    };
    let (first, second) = (enqueue("mail", Some("a")).await, enqueue("mail", Some("b")).await);
    let (none, elsewhere) = (enqueue("mail", None).await, enqueue("other", Some("a")).await);
    let group = |group: &str| Filter { group: Some(group.into()), ..Filter::default() };
    let of_mail = |filter| Filter { queue: Some("mail".into()), ..filter };
    let ready = |filter| Filter { state: Some("ready".into()), ..filter };
    assert_eq!(ids(&db, group("a")).await, newest([first, elsewhere]));
    assert_eq!(ids(&db, of_mail(group("a"))).await, [first]);
    assert_eq!(ids(&db, ready(group("b"))).await, [second]);
    assert_eq!(ids(&db, group("c")).await, []);
    let listed = db.client.list_runs(&of_mail(Filter::default())).await.unwrap();
    let groups: Vec<_> = listed.iter().map(|run| (run.id, run.group.as_deref())).collect();
    for of in [(first, Some("a")), (second, Some("b")), (none, None)] {
        assert!(groups.contains(&of), "{groups:?}");
    }
    assert_eq!(db.client.show_run(second).await.unwrap().summary.group.as_deref(), Some("b"));

    let die = "with gone as (delete from ambo.ready where queue = 'mail' returning run_id)
        insert into ambo.outcome (run_id, attempt, status, error) select run_id, 1, 'dead', '{\"code\": \"AMBO026\"}' from gone";
    db.sql.batch_execute(die).await.unwrap();
    let dead = db.client.dead_letters(&group("a")).await.unwrap();
    assert_eq!(
        dead.iter().map(|letter| (letter.id, letter.group.as_deref())).collect::<Vec<_>>(),
        [(first, Some("a"))]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_run_once_while_others_come() {
    let db = database().await;
    let mut wanted = Vec::new();
    for n in 0..25 {
        wanted.push(ship::enqueue(n).on(&db.client).await.unwrap().run);
    }
    wanted.sort_by(|a, b| b.cmp(a));
    let mut filter = Filter { limit: 7, ..Filter::default() };
    let mut found = Vec::new();
    loop {
        let page = ids(&db, filter.clone()).await;
        ship::enqueue(100).on(&db.client).await.unwrap();
        filter.before = page.last().copied();
        let is_last = page.len() < 7;
        found.extend(page);
        if is_last {
            break;
        }
    }
    assert_eq!(found, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_searched_for_or_set_is_refused() {
    let db = database().await;
    let wrong = Filter { state: Some("sleeping".into()), ..Filter::default() };
    assert_eq!(db.client.list_runs(&wrong).await.unwrap_err().code(), Code::InvalidOption);
    let wrong = Filter { attributes: Some(json!([1])), ..Filter::default() };
    assert_eq!(db.client.list_runs(&wrong).await.unwrap_err().code(), Code::InvalidOption);
    for wrong in [json!([1]), json!("x"), json!(null)] {
        let refused = ship::enqueue(1).attributes(&wrong).on(&db.client).await.map(|enqueued| enqueued.run);
        assert_eq!(refused.map_err(|error| error.code()), Err(Code::InvalidOption), "{wrong}");
    }
    let body = async |mut cx: Ctx<'_>, _: ()| -> Result<Vec<String>> {
        let mut codes = Vec::new();
        for (key, value) in [("", "x".to_owned()), ("k\0", "x".into()), (&"k".repeat(65_536), "x".into())] {
            codes.push(cx.set_attribute(key, &value).unwrap_err().code().to_string());
        }
        codes.push(cx.set_attribute("large", &"x".repeat(10_000)).unwrap_err().code().to_string());
        codes.push(cx.set_attribute("nul", &"a\0b").unwrap_err().code().to_string());
        Ok(codes)
    };
    let _worker = Worker::builder(&db.client).workflow_fn("hostile", body).start().await.unwrap();
    let run = Enqueue::<Untyped>::named("hostile", &()).on(&db.client).await.unwrap().run;
    let codes: Vec<String> = db.client.handle::<Untyped>(run).result_as::<_, Error>().await.unwrap();
    assert_eq!(codes, ["AMBO001", "AMBO001", "AMBO001", "AMBO004", "AMBO007"]);
}

/// The plan of a search, with so many runs that a bad one would show.
async fn plan(db: &Database, source: &str, parameters: [&str; 10]) -> String {
    let text: String =
        db.sql.query_one("select ambo.list_query($1)", &[&source]).await.expect("the query").get(0);
    let parameters: Vec<String> = parameters.iter().map(|value| (*value).to_owned()).collect();
    let text = parameters
        .iter()
        .enumerate()
        .rev()
        .fold(text, |text, (n, value)| text.replace(&format!("${}", n + 1), &format!("({value})")));
    let rows =
        db.sql.query(&format!("explain (analyze, costs off, timing off) {text}"), &[]).await.expect(&text);
    rows.iter().map(|row| row.get::<_, String>(0) + "\n").collect()
}

/// The most rows that any node of a plan brought out or threw away.
fn most_rows(plan: &str) -> u64 {
    let numbers = |before: &str| -> Vec<u64> {
        plan.split(before)
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
            .collect()
    };
    numbers("actual rows=").into_iter().chain(numbers("Removed by Filter: ")).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_reads_no_more_than_it_needs() {
    let db = database().await;
    let many = "insert into ambo.run (id, attempts_max, priority, workflow, queue, group_key, input, attributes, parent_id)
            select ambo.new_run_id(), 5, 0, 'many ' || n % 10, 'default', 'tenant ' || n % 10, 'null',
                   jsonb_build_object('customer', n), case when n % 1000 = 0 then '01a20a30-0ad4-79e9-9264-fe77f57dd4f6'::uuid end
            from generate_series(1, 30000) n;
        insert into ambo.outcome (run_id, attempt, status)
            select id, 1, case when (attributes->>'customer')::int % 3000 = 0 then 'failed' else 'succeeded' end::ambo.status from ambo.run;
        insert into ambo.child select parent_id, id from ambo.run where parent_id is not null; analyze ambo.child;
        insert into ambo.attribute select id, attributes from ambo.run; analyze ambo.attribute;
        insert into ambo.claim (run_id, worker_id, attempt, losses) select ambo.new_run_id(), 1, 1, 0 from generate_series(1, 20);
        insert into ambo.run (id, attempts_max, priority, workflow, queue, input)
            select ambo.new_run_id(), 5, 0, 'waits', 'default', 'null' from generate_series(1, 3000);
        insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow)
            select 0, pg_current_xact_id(), r.id, 0, 0, 0, 'default', r.id::text from ambo.run r where workflow = 'waits' order by r.id limit 2000;
        insert into ambo.timer (run_id, due_at, attempt, losses)
            select w.id, 'infinity', (n = 1)::int, 0
            from (select r.id, row_number() over (order by r.id desc) n from ambo.run r where workflow = 'waits') w where n <= 1000;";
    db.sql.batch_execute(many).await.unwrap();
    // The index of the rare is written by vacuum, but for what is on the last few pages.
    db.sql.batch_execute("vacuum (analyze)").await.unwrap();
    // As the function has them.
    let settings = "select string_agg(format('set %s', s), ';') from unnest((select proconfig from pg_proc
        where oid = 'ambo.list_runs'::regproc)) s";
    let settings: String = db.sql.query_one(settings, &[]).await.unwrap().get(0);
    db.sql.batch_execute(&settings).await.unwrap();
    let null = "null::text";
    let open = [null, null, null, "null::uuid", "50", "null::uuid", "null::jsonb", "null::uuid", null, null];
    let with = |at: usize, value| {
        let mut parameters = open;
        parameters[at - 1] = value;
        parameters
    };
    for (source, parameters, most) in [
        ("run", open, 60),
        ("run", with(1, "'many 7'"), 4000),
        ("rare", with(1, "'nowhere'"), 2000),
        ("rare", with(2, "'nowhere'"), 2000),
        ("run", with(10, "'tenant 7'"), 4000),
        ("rare", with(10, "'nobody'"), 2000),
        ("failed", with(3, "'failed'"), 20),
        ("succeeded", with(3, "'succeeded'"), 60),
        ("running", with(3, "'running'"), 30),
        ("parked", with(3, "'parked'"), 1000),
        ("delayed", with(3, "'delayed'"), 60),
        ("ready", with(3, "'ready'"), 2000),
        ("attributes", with(7, "'{\"customer\": 4711}'::jsonb"), 10),
        ("parent", with(8, "'01a20a30-0ad4-79e9-9264-fe77f57dd4f6'::uuid"), 60),
    ] {
        let [workflow, queue, .., group] = parameters;
        let is_rare = format!("select ambo.is_rare({workflow}, {queue}, 50, {group})");
        if [workflow, queue, group].iter().any(|given| *given != null) {
            let is_rare: bool = db.sql.query_one(&is_rare, &[]).await.unwrap().get(0);
            assert_eq!(is_rare, source == "rare", "{parameters:?}");
        }
        let plan = plan(&db, source, parameters).await;
        assert!(most_rows(&plan) <= most, "{source} reads too much:\n{plan}");
    }
}
