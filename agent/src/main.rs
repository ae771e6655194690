//! The program `highwire-agent`.

use std::{env, process::ExitCode};

use highwire_agent::{
    app,
    config::{Cli, Command},
    edge, leave,
};
use highwire_runtime::{explain::explain, logging, printable::printable_lines};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Cli::parse_from(env::args_os()) {
        Ok(Cli::Run(config)) => {
            logging::start(config.log_format);
            app::run(config).await
        }
        Ok(Cli::ByHand(command)) => by_hand(command).await,
        Err(error) => error.exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = printable_lines(&format!("{error:#}"));
            eprintln!("highwire-agent: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn by_hand(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Cleanup { nft } => leave::cleanup(nft).await,
        Command::Edge(config) => {
            logging::start(config.log_format);
            edge::app::run(config).await
        }
        Command::Explain { port, output } => {
            print!("{}", explain(port, output, None).await?);
            Ok(())
        }
    }
}
