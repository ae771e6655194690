use proptest::{collection::vec, prelude::*};

use super::*;
use crate::port::Protocol;

fn range(low: u16, high: u16) -> PortRange {
    let port = |port| NonZeroU16::new(port).unwrap();
    PortRange {
        low: port(low),
        high: port(high),
    }
}

fn tcp(port: i32) -> PortKey {
    PortKey::new(Protocol::Tcp, port).unwrap()
}

fn wish(name: &str, created: i64, ports: &[(i32, u16)]) -> Wish {
    let ports = ports
        .iter()
        .map(|(port, has)| (tcp(*port), NonZeroU16::new(*has)));
    Wish {
        service: format!("shop/{name}").parse().unwrap(),
        created: Timestamp::from_second(created).unwrap(),
        ports: ports.collect(),
    }
}

fn given(allocation: &Allocation, name: &str) -> Vec<u16> {
    let service = format!("shop/{name}").parse().unwrap();
    let given = allocation.given.get(&service).into_iter().flatten();
    given.map(|(_, port)| port.get()).collect()
}

#[test]
fn the_oldest_gets_the_lowest() {
    let wishes = [
        wish("young", 2, &[(80, 0)]),
        wish("old", 1, &[(80, 0), (443, 0)]),
    ];
    let allocation = allocate(&wishes, range(8000, 8002));
    assert_eq!(given(&allocation, "old"), [8000, 8001]);
    assert_eq!(given(&allocation, "young"), [8002]);
    assert!(allocation.moved.is_empty() && allocation.without.is_empty());
}

#[test]
fn who_has_a_port_keeps_it_against_the_older() {
    let wishes = [wish("old", 1, &[(80, 0)]), wish("young", 2, &[(80, 8000)])];
    let allocation = allocate(&wishes, range(8000, 8001));
    assert_eq!(given(&allocation, "young"), [8000]);
    assert_eq!(given(&allocation, "old"), [8001]);
}

#[test]
fn a_port_that_falls_out_of_the_range_moves() {
    let wishes = [wish("web", 1, &[(80, 9000), (443, 8001)])];
    let allocation = allocate(&wishes, range(8000, 8001));
    assert_eq!(given(&allocation, "web"), [8000, 8001]);
    let moved = &allocation.moved[0];
    assert_eq!((moved.from.get(), moved.to.get()), (9000, 8000));
}

#[test]
fn who_finds_no_room_takes_none() {
    let wishes = [
        wish("big", 1, &[(80, 0), (81, 0), (82, 0)]),
        wish("small", 2, &[(80, 0)]),
    ];
    let allocation = allocate(&wishes, range(8000, 8001));
    assert_eq!(given(&allocation, "small"), [8000]);
    assert_eq!(allocation.without.len(), 1);
}

#[test]
fn protocols_have_ports_of_their_own() {
    let mut dns = wish("dns", 1, &[(53, 0)]);
    dns.ports
        .insert(PortKey::new(Protocol::Udp, 53).unwrap(), None);
    let allocation = allocate(&[dns], range(8000, 8000));
    assert_eq!(given(&allocation, "dns"), [8000, 8000]);
}

prop_compose! {
    fn any_wish(index: usize)(
        created in 0..4_i64,
        ports in vec((1..6_i32, prop_oneof![Just(0_u16), 98..112_u16]), 1..4),
    ) -> Wish {
        wish(&format!("s{index}"), created, &ports)
    }
}

fn any_wishes() -> impl Strategy<Value = Vec<Wish>> {
    (0..8_usize).prop_flat_map(|count| (0..count).map(any_wish).collect::<Vec<_>>())
}

fn after(wishes: &[Wish], allocation: &Allocation) -> Vec<Wish> {
    let has = |wish: &Wish| {
        let given = allocation.given.get(&wish.service);
        let ports = wish.ports.iter();
        let ports =
            ports.map(|(port, before)| (*port, given.map_or(*before, |given| Some(given[port]))));
        Wish {
            ports: ports.collect(),
            ..wish.clone()
        }
    };
    wishes.iter().map(has).collect()
}

proptest! {
    #[test]
    fn no_port_is_given_twice_and_none_outside(wishes in any_wishes()) {
        let allocation = allocate(&wishes, range(100, 109));
        let mut seen = BTreeSet::new();
        for (port, given) in allocation.given.values().flatten() {
            prop_assert!((100..=109).contains(&given.get()));
            prop_assert!(seen.insert((port.protocol, *given)));
        }
        prop_assert_eq!(allocation.given.len() + allocation.without.len(), wishes.len());
    }

    #[test]
    fn the_order_does_not_matter(
        (wishes, shuffled) in any_wishes().prop_flat_map(|wishes| {
            (Just(wishes.clone()), Just(wishes).prop_shuffle())
        })
    ) {
        let range = range(100, 109);
        prop_assert_eq!(allocate(&wishes, range), allocate(&shuffled, range));
    }

    #[test]
    fn once_given_nothing_moves(wishes in any_wishes()) {
        let range = range(100, 109);
        let first = allocate(&wishes, range);
        let again = allocate(&after(&wishes, &first), range);
        for (service, ports) in &first.given {
            prop_assert_eq!(again.given.get(service), Some(ports));
        }
    }
}
