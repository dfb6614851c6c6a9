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
