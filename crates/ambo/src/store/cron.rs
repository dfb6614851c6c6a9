//! Cron patterns: SQL lets in what Rust can read, and nothing else.

use tokio_postgres::NoTls;

use super::test_server::server;
use crate::fuzz::{Random, attack};
use crate::schedule::Timing;

/// Patterns made from parts; `AMBO_FUZZ` makes them more.
const COUNT: usize = 20_000;

/// A pattern as people write it, or nearly so.
fn pattern(random: &mut Random) -> String {
    const NUMBERS: &[&str] = &[
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "6",
        "7",
        "8",
        "11",
        "12",
        "13",
        "23",
        "24",
        "28",
        "31",
        "32",
        "59",
        "60",
        "007",
        "65535",
        "65536",
        "99999999999999999999",
        "",
    ];
    const WORDS: &[&str] = &[
        "MON", "sun", "Sat-Sun", "sun-tue", "jan", "DEC", "feb-MAR", "L", "LW", "15W", "31W9L", "5L", "5LL",
        "L5", "1-3L", "5#3", "5#6", "1-5#2", "1-5/2#1", "5#3-L", "*/2#L", "1##L", "#L", "?", "?/2", "W", "-",
        "--", "/", "*/", "1-2-3", "1/2/3", "*-5", "MON1",
    ];
    const NOISE: &[&str] = &[
        "*", "/", "-", ",", "#", "L", "W", "?", "+", "@", "0", "9", " ", "\t", "\u{b}", "\u{a0}", "ß", "ſun",
        "ı", "a",
    ];
    let number = |random: &mut Random| {
        if random.once_in(3) { random.pick(NUMBERS) } else { random.pick(&NUMBERS[..8]) }
    };
    let item = |random: &mut Random| match random.below(10) {
        0..=3 => "*".to_owned(),
        4 | 5 => number(random).to_string(),
        6 => format!("{}-{}", number(random), number(random)),
        7 => format!("*/{}", number(random)),
        8 => format!("{}-{}/{}", number(random), number(random), number(random)),
        _ => random.pick(WORDS).to_string(),
    };
    let field = |random: &mut Random| {
        if !random.once_in(4) {
            return "*".to_owned();
        }
        let items: Vec<String> = (0..*random.pick(&[1, 1, 1, 2, 3])).map(|_| item(random)).collect();
        format!("{}{}", if random.once_in(20) { "+" } else { "" }, items.join(","))
    };
    let fields: Vec<String> =
        (0..*random.pick(&[5, 5, 5, 5, 6, 6, 6, 4, 7])).map(|_| field(random)).collect();
    let mut text = fields.join(*random.pick(&[" ", " ", "  ", "\t"]));
    if random.once_in(4) {
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let noise: &&str = random.pick(NOISE);
        text.insert_str(*random.pick(&places), noise);
    }
    text
}

#[tokio::test]
async fn sql_reads_the_cron_patterns_that_rust_reads() {
    let (url, _cluster) = server();
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("connect");
    tokio::spawn(connection);
    // Functions of this session alone.
    let functions = include_str!("../../sql/functions/cron.sql").replace("ambo.", "pg_temp.");
    client.batch_execute(&functions).await.expect("the functions");

    let mut random = Random::new();
    let factor: usize = std::env::var("AMBO_FUZZ").map_or(1, |factor| factor.parse().expect("a number"));
    let mut patterns: Vec<String> = (0..COUNT * factor).map(|_| pattern(&mut random)).collect();
    let good = [
        "@daily",
        " @Hourly ",
        "*/5 8-18 * * MON-FRI",
        "0 0 LW 2 *",
        "0 0 15W * +5#3",
        "1 2 3 4 JAN-jun 5L",
        "*/65535 * * * *",
    ];
    attack(&good, 5_000, |text| patterns.push(text.to_owned()));
    // No text of PostgreSQL holds one.
    patterns.retain(|pattern| !pattern.contains('\0'));
    let faults = "select pg_temp.cron_fault(p) from unnest($1::text[]) with ordinality u (p, n) order by n";
    let faults = client.query(faults, &[&patterns]).await.expect("answers");
    let mut read = 0;
    for (pattern, fault) in patterns.iter().zip(&faults) {
        let fault: Option<String> = fault.get(0);
        let timing = Timing::new(Some(pattern), None, None);
        let is_read = timing.is_ok();
        assert_eq!(fault.is_none(), is_read, "{pattern:?}: SQL {fault:?}, Rust {:?}", timing.err());
        read += usize::from(is_read);
    }
    let share = 100 * read / patterns.len();
    assert!((10..90).contains(&share), "{share} of a hundred can be read: too one-sided to show much");
}
