//! HTTP: one module per resource over [`session`](crate::session).
//!
//! Handlers only translate. What a statement means is the session's business, what the cluster is like the
//! catalog's and the observer's. All routes are in one list ([`endpoints`]), from which the router is made and
//! with which a test compares the OpenAPI document.
//!
//! The interface is for programs on any machine, so it trusts nothing that it reads: bodies are limited
//! before they are held, and statements are limited in number. It asks nobody who they are ([`users`] are for the PostgreSQL protocol); so that a page in the
//! operator's browser can't use it behind their back, a request that changes something and says that it
//! comes from another site is refused ([`guard`]).

mod cluster;
mod decisions;
mod document;
mod events;
mod extract;
#[cfg(feature = "failpoints")]
mod failpoints;
mod guard;
mod health;
mod ndjson;
mod openapi;
mod operations;
mod placement;
mod problem;
mod query;
mod rebalance;
mod rows;
mod scrape;
mod servers;
mod sessions;
mod shards;
mod statements;
mod tables;
#[cfg(test)]
mod tests;
mod txns;
mod users;
mod value;

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodRouter, delete, get, patch, post, put};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_http::catch_panic::CatchPanicLayer;

pub use cluster::{ControlLeaderBody, NodeBody, NodesBody, PeerBody, PlacementBody, StatusBody};
pub use decisions::{
    DecisionBody, DecisionsBody, MeasurementBody, OptionBody, PolicyBody, ScaleInBody, ThresholdsBody,
};
pub use health::{ControlBody, HealthBody, HostedBody};
pub use openapi::Document;
pub use operations::{
    CauseBody, DigestBody, OperationBody, OperationsBody, ProgressBody, ReceiptBody, StepBody, TableReceiptBody,
};
pub use placement::{PlacedBody, PlacementOfBody, PlacementRequest};
pub use problem::{ErrorBody, Position};
pub use query::{QueryRequest, QueryResponse, StatementBody, Trailer};
pub use rebalance::{LeftOutBody, MoveBody, RebalanceBody, RebalancedBody};
pub use rows::{RejectedBody, RowsError, RowsRequest, RowsResponse};
pub use sessions::{SessionBody, SessionRequest, SessionsBody};
pub use shards::{LatencyBody, ShardBody};
pub use statements::{ForgottenBody, StatementFigures, StatementsBody};
pub use tables::{ColumnBody, IndexBody, TableBody, TablesBody, TriggerBody};
pub use txns::{InDoubtBody, OpenTxnBody, SessionTxnBody, TxnsBody};
pub use users::{UserBody, UserRequest, UsersBody};

use crate::backend::Backend;
use crate::feed::Feed;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::session::{Executor, Failure, OVERLOADED};
use crate::settings::{EVENT_STREAMS_MAX, LIST_MAX, Settings};
pub(crate) use problem::Problem;

/// What every handler has.
pub(crate) struct Shared {
    pub backend: Arc<dyn Backend>,
    pub executor: Executor,
    pub observer: Arc<Observer>,
    pub settings: Arc<Settings>,
    pub metrics: Arc<Metrics>,
    pub feed: Arc<Feed>,
    /// Places for statements and batches.
    pub places: Arc<Semaphore>,
    /// Places for event streams.
    pub event_streams: Arc<Semaphore>,
}

pub(crate) type App = Arc<Shared>;

impl Shared {
    pub fn new(backend: Arc<dyn Backend>, settings: Settings) -> App {
        let settings = Arc::new(settings);
        let metrics = Arc::new(Metrics::default());
        let observer = Arc::new(Observer::new(backend.clone()));
        let executor = Executor::new(backend.clone(), observer.clone(), settings.clone(), metrics.clone());
        Arc::new(Self {
            feed: Arc::new(Feed::new(backend.started_at_ms())),
            places: Arc::new(Semaphore::new(settings.limits.requests_in_flight)),
            event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
            backend,
            executor,
            observer,
            settings,
            metrics,
        })
    }

