//! Parking and waking: no wake-up is lost, and each rule is needed.

mod explore;

use ambo_model::broken::Broken;
use ambo_model::parking::{Parking, Rule};
use explore::{assert_holds, finds, large, traps};

const LOST: &str = "no wake-up is lost";

fn model(broken: &[Rule]) -> Parking {
    Parking { senders: 2, workers: 2, faults: 1, broken: Broken::without(broken) }
}

#[test]
fn signals_find_a_run_wherever_it_is() {
    assert_holds(&model(&[]));
    if large() {
        assert_holds(&Parking { senders: 3, workers: 2, faults: 2, broken: Broken::default() });
        assert_holds(&Parking { senders: 2, workers: 3, faults: 2, broken: Broken::default() });
    }
}

/// The property breaks, and the run sleeps for ever.
fn assert_loses(rule: Rule) {
    let model = model(&[rule]);
    assert!(traps(&model), "the run did not sleep for ever");
    assert!(finds(model, LOST), "no wake-up was lost");
}

#[test]
fn a_sender_that_looks_where_the_run_is_misses_it() {
    assert_loses(Rule::UnconditionalWake);
}

#[test]
fn a_claim_that_is_looked_at_without_a_lock_is_parked_behind_the_back() {
    assert_loses(Rule::HeldClaim);
}

#[test]
fn a_wake_up_that_is_dropped_while_the_run_moves_is_lost() {
    assert_loses(Rule::MovingGoesBack);
}

#[test]
fn a_wake_up_that_skips_a_timer_locked_by_a_transaction_that_is_rolled_back_is_lost() {
    assert_loses(Rule::LockedTimerGoesBack);
}

#[test]
fn a_wake_up_that_looks_for_the_timer_first_misses_a_run_that_is_parked_meanwhile() {
    assert_loses(Rule::ClaimBeforeTimer);
}

#[test]
fn a_park_that_looks_before_it_deletes_the_claim_misses_what_comes_between() {
    assert_loses(Rule::ParkLooksLast);
}

#[test]
fn a_worker_that_looks_before_it_takes_the_wake_up_takes_one_that_it_did_not_see() {
    assert_loses(Rule::TakeBeforeLook);
}
