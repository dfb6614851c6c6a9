//! Least privilege: each role may do what it is for, and nothing else; one schema's roles do not reach another's.

use std::sync::Arc;
use std::time::Duration;

use ambo::{
    Client, Code, Ctx, Enqueue, Error, Result, RunId, Schedule, SendSignal, TokioPostgres, Untyped, Worker,
};

use crate::harness::{Database, connect, database, empty_database};

const ROLES: [&str; 4] = ["producer", "worker", "observer", "operator"];

/// The URL of the database for a user of its own who has one role only. Users belong to the server: named after the database.
pub(crate) async fn user(db: &Database, schema: &str, role: &str) -> String {
    let (server, name) = db.url.rsplit_once('/').unwrap();
    let user = format!("{name}_{schema}_{role}");
    db.sql.batch_execute(&format!("create role {user} login in role {schema}_{role}")).await.unwrap();
    server.replace("//postgres@", &format!("//{user}@")) + "/" + name
}

/// Removes the users of a test: nothing else would.
pub(crate) async fn remove_users(db: &Database) {
    let mine = "select rolname::text from pg_roles where rolname like current_database() || '\\_%'";
    for row in db.sql.query(mine, &[]).await.unwrap() {
        // One that is still connected stays until its server goes.
        let _ = db.sql.batch_execute(&format!("drop role {}", row.get::<_, &str>(0))).await;
    }
}

#[tokio::test]
async fn every_function_says_who_may_execute_it() {
    let db = database().await;
    let difference = "select coalesce(string_agg(format('%s (%s)', coalesce(p.proname, g.function_name),
            case when g is null then 'add it to ambo.privileges in functions/role.sql' else 'there is no such function' end), ', '), '')
        from (select distinct p.proname from pg_proc p where p.pronamespace = 'ambo'::regnamespace) p
        full join ambo.privileges() g on g.function_name = p.proname where p is null or g is null";
    assert_eq!(db.sql.query_one(difference, &[]).await.unwrap().get::<_, &str>(0), "");
    let owners =
        "select count(distinct p.proowner) from pg_proc p where p.pronamespace = 'ambo'::regnamespace";
    assert_eq!(db.number(owners).await, 1);
    // What somebody may execute reads and writes as its owner, or is one expression that was bound when it was created.
    let as_caller = "select count(*) from pg_proc p join ambo.privileges() g on g.function_name = p.proname
        where p.pronamespace = 'ambo'::regnamespace and g.roles <> '{}' and not p.prosecdef and p.provolatile <> 'i'
          and p.prosqlbody is null";
    assert_eq!(db.number(as_caller).await, 0);
}

