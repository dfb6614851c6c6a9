//! The rules of this code base that no linter knows. A test below runs them too.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::root;

/// The longest a source file may be, in lines: what a person keeps in mind.
const LINES_MAX: usize = 600;

/// Kinds of files whose length counts.
const SOURCES: [&str; 6] = ["rs", "sql", "html", "css", "js", "sh"];

/// Files that a program writes.
const GENERATED: [&str; 1] = ["schema.sql"];

/// Names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 9] =
    ["util", "utils", "common", "manager", "managers", "helper", "helpers", "misc", "stuff"];

/// Checks every file that git knows or would add; prints what is wrong.
pub(crate) fn tidy() -> Result<bool> {
    let faults = faults_in(&root())?;
    for fault in &faults {
        println!("{fault}");
    }
    eprintln!("tidy: {} faults", faults.len());
    Ok(faults.is_empty())
}

fn faults_in(root: &Path) -> Result<Vec<String>> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git to list the files")?;
    ensure!(
        git.status.success(),
        "git cannot list the files: {}",
        String::from_utf8_lossy(&git.stderr).trim()
    );
    let mut faults = Vec::new();
    for path in git.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
        let path = String::from_utf8_lossy(path);
        // Files that were deleted but not yet committed are listed and not there; pictures are no text.
        if let Ok(text) = fs::read_to_string(root.join(&*path)) {
            faults.extend(faults_of(&path, &text));
        }
    }
    Ok(faults)
}

/// What is wrong with one file, `path` from the root with `/` between its parts.
fn faults_of(path: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);

    for part in path.split('/') {
        let stem = part.split('.').next().unwrap_or(part).to_lowercase();
        if let Some(word) = stem.split(['_', '-']).find(|word| EMPTY_NAMES.contains(word)) {
            faults.push(format!("{path}: the name `{word}` says nothing of what is inside"));
        }
    }
    // The compiler's complaints about these are compared line by line.
    let is_compile_test = path.contains("/tests/ui/");
    if extension == "rs" && !is_compile_test && !text.starts_with("//!") {
        faults.push(format!("{path}: starts without a `//!` head that says what the file owns"));
    }
    if extension == "sql" && !text.starts_with("--") {
        faults.push(format!("{path}: starts without a `--` head that says what the file owns"));
    }
    let lines = text.lines().count();
    if SOURCES.contains(&extension) && !GENERATED.contains(&name) && lines > LINES_MAX {
        faults.push(format!("{path}: {lines} lines, more than {LINES_MAX}"));
    }
    if let Some(inside) = path.strip_prefix("crates/ambo/src/").filter(|_| extension == "rs") {
        let layer = inside.split(['/', '.']).next().unwrap_or(inside);
        if !(layer.starts_with("store") || layer == "on") {
            let code = |line: &str| line.contains("tokio_postgres") && !line.trim_start().starts_with("//");
            for (number, _) in text.lines().enumerate().filter(|(_, line)| code(line)) {
                faults.push(format!("{path}:{}: names the driver; only `store` and `on` do", number + 1));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{faults_in, faults_of};

    #[track_caller]
    fn check(path: &str, text: &str, faults: &[&str]) {
        assert_eq!(faults_of(path, text), faults);
    }

    #[test]
    fn this_workspace_is_tidy() {
        let faults = faults_in(&crate::root()).unwrap();
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn a_file_needs_a_head() {
        let head = "x.rs: starts without a `//!` head that says what the file owns";
        check("x.rs", "//! Owns x.\n", &[]);
        check("x.rs", "fn x() {}\n", &[head]);
        check("crates/ambo-macros/tests/ui/x.rs", "fn x() {}\n", &[]);
        check("x.sql", "-- Owns x.\n", &[]);
        check("x.sql", "select 1\n", &["x.sql: starts without a `--` head that says what the file owns"]);
        check("x.md", "# x\n", &[]);
    }

    #[test]
    fn a_file_has_an_end() {
        let long = format!("-- Owns x.\n{}", "\n".repeat(600));
        check("sql/x.sql", &long, &["sql/x.sql: 601 lines, more than 600"]);
        check("sql/schema.sql", &long, &[]);
        check("Cargo.lock", &long, &[]);
    }

    #[test]
    fn a_name_says_something() {
        check("src/utils.rs", "//!", &["src/utils.rs: the name `utils` says nothing of what is inside"]);
        check(
            "src/pool_manager/x.rs",
            "//!",
            &["src/pool_manager/x.rs: the name `manager` says nothing of what is inside"],
        );
        check("src/commonly.rs", "//!", &[]);
    }

    #[test]
    fn only_the_store_and_the_adapters_name_the_driver() {
        let text = "//! Like tokio_postgres.\nuse tokio_postgres::Client;\n";
        let fault = "crates/ambo/src/worker.rs:2: names the driver; only `store` and `on` do";
        check("crates/ambo/src/worker.rs", text, &[fault]);
        for path in ["store.rs", "store/claim.rs", "on.rs", "on/tokio_postgres.rs"] {
            check(&format!("crates/ambo/src/{path}"), text, &[]);
        }
        check("crates/ambo-cli/src/main.rs", text, &[]);
    }
}
