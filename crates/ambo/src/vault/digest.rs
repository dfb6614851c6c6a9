//! Digests of payloads: what the database compares where it cannot read them.

/// The JSON value, not its spelling: keys in their order.
pub(super) fn canonical(json: &str) -> String {
    fn sorted(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(map) => {
                let ordered: std::collections::BTreeMap<_, _> =
                    map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
                ordered.into_iter().collect::<serde_json::Map<_, _>>().into()
            }
            serde_json::Value::Array(values) => values.into_iter().map(sorted).collect(),
            other => other,
        }
    }
    serde_json::from_str(json).map_or_else(|_| json.to_owned(), |value| sorted(value).to_string())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digest of a payload that is no secret.
#[cfg(feature = "object-store")]
pub(super) fn of(json: &str) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(canonical(json)))
}
