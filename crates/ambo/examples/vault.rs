//! Payloads that the database does not see: encrypted, the large ones in an object store; read again under a newer key.
//!
//! `DATABASE_URL=postgres://localhost/shop cargo run --example vault --features encryption,object-store`

use std::sync::Arc;

use ambo::{Client, Ctx, Error, Keyring, Result, Vault, Worker};
use object_store::local::LocalFileSystem;

#[ambo::workflow]
async fn scan(cx: Ctx, document: String) -> Result<usize> {
    Ok(cx.step("count", || async { Ok::<_, Error>(document.len()) }).await?)
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("ambo-vault-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let store = Arc::new(LocalFileSystem::new_with_prefix(&folder)?);
    // Keys come from a secret store, the current one first.
    let (spring, autumn) =
        (format!("spring:{}", "A".repeat(43) + "="), format!("autumn:{}", "B".repeat(42) + "A="));
    let vault = |keys: &str| -> Result<Vault> {
        Ok(Vault::new().keyring(Keyring::parse(keys)?).objects(store.clone(), 1024))
    };
    let client = Client::connect_unchecked(&std::env::var("DATABASE_URL")?, "ambo").await?;
    client.migrate().await?;

    let client = client.with_vault(vault(&spring)?);
    let small = scan::enqueue("a secret".to_owned()).on(&client).await?.run;
    let large = scan::enqueue("a long secret ".repeat(1000)).on(&client).await?.run;

    // The key has changed: what was written before is read with the old one.
    let client = client.with_vault(vault(&format!("{autumn},{spring}"))?);
    let worker = Worker::builder(&client).workflow::<scan>().start().await?;
    for run in [small, large] {
        let length: usize = client.handle::<scan>(run).result().await?;
        println!("{run} read {length} bytes");
        assert!(length == 8 || length == 14_000);
    }
    worker.drain(ambo::DRAIN).await;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
