//! The protocol of Ambo as models that a checker explores whole: for a few workers, runs and transactions, every order in
//! which their steps can fall. Made to be read beside the SQL: each action names the function that it stands for.
//!
//! | model | what it is about | the SQL |
//! |---|---|---|
//! | [`claims`] | claims, the fence, flushes, transaction steps, burial, the keeper | `claim`, `flush`, `transaction`, `keeper` |
//! | [`marks`] | low-water marks and transactions that commit late | `claim`, `enqueue` |
//! | [`parking`] | parking, and what wakes a run | `park`, `wake`, `signal` |
//! | [`ticks`] | a reader that remembers a snapshot | to come with the log |
//!
//! Each has *rules*. With all of them its properties hold, in all states that can be reached. Each rule can be
//! [broken](broken::Broken), and then the checker must find the trace that shows what the rule is for: a rule that can be
//! broken without consequence is not one, or the model does not see what it should.
//!
//! What is safe is checked by `stateright`, in all states. That something good happens in the end is checked by [`liveness`]:
//! from every state that can be reached, the end can still be reached by steps that are not faults. [`trace`] replays
//! what a real database did against the same rules of a [`run`].

pub mod broken;
pub mod claims;
pub mod liveness;
pub mod marks;
pub mod parking;
pub mod run;
pub mod ticks;
pub mod trace;
