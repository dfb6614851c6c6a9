//! Claims and fencing: all rules hold, and none of them is idle.

mod explore;

use ambo_model::broken::Broken;
use ambo_model::claims::{Claims, Rule};
use explore::{assert_holds, finds, large, traps};

fn model(lives: usize, runs: usize, broken: &[Rule]) -> Claims {
    Claims {
        lives,
        runs,
        hand_backs: 1,
        goes_on_after_a_foreign_write: false,
        broken: Broken::without(broken),
    }
}

#[test]
fn one_run_and_three_lives_are_safe_and_end() {
    assert_holds(&model(3, 1, &[]));
}

#[test]
fn more_runs_and_two_lives_are_safe_and_end() {
    assert_holds(&model(2, if large() { 3 } else { 2 }, &[]));
}

/// Whether three lives and one run break a property when these rules are broken.
fn broken(rules: &[Rule], property: &'static str) -> bool {
    finds(model(3, 1, rules), property)
}

const HOLDER: &str = "only the holder writes";
const KEY: &str = "the primary key is never needed";
const AGAIN: &str = "a recorded step never runs again";
const ONCE: &str = "a transaction step takes effect once";
const HOLE: &str = "a history has no hole";

#[test]
fn a_flush_that_looks_without_the_fence_writes_for_a_claim_that_is_gone() {
    assert!(broken(&[Rule::FlushFence], HOLDER));
}

#[test]
fn a_flush_that_does_not_ask_for_the_attempt_writes_into_a_later_one() {
    assert!(broken(&[Rule::FlushAttempt], HOLDER));
}

#[test]
fn a_hand_back_without_the_fence_takes_a_claim_from_under_a_flush() {
    assert!(broken(&[Rule::HandBackFence], HOLDER));
}

#[test]
fn a_step_that_looks_without_a_lock_commits_for_a_claim_that_is_gone() {
    assert!(broken(&[Rule::StepLock], HOLDER));
}

#[test]
fn without_lock_and_primary_key_a_step_takes_effect_twice() {
    // Explored on past the foreign write: what would come of it.
    let mut model = model(3, 1, &[Rule::StepLock, Rule::PrimaryKey]);
    model.goes_on_after_a_foreign_write = true;
    assert!(finds(model, ONCE));
}

#[test]
fn with_the_primary_key_alone_a_step_takes_effect_once() {
    let mut model = model(3, 1, &[Rule::StepLock]);
    model.goes_on_after_a_foreign_write = true;
    assert!(!finds(model, ONCE));
}

#[test]
fn an_effect_apart_from_its_checkpoint_happens_twice() {
    assert!(broken(&[Rule::OneCommit], ONCE));
}

#[test]
fn a_history_read_before_the_claim_lets_a_recorded_step_run_again() {
    assert!(broken(&[Rule::HistoryAfterClaim], AGAIN));
}

#[test]
fn a_step_that_does_not_wait_for_what_was_before_it_leaves_a_hole() {
    assert!(broken(&[Rule::Barrier], HOLE));
}

#[test]
fn facts_of_one_run_on_two_lanes_leave_a_hole() {
    assert!(broken(&[Rule::OneLane], HOLE));
}

#[test]
fn reading_back_before_the_old_backend_is_gone_records_a_fact_twice() {
    assert!(broken(&[Rule::ReadBackAfter], KEY));
}

#[test]
fn a_claim_without_the_fence_is_lost_under_a_buried_worker() {
    assert!(traps(&model(3, 1, &[Rule::ClaimFence])));
}

#[test]
fn a_worker_buried_before_its_last_claim_is_taken_keeps_that_run_for_ever() {
    assert!(traps(&model(3, 1, &[Rule::BuryWaits])));
}

#[test]
fn without_a_takeover_a_dead_keeper_leaves_runs_behind() {
    assert!(traps(&model(3, 1, &[Rule::Takeover])));
}
