//! What happens around every handler: measuring, refusing strangers, and answers where there is no handler.

use std::any::Any;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::problem::{METHOD_NOT_ALLOWED, Problem};
use crate::session::Failure;

/// Count the request and time it to the head of its answer.
pub async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    let route = route.unwrap_or_else(|| "unmatched".to_owned());
    app.metrics.answered(&route, known_method(&method), response.status().as_u16(), begun.elapsed());
    response
}

/// A method's name; strangers' inventions share one, so that they can't make a label each.
fn known_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::HEAD | Method::OPTIONS | Method::PATCH => {
            method.as_str()
        }
        _ => "other",
    }
}

/// Refuse changes that a page of another site asks a browser for. Programs send no `Origin`.
pub async fn same_site(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if reads || is_same_site(request.headers(), request.uri()) {
        return next.run(request).await;
    }
    let failure = Failure::new(
        "cross_site",
        "a page of another site must not use this address",
        "send the request from a program, or from a page of this address",
    );
    (StatusCode::FORBIDDEN, axum::Json(super::ErrorBody::from(&failure))).into_response()
}

fn is_same_site(headers: &HeaderMap, uri: &Uri) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or(uri.authority().map(|a| a.as_str()));
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    origin.is_some() && origin == host
}

/// There is no such route.
pub async fn not_found(method: Method, uri: Uri) -> Problem {
    let shown: String = uri.path().chars().take(200).collect();
    Problem::not_found(format!("there is no route {method} {shown}"), "GET /openapi.json lists all routes")
}

/// The route has no such method.
pub async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(
        METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
        "GET /openapi.json lists the methods of each route",
    )
}

/// A defect: the request fails, the node goes on.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = (panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    tracing::error!(panic = text, "a request's handler panicked");
    Problem(Failure::internal("the request hit a defect and was given up")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_strangers() {
        let same = |origin: Option<&'static str>, host: &'static str| {
            let mut headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            headers.extend(origin.map(|origin| (header::ORIGIN, origin.parse().unwrap())));
            is_same_site(&headers, &Uri::from_static("/query"))
        };
        assert!(same(None, "127.0.0.1:8080"));
        assert!(same(Some("http://127.0.0.1:8080"), "127.0.0.1:8080"));
        assert!(!same(Some("http://evil.example"), "127.0.0.1:8080"));
        assert!(!same(Some("http://127.0.0.1:9999"), "127.0.0.1:8080"));
        assert!(!same(Some("null"), "127.0.0.1:8080"));
    }
}
