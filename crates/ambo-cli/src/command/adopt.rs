//! `ambo adopt`: makes a restored or cloned database an installation of its own.

use anyhow::Result;
use serde_json::json;

use crate::args::Adopt;
use crate::database::Database;
use crate::failure::Failure;
use crate::output::Output;

/// `ambo adopt`
pub(crate) async fn adopt(wanted: &Adopt, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    let figures = client.vital_signs().await?;
    let is_ours = figures.iter().any(|figure| figure.name == "adopted" && figure.value == "true");
    let place = database.place();
    if is_ours {
        output.say(&format!("{place} is neither restored nor cloned: there is nothing to adopt"));
    } else if wanted.yes {
        client.adopt().await?;
        output.say(&format!("adopted {place}: workers may start"));
    } else {
        return Err(Failure::usage(
            format!("{place} was restored or cloned; if its origin still runs, its runs would run twice"),
            "if the origin runs no more, type: ambo adopt --yes",
        )
        .into());
    }
    if output.is_json {
        output.json(&json!({ "adopted": !is_ours }))?;
    }
    Ok(())
}
