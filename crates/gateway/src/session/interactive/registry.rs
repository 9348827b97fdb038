//! The sessions that are open on this node.
//!
//! A session ends when it is closed, when it wasn't used for its time, or with the node. Each one that ends rolls back
//! its transaction. A session's name contains its node's, so that another node can say where it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pleat_cluster::{Millis, NodeId};
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use super::{OpenTxn, State};
use crate::session::{Executor, Failure, Request, Response};
use crate::settings::{SESSION_IDLE_DEFAULT, SESSION_IDLE_MAX, SESSIONS_MAX};

/// What a session is opened with.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// How long it may stay unused.
    pub idle: Option<Duration>,
}

/// What is told of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    pub id: String,
    pub opened: Millis,
    /// How long it has been unused; zero while a request is being carried out.
    pub unused: Duration,
    pub idle: Duration,
    pub txn: Option<OpenTxn>,
}

/// The sessions of a node.
pub(in crate::session) struct Sessions {
    node: NodeId,
    open: Mutex<BTreeMap<String, Arc<Session>>>,
}

struct Session {
    id: String,
    opened: Millis,
    idle: Duration,
    used: Mutex<Instant>,
    state: AsyncMutex<State>,
    /// What was last seen of its transaction, for whoever looks while a request is under way.
    seen: Mutex<Option<Arc<super::Txn>>>,
}

impl Sessions {
    pub(in crate::session) fn new(node: NodeId) -> Self {
        Self { node, open: Mutex::default() }
    }

    fn find(&self, id: &str) -> Result<Arc<Session>, Failure> {
        let found = self.open.lock().get(id).cloned();
        found.ok_or_else(|| {
            let home = id.rsplit_once('.').map(|(home, _)| home).filter(|home| *home != self.node.to_string());
            let hint = match home.map(str::parse::<NodeId>) {
                Some(Ok(home)) => format!("it was opened on {home}: send its requests there; GET /cluster/list-nodes has the address"),
                _ => "it was closed, expired or ended with its node: what was not committed was not done; open another with POST /sessions".to_owned(),
            };
            Failure::new("08003", format!("there is no session {id} on {}", self.node), hint)
        })
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.open.lock().values().cloned().collect()
    }
}

impl Session {
    fn look(&self) -> SessionInfo {
        let unused = match self.state.try_lock() {
            Ok(_) => self.used.lock().elapsed(),
            Err(_) => Duration::ZERO,
        };
        let txn = self.seen.lock().as_ref().map(|txn| txn.look());
        SessionInfo { id: self.id.clone(), opened: self.opened, unused, idle: self.idle, txn }
    }

    /// Roll its transaction back. Whoever still waits for it finds it empty.
    async fn end(&self) {
        let txn = self.state.lock().await.txn.take();
        *self.seen.lock() = None;
        if let Some(txn) = txn {
            txn.roll_back().await;
        }
    }
}

impl Executor {
    /// Open a session on this node.
    pub fn open_session(&self, options: SessionOptions) -> Result<SessionInfo, Failure> {
        let idle = options.idle.unwrap_or(SESSION_IDLE_DEFAULT).min(SESSION_IDLE_MAX);
        let session = Arc::new(Session {
            id: format!("{}.{}", self.sessions.node, Uuid::new_v4().simple()),
            opened: self.backend.now_ms(),
            idle,
            used: Mutex::new(Instant::now()),
            state: AsyncMutex::default(),
            seen: Mutex::default(),
        });
        {
            let mut open = self.sessions.open.lock();
            if open.len() >= SESSIONS_MAX {
                return Err(Failure::passing(
                    "53300",
                    format!("{SESSIONS_MAX} sessions are open on this node already"),
                    "close those that are not needed (GET /sessions lists them), or ask another node",
                )
                .at_limit("sessions"));
            }
            open.insert(session.id.clone(), session.clone());
        }
        pleat_consensus::spawn(expire(Arc::downgrade(&self.sessions), Arc::downgrade(&session)));
        Ok(session.look())
    }

    /// Carry out a request in a session.
    pub async fn execute_in(&self, session: &str, request: Request) -> Result<Response, Failure> {
        let session = self.sessions.find(session)?;
        let deadline = self.deadline_of(&request);
        let Ok(mut state) = tokio::time::timeout(deadline.left(), session.state.lock()).await else {
            return Err(Failure::new(
                "55P03",
                format!("the session was busy with another request for {} ms", deadline.limit().as_millis()),
                "send a session's requests one after the other",
            ));
        };
        // It may have ended while this waited.
        self.sessions.find(&session.id)?;
        *session.seen.lock() = state.txn.clone();
        let done = self.execute_each(&mut state, request).await;
        *session.seen.lock() = state.txn.clone();
        *session.used.lock() = Instant::now();
        done
    }

    /// The sessions that are open on this node.
    pub fn sessions(&self) -> Vec<SessionInfo> {
        self.sessions.all().iter().map(|session| session.look()).collect()
    }

    /// Close a session. Its transaction is rolled back.
    pub async fn close_session(&self, session: &str) -> Result<(), Failure> {
        let session = self.sessions.find(session)?;
        self.sessions.open.lock().remove(&session.id);
        session.end().await;
        Ok(())
    }

    /// Close all sessions, because the node ends.
    pub(crate) fn close_sessions(&self) {
        self.sessions.open.lock().clear();
    }
}

/// Closes a session when it wasn't used for its time.
async fn expire(sessions: Weak<Sessions>, session: Weak<Session>) {
    loop {
        let Some(left) = session.upgrade().map(|session| session.idle.saturating_sub(session.used.lock().elapsed()))
        else {
            return;
        };
        tokio::time::sleep(left.max(Duration::from_millis(1))).await;
        let (Some(sessions), Some(session)) = (sessions.upgrade(), session.upgrade()) else { return };
        let over = session.state.try_lock().is_ok() && session.used.lock().elapsed() >= session.idle;
        if over {
            sessions.open.lock().remove(&session.id);
            session.end().await;
            return;
        }
        if session.state.try_lock().is_err() {
            // A request is being carried out: it is used until that ends.
            *session.used.lock() = Instant::now();
        }
    }
}
