//! Signals: the first one stops the program in order, the second one at once.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

/// Listens for SIGTERM and SIGINT. The receiver turns true at the first one;
/// the second ends the process with exit code 130.
///
/// # Errors
/// If the process may not install signal handlers.
pub fn listen() -> std::io::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        for asked in 1.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked == 1 {
                info!("stopping; a second signal ends the process at once");
                sender.send_replace(true);
            } else {
                warn!("second signal: ending the process at once");
                std::process::exit(130);
            }
        }
    });
    Ok(receiver)
}

/// Waits until the first signal has come.
pub async fn asked_to_stop(mut signals: watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = signals.wait_for(|asked| *asked).await;
}
