//! Ports and ranges of ports, joined by commas, as in `22,10248-10259`.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

/// A set of ports, of whatever protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRanges(BTreeSet<(u16, u16)>);

impl PortRanges {
    /// Whether a port is among them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        let within = |(first, last): &(u16, u16)| (*first..=*last).contains(&port);
        self.0.iter().any(within)
    }
}

/// Empty for none.
impl FromStr for PortRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim);
        let ranges = parts.filter(|part| !part.is_empty()).map(|part| {
            let range = range(part).filter(|range| *range.start() > 0 && !range.is_empty());
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
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

impl fmt::Display for PortRanges {
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
    fn ports_and_ranges_are_read() {
        let ranges: PortRanges = "22, 2379-2380,10248-10259".parse().unwrap();
        for port in [22, 2379, 2380, 10248, 10259] {
            assert!(ranges.contains(port), "{port}");
        }
        for port in [21, 2381, 10260] {
            assert!(!ranges.contains(port), "{port}");
        }
        assert_eq!(ranges.to_string(), "22,2379-2380,10248-10259");
    }

    #[test]
    fn there_may_be_none_and_nonsense_is_named() {
        assert_eq!("".parse(), Ok(PortRanges::default()));
        for wrong in ["ssh", "0", "65536", "5-3", "22,-"] {
            let error = wrong.parse::<PortRanges>().unwrap_err();
            assert!(error.contains("10248-10259"), "{wrong}: {error}");
        }
    }
}
