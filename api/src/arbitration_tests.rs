use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::port::Protocol;

/// A claim on IPv4 TCP ports, each with its rank.
fn claim(name: &str, age: i64, ports: &[(i32, Rank)]) -> Claim {
    Claim {
        service: ServiceKey {
            namespace: "ns".into(),
            name: name.into(),
        },
        created: Timestamp::from_second(age).unwrap(),
        slots: ports
            .iter()
            .map(|(port, rank)| (slot(*port), *rank))
            .collect(),
        taken: BTreeMap::new(),
    }
}

fn sshd() -> Holder {
    Holder::Socket {
        bound: "0.0.0.0:22".parse().unwrap(),
        uid: 0,
    }
}

fn slot(port: i32) -> Slot {
    Slot {
        family: Family::V4,
        port: PortKey::new(Protocol::Tcp, port).unwrap(),
    }
}

fn served(claims: &[Claim]) -> Vec<String> {
    arbitrate(claims)
        .served
        .into_iter()
        .map(|key| key.name.to_string())
        .collect()
}

use Rank::{Elsewhere, Here, Newcomer};

#[test]
fn the_oldest_newcomer_wins() {
    let claims = [
        claim("young", 2, &[(80, Newcomer)]),
        claim("old", 1, &[(80, Newcomer)]),
    ];
    assert_eq!(served(&claims), ["old"]);
    let refused = &arbitrate(&claims).refused;
    let (loser, reasons) = refused.iter().next().unwrap();
    assert_eq!(&*loser.name, "young");
    assert_eq!(
        *reasons,
        [Refusal {
            slot: slot(80),
            holder: Holder::Service(claims[1].service.clone())
        }]
    );
}

#[test]
fn the_name_decides_between_twins() {
    assert_eq!(
        served(&[
            claim("b", 1, &[(80, Newcomer)]),
            claim("a", 1, &[(80, Newcomer)])
        ]),
        ["a"]
    );
}

#[test]
fn a_holder_keeps_its_port_against_an_older_service() {
    assert_eq!(
        served(&[
            claim("old", 1, &[(80, Newcomer)]),
            claim("young", 2, &[(80, Here)])
        ]),
        ["young"]
    );
    assert_eq!(
        served(&[
            claim("old", 1, &[(80, Newcomer)]),
            claim("young", 2, &[(80, Elsewhere)])
        ]),
        ["young"]
    );
    assert_eq!(
        served(&[
            claim("old", 1, &[(80, Elsewhere)]),
            claim("young", 2, &[(80, Here)])
        ]),
        ["young"]
    );
}

#[test]
fn all_ports_or_none() {
    let claims = [
        claim("tls", 1, &[(443, Newcomer)]),
        claim("web", 2, &[(80, Newcomer), (443, Newcomer)]),
        claim("late", 3, &[(80, Newcomer)]),
    ];
    assert_eq!(served(&claims), ["late", "tls"]);
    let web = &arbitrate(&claims).refused[&claims[1].service];
    assert_eq!(web.len(), 2, "both of its ports have a holder: {web:?}");
}

#[test]
fn a_holder_that_asks_for_more_does_not_take_what_another_holds() {
    // `a` holds 80 and now wants 443 too, which the younger `b` holds.
    let claims = [
        claim("a", 1, &[(80, Here), (443, Newcomer)]),
        claim("b", 2, &[(443, Here)]),
    ];
    assert_eq!(served(&claims), ["b"]);
}

#[test]
fn a_holder_that_loses_elsewhere_gives_way() {
    // `b` holds 443 but cannot have 8080, so 443 is free for `a`.
    let claims = [
        claim("a", 1, &[(80, Here), (443, Newcomer)]),
        claim("b", 2, &[(443, Here), (8080, Newcomer)]),
        claim("c", 3, &[(8080, Here)]),
    ];
    assert_eq!(served(&claims), ["a", "c"]);
}

#[test]
fn crosswise_holders_are_decided_by_age() {
    let claims = [
        claim("young", 2, &[(80, Newcomer), (443, Here)]),
        claim("old", 1, &[(80, Here), (443, Newcomer)]),
    ];
    assert_eq!(served(&claims), ["old"]);
}

#[test]
fn the_host_wins_and_what_it_refuses_is_free_for_others() {
    let mut web = claim("web", 1, &[(22, Here), (80, Here)]);
    web.taken.insert(slot(22), sshd());
    let claims = [web, claim("late", 2, &[(80, Newcomer)])];
    assert_eq!(served(&claims), ["late"]);
    let refusals = &arbitrate(&claims).refused[&claims[0].service];
    assert_eq!(
        refusals[0],
        Refusal {
            slot: slot(22),
            holder: sshd()
        }
    );
    assert_eq!(refusals[1].holder.to_string(), "Service ns/late");
    assert_eq!(refusals[0].holder.to_string(), "socket 0.0.0.0:22 uid 0");
}

