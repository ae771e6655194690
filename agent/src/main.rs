//! The program `highwire-agent`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use highwire_agent::{
    app,
    config::{Cli, Command, Config, address_policy, class_policy},
    explain::explain,
    lifecycle,
};
use highwire_runtime::{client, heartbeat::Heartbeat, logging};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli {
            command: Some(command),
            ..
        } => by_hand(command).await,
        Cli {
            run: Some(args), ..
        } => {
            logging::start(args.log_format);
            app::run(Config::from(args)).await
        }
        Cli { .. } => Cli::command()
            .error(
                clap::error::ErrorKind::MissingRequiredArgument,
                "--node-name is required",
            )
            .exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("highwire-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn by_hand(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Cleanup { nft } => lifecycle::cleanup(nft).await,
        Command::Explain {
            node,
            default_class,
            address_cidr,
            reserved_ports,
        } => {
            let (class, addresses) = (class_policy(default_class), address_policy(address_cidr));
            let client = client::client(&client::config().await?, &Heartbeat::default(), None)?;
            explain(client, &node, class, &addresses, &reserved_ports).await
        }
    }
}
