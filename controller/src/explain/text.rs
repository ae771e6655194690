//! The answers as text.

use std::fmt::{self, Display, Formatter};

use super::{NodeLine, Overview, PortLine, ServiceExplanation, ServiceLine, State};

impl Display for Overview {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let leader = self.leader.as_deref().unwrap_or("none");
        writeln!(f, "leader: {leader}")?;
        if !self.incomplete.is_empty() {
            let missing = self.incomplete.join(", ");
            writeln!(
                f,
                "not all is known yet: the first list of {missing} is not complete"
            )?;
        }
        write!(f, "Services: {}", self.services.len())?;
        for (state, count) in self.counts() {
            write!(f, ", {count} {}", state.as_str())?;
        }
        writeln!(f, "\n")?;
        let rows = self.services.iter().map(service_cells);
        columns(f, ["SERVICE", "STATE", "PORTS", "ADDRESSES", "WHY"], rows)?;
        writeln!(f)?;
        let rows = self.nodes.iter().map(node_cells);
        columns(
            f,
            [
                "NODE",
                "STATE",
                "SERVICES",
                "PROXY",
                "WHY, AND WHAT IT REFUSES",
            ],
            rows,
        )?;
        writeln!(f, "{}\n", others(self.other_nodes))?;
        let rows = self.ports.iter().map(port_cells);
        columns(f, ["PORT", "HELD BY", "REFUSED TO"], rows)
    }
}

impl Display for ServiceExplanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = &self.line;
        writeln!(f, "Service {}: {}", line.service, line.state.as_str())?;
        writeln!(f, "ports: {}", or_none(&line.ports))?;
        writeln!(f, "addresses: {}", or_none(&line.addresses))?;
        line.why.iter().try_for_each(|why| writeln!(f, "{why}"))?;
        if !self.nodes.is_empty() {
            writeln!(f)?;
        }
        let rows = self.nodes.iter().map(|verdict| {
            [
                verdict.node.clone(),
                if verdict.listed.is_empty() {
                    "no".to_owned()
                } else {
                    verdict.listed.join(", ")
                },
                verdict.why.clone().unwrap_or_default(),
            ]
        });
        columns(f, ["NODE", "LISTED", "WHY NOT"], rows)?;
        writeln!(f, "{}", others(self.other_nodes))
    }
}

impl Overview {
    /// How many Services have each state, of those that occur.
    pub fn counts(&self) -> impl Iterator<Item = (State, usize)> {
        let count = |state| self.services.iter().filter(|it| it.state == state).count();
        let all = State::ALL
            .into_iter()
            .map(move |state| (state, count(state)));
        all.filter(|(_, count)| *count > 0)
    }
}

impl PortLine {
    /// `shop/web (2 addresses)` for each Service that has it.
    #[must_use]
    pub fn holders(&self) -> String {
        let each = self.held_by.iter();
        let each =
            each.map(|(service, count)| format!("{service} ({})", counted(*count, "address")));
        or_none(&each.collect::<Vec<_>>())
    }

    /// `shop/late (1 node)` for each Service that is refused it.
    #[must_use]
    pub fn losers(&self) -> String {
        let each = self.refused.iter();
        let each = each.map(|(service, count)| format!("{service} ({})", counted(*count, "node")));
        or_none(&each.collect::<Vec<_>>())
    }
}

fn counted(count: usize, what: &str) -> String {
    let plural = match (count, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{count} {what}{plural}")
}

/// A sentence about the nodes that have not opted in.
#[must_use]
pub fn others(count: usize) -> String {
    match count {
        0 => "every node has opted in".to_owned(),
        _ => format!(
            "{} not opted in: kubectl label node NAME highwire.dev/enabled=true",
            if count == 1 {
                "1 node has".to_owned()
            } else {
                format!("{count} nodes have")
            }
        ),
    }
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(", ")
    }
}

fn service_cells(line: &ServiceLine) -> [String; 5] {
    [
        line.service.to_string(),
        line.state.as_str().to_owned(),
        or_none(&line.ports),
        or_none(&line.addresses),
        line.why.join("; "),
    ]
}

fn node_cells(line: &NodeLine) -> [String; 5] {
    let why = [line.why.clone()].into_iter().chain(line.refused.clone());
    [
        line.node.clone(),
        line.state.as_str().to_owned(),
        line.services.to_string(),
        line.proxy_mode.unwrap_or("-").to_owned(),
        why.collect::<Vec<_>>().join("; "),
    ]
}

fn port_cells(line: &PortLine) -> [String; 3] {
    [line.port.clone(), line.holders(), line.losers()]
}

/// Writes a table whose columns are as wide as they need to be; nothing without rows.
fn columns<const N: usize>(
    f: &mut Formatter<'_>,
    head: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let rows: Vec<[String; N]> = [head.map(str::to_owned)].into_iter().chain(rows).collect();
    if rows.len() == 1 {
        return Ok(());
    }
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    });
    for row in &rows {
        let cells = row.iter().zip(widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(f, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}
