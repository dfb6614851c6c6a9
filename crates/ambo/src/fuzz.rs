//! Everything in this crate that reads text from outside, attacked with hostile text: it answers or refuses, soon, and what it
//! answers is sound. Not coverage-guided: texts are mutated from good ones. `AMBO_FUZZ=100 cargo xtask test hostile` for longer.

mod mutation;

use std::time::Duration;

use jiff::Timestamp;

use crate::engine::history::History as Recorded;
use crate::error::{Code, Error};
use crate::graph::Shape;
use crate::id::{self, RunId};
use crate::replay_check::History;
use crate::schedule::{Timing, tick_of};
use crate::store::Schema;
use crate::store::connect::Target;
pub(crate) use mutation::attack;
pub(crate) use mutation::random::Random;

const RUN: &str = "019ab3c2-7f00-7000-8000-000000000000";

#[test]
fn a_hostile_id_or_code_is_refused_or_means_what_it_says() {
    attack(&[RUN, "{019ab3c2-7f00-7000-8000-000000000000}", "AMBO021", "AM021"], 50_000, |text| {
        if let Ok(id) = text.parse::<RunId>() {
            assert_eq!(id.to_string().parse::<RunId>().expect("its own text"), id);
        }
        if let Some(code) = Code::parse(text) {
            assert!(code.as_str() == text || code.sqlstate() == text);
        }
    });
}

#[test]
fn a_hostile_notification_names_what_it_names_or_nothing() {
    let run: RunId = RUN.parse().expect("an id");
    attack(&["0000", "0000,ffff,12ab", "0000,,+1,-1,10000"], 50_000, |text| {
        let tags: Vec<u16> = id::tags(text).collect();
        assert!(tags.len() <= 1 + text.matches(',').count());
        for tag in tags {
            assert!(id::tags(&format!("{tag:04x}")).eq([tag]));
        }
        // Whatever else is in it, what stands between commas is heard.
        assert!(id::tags(&format!("{text},0000")).any(|tag| tag == id::tag(&run.as_uuid())));
    });
}

#[test]
fn a_hostile_error_is_refused_or_stays_what_it_is() {
    let good = [
        r#"{"code":"AMBO027","message":"text","at":["2.1"],"permanent":true}"#,
        r#"{"code":"AMBO100","message":"déjà","application":{"reason":[1,2.5,null]},"sqlstate":"40001"}"#,
    ];
    attack(&good, 30_000, |text| {
        let Ok(error) = serde_json::from_str::<Error>(text) else { return };
        let written = serde_json::to_string(&error).expect("what was read can be written");
        let again: Error = serde_json::from_str(&written).expect("what was written can be read");
        assert_eq!((error.code(), error.text()), (again.code(), again.text()));
        let _ = format!("{error} {error:?} {:?}", error.details::<Vec<String>>());
    });
}

#[test]
fn a_hostile_schedule_is_refused_or_goes_forward() {
    let good = [
        "*/5 8-18 * * MON-FRI",
        "0 0 29 2 *",
        "0 0 L * *",
        "15 30 4 1,15 JAN-JUN 1#2",
        "0 0 31 4 *",
        "@daily",
        "30 2 * * 0#L",
    ];
    let start: Timestamp = "2026-03-28T23:59:59Z".parse().expect("a time");
    attack(&good, 3_000, |text| {
        if let Ok(timing) = Timing::new(Some(text), Some("Europe/Berlin"), None) {
            let mut time = start;
            for _ in 0..3 {
                let Some(next) = timing.next(time, time) else { break };
                assert!(next > time, "{next} comes after {time}");
                time = next;
            }
        }
        let _ = Timing::new(Some("0 0 * * *"), Some(text), None);
        let _ = tick_of(text);
        let _ = tick_of(&format!("name@{text}"));
    });
}

