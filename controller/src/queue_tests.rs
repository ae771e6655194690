use std::sync::Arc;

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "ns".into(),
        name: name.into(),
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn the_first_change_is_written_at_once_and_a_burst_at_the_interval() {
    let (mut queue, start, web) = (Queue::default(), Instant::now(), key("web"));
    let mut writes = Vec::new();
    for at in 0..1000 {
        let now = start + ms(at);
        queue.touch(&web, Rank::Refresh, now);
        if queue.take(now).is_some() {
            writes.push(at);
            queue.done(&web, now);
        }
    }
    assert_eq!(writes, [20, 270, 520, 770]);
}

#[test]
fn what_happens_during_a_write_is_looked_at_after_it() {
    let (mut queue, start, web) = (Queue::default(), Instant::now(), key("web"));
    queue.touch(&web, Rank::Refresh, start);
    assert_eq!(queue.take(start + ms(20)), Some(web.clone()));
    queue.touch(&web, Rank::Refresh, start + ms(30));
    assert_eq!(queue.next(), None, "one write at a time");
    queue.done(&web, start + ms(40));
    assert_eq!(queue.next(), Some(start + ms(290)));
}

#[test]
fn who_waits_is_looked_at_sooner_when_something_happens() {
    let (mut queue, start, web) = (Queue::default(), Instant::now(), key("web"));
    queue.touch(&web, Rank::Refresh, start);
    queue.take(start + ms(20)).unwrap();
    queue.wait(&web, Some(start + ms(400)));
    assert_eq!(queue.next(), Some(start + ms(400)));
    queue.touch(&web, Rank::Refresh, start + ms(100));
    queue.touch(&web, Rank::Refresh, start + ms(110));
    assert_eq!(queue.next(), Some(start + ms(120)));
    assert_eq!(queue.due[1].len(), 1);
}

#[test]
fn failures_are_retried_ever_more_slowly_until_one_succeeds() {
    let (mut queue, mut now, web) = (Queue::default(), Instant::now(), key("web"));
    queue.touch(&web, Rank::Refresh, now);
    let mut waits = Vec::new();
    for _ in 0..8 {
        now = queue.next().unwrap();
        queue.take(now).unwrap();
        queue.failed(&web, now);
        waits.push(queue.next().unwrap() - now);
    }
    assert_eq!(waits[..4], [ms(500), ms(1000), ms(2000), ms(4000)]);
    assert_eq!(waits[7], RETRY.1);
    now = queue.next().unwrap();
    queue.take(now).unwrap();
    queue.done(&web, now);
    assert_eq!(queue.next(), None);
}

#[test]
fn a_change_that_never_comes_is_waited_for_only_so_long() {
    let (mut queue, start, web) = (Queue::default(), Instant::now(), key("web"));
    queue.touch(&web, Rank::Refresh, start);
    queue.take(start + SETTLE).unwrap();
    queue.refused(&web, start);
    assert_eq!(queue.next(), Some(start + RETRY.1));
    // It has come.
    queue.touch(&web, Rank::Refresh, start);
    assert_eq!(queue.next(), Some(start + INTERVAL));
}

#[test]
fn nothing_is_kept_of_what_is_gone() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    queue.touch(&key("queued"), Rank::Refresh, now);
    queue.forget(&key("queued"));
    queue.touch(&key("writing"), Rank::Refresh, now);
    queue.take(now + SETTLE).unwrap();
    queue.forget(&key("writing"));
    queue.done(&key("writing"), now);
    assert!(queue.due[1].is_empty() && queue.entries.is_empty());
}

/// A queue with a thousand Services to be refreshed.
fn crowded(start: Instant) -> Queue {
    let mut queue = Queue::default();
    for number in 0..1000 {
        queue.touch(&key(&format!("old-{number}")), Rank::Refresh, start);
    }
    queue
}

/// Writes what is due at each of these milliseconds since the start.
fn write_all(queue: &mut Queue, start: Instant, during: std::ops::Range<u64>) -> Vec<Arc<str>> {
    let mut written = Vec::new();
    for now in during.map(|at| start + ms(at)) {
        while let Some(key) = queue.take(now) {
            queue.write(&key, [].into_iter(), now);
            queue.done(&key, now);
            written.push(key.name);
        }
    }
    written
}

