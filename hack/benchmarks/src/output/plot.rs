//! Line charts as SVG.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::output::table::number;

const SIZE: (u32, u32) = (800, 440);
/// Distinguishable without red and green; after eight series they repeat.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(80, 80, 80),
    RGBColor(240, 228, 66),
];

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// From 0 on.
    Linear,
    /// By powers of ten; values must be above 0.
    Logarithmic,
}

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    title: String,
    scale: Scale,
}

impl Axis {
    /// An axis from 0 on.
    pub(crate) fn linear(title: &str) -> Self {
        let (title, scale) = (title.to_owned(), Scale::Linear);
        Self { title, scale }
    }

    /// An axis by powers of ten.
    pub(crate) fn logarithmic(title: &str) -> Self {
        let (title, scale) = (title.to_owned(), Scale::Logarithmic);
        Self { title, scale }
    }
}

/// A line with its points.
#[derive(Clone, Debug)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// A chart of lines.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

impl Plot {
    /// A chart without lines.
    pub(crate) fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self {
            title: title.to_owned(),
            x,
            y,
            series: Vec::new(),
        }
    }

    /// Adds a line.
    pub(crate) fn line(&mut self, name: &str, points: Vec<(f64, f64)>) {
        self.series.push(Series {
            name: name.to_owned(),
            points,
        });
    }

    /// Whether it has no lines.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Its title.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// The chart as SVG.
    pub(crate) fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let drawn = area
                .fill(&WHITE)
                .map_err(|error| anyhow!("{error}"))
                .and_then(|()| self.draw(&area));
            drawn.map_err(|error| error.context(format!("draw {:?}", self.title)))?;
            area.present().map_err(|error| anyhow!("{error}"))?;
        }
        Ok(svg)
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        let x = range(self.x.scale, self.values(|point| point.0))?;
        let y = range(self.y.scale, self.values(|point| point.1))?;
        match (self.x.scale, self.y.scale) {
            (Scale::Linear, Scale::Linear) => self.draw_on(area, x, y),
            (Scale::Linear, Scale::Logarithmic) => self.draw_on(area, x, y.log_scale()),
            (Scale::Logarithmic, Scale::Linear) => self.draw_on(area, x.log_scale(), y),
            (Scale::Logarithmic, Scale::Logarithmic) => {
                self.draw_on(area, x.log_scale(), y.log_scale())
            }
        }
    }

    fn draw_on<X, Y>(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: impl AsRangedCoord<CoordDescType = X, Value = f64>,
        y: impl AsRangedCoord<CoordDescType = Y, Value = f64>,
    ) -> Result<()>
    where
        X: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{error}");
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(76)
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(&self.x.title)
            .y_desc(&self.y.title)
            .x_label_formatter(&|value| number(*value))
            .y_label_formatter(&|value| number(*value))
            .light_line_style(TRANSPARENT)
            .draw()
            .map_err(failed)?;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            chart
                .draw_series(
                    LineSeries::new(series.points.iter().copied(), colour.stroke_width(2))
                        .point_size(3),
                )
                .map_err(failed)?
                .label(&series.name)
                .legend(|(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        if self.series.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.85))
                .border_style(BLACK.mix(0.3))
                .draw()
                .map_err(failed)?;
        }
        Ok(())
    }

    fn values(&self, of: impl Fn(&(f64, f64)) -> f64) -> Vec<f64> {
        let series = self.series.iter();
        series
            .flat_map(|series| series.points.iter().map(&of))
            .collect()
    }
}

/// From where to where an axis goes so that all values are on it.
fn range(scale: Scale, values: Vec<f64>) -> Result<std::ops::Range<f64>> {
    let largest = values.iter().copied().reduce(f64::max);
    let smallest = values.iter().copied().reduce(f64::min);
    let (Some(smallest), Some(largest)) = (smallest, largest) else {
        return Err(anyhow!("it has no points"));
    };
    match scale {
        Scale::Linear if largest <= 0.0 => Ok(smallest.min(0.0)..1.0),
        Scale::Linear => Ok(smallest.min(0.0)..largest * 1.1),
        Scale::Logarithmic if smallest <= 0.0 => Err(anyhow!(
            "{smallest} can't stand on an axis by powers of ten"
        )),
        Scale::Logarithmic => Ok(smallest / 1.2..largest * 1.2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(y: Axis, points: Vec<(f64, f64)>) -> Plot {
        let mut plot = Plot::new("requests/s", Axis::logarithmic("ports"), y);
        plot.line("NodePort", points.clone());
        plot.line("Highwire", points);
        plot
    }

    #[test]
    fn titles_and_lines_are_in_the_chart() {
        let points = vec![(1.0, 90_000.0), (10_000.0, 80_000.0)];
        for y in [Axis::linear("per second"), Axis::logarithmic("per second")] {
            let svg = plot(y, points.clone()).svg().unwrap();
            for text in ["requests/s", "ports", "per second", "NodePort", "Highwire"] {
                assert!(svg.contains(text), "no {text} in {svg}");
            }
            assert!(svg.matches("<polyline").count() >= 2);
        }
    }

    #[test]
    fn a_chart_that_cannot_be_drawn_is_an_error() {
        let linear = || Axis::linear("per second");
        assert!(plot(linear(), vec![]).svg().is_err());
        assert!(plot(linear(), vec![(0.0, 1.0)]).svg().is_err());
        assert!(plot(linear(), vec![(1.0, 0.0)]).svg().is_ok());
    }
}
