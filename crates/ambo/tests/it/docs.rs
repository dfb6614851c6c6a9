//! What the documentation promises about codes.

use std::path::Path;

use ambo::Code;

#[test]
fn every_code_has_a_page_and_every_page_a_code() {
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
    let index = std::fs::read_to_string(pages.join("README.md")).expect("the index of errors");
    for code in Code::ALL {
        let page = std::fs::read_to_string(pages.join(format!("{code}.md"))).unwrap_or_default();
        assert!(page.starts_with(&format!("# {code}: ")), "{code} has no page that begins with it");
        assert!(page.contains(code.sqlstate()), "the page of {code} names its SQLSTATE");
        assert!(index.contains(&format!("[{code}]({code}.md)")), "{code} is not in the index");
    }
    let count = std::fs::read_dir(&pages).expect("pages").count();
    assert_eq!(count, Code::ALL.len() + 1, "a page without a code");
}

#[test]
fn every_feature_in_the_table_has_the_test_that_it_names() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("../../docs/guide/features.md")).expect("the table");
    let tests = sources(&root.join("tests/it"))
        + &sources(&root.join("src"))
        + &sources(&root.join("../ambo-cli/tests/cli"));
    let features: Vec<&str> =
        table.lines().filter(|line| line.starts_with("| ") && line.contains("| yes |")).collect();
    assert!(features.len() > 20, "the table was not read");
    for feature in features {
        let test = feature.split('`').nth(1).unwrap_or_else(|| panic!("no test in {feature}"));
        assert!(tests.contains(&format!("fn {test}()")), "there is no test {test}");
    }
}

#[test]
fn every_test_that_the_guarantees_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../../docs/guarantees.md")).expect("the page");
    let tests = sources(&root.join("tests/it"))
        + &sources(&root.join("../ambo-model/tests"))
        + &sources(&root.join("../ambo-cli/tests/cli"));
    // Commands and settings have spaces, dots or slashes; names of tests have many words.
    let names: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| {
            name.matches('_').count() > 3 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
        .collect();
    assert!(names.len() > 40, "the page was not read");
    for name in names {
        assert!(tests.contains(&format!("fn {name}()")), "there is no test {name}");
    }
}

#[test]
fn the_guide_has_every_metric_with_its_meaning() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/observe.md");
    let page = std::fs::read_to_string(page).expect("the page");
    for (name, meaning) in ambo::telemetry::ALL {
        assert!(
            page.contains(&format!("| `{name}` | {meaning} |")),
            "{name} is not in the table as it is described"
        );
    }
    let rows = page.lines().filter(|line| line.starts_with("| `ambo_")).count();
    assert_eq!(rows, ambo::telemetry::ALL.len(), "a metric that is not there");
}

/// The text of all files of a folder.
fn sources(folder: &Path) -> String {
    std::fs::read_dir(folder)
        .expect("tests")
        .filter_map(|file| std::fs::read_to_string(file.expect("a file").path()).ok())
        .collect()
}
