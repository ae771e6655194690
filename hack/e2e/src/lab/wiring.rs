//! Cables between namespaces.
//!
//! Checksum and segmentation offloads are off on every veth: with them on, a
//! packet never gets a checksum, and a data path that breaks checksums seems to
//! work here and fails on real hardware.

use anyhow::Result;

use crate::lab::netns::Netns;

/// Connects `netns` (there: eth0) to the bridge br0 of `fabric` (there: `port`).
pub(crate) fn plug(fabric: &Netns, netns: &Netns, port: &str) -> Result<()> {
    fabric.ip_batch(&format!(
        "link add {port} type veth peer name eth0 netns {}\n\
         link set {port} master br0 up",
        netns.path()?.display()
    ))?;
    netns.ip_batch("link set eth0 up")?;
    offloads_off(fabric, port)?;
    offloads_off(netns, "eth0")
}

/// Makes it a router.
pub(crate) fn forward(netns: &Netns) -> Result<()> {
    netns.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // 2, loose: Debian's default.
        ("net/ipv4/conf/all/rp_filter", "2"),
        ("net/ipv4/conf/default/rp_filter", "2"),
    ])
}

/// Switches the checksum and segmentation offloads of a device off.
pub(crate) fn offloads_off(netns: &Netns, device: &str) -> Result<()> {
    netns
        .check(&[
            "ethtool", "-K", device, "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro",
            "off",
        ])
        .map(drop)
}
