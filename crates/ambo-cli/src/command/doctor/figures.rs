//! The figures that the database gives, found by name.

use ambo::admin::VitalSign;

/// Figures; a name may come several times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures<'a>(&'a [VitalSign]);

impl<'a> Figures<'a> {
    pub(crate) fn new(signs: &'a [VitalSign]) -> Self {
        Figures(signs)
    }

    /// The first figure of this name.
    pub(crate) fn text(self, name: &str) -> Option<&'a str> {
        self.all(name).next()
    }

    /// Every figure of this name.
    pub(crate) fn all(self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |sign| sign.name == name).map(|sign| sign.value.as_str())
    }

    /// The first figure of this name, if it is a number.
    pub(crate) fn number(self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// Whether the figure says yes.
    pub(crate) fn is(self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// Figures whose names begin so: what follows, and the number.
    pub(crate) fn numbers(self, prefix: &str) -> impl Iterator<Item = (&'a str, i64)> {
        self.0
            .iter()
            .filter_map(move |sign| Some((sign.name.strip_prefix(prefix)?, sign.value.parse().ok()?)))
    }
}
