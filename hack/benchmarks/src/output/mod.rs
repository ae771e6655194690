//! What comes out: figures, tables, plots, documents, and counts to compare.

pub(crate) mod counts;
pub(crate) mod document;
pub(crate) mod plot;
pub(crate) mod stats;
pub(crate) mod table;
