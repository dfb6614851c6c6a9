//! Explores a model whole: what is safe by `stateright`, what ends by our own search.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use ambo_model::liveness::{Goal, explore};
use stateright::{Checker, HasDiscoveries, Model};

/// Whether `AMBO_MODEL=large` asks for the larger forms, which take minutes.
pub(crate) fn large() -> bool {
    std::env::var("AMBO_MODEL").is_ok_and(|size| size == "large")
}

/// All properties hold in all states, and from each of them the end can be reached.
pub(crate) fn assert_holds<M>(model: &M)
where
    M: Goal + Clone + Send + Sync + 'static,
    M::State: Hash + Eq + Clone + Debug + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let since = Instant::now();
    let checker = model.clone().checker().threads(2).spawn_bfs().join();
    if let Some((name, path)) = checker.discoveries().into_iter().next() {
        panic!("broken: {name}\n{}", steps(path.into_actions()));
    }
    let states = checker.unique_state_count();
    let found = explore(model);
    if let Some(trap) = found.trap {
        panic!("no way to the end from here:\n{}", steps(trap));
    }
    assert_eq!(found.states, states, "both searches see the same states");
    println!("{states} states in {:.1} s", since.elapsed().as_secs_f64());
}

/// Whether this model breaks a property; the shortest trace that does is printed.
pub(crate) fn finds<M>(model: M, property: &'static str) -> bool
where
    M: Model + Send + Sync + 'static,
    M::State: Hash + Clone + Debug + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    // One thread: breadth first in the strict sense.
    let found = HasDiscoveries::AllOf([property].into());
    let checker = model.checker().threads(1).finish_when(found).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else { return false };
    println!("broken: {property}\n{}", steps(path.into_actions()));
    true
}

/// Whether this model can run into a state from which there is no way to the end; the trace is printed.
pub(crate) fn traps<M>(model: &M) -> bool
where
    M: Goal,
    M::State: Hash + Eq + Clone,
    M::Action: Clone + Debug,
{
    let trap = explore(model).trap;
    if let Some(trap) = &trap {
        println!("no way to the end from here:\n{}", steps(trap.clone()));
    }
    trap.is_some()
}

fn steps<A: Debug>(actions: Vec<A>) -> String {
    actions.iter().enumerate().map(|(n, action)| format!("{:>4}. {action:?}\n", n + 1)).collect()
}
