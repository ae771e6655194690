//! An API server that fails one client: agents and controllers behind a broken network
//! ([`highwire_e2e::faulty_api`]). What it passes on, the real API server answers.
//!
//! On one cluster, each test with a node of its own; what concerns controllers is alone on
//! another cluster.

mod agents;
mod bed;
mod controllers;
mod partitions;
