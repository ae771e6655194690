//! TCP ports that no Service gets, whether or not anybody listens there.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

use highwire_api::{PortKey, Protocol};

/// What `--reserved-ports` is if nobody says otherwise: SSH; BGP; etcd; the API server;
/// our own two; kubelet, kube-proxy, kube-controller-manager and kube-scheduler
/// (kubernetes.io "Ports and Protocols").
pub const DEFAULT: &str = "22,179,2379-2380,6443,9807,9808,10248-10259";

/// TCP ports whose owners rule the node or the cluster. Whoever can create Services
/// must not get one while its owner restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservedPorts(BTreeSet<(u16, u16)>);

impl ReservedPorts {
    /// Whether no Service may have the port.
    #[must_use]
    pub fn contains(&self, port: PortKey) -> bool {
        let number = port.port.get();
        let within = |(first, last): &(u16, u16)| (*first..=*last).contains(&number);
        port.protocol == Protocol::Tcp && self.0.iter().any(within)
    }
}

/// Ports and ranges, joined by commas: `22,10248-10259`. Empty for none.
impl FromStr for ReservedPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let ranges = parts.map(|part| {
            let range = range(part);
            let range = range.ok_or_else(|| {
                format!("{part:?} is no port from 1 to 65535 and no range such as 10248-10259")
            })?;
            Ok((*range.start(), *range.end()))
        });
        ranges.collect::<Result<_, String>>().map(Self)
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
    (*range.start() > 0 && !range.is_empty()).then_some(range)
}

impl fmt::Display for ReservedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |(first, last): &(u16, u16)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let all: Vec<String> = self.0.iter().map(one).collect();
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_keeps_what_rules_the_node_and_the_cluster() {
        let reserved: ReservedPorts = DEFAULT.parse().unwrap();
        let is = |protocol, port| reserved.contains(PortKey::new(protocol, port).unwrap());
        for port in [
            22, 179, 2379, 2380, 6443, 9807, 9808, 10248, 10250, 10256, 10259,
        ] {
            assert!(is(Protocol::Tcp, port), "{port}");
        }
        for port in [21, 80, 443, 2381, 10247, 10260] {
            assert!(!is(Protocol::Tcp, port), "{port}");
        }
        assert!(!is(Protocol::Udp, 22) && !is(Protocol::Sctp, 22));
        assert_eq!(reserved.to_string(), DEFAULT);
    }

    #[test]
    fn none_can_be_reserved_and_nonsense_is_named() {
        assert_eq!("".parse(), Ok(ReservedPorts::default()));
        for wrong in ["ssh", "0", "65536", "5-3", "22,-"] {
            let error = wrong.parse::<ReservedPorts>().unwrap_err();
            assert!(error.contains("10248-10259"), "{wrong}: {error}");
        }
    }
}
