//! The schema: installed once, the same however it is installed, and written down.

use ambo::{Client, Code, Ctx, Enqueue, Failure, Result, Worker};
use expect_test::expect_file;

use crate::harness::{connect, database, empty_database};

/// What the catalog says of a schema, in lines; partitions are left out, for their names hold dates.
const DUMP: &str = include_str!("schema_dump.sql");

async fn dump(sql: &tokio_postgres::Client) -> String {
    let mut out =
        String::from("-- What the migrations make, read from the catalog. Renewed with UPDATE_EXPECT=1.\n");
    for row in sql.query(DUMP, &[]).await.expect("the dump") {
        out.push_str(&row.get::<_, String>(0));
        out.push('\n');
    }
    out
}

#[tokio::test]
async fn the_schema_is_what_is_written_down() {
    let db = database().await;
    expect_file!["../../sql/schema.sql"].assert_eq(&dump(&db.sql).await);
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let db = database().await;
    let before = dump(&db.sql).await;
    assert_eq!(db.client.migrate().await.unwrap(), (1, 1));
    assert_eq!(dump(&db.sql).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_that_migrate_at_once_all_succeed() {
    let (url, _name) = empty_database().await;
    let migrating: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { Client::connect_unchecked(&url, "ambo").await?.migrate().await })
        })
        .collect();
    let mut fresh = 0;
    for one in migrating {
        let (before, now) = one.await.unwrap().unwrap();
        assert_eq!(now, 1);
        fresh += i32::from(before == 0);
    }
    assert_eq!(fresh, 1, "exactly one found an empty database");
}

#[tokio::test]
async fn the_printed_script_makes_the_same_schema() {
    let db = database().await;
    let (url, _name) = empty_database().await;
    let sql = connect(&url).await;
    sql.batch_execute(&Client::migration_script("ambo").unwrap()).await.unwrap();
    assert_eq!(dump(&sql).await, dump(&db.sql).await);
}

