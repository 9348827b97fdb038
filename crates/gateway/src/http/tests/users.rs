//! Users of the PostgreSQL protocol.

use axum::body::Body;
use axum::http::{Request, header};
use serde_json::json;

use crate::testing::{Answer, Client, Cluster};

const VERIFIER: &str = "SCRAM-SHA-256$4096:agZ4JOESaTyZRszu3pabOQ==$YrTTxmZ/yUuyFfWwwsZZ+AaDfYcX6UdPItN7k2SnJOQ=:HIuj9Akv4pI2TX+FLFAEewxS60AV1JO4jtC5G9K2V0w=";

async fn put(client: &Client, name: &str, body: serde_json::Value) -> Answer {
    let request = Request::put(format!("/users/{name}")).header(header::CONTENT_TYPE, "application/json");
    client.send(request.body(body.to_string().into()).unwrap()).await
}

async fn remove(client: &Client, path: &str) -> Answer {
    client.send(Request::delete(path).body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn users_are_added_listed_and_removed() {
    let client = Client::new(&Cluster::new(1));
    assert_eq!(client.get("/users").await.json, json!({"users": []}));
    for name in ["ada", "b%C3%B6b%2F1"] {
        let added = put(&client, name, json!({"verifier": VERIFIER})).await;
        assert_eq!(added.status, 200, "{}", added.text);
        assert_eq!(added.json["added"], added.json["changed"]);
    }
    let listed = client.get("/users").await;
    let names: Vec<_> = listed.json["users"].as_array().unwrap().iter().map(|user| user["name"].clone()).collect();
    assert_eq!(names, ["ada", "böb/1"]);
    assert!(!listed.text.contains("SCRAM") && !listed.text.contains("YrTT"), "{}", listed.text);
    assert_eq!(remove(&client, "/users/ada").await.json["name"], "ada");
    assert_eq!(remove(&client, "/users/ada").await.status, 404);
    let last = remove(&client, "/users/b%C3%B6b%2F1").await;
    assert_eq!((last.status, &last.json["code"]), (409, &json!("conflict")), "{}", last.text);
    assert!(last.json["hint"].as_str().unwrap().contains("--last"));
    assert_eq!(remove(&client, "/users/b%C3%B6b%2F1?last=true").await.status, 200);
    assert_eq!(client.get("/users").await.json, json!({"users": []}));
}

#[tokio::test]
async fn what_is_no_verifier_is_refused_and_not_repeated() {
    let client = Client::new(&Cluster::new(1));
    for body in [
        json!({}),
        json!({"password": "secret"}),
        json!({"verifier": "secret"}),
        json!({"verifier": VERIFIER, "password": "secret"}),
        json!({"verifier": VERIFIER.replace("4096", "1")}),
        json!({"verifier": VERIFIER.replace("agZ4JOESaTyZRszu3pabOQ==", "")}),
        json!("secret"),
    ] {
        let refused = put(&client, "ada", body.clone()).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(!refused.text.contains("secret"), "{}", refused.text);
    }
    let long = "x".repeat(64);
    for name in ["%0A", "%2E%2E", &long] {
        assert_eq!(put(&client, name, json!({"verifier": VERIFIER})).await.status, 400, "{name}");
    }
    assert_eq!(remove(&client, "/users/ada?lest=true").await.status, 400);
    let plain = Request::put("/users/ada").header(header::CONTENT_TYPE, "text/csv").body(Body::from(VERIFIER)).unwrap();
    assert_eq!(client.send(plain).await.status, 415);
    assert_eq!(client.get("/users").await.json, json!({"users": []}));
}
