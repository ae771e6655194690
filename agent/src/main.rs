//! The program `highwire-agent`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use highwire_agent::{
    app,
    config::{Cli, Command, Config, Policy, class_policy},
    leave,
    report::explain::explain,
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
        Command::Cleanup { nft } => leave::cleanup(nft).await,
        Command::Explain {
            node,
            default_class,
            address_cidr,
            reserved_ports,
        } => {
            let policy = Policy::new(address_cidr, reserved_ports);
            let client = client::client(&client::config().await?, &Heartbeat::default(), None)?;
            explain(client, &node, class_policy(default_class), &policy).await
        }
    }
}
