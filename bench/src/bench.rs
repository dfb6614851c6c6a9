//! Rounds: each competitor in turn on a fresh database, several times over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::database::Database;
use crate::engine::Setting;
use crate::server::Server;
use crate::swept;

/// What --quick may take.
const QUICK: Duration = Duration::from_secs(36);

/// What one competitor did in one round: figures by metric.
pub type Sample = Vec<(&'static str, f64)>;

/// All figures: metric, competitor, one figure a round.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Samples {
    /// The figures of one competitor, one a round.
    pub fn of(&self, metric: &'static str, competitor: &'static str) -> &[f64] {
        self.0.get(&(metric, competitor)).map_or(&[], Vec::as_slice)
    }

    /// One figure of each round over another, as figures of their own.
    pub fn divided(
        &self,
        (metric, competitor): (&'static str, &'static str),
        by: (&'static str, &'static str),
        into: (&'static str, &'static str),
    ) -> Samples {
        let pairs = self.of(metric, competitor).iter().zip(self.of(by.0, by.1));
        Samples(BTreeMap::from([(into, pairs.map(|(one, other)| one / other).collect())]))
    }

    /// Adds a figure of one round.
    pub fn add(&mut self, metric: &'static str, competitor: &'static str, figure: f64) {
        self.0.entry((metric, competitor)).or_default().push(figure);
    }
}

/// What every scenario is given.
#[derive(Debug)]
pub struct Bench {
    pub server: Server,
    pub quick: bool,
    /// The user's choice of rounds.
    pub rounds: Option<usize>,
    /// The user's choice of how long something is held open in `pinned`, in seconds.
    pub held: Option<u64>,
    /// The user's choice of competitors; empty for all.
    pub only: Vec<String>,
    /// The user's choice of how the peers are set up.
    pub peers: Option<Setting>,
}

impl Bench {
    /// Runs `measure` for each competitor in each round, each time with a fresh, checkpointed database.
    ///
    /// The order rotates by one each round, so that nobody always follows the same neighbour.
    pub async fn rounds(
        &self,
        scenario: &str,
        quick_rounds: usize,
        competitors: &[&'static str],
        measure: impl AsyncFn(&'static str, &Database) -> Result<Sample>,
    ) -> Result<Samples> {
        self.rounds_from(scenario, quick_rounds, competitors, "template0", measure).await
    }

    /// The same, each time with a copy of a template.
    pub async fn rounds_from(
        &self,
        scenario: &str,
        quick_rounds: usize,
        competitors: &[&'static str],
        template: &str,
        measure: impl AsyncFn(&'static str, &Database) -> Result<Sample>,
    ) -> Result<Samples> {
        self.rounds_with(scenario, (quick_rounds, 3), competitors, template, measure).await
    }

    /// The same, with so many rounds with and without --quick.
    pub async fn rounds_with(
        &self,
        scenario: &str,
        (quick_rounds, full_rounds): (usize, usize),
        competitors: &[&'static str],
        template: &str,
        measure: impl AsyncFn(&'static str, &Database) -> Result<Sample>,
    ) -> Result<Samples> {
        let chosen: Vec<_> = competitors
            .iter()
            .filter(|name| self.only.is_empty() || self.only.iter().any(|only| only == *name))
            .collect();
        let rounds = self.rounds.unwrap_or(if self.quick { quick_rounds } else { full_rounds });
        let mut samples = Samples::default();
        let start = Instant::now();
        for round in 0..rounds {
            // On a slow machine fewer rounds, so that --quick stays quick.
            let expected = start.elapsed().mul_f64((round + 1) as f64 / round.max(1) as f64);
            if self.quick && self.rounds.is_none() && round > 0 && expected > QUICK {
                eprintln!("{scenario}: {round} of {rounds} rounds fit into the time");
                break;
            }
            for turn in 0..chosen.len() {
                let competitor = *chosen[(round + turn) % chosen.len()];
                let database = self.server.fresh_from(template).await?;
                let sample = measure(competitor, &database)
                    .await
                    .with_context(|| format!("{scenario}: {competitor}"))?;
                self.server.discard(database).await?;
                for (metric, figure) in sample {
                    eprintln!(
                        "{scenario}: round {} of {rounds}: {competitor}: {metric} {figure:.2}",
                        round + 1
                    );
                    samples.add(metric, competitor, figure);
                }
                swept::ensure_none().with_context(|| format!("{scenario}: {competitor}"))?;
            }
        }
        Ok(samples)
    }

    /// How engines are set up where speed is measured: as fast as each can be.
    pub fn for_speed(&self) -> Setting {
        self.peers.unwrap_or(Setting::Fastest)
    }

    /// How engines are set up where an idle system is measured: as its users have it.
    pub fn for_rest(&self) -> Setting {
        self.peers.unwrap_or(Setting::Default)
    }

    /// The shorter or the longer of two times.
    pub fn time(&self, quick_ms: u64, full_ms: u64) -> Duration {
        Duration::from_millis(if self.quick { quick_ms } else { full_ms })
    }
}
