//! What is printed: data to stdout, talk to stderr; colour only where a terminal shows it and NO_COLOR is not set.

mod table;
mod text;

use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

pub(crate) use table::{Cell, Column, Table};
pub(crate) use text::{age, clean, cut, length, moment, one_line, wrap};

/// Faint: what is there to look up, not to read.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// Went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Deserves a look.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// Went wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// The names of columns and fields.
pub(crate) const HEAD: Style = Style::new().bold();

/// The width of what is not shown on a terminal.
const WIDTH: usize = 80;

/// How this call prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// Data as JSON.
    pub(crate) is_json: bool,
    /// How many columns a line may have.
    pub(crate) width: usize,
    /// A terminal shows it.
    pub(crate) is_terminal: bool,
}

impl Output {
    /// For the terminal, if stdout is one: as wide as that, but no narrower than its longest id needs.
    pub(crate) fn new(is_json: bool) -> Self {
        let terminal = terminal_size::terminal_size_of(io::stdout());
        let width = terminal.map_or(WIDTH, |(width, _)| usize::from(width.0).max(60));
        Output { is_json, width, is_terminal: terminal.is_some() }
    }

    /// A line of data.
    pub(crate) fn line(self, line: &str) -> io::Result<()> {
        writeln!(anstream::stdout().lock(), "{line}")
    }

    /// One JSON object on a line of its own.
    pub(crate) fn json(self, value: &impl Serialize) -> io::Result<()> {
        // Payloads are printed as they were given, and those may be spread over lines; between the tokens of
        // JSON, where alone it may have them, a line break is a space.
        let line = serde_json::to_string(value)?.replace(['\n', '\r'], " ");
        self.line(&line)
    }

    /// A table; one with a message is whole for whoever reads on.
    pub(crate) fn table(self, table: &Table) -> io::Result<()> {
        let mut stdout = anstream::stdout().lock();
        let width = if table.is_message() && !self.is_terminal { usize::MAX } else { self.width };
        for line in table.lines(width) {
            writeln!(stdout, "{line}")?;
        }
        Ok(())
    }

    /// A message in lines that leave so many columns free on a terminal; whole for whoever reads on.
    pub(crate) fn message(self, text: &str, indent: usize) -> Vec<String> {
        if self.is_terminal { wrap(text, self.width.saturating_sub(indent)) } else { vec![text.to_owned()] }
    }

    /// A word to the person at the terminal. Nothing if there is nobody to hear it.
    pub(crate) fn say(self, line: &str) {
        let _ = writeln!(anstream::stderr().lock(), "{line}");
    }
}

/// The style in which the state of a run is shown.
pub(crate) fn state_style(state: &str) -> Style {
    match state {
        "succeeded" => GOOD,
        "failed" | "dead" => BAD,
        "cancelled" => WARN,
        _ => Style::new(),
    }
}

/// `text` in a style; plain text where the style says nothing.
pub(crate) fn styled(style: Style, text: &str) -> String {
    if style.is_plain() { text.to_owned() } else { format!("{style}{text}{style:#}") }
}
