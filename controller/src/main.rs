//! See the library.

use std::process::ExitCode;

use clap::Parser;
use highwire_controller::{
    app,
    config::{Args, Config},
};
use highwire_runtime::logging;

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
