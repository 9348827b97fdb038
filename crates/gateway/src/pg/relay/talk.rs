//! The session, message after message.

use std::time::Instant;

use tokio::sync::watch;

use super::Relay;
use crate::pg::cancel::Key;
use crate::pg::client::{Client, Stop};
use crate::pg::connection::{IDLE, IDLE_IN_TRANSACTION, kind, next_within};
use crate::pg::wire::Message;
use crate::pg::wire::write::{Severity, sqlstate};
use crate::session::Failure;
use crate::settings::SESSION_IDLE_DEFAULT;

/// What servers report of themselves and clients count on.
const REPORTED: [&str; 13] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

impl Relay {
    /// What a client is told when its session has begun. The servers' own words, with the session's settings.
    pub(super) async fn greet(&mut self, client: &mut Client, key: &Key) -> Result<(), Stop> {
        let shard = self.any(&self.catalog())?;
        let lease = self.lease(shard).await?;
        client.out.authentication_ok();
        for name in REPORTED {
            if let Some(value) = lease.parameter(name) {
                client.out.parameter_status(name, value);
            }
        }
        client.out.key(key.process, key.secret);
        client.out.ready(b'I');
        Ok(client.flush().await?)
    }

    /// To the session's end. An error is the connection's.
    pub(super) async fn talk(
        &mut self,
        client: &mut Client,
        key: &Key,
        mut stopping: watch::Receiver<()>,
    ) -> Result<(), Stop> {
        // After an error everything up to the next Sync is skipped.
        let mut skipping = false;
        loop {
            client.reader.release();
            let (patience, told) = match self.block {
                Some(_) => (Some(SESSION_IDLE_DEFAULT), IDLE_IN_TRANSACTION),
                None => (None, IDLE),
            };
            let message = loop {
                let pinned = self.pinned.and_then(|shard| self.parts.get_mut(&shard));
                let unasked = async {
                    match pinned {
                        Some(part) => part.lease.unasked().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    message = next_within(client, patience, told, &mut stopping) => break message?,
                    // What LISTEN has asked for. A session whose connection is lost has lost what it kept there.
                    heard = unasked => client.out.raw(&heard?),
                }
                client.flush().await?;
            };
            let Some(message) = message else { return Ok(()) };
            key.run(true);
            let begun = Instant::now();
            let kind = kind(&message);
            let done = match message {
                Message::Terminate => return Ok(()),
                Message::Sync => {
                    skipping = false;
                    let done = self.sync(client, key).await;
                    self.told(client, done)?;
                    client.out.ready(self.status());
                    client.flush().await?;
                    Ok(())
                }
                _ if skipping => Ok(()),
                Message::Query(text) => {
                    let done = Box::pin(self.query(client, key, &text)).await;
                    self.told(client, done)?;
                    client.out.ready(self.status());
                    client.flush().await?;
                    Ok(())
                }
                Message::CopyData(_) | Message::CopyDone | Message::CopyFail(_) => Ok(()),
                message => match Box::pin(self.extended(client, key, message)).await {
                    Ok(failed) => {
                        skipping |= failed;
                        Ok(())
                    }
                    Err(stop) => Err(stop),
                },
            };
            key.run(false);
            if let Err(stop) = done {
                skipping = true;
                self.give_up_series();
                self.fail_block();
                self.told(client, Err(stop))?;
                client.flush().await?;
            }
            client.flush_much().await?;
            self.shared.app.metrics.pg_message(kind, begun.elapsed());
        }
    }

    /// Tell the client of a failure, unless it is the connection's.
    fn told(&self, client: &mut Client, done: Result<(), Stop>) -> Result<(), Stop> {
        match done {
            Err(Stop::Failed(failure)) => {
                self.shared.app.metrics.failed(sqlstate(&failure.code));
                client.out.failure(Severity::Error, &here(failure), None);
                Ok(())
            }
            done => done,
        }
    }
}

/// Hints name HTTP's ways where this protocol has others.
fn here(failure: Failure) -> Failure {
    Failure { hint: failure.hint.replace("POST /tables/{table}/rows", "COPY"), ..failure }
}
