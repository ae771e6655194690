//! Why nodes refuse a Service, gathered over all nodes and put in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use highwire_api::{
    PortKey, Protocol,
    node::{Conflict, ConflictReason},
};

use crate::notice_text::{LONGEST_NOTE, MARK, shortened};

/// How many nodes a sentence names before it only counts.
const NAMED: usize = 2;

/// The reason of a condition that has more than one.
pub(crate) const SEVERAL: &str = "MultiplePortConflicts";

/// What a sentence says between the port and who has it.
const HELD_BY: &str = " is held by ";

/// What a sentence says before the nodes.
const ON: &str = " on ";

/// Between two sentences.
const BREAK: &str = "; ";

/// Room for the words that count what is not named.
const TAIL: usize = 32;

/// Who has a port that a Service asks for. This is what is told once, on however
/// many nodes it is so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cause {
    /// The port.
    pub(crate) port: PortKey,
    /// Who has it, as the agents say it.
    pub(crate) held_by: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{HELD_BY}{}", self.port, self.held_by)
    }
}

/// One refusal of one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Refusal {
    /// What stands in the way.
    pub(crate) cause: Cause,
    /// Of which kind that is.
    pub(crate) reason: ConflictReason,
}

impl Refusal {
    /// Reads an entry of a LoadBalancerNode; `None` if its port is none.
    pub(crate) fn of(conflict: Conflict) -> Option<Self> {
        let port = PortKey::new(conflict.protocol, conflict.port.into())?;
        let held_by = conflict.held_by;
        Some(Self {
            cause: Cause { port, held_by },
            reason: conflict.reason,
        })
    }
}

/// All refusals of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    certain: BTreeMap<Cause, Extent>,
    doubtful: BTreeSet<Cause>,
}

/// Where a port is refused for one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    reason: ConflictReason,
    /// The first nodes by name.
    named: Vec<String>,
    nodes: usize,
}

impl Refusals {
    /// A live node that knows the Service as it is now refuses it. Nodes come in order.
    pub(crate) fn add(&mut self, node: &str, refusal: &Refusal) {
        if !self.certain.contains_key(&refusal.cause) {
            let extent = Extent {
                reason: refusal.reason,
                named: Vec::new(),
                nodes: 0,
            };
            self.certain.insert(refusal.cause.clone(), extent);
        }
        if let Some(extent) = self.certain.get_mut(&refusal.cause) {
            extent.nodes += 1;
            // "and 1 more" is no shorter than the name.
            if extent.named.len() <= NAMED {
                extent.named.push(node.to_owned());
            }
        }
    }

    /// A node refuses it that may be dead, or may not have seen the Service's last change.
    pub(crate) fn add_doubtful(&mut self, refusal: &Refusal) {
        self.doubtful.insert(refusal.cause.clone());
    }

    /// The same without the causes that do not `fit`.
    pub(crate) fn only(mut self, fit: impl Fn(&Cause) -> bool) -> Self {
        self.certain.retain(|cause, _| fit(cause));
        self
    }

    /// The causes of which some live node is sure.
    pub(crate) fn causes(&self) -> impl Iterator<Item = &Cause> {
        self.certain.keys()
    }

    /// Whether this stands in the way of some node, for all we know.
    pub(crate) fn may_contain(&self, cause: &Cause) -> bool {
        self.certain.contains_key(cause) || self.doubtful.contains(cause)
    }

    /// Whether no live node is sure to refuse the Service.
    pub(crate) fn is_empty(&self) -> bool {
        self.certain.is_empty()
    }

    /// Whether nothing more than this is suspected.
    pub(crate) fn is_certain(&self) -> bool {
        self.doubtful.is_empty()
    }

    /// The reason they have in common, one of a fixed set.
    pub(crate) fn reason(&self) -> &'static str {
        let reasons: BTreeSet<_> = self.certain.values().map(|extent| extent.reason).collect();
        match (reasons.len(), reasons.first()) {
            (1, Some(reason)) => reason.as_str(),
            _ => SEVERAL,
        }
    }

    /// Who has which port on which nodes; no longer than a note of an Event. Equal
    /// refusals give equal words, in whatever order the nodes reported them.
    pub(crate) fn message(&self) -> String {
        let mut text = String::new();
        for (told, (cause, extent)) in self.certain.iter().enumerate() {
            let sentence = format!("{cause}{extent}");
            if told > 0 && text.len() + BREAK.len() + sentence.len() + TAIL > LONGEST_NOTE {
                let untold = self.certain.len() - told;
                text.push_str(&format!("{BREAK}and {untold} more conflicts"));
                break;
            }
            if told > 0 {
                text.push_str(BREAK);
            }
            text.push_str(&sentence);
        }
        shortened(text)
    }

    /// One cause with the nodes on which it is so now.
    pub(crate) fn sentence(&self, cause: &Cause) -> String {
        self.certain
            .get(cause)
            .map_or_else(|| cause.to_string(), |extent| format!("{cause}{extent}"))
    }
}

