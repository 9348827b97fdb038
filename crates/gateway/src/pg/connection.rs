//! One connection from its first byte to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pleat_cluster::Engine;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use super::Shared;
use super::cancel::Key;
use super::client::{Client, Stop};
use super::relay;
use super::session::Session;
use super::settings::Settings;
use super::start::{Started, start};
use super::wire::write::{Severity, sqlstate};
use super::wire::{Broken, Message};
use crate::session::Failure;
use crate::settings::SESSION_IDLE_DEFAULT;

/// Serve a client until it leaves, or has to.
pub async fn serve(stream: TcpStream, shared: Arc<Shared>, places: Arc<Semaphore>, mut stopping: watch::Receiver<()>) {
    let stall = shared.app.settings.limits.client_stall;
    // It may be gone already.
    let Ok(peer) = stream.peer_addr() else { return };
    let mut client = Client::new(stream, shared.large.clone(), stall);
    let time = shared.app.settings.pg.startup_time;
    let starting = tokio::time::timeout(time, start(&mut client, &shared, peer.ip().to_canonical()));
    let started = tokio::select! {
        started = starting => started.unwrap_or(Err(Broken::Slow("the session did not begin in time").into())),
        _ = stopping.changed() => return,
    };
    let started = match started {
        Ok(Some(started)) => started,
        Ok(None) => return,
        Err(stop) => return dismiss(client, stop, None).await,
    };
    let Ok(_place) = places.try_acquire() else {
        let hint = "close connections that are not needed, use a pool, or raise limits.connections";
        let full = Failure::passing("53300", "sorry, too many clients already", hint).at_limit("connections");
        return dismiss(client, full.into(), None).await;
    };
    let key = shared.cancels.key();
    shared.app.metrics.pg_connected(true);
    let ended = match shared.app.backend.catalog().engine {
        Engine::Sqlite => embedded(&mut client, &shared, started, &key, stopping).await,
        Engine::Postgres => relay::serve(&mut client, &shared, started, &key, stopping).await,
    };
    shared.app.metrics.pg_connected(false);
    drop(key);
    if let Err(stop) = ended {
        dismiss(client, stop, Some(&shared)).await;
    }
}

/// A session on embedded shards.
async fn embedded(
    client: &mut Client,
    shared: &Arc<Shared>,
    started: Started,
    key: &Key,
    stopping: watch::Receiver<()>,
) -> Result<(), Stop> {
    let Started { user, database, settings: asked } = started;
    let mut settings = Settings::new(&user);
    for (name, value) in asked {
        settings.start_with(&name, &value)?;
    }
    let mut session = Session::new(shared.clone(), settings, user, database, key.process);
    greet(client, &session, key);
    let ended = talk(client, &mut session, key, stopping).await;
    session.close().await;
    ended
}

/// Tell a client why it has to go, if it can still hear it.
async fn dismiss(mut client: Client, stop: Stop, shared: Option<&Shared>) {
    let failure = match stop {
        Stop::Failed(failure) => failure,
        Stop::Stale => Failure::internal("a statement was not routed anew"),
        Stop::Broken(Broken::Socket(error)) => {
            tracing::debug!(%error, "a PostgreSQL connection broke");
            return;
        }
        Stop::Broken(broken) => match broken.tell() {
            Some((code, message)) => Failure::new(code, message, ""),
            None => return,
        },
    };
    if let Some(shared) = shared {
        shared.app.metrics.failed(&failure.code);
    }
    tracing::debug!(code = %failure.code, message = %failure.message, "a PostgreSQL client is dismissed");
    client.out.failure(Severity::Fatal, &failure, None);
    client.close().await;
}

/// What a client is told when its session has begun.
fn greet(client: &mut Client, session: &Session, key: &Key) {
    client.out.authentication_ok();
    for (name, value) in session.settings.reported() {
        client.out.parameter_status(name, &value);
    }
    client.out.key(key.process, key.secret);
    client.out.ready(session.status());
}

