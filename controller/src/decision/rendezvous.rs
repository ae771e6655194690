//! Which nodes advertise a Service of which only so many may: rendezvous hashing.
//!
//! Every node has a rank for every Service, and the first ones are chosen. So a node that
//! comes or goes changes one entry of the list at most, and the Services spread over all
//! nodes. Ranks are the same in every process and version.

/// Leaves the `most` of `nodes` that rank first for the Service of that UID.
pub fn choose<T>(uid: &str, most: usize, nodes: &mut Vec<T>, name: impl Fn(&T) -> &str) {
    if nodes.len() > most {
        nodes.sort_by_cached_key(|node| (rank(uid, name(node)), name(node).to_owned()));
        nodes.truncate(most);
    }
}

/// FNV-1a, and the finalizer of SplitMix64, for names that differ in the last digit only
/// must not rank in a row.
fn rank(uid: &str, node: &str) -> u64 {
    let bytes = uid.bytes().chain([b'/']).chain(node.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn chosen(uid: &str, most: usize, nodes: &[String]) -> BTreeSet<String> {
        let mut nodes = nodes.to_vec();
        choose(uid, most, &mut nodes, |name| name);
        nodes.into_iter().collect()
    }

    proptest! {
        #[test]
        fn a_node_that_comes_or_goes_changes_one_entry_at_most(
            names in prop::collection::btree_set(0..500_u16, 1..60), most in 1..20_usize, gone in any::<prop::sample::Index>()
        ) {
            let all: Vec<String> = names.iter().map(|number| format!("n{number}")).collect();
            let before = chosen("uid", most, &all);
            prop_assert_eq!(before.len(), most.min(all.len()), "never more, never fewer than can be");
            let mut reversed = all.clone();
            reversed.reverse();
            prop_assert_eq!(&before, &chosen("uid", most, &reversed), "in whatever order");
            let gone = &all[gone.index(all.len())];
            let rest: Vec<String> = all.iter().filter(|name| *name != gone).cloned().collect();
            let after = chosen("uid", most, &rest);
            let lost: Vec<_> = before.difference(&after).collect();
            let expected: Vec<_> = before.contains(gone).then_some(gone).into_iter().collect();
            prop_assert_eq!(&lost, &expected);
            prop_assert!(after.difference(&before).count() <= lost.len());
        }
    }

    #[test]
    fn services_spread_over_the_nodes() {
        let nodes: Vec<String> = (0..100).map(|number| format!("node-{number}")).collect();
        let mut load = BTreeMap::<String, u32>::new();
        for service in 0..1000 {
            for node in chosen(&format!("uid-{service}"), 10, &nodes) {
                *load.entry(node).or_default() += 1;
            }
        }
        let spread = load.values().all(|load| (50..200).contains(load));
        assert!(load.len() == 100 && spread, "100 each on average: {load:?}");
    }
}
