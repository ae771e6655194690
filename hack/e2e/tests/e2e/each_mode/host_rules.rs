//! Settings of a node that decide about packets: strict rp_filter, rules of the raw table.
//!
//! Addresses: nodes 192.0.2.11 (n1) and .12 (n2) serve; n1 has 198.18.3.1 too, on a second
//! interface, with the router at 198.18.3.254.

use std::net::SocketAddr;

use anyhow::Result;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{LONG, SHORT, Served, Undo, all_answer, answers, refuses, served};
use highwire_e2e::{ConnectError, Pod, wait_for};
use macro_rules_attribute::apply;

#[apply(cluster_test)]
async fn strict_rp_filter_drops_no_client_that_is_answered_the_same_way_back() -> Result<()> {
    let Served {
        cluster,
        scope,
        service: _,
        port,
    } = served("rpfilter").await?;
    let (n1, fabric) = (cluster.node("n1")?, cluster.netns("fabric")?);
    let uplink = format!(
        "ip link add up8 type veth peer name fabric8 netns {}\n\
         ip addr add 198.18.3.1/24 dev up8\n\
         ip link set up8 up\n\
         ethtool -K up8 tx off > /dev/null\n\
         ip route add default via 198.18.3.254 dev up8 metric 900",
        fabric.path()?.display()
    );
    let _uplink = Undo::after_shell(n1.netns(), &uplink, "ip link del up8")?;
    let router = "addr add 198.18.3.254/24 dev fabric8\nlink set fabric8 up";
    fabric.ip_batch(router)?;
    let second: SocketAddr = format!("198.18.3.1:{port}").parse()?;
    // Through the router, from where n1's answers leave by its first interface.
    answers(&cluster.outside(), second).await;

    // The stricter of `all` and the interface's own counts, and 2 is loose.
    let own = Pod::find(&cluster, scope.namespace(), "web-1")?;
    let route = n1
        .netns()
        .check(&["ip", "-o", "route", "get", &own.addresses()[0].to_string()])?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    let devices = ["all", "eth0", "up8", words.nth(1).unwrap_or_default()];
    let set = |value: u8| -> String {
        let one = |device| format!("sysctl -qw net.ipv4.conf.{device}.rp_filter={value}\n");
        devices.map(one).concat()
    };
    let _strict = Undo::after_shell(n1.netns(), &set(1), &set(2))?;
    wait_for(
        "the kernel to drop what would be answered elsewhere",
        LONG,
        || async {
            match cluster.outside().http_get(second, SHORT) {
                Err(ConnectError::Timeout) => Ok(()),
                other => Err(other),
            }
        },
    )
    .await;
    let both = ["web-1", "web-2"];
    for from in [&fabric, &own.netns(), n1.netns()] {
        all_answer(&both, || from.http_get(second, SHORT)).await;
    }
    let other = Pod::find(&cluster, scope.namespace(), "web-2")?.netns();
    for from in [&cluster.outside(), &own.netns(), &other, n1.netns()] {
        all_answer(&both, || from.http_get(n1.v4(port), SHORT)).await;
    }
    Ok(())
}

#[apply(cluster_test)]
async fn a_port_that_is_not_tracked_is_not_served() -> Result<()> {
    let Served {
        cluster,
        scope: _scope,
        service,
        port,
    } = served("notrack").await?;
    let (client, n1) = (cluster.outside(), cluster.node("n1")?);
    let node_port = service.node_port(port)?;
    answers(&client, n1.v4(port)).await;
    let rule = format!(
        "nft 'table inet untracked {{ chain prerouting {{ \
         type filter hook prerouting priority raw; tcp dport {{ {port}, {node_port} }} notrack; \
         }}; }}'"
    );
    {
        let _rule = Undo::after_shell(n1.netns(), &rule, "nft delete table inet untracked")?;
        // Neither do NodePorts work: without conntrack nothing can be rewritten.
        for port in [port, node_port] {
            refuses(&client, n1.v4(port)).await;
        }
        answers(&client, cluster.node("n2")?.v4(port)).await;
    }
    answers(&client, n1.v4(port)).await;
    Ok(())
}
