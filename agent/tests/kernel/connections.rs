//! The metric of new connections, over everything that sets the kernel's counters back.

use highwire_agent::{
    metrics::Metrics,
    table::{DataPath, KernelTable},
};

use super::{
    command,
    dnat::{self, MASQUERADED, Namespace, ask},
    in_new_namespace, nft,
};

const PATH: DataPath = DataPath::Dnat;

/// Opens so many connections through the table.
fn open(client: &Namespace, number: u64) {
    for _ in 0..number {
        let answer = client.run(|| ask("192.0.2.11:80"));
        assert_eq!(answer, Ok(MASQUERADED.into()));
    }
}

/// The metric, as an agent shows it when it is asked.
async fn shown(metrics: &Metrics) -> u64 {
    metrics.read_connections().await;
    metrics.connections.get("rewrite")
}

/// Has the table replaced, as an agent does that does not know what it holds.
async fn replace(metrics: &Metrics) {
    let mut table = KernelTable::new(nft(), metrics.clone());
    table.bring_to(PATH, &dnat::plan()).await.unwrap();
}

#[test]
fn connections_are_counted_over_each_replacement_of_the_table_and_of_its_counters() {
    in_new_namespace(async || {
        let client = dnat::node().await;
        open(&client, 4);
        let metrics = Metrics::new().unwrap();
        assert_eq!(shown(&metrics).await, 0, "an agent before has shown those");
        open(&client, 1);
        assert_eq!(shown(&metrics).await, 1);

        open(&client, 2);
        replace(&metrics).await;
        assert_eq!(
            shown(&metrics).await,
            3,
            "nobody asked before the replacement"
        );
        // More than the counter had before: only its identity says that it is another.
        replace(&metrics).await;
        open(&client, 5);
        assert_eq!(shown(&metrics).await, 8);

        command("nft reset counters table inet highwire");
        open(&client, 1);
        assert_eq!(shown(&metrics).await, 9);

        command("nft delete table inet highwire");
        assert_eq!(shown(&metrics).await, 9, "never backwards");
        replace(&metrics).await;
        assert_eq!(shown(&metrics).await, 9);
        open(&client, 1);
        assert_eq!(shown(&metrics).await, 10);
    });
}

#[test]
fn a_node_without_a_table_begins_at_the_first_connection() {
    in_new_namespace(async || {
        let client = dnat::node().await;
        command("nft delete table inet highwire");
        let metrics = Metrics::new().unwrap();
        assert_eq!(shown(&metrics).await, 0);
        replace(&metrics).await;
        open(&client, 2);
        assert_eq!(shown(&metrics).await, 2);
    });
}
