//! What the compiler accepts and refuses, and what it says then. `TRYBUILD=overwrite` writes the expected text anew.

#[test]
fn the_compiler_refuses_with_advice() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
