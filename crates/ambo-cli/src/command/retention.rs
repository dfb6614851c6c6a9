//! `ambo retention`: how long what has ended is kept.

use anyhow::Result;

use crate::args::Keep;
use crate::database::Database;
use crate::output::Output;

/// `ambo retention`
pub(crate) async fn retention(wanted: &Keep, database: &Database, output: Output) -> Result<()> {
    let client = database.connect().await?;
    if let Some(retention) = wanted.retention() {
        client.set_retention(&retention).await?;
    }
    let kept = client.retention().await?;
    if output.is_json {
        return Ok(output.json(&kept)?);
    }
    let dead = kept.dead.as_deref().unwrap_or("as long as other history");
    for (what, span) in [("history", &*kept.history), ("dead", dead), ("keys", &kept.keys)] {
        output.line(&format!("{what:<8} {span}"))?;
    }
    Ok(())
}
