//! Just enough of the PostgreSQL protocol to see that a server is ready and to send it a plain statement.
//!
//! It speaks over the cluster's own socket, to a server that trusts it, so there is no authentication and no TLS.
//! It exists so that this crate depends neither on `psql`, which some distributions of the server lack, nor on a
//! driver.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Error;

/// One row as text; `None` is null.
pub(crate) type Row = Vec<Option<String>>;

/// The longest message that is read, in bytes: a bound against talking to something that is no PostgreSQL.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long one answer may take. Creating a database on a busy disk takes seconds.
const ANSWER: Duration = Duration::from_secs(120);

/// A connection that is ready for a statement.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects as `postgres` through the socket that the server on `port` has in `socket_dir`.
    pub(crate) fn open(socket_dir: &Path, port: u16, database: &str) -> Result<Self, Error> {
        let stream =
            UnixStream::connect(socket_dir.join(format!(".s.PGSQL.{port}"))).map_err(unreachable_server)?;
        stream.set_read_timeout(Some(ANSWER)).map_err(unreachable_server)?;
        let mut connection = Self { stream: BufReader::new(stream) };
        let mut body = 196_608_i32.to_be_bytes().to_vec();
        for text in ["user", "postgres", "database", database, "application_name", "ambo-postgres", ""] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        connection.send(None, &body)?;
        connection.answer()?;
        Ok(connection)
    }

    /// Runs `sql`, one or more statements, and returns the rows of all of them.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.send(Some(b'Q'), &body)?;
        self.answer()
    }

    fn send(&mut self, tag: Option<u8>, body: &[u8]) -> Result<(), Error> {
        let length = i32::try_from(body.len() + 4).map_err(|_| Error::new("the statement is too long"))?;
        let mut message: Vec<u8> = tag.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message).map_err(unreachable_server)
    }

    /// Reads messages until the server is ready for the next statement.
    fn answer(&mut self) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        let mut refusal = None;
        loop {
            let (tag, body) = match self.message() {
                Ok(message) => message,
                // After a fatal error the server says why, then hangs up.
                Err(error) => return Err(refusal.unwrap_or_else(|| unreachable_server(error))),
            };
            match tag {
                b'Z' => return refusal.map_or(Ok(rows), Err),
                b'D' => rows
                    .push(row(&body).ok_or_else(|| Error::new("the server sent a row that is cut short"))?),
                b'E' => refusal = Some(refused(&body)),
                b'R' if body.starts_with(&[0; 4]) => {}
                b'R' => return Err(Error::new("the server asks for a password; is it a private one?")),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "this does not talk like PostgreSQL"));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

/// `name` as an SQL identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn unreachable_server(error: io::Error) -> Error {
    Error::io("cannot talk to the private PostgreSQL", error)
}

/// The fields of an error message: a letter, a text, a zero byte, again and again.
fn refused(body: &[u8]) -> Error {
    let field = |letter: u8| {
        body.split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&letter))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    };
    Error::server(field(b'C'), format!("PostgreSQL refused: {}", field(b'M')))
}

fn row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Ok(length) => {
                let (value, after) = rest.split_at_checked(length)?;
                row.push(Some(String::from_utf8_lossy(value).into_owned()));
                rest = after;
            }
            Err(_) => row.push(None), // a length of -1
        }
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::{quoted, refused, row};

    #[test]
    fn a_row_keeps_null_apart_from_the_empty_text() {
        let body = [0, 3, 0, 0, 0, 1, b'7', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(row(&body), Some(vec![Some("7".into()), None, Some(String::new())]));
        assert_eq!(row(&body[..7]), None);
    }

    #[test]
    fn a_refusal_carries_its_sqlstate() {
        let error = refused(b"SFATAL\0C57P03\0Mthe database system is starting up\0\0");
        assert_eq!(error.sqlstate(), Some("57P03"));
        assert_eq!(
            error.to_string(),
            "PostgreSQL refused: the database system is starting up (SQLSTATE 57P03)"
        );
    }

    #[test]
    fn a_quote_in_a_name_is_doubled() {
        assert_eq!(quoted(r#"a"b"#), r#""a""b""#);
    }
}
