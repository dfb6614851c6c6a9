//! That the end is reached: from every state that can be reached, whatever went wrong on the way, some steps that are
//! no faults lead to the goal.
//!
//! The states are finitely many, so that with a fair scheduler (what can happen again and again does happen) and no more
//! faults the goal *is* reached. `stateright`'s own `eventually` looks at each path's end only and does not see loops.

use std::collections::HashMap;
use std::hash::Hash;

use stateright::Model;

/// More do not fit into the memory of a small machine.
const STATES_MAX: usize = 5_000_000;

/// A model with an end.
pub trait Goal: Model {
    /// Whether this state is what should be reached.
    fn is_reached(&self, state: &Self::State) -> bool;

    /// Whether this step is one that nobody may count on: a crash, a cut connection, a rollback.
    fn is_fault(&self, action: &Self::Action) -> bool;
}

/// What was found.
#[derive(Debug)]
pub struct Liveness<A> {
    /// How many states can be reached.
    pub states: usize,
    /// The shortest way into a state from which the goal cannot be reached any more.
    pub trap: Option<Vec<A>>,
}

/// Explores all states of a model and says whether it can run into a trap.
pub fn explore<M>(model: &M) -> Liveness<M::Action>
where
    M: Goal,
    M::State: Hash + Eq + Clone,
    M::Action: Clone,
{
    let mut ids: HashMap<M::State, usize> = HashMap::new();
    let mut queue: Vec<M::State> = Vec::new();
    let mut came_from: Vec<Option<(usize, M::Action)>> = Vec::new();
    let mut before: Vec<Vec<u32>> = Vec::new();
    let mut hopeful = Vec::new();
    for state in model.init_states() {
        ids.insert(state.clone(), queue.len());
        queue.push(state);
        came_from.push(None);
        before.push(Vec::new());
    }
    let mut at = 0;
    while at < queue.len() {
        assert!(queue.len() < STATES_MAX, "more than {STATES_MAX} states: make the model smaller");
        let state = queue[at].clone();
        if model.is_reached(&state) {
            hopeful.push(at);
        }
        for (action, next) in model.next_steps(&state) {
            let id = *ids.entry(next).or_insert_with_key(|next| {
                queue.push(next.clone());
                came_from.push(Some((at, action.clone())));
                before.push(Vec::new());
                queue.len() - 1
            });
            if !model.is_fault(&action) {
                before[id].push(u32::try_from(at).expect("fewer states"));
            }
        }
        at += 1;
    }
    let mut is_hopeful = vec![false; queue.len()];
    while let Some(id) = hopeful.pop() {
        if !std::mem::replace(&mut is_hopeful[id], true) {
            hopeful.extend(before[id].iter().map(|&id| id as usize));
        }
    }
    // States are numbered in the order of their distance: the first one without hope is nearest.
    let trap = is_hopeful.iter().position(|hope| !hope).map(|id| way_to(id, &came_from));
    Liveness { states: queue.len(), trap }
}

fn way_to<A: Clone>(mut id: usize, came_from: &[Option<(usize, A)>]) -> Vec<A> {
    let mut way = Vec::new();
    while let Some((from, action)) = &came_from[id] {
        way.push(action.clone());
        id = *from;
    }
    way.reverse();
    way
}
