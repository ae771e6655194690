//! The program `highwire-controller`: turns what the agents report into the status
//! of Services. See `controller/README.md`.

mod absence;
mod actor;
mod app;
mod condition;
mod config;
mod conflict_news;
mod desired;
mod engine;
mod events;
mod farewell;
mod index;
mod ingress;
mod leader;
mod liveness;
mod metrics;
mod names;
mod notice_text;
mod notices;
mod overwrites;
mod refusals;
mod rendezvous;
mod schedule;
mod watches;
mod writer;

#[cfg(test)]
mod conflict_tests;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod overwrites_tests;
#[cfg(test)]
mod serving_tests;
#[cfg(test)]
mod silence_tests;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use clap::Parser;
use highwire_runtime::logging;

use config::{Args, Config};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args = Args::parse();
    logging::start(args.log_format);
    match app::run(Config::from(args)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("highwire-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}
