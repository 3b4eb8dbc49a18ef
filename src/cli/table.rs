//! Tables: a head, and columns that line up.

/// A table being filled.
#[derive(Debug)]
pub struct Table {
    head: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table. A head that starts with `>` is of a column of numbers, which line up at their right.
    pub fn new(head: &'static [&'static str]) -> Table {
        Table { head, rows: Vec::new() }
    }

    /// Add a row, one cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells);
    }

    /// The table, or `when_empty` when it has no row. No newline at the end.
    pub fn show(&self, when_empty: &str) -> String {
        if self.rows.is_empty() {
            return when_empty.to_owned();
        }
        let names = self.head.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        let width = |column: usize, rows: &[&Vec<String>]| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let rows: Vec<&Vec<String>> = std::iter::once(&names).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.head.len()).map(|column| width(column, &rows)).collect();
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).zip(self.head).map(|((cell, width), head)| {
                if head.starts_with('>') { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Names and values, one a line; the names line up.
pub fn properties(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = rows.iter().map(|(name, value)| format!("{name:<width$}  {value}").trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_at_their_right() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(vec!["a".into(), "10G".into(), "online".into()]);
        table.row(vec!["größer".into(), "512".into(), String::new()]);
        let wanted = "NAME    SIZE  STATE\na        10G  online\ngrößer   512";
        assert_eq!(table.show("none"), wanted);
        assert_eq!(Table::new(&["NAME"]).show("no disks"), "no disks");
    }
}
