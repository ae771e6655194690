//! One run of a program that may misbehave: it is fed and read at the same time, and what it
//! takes of time and of memory is bounded.

use std::{
    io,
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, copy, sink},
    process::Command,
    time::timeout,
};

/// The most that a program may print: 200,000 of our elements take less.
const MOST_PRINTED: u64 = 32 << 20;
/// Of what it says of errors, no more is kept.
const MOST_SAID: u64 = 64 << 10;

/// Why there is no outcome.
#[derive(Debug, Error)]
pub(super) enum RunError {
    /// It cannot be started or spoken with.
    #[error(transparent)]
    NotRunnable(#[from] io::Error),
    /// It printed more than any program of this kind has to say.
    #[error("it printed more than {} MiB", MOST_PRINTED >> 20)]
    PrintsTooMuch,
    /// It did not end in time.
    #[error("it did not end in time")]
    TimedOut,
}

/// Runs the program with this input, and kills it if it takes longer than `limit` or prints too
/// much.
///
/// # Errors
/// If it does not come to an end by itself.
pub(super) async fn run(
    command: &mut Command,
    input: Option<Vec<u8>>,
    limit: Duration,
) -> Result<Output, RunError> {
    let mut child = command
        .stdin(if input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // It may end before it has read everything; its own message is the better one.
            let _ = stdin.write_all(&input).await;
        }
        Ok(())
    };
    let all = async {
        let ((), stdout, stderr) = tokio::try_join!(feed, printed(stdout), said(stderr))?;
        let status: ExitStatus = child.wait().await?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    };
    timeout(limit, all).await.unwrap_or(Err(RunError::TimedOut))
}

async fn printed(pipe: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, RunError> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_PRINTED + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MOST_PRINTED {
        return Err(RunError::PrintsTooMuch);
    }
    Ok(bytes)
}

/// The beginning; the rest is read and forgotten, or the program would wait for a reader.
async fn said(pipe: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, RunError> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(MOST_SAID).read_to_end(&mut bytes).await?;
        copy(&mut pipe, &mut sink()).await?;
    }
    Ok(bytes)
}
