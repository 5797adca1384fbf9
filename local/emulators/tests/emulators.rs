//! The emulators start, answer and end.
#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use atlas_emulators::{Authority, Azurite, Moto};

#[tokio::test]
async fn azurite_keeps_queues_over_http_and_https() {
    let authority = Authority::new().unwrap();
    for azurite in [
        Azurite::start().unwrap(),
        Azurite::start_with_tls(&authority).unwrap(),
    ] {
        azurite.create_queue("work").await.unwrap();
        azurite.create_queue("work").await.unwrap();
        assert_eq!(azurite.take("work").await.unwrap(), []);
        assert!(azurite.take("other").await.is_err());
    }
}

#[tokio::test]
async fn an_emulator_ends_when_it_is_dropped() {
    let moto = Moto::start().unwrap();
    let url = format!("{}/moto-api/data.json", moto.endpoint());
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap();
    client
        .get(&url)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    drop(moto);
    assert!(client.get(&url).send().await.unwrap_err().is_connect());
}