async fn double(mut cx: Ctx<'_>, n: i64) -> Result<i64> {
    Ok(cx.step("double", || async { Ok::<_, ambo::Error>(2 * n) }).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_schema_name_works_from_end_to_end() {
    let (url, _name) = empty_database().await;
    let client = Client::connect_unchecked(&url, "jobs").await.unwrap();
    client.migrate().await.unwrap();
    let sql = connect(&url).await;
    let strays = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'ambo'";
    assert_eq!(sql.query_one(strays, &[]).await.unwrap().get::<_, i64>(0), 0);
    let _worker = Worker::builder(&client).workflow_fn("double", double).start().await.unwrap();
    let row = sql.query_one("select jobs.enqueue_workflow('double', '21')", &[]).await.unwrap();
    let run: ambo::RunId = row.get::<_, uuid::Uuid>(0).into();
    let result: Result<i64, Failure<ambo::Error>> = client.handle::<ambo::Untyped>(run).result_as().await;
    assert_eq!(result.unwrap(), 42);
    let enqueued = Enqueue::named("double", &4).schema("jobs").on(&sql).await.unwrap();
    let result: Result<i64, Failure<ambo::Error>> =
        client.handle::<ambo::Untyped>(enqueued.run).result_as().await;
    assert_eq!(result.unwrap(), 8);
}

/// All that stands in it is taken from the public.
#[tokio::test]
async fn a_schema_that_holds_other_things_is_left_alone() {
    let (url, _name) = empty_database().await;
    let sql = connect(&url).await;
    let theirs = "create schema shop; create function shop.price() returns int language sql return 1;
        create schema empty";
    sql.batch_execute(theirs).await.unwrap();
    let client = Client::connect_unchecked(&url, "shop").await.unwrap();
    let refused = client.migrate().await.unwrap_err();
    assert_eq!(refused.code(), Code::Configuration, "{refused}");
    assert!(refused.to_string().contains("the schema shop holds what is not of Ambo"), "{refused}");
    let still = "select has_function_privilege('public', 'shop.price()', 'execute')";
    assert!(sql.query_one(still, &[]).await.unwrap().get::<_, bool>(0));
    Client::connect_unchecked(&url, "empty").await.unwrap().migrate().await.unwrap();
    Client::connect_unchecked(&url, "empty").await.unwrap().migrate().await.unwrap();
}

#[tokio::test]
async fn a_schema_of_another_version_is_refused() {
    let db = database().await;
    db.sql.execute("update ambo.installation set schema_version = 99, serves_from = 98", &[]).await.unwrap();
    let refused = Client::connect(&db.url).await.unwrap_err();
    assert_eq!(refused.code(), Code::SchemaMismatch);
    assert!(refused.to_string().contains("upgrade the program"), "{refused}");
    assert_eq!(db.client.migrate().await.unwrap_err().code(), Code::SchemaMismatch);
    let worker = Worker::builder(&db.client).workflow_fn("double", double).start().await;
    assert_eq!(worker.unwrap_err().code(), Code::SchemaMismatch);
    let (url, _name) = empty_database().await;
    assert_eq!(Client::connect(&url).await.unwrap_err().code(), Code::SchemaMismatch);
}

#[tokio::test]
async fn every_table_has_a_primary_key_and_nothing_is_granted_to_everyone() {
    let db = database().await;
    let keyless = "select count(*) from pg_class c where c.relnamespace = 'ambo'::regnamespace and c.relkind in ('r', 'p')
        and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)";
    assert_eq!(db.number(keyless).await, 0);
    let open_functions = "select count(*) from pg_proc p where p.pronamespace = 'ambo'::regnamespace
        and (p.proacl is null or exists (select from aclexplode(p.proacl) a where a.grantee = 0))";
    assert_eq!(db.number(open_functions).await, 0);
    let open_tables = "select count(*) from pg_class c cross join aclexplode(c.relacl) a
        where c.relnamespace = 'ambo'::regnamespace and a.grantee = 0";
    assert_eq!(db.number(open_tables).await, 0);
}

#[tokio::test]
async fn every_function_that_runs_as_its_owner_pins_its_search_path() {
    let db = database().await;
    let loose = "select count(*) from pg_proc p where p.pronamespace = 'ambo'::regnamespace and p.prosecdef
        and not coalesce(p.proconfig::text, '') like '%search_path=pg_catalog%'";
    assert_eq!(db.number(loose).await, 0);
}

/// Where every plan of the kind that is wanted is turned off but one, that one costs ten billions on paper. It would be compiled
/// first, which takes a second, where the session has not turned that off: behind a pooler, and in sessions of users.
#[tokio::test]
async fn every_function_that_turns_plans_off_turns_their_compilation_off() {
    let db = database().await;
    let compiled = "select coalesce(string_agg(p.proname, ', ' order by p.proname), '') from pg_proc p
        where p.pronamespace = 'ambo'::regnamespace and p.proconfig::text ~ 'enable_[a-z]+=off'
          and not p.proconfig::text ~ 'jit=off'";
    assert_eq!(db.sql.query_one(compiled, &[]).await.unwrap().get::<_, String>(0), "");
}

/// There any byte is text, and one that is no character would keep its queue from being read.
#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let (url, name) = empty_database().await;
    let admin = connect(&url).await;
    let other = format!(
        "create database {name}_a encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'"
    );
    admin.batch_execute(&other).await.unwrap();
    let client = ambo::Client::connect_unchecked(&format!("{url}_a"), "ambo").await.unwrap();
    let error = client.migrate().await.unwrap_err();
    assert_eq!(error.code(), ambo::Code::Configuration);
    assert!(error.to_string().contains("SQL_ASCII"), "{error}");
    drop(client);
    admin.batch_execute(&format!("drop database {name}_a with (force)")).await.unwrap();
}
