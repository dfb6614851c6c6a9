//! Tables of plain columns: as wide as they need to be, the widest names cut until a line fits.

use anstyle::Style;
use unicode_width::UnicodeWidthStr as _;

use super::{HEAD, clean, cut, styled};

/// The narrowest that a column is cut to.
const NARROWEST: usize = 8;

/// A column: its name, and what may be done to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    is_number: bool,
    may_be_cut: bool,
    if_any: bool,
}

impl Column {
    /// Text that is always shown whole.
    pub(crate) const fn whole(name: &'static str) -> Self {
        Column { name, is_number: false, may_be_cut: false, if_any: false }
    }

    /// Text that is cut where the line would be too long.
    pub(crate) const fn text(name: &'static str) -> Self {
        Column { name, is_number: false, may_be_cut: true, if_any: false }
    }

    /// The same, left out where no row has anything in it.
    pub(crate) const fn if_any(self) -> Self {
        Column { if_any: true, ..self }
    }

    /// A number: to the right.
    pub(crate) const fn number(name: &'static str) -> Self {
        Column { name, is_number: true, may_be_cut: false, if_any: false }
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

    /// The lines, head first, none longer than `width` if cutting can do it.
    pub(crate) fn lines(&self, width: usize) -> Vec<String> {
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|at| !self.columns[*at].if_any || self.rows.iter().any(|row| !row[*at].text.is_empty()))
            .collect();
        let widths = self.widths(&shown, width);
        let head: Vec<Cell> = self.columns.iter().map(|column| Cell::styled(column.name, HEAD)).collect();
        std::iter::once(&head).chain(&self.rows).map(|cells| self.line(cells, &shown, &widths)).collect()
    }

    fn line(&self, cells: &[Cell], shown: &[usize], widths: &[usize]) -> String {
        let mut line = String::new();
        let mut gap = 0;
        for (at, width) in shown.iter().zip(widths) {
            let (cell, column) = (&cells[*at], self.columns[*at]);
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

    fn widths(&self, shown: &[usize], width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = (shown.iter())
            .map(|at| {
                let cells = self.rows.iter().map(|row| row[*at].text.width());
                cells.max().unwrap_or(0).max(self.columns[*at].name.width())
            })
            .collect();
        loop {
            let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
            let widest = (0..widths.len())
                .filter(|at| self.columns[shown[*at]].may_be_cut && widths[*at] > NARROWEST)
                .max_by_key(|at| widths[*at]);
            match widest {
                Some(at) if total > width => widths[at] -= 1,
                _ => return widths,
            }
        }
    }
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
}
