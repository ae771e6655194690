//! Whether the kernel forwards packets between interfaces at all.

use std::{fs, path::Path};

use highwire_api::Family;

/// The sysctl that must be 1 for traffic of a family to reach Pods
/// (kernel Documentation/networking/ip-sysctl.rst).
#[must_use]
pub fn sysctl(family: Family) -> &'static str {
    match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    }
}

/// Whether forwarding is on in this network namespace. A sysctl that cannot be
/// read (no IPv6 in this kernel, say) counts as off.
#[must_use]
pub fn is_on(family: Family) -> bool {
    let path = Path::new("/proc/sys").join(sysctl(family).replace('.', "/"));
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}
