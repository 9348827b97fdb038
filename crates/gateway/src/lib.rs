//! How clients reach a node: HTTP, and beneath it the session that carries out statements.
//!
//! - [`session`] knows SQL, placement and retries, and no protocol. The protocols stand on it.
//! - [`http`] knows JSON and no SQL.
//! - [`pg`] knows the PostgreSQL protocol, its types, and what its clients ask the system catalog.
//! - [`tls`] knows certificates; passwords are the business of [`pleat_engine::scram`].
//! - [`server`] accepts connections and knows their limits.
//! - `backend` is all that both need of the cluster: in a node it is [`pleat_host::Host`].
//!
//! A gateway holds no state that matters: caches, counters, and the events of the last moments. What a client
//! was told is in a shard's log or in the catalog before it is told.

mod backend;
mod feed;
pub mod http;
mod metrics;
mod observer;
pub mod pg;
mod recent;
pub mod server;
pub mod session;
pub mod settings;
mod statements;
pub mod tls;

#[cfg(test)]
mod testing;

use std::sync::Arc;

use axum::Router;
use pleat_host::Host;
use tokio::net::TcpListener;

pub use backend::Backend;
pub use settings::{Limits, PgSettings, Settings};

/// One node's gateway.
pub struct Gateway {
    app: http::App,
    postgresql: Arc<pg::Shared>,
    watcher: tokio::task::AbortHandle,
}

impl Gateway {
    /// A gateway of a node. Must be called inside a tokio runtime: it watches the catalog for events.
    pub fn new(host: Arc<Host>, settings: Settings) -> Self {
        Self::over(host, settings)
    }

    /// A gateway over anything that acts as a cluster.
    pub fn over(backend: Arc<dyn Backend>, settings: Settings) -> Self {
        let app = http::Shared::new(backend, settings);
        let watcher = pleat_consensus::spawn(feed::watch(app.backend.clone(), app.feed.clone())).abort_handle();
        Self { postgresql: pg::Shared::new(app.clone()), app, watcher }
    }

    /// Everything that the node's address serves over HTTP.
    pub fn router(&self) -> Router {
        http::router(&self.app, false)
    }

    /// What the coordinator's address serves: `/shards` and `/health`.
    pub fn coordinator_router(&self) -> Router {
        http::router(&self.app, true)
    }

    /// Serve PostgreSQL clients at an address, until `shutdown` completes and they have been let go.
    pub fn serve_postgresql<S: Future<Output = ()>>(
        &self,
        listener: TcpListener,
        connections_max: usize,
        shutdown: S,
    ) -> impl Future<Output = ()> + use<S> {
        pg::serve(listener, self.postgresql.clone(), connections_max, shutdown)
    }

    /// What carries out statements, for other protocols.
    pub fn executor(&self) -> &session::Executor {
        &self.app.executor
    }

    /// End the event streams, which would otherwise keep a graceful shutdown waiting.
    pub fn close(&self) {
        self.app.feed.close();
        self.app.executor.close_sessions();
        self.watcher.abort();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.close();
    }
}
