//! What is printed: a line a metric, as JSON or as a table of at most 80 columns.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use crate::bench::{Bench, Samples};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// What Ambo has to reach.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// Ambo over the fastest peer, or over the yardstick where no peer is named.
    Ratio(f64),
    /// Ambo's own figure.
    AtMost(f64),
    /// The same.
    AtLeast(f64),
    /// Nothing: the figure is reported only.
    Open,
}

/// One metric of one scenario.
#[derive(Debug)]
pub struct Line {
    pub scenario: &'static str,
    pub metric: &'static str,
    better: Better,
    bar: Bar,
    /// What was done, in which settings, in a sentence or two.
    note: String,
    /// Competitor, its part, its figures one a round.
    figures: Vec<(&'static str, Part, Vec<f64>)>,
    /// The least fraction of the yardstick, beside the bar against the peers.
    fraction_bar: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Peer,
    Yardstick,
    /// Named in the output, not compared.
    Aside,
}

impl Line {
    /// A metric with Ambo's figures in it.
    pub fn new(
        scenario: &'static str,
        metric: &'static str,
        better: Better,
        bar: Bar,
        note: impl Into<String>,
    ) -> Line {
        let note = note.into();
        Line { scenario, metric, better, bar, note, figures: Vec::new(), fraction_bar: None }
    }

    /// Takes the figures of these competitors as peers: the ratio is against the best of them.
    pub fn peers(mut self, samples: &Samples, names: &[&'static str]) -> Line {
        for name in names {
            self.figures.push((name, Part::Peer, samples.of(self.metric, name).to_vec()));
        }
        self
    }

    /// Takes a yardstick; where peers are compared too, Ambo must reach this fraction of it.
    pub fn yardstick(mut self, samples: &Samples, name: &'static str, least: Option<f64>) -> Line {
        self.figures.push((name, Part::Yardstick, samples.of(self.metric, name).to_vec()));
        self.fraction_bar = least;
        self
    }

    /// Takes a competitor that is shown, but is not what the ratio is about.
    pub fn aside(mut self, samples: &Samples, name: &'static str) -> Line {
        self.figures.push((name, Part::Aside, samples.of(self.metric, name).to_vec()));
        self
    }

    fn median(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.0 == name).and_then(|figure| median(&figure.2))
    }

    fn best(&self, part: Part) -> Option<f64> {
        let medians = self
            .figures
            .iter()
            .filter(|figure| figure.1 == part && figure.0 != "ambo")
            .filter_map(|figure| median(&figure.2));
        match self.better {
            Better::Higher => medians.reduce(f64::max),
            Better::Lower => medians.reduce(f64::min),
        }
    }

    /// Ambo against another figure: above 1 means that Ambo is better.
    fn against(&self, other: Option<f64>) -> Option<f64> {
        let (ambo, other) = (self.median("ambo")?, other?);
        let ratio = match self.better {
            Better::Higher => ambo / other,
            Better::Lower => other / ambo,
        };
        ratio.is_finite().then_some(ratio)
    }

    fn yardstick_name(&self) -> Option<&'static str> {
        self.figures.iter().find(|figure| figure.1 == Part::Yardstick).map(|figure| figure.0)
    }

    fn ratio(&self) -> Option<f64> {
        self.against(self.best(Part::Peer).or_else(|| self.best(Part::Yardstick)))
    }

    fn fraction(&self) -> Option<f64> {
        self.fraction_bar.and(self.against(self.best(Part::Yardstick)))
    }

    /// Whether Ambo reaches every bar of this line; nothing where it was not measured.
    fn met(&self) -> Option<bool> {
        let bar = match self.bar {
            Bar::Ratio(least) => self.ratio()? >= least,
            Bar::AtMost(most) => self.median("ambo")? <= most,
            Bar::AtLeast(least) => self.median("ambo")? >= least,
            Bar::Open => return None,
        };
        let fraction = match self.fraction_bar {
            Some(least) => self.fraction()? >= least,
            None => true,
        };
        Some(bar && fraction)
    }

    /// One object with the scenario, the medians, the ratio, and how they came about.
    pub fn to_json(&self, bench: &Bench) -> Value {
        let mut line = Map::new();
        line.insert("scenario".into(), self.scenario.into());
        line.insert("metric".into(), self.metric.into());
        for (name, _, figures) in &self.figures {
            line.insert((*name).into(), json!(median(figures)));
        }
        line.insert("ratio".into(), json!(self.ratio()));
        if let (Some(name), Some(least)) = (self.yardstick_name(), self.fraction_bar) {
            line.insert(format!("fraction_of_{name}"), json!(self.fraction()));
            line.insert("fraction_at_least".into(), json!(least));
        }
        match self.bar {
            Bar::Ratio(least) => line.insert("ratio_at_least".into(), json!(least)),
            Bar::AtMost(most) => line.insert("ambo_at_most".into(), json!(most)),
            Bar::AtLeast(least) => line.insert("ambo_at_least".into(), json!(least)),
            Bar::Open => None,
        };
        line.insert("met".into(), json!(self.met()));
        let samples: Map<String, Value> =
            self.figures.iter().map(|(name, _, all)| ((*name).into(), json!(all))).collect();
        let rounds = self.figures.iter().map(|figure| figure.2.len()).max();
        line.insert("rounds".into(), json!(rounds.unwrap_or(0)));
        line.insert("quick".into(), bench.quick.into());
        line.insert("work".into(), self.note.clone().into());
        line.insert("settings".into(), bench.server.settings().clone().into());
        line.insert("samples".into(), samples.into());
        line.into()
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let cell = |name| self.median(name).map_or_else(|| "-".into(), figure);
        let bar = match self.bar {
            Bar::Ratio(least) | Bar::AtLeast(least) => format!("≥{least}"),
            Bar::AtMost(most) => format!("≤{most}"),
            Bar::Open => String::new(),
        };
        let shown = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), figure);
        let title = format!("{}: {}", self.scenario, self.metric);
        let mut first =
            vec![title, cell("ambo"), cell("dbos"), cell("durare"), String::new(), shown(self.ratio()), bar];
        let Some(name) = self.yardstick_name() else { return vec![first] };
        let Some(least) = self.fraction_bar else {
            first[4] = cell(name);
            return vec![
                first,
                [&format!("  yardstick: {name}"), "", "", "", "", "", ""].map(Into::into).to_vec(),
            ];
        };
        let second = vec![
            format!("  yardstick: {name}"),
            String::new(),
            String::new(),
            String::new(),
            cell(name),
            shown(self.fraction()),
            format!("≥{least}"),
        ];
        vec![first, second]
    }
}

/// The table of all lines.
pub fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["scenario: metric", "ambo", "dbos", "durare", "yardstick", "ratio", "bar"]);
    for row in lines.iter().flat_map(Line::rows) {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        if at > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The middle of the figures.
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// A figure as short as it can honestly be.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => {
            let whole = format!("{value:.0}");
            let cut = |(at, digit): (usize, char)| {
                let comma = at > 0 && (whole.len() - at).is_multiple_of(3);
                if comma { vec![',', digit] } else { vec![digit] }
            };
            whole.chars().enumerate().flat_map(cut).collect()
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{figure, median};

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn figures_are_short() {
        let all = [1_234_567.0, 390_123.4, 999.6, 12.34, 0.5, 0.031].map(figure);
        assert_eq!(all, ["1,234,567", "390,123", "1000", "12.3", "0.50", "0.0310"]);
    }
}
