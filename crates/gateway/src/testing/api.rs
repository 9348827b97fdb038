//! A client of the gateway's HTTP interface, without a socket.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use serde_json::{Value as Json, json};
use tower::ServiceExt;

use super::Cluster;
use crate::{Gateway, Settings};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
    pub json: Json,
}

/// A client.
pub struct Client {
    pub gateway: Gateway,
    router: Router,
}

impl Client {
    pub fn new(cluster: &Arc<Cluster>) -> Self {
        Self::with(cluster, Settings { version: "0.0.0".to_owned(), ..Settings::default() })
    }

    pub fn with(cluster: &Arc<Cluster>, settings: Settings) -> Self {
        let gateway = Gateway::over(cluster.clone(), settings);
        let router = gateway.router();
        Self { gateway, router }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let json = serde_json::from_str(&text).unwrap_or(Json::Null);
        Answer { status, text, json }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, media: &str, body: impl Into<Body>) -> Answer {
        self.send(Request::post(path).header(header::CONTENT_TYPE, media).body(body.into()).unwrap()).await
    }

    pub async fn patch(&self, path: &str, body: Json) -> Answer {
        let request = Request::patch(path).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(body.to_string().into()).unwrap()).await
    }

    /// A whole request to `/query`.
    pub async fn query(&self, request: Json) -> Answer {
        self.post("/query", "application/json", request.to_string()).await
    }

    /// A statement that must succeed.
    pub async fn run(&self, sql: &str) -> Json {
        let answer = self.query(json!({ "query": sql })).await;
        assert_eq!(answer.status, 200, "{sql}: {}", answer.text);
        answer.json
    }

    /// A statement that must fail: its status and code.
    pub async fn refused(&self, sql: &str) -> (u16, String) {
        let answer = self.query(json!({ "query": sql })).await;
        assert_ne!(answer.status, 200, "{sql}: {}", answer.text);
        assert!(answer.json["error"].is_string() && answer.json["hint"].is_string(), "{}", answer.text);
        (answer.status, answer.json["code"].as_str().unwrap().to_owned())
    }

    /// The rows of a statement as arrays, in JSON.
    pub async fn rows(&self, sql: &str) -> Json {
        let answer = self.run(sql).await;
        let columns = answer["columns"].as_array().unwrap().clone();
        let data = answer["data"].as_array().unwrap().iter();
        data.map(|row| columns.iter().map(|name| row[name.as_str().unwrap()].clone()).collect::<Json>()).collect()
    }
}
