//! What goes wrong between one of the programs and the API server, and the networks that do
//! it: each agent and controller of the soak has one of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use highwire_e2e::Cluster;
use highwire_e2e::faulty_api::{Fault, FaultyApi, Refusal, Requests, Rule, Verb, WatchFault};
use serde::{Deserialize, Serialize};

/// How late an answer is. Less than any program waits for one.
const LATE: Duration = Duration::from_secs(2);
/// How many watches are broken off, and list again, when lists become old: more than a
/// program has.
const WATCHES: u32 = 20;

/// Whose network fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum ApiClient {
    /// The agent of that node.
    Agent(u8),
    Controller(u8),
    /// Everybody's.
    All,
}

/// What goes wrong with its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ApiFault {
    /// Answers are 2 s late.
    Delay,
    /// Nothing is answered; watches fall silent, and stay so.
    NoAnswer,
    /// Connections are closed.
    Close,
    TooManyRequests,
    InternalError,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    Gone,
    /// 200, and no JSON.
    Garbage,
    CutWatches,
    RepeatEvents,
    ReorderEvents,
    /// Watches stay open and bring nothing more, also after the fault.
    SilentWatches,
    GoneEvents,
    GarbageEvents,
    /// Watches end, and lists are as they were at the last check.
    OldLists,
}

impl ApiFault {
    /// Each one.
    pub(crate) const ALL: [Self; 18] = [
        Self::Delay,
        Self::NoAnswer,
        Self::Close,
        Self::TooManyRequests,
        Self::InternalError,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Gone,
        Self::Garbage,
        Self::CutWatches,
        Self::RepeatEvents,
        Self::ReorderEvents,
        Self::SilentWatches,
        Self::GoneEvents,
        Self::GarbageEvents,
        Self::OldLists,
    ];

    /// The rules that do it to requests about `resource`; old lists are of that version.
    fn rules(self, resource: &str, version: u64) -> Vec<Rule> {
        let requests = Requests::of(resource);
        let refuse = |refusal| Fault::Refuse(refusal);
        let fault = match self {
            Self::Delay => Fault::Delay(LATE),
            Self::NoAnswer => Fault::NoAnswer,
            Self::Close => Fault::Close,
            Self::TooManyRequests => refuse(Refusal::TooManyRequests { retry_after: 1 }),
            Self::InternalError => refuse(Refusal::InternalError),
            Self::Unauthorized => refuse(Refusal::Unauthorized),
            Self::Forbidden => refuse(Refusal::Forbidden),
            Self::NotFound => refuse(Refusal::NotFound),
            Self::Conflict => refuse(Refusal::Conflict),
            Self::Gone => refuse(Refusal::Gone),
            Self::Garbage => Fault::Garbage,
            Self::CutWatches => Fault::Watch(WatchFault::CutMidEvent),
            Self::RepeatEvents => Fault::Watch(WatchFault::Repeat),
            Self::ReorderEvents => Fault::Watch(WatchFault::Reorder),
            Self::SilentWatches => Fault::Watch(WatchFault::Silent),
            Self::GoneEvents => Fault::Watch(WatchFault::GoneEvent),
            Self::GarbageEvents => Fault::Watch(WatchFault::Garbage),
            Self::OldLists => {
                let watches = requests.clone().only(&[Verb::Watch]);
                let again = Fault::Watch(WatchFault::GoneEvent);
                return vec![
                    Rule::new(watches, again).times(WATCHES),
                    Rule::new(requests, Fault::OldList(version)),
                ];
            }
        };
        vec![Rule::new(requests, fault)]
    }

    /// Whether watches stay silent when it is over, until their clients notice.
    fn silences(self) -> bool {
        matches!(self, Self::NoAnswer | Self::SilentWatches)
    }

    /// Whether all that happens is known to the program nevertheless.
    pub(crate) fn is_harmless(self) -> bool {
        matches!(self, Self::RepeatEvents | Self::ReorderEvents)
    }

    /// Whether programs may follow what is no longer so for a moment.
    pub(crate) fn misleads(self) -> bool {
        self == Self::OldLists
    }
}

/// The networks of all programs.
pub(crate) struct Networks {
    each: BTreeMap<ApiClient, FaultyApi>,
    faulty: BTreeMap<ApiClient, ApiFault>,
    silenced: BTreeSet<ApiClient>,
}

impl Networks {
    /// Networks that work, for the agents of so many nodes and two controllers.
    pub(crate) async fn new(cluster: &Cluster) -> Result<Self> {
        let agents = (1..=cluster.config().nodes).map(ApiClient::Agent);
        let mut each = BTreeMap::new();
        for client in agents.chain([1, 2].map(ApiClient::Controller)) {
            each.insert(client, FaultyApi::start(cluster).await?);
        }
        Ok(Self {
            each,
            faulty: BTreeMap::new(),
            silenced: BTreeSet::new(),
        })
    }

    /// The network of one program.
    pub(crate) fn of(&self, client: ApiClient) -> Result<&FaultyApi> {
        let found = self.each.get(&client);
        found.with_context(|| format!("there is no {client:?}"))
    }

    /// From now on this goes wrong with that program's requests, instead of what did before.
    pub(crate) fn set(&mut self, client: ApiClient, fault: ApiFault, resource: &str, version: u64) {
        let is_meant = |it: ApiClient| client == ApiClient::All || client == it;
        for (name, network) in self.each.iter().filter(|(name, _)| is_meant(**name)) {
            network.set(fault.rules(resource, version));
            self.faulty.insert(*name, fault);
            if fault.silences() {
                self.silenced.insert(*name);
            }
        }
    }

    /// That program's network works again.
    pub(crate) fn clear(&mut self, client: ApiClient) {
        let is_meant = |it: ApiClient| client == ApiClient::All || client == it;
        for (name, network) in self.each.iter().filter(|(name, _)| is_meant(**name)) {
            network.clear();
            self.faulty.remove(name);
        }
    }

    /// Those whose network fails, and how.
    pub(crate) fn faulty(&self) -> &BTreeMap<ApiClient, ApiFault> {
        &self.faulty
    }

    /// Those that may still have watches that fell silent since this was last asked.
    pub(crate) fn take_silenced(&mut self) -> BTreeSet<ApiClient> {
        std::mem::take(&mut self.silenced)
    }

    /// How often something went wrong on purpose, in all.
    pub(crate) fn faults(&self) -> u64 {
        let each = self.each.values();
        each.map(|it| it.counts().faults(&Requests::all())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{History, Operation};

    #[test]
    fn the_committed_history_has_each_fault() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/histories");
        let path = format!("{folder}/an-api-server-fails-in-every-way.json");
        let history = History::read(path.as_ref()).unwrap();
        for fault in ApiFault::ALL {
            let is_it = |it: &Operation| matches!(it, Operation::FailApi { fault: its, .. } if *its == fault);
            assert!(history.operations.iter().any(is_it), "{fault:?}");
        }
    }

    #[test]
    fn each_fault_is_one_of_the_proxy_for_the_resource() {
        for fault in ApiFault::ALL {
            let rules = fault.rules("services", 7);
            let is_about = |rule: &Rule| rule.requests.resource == "services";
            assert!(!rules.is_empty() && rules.iter().all(is_about), "{fault:?}");
        }
        // A watch has to end, or nobody lists.
        let old = ApiFault::OldLists.rules("", 7);
        assert_eq!(old[0].fault, Fault::Watch(WatchFault::GoneEvent));
        assert_eq!(old[1].fault, Fault::OldList(7));
    }
}
