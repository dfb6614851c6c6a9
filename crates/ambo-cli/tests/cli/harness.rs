//! A database of its own for each test, the binary run on it, and output made comparable.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use ambo_postgres::{Cluster, Place};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The server: the one that `cargo xtask test` started, or one of our own.
fn server() -> &'static str {
    static SERVER: OnceLock<(String, Option<Cluster>)> = OnceLock::new();
    let (url, _) = SERVER.get_or_init(|| match std::env::var("AMBO_TEST_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let cluster = Cluster::builder().temporary(Place::Memory).start().expect("a private PostgreSQL");
            (cluster.url("postgres"), Some(cluster))
        }
    });
    url
}

/// A connection for what a user or an observer would do.
pub(crate) struct Sql {
    client: Client,
    // Drives the connection while one of the calls below waits.
    runtime: Runtime,
}

impl Sql {
    pub(crate) fn connect(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (client, connection) = runtime.block_on(tokio_postgres::connect(url, NoTls)).expect("connect");
        runtime.spawn(connection);
        Sql { client, runtime }
    }

    /// Runs statements.
    #[track_caller]
    pub(crate) fn run(&self, sql: &str) {
        if let Err(error) = self.runtime.block_on(self.client.batch_execute(sql)) {
            panic!("{error:?}: {sql}");
        }
    }

    /// What the server says to statements that it refuses.
    #[track_caller]
    pub(crate) fn refused(&self, sql: &str) -> String {
        let error = self.runtime.block_on(self.client.batch_execute(sql)).expect_err(sql);
        self.run("rollback");
        error.as_db_error().expect("an error of the server").message().to_owned()
    }

    /// The first column of all rows, a line each.
    #[track_caller]
    pub(crate) fn text(&self, sql: &str) -> String {
        let messages = self.runtime.block_on(self.client.simple_query(sql)).expect(sql);
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
            _ => None,
        });
        rows.collect::<Vec<_>>().join("\n")
    }
}

/// An empty database, dropped with the value.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) sql: Sql,
    pub(crate) name: String,
}

impl Drop for Database {
    fn drop(&mut self) {
        // The server goes with its directory; what matters during a run is the room in memory.
        Sql::connect(server()).run(&format!("drop database if exists {} with (force)", self.name));
    }
}

impl Database {
    /// Without Ambo.
    pub(crate) fn empty() -> Self {
        Self::made_by(|name| format!("create database {name}"))
    }

    /// With Ambo.
    pub(crate) fn migrated() -> Self {
        let database = Self::empty();
        database.ambo(&["migrate"]).done();
        database
    }

    /// A copy, as a restored backup is one; who is connected to this one is cut off.
    pub(crate) fn cloned(&self) -> Self {
        Sql::connect(server()).run(&format!(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{}'",
            self.name
        ));
        Self::made_by(|name| format!("create database {name} template {}", self.name))
    }

    fn made_by(statement: impl Fn(&str) -> String) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cli_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Sql::connect(server()).run(&statement(&name));
        let base = server().rsplit_once('/').expect("a URL with a database").0;
        let url = format!("{base}/{name}");
        Database { sql: Sql::connect(&url), url, name }
    }

    /// `ambo` on this database.
    pub(crate) fn ambo(&self, arguments: &[&str]) -> Ended {
        Ended::of(command(arguments).env("DATABASE_URL", &self.url), "")
    }

    /// `ambo` on this database, with something on its stdin.
    pub(crate) fn ambo_reading(&self, stdin: &str, arguments: &[&str]) -> Ended {
        Ended::of(command(arguments).env("DATABASE_URL", &self.url), stdin)
    }
}

/// The binary, free of what the environment of the tests would tell it.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ambo"));
    command.args(arguments);
    for name in ["DATABASE_URL", "AMBO_DIR", "RUST_LOG", "COLUMNS", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(command: &mut Command, stdin: &str) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ambo starts");
        child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("stdin");
        Self::from(child.wait_with_output().expect("ambo ends"))
    }

    /// It did what it should; answers with stdout.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// It did not; answers with stderr.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "a failure prints no data");
        self.stderr
    }

    /// All of it, made comparable.
    pub(crate) fn shown(&self) -> String {
        let mut text = normalised(&self.stdout);
        for line in normalised(&self.stderr).lines() {
            text.push_str(&format!("stderr: {line}\n"));
        }
        if self.code != 0 {
            text.push_str(&format!("exit status: {}\n", self.code));
        }
        text
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

/// Ids become numbers in the order in which they appear; times and ages become words.
pub(crate) fn normalised(text: &str) -> String {
    let mut ids: Vec<String> = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(id) = shaped(rest, "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh") {
            let known = ids.iter().position(|known| known == id);
            let number = known.unwrap_or_else(|| {
                ids.push(id.to_owned());
                ids.len() - 1
            });
            out.push_str(&format!("00000000-0000-0000-0000-{number:012}"));
            rest = &rest[id.len()..];
        } else if let Some(time) =
            shaped(rest, "dddd-dd-ddTdd:dd:dd").or_else(|| shaped(rest, "dddd-dd-dd dd:dd:dd"))
        {
            out.push_str("TIME");
            rest = &rest[time.len()..];
            rest = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit()).trim_start_matches('Z');
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    let lines = out.lines().map(|line| match aged(line) {
        Some((before, "")) => format!("{before}  AGE"),
        Some((before, after)) => format!("{before}AGE{after}"),
        None => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

/// The beginning of `text` if it has this shape: `h` a hexadecimal digit, `d` a decimal one.
fn shaped<'a>(text: &'a str, shape: &str) -> Option<&'a str> {
    let start = text.get(..shape.len())?;
    let fits = |(c, wanted): (char, char)| match wanted {
        'h' => c.is_ascii_hexdigit(),
        'd' => c.is_ascii_digit(),
        wanted => c == wanted,
    };
    start.chars().zip(shape.chars()).all(fits).then_some(start)
}

/// A line that ends in an age of seconds, `(3s ago)` or the last column of a table: what is around the age.
fn aged(line: &str) -> Option<(&str, &str)> {
    let (line, after) = match line.strip_suffix(" ago)") {
        Some(line) => (line, " ago)"),
        None => (line, ""),
    };
    let digits = line.strip_suffix('s')?;
    let before = digits.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_age = before.len() < digits.len() && (before.ends_with(' ') || before.ends_with('('));
    is_age.then_some((if after.is_empty() { before.trim_end() } else { before }, after))
}
