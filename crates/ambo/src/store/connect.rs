//! Connections of our own: opened with TLS where asked, pinned against role defaults, healed when cut.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Row, Statement};

use super::schema::Schema;
use crate::error::{Code, Error, Result};

/// A parameter with its type: behind a transaction pooler statements are unnamed, and still take one round trip.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// What every connection of ours is opened with.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) config: Config,
    pub(crate) schema: Schema,
    /// Behind a transaction pooler: notifications vanish, session locks and settings leak, so none are used.
    pub(crate) pooled: bool,
}

impl Target {
    pub(crate) fn parse(url: &str, schema: Schema) -> Result<Self> {
        let mut config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
            // The text of the driver's error does not hold the URL, which may hold a password.
            Error::new(
                Code::Configuration,
                "the database URL cannot be read; expected postgres://user@host/database",
            )
            .with_source(error)
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::new(
                Code::Configuration,
                "the database URL names no host; expected postgres://user@host/database",
            ));
        }
        // A peer that vanished must show in seconds, not in hours.
        config
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(15));
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        Ok(Target { config, schema, pooled: false })
    }

    /// Finds out whether a pooler stands in between: it hands no option of a client's to a server that serves others too,
    /// or refuses it. Whether two connections have one backend would tell only while nobody else is there.
    pub(crate) async fn detect_pooler(&mut self) -> Result<()> {
        self.pooled = true;
        let mark = uuid::Uuid::new_v4().simple().to_string();
        let mut probe = self.clone();
        let given = self.config.get_options().unwrap_or_default();
        probe.config.options(format!("{given} -c ambo.probe={mark}").trim());
        match probe.open("ambo probe", None).await {
            Ok(session) => {
                let row = session.query_one("select current_setting('ambo.probe', true)", &[]).await?;
                let found: Option<String> = row.try_get(0).map_err(from_driver)?;
                self.pooled = found.as_deref() != Some(&mark);
            }
            // Options are not supported, say some poolers in one way and some in the other.
            Err(error) if matches!(error.sqlstate(), Some("08P01" | "0A000")) => {
                drop(self.open("ambo probe", None).await?);
            }
            Err(error) => return Err(error),
        }
        if self.pooled {
            tracing::info!("a pooler stands before the database: polling, no notifications");
            self.refuse_defaults().await?;
        }
        Ok(())
    }

    /// Behind a pooler nothing can be pinned: what the role or the database has for defaults holds.
    async fn refuse_defaults(&self) -> Result<()> {
        let row = self.open("ambo probe", None).await?.query_one(UNFIT_DEFAULTS, &[]).await?;
        let unfit: Option<String> = row.try_get(0).map_err(from_driver)?;
        match unfit {
            None => Ok(()),
            Some(unfit) => Err(Error::new(
                Code::Configuration,
                format!(
                    "behind a transaction pooler Ambo cannot set what it rests on, and by default this role has {unfit}; give it what is \
                     safe (`alter role NAME set SETTING = VALUE`), or connect to the server itself"
                ),
            )),
        }
    }

    /// Opens a connection. `role` says in `pg_stat_activity` what it is for; notifications go to `notices`.
    pub(crate) async fn open(
        &self,
        role: &str,
        notices: Option<mpsc::UnboundedSender<Notice>>,
    ) -> Result<Session> {
        let mut config = self.config.clone();
        config.application_name(role);
        let client = tls::connect(&config, notices).await?;
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prepared = (!self.pooled).then(Arc::default);
        let session = Session { client: Arc::new(client), backend: None, number, prepared };
        if self.pooled {
            // A sign of life. What the pooler gives the next statement to may be another.
            session.query_one("select 1", &[]).await?;
            return Ok(session);
        }
        session.batch(SETTINGS).await?;
        let row = session.query_one(BACKEND, &[]).await?;
        let pid = row.try_get(0).map_err(from_driver)?;
        // Not to be seen where the role was set to one that may not see the one that logged in: then nobody can be asked about.
        let since: Option<i64> = row.try_get(1).map_err(from_driver)?;
        Ok(Session { backend: since.map(|since| Backend { pid, since }), ..session })
    }
}

