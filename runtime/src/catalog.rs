//! A registry of metrics that can say what is in it.
//!
//! A [`Registry`] shows only metrics that have a value, and one with labels has none before the
//! first event. docs/reference.md lists them all.

use std::{cell::RefCell, sync::Arc};

use prometheus::{Registry, core::Collector};

/// What a metric is called and means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Described {
    /// Its name, as `/metrics` has it.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// What it means.
    pub help: String,
}

/// Metrics while they are registered.
#[derive(Debug)]
pub struct Catalog {
    registry: Registry,
    /// What the registry puts before every name.
    prefix: Option<&'static str>,
    described: RefCell<Vec<Described>>,
}

impl Catalog {
    /// Of a new registry, which puts `prefix` and `_` before every name.
    ///
    /// # Errors
    /// If the prefix is empty.
    pub fn new(prefix: Option<&'static str>) -> prometheus::Result<Self> {
        Ok(Self {
            registry: Registry::new_custom(prefix.map(str::to_owned), None)?,
            prefix,
            described: RefCell::default(),
        })
    }

    /// Registers a metric.
    ///
    /// # Errors
    /// If it could not be made, or another one has its name.
    pub fn add<C>(&self, collector: prometheus::Result<C>) -> prometheus::Result<C>
    where
        C: Collector + Clone + 'static,
    {
        let collector = collector?;
        self.registry.register(Box::new(collector.clone()))?;
        let families = collector.collect();
        let described = collector.desc().into_iter().zip(&families);
        let described = described.map(|(desc, family)| Described {
            name: match self.prefix {
                Some(prefix) => format!("{prefix}_{}", desc.fq_name),
                None => desc.fq_name.clone(),
            },
            kind: format!("{:?}", family.get_field_type()).to_lowercase(),
            labels: desc.variable_labels.clone(),
            help: desc.help.clone(),
        });
        self.described.borrow_mut().extend(described);
        Ok(collector)
    }

    /// Where the metrics are gathered from.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// What was registered so far.
    #[must_use]
    pub fn described(&self) -> Arc<[Described]> {
        self.described.borrow().clone().into()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{IntCounter, IntGaugeVec, Opts};

    use super::*;

    #[test]
    fn a_metric_without_a_value_is_described() {
        let catalog = Catalog::new(Some("a")).unwrap();
        let gauges = IntGaugeVec::new(Opts::new("nodes", "Nodes"), &["state"]);
        catalog.add(gauges).unwrap();
        catalog.add(IntCounter::new("n_total", "Ns")).unwrap();
        assert!(catalog.add(IntCounter::new("n_total", "Ns")).is_err());
        let described = catalog.described();
        let nodes = Described {
            name: "a_nodes".to_owned(),
            kind: "gauge".to_owned(),
            labels: vec!["state".to_owned()],
            help: "Nodes".to_owned(),
        };
        assert_eq!(described[0], nodes);
        assert_eq!(
            (described[1].name.as_str(), described.len()),
            ("a_n_total", 2)
        );
        assert_eq!(catalog.registry().gather()[0].name(), "a_n_total");
    }
}
