//! The SQL that Ambo runs, under the schema name that it was installed with.

use std::borrow::Cow;

use crate::error::{Code, Error, Result};

/// The words of SQL that cannot stand before a dot without quotes, and schemas that are somebody else's.
const TAKEN: &str = " all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation \
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time \
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze from full \
    grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit localtime \
    localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references returning right \
    select session_user similar some symmetric system_user table tablesample then to trailing true union unique user using \
    variadic verbose when where window with information_schema public ";

/// The name of the schema: `ambo` unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schema(Cow<'static, str>);

impl Schema {
    /// A name that needs no quoting, so that it can stand in SQL as it is.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let plain = name.len() <= 40
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !name.starts_with("pg_");
        if !plain {
            return Err(Error::new(
                Code::Configuration,
                "the name of the schema has 1 to 40 of a-z, 0-9 and _, does not begin with a digit or pg_",
            ));
        }
        if TAKEN.contains(&format!(" {name} ")) {
            return Err(Error::new(
                Code::Configuration,
                format!(
                    "the schema cannot be called {name}: that is a word of SQL or a schema that is not Ambo's alone; choose another"
                ),
            ));
        }
        Ok(Schema(Cow::Owned(name.to_owned())))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// SQL written for the schema `ambo`, for this one. Also renames what derives from the schema: lock keys
    /// and channels, which are written `ambo.sleep` and so on.
    pub(crate) fn sql<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.0 == "ambo" {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len() + 64);
        let mut rest = text;
        while let Some(at) = rest.find("ambo") {
            let before = rest[..at].chars().next_back();
            let after = &rest[at + 4..];
            let word = !before.is_some_and(|c| c.is_alphanumeric() || c == '_');
            out.push_str(&rest[..at]);
            let schema = word
                && (after.starts_with('.') && !after.starts_with(".notify")
                    || rest[..at].ends_with("schema ")
                    || rest[..at].ends_with('\'') && after.starts_with('\''));
            out.push_str(if schema { &self.0 } else { "ambo" });
            rest = after;
        }
        out.push_str(rest);
        Cow::Owned(out)
    }

    /// The channel on which sleeping workers are woken.
    pub(crate) fn channel(&self, name: &str) -> String {
        format!("{}.{name}", self.0)
    }
}

impl Default for Schema {
    fn default() -> Self {
        Schema(Cow::Borrowed("ambo"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_qualified_names_are_renamed() {
        let schema = Schema::new("jobs").unwrap();
        let sql = "select ambo.wake(), 'ambo.sleep', current_setting('ambo.notify'), 'ambo step of worker ', xambo.y, x = 'ambo' in schema ambo";
        assert_eq!(
            schema.sql(sql),
            "select jobs.wake(), 'jobs.sleep', current_setting('ambo.notify'), 'ambo step of worker ', xambo.y, x = 'jobs' in schema jobs"
        );
    }

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for name in
            ["", "Ambo", "a-b", "1a", "pg_x", "a\"; drop", &"x".repeat(41), "user", "public", "with", "all"]
        {
            assert_eq!(Schema::new(name).unwrap_err().code(), Code::Configuration, "{name}");
        }
    }
}
