use super::*;

fn listener(protocol: Protocol, bound: &str, v6_only: bool, inode: u32) -> Listener {
    Listener {
        protocol,
        bound: bound.parse().unwrap(),
        v6_only,
        device: None,
        uid: 0,
        inode,
    }
}

#[test]
fn covers_what_it_would_answer() {
    let node4: IpAddr = "192.0.2.11".parse().unwrap();
    let node6: IpAddr = "2001:db8:1::11".parse().unwrap();
    for (bound, v6_only, four, six) in [
        ("0.0.0.0:80", false, true, false),
        ("[::]:80", false, true, true),
        ("[::]:80", true, false, true),
        ("192.0.2.11:80", false, true, false),
        ("[::ffff:192.0.2.11]:80", false, true, false),
        ("[2001:db8:1::11]:80", false, false, true),
        ("127.0.0.1:80", false, false, false),
        ("[::1]:80", false, false, false),
        ("203.0.113.1:80", false, false, false),
    ] {
        let listener = listener(Protocol::Tcp, bound, v6_only, 1);
        let covers = |ip| listener.covers(ip, &BTreeSet::new());
        assert_eq!((covers(node4), covers(node6)), (four, six), "{listener}");
    }
}

#[test]
fn one_bound_to_a_device_answers_there_only() {
    let node: IpAddr = "192.0.2.11".parse().unwrap();
    let bound = Listener {
        device: Some(3),
        ..listener(Protocol::Tcp, "0.0.0.0:80", false, 1)
    };
    assert!(!bound.covers(node, &[2].into()));
    assert!(bound.covers(node, &[3].into()));
    assert!(bound.covers(node, &[2, 3].into()), "its VRF's");
    assert!(!bound.covers(node, &BTreeSet::new()));
}

#[test]
fn clients_get_ports_of_the_range_that_are_not_reserved() {
    let ephemeral = Ephemeral::parse("32768\t60999\n", "40000,51820-51821\n");
    for (port, client) in [
        (53, false),
        (32768, true),
        (39999, true),
        (40000, false),
        (51821, false),
        (60999, true),
        (61000, false),
    ] {
        assert_eq!(ephemeral.contains(port), client, "{port}");
    }
    assert!(Ephemeral::parse("", "\n").contains(40000));
}

#[test]
fn a_clients_socket_does_not_count_but_a_server_does() {
    let client = listener(Protocol::Udp, "0.0.0.0:40001", false, 1);
    let servers = vec![
        listener(Protocol::Udp, "0.0.0.0:53", false, 2),
        listener(Protocol::Udp, "0.0.0.0:40000", false, 4),
        listener(Protocol::Udp, "192.0.2.11:40001", false, 5),
        listener(Protocol::Tcp, "0.0.0.0:40001", false, 3),
    ];
    let all = [vec![client.clone()], servers.clone()].concat();
    let mut patience = Patience::default();
    let (ephemeral, start) = (Ephemeral::parse("", "40000"), Instant::now());
    let mut counted = |listeners: Vec<Listener>, seconds| {
        patience.settle(listeners, &ephemeral, start + Duration::from_secs(seconds))
    };
    assert_eq!(counted(all.clone(), 0), servers);
    assert_eq!(counted(all.clone(), 29), servers, "QUIC");
    let later = Listener { inode: 9, ..client };
    assert_eq!(counted(vec![later.clone()], 31), [], "another starts anew");
    assert_eq!(counted(vec![later.clone()], 61), [later], "it has stayed");
}
