//! How a connection is turned towards its Service. It depends on where kube-proxy
//! acts, so the table has other chains beside a kube-proxy in ipvs mode, and others again
//! where none is needed.

use highwire_api::node::ProxyMode;

/// What our rules do to a connection so that kube-proxy takes it, or without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// The ClusterIP is written into the header of the packet that opens it; the
    /// nat rules of kube-proxy (iptables, nftables) make its conntrack entry.
    FirstPacket,
    /// A nat rule of ours makes the entry; ipvs, which acts at local-in and local-out
    /// and has no nat rule that ours could shut out, changes it to lead to a Pod.
    Dnat,
    /// A nat rule of ours makes the entry, and it leads to one of several targets: Pods, on a
    /// node without a kube-proxy, or nodes, on a box outside the cluster. It needs nft 1.0.6.
    Direct,
}

impl DataPath {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FirstPacket, Self::Dnat, Self::Direct];
    /// Those of a node with a kube-proxy, which may change its mode at any time.
    pub const BESIDE_PROXY: [Self; 2] = [Self::FirstPacket, Self::Dnat];

    /// The one that works beside a kube-proxy of this mode. If it is missing no Service
    /// can be reached, and only with [`Self::FirstPacket`] are clients refused at once.
    #[must_use]
    pub fn beside(proxy_mode: Option<ProxyMode>) -> Self {
        match proxy_mode {
            Some(ProxyMode::Ipvs) => Self::Dnat,
            Some(ProxyMode::Absent) => Self::Direct,
            Some(ProxyMode::Iptables | ProxyMode::Nftables | ProxyMode::Other) | None => {
                Self::FirstPacket
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ipvs_needs_a_nat_rule_of_ours() {
        let beside = |mode| DataPath::beside(Some(mode));
        assert_eq!(beside(ProxyMode::Iptables), DataPath::FirstPacket);
        assert_eq!(beside(ProxyMode::Nftables), DataPath::FirstPacket);
        assert_eq!(beside(ProxyMode::Ipvs), DataPath::Dnat);
        assert_eq!(beside(ProxyMode::Absent), DataPath::Direct);
        assert_eq!(DataPath::beside(None), DataPath::FirstPacket);
    }
}
