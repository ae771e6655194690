//! Rendering a [`Plan`](crate::plan::Plan) into nftables transactions.
//!
//! We own one table, `inet highwire`, and touch nothing else. Its chains and
//! rules are the same on every node with a kube-proxy of the same kind ([`chains`],
//! by [`DataPath`]); everything that changes is an element of a set or map
//! ([`elements`]). A [`Transaction`] is a value with one canonical text, which is
//! itself a valid nft script. nft gets that text; changes of elements it gets as JSON
//! ([`json`]), and the kernel tests prove that both are the same.

pub mod chains;
pub mod data_path;
mod dnat;
pub mod elements;
pub mod json;
mod structure;
pub mod transaction;

pub use data_path::DataPath;
pub use elements::{Container, Element, Elements, Mapped};
pub use structure::Structure;
pub use transaction::Transaction;

/// The name of our table, of family `inet`.
pub const TABLE: &str = "highwire";
