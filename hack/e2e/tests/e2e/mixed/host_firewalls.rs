//! Firewalls of the host's own: Docker's and ufw's rules, which drop what is forwarded, and
//! firewalld, started and reloaded.
//!
//! On the cluster of `hosts.rs`: n3 has kube-proxy in nftables mode, n4 in iptables mode.
//! Docker's and ufw's rules are written here as they set them; firewalld is the real one
//! (see hack/firewalld), without its daemon.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use highwire_e2e::Programs as _;
use highwire_e2e::cluster_test;
use highwire_e2e::expect::{AMPLE, LONG, SHORT, Undo, all_answer, answers};
use highwire_e2e::layout::IpFamily;
use highwire_e2e::{Cluster, ConnectError, Netns, Node, Pod, Scope, Svc, checkout, wait_for};
use macro_rules_attribute::apply;

use super::hosts::{hosts, lists, on_nodes, web_pod};

/// Services of both policies on one node, and clients of all kinds.
struct Bed<'a> {
    cluster: &'a Cluster,
    node: Node,
    /// `web-1` on the node, `web-2` on n5.
    pods: [Pod; 2],
    /// Of the policies Cluster and Local.
    services: Vec<Svc>,
    cluster_port: u16,
    local_port: u16,
    /// Without endpoints.
    empty_port: u16,
    // Takes all of it away when it goes.
    _scope: Scope,
}

impl<'a> Bed<'a> {
    async fn new(cluster: &'a Cluster, node: &str) -> Result<Self> {
        let scope = Scope::new(cluster, &format!("firewall-{node}")).await?;
        let pods = [
            web_pod(&scope, "web-1", node).await?,
            web_pod(&scope, "web-2", "n5").await?,
        ];
        let node = cluster.node(node)?;
        let ports = [scope.free_port()?, scope.free_port()?, scope.free_port()?];
        let mut services = Vec::new();
        for (policy, port) in [("Cluster", ports[0]), ("Local", ports[1])] {
            let name = policy.to_lowercase();
            let service = on_nodes(&scope, &name, port, &[&node.name], policy).await?;
            lists(&service, &[&node]).await;
            services.push(service);
        }
        let empty = scope.service("empty").load_balancer().select("app", "none");
        empty.tcp(ports[2], 8080).create().await?;
        Ok(Self {
            cluster,
            node,
            pods,
            services,
            cluster_port: ports[0],
            local_port: ports[1],
            empty_port: ports[2],
            _scope: scope,
        })
    }

    fn at(&self, port: u16) -> [SocketAddr; 2] {
        [self.node.v4(port), self.node.v6(port)]
    }

    /// Everybody is answered who should be.
    async fn is_served(&self) -> Result<()> {
        let outside = self.cluster.outside();
        let inside = [
            self.pods[0].netns(),
            self.pods[1].netns(),
            self.node.netns().clone(),
            self.cluster.node("n5")?.netns().clone(),
        ];
        for to in self.at(self.cluster_port) {
            for from in inside.iter().chain([&outside]) {
                all_answer(&["web-1", "web-2"], || from.http_get(to, SHORT)).await;
            }
            all_answer(&["web-1", "web-2"], || outside.udp_ask(to, SHORT)).await;
        }
        for to in self.at(self.local_port) {
            let reply = answers(&outside, to).await;
            let own = self.cluster.outside_address(to.ip());
            ensure!(
                reply.pod == "web-1" && reply.client.ip() == own,
                "{reply:?}"
            );
            all_answer(&["web-1"], || outside.udp_ask(to, SHORT)).await;
        }
        Ok(())
    }

    /// Waits for answers: a start or reload of firewalld flushes all iptables rules, and a
    /// kube-proxy in iptables mode, which finds that out every 30 s, writes its own again.
    async fn is_served_again(&self) {
        for port in [self.cluster_port, self.local_port] {
            for to in self.at(port) {
                wait_for(&format!("an answer from {to}"), LONG * 3, || async {
                    self.cluster.outside().http_get(to, SHORT)
                })
                .await;
            }
        }
    }

