//! Our table in the kernel: changed to what is wanted, repaired if another program changed
//! it, tried again if nft fails. Until a transaction succeeds, the kernel keeps the result
//! of the last one.

use std::time::{Duration, Instant};

use tracing::{Level, debug, enabled, error, info, warn};

use super::{
    DataPath, Elements, Nft, Shape, Structure, Transaction,
    drift::Drift,
    generation::Generation,
    nft::{Listed, NftError},
    notifications::TableEvent,
    presence,
};
use crate::{decide::Plan, metrics::Metrics, netlink::NetlinkError};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the kernel has, as far as we know.
#[derive(Debug)]
enum Table {
    /// Not known: it is built by the next transaction, in the table that is there if that has
    /// the right shape.
    Unknown,
    /// Another program has changed it: the next transaction replaces it.
    Changed,
    /// The chains of this path and exactly the elements of this plan.
    Holds(DataPath, Plan),
}

/// Transactions have failed, the last one too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Since when.
    pub since: Instant,
    /// Between the last one and the next try, …
    pub delay: Duration,
    /// … which is then.
    pub retry_at: Instant,
    /// Why the last one failed.
    pub message: String,
    /// Whether nft or the kernel refused what it was asked, so that asking for less may
    /// help.
    pub refused: bool,
}

/// The owner of the table.
#[derive(Debug)]
pub struct KernelTable {
    nft: Nft,
    metrics: Metrics,
    table: Table,
    /// That of a table of this path to which only we have done something.
    structure: Option<(DataPath, Structure)>,
    drift: Drift,
    failure: Option<Failure>,
}

impl KernelTable {
    /// One of which nothing is known.
    #[must_use]
    pub fn new(nft: Nft, metrics: Metrics) -> Self {
        Self {
            nft,
            metrics,
            table: Table::Unknown,
            structure: None,
            drift: Drift::default(),
            failure: None,
        }
    }

    /// Takes in one of nftables' notifications.
    pub fn notice(&mut self, event: TableEvent, now: Instant) {
        self.drift.notice(event, now);
    }

