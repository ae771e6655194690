//! Requests that an overloaded API server sends away are sent again, but only twice: a
//! watch that is never answered has to fail, or `/readyz` would not say so.

use std::time::Duration;

use hyper::{HeaderMap, Response, StatusCode, header::RETRY_AFTER};
use kube::client::{Body, retry::RetryPolicy};
use tokio::time::{Sleep, sleep};
use tower::{BoxError, retry::Policy};

/// How often a request is sent again.
const TIMES: u32 = 2;
/// The pause, if the API server asks for none …
const PAUSE: Duration = Duration::from_millis(200);
/// … and the longest that it may ask for. kube's own policy waits as long as any answer
/// says, and 15 times, without a word: an hour of a load balancer's maintenance page would
/// be many hours.
const LONGEST: Duration = Duration::from_secs(4);

/// Twice more, after the pause that the answer asks for.
#[derive(Clone)]
pub(crate) struct Twice {
    left: u32,
    /// Knows how to copy a request.
    copies: RetryPolicy,
}

impl Default for Twice {
    fn default() -> Self {
        Self {
            left: TIMES,
            copies: RetryPolicy::server_retry(),
        }
    }
}

type Request = hyper::Request<Body>;

impl<B> Policy<Request, Response<B>, BoxError> for Twice {
    type Future = Sleep;

    fn retry(
        &mut self,
        _: &mut Request,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Sleep> {
        let answer = result.as_ref().ok()?;
        let busy = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        if !busy.contains(&answer.status()) {
            return None;
        }
        self.left = self.left.checked_sub(1)?;
        Some(sleep(pause(answer.headers())))
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Policy::<Request, Response<B>, BoxError>::clone_request(&mut self.copies, request)
    }
}

/// How long to wait before a request is sent again.
fn pause(headers: &HeaderMap) -> Duration {
    let asked = headers.get(RETRY_AFTER).and_then(|it| it.to_str().ok());
    let seconds = asked.and_then(|text| text.parse().ok());
    seconds.map_or(PAUSE, |it| Duration::from_secs(it).clamp(PAUSE, LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn answer(code: u16, retry_after: Option<&str>) -> Result<Response<()>, BoxError> {
        let mut answer = Response::builder().status(code);
        if let Some(value) = retry_after {
            answer = answer.header(RETRY_AFTER, value);
        }
        Ok(answer.body(())?)
    }

    /// The pauses, in milliseconds, before a request is sent again that is always answered
    /// like this.
    fn pauses(code: u16, retry_after: Option<&str>) -> Vec<u128> {
        let (mut policy, mut request) = (Twice::default(), Request::new(Body::empty()));
        let now = Instant::now();
        let mut again = || policy.retry(&mut request, &mut answer(code, retry_after));
        std::iter::from_fn(|| Some((again()?.deadline() - now).as_millis())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_sent_again_twice_and_never_waits_for_long() {
        assert_eq!(pauses(429, Some("1")), [1000, 1000]);
        assert_eq!(pauses(429, None), [200, 200]);
        assert_eq!(pauses(503, Some("3600")), [4000, 4000]);
        assert_eq!(
            pauses(504, Some("Wed, 21 Oct 2026 07:28:00 GMT")),
            [200, 200]
        );
        assert!(pauses(500, None).is_empty());
        assert!(pauses(200, Some("1")).is_empty());
    }
}