/// What every session of ours pins, whatever the role or database has for defaults.
const SETTINGS: &str = "set statement_timeout = '60s'; set lock_timeout = '2s';
    set idle_in_transaction_session_timeout = '10s'; set default_transaction_isolation = 'read committed';
    set default_transaction_read_only = off; set jit = off;
    set standard_conforming_strings = on; set array_nulls = on; set intervalstyle = 'postgres';
    select set_config('synchronous_commit', 'on', false)
    where current_setting('synchronous_commit') in ('off', 'local');
    select set_config('transaction_timeout', '0', false)
    where current_setting('server_version_num')::integer >= 170000";

/// Defaults under which nothing that is acknowledged is safe, or nothing works.
const UNFIT_DEFAULTS: &str =
    "select string_agg(format('%s = %s', s.name, s.setting), ', ' order by s.name) from pg_settings s
    where s.name = 'synchronous_commit' and s.setting in ('off', 'local')
       or s.name = 'default_transaction_isolation' and s.setting <> 'read committed'
       or s.name = 'default_transaction_read_only' and s.setting = 'on'";

/// Who serves this connection: see [`Backend`].
const BACKEND: &str = "select a.pid, (extract(epoch from a.backend_start) * 1000000)::int8
    from pg_stat_activity a where a.pid = pg_backend_pid()";

/// A process of the server that serves one connection from its beginning to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backend {
    pub(super) pid: i32,
    /// When it began, in microseconds of the database's clock. A process id is given again, after a restart of the server at
    /// once, and then to another's connection; not with the same beginning.
    pub(super) since: i64,
}

/// One open connection.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) client: Arc<Client>,
    /// Asked about when the answer to a commit was lost. `None` behind a pooler: there each transaction may have another one,
    /// and each one serves others as well.
    pub(super) backend: Option<Backend>,
    /// Tells this session from all others of the process: a restarted server may give the same process ids again.
    pub(crate) number: u64,
    /// Statements prepared once, by their text; none behind a transaction pooler, where they would be somebody
    /// else's. A std mutex: never held across an await.
    prepared: Option<Arc<Mutex<HashMap<String, Statement>>>>,
}

impl Session {
    pub(crate) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        let Some(prepared) = &self.prepared else {
            return self.client.query_typed(sql, params).await.map_err(of_ours);
        };
        let known = prepared.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        let statement = match known {
            Some(statement) => statement,
            None => {
                let types: Vec<Type> = params.iter().map(|(_, ty)| ty.clone()).collect();
                let statement = self.client.prepare_typed(sql, &types).await.map_err(from_driver)?;
                let mut prepared = prepared.lock().unwrap_or_else(PoisonError::into_inner);
                prepared.insert(sql.to_owned(), statement.clone());
                statement
            }
        };
        let values: Vec<&(dyn ToSql + Sync)> = params.iter().map(|(value, _)| *value).collect();
        let answer = self.client.query(&statement, &values).await.map_err(of_ours);
        if answer.as_ref().is_err_and(|error| error.sqlstate() == Some("0A000")) {
            // A migration changed what a function returns: the next call prepares anew.
            prepared.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        answer
    }

