//! The events of one watch on their way to the client.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::faulty_api::answer::gone_event;
use crate::faulty_api::counts::Outcome;
use crate::faulty_api::request::Asked;
use crate::faulty_api::rule::{Fault, WatchFault};
use crate::faulty_api::shared::Shared;

/// How long an event waits for one of another object to change places with.
const HELD: Duration = Duration::from_millis(150);

/// What goes to the client; an error breaks the connection off.
pub(super) type Sender = mpsc::Sender<Result<Bytes, io::Error>>;

/// What becomes of the next events.
enum Mode {
    Pass,
    Cut,
    Repeat,
    /// Events that wait, all of one object.
    Reorder(VecDeque<Bytes>),
    Garbage,
    Silent,
}

/// Passes events on, broken as the rules say, until either side ends.
pub(super) async fn relay(
    from: impl Stream<Item = Result<Bytes, io::Error>> + Unpin,
    to: Sender,
    asked: Asked,
    first: Option<WatchFault>,
    (shared, mut rules): (Shared, watch::Receiver<()>),
) {
    let mut lines = Lines::new(from);
    let mut mode = Mode::Pass;
    if let Some(fault) = first
        && let Next::Go(began) = begin(fault, &to, &asked, &shared).await
    {
        mode = began;
    } else if first.is_some() {
        return;
    }
    loop {
        let held = matches!(&mode, Mode::Reorder(held) if !held.is_empty());
        let limit = if held { HELD } else { Duration::MAX };
        tokio::select! {
            () = to.closed() => return,
            changed = rules.changed() => {
                if changed.is_err() {
                    return;
                }
                match change(&to, &asked, &shared).await {
                    None => {}
                    Some(_) if matches!(mode, Mode::Silent) => {}
                    Some(Next::Go(next)) => {
                        flush(&mut mode, &to).await;
                        mode = next;
                    }
                    Some(Next::End) => return,
                }
            }
            line = timeout(limit, lines.next()), if !matches!(mode, Mode::Silent) => match line {
                Err(_) => flush(&mut mode, &to).await,
                Ok(None) => {
                    flush(&mut mode, &to).await;
                    return;
                }
                Ok(Some(Err(error))) => {
                    to.send(Err(error)).await.ok();
                    return;
                }
                Ok(Some(Ok(line))) => if !pass(line, &mut mode, &to, &asked, &shared).await {
                    return;
                }
            }
        }
    }
}

enum Next {
    Go(Mode),
    End,
}

/// What a watch that is open has to do when the rules are others; `None` if nothing.
async fn change(to: &Sender, asked: &Asked, shared: &Shared) -> Option<Next> {
    Some(match shared.peek(asked)? {
        Fault::Delay(_) | Fault::OldList(_) => return None,
        Fault::Watch(fault) => {
            shared.apply(asked);
            begin(fault, to, asked, shared).await
        }
        Fault::NoAnswer => begin(WatchFault::Silent, to, asked, shared).await,
        // It asks again, and that request counts.
        Fault::Close | Fault::Refuse(_) | Fault::Garbage => {
            broken(to).await;
            Next::End
        }
    })
}

async fn begin(fault: WatchFault, to: &Sender, asked: &Asked, shared: &Shared) -> Next {
    let (mode, outcome) = match fault {
        WatchFault::CutMidEvent => return Next::Go(Mode::Cut),
        WatchFault::Repeat => return Next::Go(Mode::Repeat),
        WatchFault::Reorder => return Next::Go(Mode::Reorder(VecDeque::new())),
        WatchFault::Garbage => return Next::Go(Mode::Garbage),
        WatchFault::Silent => (Some(Mode::Silent), Outcome::Silenced),
        WatchFault::GoneEvent => (None, Outcome::GoneEvent),
    };
    shared.count(asked, outcome);
    if let Some(mode) = mode {
        return Next::Go(mode);
    }
    to.send(Ok(gone_event().into())).await.ok();
    Next::End
}

async fn broken(to: &Sender) {
    let error = io::Error::new(io::ErrorKind::ConnectionReset, "a rule breaks it off");
    to.send(Err(error)).await.ok();
}

