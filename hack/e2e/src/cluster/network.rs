//! Addresses and routes of the namespaces, as [`crate::cluster::layout`] draws them.

use anyhow::Result;

use crate::cluster::layout::{
    BOX_ROUTER_V4, CLIENT_V4, CLIENT_V4_SECOND, CLIENT_V6, CONTROL_PLANE_V4, CONTROL_PLANE_V6,
    IpFamily, box_v4, box_v6, node_v4, node_v6, pod_v4, pod_v6,
};
use crate::lab::netns::Netns;
use crate::lab::wiring::{forward, offloads_off, plug};

/// The next hop of a Pod; nobody owns it, the node answers for it by proxy ARP.
const POD_GATEWAY_V4: &str = "169.254.1.1";
/// The next hop of a Pod, link-local on the node's end of its veth.
const POD_GATEWAY_V6: &str = "fe80::1";
/// The next hop of a box outside, link-local on the router's end of its cable.
const BOX_ROUTER_V6: &str = "fe80::1";

/// Builds the router in the middle and the outside client.
pub fn fabric_and_client(fabric: &Netns, client: &Netns) -> Result<()> {
    fabric.create()?;
    client.create()?;
    forward(fabric)?;
    // An address of its own: else a bridge takes one of its ports', and the nodes would lose
    // their router when a node is unplugged.
    fabric.ip_batch(&format!(
        "link add br0 address 02:00:00:00:00:fe type bridge mcast_snooping 0\n\
         link set br0 up\n\
         addr add 192.0.2.254/24 dev br0\n\
         addr add 2001:db8:1::fe/64 dev br0 nodad\n\
         link add client type veth peer name eth0 netns {client}\n\
         addr add 198.51.100.254/24 dev client\n\
         addr add 2001:db8:2::fe/64 dev client nodad\n\
         link set client up",
        client = client.path()?.display()
    ))?;
    client.ip_batch(&format!(
        "addr add {CLIENT_V4}/24 dev eth0\n\
         addr add {CLIENT_V4_SECOND}/24 dev eth0\n\
         addr add {CLIENT_V6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 198.51.100.254\n\
         route add default via 2001:db8:2::fe"
    ))?;
    offloads_off(fabric, "client")?;
    offloads_off(client, "eth0")
}

/// Plugs the control plane into the fabric, with routes to the nodes' Pods: theirs reach it
/// with their own addresses.
pub fn control_plane(fabric: &Netns, netns: &Netns, nodes: u8, family: IpFamily) -> Result<()> {
    netns.create()?;
    plug(fabric, netns, "cp")?;
    netns.ip_batch(&format!(
        "addr add {CONTROL_PLANE_V4}/24 dev eth0\n\
         addr add {CONTROL_PLANE_V6}/64 dev eth0 nodad\n\
         route add default via 192.0.2.254\n\
         route add default via 2001:db8:1::fe\n\
         {}",
        (1..=nodes)
            .map(|node| routes_to_pods(node, family))
            .collect::<String>()
    ))
}

/// `ip` commands for the routes to the Pods of a node.
fn routes_to_pods(node: u8, family: IpFamily) -> String {
    let mut lines = String::new();
    if family.has_v4() {
        lines += &format!("route add 10.244.{node}.0/24 via {}\n", node_v4(node));
    }
    if family.has_v6() {
        lines += &format!("route add fd00:244:{node}::/64 via {}\n", node_v6(node));
    }
    lines
}

/// Plugs node `index` of `nodes` into the fabric, with routes to the others' Pods.
pub fn node(fabric: &Netns, netns: &Netns, index: u8, nodes: u8, family: IpFamily) -> Result<()> {
    netns.create()?;
    forward(netns)?;
    plug(fabric, netns, &format!("n{index}"))?;
    // The same at each boot, as a network card's: others remember it for up to a minute.
    let mut lines = format!("link set eth0 address 02:00:00:00:00:{index:02x}\n");
    if family.has_v4() {
        lines += &format!("addr add {}/24 dev eth0\n", node_v4(index));
        lines += "route add default via 192.0.2.254\n";
    }
    if family.has_v6() {
        lines += &format!("addr add {}/64 dev eth0 nodad\n", node_v6(index));
        lines += "route add default via 2001:db8:1::fe\n";
    }
    for other in (1..=nodes).filter(|other| *other != index) {
        lines += &routes_to_pods(other, family);
    }
    netns.ip_batch(&lines)
}

