//! The status page: everything that the controller knows, for a browser. It is readable
//! without scripts; `status.js` only filters while one types and refreshes.

use askama::Template;
use axum::{
    Router,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use highwire_runtime::printable::printable;

use crate::explain::{NodeLine, NodeState, Overview, PortLine, ServiceLine, State, others};

const CSS: &str = include_str!("../../templates/status.css");
const JS: &str = include_str!("../../templates/status.js");

/// Nothing of another site is loaded, and no other site may show this one.
const CONTENT_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
                              connect-src 'self'; form-action 'self'; base-uri 'none'; \
                              frame-ancestors 'none'";

/// The page.
#[derive(Template)]
#[template(path = "status.html")]
struct Page {
    overview: Overview,
    filter: String,
    services: Vec<ServiceLine>,
    nodes: Vec<NodeLine>,
    ports: Vec<PortLine>,
}

/// The page as an answer, with the lines that `filter` is in. It is escaped as the texts of
/// others in those lines are.
#[must_use]
pub fn page(overview: Overview, filter: &str) -> Response {
    let page = Page::new(overview, &printable(filter.trim()));
    match page.render() {
        Ok(html) => with_headers(html, "text/html; charset=utf-8"),
        Err(error) => {
            let text = format!("cannot write the page: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

/// What the page loads.
pub fn assets<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let css = async || with_headers(CSS.to_owned(), "text/css; charset=utf-8");
    let js = async || with_headers(JS.to_owned(), "text/javascript; charset=utf-8");
    Router::new()
        .route("/status.css", get(css))
        .route("/status.js", get(js))
}

fn with_headers(body: String, kind: &'static str) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Page {
    fn new(overview: Overview, filter: &str) -> Self {
        let has = |text: &str| text.to_lowercase().contains(&filter.to_lowercase());
        let services = overview
            .services
            .iter()
            .filter(|line| has(&service_text(line)));
        let nodes = overview.nodes.iter().filter(|line| has(&node_text(line)));
        let ports = overview.ports.iter().filter(|line| has(&port_text(line)));
        Self {
            services: services.cloned().collect(),
            nodes: nodes.cloned().collect(),
            ports: ports.cloned().collect(),
            filter: filter.to_owned(),
            overview,
        }
    }

    fn leader(&self) -> &str {
        self.overview.leader.as_deref().unwrap_or("none")
    }

    fn others(&self) -> String {
        others(self.overview.other_nodes)
    }
}

fn service_text(line: &ServiceLine) -> String {
    let (state, why) = (line.state.as_str(), line.why.join(" "));
    let (ports, addresses) = (line.ports.join(" "), line.addresses.join(" "));
    format!("{} {state} {ports} {addresses} {why}", line.service)
}

fn node_text(line: &NodeLine) -> String {
    let (state, refused) = (line.state.as_str(), line.refused.join(" "));
    let (addresses, proxy) = (
        line.addresses.join(" "),
        line.proxy_mode.unwrap_or_default(),
    );
    format!(
        "{} {state} {addresses} {proxy} {} {refused}",
        line.node, line.why
    )
}

fn port_text(line: &PortLine) -> String {
    format!("{} {} {}", line.port, line.holders(), line.losers())
}

impl State {
    /// How grave it is, as a class of the page's style.
    fn class(self) -> &'static str {
        match self {
            Self::Served => "good",
            Self::Conflict | Self::Invalid | Self::Unsupported => "bad",
            Self::Pending => "waits",
            Self::Foreign | Self::Abandoned => "other",
        }
    }
}

impl NodeState {
    fn class(self) -> &'static str {
        match self {
            Self::Ready => "good",
            Self::Unknown => "waits",
            Self::NotReady => "bad",
        }
    }
}

#[cfg(test)]
mod tests;
