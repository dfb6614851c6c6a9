//! A database of one measurement: its URL, and the questions the scenarios ask of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

/// Connects and drives the connection in the background.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.context("cannot connect to the benchmark's PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}

/// The URL with another database name.
pub fn url_of(base: &str, database: &str) -> String {
    let (rest, query) = match base.split_once('?') {
        Some((rest, query)) => (rest, format!("?{query}")),
        None => (base, String::new()),
    };
    let authority = rest.find("://").map_or(0, |at| at + 3);
    let end = rest[authority..].find('/').map_or(rest.len(), |at| authority + at);
    format!("{}/{database}{query}", &rest[..end])
}

/// The URL with one more parameter, already percent-encoded.
pub fn url_with(url: &str, parameter: &str) -> String {
    let separator = if url.contains('?') { '&' } else { '?' };
    format!("{url}{separator}{parameter}")
}

/// A fresh database, and a connection from outside it.
#[derive(Debug)]
pub struct Database {
    pub name: String,
    pub url: String,
    pub control: Client,
}

impl Database {
    /// The end of the server's WAL, in bytes.
    pub async fn wal_position(&self) -> Result<i64> {
        self.ask("select (pg_current_wal_insert_lsn() - '0/0')::int8", &[]).await
    }

    /// One number, asked from outside the database.
    pub async fn ask(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<i64> {
        Ok(self.control.query_one(sql, parameters).await?.try_get(0)?)
    }

    /// One number, asked inside the database over a connection of its own.
    pub async fn count(&self, sql: &str) -> Result<i64> {
        Ok(connect(&self.url).await?.query_one(sql, &[]).await?.try_get(0)?)
    }

    /// Waits until a number is what it should be, for ten minutes at most.
    pub async fn until(&self, sql: &str, wanted: i64) -> Result<()> {
        let began = Instant::now();
        let connection = connect(&self.url).await?;
        loop {
            let number: i64 = connection.query_one(sql, &[]).await?.try_get(0)?;
            if number >= wanted {
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(600), "{sql} is {number} still, not {wanted}");
            // Counting costs the server as much as there is to count.
            tokio::time::sleep(Duration::from_millis(if wanted > 50_000 { 1000 } else { 50 })).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{url_of, url_with};

    #[test]
    fn the_database_is_replaced_and_the_rest_kept() {
        assert_eq!(url_of("postgres://u@h:1/a?x=y", "b"), "postgres://u@h:1/b?x=y");
        assert_eq!(url_of("postgres://u@h:1", "b"), "postgres://u@h:1/b");
        assert_eq!(url_of("postgres:///a?host=/tmp", "b"), "postgres:///b?host=/tmp");
    }

    #[test]
    fn a_parameter_is_appended() {
        assert_eq!(url_with("postgres://h/a", "x=y"), "postgres://h/a?x=y");
        assert_eq!(url_with("postgres://h/a?b=c", "x=y"), "postgres://h/a?b=c&x=y");
    }
}
