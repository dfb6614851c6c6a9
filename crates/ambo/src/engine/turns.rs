//! Whose turn it is in a managed queue: the more urgent first, equals in turn, nobody passed over for ever. Turns are taken by units: a
//! group, whatever workflows its runs are of, or a workflow of runs that have no group.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::claim_queue::Choice;
use crate::workflow::PIN;

/// A lane, or a unit: its name and its priority.
type Key = (Arc<str>, i16);

/// Units that are looked at in one choice at most, those that have no room among them.
const LOOKS: usize = 5000;

/// The units of one priority that hold runs, the one that had its turn longest ago in front.
#[derive(Debug)]
struct Class {
    units: VecDeque<Arc<str>>,
    /// When one of them was served last, or the first of them came.
    served: Instant,
}

/// The lanes that hold runs, as far as is known. One that is empty is not known.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    lows: HashMap<Key, i64>,
    classes: BTreeMap<i16, Class>,
    /// The lanes of each unit.
    units: HashMap<Key, Vec<Arc<str>>>,
    /// What is left of the turn of a unit whose share is larger than the room that there was.
    rest: HashMap<Key, i16>,
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

/// The name of the unit that a lane is of. No workflow has a name that begins so.
fn unit(lane: &str) -> Arc<str> {
    match fields(lane) {
        (_, Some(group), _) => format!("{PIN}{group}").into(),
        (base, None, _) => base.into(),
    }
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
            return true;
        }
        let unit = unit(lane);
        let lanes = self.units.entry((unit.clone(), priority)).or_default();
        lanes.push(key.0);
        if lanes.len() == 1 {
            self.class(priority, now).units.push_back(unit);
        }
        true
    }

    /// Whether a lane is known, or none of ours.
    pub(crate) fn knows(&self, lane: &str, priority: i16, bases: &[String]) -> bool {
        !bases.iter().any(|known| known == fields(lane).0) || self.lows.contains_key(&(lane.into(), priority))
    }

    fn class(&mut self, priority: i16, now: Instant) -> &mut Class {
        self.classes.entry(priority).or_insert_with(|| Class { units: VecDeque::new(), served: now })
    }

    /// Takes out the units whose turn it is, with about `count` lanes. `mine` tells the weights that groups have here; a group that
    /// has `full` of it is passed over, as nothing could be taken.
    pub(crate) fn choose(
        &mut self,
        count: usize,
        full: Option<i32>,
        ageing: Option<Duration>,
        shares: &HashMap<String, i16>,
        mine: impl Fn(&str) -> i32,
        now: Instant,
    ) -> Vec<Choice> {
        let mut chosen: Vec<Choice> = Vec::new();
        for key in self.free.iter().take(count) {
            let (lane, priority) = (key.0.to_string(), key.1);
            chosen.push(Choice { lane, priority, turn: 0, class: 0, low: self.lows[key], share: 1, mine: 0 });
        }
        let mut turn = 0;
        for (class_number, priority) in (1..).zip(self.in_order_of_urgency(ageing, now)) {
            let Some(class) = self.classes.get_mut(&priority) else { continue };
            for _ in 0..class.units.len().min(LOOKS) {
                if chosen.len() >= count {
                    return chosen;
                }
                let Some(unit) = class.units.pop_front() else { break };
                let of = unit.strip_prefix(PIN);
                let used = of.map_or(0, &mine);
                if of.is_some() && full.is_some_and(|full| used >= full) {
                    class.units.push_back(unit);
                    continue;
                }
                let share = of.and_then(|of| shares.get(of)).copied().unwrap_or(1);
                let unit = (unit, priority);
                let share = self.rest.get(&unit).map_or(share, |rest| share.min(*rest));
                turn += 1;
                for lane in self.units.get(&unit).into_iter().flatten() {
                    let low = self.lows[&(lane.clone(), priority)];
                    let lane = lane.to_string();
                    chosen.push(Choice { lane, priority, turn, class: class_number, low, share, mine: used });
                }
            }
        }
        chosen
    }

    fn in_order_of_urgency(&self, ageing: Option<Duration>, now: Instant) -> Vec<i16> {
        let classes = self.classes.iter();
        let mut order: Vec<(f64, i16)> =
            classes.map(|(priority, class)| (urgency(*priority, class, ageing, now), *priority)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        order.into_iter().map(|(_, priority)| priority).collect()
    }

    /// What became of the lanes that were chosen: the marks, none where nothing is left, and how many runs each `gave`. Units that were
    /// `passed` over for want of room, or had room for a part of their share only, come first next time, the others come behind all that
    /// wait.
    pub(crate) fn update(
        &mut self,
        chosen: &[Choice],
        lows: &[Option<i64>],
        gave: &HashMap<usize, i16>,
        passed: &[usize],
        now: Instant,
    ) {
        let mut units: Vec<Turn> = Vec::new();
        for (n, (choice, low)) in chosen.iter().zip(lows).enumerate() {
            let key: Key = (choice.lane.as_str().into(), choice.priority);
            match low {
                Some(low) => self.lows.insert(key.clone(), *low),
                None => self.lows.remove(&key),
            };
            if self.free.contains(&key) {
                if low.is_none() {
                    self.free.remove(&key);
                }
                continue;
            }
            let unit = (unit(&key.0), key.1);
            if low.is_none()
                && let Some(lanes) = self.units.get_mut(&unit)
            {
                lanes.retain(|lane| *lane != key.0);
            }
            if units.last().is_none_or(|last| last.unit != unit) {
                units.push(Turn { unit, share: choice.share, gave: 0, was_passed: false });
            }
            if let Some(turn) = units.last_mut() {
                turn.gave = turn.gave.saturating_add(gave.get(&n).copied().unwrap_or(0));
                turn.was_passed |= passed.binary_search(&n).is_ok();
            }
        }
        self.line_up(units, now);
    }

    /// In the order in which they were chosen.
    fn line_up(&mut self, turns: Vec<Turn>, now: Instant) {
        let mut first: Vec<Key> = Vec::new();
        for Turn { unit, share, gave, was_passed } in turns {
            if gave > 0 {
                self.class(unit.1, now).served = now;
            }
            if self.units.get(&unit).is_none_or(Vec::is_empty) {
                self.units.remove(&unit);
                self.rest.remove(&unit);
            } else if gave > 0 && gave < share {
                self.rest.insert(unit.clone(), share - gave);
                first.push(unit);
            } else if gave == 0 && was_passed {
                first.push(unit);
            } else {
                self.rest.remove(&unit);
                self.class(unit.1, now).units.push_back(unit.0);
            }
        }
        for unit in first.into_iter().rev() {
            self.class(unit.1, now).units.push_front(unit.0);
        }
        self.classes.retain(|_, class| !class.units.is_empty());
    }
}

