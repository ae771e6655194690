use std::net::IpAddr;

use highwire_api::{Family, arbitration::Slot};
use serde_json::json;

use super::*;
use crate::{
    decide::{Forward, Plan, Target},
    facts::endpoints::ServicePortName,
    table::{DataPath, nft::Listed},
};

const SERVED: u16 = 80;
const TAKEN: u16 = 443;

fn plan(ports: &[u16]) -> Plan {
    let ip: IpAddr = "10.96.0.10".parse().unwrap();
    let forward = |port: &u16| {
        let slot = Slot {
            family: Family::V4,
            port: PortKey::new(Protocol::Tcp, i32::from(*port)).unwrap(),
        };
        let forward = Forward {
            target: Target::ClusterIp(ip),
            clients: None,
            port_name: ServicePortName {
                service: "shop/web".parse().unwrap(),
                port: "".into(),
            },
        };
        (slot, forward)
    };
    Plan {
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        forwards: ports.iter().map(forward).collect(),
    }
}

fn elements(ports: &[u16]) -> Elements {
    Elements::of(&plan(ports), DataPath::FirstPacket)
}

fn structure(rule: &str) -> Structure {
    let listing = json!({"nftables": [{"rule": {"expr": rule}}]});
    Listed::read(&listing.to_string()).unwrap().structure
}

fn explanation() -> Explanation {
    let port = |port| Port {
        port,
        protocol: Protocol::Tcp,
    };
    Explanation {
        place: Place::Node("n1".into()),
        ready: true,
        reason: "Programmed".into(),
        message: "the node forwards".into(),
        proxy_mode: Some(ProxyMode::Nftables),
        addresses: ["192.0.2.11".parse().unwrap()].into(),
        awaited_ports: 0,
        table: Table::NotCompared,
        ports: vec![
            Row {
                port: port(SERVED),
                service: "shop/web".parse().unwrap(),
                state: State::Served {
                    goes_to: ["10.96.0.10:80".parse().unwrap()].into(),
                    kernel: None,
                },
            },
            Row {
                port: port(TAKEN),
                service: "shop/late".parse().unwrap(),
                state: State::Refused {
                    reason: "HeldByService",
                    held_by: "Service shop/first".into(),
                },
            },
        ],
        left_alone: Vec::new(),
    }
}

/// What is said of the table, and of the served port, if the kernel has this.
fn compared(found: Option<(&[u16], &str)>) -> (Table, Option<InKernel>) {
    let wanted = WantedTable {
        elements: elements(&[SERVED]),
        structure: Some(structure("ours")),
    };
    let found = found.map(|(ports, rule)| Listed {
        elements: Some(elements(ports)),
        structure: structure(rule),
    });
    let mut explanation = explanation();
    wanted.compare(found.as_ref(), &mut explanation);
    let State::Served { kernel, .. } = &explanation.ports[0].state else {
        panic!("not served");
    };
    (explanation.table, *kernel)
}

#[test]
fn what_the_kernel_has_is_compared_port_by_port() {
    let count = elements(&[SERVED]).0.len();
    let (as_wanted, differs) = (Some(InKernel::AsWanted), Some(InKernel::Differs));
    assert_eq!(
        compared(Some((&[SERVED], "ours"))),
        (Table::AsWanted { elements: count }, as_wanted)
    );
    assert_eq!(compared(None), (Table::Absent, differs));
    let (table, kernel) = compared(Some((&[], "ours")));
    let Table::Differs {
        missing,
        unwanted: 0,
        examples,
        rules: Some(true),
    } = table
    else {
        panic!("{table:?}");
    };
    assert_eq!(missing, count - 1, "all but the node's address");
    assert!(
        examples.contains(&"lacks ports4 { tcp . 80 }".to_owned()),
        "{examples:?}"
    );
    assert_eq!(kernel, differs);
    // What is too many is of another port.
    let (table, kernel) = compared(Some((&[SERVED, 8080], "ours")));
    assert!(
        matches!(
            table,
            Table::Differs {
                missing: 0,
                unwanted: 2,
                ..
            }
        ),
        "{table:?}"
    );
    assert_eq!(kernel, as_wanted);
    let (table, _) = compared(Some((&[SERVED], "theirs")));
    assert!(
        matches!(
            table,
            Table::Differs {
                rules: Some(false),
                ..
            }
        ),
        "{table:?}"
    );
}

#[test]
fn a_line_says_it_all() {
    let mut explanation = explanation();
    explanation.table = Table::AsWanted { elements: 3 };
    let text = explanation.to_string();
    let expected = "\
Node n1: ready (Programmed): the node forwards
kube-proxy: nftables
serving at: 192.0.2.11
table inet highwire: as wanted, 3 elements

PORT     SERVICE    STATE    KERNEL  GOES TO, OR WHY NOT
80/TCP   shop/web   served   -       10.96.0.10:80
443/TCP  shop/late  refused  -       HeldByService: Service shop/first
";
    assert_eq!(text, expected);
}

#[test]
fn programs_get_the_same_as_json() {
    let json = serde_json::to_value(explanation()).unwrap();
    assert_eq!(json["node"], "n1");
    let expected = json!({
        "port": 443, "protocol": "TCP", "service": "shop/late",
        "state": "refused", "reason": "HeldByService", "heldBy": "Service shop/first",
    });
    assert_eq!(json["ports"][1], expected);
    assert_eq!(json["ports"][0]["goesTo"], json!(["10.96.0.10:80"]));
    assert_eq!(json["table"], json!({"state": "notCompared"}));
}
