//! What the machine must offer; what is missing fails with the remedy.

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
    let path = std::env::var("PATH").unwrap_or_default();
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(tool, _)| {
            !path
                .split(':')
                .any(|dir| std::path::Path::new(dir).join(tool).exists())
        })
        .map(|(_, package)| *package)
        .collect();
    ensure!(
        missing.is_empty(),
        "missing: {}; run hack/install-deps",
        missing.join(", ")
    );
    Ok(())
}
