//! Whether a licence expression (SPDX, with the older `/` for `OR`) can be met with the licences that are allowed.

/// True if some choice of what the expression offers is allowed in all of its parts.
pub(crate) fn is_allowed(expression: &str, allowed: &[String]) -> Result<bool, &'static str> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let is_met = any_of(&mut words, allowed)?;
    if words.is_empty() { Ok(is_met) } else { Err("something follows") }
}

/// Alternatives; `AND` binds tighter. `words` are in reverse: the next one is the last.
fn any_of(words: &mut Vec<&str>, allowed: &[String]) -> Result<bool, &'static str> {
    let mut is_met = all_of(words, allowed)?;
    while words.pop_if(|word| *word == "OR").is_some() {
        is_met |= all_of(words, allowed)?;
    }
    Ok(is_met)
}

fn all_of(words: &mut Vec<&str>, allowed: &[String]) -> Result<bool, &'static str> {
    let mut is_met = one(words, allowed)?;
    while words.pop_if(|word| *word == "AND").is_some() {
        is_met &= one(words, allowed)?;
    }
    Ok(is_met)
}

fn one(words: &mut Vec<&str>, allowed: &[String]) -> Result<bool, &'static str> {
    match words.pop() {
        Some("(") => {
            let is_met = any_of(words, allowed)?;
            words.pop_if(|word| *word == ")").map(|_| is_met).ok_or("a parenthesis is not closed")
        }
        None | Some(")" | "OR" | "AND" | "WITH") => Err("a licence is missing"),
        Some(name) if words.pop_if(|word| *word == "WITH").is_some() => {
            let exception = words.pop().ok_or("an exception is missing")?;
            Ok(allowed.iter().any(|known| *known == format!("{name} WITH {exception}")))
        }
        Some(name) => Ok(allowed.iter().any(|known| known == name)),
    }
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn an_expression_is_met_by_a_choice_that_is_allowed() {
        let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for (expression, is_met) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("(GPL-3.0 OR MIT) AND ISC", true),
            ("(GPL-3.0 OR MIT) AND Zlib", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT WITH LLVM-exception", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), Ok(is_met), "{expression}");
        }
        for broken in ["", "MIT OR", "AND MIT", "(MIT", "MIT)", "MIT ISC", "MIT WITH"] {
            assert!(is_allowed(broken, &allowed).is_err(), "{broken}");
        }
    }
}
