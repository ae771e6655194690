//! What a node saves on which nobody but Highwire acts on a connection.

use anyhow::Result;

use crate::data_path::load::{Exchange, Exchanges};
use crate::data_path::path::Path;
use crate::data_path::report::{Figure, Level, headline, p90, p99, per_second, quartiles};
use crate::data_path::rounds::Measured;
use crate::output::document::Document;
use crate::output::table::{Table, number};

/// What is compared, the last one being how alike the nodes are.
const COMPARED: [(&str, Path, Path); 3] = [
    (
        "÷ NodePort of the same node",
        Path::WithoutProxy,
        Path::NodePortThere,
    ),
    (
        "÷ Highwire through kube-proxy",
        Path::WithoutProxy,
        Path::Highwire,
    ),
    (
        "NodePort of that node ÷ of the first",
        Path::NodePortThere,
        Path::NodePort,
    ),
];

/// Of the whole machine for one exchange.
fn processor_time(measured: &Measured<Exchanges>) -> f64 {
    measured.cpu.machine / measured.figure.count
}

/// Writes down what came of it.
pub(crate) fn saved(document: &mut Document, levels: &[Level], alone: &Level) -> Result<()> {
    document.heading("Highwire without kube-proxy");
    document.paragraph(
        "The packet that opens a connection is mapped once, by a nat rule of Highwire's, and no \
         other nat rule sees it: through kube-proxy it is rewritten first, finds kube-proxy's \
         rules and chains after that, and is looked at once more in case they did not take it. \
         Later packets of a connection pass the same hooks on both. Round by round:",
    );
    let with_many: [(&str, Figure); 2] = [
        ("per second", per_second),
        ("CPU per exchange", processor_time),
    ];
    let one: [(&str, Figure); 3] = [
        ("p90", p90),
        ("p99", p99),
        ("CPU per exchange", processor_time),
    ];
    for exchange in [Exchange::Request, Exchange::Connection] {
        let mut table = Table::new(&[
            headline(exchange),
            "ports",
            "at a time",
            "median",
            "quartiles",
        ]);
        let all = levels.iter().map(|level| (level, &with_many[..]));
        for (level, figures) in all.chain([(alone, &one[..])]) {
            let rounds = level.found.rounds(exchange);
            for (what, figure) in figures {
                for (versus, path, to) in COMPARED {
                    let ratio = rounds.ratio(path, to, figure)?;
                    table.row([
                        format!("{what}, {versus}"),
                        number(level.ports as f64),
                        level.at_a_time.to_string(),
                        format!("{:.3}", ratio.median()),
                        quartiles(&ratio),
                    ]);
                }
            }
        }
        document.table(table);
    }
    Ok(())
}
