//! How many nodes and Services.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// A number of nodes and a number of Services, written as `100x1000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Size {
    /// How many nodes.
    pub(super) nodes: usize,
    /// How many Services.
    pub(super) services: usize,
}

/// Addresses of nodes are 10.1.0.0/16, and ports of Services begin at 11,000.
const MOST: usize = 10_000;

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (nodes, services) = text.split_once('x').context("write NODESxSERVICES")?;
        let (nodes, services) = (nodes.parse()?, services.parse()?);
        let fits = |count: usize| (1..=MOST).contains(&count);
        ensure!(fits(nodes) && fits(services), "1 to {MOST} of each");
        Ok(Self { nodes, services })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} × {}", self.nodes, self.services)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_two_numbers() {
        let size = Size {
            nodes: 100,
            services: 1000,
        };
        assert_eq!("100x1000".parse::<Size>().unwrap(), size);
        for wrong in ["100", "x", "0x5", "5x0", "5x10001"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
