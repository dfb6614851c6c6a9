//! Whose turn it is among the lanes of a managed queue: the more urgent first, equals in turn, nobody passed over for ever.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::claim_queue::Choice;
use crate::workflow::PIN;

/// A lane: its name and its priority.
type Key = (Arc<str>, i16);

/// Lanes that are looked at in one choice at most, those that have no room among them.
const LOOKS: usize = 5000;

/// The lanes of one priority that hold runs, the one that had its turn longest ago in front.
#[derive(Debug)]
struct Class {
    lanes: VecDeque<Key>,
    /// When one of them was served last, or the first of them came.
    served: Instant,
}

/// The lanes that hold runs, as far as is known. One that is empty is not known.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    lows: HashMap<Key, i64>,
    classes: BTreeMap<i16, Class>,
    /// Lanes of rows that wake: they wait for nobody.
    free: HashSet<Key>,
}

/// The fields of a lane's name, see `ambo.lane`: the workflow with its pin, the group, and whether only wakes stand in it.
fn fields(lane: &str) -> (&str, Option<&str>, bool) {
    let mut fields = lane.splitn(4, PIN);
    let workflow = fields.next().unwrap_or_default();
    let pin = fields.next().filter(|pin| !pin.is_empty());
    let group = fields.next().filter(|group| !group.is_empty());
    let base = pin.map_or(workflow, |pin| &lane[..workflow.len() + PIN.len_utf8() + pin.len()]);
    (base, group, fields.next() == Some("~"))
}

/// The group that a lane is of.
pub(crate) fn group(lane: &str) -> Option<&str> {
    fields(lane).1
}

impl Turns {
    /// Whether nothing is known to wait.
    pub(crate) fn is_empty(&self) -> bool {
        self.lows.is_empty()
    }

    /// Something came to be visible above `low`, in a lane of one of `bases`.
    pub(crate) fn arrive(
        &mut self,
        lane: &str,
        priority: i16,
        low: i64,
        bases: &[String],
        now: Instant,
    ) -> bool {
        let (base, _, is_free) = fields(lane);
        if !bases.iter().any(|known| known == base) {
            return false;
        }
        let key: Key = (lane.into(), priority);
        if let Some(known) = self.lows.get_mut(&key) {
            *known = low.min(*known);
            return false;
        }
        self.lows.insert(key.clone(), low);
        if is_free {
            self.free.insert(key);
        } else {
            self.class(priority, now).lanes.push_back(key);
        }
        true
    }

    /// Whether a lane is known, or none of ours.
    pub(crate) fn knows(&self, lane: &str, priority: i16, bases: &[String]) -> bool {
        !bases.iter().any(|known| known == fields(lane).0) || self.lows.contains_key(&(lane.into(), priority))
    }

    fn class(&mut self, priority: i16, now: Instant) -> &mut Class {
        self.classes.entry(priority).or_insert_with(|| Class { lanes: VecDeque::new(), served: now })
    }

    /// Takes out up to `count` lanes whose turn it is. `mine` tells the weights that groups have here; a group that has `full` of
    /// it is passed over, as nothing could be taken.
    pub(crate) fn choose(
        &mut self,
        count: usize,
        full: Option<i32>,
        ageing: Option<Duration>,
        shares: &HashMap<String, i16>,
        mine: impl Fn(&str) -> i32,
        now: Instant,
    ) -> Vec<Choice> {
        let choice = |key: &Key, low: i64, share: i16, mine: i32| Choice {
            lane: key.0.to_string(),
            priority: key.1,
            low,
            share,
            mine,
        };
        let mut chosen: Vec<Choice> =
            self.free.iter().take(count).map(|key| choice(key, self.lows[key], 1, 0)).collect();
        let mut order: Vec<(f64, i16)> = self
            .classes
            .iter()
            .map(|(priority, class)| (urgency(*priority, class, ageing, now), *priority))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, priority) in order {
            let Some(class) = self.classes.get_mut(&priority) else { continue };
            for _ in 0..class.lanes.len().min(LOOKS) {
                if chosen.len() >= count {
                    return chosen;
                }
                let Some(key) = class.lanes.pop_front() else { break };
                let of = group(&key.0);
                let used = of.map_or(0, &mine);
                if of.is_some() && full.is_some_and(|full| used >= full) {
                    class.lanes.push_back(key);
                    continue;
                }
                let share = of.and_then(|of| shares.get(of)).copied().unwrap_or(1);
                chosen.push(choice(&key, self.lows[&key], share, used));
            }
        }
        chosen
    }

    /// What became of the lanes that were chosen: the marks, none where nothing is left. Those that were `passed` over for want
    /// of room come first next time, the others come behind all that wait.
    pub(crate) fn update(
        &mut self,
        chosen: &[Choice],
        lows: &[Option<i64>],
        served: &HashSet<usize>,
        passed: &[usize],
        now: Instant,
    ) {
        let mut first: Vec<Key> = Vec::new();
        for (n, (choice, low)) in chosen.iter().zip(lows).enumerate() {
            let key: Key = (choice.lane.as_str().into(), choice.priority);
            let Some(low) = low else {
                self.lows.remove(&key);
                self.free.remove(&key);
                continue;
            };
            self.lows.insert(key.clone(), *low);
            if self.free.contains(&key) {
                continue;
            }
            let class = self.class(choice.priority, now);
            if served.contains(&n) {
                class.served = now;
            }
            if passed.binary_search(&n).is_ok() {
                first.push(key);
            } else {
                class.lanes.push_back(key);
            }
        }
        for key in first.into_iter().rev() {
            self.class(key.1, now).lanes.push_front(key);
        }
        self.classes.retain(|_, class| !class.lanes.is_empty());
    }
}

