use itertools::Itertools as _;
use proptest::{collection::btree_set, prelude::*};

use super::*;

prop_compose! {
    fn any_target()(six in any::<bool>(), host in any::<u8>(), port in 30000..30004_u16) -> SocketAddr {
        if six {
            SocketAddr::from(([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(host)], port))
        } else {
            SocketAddr::from(([192, 0, 2, host], port))
        }
    }
}

fn targets(hosts: std::ops::RangeInclusive<u8>) -> BTreeSet<SocketAddr> {
    hosts
        .map(|host| ([192, 0, 2, host], 30080).into())
        .collect()
}

/// How many buckets have another target in `after`, and how many of those do not have `new`.
fn moved(
    before: &BTreeSet<SocketAddr>,
    after: &BTreeSet<SocketAddr>,
    new: SocketAddr,
) -> (usize, usize) {
    let (before, after) = (spread(before), spread(after));
    // A single target has them all.
    let had = |bucket| before.get(bucket).or(before.values().next()).copied();
    let moved = after
        .iter()
        .filter(|(bucket, target)| had(*bucket) != Some(**target));
    let others = moved.clone().filter(|(_, target)| **target != new);
    (moved.count(), others.count())
}

#[test]
fn no_targets_have_no_buckets() {
    assert_eq!(spread(&BTreeSet::new()), BTreeMap::new());
}

#[test]
fn a_single_target_needs_a_single_bucket() {
    assert_eq!(spread(&targets(1..=1)).len(), 1);
    assert_eq!(spread(&targets(1..=2)).len(), 64);
}

#[test]
fn a_number_that_is_no_bucket_is_not_read() {
    assert_eq!(Bucket::new(1023), Some(Bucket(1023)));
    assert_eq!(Bucket::new(1024), None);
    assert_eq!(Bucket::new(65536), None);
}

/// Agents of two versions would otherwise lead one client to two targets.
#[test]
fn the_shares_of_these_targets_are_the_same_for_ever() {
    let spread = spread(&targets(1..=4));
    let hosts = spread.values().map(|target| match target.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => unreachable!(),
    });
    assert_eq!(hosts.take(16).join(" "), "2 4 1 3 1 4 4 3 1 2 2 3 3 2 1 4");
}

/// So much moves on the average, where the new target's share is the least.
#[test]
fn a_new_target_moves_little_beyond_its_own_share() {
    for (last, most) in [
        (1, 32.0),
        (2, 24.0),
        (3, 21.0),
        (5, 17.0),
        (10, 16.0),
        (20, 160.0),
    ] {
        let tries = 1..=20_u8;
        let sum: usize = tries
            .clone()
            .map(|first| {
                let (before, after) = (
                    targets(first..=first + last - 1),
                    targets(first..=first + last),
                );
                let new = ([192, 0, 2, first + last], 30080).into();
                moved(&before, &after, new).0
            })
            .sum();
        let average = sum as f64 / tries.count() as f64;
        let buckets = Width::of(usize::from(last) + 1).buckets();
        println!("from {last} targets to one more: {average} of {buckets} buckets");
        assert!(average <= most, "from {last}: {average}");
    }
}

proptest! {
    #[test]
    fn every_bucket_has_a_target_and_none_has_two_more_than_another(
        targets in btree_set(any_target(), 1..200),
    ) {
        let spread = spread(&targets);
        let width = Width::of(targets.len());
        prop_assert_eq!(spread.len(), usize::from(width.buckets()));
        let last = spread.keys().next_back().map(|bucket| bucket.number());
        prop_assert_eq!(last, Some(width.buckets() - 1));
        let counts = spread.values().counts();
        prop_assert!(counts.keys().all(|target| targets.contains(*target)));
        prop_assert_eq!(counts.len(), targets.len());
        let (least, most) = counts.values().minmax().into_option().unwrap();
        prop_assert!(most - least <= 1, "{} and {}", least, most);
    }

    /// The same when a target goes. Where a port gets more buckets, nothing can stay.
    #[test]
    fn one_target_more_or_less_leaves_most_of_the_others(
        targets in btree_set(any_target(), 2..100), pick in any::<prop::sample::Index>(),
    ) {
        prop_assume!(targets.len() != 17);
        let changed = *pick.get(&targets.iter().copied().collect::<Vec<_>>());
        let mut without = targets.clone();
        without.remove(&changed);
        let (moved, others) = moved(&without, &targets, changed);
        let buckets = usize::from(Width::of(targets.len()).buckets());
        let share = buckets.div_ceil(targets.len());
        prop_assert!(others <= buckets / 2, "{}", others);
        prop_assert!(moved <= share + buckets / 2, "{}", moved);
    }
}
