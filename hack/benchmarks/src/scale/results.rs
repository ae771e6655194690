//! What was measured at every size, kept in a file, since all sizes together take too long
//! for one run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::scenarios::Steps;
use super::size::Size;
use super::step::Step;

const FILE: &str = "scale.json";

/// What was measured at one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    /// The size.
    pub(super) size: Size,
    /// The day.
    pub(super) date: String,
    /// What was done, in order.
    pub(super) steps: Steps,
}

impl Measured {
    /// Measured today.
    pub(super) fn new(size: Size, steps: Steps) -> Result<Self> {
        let date = jiff::Zoned::now().date().to_string();
        Ok(Self { size, date, steps })
    }

    /// The step of that name, if it was done.
    pub(super) fn step(&self, name: &str) -> Option<&Step> {
        let mut steps = self.steps.iter();
        steps.find_map(|(found, step)| (found == name).then_some(step))
    }

    /// The most memory that a controller had, in MiB.
    pub(super) fn controller_peak(&self) -> f64 {
        let peaks = self.steps.iter().map(|(_, step)| step.controller().peak);
        peaks.fold(0.0, f64::max)
    }
}

/// All sizes, in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Results(Vec<Measured>);

impl Results {
    /// Those in the folder; none if it has no such file.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Adds one, in place of an earlier one of its size.
    pub(super) fn add(&mut self, measured: Measured) {
        self.0.retain(|other| other.size != measured.size);
        self.0.push(measured);
        self.0.sort_by_key(|measured| measured.size);
    }

    /// Writes them into the folder.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let (path, text) = (folder.join(FILE), serde_json::to_string(self)? + "\n");
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Measured] {
        &self.0
    }
}