#[tokio::test]
async fn each_role_may_execute_what_is_stated_and_touch_no_table() {
    let db = database().await;
    let functions = "select p.oid::regprocedure::text, p.proname::text, g.roles,
            array(select format('null::%s', format_type(t, null)) from unnest(p.proargtypes) t)
        from pg_proc p join ambo.privileges() g on g.function_name = p.proname
        where p.pronamespace = 'ambo'::regnamespace order by 1";
    let functions = db.sql.query(functions, &[]).await.unwrap();
    let tables = "select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'ambo'::regnamespace and c.relkind in ('r', 'p')";
    let tables = db.sql.query(tables, &[]).await.unwrap();
    let sequences = "select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'ambo'::regnamespace and c.relkind = 'S'";
    let sequences = db.sql.query(sequences, &[]).await.unwrap();
    assert!(
        tables.len() > 20 && sequences.len() > 3,
        "{} tables, {} sequences",
        tables.len(),
        sequences.len()
    );
    // And one who has none of them, but may be granted the use of the schema by mistake.
    let nobody =
        user(&db, "ambo", "producer").await.split_once("//").unwrap().1.split_once('@').unwrap().0.to_owned();
    db.sql
        .batch_execute(&format!("revoke ambo_producer from {nobody}; grant usage on schema ambo to {nobody}"))
        .await
        .unwrap();
    let mut refused = 0;
    for role in ROLES.map(|role| format!("ambo_{role}")).iter().chain([&nobody]) {
        for row in &functions {
            let (signature, name, roles): (&str, &str, Vec<String>) = (row.get(0), row.get(1), row.get(2));
            let call = format!("select * from ambo.{name}({})", row.get::<_, Vec<String>>(3).join(", "));
            let allowed = roles.iter().any(|allowed| *role == format!("ambo_{allowed}"));
            assert_eq!(is_refused(&db, role, &call).await, !allowed, "{role}: {signature}");
            refused += u32::from(!allowed);
        }
        for table in &tables {
            let table: &str = table.get(0);
            for act in [
                format!("select from {table}"),
                format!("delete from {table}"),
                format!("insert into {table} default values"),
                format!("truncate {table}"),
                format!("lock table {table} in access share mode"),
                format!(
                    "create trigger mine before insert on {table} execute function suppress_redundant_updates_trigger()"
                ),
                format!("copy {table} to stdout"),
            ] {
                assert!(is_refused(&db, role, &act).await, "{role}: {act}");
            }
        }
        for sequence in &sequences {
            let sequence: &str = sequence.get(0);
            for act in [
                format!("select nextval('{sequence}')"),
                format!("select setval('{sequence}', 1)"),
                format!("select last_value from {sequence}"),
            ] {
                assert!(is_refused(&db, role, &act).await, "{role}: {act}");
            }
        }
        for act in [
            "create table ambo.mine ()",
            "drop function ambo.wake()",
            "create function ambo.mine() returns int return 1",
        ] {
            assert!(is_refused(&db, role, act).await, "{role}: {act}");
        }
        // And what nobody thought of trying, by the catalogue's account: of tables, of their columns, of sequences, with those that
        // are to come.
        let rights = format!(
            "select count(*) from pg_class c where c.relnamespace = 'ambo'::regnamespace and (
                 c.relkind in ('r', 'p', 'v', 'm', 'f') and (
                     has_table_privilege('{role}', c.oid, 'select, insert, update, delete, truncate, references, trigger')
                     or has_any_column_privilege('{role}', c.oid, 'select, insert, update, references'))
                 or c.relkind = 'S' and has_sequence_privilege('{role}', c.oid, 'usage, select, update'))"
        );
        assert_eq!(db.number(&rights).await, 0, "{role}");
        let defaults = format!(
            "select count(*) from pg_default_acl d cross join lateral aclexplode(d.defaclacl) a
             where a.grantee in (0, '{role}'::regrole) and d.defaclobjtype in ('r', 'S')"
        );
        assert_eq!(db.number(&defaults).await, 0, "{role}");
    }
    assert!(refused > 300, "nothing was tried");
    db.sql.batch_execute(&format!("revoke usage on schema ambo from {nobody}")).await.unwrap();
    remove_users(&db).await;
}

/// Whether a role may not do this; what else comes of it is of no concern, and is rolled back.
async fn is_refused(db: &Database, role: &str, act: &str) -> bool {
    db.sql
        .batch_execute(&format!("begin; set local role {role}; set local statement_timeout = '5s'"))
        .await
        .unwrap();
    let done = db.sql.batch_execute(act).await;
    db.sql.batch_execute("rollback").await.unwrap();
    done.is_err_and(|error| error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE))
}

#[ambo::workflow]
async fn twig(mut cx: Ctx, n: u32) -> Result<u32> {
    Ok(cx.step("grow", async || Ok::<u32, Error>(n + 1)).await?)
}

/// All that a worker does: steps, transaction steps, events, children, waits in memory and parked.
#[ambo::workflow]
async fn branch(mut cx: Ctx, n: u32) -> Result<u32> {
    let pool = cx.state::<Arc<TokioPostgres>>()?;
    let two = cx.transaction("two").run(&*pool, async |tx| {
        Ok::<i32, Error>(tx.query_one("select 2", &[]).await.map_err(Error::other)?.get(0))
    });
    let two = two.await?.unsigned_abs();
    cx.publish("at", &"half way")?;
    let child = cx.child::<twig>(n).start()?;
    let grown = cx.result_of(child).await?;
    let word: u32 = cx.signal("word").await?;
    cx.sleep(Duration::from_millis(1500)).await?;
    Ok(two + grown + word)
}

