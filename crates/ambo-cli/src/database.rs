//! Which database a command works on, and how it is named without its password.

use ambo::{Client, Code};
use tokio_postgres::Config;
use tokio_postgres::config::Host;

use crate::args::Global;
use crate::dev_home::DevHome;
use crate::failure::Failure;

/// What the CLI sends itself goes into the folder above so many bytes.
const OVER: usize = 64 * 1024;

/// A database and the schema in it.
#[derive(Debug)]
pub(crate) struct Database {
    url: String,
    schema: String,
}

impl Database {
    /// The database that was named, else the development server that runs here.
    pub(crate) fn find(global: &Global) -> Result<Self, Failure> {
        let url = match Self::named(global) {
            Some(database) => return Ok(database),
            None => DevHome::new(&global.dir).running()?,
        };
        let url = url.ok_or_else(|| {
            Failure::usage(
                "no database: neither --database-url nor DATABASE_URL is set, and no `ambo dev` runs here",
                "set one of them, or start a private PostgreSQL with: ambo dev",
            )
        })?;
        Ok(Self::at(url, global))
    }

    /// The database of the option or the environment; an empty one is none.
    pub(crate) fn named(global: &Global) -> Option<Self> {
        let url = global.database_url.as_ref().filter(|url| !url.trim().is_empty())?;
        Some(Self::at(url.clone(), global))
    }

    /// The database at a URL.
    pub(crate) fn at(url: String, global: &Global) -> Self {
        Database { url, schema: global.schema.clone() }
    }

    /// The URL as it was given, which may hold a password.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The name of the schema.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// What to type to install or upgrade it.
    pub(crate) fn migrate_command(&self) -> String {
        match self.schema.as_str() {
            "ambo" => "ambo migrate".to_owned(),
            schema => format!("ambo migrate --schema {schema}"),
        }
    }

    /// A client of an installation that fits.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let client =
            Client::connect_in(&self.url, &self.schema).await.map_err(|error| self.explain(&error))?;
        Ok(client.with_vault(vault().map_err(|error| self.explain(&error))?))
    }

    /// A client, whatever the database holds.
    pub(crate) async fn connect_unchecked(&self) -> Result<Client, Failure> {
        Client::connect_unchecked(&self.url, &self.schema).await.map_err(|error| self.explain(&error))
    }

    /// What an error means that came up while connecting.
    pub(crate) fn explain(&self, error: &ambo::Error) -> Failure {
        let mut failure = Failure::explain(error, Some(&self.place()));
        if error.code() == Code::SchemaMismatch && self.schema != "ambo" {
            let (schema, page) = (&self.schema, error.code());
            failure.advice =
                Some(format!("the schema asked for is {schema}: --schema {schema} (docs/errors/{page}.md)"));
        }
        failure
    }

    /// The database as it may be shown: without its password.
    pub(crate) fn place(&self) -> String {
        let Ok(config) = self.url.parse::<Config>() else { return "an unreadable URL".to_owned() };
        let ports = config.get_ports();
        let hosts: Vec<String> = (config.get_hosts().iter().enumerate())
            .map(|(at, host)| {
                let port = ports.get(at).or_else(|| ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
                    Host::Tcp(name) => format!("{name}:{port}"),
                    #[cfg(unix)]
                    Host::Unix(directory) => format!("{}:{port}", directory.display()),
                }
            })
            .collect();
        let user = config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
        let name = config.get_dbname().or_else(|| config.get_user()).unwrap_or_default();
        format!("postgres://{user}{}/{name}", hosts.join(","))
    }
}

/// What the environment says of payloads: a ring of keys, and the folder that large ones lie in.
fn vault() -> ambo::Result<ambo::Vault> {
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
    let mut vault = ambo::Vault::new();
    if let Some(keys) = set("AMBO_KEYRING") {
        vault = vault.keyring(ambo::Keyring::parse(&keys)?);
    }
    if let Some(folder) = set("AMBO_OBJECTS") {
        let store =
            object_store::local::LocalFileSystem::new_with_prefix(folder).map_err(ambo::Error::other)?;
        vault = vault.objects(std::sync::Arc::new(store), OVER);
    }
    Ok(vault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, place: &str) {
        let database = Database { url: url.to_owned(), schema: "ambo".to_owned() };
        assert_eq!(database.place(), place);
    }

    #[test]
    fn a_password_is_never_shown() {
        check("postgres://ann:s3cret@db.example/shop", "postgres://ann@db.example:5432/shop");
        check("postgres://ann:s3cret@a:1,b:2/shop?sslmode=require", "postgres://ann@a:1,b:2/shop");
        check("host=db port=6543 user=ann password=s3cret dbname=shop", "postgres://ann@db:6543/shop");
        check("postgres://ann@/shop?host=/run/pg&password=s3cret", "postgres://ann@/run/pg:5432/shop");
        check("postgres://ann:s3cret@[::1", "an unreadable URL");
    }
}