#[test]
fn fewer_nodes_get_refreshes_faster() {
    let start = Instant::now();
    for (nodes, in_a_second) in [(0, 200), (25, 200), (50, 100), (100, 50), (5000, 50)] {
        let mut queue = crowded(start);
        queue.watched_by(nodes);
        assert_eq!(write_all(&mut queue, start, 0..21).len(), 100, "the burst");
        let written = write_all(&mut queue, start, 21..1021);
        assert_eq!(written.len(), in_a_second, "{nodes} nodes");
    }
}

#[test]
fn refreshes_share_a_budget_and_first_addresses_go_before_them() {
    let start = Instant::now();
    let mut queue = crowded(start);
    let pass = |queue: &mut Queue, from, to| write_all(queue, start, from..to);
    assert_eq!(pass(&mut queue, 0, 21).len(), 100);
    assert_eq!(queue.next(), Some(start + ms(40)), "it sleeps until then");
    assert_eq!(pass(&mut queue, 21, 1021).len(), 50, "a second's worth");
    for number in 0..200 {
        let new = key(&format!("new-{number}"));
        queue.touch(&new, Rank::First, start + ms(1021));
    }
    let written = pass(&mut queue, 1021, 1061);
    assert!(written[1..201].iter().all(|name| name.starts_with("new")));
    assert_eq!(written.len(), 202);
    let rest = pass(&mut queue, 1061, 60_000);
    assert_eq!(100 + 50 + 2 + rest.len(), 1000, "none is forgotten");
}

#[test]
fn a_service_that_becomes_new_or_old_is_queued_once() {
    let (mut queue, now, web) = (Queue::default(), Instant::now(), key("web"));
    for rank in [Rank::Refresh, Rank::First, Rank::First, Rank::Refresh] {
        queue.touch(&web, rank, now);
        let queued: Vec<usize> = queue.due.iter().map(BTreeSet::len).collect();
        assert_eq!(queued[rank as usize], 1);
        assert_eq!(queued.iter().sum::<usize>(), 1);
    }
}

#[test]
fn a_part_is_due_when_it_should_have_been_another_for_its_delay() {
    let (mut queue, start, web) = (Queue::default(), Instant::now(), key("web"));
    queue.touch(&web, Rank::Refresh, start);
    let mut due = |part, differs, at| {
        let due = queue.due(&web, part, differs, ms(400), start + ms(at));
        due.map(|due| due - start)
    };
    assert_eq!(due(Part::PortsError, true, 20), Some(ms(420)));
    assert_eq!(
        due(Part::PortsError, true, 200),
        Some(ms(420)),
        "no starving"
    );
    assert_eq!(
        due(Part::Serving, true, 200),
        Some(ms(600)),
        "each for itself"
    );
    assert_eq!(due(Part::PortsError, false, 300), None);
    assert_eq!(due(Part::PortsError, true, 400), Some(ms(800)), "anew");
    queue.write(&web, [Part::Serving].into_iter(), start + ms(600));
    let at = start + ms(1000);
    assert_eq!(
        queue.due(&web, Part::PortsError, true, ms(400), at),
        Some(start + ms(800))
    );
    assert_eq!(
        queue.due(&web, Part::Serving, true, ms(400), at),
        Some(start + ms(1400))
    );
}

#[test]
fn the_depth_tells_what_is_due_from_what_waits_and_what_is_written() {
    let (mut queue, start) = (Queue::default(), Instant::now());
    let depth = |queue: &Queue, at| {
        let Depth {
            due,
            later,
            writing,
        } = queue.depth(start + ms(at));
        [due, later, writing]
    };
    for name in ["a", "b", "c"] {
        queue.touch(&key(name), Rank::First, start);
    }
    assert_eq!(depth(&queue, 0), [0, 3, 0]);
    assert_eq!(depth(&queue, 20), [3, 0, 0]);
    let first = queue.take(start + ms(20)).unwrap();
    assert_eq!(depth(&queue, 20), [2, 0, 1]);
    queue.failed(&first, start + ms(20));
    assert_eq!(depth(&queue, 20), [2, 1, 0]);
    queue.forget(&first);
    assert_eq!(depth(&queue, 20), [2, 0, 0]);
}
