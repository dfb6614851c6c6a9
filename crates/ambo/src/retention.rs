//! How long what has ended is kept.

use std::time::Duration;

use serde::Serialize;

use crate::admin::RetentionSummary;
use crate::client::Client;
use crate::error::Result;
use crate::queue::Span;
use crate::store::retention;

/// How long what has ended is kept. What is not named stays as it is.
///
/// # Example: the dead for a year, other history for 30 days
/// ```
/// # use std::time::Duration;
/// # use ambo::{Client, Result, Retention};
/// # async fn example(client: &Client) -> Result<()> {
/// const DAY: Duration = Duration::from_secs(86_400);
/// client.set_retention(&Retention::default().history(30 * DAY).dead(365 * DAY)).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Retention {
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead: Option<Option<Span>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Span>,
}

impl Retention {
    /// What has ended leaves after this, a partition (a day) at a time: from an hour to 100 years. Default: 30 days.
    pub fn history(mut self, span: Duration) -> Self {
        self.history = Some(Span(span));
        self
    }

    /// The dead leave after this, sooner or later than other history: above zero, up to 100 years. `None`: with it, which is the
    /// default.
    pub fn dead(mut self, span: impl Into<Option<Duration>>) -> Self {
        self.dead = Some(span.into().map(Span));
        self
    }

    /// An idempotency key names its run for this long at least, if its enqueue says nothing else: above zero, up to 100 years.
    /// Default: 30 days.
    pub fn keys(mut self, span: Duration) -> Self {
        self.keys = Some(Span(span));
        self
    }
}

impl Client {
    /// How long what has ended is kept.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn retention(&self) -> Result<RetentionSummary> {
        retention::retention(&self.session().await?, self.schema()).await
    }

    /// Sets how long what has ended is kept, what has ended before too.
    ///
    /// # Errors
    /// `AMBO005` for a span out of its range, `AMBO040` if the database is away.
    pub async fn set_retention(&self, retention: &Retention) -> Result<()> {
        retention::set_retention(&self.session().await?, self.schema(), retention).await
    }
}
