//! The one place that runs nft, and that has transactions carried out.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use highwire_runtime::printable::printable;
use thiserror::Error;
use tokio::{process::Command, task::spawn_blocking, time::timeout};

use super::{
    DataPath, Elements, Shape, Structure, TABLE, Transaction,
    generation::Generation,
    json::Listing,
    kernel_change,
    run::{RunError, run},
};
use crate::netlink::NetlinkError;

/// How long one run of nft may take (`--nft-timeout`). Replacing 10,000 elements beside a
/// large kube-proxy table takes a tenth of a second.
const LIMIT: Duration = Duration::from_secs(20);

/// Of what a program says of itself or of an error, in characters: it goes into a log line and a
/// condition.
const LONGEST_WORDS: usize = 300;

/// The oldest nft that has what our rules need (design §2.3).
const OLDEST_NFT: (u32, u32, u32) = (1, 0, 1);

/// Why nft did not do what it was asked for.
#[derive(Debug, Error)]
pub enum NftError {
    /// There is no such program.
    #[error("cannot run {program:?}: {source}; install nftables, or name the program with --nft")]
    NotRunnable {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too old, or no nft.
    #[error("{found:?} is not an nft of version 1.0.1 or later; install a newer nftables")]
    TooOld {
        /// What it says of itself.
        found: String,
    },
    /// It did not end in time and was killed.
    #[error(
        "nft {step} did not end within {} s and was killed; is the kernel still loading its \
         modules, or another program holding the nftables lock? --nft-timeout gives it longer",
        limit.as_secs_f32()
    )]
    TimedOut {
        /// What it was doing.
        step: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The process lacks the right to change nftables.
    #[error("nft {step} was not permitted: {message}; run as root with CAP_NET_ADMIN")]
    NotPermitted {
        /// What it was doing.
        step: &'static str,
        /// Its first line.
        message: String,
    },
    /// The table, or an element to be deleted, is not there.
    #[error(
        "nft {step} found something missing: {message}; did another program change table inet {TABLE}?"
    )]
    Absent {
        /// What it was doing.
        step: &'static str,
        /// Its first line.
        message: String,
    },
    /// The kernel or nft refused.
    #[error(
        "nft {step} failed ({status}): {message}; is nf_tables in this kernel (5.13 or later)?"
    )]
    Refused {
        /// What it was doing.
        step: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its first line.
        message: String,
    },
    /// Something ended it before it was done. That says nothing about what it was asked for.
    #[error(
        "nft {step} was killed ({status}) before it was done; is the agent's container or the node \
         out of memory?"
    )]
    Killed {
        /// What it was doing.
        step: &'static str,
        /// By which signal.
        status: ExitStatus,
    },
    /// It said that all went well, and nothing has changed.
    #[error("nft apply reports success and the kernel's ruleset is as before; is {program:?} nft?")]
    NothingDone {
        /// The program.
        program: PathBuf,
    },
    /// The kernel did not change the elements, for example because some to be deleted are not
    /// there.
    #[error(
        "the kernel did not change the elements: {source}; did another program change table inet {TABLE}?"
    )]
    NotChanged {
        /// Why.
        source: NetlinkError,
    },
    /// The kernel does not say how often nftables has been changed.
    #[error("cannot ask the kernel for the number of its ruleset: {source}")]
    Unnumbered {
        /// Why.
        source: NetlinkError,
    },
    /// What it printed is not understood.
    #[error("cannot read what nft {step} printed: {message}")]
    Unreadable {
        /// What it was doing.
        step: &'static str,
        /// Why.
        message: String,
    },
}

impl NftError {
    /// What a run of nft that did not succeed means, by what it wrote to standard error.
    #[must_use]
    pub fn of(step: &'static str, status: ExitStatus, said: &[u8]) -> Self {
        if status.code().is_none() {
            return Self::Killed { step, status };
        }
        let message = words(&String::from_utf8_lossy(said));
        if message.contains("Operation not permitted") {
            Self::NotPermitted { step, message }
        } else if message.contains("No such file or directory") {
            Self::Absent { step, message }
        } else {
            Self::Refused {
                step,
                status,
                message,
            }
        }
    }

