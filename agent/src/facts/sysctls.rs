//! The sysctls of this network namespace that matter (kernel
//! Documentation/networking/ip-sysctl.rst).

use std::{collections::BTreeSet, fs, ops::RangeInclusive, path::Path};

use highwire_api::Family;

use crate::port_ranges::PortRanges;

/// The sysctl that must be 1 for traffic of a family to reach Pods.
#[must_use]
pub fn forwarding(family: Family) -> &'static str {
    match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    }
}

/// What the sysctls say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// The families whose packets the kernel forwards. A sysctl that cannot be read (no
    /// IPv6 in this kernel, say) counts as off.
    pub forwarding: BTreeSet<Family>,
    /// The ports that the kernel gives to clients which name none.
    pub ephemeral: EphemeralPorts,
}

impl Sysctls {
    /// Reads them.
    #[must_use]
    pub fn read() -> Self {
        let is_on = |family: &Family| {
            let value = read(forwarding(*family));
            !["", "0"].contains(&value.trim())
        };
        Self {
            forwarding: Family::ALL.into_iter().filter(is_on).collect(),
            ephemeral: EphemeralPorts::parse(
                &read("net.ipv4.ip_local_port_range"),
                &read("net.ipv4.ip_local_reserved_ports"),
            ),
        }
    }
}

/// Empty if there is none of that name.
fn read(name: &str) -> String {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::read_to_string(path).unwrap_or_default()
}

/// The ports that the kernel gives to clients which name none, of both families:
/// `net.ipv4.ip_local_port_range` without `net.ipv4.ip_local_reserved_ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EphemeralPorts {
    range: RangeInclusive<u16>,
    reserved: PortRanges,
}

impl Default for EphemeralPorts {
    /// The kernel's own.
    fn default() -> Self {
        Self {
            range: 32768..=60999,
            reserved: PortRanges::default(),
        }
    }
}

impl EphemeralPorts {
    pub(super) fn parse(range: &str, reserved: &str) -> Self {
        let numbers = range.split_whitespace().map(str::parse);
        let numbers: Vec<u16> = numbers.filter_map(Result::ok).collect();
        Self {
            range: match numbers[..] {
                [first, last] => first..=last,
                _ => Self::default().range,
            },
            reserved: reserved.parse().unwrap_or_default(),
        }
    }

    /// Whether a socket on the port may be a client's.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.contains(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_ports_of_the_range_that_are_not_reserved() {
        let ephemeral = EphemeralPorts::parse("32768\t60999\n", "40000,51820-51821\n");
        for (port, client) in [
            (53, false),
            (32768, true),
            (39999, true),
            (40000, false),
            (51821, false),
            (60999, true),
            (61000, false),
        ] {
            assert_eq!(ephemeral.contains(port), client, "{port}");
        }
        assert!(EphemeralPorts::parse("", "\n").contains(40000));
    }
}
