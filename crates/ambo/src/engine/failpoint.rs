//! Points at which crash tests stop the process, by name. Without the feature `failpoints` they are nothing.

/// All of them: the crash sweep kills a worker at each.
pub const NAMES: &[&str] = &[
    "claim-before",
    "claim-answered",
    "flush-before",
    "flush-answered",
    "step-before",
    "step-after",
    "transaction-begun",
    "transaction-before-commit",
    "transaction-committed",
    "outcome-before",
    "start-answered",
];

/// Ends the process, as SIGKILL would, when `AMBO_FAILPOINT` names this point. `name:3` means the third time.
#[cfg(feature = "failpoints")]
pub(crate) fn reach(name: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    debug_assert!(NAMES.contains(&name), "{name} is not in the list");
    let Ok(wanted) = std::env::var("AMBO_FAILPOINT") else { return };
    let (wanted, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted == name && COUNT.fetch_add(1, Ordering::SeqCst) + 1 == times.parse().unwrap_or(1) {
        std::process::abort();
    }
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub(crate) fn reach(_: &'static str) {}