/// What a unit that was chosen made of it.
#[derive(Debug)]
struct Turn {
    unit: Key,
    share: i16,
    gave: i16,
    was_passed: bool,
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
        let all = (0..chosen.len()).map(|n| (n, 1)).collect();
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
        turns.update(&all, &[Some(1); 3], &HashMap::from([(0, 1)]), &[1, 2], now);
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
        turns.update(&chosen, &[None], &HashMap::new(), &[], now);
        assert!(turns.is_empty());
        let bases = ["w".to_owned(), "w\u{1f}2".to_owned()];
        assert!(turns.arrive("w\u{1f}\u{1f}a", 0, 41, &bases, now));
        assert!(!turns.arrive("w\u{1f}\u{1f}a", 0, 17, &bases, now), "it is known");
        assert!(!turns.arrive("v\u{1f}\u{1f}a", 0, 17, &bases, now), "somebody else's");
        let chosen = choose(&mut turns, None, 0);
        assert_eq!(chosen[0].low, 17);
        turns.update(&chosen, &[Some(17)], &HashMap::new(), &[], now);
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

    #[test]
    fn a_group_has_one_turn_whatever_workflows_its_runs_are_of() {
        let mut turns = Turns::default();
        let bases = ["v".to_owned(), "w".to_owned()];
        let now = Instant::now();
        for lane in ["v\u{1f}\u{1f}a", "w\u{1f}\u{1f}a", "w\u{1f}\u{1f}b", "w\u{1f}\u{1f}a\u{1f}+", "v", "w"]
        {
            turns.arrive(lane, 0, 0, &bases, now);
        }
        let choose = |turns: &mut Turns, count| turns.choose(count, None, None, &HashMap::new(), |_| 0, now);
        let lanes = |chosen: &[Choice]| chosen.iter().map(|choice| choice.lane.clone()).collect::<Vec<_>>();
        let first = choose(&mut turns, 1);
        assert_eq!(lanes(&first), ["v\u{1f}\u{1f}a", "w\u{1f}\u{1f}a", "w\u{1f}\u{1f}a\u{1f}+"]);
        // One of its lanes has gone and one had no room: it has had its turn all the same.
        turns.update(&first, &[None, Some(1), Some(1)], &HashMap::from([(0, 1)]), &[1], now);
        let second = choose(&mut turns, 9);
        assert_eq!(lanes(&second), ["w\u{1f}\u{1f}b", "v", "w", "w\u{1f}\u{1f}a", "w\u{1f}\u{1f}a\u{1f}+"]);
        turns.update(&second, &[None; 5], &HashMap::new(), &[], now);
        assert!(turns.is_empty() && turns.units.is_empty() && turns.classes.is_empty());
    }

    #[test]
    fn a_share_is_had_also_where_there_is_room_for_less() {
        let mut turns = turns(&[("a", 0), ("b", 0)]);
        let now = Instant::now();
        let shares = HashMap::from([("a".to_owned(), 3)]);
        let mut given = Vec::new();
        for _ in 0..8 {
            // Room for one at a time.
            let chosen = turns.choose(9, None, None, &shares, |_| 0, now);
            given.push(group(&chosen[0].lane).unwrap().to_owned());
            turns.update(&chosen, &[Some(1); 2], &HashMap::from([(0, 1)]), &[1], now);
        }
        assert_eq!(given, ["a", "a", "a", "b", "a", "a", "a", "b"]);
        // One that has nothing left has no rest.
        let chosen = turns.choose(1, None, None, &shares, |_| 0, now);
        turns.update(&chosen, &[None], &HashMap::from([(0, 1)]), &[], now);
        assert!(turns.rest.is_empty());
    }
}
