//! How the targets of a port share its connections. A rule picks a bucket, by chance or by
//! the client's address, and a map has a target for each bucket.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

/// How many buckets a port has, and so how many targets get connections.
pub(super) const BUCKETS: u8 = 64;

/// One of the buckets of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u8);

impl Bucket {
    /// The one of this number, if a port has so many.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (number < BUCKETS).then_some(Self(number))
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// As nft writes it.
impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A target for every bucket, if there is any target. No target has two buckets more than
/// another; of more targets than buckets some have none. The same targets give the same
/// result, on every box and by every version of the agent.
///
/// One target more or less moves few buckets of the others. Each pair of a bucket and a target
/// has a rank, and the pairs are taken by rank: a bucket gets its target unless that has
/// its share (rendezvous hashing with a limit).
pub(super) fn spread(targets: &BTreeSet<SocketAddr>) -> BTreeMap<Bucket, SocketAddr> {
    let mut targets: Vec<(u64, SocketAddr)> = targets.iter().map(|it| (hash(*it), *it)).collect();
    targets.sort_unstable();
    targets.truncate(BUCKETS.into());
    let mut buckets = BTreeMap::new();
    if targets.is_empty() {
        return buckets;
    }
    let share = usize::from(BUCKETS) / targets.len();
    // So many have one more.
    let mut more = usize::from(BUCKETS) % targets.len();
    let pairs = targets.iter().enumerate().flat_map(|(index, (hash, _))| {
        (0..BUCKETS).map(move |bucket| (Reverse(rank(*hash, bucket)), index, Bucket(bucket)))
    });
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort_unstable();
    let mut held = vec![0; targets.len()];
    for (_, index, bucket) in pairs {
        if buckets.contains_key(&bucket) || held[index] > share {
            continue;
        }
        if held[index] == share {
            let Some(rest) = more.checked_sub(1) else {
                continue;
            };
            more = rest;
        }
        held[index] += 1;
        buckets.insert(bucket, targets[index].1);
    }
    buckets
}

/// FNV-1a, mixed: it must never change, as the standard library's hash may.
fn hash(target: SocketAddr) -> u64 {
    let address = match target.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let bytes = address.into_iter().chain(target.port().to_be_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed(hash)
}

fn rank(target: u64, bucket: u8) -> u64 {
    mixed(target.wrapping_add(u64::from(bucket).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The last step of SplitMix64: each bit of the result depends on every bit.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
