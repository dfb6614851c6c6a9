//! `ambo migrate`, and what is said when there is no database to migrate.

use expect_test::expect;

use crate::harness::{Database, Ended, Sql, command};

/// Every table, column, constraint, index, function and privilege, a line each.
const EVERYTHING: &str = "
    select line from (
        select format('%s.%s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                      pg_get_expr(d.adbin, d.adrelid),
                      coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::\"char\", c.relowner)))
        from pg_class c join pg_attribute a on a.attrelid = c.oid left join pg_attrdef d on d.adrelid = c.oid
            and d.adnum = a.attnum
        where c.relnamespace = 'ambo'::regnamespace and a.attnum > 0
        union all
        select format('%s %s', n.conrelid::regclass, pg_get_constraintdef(n.oid)) from pg_constraint n
        where n.connamespace = 'ambo'::regnamespace
        union all
        select pg_get_indexdef(c.oid) from pg_class c where c.relnamespace = 'ambo'::regnamespace and c.relkind in ('i', 'I')
        union all
        select format('%s %s', pg_get_functiondef(p.oid), p.proacl) from pg_proc p
        where p.pronamespace = 'ambo'::regnamespace
        union all
        select format('version %s', i.schema_version) from ambo.installation i
    ) x (line) order by line collate \"C\"";

#[track_caller]
fn assert_same(one: &str, other: &str) {
    let only = |one: &str, other: &str| {
        let lines = one.lines().filter(|line| !other.lines().any(|there| there == *line));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((only(one, other), only(other, one)), (vec![], vec![]));
    assert_eq!(one.lines().count(), other.lines().count());
}

#[test]
fn migrating_twice_changes_nothing_the_second_time() {
    let db = Database::empty();
    expect![[r#"
        stderr: schema ambo: installed, version 1
    "#]]
    .assert_eq(&db.ambo(&["migrate"]).shown());
    let installed = db.sql.text(EVERYTHING);
    expect![[r#"
        {"schema":"ambo","from":1,"to":1}
        stderr: schema ambo: version 1 already, functions refreshed
    "#]]
    .assert_eq(&db.ambo(&["migrate", "--json"]).shown());
    assert_same(&db.sql.text(EVERYTHING), &installed);
}

#[test]
fn the_printed_script_installs_the_same() {
    let (migrated, scripted) = (Database::migrated(), Database::empty());
    let script = Ended::of(&mut command(&["migrate", "--print"]), "").done();
    scripted.sql.run(&script);
    let everything = scripted.sql.text(EVERYTHING);
    assert!(everything.lines().count() > 500, "{everything}");
    assert_same(&migrated.sql.text(EVERYTHING), &everything);
    let twice = scripted.sql.refused(&script);
    assert!(twice.contains("AMBO041: the schema ambo holds Ambo already"), "{twice}");
    let again = scripted.ambo(&["migrate"]);
    assert!(again.stderr.contains("version 1 already"), "{again:?}");
}

#[test]
fn another_schema_stands_beside_the_usual_one() {
    let db = Database::migrated();
    let missing = db.ambo(&["run", "list", "--schema", "jobs"]);
    expect![[r#"
        stderr: error: AMBO010: the database holds no schema of Ambo; run: ambo migrate
        stderr:   the schema asked for is jobs: --schema jobs (docs/errors/AMBO010.md)
        exit status: 1
    "#]]
    .assert_eq(&missing.shown());
    db.ambo(&["migrate", "--schema", "jobs"]).done();
    db.ambo(&["--schema", "jobs", "run", "enqueue", "there"]).done();
    assert_eq!(db.ambo(&["run", "list"]).done(), "");
    assert!(db.ambo(&["run", "list", "--schema", "jobs"]).done().contains("there"));
}

#[test]
fn a_schema_of_the_future_is_left_alone() {
    let db = Database::migrated();
    db.sql.run("update ambo.installation set schema_version = 99, serves_from = 98");
    expect![[r#"
        stderr: error: AMBO010: the schema has version 99 and serves programs from version 98 on, this program is of version 1; upgrade the program
        stderr:   see docs/errors/AMBO010.md
        exit status: 1
    "#]]
    .assert_eq(&db.ambo(&["migrate"]).shown());
}

#[test]
fn what_is_wrong_with_a_database_is_said_without_its_password() {
    let db = Database::empty();
    let place = std::env::temp_dir();
    let said = |url: &str| {
        let mut ambo = command(&["run", "list"]);
        let ended = Ended::of(ambo.env("DATABASE_URL", url).current_dir(&place), "");
        assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
        ended.shown().replace(&db.url, "postgres://USER@HOST/EMPTY")
    };
    expect![[r#"
        stderr: error: AMBO040: error connecting to server: Connection refused (os error 111)
        stderr:   is a PostgreSQL server running at postgres://ann@127.0.0.1:1/shop, and can it be reached from here? (docs/errors/AMBO040.md)
        exit status: 1
    "#]].assert_eq(&said("postgres://ann:s3cret@127.0.0.1:1/shop"));
    expect![[r#"
        stderr: error: AMBO041: the database URL cannot be read; expected postgres://user@host/database
        stderr:   check --database-url or DATABASE_URL, and --schema (docs/errors/AMBO041.md)
        exit status: 2
    "#]]
    .assert_eq(&said("postgres://ann:s3cret@[::1"));
    expect![[r#"
        stderr: error: AMBO010: the database holds no schema of Ambo; run: ambo migrate
        stderr:   see docs/errors/AMBO010.md
        exit status: 1
    "#]]
    .assert_eq(&said(&db.url));
    expect![[r#"
        stderr: error: no database: neither --database-url nor DATABASE_URL is set, and no `ambo dev` runs here
        stderr:   set one of them, or start a private PostgreSQL with: ambo dev
        exit status: 2
    "#]].assert_eq(&said(""));
    let base = db.url.rsplit_once('/').expect("a URL").0;
    let missing = said(&format!("{base}/cli_missing"));
    assert!(missing.contains("AMBO050: database \"cli_missing\" does not exist"), "{missing}");
    assert!(missing.contains("create the database, or correct the URL"), "{missing}");
}

#[test]
fn help_shows_no_password_and_wrong_usage_ends_with_two() {
    let mut help = command(&["--help"]);
    let help = Ended::of(help.env("DATABASE_URL", "postgres://ann:s3cret@db/shop"), "").done();
    assert!(help.contains("DATABASE_URL") && !help.contains("s3cret"), "{help}");
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    for wrong in [
        &["runs"][..],
        &["run", "show", "7"],
        &["run", "enqueue", "w", "{"],
        &["run", "list", "--state", "x"],
    ] {
        let said = Ended::of(&mut command(wrong), "").failed(2);
        assert!(said.starts_with("error: "), "{said}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let db = Database::migrated();
    Sql::connect(&db.url).run("select ambo.enqueue_workflow('w', '1') from generate_series(1, 5000)");
    let mut ambo = command(&["run", "list", "--limit", "5000", "--json"]);
    let ambo = ambo.env("DATABASE_URL", &db.url).stdout(std::process::Stdio::piped());
    let mut child = ambo.stderr(std::process::Stdio::piped()).spawn().expect("ambo starts");
    drop(child.stdout.take());
    let ended = Ended::from(child.wait_with_output().expect("ambo ends"));
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
}
