//! Packets while the table is replaced, as it is by each agent that starts: the table beside
//! ipvs, which needs no kube-proxy to be shown alone.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use highwire_agent::{decide::Plan, table::DataPath};
use highwire_api::{Family, Protocol};

use super::{command, dnat, in_new_namespace, nft, plans, replace};

const TO: &str = "192.0.2.11:53";
const REPLACEMENTS: u32 = 300;

fn plan() -> Plan {
    Plan {
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        forwards: [plans::forward(Family::V4, Protocol::Udp, 53, "10.96.0.10")].into(),
    }
}

/// How many packets to that port came to the node itself.
fn arrived() -> u64 {
    let listed = command("nft list chain inet arrived input");
    let mut words = listed.split_whitespace();
    words.find(|word| *word == "packets").unwrap();
    words.next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "fails: docs/faults.md, Packets while a table is replaced"]
fn no_packet_passes_while_the_table_is_replaced() {
    in_new_namespace(async || {
        let client = dnat::node().await;
        // Each packet is one of a new flow; they are not to fill the kernel's table.
        command("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1");
        command("nft add table inet arrived");
        command("nft add chain inet arrived input { type filter hook input priority 0 ; }");
        let path = DataPath::Dnat;
        nft().apply(&replace(path, &plan())).await.unwrap();
        command("nft add rule inet arrived input udp dport 53 counter");
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let flood = client.run(|| {
            thread::spawn(move || {
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    sent += u64::from(socket.send_to(b"?", TO).is_ok());
                }
                sent
            })
        });
        for _ in 0..REPLACEMENTS {
            nft().apply(&replace(path, &plan())).await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        let (sent, passed) = (flood.join().unwrap(), arrived());
        assert!(sent > 10_000, "only {sent} packets were sent");
        assert_eq!(passed, 0, "of {sent} packets");
    });
}
