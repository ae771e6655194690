//! The status page with any text in every field: a browser finds the same tags with the same
//! attributes, and reads the texts as they are.

use highwire_controller::{
    explain::{NodeLine, NodeState, Overview, PortLine, ServiceLine, State},
    status_page::page,
};

use html5gum::Error;

use crate::{
    plain::{acts, assert_plain},
    surfaces::{self, Page},
};

pub(super) fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.lines().map(str::to_owned);
    let texts: [String; 4] = std::array::from_fn(|_| lines.next().unwrap_or_default());
    let plain = std::array::from_fn(|_| "x".to_owned());
    let (shown, harmless) = (html(&texts, ""), html(&plain, ""));
    assert_eq!(shown.tags, harmless.tags);
    let is_of_a_text = |error: &Error| {
        matches!(
            error,
            Error::ControlCharacterInInputStream
                | Error::NoncharacterInInputStream
                | Error::UnexpectedNullCharacter
        )
    };
    assert!(shown.errors.iter().all(is_of_a_text), "{:?}", shown.errors);
    // HTML has none of these.
    for text in texts.iter().filter(|it| !it.contains(['\r', '\0'])) {
        let is_shown = shown.texts.iter().any(|it| it.contains(text.as_str()));
        assert!(is_shown, "{text:?} is not shown");
    }

    let filter = format!("{} ", texts.concat());
    // No line has the first one's text: the same rows are left, none.
    let [hostile, harmless] = [filter.as_str(), "x"].map(|filter| {
        let mut page = surfaces::check_page(page(Overview::default(), filter));
        let shown = take_filter(&mut page);
        assert_plain("the filter", &shown);
        if !filter.contains(acts) {
            assert_eq!(shown, filter.trim());
        }
        page.tags
    });
    if !filter.trim().is_empty() {
        assert_eq!(hostile, harmless);
    }
}

/// The value of the field that holds the filter.
fn take_filter(page: &mut Page) -> String {
    let mut inputs = page.tags.iter_mut().filter(|(tag, _)| tag == "input");
    let (_, attributes) = inputs.next().expect("there is a field for the filter");
    let mut values = attributes.iter_mut().filter(|(name, _)| name == "value");
    let (_, value) = values.next().expect("it has a value");
    std::mem::take(value)
}

fn html(texts: &[String; 4], filter: &str) -> Page {
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
    surfaces::page(page(overview, filter))
}
