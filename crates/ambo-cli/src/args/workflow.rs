//! What can be typed after `ambo workflow`.

use clap::{Args, Subcommand};

/// `ambo workflow ...`
#[derive(Debug, Subcommand)]
pub(crate) enum Workflow {
    /// List the workflows that workers have registered
    #[command(visible_alias = "ls")]
    List,
    /// Show what is known of one: its types, its workers, and its graph or the calls of its newest run
    Show(WorkflowShow),
}

/// `ambo workflow show`
#[derive(Debug, Args)]
pub(crate) struct WorkflowShow {
    /// The name of the workflow
    pub(crate) name: String,
    /// Print only the graph, as a Mermaid flowchart
    #[arg(long, conflicts_with = "json")]
    pub(crate) mermaid: bool,
}
