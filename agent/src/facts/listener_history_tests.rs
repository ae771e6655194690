use super::*;

const HOLD: Duration = Duration::from_secs(60);

fn listener(protocol: Protocol, bound: &str, inode: u32) -> Listener {
    Listener {
        protocol,
        bound: bound.parse().unwrap(),
        v6_only: false,
        device: None,
        uid: 0,
        inode,
    }
}

fn tcp(bound: &str, inode: u32) -> Listener {
    listener(Protocol::Tcp, bound, inode)
}

/// The sockets that there are at each second, and which ports are held then.
fn held_at<const N: usize>(hold: Duration, scans: [(u64, &[Listener]); N]) -> [Vec<String>; N] {
    let (mut history, start) = (ListenerHistory::new(hold), Instant::now());
    scans.map(|(second, found)| {
        let now = start + Duration::from_secs(second);
        let held = history.update(found.to_vec(), &EphemeralPorts::default(), now);
        let bound = held.held.iter().map(|held| held.listener.bound);
        bound.map(|bound| bound.to_string()).collect()
    })
}

const NONE: [&str; 0] = [];
const SSH: [&str; 1] = ["0.0.0.0:22"];

#[test]
fn who_leaves_keeps_the_port_for_the_time_given() {
    let sshd = [tcp("0.0.0.0:22", 1)];
    let held = held_at(HOLD, [(0, &sshd), (4, &[]), (63, &[]), (64, &[])]);
    assert_eq!(held, [&NONE[..], &SSH, &SSH, &NONE]);
}

#[test]
fn who_comes_back_starts_anew() {
    // Another socket, the same program.
    let (first, second) = ([tcp("0.0.0.0:22", 1)], [tcp("0.0.0.0:22", 2)]);
    let scans = [
        (0, &first[..]),
        (50, &[]),
        (54, &second),
        (58, &[]),
        (117, &[]),
        (118, &[]),
    ];
    let expected = [&NONE[..], &SSH, &NONE, &SSH, &SSH, &NONE];
    assert_eq!(held_at(HOLD, scans), expected, "60 s from the second time");
}

#[test]
fn zero_keeps_nothing() {
    let sshd = [tcp("0.0.0.0:22", 1)];
    assert_eq!(held_at(Duration::ZERO, [(0, &sshd), (0, &[])]), [NONE; 2]);
}

#[test]
fn services_served_beside_a_living_listener_are_remembered() {
    let (mut history, now) = (ListenerHistory::new(HOLD), Instant::now());
    let service = |name: &str| ServiceKey {
        namespace: "ns".into(),
        name: name.into(),
    };
    let port = PortKey::new(Protocol::Tcp, 80).unwrap();
    let beside = |name| BTreeMap::from([(port, BTreeSet::from([service(name)]))]);
    let ephemeral = EphemeralPorts::default();
    let both = vec![tcp("0.0.0.0:80", 1), tcp("0.0.0.0:81", 2)];
    history.update(both, &ephemeral, now);
    history.served_beside(&beside("ingress"));
    // Its Pod is not ready for a moment.
    history.served_beside(&BTreeMap::new());
    let held = history.update(vec![], &ephemeral, now).held;
    history.served_beside(&beside("late"));
    assert_eq!(held[0].beside, BTreeSet::from([service("ingress")]));
    assert!(held[1].beside.is_empty());
    let held = history.update(vec![], &ephemeral, now).held;
    assert_eq!(held[0].beside, BTreeSet::from([service("ingress")]));
}

#[test]
fn a_clients_socket_does_not_count_but_a_server_does() {
    let client = listener(Protocol::Udp, "0.0.0.0:40001", 1);
    let servers = vec![
        listener(Protocol::Udp, "0.0.0.0:53", 2),
        listener(Protocol::Udp, "0.0.0.0:40000", 4),
        listener(Protocol::Udp, "192.0.2.11:40001", 5),
        listener(Protocol::Tcp, "0.0.0.0:40001", 3),
    ];
    let all = [vec![client.clone()], servers.clone()].concat();
    let mut history = ListenerHistory::new(HOLD);
    let (ephemeral, start) = (EphemeralPorts::parse("", "40000"), Instant::now());
    let mut counted = |listeners: Vec<Listener>, seconds| {
        history.update(listeners, &ephemeral, start + Duration::from_secs(seconds))
    };
    assert_eq!(counted(all.clone(), 0).open, servers);
    assert_eq!(counted(all.clone(), 29).open, servers, "QUIC");
    let later = Listener { inode: 9, ..client };
    let now = counted(vec![later.clone()], 31);
    assert_eq!(now.open, [], "another starts anew");
    assert_eq!(now.held.len(), 4, "and a client that is gone holds nothing");
    assert_eq!(
        counted(vec![later.clone()], 61).open,
        [later],
        "it has stayed"
    );
}