    /// A place for a statement or batch, or the refusal at once: a queue would only add waiting to overload.
    pub fn admit(&self) -> Result<Admitted, Problem> {
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => {
                self.metrics.in_flight().inc();
                Ok(Admitted { _permit: permit, metrics: self.metrics.clone() })
            }
            Err(_) => Err(Problem(
                Failure::passing(
                    OVERLOADED,
                    format!("this node serves {} requests already", self.settings.limits.requests_in_flight),
                    "try again after a short pause, with fewer requests at once, or ask another node",
                )
                .at_limit("requests_in_flight"),
            )),
        }
    }
}

/// A place among the requests that are served.
pub(crate) struct Admitted {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.metrics.in_flight().dec();
    }
}

/// One route.
pub(crate) struct Endpoint {
    #[cfg_attr(not(test), expect(dead_code, reason = "told by the handler; the test of the document reads it"))]
    pub method: Method,
    pub path: &'static str,
    handler: MethodRouter<App>,
    /// Whether the coordinator's address serves it too.
    coordinator: bool,
}

/// Every route.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    let endpoint = |method, path, handler| Endpoint { method, path, handler, coordinator: false };
    let read = |path, handler| endpoint(Method::GET, path, handler);
    let change = |path, handler| endpoint(Method::POST, path, handler);
    let both = |path, handler| Endpoint { coordinator: true, ..endpoint(Method::GET, path, handler) };
    vec![
        change("/query", post(query::query)),
        read("/statements", get(statements::list)),
        endpoint(Method::DELETE, "/statements", delete(statements::reset)),
        change("/sessions", post(sessions::open)),
        read("/sessions", get(sessions::list)),
        endpoint(Method::DELETE, "/sessions/{id}", delete(sessions::close)),
        change("/sessions/{id}/query", post(sessions::query)),
        read("/txns", get(txns::list)),
        read("/tables", get(tables::list)),
        read("/tables/{table}", get(tables::show)),
        change("/tables/{table}/placement", post(placement::place)),
        change("/tables/{table}/rows", post(rows::insert)),
        both("/shards", get(shards::list)),
        both("/health", get(health::health)),
        read("/metrics", get(scrape::metrics)),
        read("/cluster/status", get(cluster::status)),
        read("/cluster/list-nodes", get(cluster::list_nodes)),
        read("/operations", get(operations::list)),
        change("/operations", post(operations::begin)),
        read("/operations/{id}", get(operations::show)),
        change("/operations/{id}/cancel", post(operations::cancel)),
        change("/rebalance", post(rebalance::begin)),
        read("/decisions", get(decisions::list)),
        read("/decisions/{id}", get(decisions::show)),
        change("/decisions/{id}/approve", post(decisions::approve)),
        read("/policy", get(decisions::policy)),
        endpoint(Method::PATCH, "/policy", patch(decisions::change)),
        read("/users", get(users::list)),
        endpoint(Method::PUT, "/users/{name}", put(users::put)),
        endpoint(Method::DELETE, "/users/{name}", delete(users::remove)),
        read("/events", get(events::events)),
        read("/openapi.json", get(openapi::document)),
    ]
}

/// The router of a node's address, or of the coordinator's.
pub(crate) fn router(app: &App, coordinator: bool) -> Router {
    let mut router = Router::new();
    for endpoint in endpoints().into_iter().filter(|endpoint| endpoint.coordinator || !coordinator) {
        router = router.route(endpoint.path, endpoint.handler);
    }
    #[cfg(feature = "failpoints")]
    let router = router.route("/failpoints", axum::routing::put(failpoints::configure));
    router
        .method_not_allowed_fallback(guard::method_not_allowed)
        .route_layer(from_fn_with_state(app.clone(), guard::measure))
        .fallback(guard::not_found)
        .layer(from_fn(guard::same_site))
        .layer(CatchPanicLayer::custom(guard::panicked))
        .with_state(app.clone())
}

/// How many entries a list has.
fn list_limit(asked: Option<usize>) -> Result<usize, Problem> {
    const LIST_DEFAULT: usize = 100;
    match asked {
        None => Ok(LIST_DEFAULT),
        Some(limit) if (1..=LIST_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Problem::bad_request(
            format!("limit={limit} is out of range"),
            format!("limit is from 1 to {LIST_MAX}"),
        )),
    }
}