    pub(crate) async fn query_one(&self, sql: &str, params: &[Param<'_>]) -> Result<Row> {
        let rows = self.query(sql, params).await?;
        rows.into_iter().next().ok_or_else(|| Error::new(Code::Database, "a statement returned no row"))
    }

    /// One call, text in and text out: as on a connection of the user's.
    pub(crate) async fn call(&self, sql: &str, args: &[Option<String>]) -> Result<Vec<Option<String>>> {
        let params: Vec<Param<'_>> = args.iter().map(|arg| (arg as _, Type::TEXT)).collect();
        let row = self.query_one(sql, &params).await?;
        (0..row.len()).map(|column| row.try_get(column).map_err(from_driver)).collect()
    }

    pub(crate) async fn batch(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(from_driver)
    }

    /// Asks the server to end what it does for this session; what that was fails with 57014.
    pub(crate) async fn cancel(&self, target: &Target) -> Result<()> {
        tls::cancel(&target.config, &self.client.cancel_token()).await
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// What arrives on a connection without having been asked for.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// A notification: channel and payload.
    Notified(String, String),
    /// The connection is gone.
    Lost,
}

/// A connection that is opened again when it was cut, waiting longer each time.
#[derive(Debug)]
pub(crate) struct Link {
    target: Target,
    role: String,
    notices: Option<mpsc::UnboundedSender<Notice>>,
    session: Option<Session>,
    /// The backends of the connections before this one, as far as they are known; they may still be at work.
    pub(super) predecessors: Vec<Option<Backend>>,
    failures: u32,
}

impl Link {
    pub(crate) fn new(target: Target, role: impl Into<String>) -> Self {
        Link {
            target,
            role: role.into(),
            notices: None,
            session: None,
            predecessors: Vec::new(),
            failures: 0,
        }
    }

    pub(crate) fn with_notices(mut self, notices: mpsc::UnboundedSender<Notice>) -> Self {
        self.notices = Some(notices);
        self
    }

    pub(crate) fn schema(&self) -> &Schema {
        &self.target.schema
    }

    /// The open session, or a new one; an error if the database cannot be reached now.
    pub(crate) async fn session(&mut self) -> Result<&Session> {
        if self.session.as_ref().is_none_or(Session::is_closed) {
            if let Some(old) = self.session.take() {
                self.predecessors.push(old.backend);
            }
            let opened = tokio::time::timeout(
                Duration::from_secs(10),
                self.target.open(&self.role, self.notices.clone()),
            )
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(Code::Unavailable, "the database did not answer within 10 s"))
            })?;
            self.session = Some(opened);
        }
        self.session.as_ref().ok_or_else(|| Error::new(Code::Unavailable, "no session"))
    }

    /// Notes a failure, drops the session if it may be unusable, and pauses: 10 ms doubled up to 1 s, jittered.
    pub(crate) async fn recover(&mut self, error: &Error) {
        // At first, and about once a minute from then on.
        if self.failures.is_multiple_of(60) {
            if error.is_unavailable() {
                tracing::warn!(role = self.role, %error, "the database is out of reach; trying again");
            } else {
                tracing::warn!(role = self.role, %error, "the database refused it; trying again");
            }
        }
        self.failures = self.failures.saturating_add(1);
        if let Some(old) = self.session.take() {
            self.predecessors.push(old.backend);
        }
        tokio::time::sleep(pause(self.failures)).await;
    }

    /// Notes a success after failures.
    pub(crate) fn recovered(&mut self) {
        if self.failures > 0 {
            tracing::info!(role = self.role, failures = self.failures, "the database answers again");
            self.failures = 0;
        }
    }

    /// Whether there were connections before this one whose backends are not known to be gone.
    pub(crate) fn has_predecessors(&self) -> bool {
        !self.predecessors.is_empty()
    }

    /// Waits until the backends of the connections before this one are gone: until then, what they were asked to do
    /// may still commit. They are ended if they do not go by themselves, which harms nobody else: a backend served this link
    /// alone, and is known by its beginning.
    ///
    /// Behind a pooler nothing is waited for, and above all nothing is ended. Nobody can tell which of its backends has what was
    /// asked for, and each of them may be at work for others, also under the same name. So an earlier flush or claim may commit
    /// at any time after this. What is right in spite of that: a fact that the same flush recorded before is refused (23505), once
    /// the earlier transaction has ended, and is then read back; the end of a claim is fenced, since the claim is gone by then;
    /// and a claim that nobody heard of is found by comparing, for as long as the worker lives.
    pub(crate) async fn await_predecessors(&mut self) -> Result<()> {
        let session = self.session().await?.clone();
        let (pids, since): (Vec<i32>, Vec<i64>) =
            self.predecessors.iter().flatten().map(|backend| (backend.pid, backend.since)).unzip();
        while !pids.is_empty() {
            let row = session
                .query_one(
                    "select count(*), count(*) filter (where pg_terminate_backend(a.pid))
                     from unnest($1::int4[], $2::int8[]) p (pid, since)
                     join pg_stat_activity a on a.pid = p.pid
                         and (extract(epoch from a.backend_start) * 1000000)::int8 = p.since",
                    &[(&pids, Type::INT4_ARRAY), (&since, Type::INT8_ARRAY)],
                )
                .await?;
            if row.try_get::<_, i64>(0).map_err(from_driver)? == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.predecessors.clear();
        Ok(())
    }
}

