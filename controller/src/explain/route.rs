//! `/explain` and `/` of the admin port.

use std::time::Duration;

use axum::{
    Router,
    extract::{Query, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use highwire_api::ServiceKey;
use highwire_runtime::explain::Output;
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Overview, Question};
use crate::status_page;

/// How long the event loop may take to answer.
const LOOP_TIME: Duration = Duration::from_secs(5);

/// How many questions may wait.
pub const QUESTIONS: usize = 8;

/// Asks the event loop.
#[derive(Clone, Debug)]
pub struct Questions(pub mpsc::Sender<Question>);

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    output: Output,
    service: Option<String>,
}

#[derive(Deserialize)]
struct Filter {
    #[serde(default)]
    q: String,
}

/// The routes: `/explain` for the command, `/` for browsers.
pub fn routes(questions: Questions) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/explain", get(explain))
        .merge(status_page::assets())
        .with_state(questions)
}

impl Questions {
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Question,
    ) -> Result<T, Response> {
        let (sender, answer) = oneshot::channel();
        // A full queue is a loop that does not turn.
        let asked = async {
            self.0.send(question(sender)).await.ok()?;
            answer.await.ok()
        };
        let Ok(Some(answer)) = timeout(LOOP_TIME, asked).await else {
            let text = "the controller's event loop does not answer; see /healthz\n";
            return Err((StatusCode::SERVICE_UNAVAILABLE, text).into_response());
        };
        Ok(answer)
    }

    async fn overview(&self) -> Result<Overview, Response> {
        self.ask(Question::Overview).await
    }
}

async fn explain(
    Shared(questions): Shared<Questions>,
    Query(asked): Query<Asked>,
) -> Result<Response, Response> {
    let Some(name) = asked.service else {
        return Ok(asked.output.respond(&questions.overview().await?));
    };
    let key: ServiceKey = name
        .parse()
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response())?;
    let question = |sender| Question::Service(key, sender);
    match questions.ask(question).await? {
        Some(explanation) => Ok(asked.output.respond(&explanation)),
        None => {
            let text = format!(
                "Highwire serves no Service {name}: there is none, or it is not of type \
                 LoadBalancer, or spec.loadBalancerClass is of another load balancer (or is \
                 missing, and this controller runs with --default-class=false)\n"
            );
            Err((StatusCode::NOT_FOUND, text).into_response())
        }
    }
}

/// Browsers get a page, everybody else the same as text.
async fn page(
    Shared(questions): Shared<Questions>,
    Query(filter): Query<Filter>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let overview = questions.overview().await?;
    let accepted = headers.get(header::ACCEPT);
    let accepted = accepted.and_then(|accepted| accepted.to_str().ok());
    Ok(if accepted.is_some_and(|it| it.contains("text/html")) {
        status_page::page(overview, &filter.q)
    } else {
        Output::Text.respond(&overview)
    })
}