    /// Where nobody lets Pods' traffic through, a Service is answered if its NodePort is.
    /// Without a kube-proxy there are no NodePorts, and clients are dropped as the host wants.
    async fn is_as_at_the_node_port(&self) -> Result<()> {
        if !self.cluster.config().proxy_modes.has_any() {
            for to in self.at(self.cluster_port) {
                let outcome = self.cluster.outside().http_get(to, SHORT);
                ensure!(outcome == Err(ConnectError::Timeout), "{to}: {outcome:?}");
            }
            return Ok(());
        }
        for (service, port) in self
            .services
            .iter()
            .zip([self.cluster_port, self.local_port])
        {
            let node_port = service.node_port(port)?;
            wait_for(service.name(), LONG, || async {
                let outcomes = [port, node_port].map(|port| {
                    let reply = self.cluster.outside().http_get(self.node.v4(port), SHORT);
                    reply.map(drop)
                });
                ensure!(outcomes[0] == outcomes[1], "{outcomes:?}");
                Ok(())
            })
            .await;
        }
        Ok(())
    }

    /// Waits until a client of the Service without endpoints gets this.
    async fn without_endpoints(&self, wanted: &ConnectError) {
        let to = self.node.v4(self.empty_port);
        wait_for(&format!("{wanted}"), LONG, || async {
            match self.cluster.outside().http_get(to, SHORT) {
                Err(error) if error == *wanted => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

/// Commands for both families; `$t` is the program.
fn both(commands: &str) -> String {
    format!("for t in iptables ip6tables; do\n{commands}\ndone")
}

/// What CNI plugins such as flannel do, since without it Docker's policy stops all Pods.
const PODS_ARE_FORWARDED: &str = "
    if [ $t = iptables ]; then pods=10.244.0.0/16; else pods=fd00:244::/32; fi
    $t -w -A FORWARD -s $pods -j ACCEPT
    $t -w -A FORWARD -d $pods -j ACCEPT";

/// As Docker 28 sets it (`ip6tables` is on by default since 27).
const DOCKER: &str = "
    $t -w -P FORWARD DROP
    for c in DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-BRIDGE DOCKER; do $t -w -N $c; done
    $t -w -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $t -w -A DOCKER-BRIDGE -o docker0 -j DOCKER
    $t -w -A DOCKER ! -i docker0 -o docker0 -j DROP
    $t -w -A DOCKER-FORWARD -j DOCKER-CT
    $t -w -A DOCKER-FORWARD -j DOCKER-BRIDGE
    $t -w -A DOCKER-FORWARD -i docker0 -j ACCEPT
    $t -w -I FORWARD -j DOCKER-FORWARD
    $t -w -I FORWARD -j DOCKER-USER";

const NO_DOCKER: &str = "
    $t -w -P FORWARD ACCEPT
    for c in DOCKER-USER DOCKER-FORWARD; do $t -w -D FORWARD -j $c; done
    for c in DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-BRIDGE DOCKER; do $t -w -F $c; done
    for c in DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-BRIDGE DOCKER; do $t -w -X $c; done";

/// As `ufw enable` sets it, with SSH, the other nodes and the Pods let in.
const UFW: &str = "
    if [ $t = iptables ]; then
      pods=10.244.0.0/16 nodes=192.0.2.0/24 icmp=icmp
    else
      pods=fd00:244::/32 nodes=2001:db8:1::/64 icmp=ipv6-icmp
    fi
    $t -w -P INPUT DROP
    $t -w -P FORWARD DROP
    for c in ufw-before-input ufw-before-forward ufw-user-input; do $t -w -N $c; done
    $t -w -A ufw-before-input -i lo -j ACCEPT
    $t -w -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $t -w -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
    $t -w -A ufw-before-input -p $icmp -j ACCEPT
    $t -w -A ufw-before-input -j ufw-user-input
    $t -w -A ufw-user-input -p tcp --dport 22 -j ACCEPT
    $t -w -A ufw-user-input -s $nodes -j ACCEPT
    $t -w -A ufw-user-input -s $pods -j ACCEPT
    $t -w -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    $t -w -A ufw-before-forward -p $icmp -j ACCEPT
    $t -w -I INPUT -j ufw-before-input
    $t -w -I FORWARD -j ufw-before-forward";

const NO_UFW: &str = "
    $t -w -P INPUT ACCEPT
    $t -w -P FORWARD ACCEPT
    $t -w -D INPUT -j ufw-before-input
    $t -w -D FORWARD -j ufw-before-forward
    for c in ufw-before-input ufw-before-forward ufw-user-input; do $t -w -F $c; done
    for c in ufw-before-input ufw-before-forward ufw-user-input; do $t -w -X $c; done";

/// firewalld's own code, in a node's namespace. Its rules stay when it ends.
struct Firewalld {
    process: Child,
    reload: ChildStdin,
    done: BufReader<ChildStdout>,
}

impl Firewalld {
    fn start(node: &Netns) -> Result<Self> {
        let fetched = Command::new(checkout().join("hack/firewalld")).output()?;
        ensure!(
            fetched.status.success(),
            "hack/firewalld: {}",
            String::from_utf8_lossy(&fetched.stderr)
        );
        let folder = String::from_utf8_lossy(&fetched.stdout).trim().to_owned();
        let pods = IpFamily::Dual.cluster_cidrs();
        let mut command = Command::new(format!("{folder}/run"));
        command
            // As K3s and others ask for: Pods are in the zone "trusted".
            .args(pods.split(','))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = node.run(|| command.spawn())?;
        let mut firewalld = Self {
            reload: process.stdin.take().context("stdin")?,
            done: BufReader::new(process.stdout.take().context("stdout")?),
            process,
        };
        firewalld.is_done()?;
        Ok(firewalld)
    }

    fn reload(&mut self) -> Result<()> {
        writeln!(self.reload)?;
        self.is_done()
    }

    fn is_done(&mut self) -> Result<()> {
        let mut line = String::new();
        while line.trim() != "done" {
            line.clear();
            ensure!(self.done.read_line(&mut line)? > 0, "firewalld has ended");
        }
        Ok(())
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// One firewall after the other; firewalld is the last, for its rules stay.
async fn is_served_behind_each(bed: &Bed<'_>) -> Result<()> {
    let (node, pods) = (bed.node.netns(), PODS_ARE_FORWARDED);
    let pods_are_not = pods.replace("-A FORWARD", "-D FORWARD");
    bed.is_served().await?;
    {
        let _docker = Undo::after_shell(node, &both(DOCKER), &both(NO_DOCKER))?;
        bed.is_as_at_the_node_port().await?;
        let _pods = Undo::after_shell(node, &both(pods), &both(&pods_are_not))?;
        bed.is_served().await.context("Docker")?;
        bed.without_endpoints(&ConnectError::Refused).await;
    }
    {
        let _ufw = Undo::after_shell(node, &both(UFW), &both(NO_UFW))?;
        let _pods = Undo::after_shell(node, &both(pods), &both(&pods_are_not))?;
        bed.is_served().await.context("ufw")?;
        // What nobody takes goes to the node, where ufw drops it.
        bed.without_endpoints(&ConnectError::Timeout).await;
    }
    let mut kept = Vec::new();
    for to in bed.at(bed.cluster_port) {
        kept.push(bed.cluster.outside().tcp_connect(to, AMPLE)?);
    }
    let agent = bed.cluster.agent(&bed.node.name)?;
    let repairs = || agent.metric("highwire_agent_drift_repairs_total");
    let before = repairs()?;
    let mut firewalld = Firewalld::start(node)?;
    bed.is_served_again().await;
    bed.is_served().await.context("firewalld")?;
    firewalld.reload()?;
    bed.is_served_again().await;
    bed.is_served().await.context("firewalld, reloaded")?;
    let prohibited = std::io::Error::from_raw_os_error(nix::libc::EHOSTUNREACH);
    bed.without_endpoints(&prohibited.into()).await;
    for stream in &mut kept {
        stream.say("after").context("an established connection")?;
    }
    ensure!(repairs()? == before, "firewalld touches our table");
    Ok(())
}

#[apply(cluster_test)]
async fn services_are_served_behind_docker_ufw_and_firewalld() -> Result<()> {
    let cluster = hosts().await?;
    is_served_behind_each(&Bed::new(&cluster, "n3").await?).await
}

#[apply(cluster_test)]
async fn services_are_served_behind_them_with_kube_proxy_in_iptables_mode() -> Result<()> {
    let cluster = hosts().await?;
    is_served_behind_each(&Bed::new(&cluster, "n4").await?).await
}
