//! Random choices that can be repeated: a test prints its seed, and `AMBO_TEST_SEED` plays it again.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A small generator (splitmix64): the same seed gives the same choices.
pub(crate) struct Random(u64);

impl Random {
    /// From `AMBO_TEST_SEED`, else from the system. The seed is shown when the test fails.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("AMBO_TEST_SEED") {
            Ok(seed) => seed.parse().expect("AMBO_TEST_SEED is a number"),
            Err(_) => RandomState::new().build_hasher().finish(),
        };
        println!("AMBO_TEST_SEED={seed}");
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// One of `choices`.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}
