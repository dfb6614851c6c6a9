//! What a step owns is cloned for each attempt.
#![allow(unused)]

use ambo::Result;

struct Parcel;

#[ambo::step]
async fn ship(parcel: Parcel) -> Result<()> {
    let Parcel = parcel;
    Ok(())
}

fn main() {}