#[test]
fn an_interval_of_any_length_goes_forward_or_ends() {
    let spans = [1, 59, 86_400, 1 << 40, 631_107_417_600, i64::MAX as u64, u64::MAX].map(Duration::from_secs);
    for span in spans.into_iter().chain([Duration::MAX, Duration::from_nanos(1_000_000_001)]) {
        let Ok(timing) = Timing::new(None, None, Some(span)) else { continue };
        let times = [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX];
        for (after, tick) in times.iter().flat_map(|after| times.map(|tick| (*after, tick))) {
            assert!(timing.next(after, tick).is_none_or(|next| next > after), "{span:?} {after} {tick}");
            assert!(timing.first_before(tick, after) <= after, "{span:?} {after} {tick}");
        }
    }
}

#[test]
fn a_hostile_schema_name_is_refused_or_needs_no_quotes() {
    attack(&["ambo", "acme_1", "select ambo.run from 'ambo' where 'ambo.sleep'"], 50_000, |text| {
        if let Ok(schema) = Schema::new(text) {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(!text.is_empty() && schema.name().chars().all(plain), "{text:?}");
        }
        let _ = Schema::new("acme").expect("a name").sql(text);
    });
}

#[test]
fn a_hostile_database_url_is_refused_without_being_shown() {
    let good = [
        "postgres://shop:hunter2secret@[::1]:5432/orders?sslmode=require&connect_timeout=3",
        "postgresql:///orders?host=/run/postgresql&options=-c%20search_path%3Dx",
        "host=a,b port=1,2 user=shop password='hunter2 secret' dbname=orders",
    ];
    attack(&good, 30_000, |text| {
        let schema = Schema::new("ambo").expect("a name");
        if let Err(error) = Target::parse(text, schema) {
            assert_eq!(error.code(), Code::Configuration);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    });
}

#[test]
fn a_hostile_history_is_refused_or_read_to_its_end() {
    let good = [
        r#"{"id":"019ab3c2-7f00-7000-8000-000000000000","workflow":"a","state":"failed","input":1,"error":{"code":"AMBO021",
            "message":""},"steps":[{"position":"1","name":"a","output":1},{"position":"2.4","name":"b","error":{}},
            {"position":"2.5.0.1","name":"ambo:patch p"},{"position":"0.1","name":"ambo:retry","output":"2026-01-01T00:00:00Z"}]}"#,
        r#"{"id":"019ab3c2-7f00-7000-8000-000000000000","workflow":"a","state":"succeeded","output":[],"steps":[{"position":"0.0",
            "name":"ambo:continued","output":{"input":1,"from":4294967294,"times":3,"published":{"k":2147483647}}},
            {"position":"4294967295","name":"a","output":null}]}"#,
    ];
    attack(&good, 10_000, |text| {
        let Ok(history) = History::from_json(text) else { return };
        let recorded = Recorded::new(history.checkpoints());
        for branch in ["", "2", "2.4", text] {
            for next in [0, 1, 5, u32::MAX] {
                let _ = recorded.patch(branch, next, "q");
            }
            recorded.built(branch, u32::MAX);
            recorded.fail(branch);
        }
        let _ = (recorded.left(), recorded.from(), recorded.raced(), recorded.unhandled());
    });
}

#[test]
fn a_hostile_graph_is_refused_or_drawn() {
    let good = [
        r#"{"nodes":[{"name":"input","kind":"input","inputs":[],"gives":"u8"},{"name":"b","kind":"step","inputs":[0],"gives":"Vec<u8>"},
            {"name":"c","kind":"sequence","inputs":[0,1,1],"gives":"()"}],"output":2}"#,
        r#"{"nodes":[],"output":0}"#,
    ];
    attack(&good, 10_000, |text| {
        let Ok(shape) = serde_json::from_str::<Shape>(text) else { return };
        let lines = shape.text().lines().count();
        assert!(lines >= shape.nodes.len(), "a node is missing");
        assert!(!shape.mermaid().contains('\u{1b}'), "what steers a terminal came through");
    });
}
