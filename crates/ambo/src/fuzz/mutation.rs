//! Hostile texts made from good ones, and the attack with them on what reads text. The tests of the CLI use this file too.

#[path = "../../tests/it/random.rs"]
pub(crate) mod random;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use random::Random;

/// What a reader may take for one text of at most a few kilobytes. Far above what any needs, for a machine may be busy; far
/// below what one takes whose work grows out of hand.
const LIMIT: Duration = Duration::from_secs(10);
/// Texts grow no longer than this.
const CHARS_MAX: usize = 4_000;

/// What readers have stumbled over.
const NASTY: &[&str] = &[
    "",
    "\0",
    "\u{1b}[2J",
    "\u{feff}",
    "\u{202e}",
    "\u{10ffff}",
    "e\u{301}",
    "ß",
    "\r\n",
    "\t",
    " ",
    "-",
    "--",
    "+",
    "-0",
    "-1",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "18446744073709551616",
    "99999999999999999999999999999999999999999",
    "0.1",
    "1e999",
    "1e-999",
    "NaN",
    "inf",
    "null",
    "none",
    "true",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "'",
    "%",
    "%00",
    "%ff",
    "../",
    "/",
    ":",
    "@",
    ",",
    "=",
    "?",
    "[",
    "]",
    "{",
    "}",
    "{}",
    "*",
    "*/0",
    "L",
    "#",
    "ambo",
    "ambo.",
];

/// Gives `read` what was made from the good texts, and these: `count` times in a usual run, more with `AMBO_FUZZ`, a factor.
///
/// # Panics
/// If `read` does, or takes too long, with the text that it was given.
pub(crate) fn attack(good: &[&str], count: usize, mut read: impl FnMut(&str)) {
    let factor: usize =
        std::env::var("AMBO_FUZZ").map_or(1, |factor| factor.parse().expect("AMBO_FUZZ is a number"));
    let mut random = Random::new();
    let mut slowest = Duration::ZERO;
    let mut one = |text: &str| {
        let begun = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| read(text))) {
            eprintln!("the hostile text is {text:?}");
            resume_unwind(panic);
        }
        slowest = slowest.max(begun.elapsed());
        assert!(slowest < LIMIT, "it took {slowest:?} over {text:?}");
    };
    good.iter().chain(NASTY).for_each(|text| one(text));
    for _ in 0..count * factor {
        one(&hostile(&mut random, good));
    }
    println!("{} texts, the slowest in {slowest:?}", count * factor);
}

/// A good text, changed in a few places.
fn hostile(random: &mut Random, good: &[&str]) -> String {
    let mut text: Vec<char> = random.pick(good).chars().collect();
    for _ in 0..=random.below(4) {
        let from = random.below(text.len() + 1);
        let to = (from + random.below(8)).min(text.len());
        match random.below(6) {
            0 => drop(text.drain(from..to)),
            1 => drop(text.splice(from..to, random.pick(NASTY).chars())),
            2 => text.truncate(from),
            // Again and again: what nests, nests deeply.
            3 => {
                let part = text[from..to].repeat(1 + random.below(300));
                drop(text.splice(from..from, part));
            }
            4 => {
                let other: Vec<char> = random.pick(good).chars().collect();
                let part = other[random.below(other.len() + 1)..].to_vec();
                drop(text.splice(from..to, part));
            }
            _ => {
                let any = char::from_u32(random.below(0x11_0000) as u32).unwrap_or('\u{fffd}');
                let any = if random.once_in(2) { any } else { (b' ' + random.below(95) as u8) as char };
                drop(text.splice(from..to, [any]));
            }
        }
        text.truncate(CHARS_MAX);
    }
    text.into_iter().collect()
}