/// ` on n1, n2 and 3 more nodes`.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == self.named.len() {
            return write!(f, "{ON}{}", self.named.join(", "));
        }
        let named = self.named[..NAMED].join(", ");
        write!(f, "{ON}{named} and {} more nodes", self.nodes - NAMED)
    }
}

/// What a message of [`Refusals::message`] told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// What it named.
    pub(crate) causes: BTreeSet<Cause>,
    /// Whether there was more than it named.
    pub(crate) and_more: bool,
}

impl Told {
    /// Whether it named the cause, or had no room to.
    pub(crate) fn covers(&self, cause: &Cause) -> bool {
        self.and_more || self.causes.contains(cause)
    }

    /// Reads a message back.
    pub(crate) fn of(message: &str) -> Self {
        Self {
            causes: message.split(BREAK).filter_map(read_sentence).collect(),
            and_more: message.ends_with(" more conflicts") || message.ends_with(MARK),
        }
    }
}

fn read_sentence(sentence: &str) -> Option<Cause> {
    let (port, rest) = sentence.split_once(HELD_BY)?;
    let (held_by, _) = rest.rsplit_once(ON)?;
    let (number, protocol) = port.split_once('/')?;
    let protocol = Protocol::from_service(Some(protocol))?;
    Some(Cause {
        port: PortKey::new(protocol, number.parse().ok()?)?,
        held_by: held_by.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(port: i32, held_by: &str, reason: ConflictReason) -> Refusal {
        Refusal {
            cause: Cause {
                port: PortKey::new(Protocol::Tcp, port).unwrap(),
                held_by: held_by.into(),
            },
            reason,
        }
    }

    fn on(nodes: usize, refusals: &[Refusal]) -> Refusals {
        let mut all = Refusals::default();
        for node in 1..=nodes {
            refusals
                .iter()
                .for_each(|refusal| all.add(&format!("n{node}"), refusal));
        }
        all
    }

    #[test]
    fn the_first_nodes_are_named_and_the_rest_counted() {
        let traefik = refusal(80, "Service default/traefik", ConflictReason::HeldByService);
        let said = |nodes| on(nodes, std::slice::from_ref(&traefik)).message();
        assert_eq!(said(1), "80/TCP is held by Service default/traefik on n1");
        assert!(said(3).ends_with("traefik on n1, n2, n3"), "{}", said(3));
        assert!(
            said(5).ends_with("traefik on n1, n2 and 3 more nodes"),
            "{}",
            said(5)
        );
    }

    #[test]
    fn reasons_are_one_of_a_fixed_set() {
        let (service, socket) = (
            refusal(80, "Service a/b", ConflictReason::HeldByService),
            refusal(443, "socket [::]:443 uid 0", ConflictReason::HostListener),
        );
        assert_eq!(
            on(2, std::slice::from_ref(&service)).reason(),
            "HeldByService"
        );
        let both = on(2, &[socket, service]);
        assert_eq!(both.reason(), SEVERAL);
        assert_eq!(
            both.message(),
            "80/TCP is held by Service a/b on n1, n2; \
             443/TCP is held by socket [::]:443 uid 0 on n1, n2"
        );
    }

    #[test]
    fn what_was_told_can_be_read_back() {
        let refusals = [
            refusal(
                80,
                "Service default/traefik externalIP 192.0.2.1",
                ConflictReason::ExternalIp,
            ),
            refusal(180, "Pod a/b hostPort", ConflictReason::HostPort),
        ];
        let all = on(9, &refusals);
        let told = Told::of(&all.message());
        assert!(told.causes.iter().eq(all.causes()) && !told.and_more);
        assert_eq!(Told::of("the cloud is full; try later"), Told::default());
    }

    #[test]
    fn a_message_has_a_limit_and_says_what_it_left_out() {
        let many: Vec<Refusal> = (1..200)
            .map(|port| refusal(port, "Service default/traefik", ConflictReason::NodePort))
            .collect();
        let message = on(3, &many).message();
        assert!(message.len() <= LONGEST_NOTE, "{}", message.len());
        let told = Told::of(&message);
        assert!(told.and_more);
        let left = many.len() - told.causes.len();
        assert!(
            message.ends_with(&format!("; and {left} more conflicts")),
            "{message}"
        );

        let long = refusal(80, &"x".repeat(3000), ConflictReason::HostPort);
        let message = on(1, &[long]).message();
        assert!(message.len() <= LONGEST_NOTE && Told::of(&message).and_more);
    }
}
