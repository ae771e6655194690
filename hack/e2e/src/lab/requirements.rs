//! What the machine must offer; what is missing fails with the remedy.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

/// Programs used, and the Debian package of each.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("setpriv", "util-linux"),
    ("timeout", "coreutils"),
];

/// Fails, naming the remedy, unless this is root with every tool at hand.
pub fn check() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root: run it as root (sudo)"
    );
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| !is_installed(tool))
        .map(|(_, package)| *package)
        .collect();
    ensure!(
        missing.is_empty(),
        "missing: {}; run hack/install-deps",
        missing.join(", ")
    );
    Ok(())
}

/// Fails, naming the remedy, unless this machine can run kube-proxy in ipvs mode.
pub fn check_ipvs() -> Result<()> {
    ensure!(
        is_installed("ipset"),
        "missing: ipset; run hack/install-deps vm"
    );
    // Some kernels have it as a module, and some not at all.
    Command::new("modprobe").arg("ip_vs").output().ok();
    ensure!(
        Path::new("/proc/net/ip_vs").exists(),
        "this kernel has no ipvs; one that has: hack/test vm ipvs"
    );
    Ok(())
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .any(|dir| Path::new(dir).join(tool).exists())
}
