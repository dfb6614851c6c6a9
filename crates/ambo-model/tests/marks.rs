//! Low-water marks: no run is lost below one, and each rule is needed.

mod explore;

use ambo_model::broken::Broken;
use ambo_model::marks::{Marks, Rule};
use explore::{assert_holds, finds, large, traps};

const UNKNOWN: &str = "no run below the mark is unknown";

fn model(producers: usize, claimers: usize, limit: usize, broken: &[Rule]) -> Marks {
    Marks { producers, claimers, limit, many: 1, failures: 1, broken: Broken::without(broken) }
}

#[test]
fn two_claimers_lose_no_run_that_commits_late() {
    assert_holds(&model(if large() { 3 } else { 2 }, 2, 1, &[]));
}

#[test]
fn one_claimer_loses_no_run_among_more_than_it_takes() {
    assert_holds(&model(if large() { 4 } else { 3 }, 1, 1, &[]));
    assert_holds(&model(3, 1, 2, &[]));
    // More than a claim takes, and few enough to be looked for again.
    assert_holds(&Marks { many: 2, ..model(3, 1, 1, &[]) });
}

/// The property breaks, and a run is lost for good.
fn assert_loses(producers: usize, claimers: usize, rule: Rule) {
    let model = model(producers, claimers, 1, &[rule]);
    assert!(traps(&model), "no run was lost");
    assert!(finds(model, UNKNOWN), "no run was below the mark");
}

#[test]
fn a_seq_drawn_before_the_xid_is_lost() {
    assert_loses(2, 1, Rule::XidBeforeSeq);
}

#[test]
fn a_sequence_read_at_the_end_of_a_claim_passes_a_run_that_it_does_not_see() {
    assert_loses(2, 1, Rule::SequenceBeforeXid);
}

#[test]
fn a_mark_that_passes_locked_rows_loses_those_of_a_claim_that_is_rolled_back() {
    // For the one whose mark passed them; the other still knows.
    assert!(finds(model(2, 2, 1, &[Rule::LockedRowsHoldTheMark]), UNKNOWN));
}

#[test]
fn a_locked_row_that_a_mark_passes_unremembered_is_lost_when_it_is_let_go() {
    // For the one whose mark passed it, as above.
    assert!(finds(model(2, 2, 1, &[Rule::PassedRowsAreKept]), UNKNOWN));
}

#[test]
fn a_held_row_that_is_forgotten_while_it_is_locked_is_lost_when_it_is_let_go() {
    assert!(finds(model(2, 2, 1, &[Rule::HeldRowsAreKept]), UNKNOWN));
}

#[test]
fn without_the_probe_for_late_xids_what_commits_late_is_lost() {
    assert_loses(2, 1, Rule::LateProbe);
}

#[test]
fn without_the_xids_above_xmax_a_transaction_that_nobody_ended_after_is_lost() {
    assert_loses(2, 1, Rule::AboveXmax);
}

#[test]
fn a_late_row_that_was_locked_is_lost_when_its_claim_is_rolled_back() {
    assert!(finds(model(2, 2, 1, &[Rule::LockedLateRowsAreKept]), UNKNOWN));
}

#[test]
fn more_late_rows_than_a_claim_takes_are_lost_when_they_are_not_looked_for_again() {
    let model = Marks { many: 2, ..model(3, 1, 1, &[Rule::FloodIsKept]) };
    assert!(traps(&model), "no run was lost");
    assert!(finds(model, UNKNOWN), "no run was below the mark");
}

#[test]
fn a_flood_of_late_rows_is_lost_when_the_mark_does_not_go_back() {
    assert_loses(3, 1, Rule::FloodGoesBack);
}
