//! The status page with any text in every field: the page has the same tags.

use axum::body::to_bytes;
use futures::executor::block_on;
use highwire_controller::{
    explain::{NodeLine, NodeState, Overview, PortLine, ServiceLine, State},
    status_page::page,
};

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines().map(str::to_owned);
    let texts: [String; 4] = std::array::from_fn(|_| lines.next().unwrap_or_default());
    let plain = std::array::from_fn(|_| "x".to_owned());
    assert_eq!(marks(&html(&texts, "")), marks(&html(&plain, "")));

    let filter = format!("{} ", texts.concat());
    // No line has the first one's text: the same rows are left, none.
    let [hostile, harmless] = [filter.as_str(), "x"].map(|filter| {
        let response = page(Overview::default(), filter);
        marks(&body(response))
    });
    if !filter.trim().is_empty() {
        assert_eq!(hostile, harmless);
    }
}

/// How many marks of HTML there are.
fn marks(html: &str) -> [usize; 3] {
    ['<', '>', '"'].map(|mark| html.matches(mark).count())
}

fn html(texts: &[String; 4], filter: &str) -> String {
    let [why, held_by, name, address] = texts.clone();
    let service = highwire_api::ServiceKey {
        namespace: name.as_str().into(),
        name: why.as_str().into(),
    };
    let overview = Overview {
        leader: Some(name.clone()),
        services: vec![ServiceLine {
            service: service.clone(),
            state: State::Conflict,
            ports: vec![address.clone()],
            addresses: vec![address.clone()],
            why: vec![why.clone()],
        }],
        nodes: vec![NodeLine {
            node: name,
            state: NodeState::Ready,
            why,
            proxy_mode: None,
            addresses: vec![address.clone()],
            services: 1,
            ports: 1,
            refused: vec![held_by],
        }],
        ports: vec![PortLine {
            port: address,
            held_by: vec![(service.clone(), 1)],
            refused: vec![(service, 1)],
        }],
        ..Overview::default()
    };
    body(page(overview, filter))
}

fn body(response: axum::response::Response) -> String {
    let bytes = block_on(to_bytes(response.into_body(), usize::MAX));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}