/// Passes a line on. Says whether the watch goes on.
async fn pass(line: Bytes, mode: &mut Mode, to: &Sender, asked: &Asked, shared: &Shared) -> bool {
    let send = async |line: Bytes| to.send(Ok(line)).await.is_ok();
    let Some(object) = object(&line) else {
        // A bookmark says that all before it was sent.
        flush(mode, to).await;
        return send(line).await;
    };
    match mode {
        Mode::Pass => send(line).await,
        Mode::Silent => true,
        Mode::Cut => {
            shared.count(asked, Outcome::Cut);
            send(line.slice(..line.len() / 2)).await;
            broken(to).await;
            false
        }
        Mode::Repeat => {
            shared.count(asked, Outcome::Repeated);
            send(line.clone()).await && send(line).await
        }
        Mode::Garbage => {
            shared.count(asked, Outcome::Garbage);
            *mode = Mode::Pass;
            send(Bytes::from_static(b"<garbage>\n")).await && send(line).await
        }
        Mode::Reorder(held) => {
            let is_other = |held: &Bytes| self::object(held).as_deref() != Some(object.as_str());
            if held.front().is_some_and(is_other) {
                shared.count(asked, Outcome::Reordered);
                let sent = send(line).await;
                flush(mode, to).await;
                return sent;
            }
            held.push_back(line);
            true
        }
    }
}

/// Sends what waits.
async fn flush(mode: &mut Mode, to: &Sender) {
    if let Mode::Reorder(held) = mode {
        for line in held.drain(..) {
            to.send(Ok(line)).await.ok();
        }
    }
}

/// The UID of the object that an event is about; `None` of a bookmark or an error.
fn object(line: &[u8]) -> Option<String> {
    let event: Value = serde_json::from_slice(line).ok()?;
    match event["type"].as_str()? {
        "ADDED" | "MODIFIED" | "DELETED" => {
            Some(event["object"]["metadata"]["uid"].as_str()?.to_owned())
        }
        _ => None,
    }
}

/// A body as lines, each with its end.
struct Lines<S> {
    from: S,
    buffer: BytesMut,
}

impl<S: Stream<Item = Result<Bytes, io::Error>> + Unpin> Lines<S> {
    fn new(from: S) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
        }
    }

    /// The next one. Nothing is lost if the caller stops waiting.
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return Some(Ok(self.buffer.split_to(end + 1).freeze()));
            }
            match self.from.next().await? {
                Ok(bytes) => self.buffer.extend_from_slice(&bytes),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty_api::request::Verb;
    use crate::faulty_api::rule::{Requests, Rule};

    fn event(uid: &str, version: u32) -> String {
        let metadata = serde_json::json!({ "uid": uid, "resourceVersion": version.to_string() });
        let event = serde_json::json!({ "type": "MODIFIED", "object": { "metadata": metadata } });
        format!("{event}\n")
    }

    /// What comes out of a watch with these events; the last part says `broken` if it was
    /// broken off.
    async fn through(fault: WatchFault, events: &[String]) -> Vec<String> {
        let shared = Shared::default();
        let requests = Requests::of("services").only(&[Verb::Watch]);
        shared.set(vec![Rule::new(requests, Fault::Watch(fault))]);
        let asked = Asked {
            verb: Verb::Watch,
            resource: "services".into(),
            name: None,
        };
        let text = events.concat();
        // In two parts, neither of which is a line.
        let (one, two) = text.split_at(text.len() / 3);
        let parts = [one, two].map(|part| Ok(Bytes::from(part.to_owned())));
        let (to, mut received) = mpsc::channel(64);
        let from = futures::stream::iter(parts);
        let rules = shared.changes();
        relay(from, to, asked, Some(fault), (shared, rules)).await;
        let mut out = Vec::new();
        while let Some(part) = received.recv().await {
            let text = part.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
            out.push(text.unwrap_or_else(|_| "broken".into()));
        }
        out
    }

    #[tokio::test]
    async fn events_of_one_object_keep_their_order() {
        let [a1, a2, b3, b4] = [event("a", 1), event("a", 2), event("b", 3), event("b", 4)];
        let events = [a1.clone(), a2.clone(), b3.clone(), b4.clone()];
        let out = through(WatchFault::Reorder, &events).await;
        assert_eq!(out, [b3, a1, a2, b4]);
    }

    #[tokio::test]
    async fn a_watch_breaks_as_its_fault_says() {
        let events = [event("a", 1), event("b", 2)];
        let out = through(WatchFault::CutMidEvent, &events).await;
        assert_eq!(out.len(), 2);
        assert!(events[0].starts_with(&out[0]) && out[0].len() < events[0].len());
        assert_eq!(out[1], "broken");
        let [a, b] = &events;
        let out = through(WatchFault::Repeat, &events).await;
        assert_eq!(out, [a, a, b, b].map(Clone::clone));
        let out = through(WatchFault::GoneEvent, &events).await;
        assert!(out.len() == 1 && out[0].contains("410"), "{out:?}");
        let out = through(WatchFault::Garbage, &events).await;
        assert_eq!(out[1..], events);
    }
}
