//! Which rules of a model are broken on purpose.

/// A set of rules that do not hold; by default it is empty.
#[derive(Clone, Debug)]
pub struct Broken<R>(Vec<R>);

impl<R> Default for Broken<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R: PartialEq + Copy> Broken<R> {
    /// All rules hold but these.
    pub fn without(rules: &[R]) -> Self {
        Self(rules.to_vec())
    }

    /// Whether a rule holds.
    pub fn keeps(&self, rule: R) -> bool {
        !self.0.contains(&rule)
    }
}