    /// When [`Self::bring_to`] has something to do even if nothing else is wanted.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match &self.failure {
            Some(failure) => Some(failure.retry_at),
            None => self.drift.check_at(),
        }
    }

    /// Whether [`Self::bring_to`] has something to do or to try though nothing else is
    /// wanted.
    #[must_use]
    pub fn needs_care(&self) -> bool {
        self.failure.is_some() || self.drift.is_due(Instant::now())
    }

    /// Whether the kernel does not hold what was wanted last.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether [`Self::bring_to`] would run nft now if it had to.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let failure = self.failure.as_ref();
        failure.is_none_or(|failure| failure.retry_at <= Instant::now())
    }

    /// Has the kernel hold the chains of this path and exactly this plan's elements. After a
    /// failure this does nothing until it is time to try again.
    ///
    /// # Errors
    /// If it does not hold them. Then it has what it had, as far as others let it.
    pub async fn bring_to(&mut self, path: DataPath, wanted: &Plan) -> Result<(), Failure> {
        if let Some(failure) = &self.failure
            && !self.is_due()
        {
            return Err(failure.clone());
        }
        self.check_if_due().await;
        match self.apply_or_build(path, wanted).await {
            Ok(()) => {
                self.failure = None;
                Ok(())
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Whether nft would build such a table. Changes nothing. `None` if nft does not say,
    /// for example because it does not end in time.
    pub async fn accepts(&self, path: DataPath, elements: Elements) -> Option<bool> {
        let transaction = Transaction::Replace(path, elements);
        match self.nft.check(&transaction).await {
            Ok(()) => Some(true),
            Err(NftError::Refused { .. }) => Some(false),
            Err(_) => None,
        }
    }

    /// Lets the next [`Self::bring_to`] try at once, because less will be wanted.
    pub fn retry_now(&mut self) {
        if let Some(failure) = &mut self.failure {
            failure.retry_at = Instant::now();
        }
    }

    fn failed(&mut self, error: &NftError) -> Failure {
        if let Table::Holds(..) = self.table {
            self.table = Table::Unknown;
        }
        let now = Instant::now();
        let (since, delay) = match &self.failure {
            Some(last) => (last.since, (last.delay * 2).min(LAST_RETRY)),
            None => (now, FIRST_RETRY),
        };
        error!(retry_in = ?delay, "{error}");
        let failure = Failure {
            since,
            delay,
            retry_at: now + delay,
            message: error.to_string(),
            refused: matches!(error, NftError::Refused { .. }),
        };
        self.failure.insert(failure).clone()
    }

    /// Reads the table if another program may have changed it.
    async fn check_if_due(&mut self) {
        if !self.drift.is_due(Instant::now()) {
            return;
        }
        let Table::Holds(path, plan) = &self.table else {
            // It is about to be built anyway.
            return;
        };
        self.drift.checked(Instant::now());
        let Some(right) = self.structure_of(*path) else {
            // There is nothing to compare it with; of the next table there may be.
            self.table = Table::Unknown;
            return;
        };
        let result = match self.nft.list().await {
            Ok(Some(Listed {
                elements: Some(found),
                structure,
            })) if found == Elements::of(plan, *path) && structure == *right => "same",
            Ok(_) => {
                self.drifted();
                "changed"
            }
            Err(error) => {
                warn!("cannot tell whether another program changed the table: {error}");
                self.drift.notice(TableEvent::Missed, Instant::now());
                // What is not there needs no reading: it is built anew, or the node says that
                // it cannot be.
                if presence::is_there().is_ok_and(|there| !there) {
                    self.drifted();
                }
                "error"
            }
        };
        self.metrics.drift_checks.with_label_values(&[result]).inc();
    }

    fn drifted(&mut self) {
        warn!("another program changed table inet highwire; repairing it");
        self.metrics.drift_repairs.inc();
        self.table = Table::Changed;
    }

    async fn apply_or_build(&mut self, path: DataPath, wanted: &Plan) -> Result<(), NftError> {
        match &self.table {
            Table::Holds(held, now) if *held == path => {
                let Some(change) = Transaction::from_plan(now, wanted, path) else {
                    return Ok(());
                };
                match self.apply(&change).await {
                    // Elements or the whole table are not as we left them.
                    Err(NftError::NotChanged { .. }) => {
                        self.table = Table::Changed;
                        self.build(path, wanted).await?;
                        self.drifted();
                    }
                    done => done?,
                }
            }
            // Where it holds another path, kube-proxy has changed its mode.
            Table::Unknown | Table::Changed | Table::Holds(..) => self.build(path, wanted).await?,
        }
        self.table = Table::Holds(path, wanted.clone());
        Ok(())
    }

    /// Builds the whole table, and learns its structure.
    async fn build(&mut self, path: DataPath, wanted: &Plan) -> Result<(), NftError> {
        // The counters may go with the table that is there.
        self.metrics.read_connections().await;
        let before = Generation::now();
        self.refill_or_replace(path, Elements::of(wanted, path))
            .await?;
        if self.structure_of(path).is_some() {
            return Ok(());
        }
        match self.learn(before).await {
            Ok(Some(structure)) => self.structure = Some((path, structure)),
            // It is built once more, soon.
            Ok(None) => self.drift.doubt(Instant::now()),
            Err(error) => warn!("cannot read the table that was just built: {error}"),
        }
        Ok(())
    }

    async fn refill_or_replace(
        &mut self,
        path: DataPath,
        elements: Elements,
    ) -> Result<(), NftError> {
        let elements = match self.can_refill(path).await {
            false => elements,
            true => match self
                .apply(&Transaction::Refill(path, elements.clone()))
                .await
            {
                // The same name may stand for something else.
                Err(error @ (NftError::Refused { .. } | NftError::Absent { .. })) => {
                    info!("the table that is there is replaced: {error}");
                    elements
                }
                done => return done,
            },
        };
        self.apply(&Transaction::Replace(path, elements)).await
    }

    /// Whether there is a table of this path that an agent has left.
    async fn can_refill(&self, path: DataPath) -> bool {
        if !matches!(self.table, Table::Unknown) {
            return false;
        }
        match self.nft.shape().await {
            Ok(found) => found == Some(Shape::of(path)),
            Err(error) => {
                warn!("cannot tell what table is there, and replace it: {error}");
                false
            }
        }
    }

    /// The structure of a table of this path, if it has been learned.
    #[must_use]
    pub fn structure_of(&self, path: DataPath) -> Option<&Structure> {
        let (of, structure) = self.structure.as_ref()?;
        (*of == path).then_some(structure)
    }

    /// The structure of the table that was built after `before`; `None` if any other program
    /// has changed nftables since. Its change may have been one of our table.
    async fn learn(
        &self,
        before: Result<Generation, NetlinkError>,
    ) -> Result<Option<Structure>, NftError> {
        let unnumbered = |source| NftError::Unnumbered { source };
        let built = before.map_err(unnumbered)?.next();
        let structure = self.nft.structure().await?;
        let now = Generation::now().map_err(unnumbered)?;
        Ok(structure.filter(|_| now == built))
    }

    async fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        let start = Instant::now();
        let result = self.nft.apply(transaction).await;
        let seconds = start.elapsed().as_secs_f64();
        let (kind, elements) = (transaction.kind(), transaction.cost());
        let bytes = result.as_ref().ok().copied();
        self.metrics.applied(kind, elements, bytes, seconds);
        result?;
        self.drift.applied(Instant::now());
        info!(
            kind = transaction.kind(),
            elements = transaction.cost(),
            milliseconds = start.elapsed().as_millis(),
            "nftables programmed"
        );
        if enabled!(Level::DEBUG) {
            for line in transaction.to_string().lines() {
                debug!("transaction: {line}");
            }
        }
        Ok(())
    }
}
