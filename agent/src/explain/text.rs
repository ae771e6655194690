//! The answer as text.

use std::fmt;

use super::{Explanation, InKernel, Place, Row, State, Table};

/// How many targets a line names.
const NAMED: usize = 3;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "ready" } else { "not ready" };
        let (reason, message) = (&self.reason, &self.message);
        writeln!(f, "{}: {ready} ({reason}): {message}", self.place)?;
        if let Some(mode) = self.proxy_mode {
            writeln!(f, "kube-proxy: {}", mode.as_str())?;
        }
        writeln!(
            f,
            "serving at: {}",
            listed(self.addresses.iter(), usize::MAX)
        )?;
        if self.awaited_ports > 0 {
            let awaited = self.awaited_ports;
            writeln!(f, "waiting for kube-proxy to program {awaited} ports")?;
        }
        writeln!(f, "table inet highwire: {}\n", self.table)?;
        if self.ports.is_empty() {
            writeln!(f, "no LoadBalancer Service of ours asks for a port")?;
        } else {
            write_table(f, &self.ports)?;
        }
        for left in &self.left_alone {
            writeln!(f, "Service {}: {}", left.service, left.why)?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "Node {name}"),
            Self::ExternalLoadBalancer(name) => write!(f, "ExternalLoadBalancer {name}"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCompared => f.write_str("not compared"),
            Self::AsWanted { elements } => write!(f, "as wanted, {elements} elements"),
            Self::Absent => f.write_str("not there; the agent is about to build it"),
            Self::Unreadable { message } => write!(f, "cannot be read: {message}"),
            Self::Differs {
                missing,
                unwanted,
                examples,
                rules,
            } => {
                write!(f, "differs, and the agent is about to repair it: ")?;
                if *rules == Some(false) {
                    f.write_str("its rules are not ours; ")?;
                }
                write!(f, "{missing} elements are missing and {unwanted} too many")?;
                examples.iter().try_for_each(|it| write!(f, "\n  {it}"))
            }
        }
    }
}

/// `a, b and 2 more`.
fn listed(items: impl ExactSizeIterator<Item: ToString>, most: usize) -> String {
    let rest = items.len().saturating_sub(most);
    let named: Vec<String> = items.take(most).map(|it| it.to_string()).collect();
    match (named.is_empty(), rest) {
        (true, _) => "-".to_owned(),
        (false, 0) => named.join(", "),
        (false, rest) => format!("{} and {rest} more", named.join(", ")),
    }
}

fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let head = ["PORT", "SERVICE", "STATE", "KERNEL", "GOES TO, OR WHY NOT"];
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let [a, b, c, d] = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
    for [port, service, state, kernel, detail] in &lines {
        writeln!(
            f,
            "{port:a$}  {service:b$}  {state:c$}  {kernel:d$}  {detail}"
        )?;
    }
    Ok(())
}

fn cells(row: &Row) -> [String; 5] {
    let (state, kernel, detail) = match &row.state {
        State::Served { goes_to, kernel } => {
            let kernel = match kernel {
                Some(InKernel::AsWanted) => "as wanted",
                Some(InKernel::Differs) => "differs",
                None => "-",
            };
            ("served", kernel, listed(goes_to.iter(), NAMED))
        }
        State::Refused { reason, held_by } => ("refused", "-", format!("{reason}: {held_by}")),
        State::NotServed { why } => ("not served", "-", why.clone()),
    };
    [
        format!("{}/{}", row.port.port, row.port.protocol),
        row.service.to_string(),
        state.to_owned(),
        kernel.to_owned(),
        detail,
    ]
}
