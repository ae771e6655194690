//! Markdown tables that also read well as text.

use std::fmt::{Display, Formatter, Result};

/// A table: the first column is text, the others are figures.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let mut table = Self { rows: Vec::new() };
        table.row(headings.iter().copied());
        table
    }

    /// Adds a row. Missing cells stay empty; those beyond the headings are not shown.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let cells = cells.into_iter().map(Into::into);
        self.rows
            .push(cells.map(|cell: String| cell.replace('|', "\\|")).collect());
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(|column| width(column).max(3)).collect()
    }
}

impl Display for Table {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let widths = self.widths();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                match column {
                    0 => write!(out, "| {cell:<width$} |")?,
                    _ => write!(out, " {cell:>width$} |")?,
                }
            }
            writeln!(out)?;
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    match column {
                        0 => write!(out, "|-{:-<width$}-|", "")?,
                        _ => write!(out, "-{:-<width$}:|", "")?,
                    }
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

/// A number with as many decimals as tell something: 27,091, 131, 8.52, 0.997 or 6; nothing for
/// what is not known (NaN).
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() {
        return String::new();
    }
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let digits = whole.trim_start_matches('-');
    let mut grouped = whole[..whole.len() - digits.len()].to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown_and_aligned() {
        let mut table = Table::new(&["path", "per second"]);
        table.row(["Pod", "27,091"]);
        table.row(["a | b"]);
        let text = table.to_string();
        assert_eq!(
            text,
            "| path   | per second |\n\
             |--------|-----------:|\n\
             | Pod    |     27,091 |\n\
             | a \\| b |            |\n"
        );
    }

    #[test]
    fn numbers_are_grouped_and_short() {
        let written = [1_234_567.0, 27_091.4, 131.2, 8.523, 0.9971, -1000.0, 6.0].map(number);
        assert_eq!(
            written,
            ["1,234,567", "27,091", "131", "8.52", "0.997", "-1,000", "6"]
        );
        assert_eq!(number(f64::NAN), "");
    }
}
