//! The text of conditions and Events, made from what was decided.

use std::{collections::BTreeMap, fmt};

use highwire_api::{
    PortKey, Problem,
    names::{ENABLED_LABEL, EXCLUDE_LABEL, MAX_ADDRESSES_ANNOTATION, NODE_SELECTOR_ANNOTATION},
    node::SERVICE_PROXY_FAILING,
};

use super::{
    addresses::Limited,
    eligibility::Ineligible,
    port_conflicts::{Affected, PortConflicts},
    serving::NoAddress,
};
use crate::facts::{
    ingress::Ingress,
    node::{AgentReady, Departure, PortConflict},
};

/// The API server's limit for the `note` of an Event; conditions keep to it too.
const LONGEST: usize = 1024;

/// What a text ends with that was cut there.
const MARK: &str = "…";

/// Room for `and 123 more conflicts`.
const TAIL: usize = 32;

/// How many nodes or addresses a text names before it only counts.
const NAMED: usize = 2;

/// Between two sentences about conflicts.
const BREAK: &str = "; ";

/// Cuts a text that is too long.
#[must_use]
pub fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST - MARK.len()));
        text.push_str(MARK);
    }
    text
}

/// The first `named` of the items by name and the rest by number: `a, b and 3 more`.
fn enumerate(items: impl Iterator<Item = String>, named: usize) -> String {
    let items: Vec<String> = items.collect();
    // "and 1 more" is no shorter than the name.
    if items.len() <= named + 1 {
        return items.join(", ");
    }
    let (first, rest) = items.split_at(named);
    format!("{} and {} more", first.join(", "), rest.len())
}

/// `192.0.2.11, 192.0.2.12 and 3 more`, or `no address`.
#[must_use]
pub fn addresses(ingress: &Ingress) -> String {
    if ingress.is_empty() {
        return "no address".to_owned();
    }
    enumerate(ingress.hosts().map(ToString::to_string), NAMED)
}

/// `, 80/TCP there as port 30001`, for each port that has another number there.
#[must_use]
pub fn moved_ports(moved: &BTreeMap<PortKey, u16>) -> String {
    let each = moved.iter();
    each.map(|(port, number)| format!(", {port} there as port {number}"))
        .collect()
}

/// That not all nodes are listed. How many are ready changes too often for the status.
#[must_use]
pub fn limited(limited: Limited) -> String {
    format!(
        "advertised at {} nodes, the most that the annotation {MAX_ADDRESSES_ANNOTATION} or the \
         controller's --max-addresses allows; more are ready",
        limited.advertised
    )
}

/// What is wrong with a Service.
#[must_use]
pub fn problems(problems: &[Problem]) -> String {
    let all: Vec<String> = problems.iter().map(Problem::to_string).collect();
    shortened(all.join("; "))
}

/// Which conflict with its port, as in `80/TCP is held by Service default/traefik`.
fn conflict(conflict: &PortConflict) -> String {
    format!("{} is held by {}", conflict.port, conflict.held_by)
}

/// ` on n1, n2 and 3 more nodes`.
fn on(affected: &Affected) -> String {
    if affected.nodes == affected.named.len() {
        return format!(" on {}", affected.named.join(", "));
    }
    let named = affected.named[..NAMED].join(", ");
    format!(" on {named} and {} more nodes", affected.nodes - NAMED)
}

/// As many conflicts as there is room for.
fn with_room(conflicts: &PortConflicts) -> Vec<(&PortConflict, String)> {
    let mut length = 0;
    let sentences = conflicts
        .certain
        .iter()
        .map(|(one, affected)| (one, conflict(one) + &on(affected)));
    sentences
        .take_while(|(_, sentence)| {
            let is_first = length == 0;
            length += sentence.len() + BREAK.len();
            is_first || length + TAIL <= LONGEST
        })
        .collect()
}

/// Who has which port on which nodes. Equal conflicts give equal text, in whatever order
/// the nodes reported them.
#[must_use]
pub fn conflicts(conflicts: &PortConflicts) -> String {
    let named = with_room(conflicts);
    let sentences: Vec<&str> = named
        .iter()
        .map(|(_, sentence)| sentence.as_str())
        .collect();
    let mut text = sentences.join(BREAK);
    if named.len() < conflicts.certain.len() {
        let rest = conflicts.certain.len() - named.len();
        text.push_str(&format!("{BREAK}and {rest} more conflicts"));
    }
    shortened(text)
}

/// Those of the conflicts that the text `before` did not name; `None` if it named them all.
#[must_use]
pub fn new_conflicts(conflicts: &PortConflicts, before: &str) -> Option<String> {
    let before = format!("{BREAK}{before}");
    let is_new = |one: &PortConflict| !before.contains(&format!("{BREAK}{} on ", conflict(one)));
    let named = with_room(conflicts).into_iter();
    let new: Vec<String> = named
        .filter_map(|(one, sentence)| is_new(one).then_some(sentence))
        .collect();
    (!new.is_empty()).then(|| shortened(new.join(BREAK)))
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Departing(Departure::Deleted) => "is being deleted",
            Self::Departing(Departure::Marked) => {
                "is about to be deleted by the cluster autoscaler"
            }
            Self::Excluded => return write!(f, "has the label {EXCLUDE_LABEL}"),
            Self::NodeNotReady => "the Node is not Ready",
            Self::NoAgent | Self::NoReport => "its agent has not reported; does its Pod run?",
            Self::AgentNotReady(agent) => return agent_not_ready(f, agent),
            Self::Silent | Self::NoLease => "its agent does not renew its Lease; does its Pod run?",
            Self::NotSelected => "the node selector does not match",
            Self::NoEndpoint => "it has no ready endpoint, and externalTrafficPolicy is Local",
            Self::Refused(None) => "its agent refuses it",
            Self::Refused(Some(one)) => return f.write_str(&conflict(one)),
            Self::CatchingUp => "its agent has not caught up with the Service yet",
            Self::NoAddress => "it has no address of the type and IP family asked for",
        })
    }
}

