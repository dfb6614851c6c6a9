//! Payloads: JSON as text. What becomes of it on the way to the database is the vault's affair, and so is its size.

mod lossless;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Code, Error};

/// The largest input, output or error that is recorded in the database, in bytes of JSON. A claim brings up to 500 inputs at
/// once, and the journal holds outputs in memory: without a limit one payload could end a worker. A [`Vault`](crate::Vault)
/// with an object store takes larger ones.
pub const PAYLOAD_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The deepest nesting that is recorded: what is deeper could be written but not read back.
const DEPTH_MAX: usize = 127;

/// Recorded JSON, as the text it was.
pub(crate) type Json = Box<str>;

/// The same text with U+FFFD for each NUL: PostgreSQL keeps an escaped NUL, but reads nothing out of a value that has one.
pub(crate) fn without_nul(json: Json) -> Json {
    if !json.contains("\\u0000") {
        return json;
    }
    let mut out = String::with_capacity(json.len());
    let mut rest = &*json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let is_nul = escape.starts_with("\\u0000");
        let (now, after) = escape.split_at(if is_nul { 6 } else { 2 });
        out.push_str(if is_nul { "\\ufffd" } else { now });
        rest = after;
    }
    out.push_str(rest);
    out.into()
}

pub(crate) fn encode(what: &str, value: &impl Serialize) -> Result<Json, Error> {
    let text = serde_json::to_string(value).map_err(|error| {
        Error::new(Code::NotEncodable, format!("{what} cannot be written as JSON")).with_source(error)
    })?;
    if crate::vault::envelope::is_one(&text) {
        crate::vault::place::refuse(what)?;
    }
    // What would be lost is written as null.
    if text.contains("null")
        && let Some(loss) = lossless::look(value)
    {
        return Err(Error::new(Code::NotEncodable, format!("{what} {loss}")));
    }
    // What is shorter cannot be so deep: each level has two brackets.
    if text.len() > 2 * DEPTH_MAX && depth(&text) > DEPTH_MAX {
        return Err(Error::new(
            Code::NotEncodable,
            format!("{what} is nested deeper than {DEPTH_MAX} levels"),
        ));
    }
    Ok(text.into_boxed_str())
}

/// How deep JSON is nested.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

pub(crate) fn decode<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let text = if error.is_syntax() {
            // The database has taken it for JSON, and holds more than can be read here.
            format!(
                "{what} holds a number out of range or half of a surrogate pair, or is nested deeper than {DEPTH_MAX} levels \
                 (line {line} column {column}): send it otherwise"
            )
        } else {
            format!("{what} does not fit `{}` (line {line} column {column})", std::any::type_name::<T>())
        };
        Error::new(Code::NotDecodable, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_within_strings_are_no_depth() {
        assert_eq!(depth(r#"{"a": ["[[[", "\"[[", "\\"], "]": {}}"#), 2);
    }

    #[test]
    fn a_number_is_the_same_number_after_a_replay() {
        // Off by the last bit without serde_json's `float_roundtrip`.
        for number in [0.1 + 0.2, 51.24817837550540_4, -93.3113703768803_3, f64::MIN_POSITIVE] {
            assert_eq!(
                decode::<f64>("it", &encode("it", &number).unwrap()).unwrap().to_bits(),
                number.to_bits()
            );
        }
    }

    #[test]
    fn what_json_would_not_give_back_is_refused() {
        #[derive(Serialize)]
        struct Reading {
            at: Option<Option<u32>>,
            value: f64,
        }
        let code = |refused: Result<Json, Error>| refused.unwrap_err().code();
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(code(encode("it", &number)), Code::NotEncodable);
            assert_eq!(code(encode("it", &Some(vec![(1, number as f32)]))), Code::NotEncodable);
            assert_eq!(code(encode("it", &Reading { at: None, value: number })), Code::NotEncodable);
        }
        assert_eq!(code(encode("it", &Some(None::<u32>))), Code::NotEncodable);
        assert_eq!(code(encode("it", &vec![Some(())])), Code::NotEncodable);
        assert_eq!(code(encode("it", &Some(serde_json::Value::Null))), Code::NotEncodable);
        // A field may be read in a way of its own; and what only looks so is no loss.
        encode("it", &Reading { at: Some(None), value: 1.0 }).unwrap();
        encode("it", &(None::<u32>, (), vec![Some(1), None], "null", serde_json::json!({"a": null})))
            .unwrap();
        encode("it", &std::collections::BTreeMap::from([(1u8, None::<u128>), (2, Some(u128::MAX))])).unwrap();
    }

    #[test]
    fn what_is_taken_can_be_read_back() {
        let nested = |n| (1..n).fold(serde_json::json!([]), |inner, _| serde_json::json!([inner]));
        let text = encode("it", &nested(DEPTH_MAX)).unwrap();
        decode::<serde_json::Value>("it", &text).unwrap();
        assert_eq!(encode("it", &nested(DEPTH_MAX + 1)).unwrap_err().code(), Code::NotEncodable);
    }
}