/// The session, message after message. An error is the connection's end.
async fn talk(
    client: &mut Client,
    session: &mut Session,
    key: &Key,
    mut stopping: watch::Receiver<()>,
) -> Result<(), Stop> {
    // After an error everything up to the next Sync is skipped.
    let mut skipping = false;
    // What is answered in one piece is sent when the client waits for it.
    client.flush().await?;
    loop {
        client.reader.release();
        let Some(message) = next(client, session, &mut stopping).await? else { return Ok(()) };
        key.run(true);
        let begun = Instant::now();
        let kind = kind(&message);
        let done = match message {
            Message::Terminate => return Ok(()),
            Message::Sync => {
                skipping = false;
                let done = session.end_implicitly().await.map_err(Stop::Failed);
                told(client, session, done, None)?;
                client.out.ready(session.status());
                client.flush().await?;
                Ok(())
            }
            _ if skipping => Ok(()),
            Message::Query(text) => {
                let done = Box::pin(session.query(client, key, &text)).await;
                // A place in one of several statements would be taken for one in the message.
                told(client, session, done, Some(text.as_str()).filter(|text| !text.contains(';')))?;
                client.out.ready(session.status());
                client.flush().await?;
                Ok(())
            }
            Message::Flush => Ok(client.flush().await?),
            Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => Ok(()),
            message => Box::pin(session.extended(client, key, message)).await,
        };
        key.run(false);
        if let Err(stop) = done {
            skipping = true;
            session.fail_block();
            told(client, session, Err(stop), None)?;
            client.flush().await?;
        }
        client.flush_much().await?;
        session.shared.app.metrics.pg_message(kind, begun.elapsed());
    }
}

/// Tell the client of a failure, unless it is the connection's. `text` is what the failure has a place in.
fn told(client: &mut Client, session: &Session, done: Result<(), Stop>, text: Option<&str>) -> Result<(), Stop> {
    match done {
        Err(Stop::Failed(failure)) => {
            session.shared.app.metrics.failed(sqlstate(&failure.code));
            client.out.failure(Severity::Error, &in_these_terms(failure), text);
            Ok(())
        }
        done => done,
    }
}

/// Hints name HTTP's ways where this protocol has others.
fn in_these_terms(failure: Failure) -> Failure {
    let hint = match failure.limit {
        Some("timeout_ms") => "narrow the statement, or raise statement_timeout".to_owned(),
        _ => failure.hint.replace("POST /tables/{table}/rows", "COPY"),
    };
    Failure { hint, ..failure }
}

/// The next message; `None` when the client is gone. While nothing is going on, the connection ends when the node does, or when
/// it idles for too long.
async fn next(
    client: &mut Client,
    session: &Session,
    stopping: &mut watch::Receiver<()>,
) -> Result<Option<Message>, Stop> {
    let (patience, told) = match session.in_block() {
        true => (
            Some(session.settings.time("idle_in_transaction_session_timeout").unwrap_or(SESSION_IDLE_DEFAULT)),
            IDLE_IN_TRANSACTION,
        ),
        false if session.holds_rows() => (
            Some(session.shared.app.settings.limits.client_stall),
            ("57P05", "terminating connection because rows of a portal are not fetched"),
        ),
        false => (session.settings.time("idle_session_timeout"), IDLE),
    };
    next_within(client, patience, told, stopping).await
}

/// What a client is told that idles for too long: in a transaction, and outside of one.
pub const IDLE_IN_TRANSACTION: (&str, &str) = ("25P03", "terminating connection due to idle-in-transaction timeout");
pub const IDLE: (&str, &str) = ("57P05", "terminating connection due to idle-session timeout");

/// The next message, if it begins to come within a time (`None`: whenever it does); the client is told what `told` says otherwise.
pub async fn next_within(
    client: &mut Client,
    patience: Option<Duration>,
    told: (&'static str, &'static str),
    stopping: &mut watch::Receiver<()>,
) -> Result<Option<Message>, Stop> {
    let idle = async {
        match patience {
            Some(patience) => tokio::time::sleep(patience.min(Duration::from_secs(86_400))).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        seen = client.reader.peek() => if seen?.is_none() { return Ok(None) },
        _ = stopping.changed() => {
            let hint = "connect again, to this node or another one";
            return Err(Failure::new("57P01", "terminating connection because the node stops", hint).into());
        }
        () = idle => {
            let (code, what) = told;
            return Err(Failure::new(code, what, "").into());
        }
    }
    Ok(client.reader.message().await?)
}

/// For the metrics.
pub fn kind(message: &Message) -> &'static str {
    match message {
        Message::Query(_) => "query",
        Message::Parse { .. } => "parse",
        Message::Bind(_) => "bind",
        Message::Describe(_) => "describe",
        Message::Execute { .. } => "execute",
        Message::Close(_) => "close",
        Message::Flush => "flush",
        Message::Sync => "sync",
        Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => "copy",
        Message::Terminate => "terminate",
    }
}
