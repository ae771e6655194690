use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// How one candidate reaches the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    /// A request arrives after the one time, its answer after the other.
    Up(Duration, Duration),
    /// Requests get no answer.
    Hangs,
    /// Requests fail.
    Fails,
    /// Requests are carried out, but their answers are lost.
    LosesAnswers,
}

const FAST: Network = Network::Up(Duration::ZERO, Duration::ZERO);

#[derive(Debug, Default)]
struct Server {
    lease: Option<Lease>,
    version: u64,
}

#[derive(Clone, Debug)]
struct Store {
    server: Arc<Mutex<Server>>,
    network: Arc<Mutex<Network>>,
}

impl Store {
    async fn request<T>(&self, handle: impl FnOnce(&mut Server) -> T) -> kube::Result<T> {
        let network = *self.network.lock().unwrap();
        let fails = || Err(kube::Error::LinesCodecMaxLineLengthExceeded);
        match network {
            Network::Hangs => std::future::pending().await,
            Network::Fails => fails(),
            Network::LosesAnswers => {
                handle(&mut self.server.lock().unwrap());
                std::future::pending().await
            }
            Network::Up(before, after) => {
                sleep(before).await;
                let answer = handle(&mut self.server.lock().unwrap());
                sleep(after).await;
                Ok(answer)
            }
        }
    }
}

impl LeaseStore for Store {
    async fn read(&self) -> kube::Result<Option<Lease>> {
        self.request(|server| server.lease.clone()).await
    }

    async fn write(&self, old: Option<&Lease>, spec: &LeaseSpec) -> kube::Result<Option<Lease>> {
        let version = |lease: Option<&Lease>| lease?.metadata.resource_version.clone();
        self.request(|server| {
            if version(old) != version(server.lease.as_ref()) {
                return None;
            }
            server.version += 1;
            let mut lease = Lease {
                spec: Some(spec.clone()),
                ..Lease::default()
            };
            lease.metadata.resource_version = Some(server.version.to_string());
            server.lease = Some(lease);
            server.lease.clone()
        })
        .await
    }
}