/// A worker that has the role of a worker, also in its transaction steps.
async fn worker(url: &str) -> Worker {
    let client = Client::connect(url).await.unwrap();
    let url = url.to_owned();
    let pool = TokioPostgres::new(move || {
        let url = url.clone();
        async move { Ok(connect(&url).await) }
    });
    let builder = Worker::builder(&client).workflow::<branch>().workflow::<twig>().state(Arc::new(pool));
    builder.park_after(Duration::from_millis(30)).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn producer_worker_operator_and_observer_each_do_their_work_with_one_role() {
    let db = database().await;
    let [producer, labour, observer, operator] = ROLES.map(|role| user(&db, "ambo", role));
    let (producer, labour, observer, operator) =
        (producer.await, labour.await, observer.await, operator.await);
    let working = worker(&labour).await;
    let producer = Client::connect(&producer).await.unwrap();
    let operator = Client::connect(&operator).await.unwrap();
    let observer = Client::connect(&observer).await.unwrap();

    let run = branch::enqueue(1).key("one").on(&producer).await.unwrap().run;
    db.until("select count(*) = 1 from ambo.timer where attempt > 0").await;
    assert_eq!(producer.events::<String>(run, "at", 0).await.unwrap().len(), 1);
    assert!(SendSignal::new(run, "word", &39u32).on(&operator).await.unwrap());
    let result: u32 = producer.handle::<branch>(run).result().await.unwrap();
    assert_eq!(result, 43, "2 of the transaction, 2 of the child, 39 of the signal");
    // What is due, and what comes again, is the keeper's: a worker with no more rights.
    let later = Enqueue::named("twig", &1).delay(Duration::from_secs(1)).on(&producer).await.unwrap().run;
    Schedule::every("beat", Duration::from_secs(1), Enqueue::<Untyped>::named("twig", &1))
        .set(&operator)
        .await
        .unwrap();
    let _: u32 = producer.handle::<Untyped>(later).result_as::<_, Error>().await.unwrap();
    db.until("select count(*) > 0 from ambo.run where key like 'beat@%'").await;
    operator.delete_schedule("beat").await.unwrap();

    let seen = observer.show_run(run).await.unwrap();
    assert_eq!((seen.summary.state.as_str(), seen.steps.len() > 3), ("succeeded", true));
    assert!(!observer.list_runs(&Default::default()).await.unwrap().is_empty());
    assert_eq!(observer.list_queues().await.unwrap().len(), 1);
    assert_eq!(observer.list_workers().await.unwrap().len(), 1);
    assert!(observer.vital_signs().await.unwrap().len() > 10);
    assert!(observer.list_schedules().await.unwrap().is_empty());

    operator.pause_queue("default", true).await.unwrap();
    let stopped = branch::enqueue(1).on(&producer).await.unwrap().run;
    operator.cancel(stopped, "not needed").await.unwrap();
    operator.retry(stopped).await.unwrap();
    operator.fork(run, None).await.unwrap();
    operator.create_queue("other").await.unwrap();
    for (who, what, done) in [
        ("observer", "enqueue", branch::enqueue(1).on(&observer).await.map(drop)),
        ("observer", "cancel", observer.cancel(stopped, "").await.map(drop)),
        ("observer", "pause", observer.pause_queue("default", false).await),
        ("producer", "cancel", producer.cancel(stopped, "").await.map(drop)),
        ("producer", "signal", SendSignal::new(stopped, "word", &1).on(&producer).await.map(drop)),
        ("producer", "list", producer.list_runs(&Default::default()).await.map(drop)),
        ("producer", "show", producer.show_run(run).await.map(drop)),
        ("operator", "migrate", operator.migrate().await.map(drop)),
    ] {
        let error = done.expect_err(&format!("{who}: {what}"));
        assert_eq!(
            (error.code(), error.sqlstate()),
            (Code::Database, Some("42501")),
            "{who}: {what}: {error}"
        );
    }
    working.drain(Duration::ZERO).await;
    assert_eq!(db.number("select count(*) from ambo.worker").await, 0, "it left");
    remove_users(&db).await;
}

#[tokio::test]
async fn an_owner_who_may_not_make_roles_migrates_and_grants_to_those_that_there_are() {
    let (url, name) = empty_database().await;
    let (sql, owner) = (connect(&url).await, format!("{name}_owner"));
    sql.batch_execute(&format!("create role {owner} login; grant create on database {name} to {owner}"))
        .await
        .unwrap();
    let as_owner = url.replace("//postgres@", &format!("//{owner}@"));
    let client = Client::connect_unchecked(&as_owner, &name).await.unwrap();
    client.migrate().await.unwrap();
    let roles =
        format!("select count(*) from pg_roles where rolname like '{name}\\_%' and rolname <> '{owner}'");
    assert_eq!(sql.query_one(&roles, &[]).await.unwrap().get::<_, i64>(0), 0);
    sql.batch_execute(&format!("create role {name}_producer nologin")).await.unwrap();
    let owning = connect(&as_owner).await;
    let granted = owning.query_one(&format!("select {name}.grant_privileges()"), &[]).await.unwrap();
    assert_eq!(granted.get::<_, Vec<String>>(0), [format!("{name}_producer")]);
    sql.batch_execute(&format!("set role {name}_producer; select {name}.enqueue_workflow('a')"))
        .await
        .unwrap();
    let clean = format!(
        "reset role; drop schema {name} cascade; drop role {name}_producer; drop owned by {owner}; drop role {owner}"
    );
    sql.batch_execute(&clean).await.unwrap();
}

/// Default privileges of the owner, meant for tables of his own, open nothing here: neither what is installed nor what the keeper makes later.
#[tokio::test]
async fn default_privileges_give_nobody_a_right_to_what_is_ambos() {
    let (url, name) = empty_database().await;
    let (sql, reader) = (connect(&url).await, format!("{name}_reader"));
    let grants = ["tables", "sequences", "functions"]
        .map(|kind| format!("alter default privileges grant all on {kind} to {reader}, public;"));
    sql.batch_execute(&format!("create role {reader}; {}", grants.concat())).await.unwrap();
    let client = Client::connect_unchecked(&url, "ambo").await.unwrap();
    client.migrate().await.unwrap();
    let more =
        "update ambo.installation set partitions_ahead = partitions_ahead + 2; select ambo.make_partitions()";
    sql.batch_execute(more).await.unwrap();
    let rights = format!(
        "select coalesce(string_agg(what, ', '), '') from (
             select c.oid::regclass::text as what, c.relacl as acl from pg_class c
             where c.relnamespace = 'ambo'::regnamespace and c.relkind in ('r', 'p', 'S')
             union all
             select p.oid::regprocedure::text, p.proacl from pg_proc p where p.pronamespace = 'ambo'::regnamespace) o
         where exists (select from aclexplode(o.acl) a where a.grantee in (0, '{reader}'::regrole))"
    );
    assert_eq!(sql.query_one(&rights, &[]).await.unwrap().get::<_, &str>(0), "");
    // They are there: it is not that nothing was granted.
    sql.batch_execute("create table others ()").await.unwrap();
    let others = format!("select has_table_privilege('{reader}', 'others', 'select')");
    assert!(sql.query_one(&others, &[]).await.unwrap().get::<_, bool>(0));
    sql.batch_execute(&format!("drop owned by {reader}; drop role {reader}")).await.unwrap();
}

