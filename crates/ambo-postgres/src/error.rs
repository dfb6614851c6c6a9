//! The one error of this crate: a sentence that says what failed and, where it is known, what to do about it.

use std::{fmt, io};

/// Why a private PostgreSQL could not be found, made, started or reached.
///
/// The message is meant for a person and says what to type where that is known. Programs should need only
/// [`Error::is_missing`] and [`Error::sqlstate`].
#[derive(Debug)]
pub struct Error {
    message: String,
    missing: bool,
    sqlstate: Option<String>,
    source: Option<io::Error>,
}

impl Error {
    /// True if no usable PostgreSQL programs are on this machine, so that installing some would help.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.missing
    }

    /// The five-character SQLSTATE, if it was the server that refused.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), missing: false, sqlstate: None, source: None }
    }

    pub(crate) fn missing(message: impl Into<String>) -> Self {
        Self { missing: true, ..Self::new(message) }
    }

    pub(crate) fn server(sqlstate: String, message: impl Into<String>) -> Self {
        Self { sqlstate: Some(sqlstate), ..Self::new(message) }
    }

    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self { source: Some(source), ..Self::new(what) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(code) = &self.sqlstate {
            write!(f, " (SQLSTATE {code})")?;
        }
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
