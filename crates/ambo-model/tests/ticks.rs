//! Ticks: a reader that remembers a snapshot loses nothing, repeats nothing and keeps the order of causes.

mod explore;

use ambo_model::broken::Broken;
use ambo_model::ticks::{Rule, Ticks};
use explore::{assert_holds, finds, large, traps};

fn model(broken: &[Rule]) -> Ticks {
    Ticks { writers: if large() { 5 } else { 4 }, broken: Broken::without(broken) }
}

#[test]
fn a_reader_that_remembers_a_snapshot_loses_and_repeats_nothing() {
    assert_holds(&model(&[]));
}

#[test]
fn a_reader_that_remembers_a_number_loses_what_commits_late() {
    assert!(traps(&model(&[Rule::Snapshot])));
}

#[test]
fn a_reader_that_forgets_what_was_in_progress_loses_it() {
    assert!(traps(&model(&[Rule::InProgress])));
}

#[test]
fn a_reader_that_forgets_what_is_above_xmax_loses_it() {
    assert!(traps(&model(&[Rule::AboveXmax])));
}

#[test]
fn a_reader_that_takes_all_that_it_sees_reads_twice() {
    assert!(finds(model(&[Rule::NotAgain]), "no entry is read twice"));
}