/// A stranger's connection stands in for one of a stopped worker.
#[tokio::test]
async fn an_owner_who_may_not_end_what_a_dead_worker_left_says_so() {
    let (url, name) = empty_database().await;
    let (sql, owner) = (connect(&url).await, format!("{name}_owner"));
    let role = format!("create role {owner} login; grant create on database {name} to {owner}");
    sql.batch_execute(&role).await.unwrap();
    let as_owner = url.replace("//postgres@", &format!("//{owner}@"));
    Client::connect_unchecked(&as_owner, &name).await.unwrap().migrate().await.unwrap();
    let owning = connect(&as_owner).await;
    let register =
        format!("select worker_id from {name}.register_worker('w', '', 0, '{{default}}', '{{a}}', false)");
    let mut ids: Vec<i64> = Vec::new();
    for _ in 0..2 {
        ids.push(owning.query_one(&register, &[]).await.unwrap().get(0));
    }
    let silent = format!("update {name}.heartbeat set at = now() - interval '1 hour' where worker_id = $1");
    owning.execute(&silent, &[&ids[0]]).await.unwrap();
    owning.execute(&format!("select {name}.heartbeat($1, 0, false)"), &[&ids[1]]).await.unwrap();
    let hold = format!("begin; select pg_advisory_xact_lock_shared(hashtext('{name}.fence'), {})", ids[0]);
    sql.batch_execute(&hold).await.unwrap();
    let bury = format!("select buried, held from {name}.bury_worker($1, $2, 100)");
    let buried = owning.query_one(&bury, &[&ids[1], &ids[0]]).await.unwrap();
    assert_eq!((buried.get(0), buried.get(1)), (false, true));
    sql.batch_execute("commit").await.unwrap();
    let buried = owning.query_one(&bury, &[&ids[1], &ids[0]]).await.unwrap();
    assert_eq!((buried.get(0), buried.get(1)), (true, false));
    let clean = format!("drop schema {name} cascade; drop owned by {owner}; drop role {owner}");
    sql.batch_execute(&clean).await.unwrap();
}

