//! What the dependencies may be, where cargo-deny is not installed: `deny.toml`, as far as it can be held against the lock file
//! and what each crate says of itself. Advisories are not among that.

mod licence;

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::root;
use crate::run::{cargo, locked};

/// The registry that crates may come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The rules of `deny.toml` that are known here; what else stands in its parts is refused, lest it be thought to be checked.
#[derive(Debug, Default)]
struct Rules {
    licences: Vec<String>,
    banned: Vec<String>,
    no_duplicates: bool,
    no_wildcards: bool,
}

/// One crate that is linked into something, of whatever target.
#[derive(Debug, Default)]
struct Crate {
    name: String,
    version: String,
    licence: Option<String>,
    /// None: it is in this repository.
    source: Option<String>,
    /// Dependencies on whatever version.
    wildcards: Vec<String>,
}

/// Checks; prints what is wrong.
pub(crate) fn deny() -> Result<bool> {
    let rules = rules(&fs::read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?)?;
    let mut metadata = cargo(&["metadata", "--format-version", "1", "--all-features"]);
    let output = metadata.args(locked()).output().context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    let crates = crates(&serde_json::from_slice(&output.stdout)?)?;
    let faults = faults(&rules, &crates);
    for fault in &faults {
        println!("{fault}");
    }
    eprintln!("deny: {} crates, {} faults", crates.len(), faults.len());
    Ok(faults.is_empty())
}

fn rules(text: &str) -> Result<Rules> {
    let table: toml::Table = text.parse().context("deny.toml")?;
    let mut rules = Rules::default();
    for (part, settings) in &table {
        let settings = settings.as_table().with_context(|| format!("deny.toml: {part} is no table"))?;
        for (key, value) in settings {
            let is = |word: &str| value.as_str() == Some(word);
            match (part.as_str(), key.as_str()) {
                ("graph", "all-features") | ("bans", "allow-wildcard-paths") => {
                    ensure!(value.as_bool() == Some(true), "deny.toml: {part}.{key} can only be true here");
                }
                ("advisories", _) | ("licenses", "version") => {}
                ("licenses", "allow") => rules.licences = names(value, None)?,
                ("bans", "deny") => rules.banned = names(value, Some("crate"))?,
                ("bans", "multiple-versions") => rules.no_duplicates = is("deny"),
                ("bans", "wildcards") => rules.no_wildcards = is("deny"),
                ("sources", "unknown-registry" | "unknown-git") => {
                    ensure!(is("deny"), "deny.toml: {part}.{key} can only be \"deny\" here");
                }
                _ => bail!("deny.toml: `cargo xtask deny` does not know {part}.{key}"),
            }
        }
    }
    Ok(rules)
}

fn names(value: &toml::Value, key: Option<&str>) -> Result<Vec<String>> {
    let items = value.as_array().context("deny.toml: a list is wanted")?.iter();
    let name = |item: &toml::Value| {
        let name = if let Some(key) = key { item.get(key)?.as_str() } else { item.as_str() };
        name.map(str::to_owned)
    };
    items.map(|item| name(item).with_context(|| format!("deny.toml: {item:?} is no name"))).collect()
}

fn crates(metadata: &Value) -> Result<Vec<Crate>> {
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |package: &Value| {
        // One in this repository goes along with this one, whatever its version.
        let is_wild = |dependency: &&Value| dependency["req"] == "*" && dependency["path"].is_null();
        let dependencies = package["dependencies"].as_array()?.iter();
        Some(Crate {
            name: text(&package["name"])?,
            version: text(&package["version"])?,
            licence: text(&package["license"]),
            source: text(&package["source"]),
            wildcards: dependencies
                .filter(is_wild)
                .filter_map(|dependency| text(&dependency["name"]))
                .collect(),
        })
    };
    packages.iter().map(|package| one(package).context("cargo metadata: a package without a name")).collect()
}

fn faults(rules: &Rules, crates: &[Crate]) -> Vec<String> {
    let mut faults = Vec::new();
    for Crate { name, version, licence, source, wildcards } in crates {
        let mut fault = |what: &str| faults.push(format!("{name} {version}: {what}"));
        match licence {
            None => fault("says no licence"),
            Some(licence) => match licence::is_allowed(licence, &rules.licences) {
                Ok(true) => {}
                Ok(false) => fault(&format!("its licence is not allowed: {licence}")),
                Err(error) => fault(&format!("its licence cannot be read: {licence}: {error}")),
            },
        }
        if rules.banned.contains(name) {
            fault("is banned");
        }
        if let Some(source) = source.as_ref().filter(|source| *source != REGISTRY) {
            fault(&format!("comes from elsewhere: {source}"));
        }
        if rules.no_wildcards && source.is_none() {
            wildcards.iter().for_each(|wildcard| fault(&format!("takes any version of {wildcard}")));
        }
        let is_other = |other: &&Crate| other.name == *name && other.version != *version;
        if rules.no_duplicates && crates.iter().find(is_other).is_some_and(|other| other.version < *version) {
            fault("is there in another version too");
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{Crate, REGISTRY, Rules, deny, faults, rules};

    #[test]
    fn this_workspace_keeps_its_rules() {
        assert!(deny().unwrap());
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let rules = Rules {
            licences: vec!["MIT".into()],
            banned: vec!["bad".into()],
            no_duplicates: true,
            no_wildcards: true,
        };
        let krate = |name: &str, version: &str, licence: &str, source: Option<&str>| Crate {
            name: name.into(),
            version: version.into(),
            licence: (!licence.is_empty()).then(|| licence.into()),
            source: source.map(Into::into),
            wildcards: vec!["any".into()],
        };
        let crates = [
            krate("good", "1.0.0", "MIT OR GPL-3.0", Some(REGISTRY)),
            krate("twice", "1.0.0", "MIT", Some(REGISTRY)),
            krate("twice", "2.0.0", "MIT", Some(REGISTRY)),
            krate("bad", "1.0.0", "MIT", Some(REGISTRY)),
            krate("bare", "1.0.0", "", Some(REGISTRY)),
            krate("closed", "1.0.0", "MIT AND GPL-3.0", Some(REGISTRY)),
            krate("odd", "1.0.0", "MIT OR", Some(REGISTRY)),
            krate("forked", "1.0.0", "MIT", Some("git+https://example.org/forked")),
            krate("ours", "1.0.0", "MIT", None),
        ];
        let expected = [
            "twice 2.0.0: is there in another version too",
            "bad 1.0.0: is banned",
            "bare 1.0.0: says no licence",
            "closed 1.0.0: its licence is not allowed: MIT AND GPL-3.0",
            "odd 1.0.0: its licence cannot be read: MIT OR: a licence is missing",
            "forked 1.0.0: comes from elsewhere: git+https://example.org/forked",
            "ours 1.0.0: takes any version of any",
        ];
        assert_eq!(faults(&rules, &crates), expected);
    }

    #[test]
    fn a_rule_that_is_not_known_is_refused() {
        let error = rules("[bans]\nskip-tree = []\n").unwrap_err().to_string();
        assert_eq!(error, "deny.toml: `cargo xtask deny` does not know bans.skip-tree");
    }
}
