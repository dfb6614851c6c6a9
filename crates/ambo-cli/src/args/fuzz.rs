//! The command line, attacked with hostile words: it is understood or refused, and what is read is what was meant.

#[path = "../../../ambo/src/fuzz/mutation.rs"]
mod mutation;

use clap::Parser as _;

use super::queue::{Length, Policy, Setting, Speed};
use super::*;
use crate::database::Database;
use crate::output::{clean, cut, one_line, wrap};
use mutation::attack;

#[test]
fn hostile_words_are_understood_or_refused() {
    let good = [
        "run enqueue fulfil {\"id\":1} --key k --dedup --start-within 5m",
        "run list --state failed --since 2d --limit 10 --json",
        "run cancel 019ab3c2-7f00-7000-8000-000000000000 --reason late --grace 10m",
        "queue set default --rate 100/1m:10 --ordered block --ageing 1h30m --concurrency none",
        "schedule set nightly report --cron 0_3_*_*_* --timezone Europe/Berlin --overlap queue",
        "schedule backfill nightly --from 2026-05-01T08:00:00Z --to 1d",
        "dead redrive --workflow fulfil --rate 0.5 --to-queue other",
        "--schema acme --database-url postgres://a@b/c workflow show fulfil --mermaid",
    ];
    let parse = |line: &str| Arguments::try_parse_from(std::iter::once("ambo").chain(line.split(' ')));
    good.iter().for_each(|line| assert!(parse(line).is_ok(), "{line} is not good"));
    attack(&good, 3_000, |line| {
        if let Err(error) = parse(line) {
            assert!(!error.to_string().is_empty());
        }
    });
}

#[test]
fn a_hostile_value_is_refused_or_read_as_what_it_is() {
    let good =
        ["1h30m", "2 days", "P1DT2H", "2026-05-01T08:00:00Z", "0.5", "customer=1001", "100/1m:10", "[1]"];
    attack(&good, 20_000, |text| {
        if let Ok(time) = time(text) {
            let _ = time.to_string();
        }
        if let Ok(span) = span(text) {
            assert!(span <= Duration::from_secs(u64::MAX / 2), "{text:?} is {span:?}");
        }
        if let Ok((key, value)) = attribute(text) {
            assert!(text.starts_with(&format!("{key}=")) && !value.to_string().is_empty());
        }
        if let Ok(json) = json(text) {
            assert_eq!(json.get(), text.trim_matches([' ', '\t', '\r', '\n']));
        }
        let _ = input(text);
        let _ = (text.parse::<Setting<Speed>>(), text.parse::<Policy>(), text.parse::<Setting<Length>>());
    });
}

#[test]
fn a_hostile_database_url_is_named_or_said_to_be_unreadable() {
    let global = Arguments::try_parse_from(["ambo", "worker", "list"]).expect("a command").global;
    let good = [
        "postgres://ann:s3cret@a:1,[::1]:2/shop?sslmode=require",
        "host=db,/run/pg port=6543 user=ann password='s3 cret' dbname=shop",
    ];
    attack(&good, 20_000, |url| {
        let place = Database::at(url.to_owned(), &global).place();
        assert!(place == "an unreadable URL" || place.starts_with("postgres://"), "{place:?}");
    });
}

#[test]
fn hostile_text_does_not_steer_the_terminal() {
    let good =
        ["fulfil \u{1b}[31mred\u{7}", "{\n  \"a\": 1,\r\n  \"b\": \"\\u001b\"\n}", "日本語の文字 and words"];
    attack(&good, 20_000, |text| {
        for shown in [clean(text), one_line(text)] {
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
        for width in [1, 2, 7, 80] {
            let _ = (cut(text, width), wrap(text, width));
        }
    });
}
