//! Connections to one server, each somebody's for a transaction.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::connection::Connection;
use super::error::PostgresError;
use super::server::Server;

/// One attempt to connect and log in may take this long.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The pause between two attempts, at first and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LONGEST: Duration = Duration::from_millis(500);
/// Making a session what it was when it began may take this long.
const RESET_MAX: Duration = Duration::from_secs(5);

/// How much of a server a pool may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, in use or not.
    pub connections: usize,
    /// Transactions that wait for one.
    pub waiting: usize,
    /// How long each of them waits, for a connection or for a server that does not answer.
    pub wait: Duration,
}

/// A pool. Its clones are the same one.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    server: Server,
    limits: Limits,
    /// One for each connection that is somebody's. There are never more idle ones than places that nobody has.
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// The one that was used last is used next, so that those that are not needed rest.
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub fn new(server: Server, limits: Limits) -> Pool {
        let places = Arc::new(Semaphore::new(limits.connections));
        let (waiting, idle) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        Pool { shared: Arc::new(Shared { server, limits, places, waiting, idle }) }
    }

    /// A connection, for a transaction. Given up when the limits are reached.
    pub async fn lease(&self) -> Result<Lease, PostgresError> {
        self.lease_within(self.shared.limits.wait).await
    }

    /// The same, with another time to wait.
    pub async fn lease_within(&self, wait: Duration) -> Result<Lease, PostgresError> {
        let deadline = Instant::now() + wait;
        let place = self.place(deadline, wait).await?;
        let idle = self.alive();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect(deadline).await?,
        };
        Ok(Lease { connection: Some(connection), pool: self.shared.clone(), place: Some(place) })
    }

    async fn place(&self, deadline: Instant, wait: Duration) -> Result<OwnedSemaphorePermit, PostgresError> {
        let Shared { places, waiting, limits, .. } = &*self.shared;
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let _waits = Waits::begin(waiting, limits.waiting).ok_or_else(|| {
            PostgresError::Busy(format!(
                "all {} connections to the server are in use, and {} transactions wait for one, which is the limit; try again",
                limits.connections, limits.waiting
            ))
        })?;
        match timeout_at(deadline, places.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(PostgresError::Busy(format!(
                "all {} connections to the server are in use, and none became free within {} ms; try again",
                limits.connections,
                wait.as_millis()
            ))),
        }
    }

    /// An idle connection that the server has kept up.
    fn alive(&self) -> Option<Connection> {
        loop {
            // Taken out first: others need not wait while it is looked at.
            let mut connection = self.shared.idle.lock().pop()?;
            if connection.is_alive() {
                return Some(connection);
            }
            tracing::debug!("an idle connection to a PostgreSQL server was lost");
        }
    }

    /// A new one. A server that is not there may be starting again.
    async fn connect(&self, deadline: Instant) -> Result<Connection, PostgresError> {
        let mut pause = PAUSE_FIRST;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(CONNECT_MAX);
            let error = match timeout(left, Connection::open(&self.shared.server)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) if !error.is_retryable() => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => PostgresError::Unavailable("the server does not answer".to_owned()),
            };
            if Instant::now() + pause >= deadline {
                return Err(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
    }
}

/// One that waits, counted.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize, limit: usize) -> Option<Waits<'a>> {
        let next = |now: usize| (now < limit).then_some(now + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok().map(|_| Waits(waiting))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is somebody's. Dropped, it is the pool's again if nothing is open on it; if something is, what runs is cancelled and
/// the connection closed, whereby the server takes back what was not committed.
pub struct Lease {
    /// There until the drop.
    connection: Option<Connection>,
    pool: Arc<Shared>,
    place: Option<OwnedSemaphorePermit>,
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is there until the drop")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (Some(mut connection), place) = (self.connection.take(), self.place.take()) else { return };
        let pool = self.pool.clone();
        if connection.is_clean() {
            if !connection.turn.end() {
                return;
            }
            if !connection.is_stained() {
                // Before the place is another's, who would not find it otherwise.
                pool.idle.lock().push(connection);
                return;
            }
            let reset = async move {
                if let Ok(Ok(())) = timeout(RESET_MAX, connection.reset()).await
                    && connection.is_clean()
                {
                    pool.idle.lock().push(connection);
                }
                drop(place);
            };
            spawn(reset);
        } else if connection.is_working() {
            spawn(async move {
                connection.canceller().cancel().await;
                drop((connection, place));
            });
        }
    }
}

/// Without a runtime the program is about to end, and the connection with it.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(task);
    }
}
