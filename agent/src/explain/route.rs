//! `/explain` of the admin port.

use std::time::Duration;

use axum::{
    Router,
    extract::Query,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use highwire_runtime::explain::Output;
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{Explanation, Known, Table};
use crate::table::{Nft, nft::NftError};

/// How long the loop may take to answer. It may be in a transaction.
const LOOP_TIME: Duration = Duration::from_secs(5);
/// The table is read after the loop has said what it wants, and may have changed in between.
/// What differs is asked and read again so often …
const TRIES: usize = 3;
/// … after this.
const PAUSE: Duration = Duration::from_millis(200);

/// A question to the loop. It answers `None` until it has programmed something.
pub type Question = oneshot::Sender<Option<Known>>;

/// How many questions may wait.
pub const QUESTIONS: usize = 8;

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    output: Output,
}

/// The route. The loop gets the questions, and `nft` reads the table.
pub fn routes(questions: mpsc::Sender<Question>, nft: Nft) -> Router {
    let answer = async move |Query(asked): Query<Asked>| match explain(&questions, &nft).await {
        Ok(explanation) => asked.output.respond(&explanation),
        Err(refusal) => refusal,
    };
    Router::new().route("/explain", get(answer))
}

async fn explain(questions: &mpsc::Sender<Question>, nft: &Nft) -> Result<Explanation, Response> {
    let mut explanation = compared(questions, nft).await?;
    for _ in 1..TRIES {
        if !matches!(explanation.table, Table::Absent | Table::Differs { .. }) {
            break;
        }
        sleep(PAUSE).await;
        explanation = compared(questions, nft).await?;
    }
    Ok(explanation)
}

async fn compared(questions: &mpsc::Sender<Question>, nft: &Nft) -> Result<Explanation, Response> {
    let unavailable =
        |text: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{text}\n")).into_response();
    let (sender, answer) = oneshot::channel();
    // A full queue is a loop that does not turn.
    let answer = async {
        questions.send(sender).await.ok()?;
        answer.await.ok()
    };
    let Ok(Some(known)) = timeout(LOOP_TIME, answer).await else {
        return Err(unavailable(
            "the agent's loop does not answer: it may wait for nft; see /healthz",
        ));
    };
    let Some(Known {
        mut explanation,
        wanted,
    }) = known
    else {
        return Err(unavailable(
            "nothing is decided yet: see /readyz for what the agent waits for",
        ));
    };
    match nft.list().await {
        Ok(found) => wanted.compare(found.as_ref(), &mut explanation),
        Err(error) => explanation.table = unreadable(&error),
    }
    Ok(explanation)
}

fn unreadable(error: &NftError) -> Table {
    Table::Unreadable {
        message: error.to_string(),
    }
}