fn pause(failures: u32) -> Duration {
    let full = 10u64 << failures.min(7).saturating_sub(1);
    Duration::from_millis(full.min(1000)).mul_f64(0.5 + 0.5 * crate::engine::clock::jitter())
}

/// Classifies what the driver reports. The message of the server is kept, its detail (which may quote rows) not.
pub(crate) fn from_driver(error: tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        let closed = error.is_closed() || error.code().is_none();
        let code = if closed { Code::Unavailable } else { Code::Database };
        let text = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        return Error::new(code, text).with_source(error);
    };
    let sqlstate = db.code().code().to_owned();
    let code = classify(&sqlstate, db.message(), db.table().filter(|_| db.constraint().is_none()));
    let text = match (code, db.hint()) {
        (Code::SchemaMismatch, _) => {
            "the database holds no schema of Ambo that fits; run: ambo migrate".to_owned()
        }
        _ if sqlstate == "55P03" => {
            format!(
                "another transaction, still open, holds what this needs; try again when it has ended ({})",
                db.message()
            )
        }
        (_, Some(hint)) => format!("{} ({hint})", db.message()),
        _ => db.message().to_owned(),
    };
    // Not as the source: its detail may hold the row that was refused, payload and all.
    Error::new(code, text).with_sqlstate(&sqlstate)
}

/// The same of a statement of ours, in which only what the caller gave can be no text to the server: mostly a NUL. All names,
/// reasons and filters pass here.
fn of_ours(error: tokio_postgres::Error) -> Error {
    let detail = error.as_db_error().and_then(|error| error.detail()).unwrap_or_default().to_owned();
    let error = from_driver(error);
    match error.sqlstate() {
        Some(state @ ("22021" | "22P05")) => {
            let text = no_text(error.text(), &detail);
            Error::new(Code::InvalidName, text).with_sqlstate(state)
        }
        _ => error,
    }
}

/// Why something is no text to the server. Its words are in the language of the server, the bytes and the escape that it quotes
/// are not.
fn no_text(message: &str, detail: &str) -> String {
    if message.ends_with(": 0x00") || detail.contains("\\u0000") {
        "a text holds a NUL character, which PostgreSQL cannot hold; leave it out".to_owned()
    } else {
        format!("a text holds a character that the database cannot hold: {message}")
    }
}

/// The code for a SQLSTATE of the server. Its words may be of another language. `table`: that of which the error is, where it is of none
/// of its constraints.
pub(crate) fn classify(sqlstate: &str, message: &str, table: Option<&str>) -> Code {
    if let Some(code) = Code::parse(sqlstate) {
        return code;
    }
    match sqlstate {
        // Connection failures, shutdown, recovery, a server that is read-only after a failover.
        "57P01" | "57P02" | "57P03" | "57P05" | "25006" | "53300" => Code::Unavailable,
        s if s.starts_with("08") => Code::Unavailable,
        "3F000" | "42883" | "42P01" | "42703" if message.contains("ambo") => Code::SchemaMismatch,
        // A row that no partition takes breaks no constraint that has a name.
        "23514" if table.is_some() => Code::NoPartition,
        _ => Code::Database,
    }
}

mod tls {
    //! Opens the socket: plain, or with rustls and the system's roots when `sslmode` asks for it.