/// A priority, less what a class gains by waiting.
fn urgency(priority: i16, class: &Class, ageing: Option<Duration>, now: Instant) -> f64 {
    let gained = ageing.map_or(0.0, |ageing| (now - class.served).as_secs_f64() / ageing.as_secs_f64());
    f64::from(priority) - gained
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(lanes: &[(&str, i16)]) -> Turns {
        let mut turns = Turns::default();
        let bases = ["w".to_owned()];
        for (group, priority) in lanes {
            let lane = if group.is_empty() { "w".to_owned() } else { format!("w\u{1f}\u{1f}{group}") };
            turns.arrive(&lane, *priority, 0, &bases, Instant::now());
        }
        turns
    }

    fn chosen(turns: &mut Turns, count: usize, now: Instant, ageing: Option<Duration>) -> Vec<String> {
        let chosen = turns.choose(count, None, ageing, &HashMap::new(), |_| 0, now);
        let all = (0..chosen.len()).collect();
        let lows: Vec<Option<i64>> = chosen.iter().map(|_| Some(1)).collect();
        turns.update(&chosen, &lows, &all, &[], now);
        chosen.iter().map(|c| group(&c.lane).unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn lanes_take_turns() {
        let mut turns = turns(&[("a", 0), ("b", 0), ("c", 0)]);
        let now = Instant::now();
        assert_eq!(chosen(&mut turns, 2, now, None), ["a", "b"]);
        assert_eq!(chosen(&mut turns, 2, now, None), ["c", "a"]);
        assert_eq!(chosen(&mut turns, 9, now, None), ["b", "c", "a"]);
    }

    #[test]
    fn what_there_was_no_room_for_comes_first_next_time() {
        let mut turns = turns(&[("a", 0), ("b", 0), ("c", 0)]);
        let now = Instant::now();
        let all = turns.choose(9, None, None, &HashMap::new(), |_| 0, now);
        turns.update(&all, &[Some(1); 3], &HashSet::from([0]), &[1, 2], now);
        assert_eq!(chosen(&mut turns, 9, now, None), ["b", "c", "a"]);
    }

    #[test]
    fn the_more_urgent_comes_first_until_the_other_has_waited_for_long() {
        let mut turns = turns(&[("late", 3), ("soon", 0)]);
        let now = Instant::now();
        let ageing = Some(Duration::from_secs(1));
        assert_eq!(chosen(&mut turns, 1, now, ageing), ["soon"]);
        let then = now + Duration::from_secs(2);
        assert_eq!(chosen(&mut turns, 1, then, ageing), ["soon"]);
        let at = |ms| then + Duration::from_millis(ms);
        assert_eq!(chosen(&mut turns, 1, at(990), ageing), ["soon"]);
        assert_eq!(chosen(&mut turns, 1, at(1005), ageing), ["soon"]);
        assert_eq!(chosen(&mut turns, 1, at(1006), ageing), ["late"]);
        assert_eq!(chosen(&mut turns, 1, at(1007), ageing), ["soon"]);
        assert_eq!(chosen(&mut turns, 1, then + Duration::from_secs(3600), None), ["soon"]);
    }

    #[test]
    fn a_lane_that_is_empty_is_forgotten_and_comes_back_with_its_mark() {
        let mut turns = turns(&[("a", 0)]);
        let now = Instant::now();
        let choose =
            |turns: &mut Turns, full, mine: i32| turns.choose(10, full, None, &HashMap::new(), |_| mine, now);
        let chosen = choose(&mut turns, None, 0);
        turns.update(&chosen, &[None], &HashSet::new(), &[], now);
        assert!(turns.is_empty());
        let bases = ["w".to_owned(), "w\u{1f}2".to_owned()];
        assert!(turns.arrive("w\u{1f}\u{1f}a", 0, 41, &bases, now));
        assert!(!turns.arrive("w\u{1f}\u{1f}a", 0, 17, &bases, now), "it is known");
        assert!(!turns.arrive("v\u{1f}\u{1f}a", 0, 17, &bases, now), "somebody else's");
        let chosen = choose(&mut turns, None, 0);
        assert_eq!(chosen[0].low, 17);
        turns.update(&chosen, &[Some(17)], &HashSet::new(), &[], now);
        assert!(
            turns.arrive("w\u{1f}2\u{1f}a\u{1f}+", 0, 3, &bases, now),
            "pinned, and the head of its group"
        );
        assert!(turns.arrive("w\u{1f}\u{1f}\u{1f}~", 0, 3, &bases, now), "wakes");
        let chosen = choose(&mut turns, Some(1), 1);
        assert_eq!(chosen.len(), 1, "the group is full; what wakes needs no room");
        assert_eq!(fields(&chosen[0].lane), ("w", None, true));
        assert_eq!(fields("w\u{1f}2\u{1f}a\u{1f}+"), ("w\u{1f}2", Some("a"), false));
    }
}
