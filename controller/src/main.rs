//! See the library.

use std::{env, process::ExitCode};

use highwire_controller::{
    app,
    config::{Cli, Explain},
};
use highwire_runtime::{explain::explain, logging, printable::printable_lines};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let result = match Cli::parse_from(env::args_os()) {
        Ok(Cli::Run(config)) => {
            logging::start(config.log_format);
            app::run(*config).await
        }
        Ok(Cli::Explain(asked)) => print_explanation(asked).await,
        Err(error) => error.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = printable_lines(&format!("{error:#}"));
            eprintln!("highwire-controller: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn print_explanation(asked: Explain) -> anyhow::Result<()> {
    let about = asked.service.map(|name| format!("service={name}"));
    let text = explain(asked.port, asked.output, about.as_deref()).await?;
    print!("{text}");
    Ok(())
}