#[tokio::test]
async fn an_owner_who_may_not_see_the_sessions_of_others_is_told_of_them_without_their_age() {
    let (url, name) = empty_database().await;
    let (sql, owner) = (connect(&url).await, format!("{name}_owner"));
    let role = format!("create role {owner} login; grant create on database {name} to {owner}");
    sql.batch_execute(&role).await.unwrap();
    let as_owner = url.replace("//postgres@", &format!("//{owner}@"));
    let client = Client::connect_unchecked(&as_owner, &name).await.unwrap();
    client.migrate().await.unwrap();
    client.create_queue("q").await.unwrap();
    let owning = connect(&as_owner).await;
    let register =
        format!("select worker_id from {name}.register_worker('w', '', 0, '{{q}}', '{{w}}', false)");
    owning.query_one(&register, &[]).await.unwrap();
    let run = Enqueue::<Untyped>::named("w", &1).queue("q").on(&client).await.unwrap().run;
    let pid: i32 = sql.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let lock = format!("set application_name = 'report'; begin; select from {name}.queue for update");
    sql.batch_execute(&lock).await.unwrap();
    let explanation = client.why(run).await.unwrap().remove(0).explanation;
    let holder = format!(
        "; session {pid} (postgres, report) has a transaction open that has locked or written rows of {name}.queue"
    );
    assert!(explanation.ends_with(&holder), "{explanation}");
    let signs = client.vital_signs().await.unwrap();
    let sign = signs.iter().find(|sign| sign.name == "lock_holder").expect("the holder");
    assert!(sign.value.ends_with(r#", null, ["queue"]]"#), "{sign:?}");
    sql.batch_execute("rollback").await.unwrap();
    assert!(client.vital_signs().await.unwrap().iter().all(|sign| sign.name != "lock_holder"));
    let clean = format!("drop schema {name} cascade; drop owned by {owner}; drop role {owner}");
    sql.batch_execute(&clean).await.unwrap();
}

#[tokio::test]
async fn whoever_asks_for_a_key_of_another_is_not_told_its_run() {
    let db = database().await;
    let run: uuid::Uuid = db
        .sql
        .query_one("select ambo.enqueue_workflow('a', '\"secret\"', key => 'k')", &[])
        .await
        .unwrap()
        .get(0);
    let refused =
        db.sql.query_one("select ambo.enqueue_workflow('a', '2', key => 'k')", &[]).await.unwrap_err();
    let said = format!("{refused:?}");
    assert!(said.contains("AM003") && !said.contains(&run.to_string()) && !said.contains("secret"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_with_a_schema_each_do_not_reach_each_other() {
    let (url, name) = empty_database().await;
    let schemas = [format!("{name}_a"), format!("{name}_b")];
    for schema in &schemas {
        Client::connect_unchecked(&url, schema).await.unwrap().migrate().await.unwrap();
    }
    let sql = connect(&url).await;
    let run: RunId = sql
        .query_one(&format!("select {}.enqueue_workflow('a', '\"secret\"')", schemas[1]), &[])
        .await
        .unwrap()
        .get::<_, uuid::Uuid>(0)
        .into();
    for role in ROLES {
        let tenant = connect(&url).await;
        tenant.batch_execute(&format!("set role {}_{role}", schemas[0])).await.unwrap();
        for act in [
            format!("select {}.enqueue_workflow('a')", schemas[1]),
            format!("select {}.run_result('{run}')", schemas[1]),
            format!("select {}.list_runs()", schemas[1]),
            format!("select from {}.run", schemas[1]),
        ] {
            let refused = tenant.batch_execute(&act).await.expect_err(&act);
            assert_eq!(refused.code().map(|code| code.code()), Some("42501"), "{role}: {act}");
        }
        // Its own functions find nothing of the other's, whatever they are asked.
        if role != "worker" {
            let own = format!("select * from {}.run_result('{run}')", schemas[0]);
            assert!(tenant.query(&own, &[]).await.unwrap().is_empty());
        }
    }
    for schema in &schemas {
        sql.batch_execute(&format!("drop schema {schema} cascade")).await.unwrap();
        for role in ROLES {
            sql.batch_execute(&format!("drop role {schema}_{role}")).await.unwrap();
        }
    }
}
