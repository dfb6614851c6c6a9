//! `ambo migrate`: brings the schema to the version of this program, or prints the SQL that would.

use ambo::Client;
use anyhow::Result;
use serde::Serialize;

use super::doctor::figures::Figures;
use super::doctor::held::missing_roles;
use crate::args::Global;
use crate::database::Database;
use crate::output::Output;

/// What a migration did.
#[derive(Debug, Serialize)]
pub(crate) struct Migrated<'a> {
    schema: &'a str,
    /// The version before; 0 if there was none.
    from: i32,
    /// The version now.
    to: i32,
}

impl Migrated<'_> {
    /// What it did, in a sentence.
    pub(crate) fn sentence(&self) -> String {
        let Migrated { schema, from, to } = self;
        match from {
            0 => format!("schema {schema}: installed, version {to}"),
            _ if *to > Client::SCHEMA_VERSION => {
                format!(
                    "schema {schema}: version {to}, newer than this program and fit for it; left as it is"
                )
            }
            from if from == to => format!("schema {schema}: version {to} already, functions refreshed"),
            _ => format!("schema {schema}: upgraded from version {from} to {to}"),
        }
    }
}

/// Installs or upgrades.
pub(crate) async fn apply<'a>(client: &Client, database: &'a Database) -> Result<Migrated<'a>> {
    let (from, to) = client.migrate().await.map_err(|error| database.explain(&error))?;
    Ok(Migrated { schema: database.schema(), from, to })
}

/// `ambo migrate`
pub(crate) async fn migrate(database: &Database, output: Output) -> Result<()> {
    let client = database.connect_unchecked().await?;
    let migrated = apply(&client, database).await?;
    output.say(&migrated.sentence());
    // Whoever may migrate may look; if not, it is the doctor's to say so.
    if let Ok(signs) = client.vital_signs().await
        && let Some((message, advice)) = missing_roles(&Figures::new(&signs))
    {
        output.say(&format!("roles {message}\n{advice}"));
    }
    if output.is_json {
        output.json(&migrated)?;
    }
    Ok(())
}

/// `ambo migrate --print`
pub(crate) fn print(global: &Global, output: Output) -> Result<()> {
    let script = Client::migration_script(&global.schema)?;
    Ok(output.line(script.trim_end())?)
}
