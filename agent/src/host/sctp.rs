//! SCTP listeners of the host. The kernel's `socket` match knows no SCTP, so that a
//! listener wins is the agent's doing alone.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use highwire_api::Protocol;

use super::listeners::Listener;

/// One line per endpoint (kernel net/sctp/proc.c `sctp_eps_seq_show`). It is there once
/// the kernel has SCTP, which the first SCTP socket loads.
const ENDPOINTS: &str = "/proc/net/sctp/eps";

/// `SCTP_SS_LISTENING` (kernel include/net/sctp/constants.h).
const LISTENING: &str = "10";

/// The SCTP sockets that listen; none where the kernel has no SCTP.
#[must_use]
pub fn listeners() -> Vec<Listener> {
    parse(&fs::read_to_string(ENDPOINTS).unwrap_or_default())
}

/// Lines of `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS`, after one that says so.
fn parse(text: &str) -> Vec<Listener> {
    text.lines().skip(1).flat_map(endpoint).collect()
}

/// One per address that it is bound to.
fn endpoint(line: &str) -> Vec<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, _, _, LISTENING, _, port, uid, inode, addresses @ ..] = &fields[..] else {
        return Vec::new();
    };
    let (Ok(port), Ok(uid), Ok(inode)) = (port.parse(), uid.parse(), inode.parse()) else {
        return Vec::new();
    };
    let addresses = addresses.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
    let listener = |ip| Listener {
        protocol: Protocol::Sctp,
        bound: SocketAddr::new(ip, port),
        // It is not told; the most that can be is assumed.
        v6_only: false,
        device: None,
        uid,
        inode,
    };
    addresses.map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel's format strings make it; no kernel with SCTP was at hand.
    const TEXT: &str = "\
 ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS
00000000a1 00000000b1 2   10  29   2905      0 41234 0.0.0.0 
00000000a2 00000000b2 2   10  30   3868   1000 41235 192.0.2.11 203.0.113.5 
00000000a3 00000000b3 2   10  31   38412     0 41236 2001:0db8:0001:0000:0000:0000:0000:0011 
00000000a4 00000000b4 2   7   32   4000      0 41237 0.0.0.0 
";

    #[test]
    fn endpoints_that_listen_are_read_at_each_of_their_addresses() {
        let found = parse(TEXT);
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
        assert!(parse("").is_empty());
    }
}
