//! Which queue comes first in a claim, where a worker serves several by weight.

use std::collections::HashMap;

/// Start-time fair queueing: each queue is due when it has had its part, and one that had nothing to give saves nothing up.
#[derive(Debug)]
pub(crate) struct Shares {
    of: HashMap<String, Share>,
    /// How far the queue had come that was served last.
    now: f64,
}

#[derive(Debug)]
struct Share {
    weight: f64,
    /// The runs that were begun of it, by its weight.
    due: f64,
    /// It gave less than it was asked for.
    is_idle: bool,
}

impl Shares {
    pub(crate) fn new(weights: &[(String, u32)]) -> Self {
        let share = |weight: u32| Share { weight: f64::from(weight.max(1)), due: 0.0, is_idle: false };
        Shares {
            of: weights.iter().map(|(queue, weight)| (queue.clone(), share(*weight))).collect(),
            now: 0.0,
        }
    }

    /// The lower, the sooner it is to be served.
    pub(crate) fn due(&self, queue: &str) -> f64 {
        self.of
            .get(queue)
            .map_or(self.now, |share| if share.is_idle { share.due.max(self.now) } else { share.due })
    }

    /// When the first of several queues is due. Those that had nothing to give last time do not speak for the others.
    pub(crate) fn first_due<'a>(&self, queues: impl Iterator<Item = &'a str> + Clone) -> f64 {
        let is_idle = |queue: &&str| self.of.get(*queue).is_some_and(|share| share.is_idle);
        let least = |dues: &mut dyn Iterator<Item = f64>| dues.reduce(f64::min);
        let busy = least(&mut queues.clone().filter(|queue| !is_idle(queue)).map(|queue| self.due(queue)));
        busy.or_else(|| least(&mut queues.map(|queue| self.due(queue)))).unwrap_or(self.now)
    }

    /// A queue gave so many runs; less than it was asked for, where it `ran_dry`.
    pub(crate) fn served(&mut self, queue: &str, runs: usize, ran_dry: bool) {
        let due = self.due(queue);
        let Some(share) = self.of.get_mut(queue) else { return };
        share.is_idle = ran_dry;
        if runs > 0 {
            self.now = self.now.max(due);
            share.due = due + runs as f64 / share.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves the queue that is due, so many runs at a time.
    fn serve(shares: &mut Shares, queues: &[&str], times: usize, room: usize) -> HashMap<String, usize> {
        let mut served = HashMap::new();
        for _ in 0..times {
            let next = queues.iter().min_by(|a, b| shares.due(a).total_cmp(&shares.due(b))).unwrap();
            shares.served(next, room, false);
            *served.entry((*next).to_owned()).or_default() += room;
        }
        served
    }

    #[test]
    fn each_queue_has_its_part() {
        let mut shares = Shares::new(&[("a".into(), 3), ("b".into(), 1), ("c".into(), 6)]);
        let served = serve(&mut shares, &["a", "b", "c"], 100, 7);
        assert_eq!((served["a"], served["b"], served["c"]), (210, 70, 420));
    }

    #[test]
    fn a_queue_that_was_empty_saves_nothing_up() {
        let mut shares = Shares::new(&[("a".into(), 1), ("b".into(), 1)]);
        shares.served("a", 0, true);
        serve(&mut shares, &["b"], 100, 10);
        let served = serve(&mut shares, &["a", "b"], 20, 10);
        assert!((90..=110).contains(&served["a"]), "{served:?}");
    }

    #[test]
    fn an_empty_queue_does_not_speak_for_the_one_beside_it() {
        let mut shares = Shares::new(&[("a".into(), 1), ("b".into(), 1), ("m".into(), 1)]);
        shares.served("b", 100, false);
        shares.served("a", 0, true);
        assert!(shares.first_due(["a", "b"].into_iter()) > shares.due("m"));
    }
}
