//! How the targets of a port share its connections. A rule picks a bucket, by chance or by
//! the client's address, and a map has a target for each bucket.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

/// How many buckets a port has: a multiple of its targets, so that each has about the same
/// share, yet no more than it needs, since each is an element of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// For a single target.
    One,
    /// Enough for 16 targets: none has more than a quarter more than another.
    Narrow,
    /// For more of them. So many, and no more, get connections.
    Wide,
}

impl Width {
    /// That of a port with so many targets.
    pub(super) fn of(targets: usize) -> Self {
        match targets {
            0 | 1 => Self::One,
            2..=16 => Self::Narrow,
            _ => Self::Wide,
        }
    }

    /// How many buckets that is: a power of two.
    pub(super) const fn buckets(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Narrow => 64,
            Self::Wide => 1024,
        }
    }
}

/// One of the buckets of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u16);

impl Bucket {
    /// The one of this number, if a port can have so many.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        let number = u16::try_from(number).ok()?;
        (number < Width::Wide.buckets()).then_some(Self(number))
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(self) -> u16 {
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
/// result, on every node and by every version of the agent.
///
/// One target more or less moves few buckets of the others. Each target has an order of its
/// own in which it wants the buckets, and they take turns: each takes the next bucket it wants
/// that is still free (Maglev hashing: Eisenbud et al., NSDI 2016, section 3.4).
pub(super) fn spread(targets: &BTreeSet<SocketAddr>) -> BTreeMap<Bucket, SocketAddr> {
    let buckets = Width::of(targets.len()).buckets();
    let mut orders: Vec<Order> = targets.iter().map(|it| Order::of(*it, buckets)).collect();
    orders.sort_unstable();
    orders.truncate(buckets.into());
    let mut taken: Vec<Option<SocketAddr>> = vec![None; buckets.into()];
    let turns = if orders.is_empty() { 0 } else { buckets };
    for turn in 0..turns {
        let order = usize::from(turn) % orders.len();
        let order = &mut orders[order];
        while taken[order.wanted()].is_some() {
            order.next();
        }
        taken[order.wanted()] = Some(order.target);
    }
    let of_bucket = |(number, target): (u16, Option<SocketAddr>)| Some((Bucket(number), target?));
    (0..).zip(taken).filter_map(of_bucket).collect()
}

/// The order in which a target wants buckets. It goes through all of them: their number is a
/// power of two, and the step odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    hash: u64,
    target: SocketAddr,
    wanted: u64,
    step: u64,
    buckets: u64,
}

impl Order {
    fn of(target: SocketAddr, buckets: u16) -> Self {
        let hash = hash(target);
        Self {
            hash,
            target,
            wanted: hash >> 32,
            step: hash | 1,
            buckets: buckets.into(),
        }
    }

    fn wanted(&self) -> usize {
        usize::try_from(self.wanted % self.buckets).unwrap_or_default()
    }

    fn next(&mut self) {
        self.wanted = self.wanted.wrapping_add(self.step);
    }
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

/// The last step of SplitMix64: each bit of the result depends on every bit.
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
