//! What an engine says to the server, counted in the server's log.
//!
//! The engine's connections have `log_statement = all` in their startup options and nobody else has: each line
//! is a message that the engine sent, and the virtual transaction id in front tells transactions apart exactly.
//! The counters of `pg_stat_database` are no use for short times: a backend may hand them in 10 s late.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::database::url_with;
use crate::server::LOG_LINE_PREFIX;

/// The URL for connections whose statements are logged.
pub fn logged(url: &str) -> String {
    url_with(url, "options=-c%20log_statement%3Dall")
}

/// The server's log file, read through SQL.
#[derive(Debug)]
pub struct StatementLog {
    path: String,
}

/// What a worker said to the server.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    /// Top-level statements: simple queries and executions.
    pub statements: i64,
    /// Transactions, those rolled back left out.
    pub commits: i64,
}

impl StatementLog {
    /// The log of the server that is asked.
    pub async fn open(control: &Client) -> Result<StatementLog> {
        let prefix: String = control.query_one("show log_line_prefix", &[]).await?.try_get(0)?;
        ensure!(prefix == LOG_LINE_PREFIX, "log_line_prefix must be {LOG_LINE_PREFIX:?}");
        let path: Option<String> = control.query_one("select pg_current_logfile()", &[]).await?.try_get(0)?;
        Ok(StatementLog { path: path.context("logging_collector is off")? })
    }

    /// Writes a mark into the log and gives its position. What was logged before stands before it.
    pub async fn mark(&self, control: &Client) -> Result<i64> {
        let size = "select size from pg_stat_file($1)";
        let from: i64 = control.query_one(size, &[&self.path]).await?.try_get(0)?;
        let mark = format!("mark {}", Uuid::now_v7());
        control.batch_execute(&format!("do $$ begin raise log '{mark}'; end $$")).await?;
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let to: i64 = control.query_one(size, &[&self.path]).await?.try_get(0)?;
            let text = self.text(control, from, to).await?;
            if let Some(at) = text.windows(mark.len()).position(|part| part == mark.as_bytes()) {
                return Ok(from + i64::try_from(at)?);
            }
        }
        bail!("the log does not move")
    }

    /// Counts between two marks.
    pub async fn read(&self, control: &Client, from: i64, to: i64) -> Result<Spoken> {
        Ok(count(&String::from_utf8_lossy(&self.text(control, from, to).await?)))
    }

    async fn text(&self, control: &Client, from: i64, to: i64) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = from;
        while at < to {
            let length = (to - at).min(64 << 20);
            let sql = "select pg_read_binary_file($1, $2, $3)";
            let part: Vec<u8> = control.query_one(sql, &[&self.path, &at, &length]).await?.try_get(0)?;
            ensure!(!part.is_empty(), "the log shrank");
            at += i64::try_from(part.len())?;
            text.extend(part);
        }
        Ok(text)
    }
}

/// Counts statements and commits in log lines of the form `PID_VXID_LOG:  statement: ...`.
fn count(text: &str) -> Spoken {
    let mut spoken = Spoken::default();
    let mut committed: HashMap<(&str, &str), bool> = HashMap::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, '_');
        let (Some(pid), Some(transaction), Some(rest)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Some(said) = rest.strip_prefix("LOG:  ") else { continue };
        let Some((kind, sql)) = said.split_once(": ") else { continue };
        if kind != "statement" && !kind.starts_with("execute ") {
            continue;
        }
        spoken.statements += 1;
        let rolled_back = sql.trim_start().to_ascii_lowercase().starts_with("rollback");
        committed.insert((pid, transaction), !rolled_back);
    }
    spoken.commits = committed.values().filter(|committed| **committed).count() as i64;
    spoken
}

#[cfg(test)]
mod tests {
    use super::{Spoken, count};

    #[test]
    fn statements_of_one_transaction_are_one_commit() {
        let log = "7_3/1_LOG:  statement: BEGIN\n\
                   7_3/1_LOG:  execute s1: select 1\n\
                   7_3/1_DETAIL:  parameters: $1 = '1'\n\
                   7_3/1_LOG:  statement: COMMIT\n\
                   7_3/2_LOG:  execute <unnamed>: select\n\
                   \t2\n\
                   8_4/1_LOG:  statement: BEGIN\n\
                   8_4/1_LOG:  statement: ROLLBACK\n";
        assert_eq!(count(log), Spoken { statements: 6, commits: 2 });
    }
}