/// A candidate that runs.
struct Candidate {
    network: Arc<Mutex<Network>>,
    leading: watch::Receiver<bool>,
    problem: watch::Receiver<Option<String>>,
    metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Candidate {
    fn start(name: &str, server: &Arc<Mutex<Server>>, network: Network) -> Self {
        let store = Store {
            server: Arc::clone(server),
            network: Arc::new(Mutex::new(network)),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let network = Arc::clone(&store.network);
        let metrics = Metrics::new().unwrap();
        let election = Election::new(store, name.to_owned(), metrics.clone());
        let stopped = async { stopped.await.unwrap_or_default() };
        Self {
            network,
            leading: election.leading(),
            problem: election.problem(),
            metrics,
            stop: Some(stop),
            task: tokio::spawn(election.run(stopped)),
        }
    }

    fn leads(&self) -> bool {
        *self.leading.borrow()
    }

    fn set(&self, network: Network) {
        *self.network.lock().unwrap() = network;
    }

    /// Waits until it leads, or does not; how long that took.
    async fn becomes(&mut self, leads: bool) -> Duration {
        let start = Instant::now();
        self.leading.wait_for(|now| *now == leads).await.unwrap();
        start.elapsed()
    }
}

fn two() -> (Arc<Mutex<Server>>, Candidate, Candidate) {
    let server = Arc::default();
    let one = Candidate::start("c1", &server, FAST);
    let other = Candidate::start("c2", &server, FAST);
    (server, one, other)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_followed_after_its_lease_and_not_before() {
    let (_server, mut one, mut other) = two();
    one.becomes(true).await;
    sleep(61 * SECOND).await;
    assert!(one.leads() && !other.leads(), "the lead stays where it is");
    one.task.abort();
    let took = other.becomes(true).await;
    assert!(took >= LEASE_DURATION - RENEW_PERIOD, "{took:?}");
    assert!(took <= LEASE_DURATION + RETRY_PERIOD, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_whose_clock_is_an_hour_off_takes_over_after_the_lease_duration() {
    for hours in [-1, 1] {
        let server: Arc<Mutex<Server>> = Arc::default();
        let renewed = Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        server.lock().unwrap().lease = Some(Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some("dead".into()),
                lease_duration_seconds: Some(6),
                renew_time: Some(MicroTime(renewed)),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        });
        let took = Candidate::start("c1", &server, FAST).becomes(true).await;
        assert!(
            (LEASE_DURATION..=LEASE_DURATION + RETRY_PERIOD).contains(&took),
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_stops_before_another_may_start() {
    for network in [Network::Hangs, Network::Fails, Network::LosesAnswers] {
        let (_server, mut one, mut other) = two();
        one.becomes(true).await;
        sleep(10 * SECOND).await;
        one.set(network);
        let took = one.becomes(false).await;
        assert!(took <= RENEW_DEADLINE, "{network:?}: {took:?}");
        assert!(!other.leads(), "{network:?}");
        if network == Network::LosesAnswers {
            continue; // it holds the Lease without knowing
        }
        other.becomes(true).await;
        assert!(one.problem.borrow().is_some() && other.problem.borrow().is_none());
        one.set(FAST);
        sleep(10 * SECOND).await;
        assert!(!one.leads() && other.leads(), "the lead does not go back");
        assert_eq!(*one.problem.borrow(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_planned_stop_hands_over_at_once() {
    let (_server, mut one, mut other) = two();
    one.becomes(true).await;
    sleep(3 * SECOND).await;
    one.stop.take().unwrap().send(()).unwrap();
    let took = other.becomes(true).await;
    assert!(took <= RETRY_PERIOD, "{took:?}");
    assert!(!one.leads() && one.task.is_finished());
}

fn any_network() -> impl Strategy<Value = Network> {
    let time = || (0..2500_u64).prop_map(Duration::from_millis);
    prop_oneof![
        3 => (time(), time()).prop_map(|(before, after)| Network::Up(before, after)),
        3 => Just(FAST),
        1 => Just(Network::Hangs),
        1 => Just(Network::Fails),
        1 => Just(Network::LosesAnswers),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn there_are_never_two_leaders_and_in_the_end_there_is_one(
        happenings in prop::collection::vec((0..3_usize, any_network(), 0..9000_u64), 1..20)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let server = Arc::default();
            let candidates = ["c0", "c1", "c2"].map(|name| Candidate::start(name, &server, FAST));
            let leaders = || candidates.iter().filter(|candidate| candidate.leads()).count();
            let pass = async |time: u64| {
                for _ in 0..time / 10 {
                    sleep(Duration::from_millis(10)).await;
                    assert!(leaders() <= 1, "two leaders");
                }
            };
            for (candidate, network, time) in happenings {
                candidates[candidate].set(network);
                pass(time).await;
            }
            candidates.iter().for_each(|candidate| candidate.set(FAST));
            pass(20_000).await;
            assert_eq!(leaders(), 1);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_leader_is_counted_once_by_who_sees_it() {
    let (server, mut one, mut other) = two();
    one.becomes(true).await;
    sleep(20 * SECOND).await;
    let changes = |it: &Candidate| it.metrics.leader_changes.get();
    assert_eq!((changes(&one), changes(&other)), (0, 0));
    assert!(one.metrics.lease_renewed.get() > 0.0);
    assert_eq!(other.metrics.lease_renewed.get(), 0.0);

    // It gives the lead up: nobody has it for a moment.
    drop(one.stop.take());
    other.becomes(true).await;
    sleep(20 * SECOND).await;
    assert_eq!(changes(&other), 1);
    assert!(other.metrics.lease_renewed.get() > 0.0);
    let third = Candidate::start("c3", &server, FAST);
    sleep(20 * SECOND).await;
    assert_eq!(changes(&third), 0, "who comes later has seen none");
}

#[tokio::test(start_paused = true)]
async fn a_term_ends_by_the_clock_though_nobody_says_so() {
    let term = Term::default();
    assert!(!term.lasts());
    term.set(Some(Instant::now() + SECOND));
    assert!(term.clone().lasts());
    tokio::time::advance(SECOND).await;
    assert!(!term.lasts());
}
