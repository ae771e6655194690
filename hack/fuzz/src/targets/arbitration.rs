//! Who gets a port on a node: any claims, and the laws of the design.

use std::collections::{BTreeMap, BTreeSet};

use highwire_api::{
    Family, PortKey, Protocol, ServiceKey,
    arbitration::{Claim, Holder, Rank, Slot, Verdict, arbitrate, contested},
};
use jiff::Timestamp;

use crate::bytes::Bytes;

/// More claims than that show nothing new.
const MOST: usize = 24;

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut claims = Vec::new();
    while claims.len() < MOST
        && let Some(claim) = claim(&mut bytes, claims.len())
    {
        claims.push(claim);
    }
    let verdict = arbitrate(&claims);
    everybody_has_an_answer(&claims, &verdict);
    order_does_not_matter(&claims, &verdict);
    who_is_served_keeps_it(&claims, &verdict);
    a_newcomer_takes_nothing(&claims, &verdict);
    who_needs_no_claim_is_served(&claims, &verdict);
}

/// A byte for its age, then two for each slot.
fn claim(bytes: &mut Bytes<'_>, number: usize) -> Option<Claim> {
    let (age, count) = (bytes.take()?, bytes.take()?);
    let mut slots = BTreeMap::new();
    let mut taken = BTreeMap::new();
    for _ in 0..=count % 6 {
        let (what, how) = (bytes.take()?, bytes.take()?);
        let slot = Slot {
            family: Family::ALL[usize::from(what >> 7)],
            port: PortKey::new(
                [Protocol::Tcp, Protocol::Udp][usize::from(what >> 6 & 1)],
                i32::from(what & 7) + 1,
            )?,
        };
        let rank = [Rank::Here, Rank::Elsewhere, Rank::Newcomer][usize::from(how % 3)];
        slots.insert(slot, rank);
        if how > 240 {
            taken.insert(slot, Holder::Reserved);
        }
    }
    Some(Claim {
        service: key(number),
        created: Timestamp::from_second(i64::from(age >> 4)).ok()?,
        slots,
        taken,
    })
}

/// Names that sort in another order than they come in.
fn key(number: usize) -> ServiceKey {
    let name = format!("s{}", number * 7 % 31);
    ServiceKey {
        namespace: "shop".into(),
        name: name.as_str().into(),
    }
}

/// Served with all of its slots, which nobody else has, or refused with a reason that is true.
fn everybody_has_an_answer(claims: &[Claim], verdict: &Verdict) {
    let by_key: BTreeMap<_, _> = claims.iter().map(|it| (&it.service, it)).collect();
    let mut owners: BTreeMap<Slot, &ServiceKey> = BTreeMap::new();
    for key in &verdict.served {
        let claim = by_key[key];
        assert!(claim.taken.is_empty(), "the host wins: {claim:?}");
        for slot in claim.slots.keys() {
            let other = owners.insert(*slot, key);
            assert_eq!(other, None, "{slot:?} is given twice");
        }
    }
    for claim in claims {
        let refusals = verdict.refused.get(&claim.service);
        let is_served = verdict.served.contains(&claim.service);
        assert_ne!(is_served, refusals.is_some(), "{claim:?}");
        let Some(refusals) = refusals else { continue };
        assert!(!refusals.is_empty(), "no reason: {claim:?}");
        for refusal in refusals {
            let slot = refusal.slot;
            assert!(claim.slots.contains_key(&slot), "{slot:?} of {claim:?}");
            match &refusal.holder {
                Holder::Service(holder) => assert_eq!(owners.get(&slot), Some(&holder)),
                other => assert_eq!(claim.taken.get(&slot), Some(other)),
            }
        }
        if claim.taken.is_empty() {
            has_a_better_rival(claim, refusals.iter().map(|it| by_key[owners[&it.slot]]));
        }
    }
}

/// Somebody who is served goes before it: by rank in a slot that both want, or by age.
fn has_a_better_rival<'a>(claim: &Claim, mut winners: impl Iterator<Item = &'a Claim>) {
    let order = |it: &Claim, slot| (it.slots[slot], it.created, it.service.clone());
    let is_better = |winner: &Claim| {
        let mut shared = claim
            .slots
            .keys()
            .filter(|it| winner.slots.contains_key(it));
        let by_rank = shared.any(|slot| order(winner, slot) < order(claim, slot));
        by_rank || (winner.created, &winner.service) < (claim.created, &claim.service)
    };
    assert!(winners.any(is_better), "{claim:?} loses to nobody better");
}

fn order_does_not_matter(claims: &[Claim], verdict: &Verdict) {
    let mut other = claims.to_vec();
    other.reverse();
    assert_eq!(&arbitrate(&other), verdict, "in reverse");
    let third = other.len() / 3;
    other.rotate_left(third);
    assert_eq!(&arbitrate(&other), verdict, "rotated");
}

/// Once the status says who is served, the same is decided again, also if all others were
/// older.
fn who_is_served_keeps_it(claims: &[Claim], verdict: &Verdict) {
    let mut advertised = claims.to_vec();
    for claim in &mut advertised {
        let is_served = verdict.served.contains(&claim.service);
        let rank = if is_served {
            Rank::Here
        } else {
            Rank::Newcomer
        };
        claim.slots.values_mut().for_each(|it| *it = rank);
        if is_served {
            claim.created = Timestamp::MAX;
        }
    }
    assert_eq!(&arbitrate(&advertised), verdict, "the holder keeps it");
}

/// The youngest, advertised nowhere, changes for nobody whether it is served.
fn a_newcomer_takes_nothing(claims: &[Claim], verdict: &Verdict) {
    let newcomer = ServiceKey {
        namespace: "zoo".into(),
        name: "new".into(),
    };
    let slots: BTreeSet<Slot> = claims
        .iter()
        .flat_map(|it| it.slots.keys().copied())
        .collect();
    for skip in 0..3 {
        let wanted = slots.iter().skip(skip).step_by(3);
        let claim = Claim {
            service: newcomer.clone(),
            created: Timestamp::MAX,
            slots: wanted.map(|slot| (*slot, Rank::Newcomer)).collect(),
            taken: BTreeMap::new(),
        };
        if claim.slots.is_empty() {
            continue;
        }
        let mut all = claims.to_vec();
        all.push(claim);
        let mut with = arbitrate(&all);
        with.served.remove(&newcomer);
        assert_eq!(with.served, verdict.served, "a newcomer changed it");
    }
}

/// What `contested` promises.
fn who_needs_no_claim_is_served(claims: &[Claim], verdict: &Verdict) {
    let contested = contested(claims.iter().flat_map(|it| it.slots.keys().copied()));
    for claim in claims.iter().filter(|it| it.taken.is_empty()) {
        if claim.slots.keys().all(|slot| !contested.contains(slot)) {
            assert!(verdict.served.contains(&claim.service), "{claim:?}");
        }
    }
}
