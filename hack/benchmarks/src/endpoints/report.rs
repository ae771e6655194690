//! The document.

use super::changes::Changes;
use super::{BUSY, ENDPOINTS, IDLE, SERVICES};
use crate::control_path::{Resident, Start};
use crate::output::document::Document;
use crate::output::table::{Table, number};

/// What was measured.
pub(crate) struct Report {
    /// Memory, in the order in which it was read.
    pub(crate) resident: Vec<Resident>,
    /// CPU in percent of a core while nothing changed.
    pub(crate) idle: f64,
    /// A start with the table there, and without it.
    pub(crate) warm: Start,
    pub(crate) cold: Start,
    /// A steady stream of changes.
    pub(crate) busy: Changes,
}

impl Report {
    /// Writes it down.
    pub(crate) fn document(&self) -> Document {
        let mut document = Document::new("endpoints", "An agent without kube-proxy");
        document.paragraph(
            "Release builds. Two nodes serve, on which no kube-proxy runs: the agent chooses \
             the Pods itself and follows every EndpointSlice. Those were written by hand, since \
             no client comes: there are no Pods. All is of the agent of the first node.",
        );
        document.heading("Memory and connections");
        let mut table = Table::new(&["", "resident MiB", "connections to the API server"]);
        for read in &self.resident {
            table.row([
                read.what.clone(),
                number(read.memory),
                read.connections.to_string(),
            ]);
        }
        document.table(table);
        document.heading("Starts");
        document.paragraph(&format!(
            "Killed and started again, with {SERVICES} Services of {ENDPOINTS} endpoints each: \
             until it serves all of them."
        ));
        let mut table = Table::new(&["", "ms", "ms of CPU", "peak MiB"]);
        for (what, start) in [
            ("its table was there", &self.warm),
            ("its table was gone", &self.cold),
        ] {
            table.row([
                what.to_owned(),
                number(start.time),
                number(start.cpu),
                number(start.memory),
            ]);
        }
        document.table(table);
        document.heading("CPU");
        self.cpu(&mut document);
        document
    }

    fn cpu(&self, document: &mut Document) {
        let Changes {
            count,
            seconds,
            load,
            done,
        } = &self.busy;
        document.paragraph(&format!(
            "Without any change for {} s: {} % of a core. Then one Service after the other lost \
             its last endpoint and, once all had, got it back, for {} s: {count} changes, {} a \
             second.",
            IDLE.as_secs(),
            number(self.idle),
            BUSY.as_secs(),
            number(*count as f64 / seconds),
        ));
        let changes = *count as f64;
        let mut table = Table::new(&["while endpoints change", ""]);
        let mut row = |what: &str, figure: f64| table.row([what.to_owned(), number(figure)]);
        row("CPU, % of a core", *load);
        row("CPU, ms per change", load / 100.0 * seconds / changes * 1e3);
        row("changes per transaction", changes / done.transactions);
        row("elements changed per change", done.elements / changes);
        row("bytes for the kernel per change", done.bytes / changes);
        row("ms per decision", done.deciding / done.decisions * 1e3);
        row(
            "ms per transaction",
            done.applying / done.transactions * 1e3,
        );
        document.table(table);
    }
}