/// Cables a Pod's (existing) namespace to its node: a routed veth without a bridge.
pub fn pod(node: &Netns, pod: &Netns, index: u8, slot: u8, family: IpFamily) -> Result<()> {
    let port = pod_port(slot);
    node.ip_batch(&format!(
        "link add {port} type veth peer name eth0 netns {}\n\
         link set {port} addrgenmode none",
        pod.path()?.display()
    ))?;
    let mut at_node = format!("link set {port} up\n");
    let mut at_pod = "link set eth0 up\n".to_owned();
    if family.has_v4() {
        let arp = format!("net/ipv4/conf/{port}/proxy_arp");
        let delay = format!("net/ipv4/neigh/{port}/proxy_delay");
        node.sysctl(&[(&arp, "1"), (&delay, "0")])?;
        let address = pod_v4(index, slot);
        at_node += &format!("route add {address} dev {port}\n");
        at_pod += &format!(
            "addr add {address}/32 dev eth0\n\
             route add {POD_GATEWAY_V4} dev eth0 scope link\n\
             route add default via {POD_GATEWAY_V4} dev eth0\n"
        );
    }
    if family.has_v6() {
        let address = pod_v6(index, slot);
        at_node += &format!(
            "addr add {POD_GATEWAY_V6}/64 dev {port} nodad\n\
             route add {address} dev {port}\n"
        );
        at_pod += &format!(
            "addr add {address}/128 dev eth0 nodad\n\
             route add default via {POD_GATEWAY_V6} dev eth0\n"
        );
    }
    node.ip_batch(&at_node)?;
    pod.ip_batch(&at_pod)?;
    offloads_off(node, &port)?;
    offloads_off(pod, "eth0")
}

/// Removes the node's end of a Pod's cable, at once (deleting the namespace alone
/// does it some time later, in the kernel's own time).
pub fn unplug_pod(node: &Netns, slot: u8) -> Result<()> {
    node.ip_batch(&format!("link del {}", pod_port(slot)))
}

/// Cables the (existing) namespace of a box outside the cluster to the router. Clients, nodes
/// and the control plane reach it by their default routes.
pub fn outside_box(fabric: &Netns, netns: &Netns, number: u8) -> Result<()> {
    let (port, v4, v6) = (box_port(number), box_v4(number), box_v6(number));
    fabric.ip_batch(&format!(
        "link add {port} type veth peer name eth0 netns {}\n\
         link set {port} addrgenmode none\n\
         link set {port} up\n\
         addr add {BOX_ROUTER_V4} peer {v4} dev {port}\n\
         addr add {BOX_ROUTER_V6}/64 dev {port} nodad\n\
         route add {v6} dev {port}",
        netns.path()?.display()
    ))?;
    netns.ip_batch(&format!(
        "link set eth0 up\n\
         addr add {v4} peer {BOX_ROUTER_V4} dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         route add default via {BOX_ROUTER_V4}\n\
         route add default via {BOX_ROUTER_V6} dev eth0"
    ))?;
    offloads_off(fabric, &port)?;
    offloads_off(netns, "eth0")
}

/// Removes the router's end of a box's cable, at once.
pub fn unplug_outside_box(fabric: &Netns, number: u8) -> Result<()> {
    fabric.ip_batch(&format!("link del {}", box_port(number)))
}

fn box_port(number: u8) -> String {
    format!("box{number}")
}

fn pod_port(slot: u8) -> String {
    format!("pod{slot}")
}
