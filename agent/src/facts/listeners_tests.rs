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

/// As the kernel's format strings make it.
const TEXT: &str = "\
 ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS
00000000a1 00000000b1 2   10  29   2905      0 41234 0.0.0.0 
00000000a2 00000000b2 2   10  30   3868   1000 41235 192.0.2.11 203.0.113.5 
00000000a3 00000000b3 2   10  31   38412     0 41236 2001:0db8:0001:0000:0000:0000:0000:0011 
00000000a4 00000000b4 2   7   32   4000      0 41237 0.0.0.0 
";

#[test]
fn endpoints_that_listen_are_read_at_each_of_their_addresses() {
    let found = parse_sctp(TEXT);
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "socket 0.0.0.0:2905 uid 0",
            "socket 192.0.2.11:3868 uid 1000",
            "socket 203.0.113.5:3868 uid 1000",
            "socket [2001:db8:1::11]:38412 uid 0",
        ]
    );
    assert!(
        found
            .iter()
            .all(|listener| listener.protocol == Protocol::Sctp)
    );
    assert!(parse_sctp("").is_empty());
}
