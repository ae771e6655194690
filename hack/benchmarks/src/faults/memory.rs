//! The memory of agents and controllers over time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use highwire_e2e::Program;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::output::document::Document;
use crate::output::plot::{Axis, Plot};
use crate::output::table::{Table, number};
use crate::proc::Memory;

const PAUSE: Duration = Duration::from_secs(1);

/// Seconds since the start, and the MiB of each program then.
type Readings = Vec<(f64, Vec<f64>)>;

/// Reads it every second, until it is stopped.
pub(super) struct Watch {
    start: Instant,
    names: Vec<String>,
    readings: Arc<Mutex<Readings>>,
    marks: Mutex<Vec<(String, f64)>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(super) fn start(programs: Vec<Program>) -> Self {
        let start = Instant::now();
        let readings = Arc::new(Mutex::new(Readings::new()));
        let names = programs.iter().map(|it| it.unit().name().to_owned());
        let names = names.collect();
        let all = readings.clone();
        let task = tokio::spawn(async move {
            loop {
                let each = programs.iter().map(|program| {
                    let memory = program.unit().pid().and_then(|pid| Memory::of(pid).ok());
                    memory.map_or(f64::NAN, |memory| memory.resident)
                });
                let reading = (start.elapsed().as_secs_f64(), each.collect());
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(reading);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self {
            start,
            names,
            readings,
            marks: Mutex::default(),
            task,
        }
    }

    /// Names what has happened by now.
    pub(super) fn mark(&self, what: &str) {
        let at = self.start.elapsed().as_secs_f64();
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.push((what.to_owned(), at));
    }

    /// Stops it.
    pub(super) fn stop(self) -> Course {
        self.task.abort();
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        Course {
            names: self.names,
            readings: readings.clone(),
            marks: self
                .marks
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// What was read.
pub(super) struct Course {
    names: Vec<String>,
    readings: Readings,
    marks: Vec<(String, f64)>,
}

impl Course {
    /// A table of each program's memory at every mark and at most, and a chart.
    pub(super) fn document(&self, document: &mut Document) {
        let marks = self.marks.iter().map(|(what, _)| what.as_str());
        let headings: Vec<&str> = ["MiB resident", "at the beginning"]
            .into_iter()
            .chain(marks)
            .chain(["at most"])
            .collect();
        let mut table = Table::new(&headings);
        let mut plot = Plot::new("Resident memory", Axis::linear("s"), Axis::linear("MiB"));
        for (index, name) in self.names.iter().enumerate() {
            let points: Vec<(f64, f64)> = self
                .readings
                .iter()
                .map(|(at, all)| (*at, all[index]))
                .collect();
            let at = |when: f64| {
                points
                    .iter()
                    .rfind(|(at, _)| *at <= when)
                    .map_or(f64::NAN, |it| it.1)
            };
            let most = points.iter().map(|it| it.1).fold(0.0, f64::max);
            let at_marks = self.marks.iter().map(|(_, when)| at(*when));
            let figures = [at(1.0)].into_iter().chain(at_marks).chain([most]);
            table.row([name.clone()].into_iter().chain(figures.map(number)));
            plot.line(name, points);
        }
        document.table(table);
        document.plot("memory", plot);
    }

    /// The most of each program, and the last.
    pub(super) fn data(&self) -> Value {
        let each = self.names.iter().enumerate().map(|(index, name)| {
            let values = self.readings.iter().map(|(_, all)| all[index]);
            let last = values.clone().next_back();
            (
                name.clone(),
                json!({"most": values.fold(0.0, f64::max), "last": last}),
            )
        });
        Value::Object(each.collect())
    }
}