    use futures_util::StreamExt as _;
    use futures_util::stream::poll_fn;
    use tokio::sync::mpsc;
    use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
    use tokio_postgres::{CancelToken, Client, Config, Socket};

    use super::{AsyncMessage, Notice, from_driver};
    use crate::error::Result;

    pub(super) async fn connect(
        config: &Config,
        notices: Option<mpsc::UnboundedSender<Notice>>,
    ) -> Result<Client> {
        #[cfg(feature = "tls")]
        if config.get_ssl_mode() != tokio_postgres::config::SslMode::Disable {
            return with(config, rustls_connector()?, notices).await;
        }
        with(config, tokio_postgres::NoTls, notices).await
    }

    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "there is nothing to choose"))]
    pub(super) async fn cancel(config: &Config, token: &CancelToken) -> Result<()> {
        #[cfg(feature = "tls")]
        if config.get_ssl_mode() != tokio_postgres::config::SslMode::Disable {
            return token.cancel_query(rustls_connector()?).await.map_err(from_driver);
        }
        token.cancel_query(tokio_postgres::NoTls).await.map_err(from_driver)
    }

    #[cfg(feature = "tls")]
    fn rustls_connector() -> Result<tokio_postgres_rustls::MakeRustlsConnect> {
        use std::sync::OnceLock;
        static ROOTS: OnceLock<std::sync::Arc<rustls::ClientConfig>> = OnceLock::new();
        let config = ROOTS.get_or_init(|| {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in rustls_native_certs::load_native_certs().certs {
                // A certificate that cannot be read is not trusted; the others still are.
                let _ = roots.add(certificate);
            }
            let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
            let builder = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map(|builder| builder.with_root_certificates(roots).with_no_client_auth());
            std::sync::Arc::new(
                builder.unwrap_or_else(|_| unreachable!("ring supports the default protocol versions")),
            )
        });
        Ok(tokio_postgres_rustls::MakeRustlsConnect::new((**config).clone()))
    }

    async fn with<T>(
        config: &Config,
        tls: T,
        notices: Option<mpsc::UnboundedSender<Notice>>,
    ) -> Result<Client>
    where
        T: MakeTlsConnect<Socket> + 'static,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
        T::TlsConnect: Send,
    {
        let (client, mut connection) = config.connect(tls).await.map_err(from_driver)?;
        tokio::spawn(async move {
            let mut messages = poll_fn(move |cx| connection.poll_message(cx));
            while let Some(message) = messages.next().await {
                match message {
                    Ok(AsyncMessage::Notification(n)) => {
                        if let Some(notices) = &notices {
                            let _ = notices
                                .send(Notice::Notified(n.channel().to_owned(), n.payload().to_owned()));
                        }
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "a connection ended");
                        break;
                    }
                }
            }
            if let Some(notices) = notices {
                let _ = notices.send(Notice::Lost);
            }
        });
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_partition_is_told_in_every_language() {
        let german = "keine Partition von Relation »run« für die Zeile gefunden";
        assert_eq!(classify("23514", german, Some("run")), Code::NoPartition);
        assert_eq!(
            classify("23514", "no partition of relation", None),
            Code::Database,
            "a check that has a name"
        );
    }

    #[test]
    fn what_is_no_text_is_said_to_hold_a_nul_only_where_it_does() {
        for (message, detail) in [
            ("invalid byte sequence for encoding \"UTF8\": 0x00", ""),
            ("unsupported Unicode escape sequence", "\\u0000 cannot be converted to text."),
        ] {
            assert!(no_text(message, detail).contains("NUL"), "{message}");
        }
        for message in [
            "invalid byte sequence for encoding \"UTF8\": 0xc3 0x28",
            "character with byte sequence 0xe2 0x82 0xac in encoding \"UTF8\" has no equivalent in encoding \"LATIN1\"",
        ] {
            let text = no_text(message, "");
            assert!(!text.contains("NUL") && text.contains(message), "{text}");
        }
    }
}