#[test]
fn families_and_protocols_are_apart() {
    let mut six = claim("six", 2, &[]);
    six.slots.insert(
        Slot {
            family: Family::V6,
            ..slot(80)
        },
        Newcomer,
    );
    let mut udp = claim("udp", 3, &[]);
    let port = PortKey::new(Protocol::Udp, 80).unwrap();
    udp.slots.insert(
        Slot {
            family: Family::V4,
            port,
        },
        Newcomer,
    );
    assert_eq!(
        served(&[claim("four", 1, &[(80, Newcomer)]), six, udp]),
        ["four", "six", "udp"]
    );
}

prop_compose! {
    fn any_slot()(v6: bool, udp: bool, port in 1..6_i32) -> Slot {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        Slot {
            family: if v6 { Family::V6 } else { Family::V4 },
            port: PortKey::new(protocol, port).unwrap(),
        }
    }
}

fn any_tenure() -> impl Strategy<Value = Rank> {
    prop_oneof![Just(Here), Just(Elsewhere), Just(Newcomer)]
}

fn any_claims() -> impl Strategy<Value = Vec<Claim>> {
    let slots = proptest::collection::btree_map(any_slot(), any_tenure(), 1..4);
    let by_host = proptest::bool::weighted(0.1);
    let wishes = proptest::collection::vec((0..4_i64, slots, by_host), 0..14);
    wishes.prop_map(|wishes| {
        let wish = |(index, (created, slots, by_host)): (usize, (i64, BTreeMap<Slot, _>, bool))| {
            let taken = slots
                .keys()
                .take(usize::from(by_host))
                .map(|slot| (*slot, sshd()));
            Claim {
                service: ServiceKey {
                    namespace: "ns".into(),
                    name: format!("s{index:02}").into(),
                },
                created: Timestamp::from_second(created).unwrap(),
                taken: taken.collect(),
                slots,
            }
        };
        wishes.into_iter().enumerate().map(wish).collect()
    })
}

/// The owner of every slot, asserting that none has two.
fn owners(claims: &[Claim], verdict: &Verdict) -> HashMap<Slot, ServiceKey> {
    let mut owners = HashMap::new();
    for claim in claims
        .iter()
        .filter(|claim| verdict.served.contains(&claim.service))
    {
        for slot in claim.slots.keys() {
            let before = owners.insert(*slot, claim.service.clone());
            assert_eq!(before, None, "{slot:?} was given twice");
        }
    }
    owners
}

proptest! {
    /// Who wants nothing that is contested need not be asked about.
    #[test]
    fn who_is_alone_is_served_and_changes_nothing_for_others(claims in any_claims()) {
        let contested = contested(claims.iter().flat_map(|claim| claim.slots.keys().copied()));
        let is_alone = |claim: &Claim| {
            claim.taken.is_empty() && claim.slots.keys().all(|slot| !contested.contains(slot))
        };
        let (alone, rivals): (Vec<_>, Vec<_>) = claims.iter().cloned().partition(is_alone);
        let mut without_them = arbitrate(&rivals);
        without_them.served.extend(alone.into_iter().map(|claim| claim.service));
        prop_assert_eq!(arbitrate(&claims), without_them);
    }

    #[test]
    fn is_independent_of_order(claims in any_claims(), seed: u64) {
        let mut shuffled = claims.clone();
        shuffled.sort_by_key(|claim| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            (seed, &claim.service).hash(&mut hasher);
            hasher.finish()
        });
        prop_assert_eq!(arbitrate(&claims), arbitrate(&shuffled));
    }

    #[test]
    fn everyone_is_served_or_refused_with_a_true_reason(claims in any_claims()) {
        let verdict = arbitrate(&claims);
        let owners = owners(&claims, &verdict);
        for claim in &claims {
            let refusals = verdict.refused.get(&claim.service);
            prop_assert_ne!(verdict.served.contains(&claim.service), refusals.is_some());
            for refusal in refusals.into_iter().flatten() {
                prop_assert!(claim.slots.contains_key(&refusal.slot));
                match &refusal.holder {
                    Holder::Service(holder) => {
                        prop_assert_eq!(owners.get(&refusal.slot), Some(holder));
                    }
                    host => prop_assert_eq!(claim.taken.get(&refusal.slot), Some(host)),
                }
            }
            prop_assert!(refusals.is_none_or(|refusals| !refusals.is_empty()));
        }
    }

    #[test]
    fn who_holds_all_of_its_ports_here_loses_to_no_newcomer(mut claims in any_claims()) {
        // What the verdict gives is held from then on; asking again moves nothing,
        // whoever else comes along.
        let first = arbitrate(&claims);
        for claim in &mut claims {
            let rank = if first.served.contains(&claim.service) { Here } else { Newcomer };
            claim.slots.values_mut().for_each(|held| *held = rank);
            if rank == Newcomer {
                claim.created = Timestamp::MIN;
            }
        }
        prop_assert_eq!(arbitrate(&claims).served, first.served);
    }

    #[test]
    fn one_claim_fewer_never_leaves_a_free_port_unused(claims in any_claims()) {
        // No refused Service could be served beside those that are.
        let verdict = arbitrate(&claims);
        let owners = owners(&claims, &verdict);
        for claim in claims.iter().filter(|claim| verdict.refused.contains_key(&claim.service)) {
            let blocked = claim.slots.keys().any(|slot| owners.contains_key(slot));
            prop_assert!(blocked || !claim.taken.is_empty());
        }
    }
}
