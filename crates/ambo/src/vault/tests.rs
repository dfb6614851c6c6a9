//! Tests of the vault alone.

use std::sync::Arc;

use super::*;

fn vault() -> Vault {
    Vault::new().keyring(Keyring::new("one", [1; 32]))
}

#[tokio::test]
async fn a_ciphertext_is_bound_to_its_place() {
    let sealed = vault().seal(&Place::Step("1"), "\"text\"").await.unwrap();
    assert_eq!(vault().open(&Place::Step("1"), &sealed).await.unwrap(), "\"text\"");
    for other in [Place::Step("2"), Place::Failure("1"), Place::Input { keyed: false }] {
        assert_eq!(vault().open(&other, &sealed).await.unwrap_err().code(), Code::Undecipherable);
    }
    let again = vault().seal(&Place::Step("1"), "\"text\"").await.unwrap();
    assert_ne!(sealed, again, "a nonce was used twice");
}

#[tokio::test]
async fn an_error_keeps_its_code_in_the_clear() {
    let error = serde_json::to_string(&Error::message("secret")).unwrap();
    let sealed = vault().seal(&Place::Failure("1"), &error).await.unwrap();
    assert!(!sealed.contains("secret"));
    let seen: Error = serde_json::from_str(&sealed).unwrap();
    assert_eq!(seen.code(), Code::Application);
    assert_eq!(vault().open(&Place::Failure("1"), &sealed).await.unwrap(), error);
    let failed = r#"{"code":"AMBO027","message":"secret","at":["2.1"]}"#;
    let sealed = vault().seal(&Place::Failure("1"), failed).await.unwrap();
    let seen: serde_json::Value = serde_json::from_str(&sealed).unwrap();
    assert_eq!(seen["at"], serde_json::json!(["2.1"]), "a retry asks for it in SQL");
    // Ambo's own errors hold no payloads, and stay legible.
    let own = serde_json::to_string(&Error::new(Code::StepTimeout, "too long")).unwrap();
    assert_eq!(&*vault().seal(&Place::Failure("1"), &own).await.unwrap(), own);
}

#[test]
fn a_ring_is_read_and_never_shown() {
    let one = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
    let ring = Keyring::parse(&format!("b:{one}=, a:{one}")).unwrap();
    assert_eq!(format!("{ring:?}"), r#"["b", "a"]"#);
    for wrong in ["", "a", "a:AQEB", &format!("a b:{one}"), &format!("a:{one},a:{one}")] {
        let error = Keyring::parse(wrong).unwrap_err();
        assert_eq!(error.code(), Code::Configuration);
        assert!(!format!("{error} {error:?}").contains("AQEB"), "{error}");
    }
    assert!(!format!("{:?}", vault()).contains('1'));
}

#[tokio::test]
async fn limits_grow_with_a_store() {
    let store = Arc::new(object_store::memory::InMemory::new());
    let text = |bytes| "x".repeat(bytes);
    assert!(Vault::new().encode("it", &text(PAYLOAD_BYTES_MAX)).is_err());
    assert!(Vault::new().encode("it", &text(PAYLOAD_BYTES_MAX - 2)).is_ok());
    // Encrypted, it still fits into the database.
    let longest = vault().encode("it", &text(vault().limit() - 2)).unwrap();
    let place = Place::Signal { topic: "t", keyed: true };
    assert!(vault().seal(&place, &longest).await.unwrap().len() <= PAYLOAD_BYTES_MAX);
    assert!(Vault::new().objects(store, 128).encode("it", &text(OBJECT_BYTES_MAX - 2)).is_ok());
}

#[test]
fn a_hostile_envelope_is_refused_or_opens_to_what_was_sealed() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let vault = vault().objects(Arc::new(object_store::memory::InMemory::new()), 100);
    let place = Place::Step("1");
    let payloads = ["\"text\"".to_owned(), format!("\"{}\"", "x".repeat(200))];
    let seal = |payload| runtime.block_on(vault.seal(&place, payload)).expect("an envelope").to_string();
    let sealed = payloads.each_ref().map(|payload| seal(payload));
    crate::fuzz::attack(&[&sealed[0], &sealed[1]], 20_000, |text| {
        match runtime.block_on(vault.open(&place, text)) {
            Ok(opened) if envelope::is_one(text) => {
                assert!(payloads.iter().any(|payload| opened == *payload))
            }
            Ok(opened) => assert_eq!(opened, text),
            Err(error) => {
                let codes = [Code::NoVault, Code::Undecipherable, Code::ObjectMissing];
                assert!(codes.contains(&error.code()), "{error}");
            }
        }
    });
}

#[test]
fn a_hostile_ring_of_keys_is_refused_without_being_shown() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    crate::fuzz::attack(&[&format!("one:{key}"), &format!("two:{key},one:{key}")], 20_000, |text| {
        if let Err(error) = Keyring::parse(text) {
            assert_eq!(error.code(), Code::Configuration);
            assert!(!error.to_string().contains(&key[..20]));
        }
    });
}

#[test]
fn a_digest_is_that_of_the_value_however_hostile_its_spelling() {
    let good =
        [r#"{"b":[1,2.50,-0.0,1e400],"a":{"\u00e9":null,"é":"\ud83d\ude00"}}"#, "[18446744073709551616,1E2]"];
    crate::fuzz::attack(&good, 20_000, |text| {
        let canonical = digest::canonical(text);
        assert_eq!(digest::canonical(&canonical), canonical);
        assert_eq!(digest::canonical(&format!(" {canonical}\n")).trim(), canonical.trim());
    });
}
