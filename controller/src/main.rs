//! See the library.

use std::process::ExitCode;

use clap::Parser;
use highwire_controller::{app, config::Config};
use highwire_runtime::logging;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let config = Config::parse();
    logging::start(config.log_format);
    match app::run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("highwire-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}