    /// Whether the same may succeed a moment later: nft needed more time or memory than there was.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Killed { .. })
    }
}

/// Our table as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its elements; `None` if some are not of a kind that we write.
    pub elements: Option<Elements>,
    /// All the rest.
    pub structure: Structure,
}

impl Listed {
    /// Reads `nft --json list table inet highwire`.
    ///
    /// # Errors
    /// If it is not what nft lists.
    pub fn read(listing: &str) -> serde_json::Result<Self> {
        Ok(Self::from(serde_json::from_str::<Listing>(listing)?))
    }
}

impl From<Listing> for Listed {
    fn from(listing: Listing) -> Self {
        Self {
            elements: listing.elements(),
            structure: listing.structure(),
        }
    }
}

/// A runner of nft in this network namespace.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
    limit: Duration,
}

impl Nft {
    /// Uses this nft program; nothing is run yet.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            limit: LIMIT,
        }
    }

    /// Kills a run that takes longer than this; 20 s without it.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Checks that nft is there, new enough, permitted, and that it and this kernel
    /// take our whole rulesets of these paths, without changing anything.
    ///
    /// # Errors
    /// The first of these that is not so, with its remedy.
    pub async fn probe(&self, paths: &[DataPath]) -> Result<String, NftError> {
        let printed = self.run("--version", &["--version"], None).await?;
        let version = parse_version(&printed)
            .filter(|version| *version >= OLDEST_NFT)
            .ok_or(NftError::TooOld {
                found: words(&printed),
            })?;
        for path in paths {
            self.check(&Transaction::Replace(*path, Elements::default()))
                .await?;
        }
        Ok(format!("{}.{}.{}", version.0, version.1, version.2))
    }

    /// Carries a transaction out, all of it or nothing. Returns how many bytes nft or the
    /// kernel was given.
    ///
    /// # Errors
    /// If nft or the kernel refuses; then nothing has changed.
    pub async fn apply(&self, transaction: &Transaction) -> Result<usize, NftError> {
        if let Transaction::Change { delete, add } = transaction {
            let (delete, add) = (delete.clone(), add.clone());
            let not_changed = |source| NftError::NotChanged { source };
            // On a thread of its own: the kernel makes it wait for other programs' changes.
            let work = spawn_blocking(move || kernel_change::carry_out(&delete, &add));
            let (step, limit) = ("change", self.limit);
            let done = timeout(limit, work).await;
            let done = done.map_err(|_| NftError::TimedOut { step, limit })?;
            return done
                .unwrap_or_else(|error| Err(io::Error::other(error).into()))
                .map_err(not_changed);
        }
        let before = Generation::now();
        let bytes = self
            .run_script("apply", &["--file", "-"], transaction)
            .await?;
        if let (Ok(before), Ok(now)) = (before, Generation::now())
            && before == now
        {
            let program = self.program.clone();
            return Err(NftError::NothingDone { program });
        }
        Ok(bytes)
    }

    /// Finds out whether [`Self::apply`] would succeed, without changing anything.
    ///
    /// # Errors
    /// Those it would have.
    pub async fn check(&self, transaction: &Transaction) -> Result<(), NftError> {
        self.run_script("--check", &["--check", "--file", "-"], transaction)
            .await
            .map(drop)
    }

    async fn run_script(
        &self,
        step: &'static str,
        arguments: &[&str],
        transaction: &Transaction,
    ) -> Result<usize, NftError> {
        let text = transaction.to_string().into_bytes();
        let bytes = text.len();
        self.run(step, arguments, Some(text)).await.map(|_| bytes)
    }

    /// The elements of our table as the kernel has them; `None` if there is no
    /// table or it is not as we left it.
    ///
    /// # Errors
    /// If nft cannot be run or its output not be read.
    pub async fn elements(&self) -> Result<Option<Elements>, NftError> {
        Ok(self.list().await?.and_then(|listed| listed.elements))
    }

    /// Our table; `None` if there is none. Never anybody else's.
    ///
    /// # Errors
    /// If nft cannot be run or its output not be read.
    pub async fn list(&self) -> Result<Option<Listed>, NftError> {
        let all = ["--json", "list", "table", "inet", TABLE];
        Ok(self.listing(&all).await?.map(Listed::from))
    }

    /// What [`Self::list`] says of the structure, without reading the elements.
    ///
    /// # Errors
    /// If nft cannot be run or its output not be read.
    pub async fn structure(&self) -> Result<Option<Structure>, NftError> {
        Ok(self.tersely().await?.map(|listing| listing.structure()))
    }

    /// What our table declares; `None` if there is none.
    ///
    /// # Errors
    /// If nft cannot be run or its output not be read.
    pub async fn shape(&self) -> Result<Option<Shape>, NftError> {
        Ok(self.tersely().await?.map(|listing| listing.shape()))
    }

    /// All but the elements.
    async fn tersely(&self) -> Result<Option<Listing>, NftError> {
        self.listing(&["--json", "--terse", "list", "table", "inet", TABLE])
            .await
    }

    async fn listing(&self, arguments: &[&str]) -> Result<Option<Listing>, NftError> {
        let printed = match self.run("list", arguments, None).await {
            Err(NftError::Absent { .. }) => return Ok(None),
            other => other?,
        };
        serde_json::from_str(&printed)
            .map(Some)
            .map_err(|error| NftError::Unreadable {
                step: "list",
                message: words(&error.to_string()),
            })
    }

    async fn run(
        &self,
        step: &'static str,
        arguments: &[&str],
        input: Option<Vec<u8>>,
    ) -> Result<String, NftError> {
        let limit = self.limit;
        let output = run(Command::new(&self.program).args(arguments), input, limit)
            .await
            .map_err(|error| match error {
                RunError::NotRunnable(source) => NftError::NotRunnable {
                    program: self.program.clone(),
                    source,
                },
                RunError::TimedOut => NftError::TimedOut { step, limit },
                error @ RunError::PrintsTooMuch => NftError::Unreadable {
                    step,
                    message: words(&error.to_string()),
                },
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(NftError::of(step, output.status, &output.stderr))
    }
}

/// The first line that says something, for a log and a condition.
fn words(said: &str) -> String {
    let mut lines = said.lines().map(str::trim);
    let line = lines.find(|line| !line.is_empty());
    let short: String = line
        .unwrap_or("no message")
        .chars()
        .take(LONGEST_WORDS)
        .collect();
    printable(&short)
}

/// From `nftables v1.0.6 (Lester Gooch #5)`.
fn parse_version(printed: &str) -> Option<(u32, u32, u32)> {
    let version = printed.split_whitespace().nth(1)?.strip_prefix('v')?;
    let mut numbers = version.split('.').map(str::parse);
    let mut next = || numbers.next().unwrap_or(Ok(0)).ok();
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_nft_says_of_itself() {
        assert_eq!(
            parse_version("nftables v1.0.6 (Lester Gooch #5)\n"),
            Some((1, 0, 6))
        );
        assert_eq!(parse_version("nftables v1.1 (x)"), Some((1, 1, 0)));
        assert_eq!(parse_version("iptables v1.8.9"), Some((1, 8, 9)));
        assert_eq!(parse_version("nonsense"), None);
    }

    #[test]
    fn what_nft_says_is_escaped_and_cut() {
        use std::os::unix::process::ExitStatusExt as _;
        let said = format!("\n \u{1b}[2J\u{202e}x{}\nsecond\n", "y".repeat(100_000));
        let error = NftError::of("apply", ExitStatus::from_raw(256), said.as_bytes());
        let text = error.to_string();
        assert!(text.contains("\\u{1b}[2J\\u{202e}xyyy"), "{text}");
        assert!(text.len() < 600 && !text.contains("second"), "{text}");
    }

    #[tokio::test]
    async fn a_missing_nft_is_named_with_the_remedy() {
        let nft = Nft::new("/nowhere/nft".into());
        let error = nft.probe(&DataPath::ALL).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot run \"/nowhere/nft\""), "{error}");
        assert!(error.contains("install nftables"), "{error}");
    }
}