fn agent_not_ready(f: &mut fmt::Formatter<'_>, agent: &AgentReady) -> fmt::Result {
    match agent {
        AgentReady::Ready => f.write_str("its agent is ready"),
        AgentReady::NoCondition => f.write_str("its agent has not said yet whether it is ready"),
        AgentReady::ServiceProxyFailing => write!(f, "its agent reports {SERVICE_PROXY_FAILING}"),
        AgentReady::NotReady(reason) => write!(f, "its agent reports {reason}"),
        AgentReady::Unreadable(error) => write!(f, "its LoadBalancerNode cannot be read: {error}"),
    }
}

/// How many nodes a text names with their reasons.
const EXPLAINED: usize = 3;

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNodes => write!(
                f,
                "no node is labelled {ENABLED_LABEL}=true; opt in with `kubectl label node NAME \
                 {ENABLED_LABEL}=true`"
            ),
            Self::SelectorMatchesNone { selector, opted_in } => write!(
                f,
                "the annotation {NODE_SELECTOR_ANNOTATION} \"{selector}\" matches none of \
                 {opted_in} opted-in nodes"
            ),
            Self::NoReadyNodes { nodes } => {
                let reasons = nodes
                    .iter()
                    .map(|(node, reason)| format!("{node} ({reason})"));
                let reasons = enumerate(reasons, EXPLAINED);
                write!(f, "none of {} nodes is ready: {reasons}", nodes.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

    use highwire_api::{Protocol, node::ConflictReason};

    use super::*;

    fn by(held_by: &str, port: i32) -> PortConflict {
        PortConflict {
            port: PortKey::new(Protocol::Tcp, port).unwrap(),
            held_by: held_by.into(),
            reason: ConflictReason::HeldByService,
        }
    }

    fn on_nodes(nodes: usize, all: &[PortConflict]) -> PortConflicts {
        let affected = Affected {
            named: (1..=nodes.min(3)).map(|node| format!("n{node}")).collect(),
            nodes,
        };
        let certain = all.iter().map(|one| (one.clone(), affected.clone()));
        PortConflicts {
            certain: certain.collect(),
            is_uncertain: false,
        }
    }

    #[test]
    fn the_first_nodes_are_named_and_the_rest_counted() {
        let text = |nodes| conflicts(&on_nodes(nodes, &[by("Service default/traefik", 80)]));
        assert_eq!(text(1), "80/TCP is held by Service default/traefik on n1");
        assert!(text(3).ends_with("traefik on n1, n2, n3"), "{}", text(3));
        assert!(
            text(5).ends_with("traefik on n1, n2 and 3 more nodes"),
            "{}",
            text(5)
        );
    }

    #[test]
    fn a_conflict_is_new_until_a_text_names_it_on_whatever_nodes() {
        let (a, b) = (by("Service a/b", 80), by("Service a/b", 180));
        let before = conflicts(&on_nodes(1, std::slice::from_ref(&b)));
        let now = on_nodes(5, &[a.clone(), b.clone()]);
        let new = new_conflicts(&now, &before).unwrap();
        assert!(new.starts_with("80/TCP") && !new.contains("180"), "{new}");
        assert_eq!(new_conflicts(&now, &conflicts(&on_nodes(2, &[a, b]))), None);
    }

    #[test]
    fn a_text_has_a_limit_and_says_what_it_left_out() {
        let many: Vec<PortConflict> = (1..200)
            .map(|port| by("Service default/traefik", port))
            .collect();
        let all = on_nodes(3, &many);
        let text = conflicts(&all);
        assert!(text.len() <= LONGEST, "{}", text.len());
        let left = many.len() - with_room(&all).len();
        assert!(
            text.ends_with(&format!("; and {left} more conflicts")),
            "{text}"
        );
        assert_eq!(new_conflicts(&all, &text), None);
        let long = conflicts(&on_nodes(1, &[by(&"ä".repeat(3000), 80)]));
        assert!(long.len() <= LONGEST && long.ends_with(MARK));
    }

    #[test]
    fn a_few_addresses_are_named_and_the_rest_counted() {
        let text = |count: u8| {
            let ports = Arc::new(BTreeSet::from([PortKey::new(Protocol::Tcp, 80).unwrap()]));
            let mut ingress = Ingress::default();
            for number in 0..count {
                ingress.add(IpAddr::from([192, 0, 2, number]), &ports);
            }
            addresses(&ingress)
        };
        assert_eq!(text(0), "no address");
        assert_eq!(text(3), "192.0.2.0, 192.0.2.1, 192.0.2.2");
        assert_eq!(text(5), "192.0.2.0, 192.0.2.1 and 3 more");
    }
}
