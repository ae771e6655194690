//! Our table in the kernel.
//!
//! We own one table, `inet highwire`, and touch nothing else. Its chains and
//! rules depend on the kind of kube-proxy beside them alone ([`DataPath`]);
//! everything that changes is an element of a set or map ([`sets`]). A [`Transaction`] is
//! a value with one canonical text, which is itself a valid nft script. nft gets that
//! text ([`nft`]); changes of elements go to the kernel by netlink, and the kernel tests
//! prove that both are the same. [`kernel_table`] brings the kernel to what is decided and
//! keeps it there.

mod buckets;
pub mod connections;
pub mod counters;
mod data_path;
mod drift;
pub mod generation;
mod json;
mod kernel_change;
pub mod kernel_table;
pub mod left_out;
pub mod nft;
pub mod notifications;
mod presence;
mod rules;
mod run;
pub mod sets;
mod shape;
mod structure;
mod transaction;

pub use buckets::Bucket;
pub use data_path::DataPath;
pub use kernel_table::KernelTable;
pub use nft::Nft;
pub use sets::{Element, Elements, Set};
pub use shape::Shape;
pub use structure::Structure;
pub use transaction::Transaction;

/// The name of our table, of family `inet`.
pub const TABLE: &str = "highwire";
