//! What the process uses, by the names that all Prometheus clients have for it.
//!
//! The `prometheus` crate can do the same with its feature `process`, but shows CPU time in
//! whole seconds, of which an agent needs one in minutes, and adds 130 KiB to the program.

use std::{fs, io};

use prometheus::{
    Counter, Gauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// The unit of times in `/proc`, per second: `USER_HZ`, the same on all architectures that
/// Highwire is built for.
const TICKS: f64 = 100.0;

/// The metrics of this process, read when they are asked for.
#[derive(Debug)]
pub struct ProcessMetrics {
    cpu: Counter,
    memory: Gauge,
    virtual_memory: Gauge,
    open_files: Gauge,
    most_files: Gauge,
    threads: Gauge,
    start: Gauge,
}

impl ProcessMetrics {
    /// Those of the calling process.
    ///
    /// # Errors
    /// If a name is not valid, which a test rules out.
    pub fn new() -> prometheus::Result<Self> {
        Ok(Self {
            cpu: Counter::new(
                "process_cpu_seconds_total",
                "CPU time of the process in user and kernel mode",
            )?,
            memory: Gauge::new("process_resident_memory_bytes", "Resident memory")?,
            virtual_memory: Gauge::new("process_virtual_memory_bytes", "Virtual memory")?,
            open_files: Gauge::new("process_open_fds", "Open file descriptors")?,
            most_files: Gauge::new(
                "process_max_fds",
                "How many file descriptors may be open; 0 if any number",
            )?,
            threads: Gauge::new("process_threads", "Threads")?,
            start: Gauge::new(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970",
            )?,
        })
    }

    fn families(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu,
            &self.memory,
            &self.virtual_memory,
            &self.open_files,
            &self.most_files,
            &self.threads,
            &self.start,
        ]
    }

    /// What cannot be read stays as it was.
    fn read(&self) -> io::Result<()> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let boot = boot_time(&fs::read_to_string("/proc/stat")?);
        if let (Some(used), Some(boot)) = (Used::parse(&stat), boot) {
            // Two may read at the same time.
            let more = used.cpu - self.cpu.get();
            self.cpu.inc_by(more.max(0.0));
            self.threads.set(used.threads);
            self.virtual_memory.set(used.virtual_memory);
            self.start.set(boot + used.start);
        }
        let status = fs::read_to_string("/proc/self/status")?;
        if let Some(kibibytes) = number_after(&status, "VmRSS:") {
            self.memory.set(kibibytes * 1024.0);
        }
        let limits = fs::read_to_string("/proc/self/limits")?;
        let most = number_after(&limits, "Max open files");
        self.most_files.set(most.unwrap_or_default());
        // One of them is that of reading the folder.
        let open = fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
        self.open_files
            .set(u32::try_from(open).unwrap_or(u32::MAX).into());
        Ok(())
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let families = self.families().into_iter();
        families.flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Without /proc there is nothing to show.
        if self.read().is_err() {
            return Vec::new();
        }
        let families = self.families().into_iter();
        families.flat_map(Collector::collect).collect()
    }
}

/// What `/proc/<pid>/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Used {
    /// In seconds.
    cpu: f64,
    threads: f64,
    /// In seconds after the machine's start.
    start: f64,
    virtual_memory: f64,
}

impl Used {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu: (field(14)? + field(15)?) / TICKS,
            threads: field(20)?,
            start: field(22)? / TICKS,
            virtual_memory: field(23)?,
        })
    }
}

/// When the machine started, by `/proc/stat`.
fn boot_time(stat: &str) -> Option<f64> {
    number_after(stat, "btime")
}

/// The number that follows these words at the start of a line.
fn number_after(text: &str, words: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(words))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_hides_nothing() {
        let stat = "7 (a) R 1) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 4 0 12345 99 88 77";
        let used = Used {
            cpu: 3.0,
            threads: 4.0,
            start: 123.45,
            virtual_memory: 99.0,
        };
        assert_eq!(Used::parse(stat), Some(used));
        assert_eq!(Used::parse("7 (short) S 1"), None);
    }

    #[test]
    fn numbers_are_found_by_the_words_before_them() {
        let limits = "Limit  Soft Limit\nMax open files            1024                 4096\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024.0));
        let unlimited = "Max open files            unlimited";
        assert_eq!(number_after(unlimited, "Max open files"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
    }

    #[test]
    fn this_process_has_all_of_them() {
        let registry = Registry::new();
        let metrics = ProcessMetrics::new().unwrap();
        registry.register(Box::new(metrics)).unwrap();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/proc").unwrap()).collect();
        let all = registry.gather();
        let value = |name: &str| {
            let family = all.iter().find(|family| family.name() == name).unwrap();
            let metric = &family.get_metric()[0];
            metric.get_gauge().get_value() + metric.get_counter().get_value()
        };
        assert_eq!(all.len(), 7);
        assert!(value("process_open_fds") > files.len() as f64);
        assert!(value("process_max_fds") > files.len() as f64);
        assert!(value("process_threads") >= 1.0);
        let memory = value("process_resident_memory_bytes");
        assert!(memory > 1e5, "{memory}");
        assert!(value("process_virtual_memory_bytes") > memory);
        // It started after 2020, and this machine before it.
        let start = value("process_start_time_seconds");
        let boot = boot_time(&fs::read_to_string("/proc/stat").unwrap()).unwrap();
        assert!(start > 1.58e9 && start >= boot, "{start} {boot}");
    }

    #[test]
    fn cpu_time_grows_with_what_is_used() {
        let metrics = ProcessMetrics::new().unwrap();
        metrics.read().unwrap();
        let before = metrics.cpu.get();
        while metrics.cpu.get() <= before {
            metrics.read().unwrap();
        }
    }
}
