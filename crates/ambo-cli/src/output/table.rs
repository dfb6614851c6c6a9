//! Tables of plain columns: as wide as they need to be, the widest names cut until a line fits. A message has its room first: other columns
//! give way to it.

use anstyle::Style;
use unicode_width::UnicodeWidthStr as _;

use super::{HEAD, clean, cut, styled};

/// The narrowest that a column is cut to, and a message.
const NARROWEST: usize = 8;
const NARROWEST_MESSAGE: usize = 20;
/// What a message has before columns that give way are shown.
const ROOM_OF_A_MESSAGE: usize = 36;

/// A column: its name, and what may be done to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    is_number: bool,
    /// The narrowest that it is cut to.
    narrowest: Option<usize>,
    is_message: bool,
    gives_way: bool,
    if_any: bool,
}

impl Column {
    /// Text that is always shown whole.
    pub(crate) const fn whole(name: &'static str) -> Self {
        Column { name, is_number: false, narrowest: None, is_message: false, gives_way: false, if_any: false }
    }

    /// Text that is cut where the line would be too long.
    pub(crate) const fn text(name: &'static str) -> Self {
        Column { narrowest: Some(NARROWEST), ..Column::whole(name) }
    }

    /// It is left out where no row has anything in it.
    pub(crate) const fn if_any(self) -> Self {
        Column { if_any: true, ..self }
    }

    /// Text that a table is there for: the last column. Where no terminal bounds the line it is whole.
    pub(crate) const fn message(name: &'static str) -> Self {
        Column { narrowest: Some(NARROWEST_MESSAGE), is_message: true, ..Column::whole(name) }
    }

    /// A number: to the right.
    pub(crate) const fn number(name: &'static str) -> Self {
        Column { is_number: true, ..Column::whole(name) }
    }

    /// It is left out where a message would not have its room; of several the last one first.
    pub(crate) const fn giving_way(self) -> Self {
        Column { gives_way: true, ..self }
    }
}

/// A cell with its style.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell in a style.
    pub(crate) fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Cell { text: clean(text.as_ref()), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::styled(text, Style::new())
    }
}

/// A table that is being filled.
#[derive(Debug)]
pub(crate) struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row; it has a cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into());
    }

    /// It has a message.
    pub(crate) fn is_message(&self) -> bool {
        self.columns.iter().any(|column| column.is_message)
    }

    /// The lines, head first, none longer than `width` if cutting can do it.
    pub(crate) fn lines(&self, width: usize) -> Vec<String> {
        let widths = self.widths(width);
        let head: Vec<Cell> = self.columns.iter().map(|column| Cell::styled(column.name, HEAD)).collect();
        std::iter::once(&head).chain(&self.rows).map(|cells| self.line(cells, &widths)).collect()
    }

    fn line(&self, cells: &[Cell], widths: &[Option<usize>]) -> String {
        let mut line = String::new();
        let mut gap = 0;
        for ((cell, column), width) in cells.iter().zip(self.columns).zip(widths) {
            let Some(width) = width else { continue };
            let text = cut(&cell.text, *width);
            let room = width - text.width().min(*width);
            let before = gap + if column.is_number { room } else { 0 };
            line.extend(std::iter::repeat_n(' ', before));
            line.push_str(&styled(cell.style, &text));
            // Spaces come with the next cell: no line ends in them.
            gap = 2 + if column.is_number { 0 } else { room };
        }
        line.trim_end().to_owned()
    }

    /// How wide each column is; `None`: it is left out.
    fn widths(&self, width: usize) -> Vec<Option<usize>> {
        let mut widths: Vec<Option<usize>> = (self.columns.iter().enumerate())
            .map(|(at, column)| {
                let widest = self.rows.iter().map(|row| row[at].text.width()).max().unwrap_or(0);
                (widest > 0 || !column.if_any).then(|| widest.max(column.name.width()))
            })
            .collect();
        // As narrow as they may be, the message apart.
        let least = |widths: &[Option<usize>]| {
            total(widths.iter().zip(self.columns).filter_map(|(width, column)| {
                let narrowest = if column.is_message { Some(ROOM_OF_A_MESSAGE) } else { column.narrowest };
                let width = (*width)?;
                Some(narrowest.map_or(width, |narrowest| narrowest.min(width)))
            }))
        };
        for at in (0..widths.len()).rev().filter(|at| self.columns[*at].gives_way) {
            if least(&widths) > width {
                widths[at] = None;
            }
        }
        while total(widths.iter().copied().flatten()) > width {
            let widest = widths.iter_mut().zip(self.columns).filter_map(|(width, column)| {
                width.as_mut().filter(|width| column.narrowest.is_some_and(|narrowest| **width > narrowest))
            });
            let Some(widest) = widest.max_by_key(|width| **width) else { break };
            *widest -= 1;
        }
        widths
    }
}

/// The width of a line of such columns.
fn total(widths: impl Iterator<Item = usize>) -> usize {
    widths.map(|width| width + 2).sum::<usize>().saturating_sub(2)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const COLUMNS: &[Column] = &[Column::text("WORKFLOW"), Column::number("ATTEMPT"), Column::text("QUEUE")];

    #[test]
    fn the_widest_names_are_cut_until_a_line_fits() {
        let mut table = Table::new(COLUMNS);
        table.row(["fulfil".into(), "1".into(), "default".into()]);
        table.row(["a-workflow-of-a-very-long-name".into(), "12".into(), "mail".into()]);
        let lines = table.lines(40);
        assert!(lines.iter().all(|line| anstream::adapter::strip_str(line).to_string().width() <= 40));
        expect![[r#"
            WORKFLOW                ATTEMPT  QUEUE
            fulfil                        1  default
            a-workflow-of-a-very-…       12  mail"#]]
        .assert_eq(&anstream::adapter::strip_str(&lines.join("\n")).to_string());
    }

    const LETTERS: &[Column] = &[
        Column::whole("RUN"),
        Column::text("WORKFLOW"),
        Column::number("DIED").giving_way(),
        Column::number("TRIES").giving_way(),
        Column::message("MESSAGE"),
    ];

    #[test]
    fn what_gives_way_to_a_message_is_left_out_the_last_one_first() {
        let mut table = Table::new(LETTERS);
        let message = "mailbox 4711 is full, and so is that of whoever answers for it";
        table.row(["r".repeat(36).into(), "a-long-workflow".into(), "5s".into(), "2".into(), message.into()]);
        let shown = |width| anstream::adapter::strip_str(&table.lines(width).join("\n")).to_string();
        expect![[r#"
            RUN                                   WORKFLOW         DIED  TRIES  MESSAGE
            rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr  a-long-workflow    5s      2  mailbox 4711 is full, and so is that of whoever answers for it"#]]
        .assert_eq(&shown(usize::MAX));
        expect![[r#"
            RUN                                   WORKFLOW         DIED  MESSAGE
            rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr  a-long-workflow    5s  mailbox 4711 is full, and so is t…"#]].assert_eq(&shown(95));
        expect![[r#"
            RUN                                   WORKFLOW         MESSAGE
            rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr  a-long-workflow  mailbox 4711 is full, an…"#]]
        .assert_eq(&shown(80));
    }
}
