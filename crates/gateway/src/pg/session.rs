//! One client's session: its settings, its prepared statements and portals, and its transaction block.
//!
//! # Transactions
//!
//! ```text
//!            BEGIN, or a second statement before Sync
//!   idle ───────────────────────────────────────────► open ──an error──► failed
//!    ▲                                                  │ ▲                │ │
//!    └──────COMMIT, ROLLBACK, the end of a message──────┘ └──ROLLBACK TO───┘ │
//!    ▲                                                                       │
//!    └────────────ROLLBACK, or COMMIT, which then rolls back─────────────────┘
//! ```
//!
//! A block is one of the gateway's interactive transactions (`crate::session`). There a statement that fails is undone and
//! the transaction goes on, as in SQLite; PostgreSQL's clients expect it to have failed until it is rolled back, or
//! to a savepoint, and that is what happens here: every statement in a failed block gets `25P02`.
//!
//! A block is *implicit* when no BEGIN made it: several statements in one Query message, or between two Syncs, are done all
//! or not at all. A statement that is alone there needs no block, which is also the faster way.
//!
//! A schema change, or COPY FROM, is no part of a transaction here. In a block that has done nothing yet it is carried out at
//! once, and a warning says that rolling back won't undo it: so tools that begin a transaction around everything work.
//! In a block that has read or written something it is refused.

use std::collections::HashMap;
use std::sync::Arc;

use super::Shared;
use super::client::Client;
use super::extended::{Portal, Prepared};
use super::known::{Known, Tag};
use super::settings::Settings;
use super::wire::write::Severity;
use crate::session::{Control, Failure, Request, SessionOptions};
use crate::settings::{PG_HELD_BYTES_MAX, PG_STATEMENTS_MAX, SESSION_IDLE_MAX};

/// What a client is to Pleat.
pub struct Session {
    pub shared: Arc<Shared>,
    pub settings: Settings,
    pub user: String,
    pub database: String,
    pub process: u32,
    pub(super) statements: HashMap<String, Arc<Prepared>>,
    pub(super) portals: HashMap<String, Portal>,
    block: Option<Block>,
}

/// An open transaction.
struct Block {
    /// Of the gateway's sessions.
    session: String,
    implicit: bool,
    failed: bool,
}

impl Session {
    pub fn new(shared: Arc<Shared>, settings: Settings, user: String, database: String, process: u32) -> Self {
        Self {
            shared,
            settings,
            user,
            database,
            process,
            statements: HashMap::new(),
            portals: HashMap::new(),
            block: None,
        }
    }

    /// The letter that ReadyForQuery tells.
    pub fn status(&self) -> u8 {
        match &self.block {
            None => b'I',
            Some(block) if block.failed => b'E',
            Some(_) => b'T',
        }
    }

    pub fn in_block(&self) -> bool {
        self.block.is_some()
    }

    /// Whether rows wait for the client that hold something on the shards. (Those of a block are in memory.)
    pub fn holds_rows(&self) -> bool {
        self.block.is_none() && self.portals.values().any(Portal::has_rows)
    }

    /// All that is known of a statement.
    pub async fn know(&self, text: &str) -> Result<Arc<Known>, Failure> {
        self.shared.know(text).await
    }

    /// The session of the block, for a statement in it.
    pub(super) fn block(&self) -> Option<&str> {
        self.block.as_ref().map(|block| block.session.as_str())
    }

    /// A failed block refuses everything but its end.
    pub(super) fn check_block(&self) -> Result<(), Failure> {
        match &self.block {
            Some(block) if block.failed => Err(Failure::new(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
                "end it with ROLLBACK, or go back to a savepoint with ROLLBACK TO",
            )),
            _ => Ok(()),
        }
    }

    /// A statement failed.
    pub(super) fn fail_block(&mut self) {
        if let Some(block) = &mut self.block {
            block.failed = true;
        }
    }

    /// Whether something that is no part of a transaction may be done now; and if that is inside of one, what to warn of.
    pub(super) fn outside(&self, what: &str) -> Result<Option<String>, Failure> {
        let Some(block) = self.block() else { return Ok(None) };
        let sessions = self.shared.app.executor.sessions();
        let open = sessions.into_iter().find(|session| session.id == block).and_then(|session| session.txn);
        match open.is_some_and(|txn| txn.shards.is_empty()) {
            true => Ok(Some(format!("{what} is done at once, and is not undone when the transaction is rolled back"))),
            false => Err(Failure::new(
                "25001",
                format!("{what} is no part of a transaction, and this one has read or written something already"),
                "do it first in the transaction, or outside of one; the driver may call that autocommit",
            )),
        }
    }

    /// Begin a block, with BEGIN's own text.
    pub(super) async fn begin(&mut self, text: &str, implicit: bool) -> Result<(), Failure> {
        let executor = &self.shared.app.executor;
        // How long it may idle is this protocol's to say: see `connection`.
        let session = executor.open_session(SessionOptions { idle: Some(SESSION_IDLE_MAX) })?.id;
        if let Err(failure) = executor.execute_in(&session, self.request(text)).await {
            executor.close_session(&session).await.ok();
            return Err(failure);
        }
        self.block = Some(Block { session, implicit, failed: false });
        self.settings.begin();
        Ok(())
    }

    /// A block for statements that belong together without a BEGIN.
    pub(super) async fn begin_implicitly(&mut self) -> Result<(), Failure> {
        match self.block {
            None => self.begin("BEGIN", true).await,
            Some(_) => Ok(()),
        }
    }

    /// End the block that no BEGIN made, if there is one.
    pub(super) async fn end_implicitly(&mut self) -> Result<(), Failure> {
        match &self.block {
            Some(block) if block.implicit => {
                let commit = !block.failed;
                self.end(commit).await
            }
            Some(_) => Ok(()),
            None => {
                // Portals live as long as their transaction.
                self.portals.clear();
                Ok(())
            }
        }
    }

    /// End the block. Whatever comes of it, there is none afterwards.
    pub(super) async fn end(&mut self, commit: bool) -> Result<(), Failure> {
        let Some(block) = self.block.take() else { return Ok(()) };
        self.portals.clear();
        let executor = &self.shared.app.executor;
        let ended = match commit {
            true => executor.execute_in(&block.session, self.request("COMMIT")).await.map(|_| ()),
            false => Ok(()),
        };
        // Rolls back what is still open.
        executor.close_session(&block.session).await.ok();
        self.settings.end(commit && ended.is_ok());
        ended
    }

    /// BEGIN, COMMIT and their like. Gives the tag.
    pub(super) async fn control(
        &mut self,
        client: &mut Client,
        control: &Control,
        text: &str,
        tag: &Tag,
    ) -> Result<String, Failure> {
        let tag = tag.text(0);
        let mut warn = |code, message| client.out.notice(Severity::Warning, code, message);
        match control {
            Control::Begin(mode) => {
                self.check_block()?;
                match &mut self.block {
                    None => self.begin(text, false).await?,
                    Some(block) if block.implicit => block.implicit = false,
                    Some(_) => warn("25001", "there is already a transaction in progress"),
                }
                if mode.read_only {
                    self.settings.set("transaction_read_only", Some("on"), true)?;
                }
            }
            Control::Commit | Control::Rollback => {
                let implicit = self.block.as_ref().is_none_or(|block| block.implicit);
                if implicit {
                    warn("25P01", "there is no transaction in progress");
                }
                let failed = self.block.as_ref().is_some_and(|block| block.failed);
                let commit = *control == Control::Commit && !failed;
                self.end(commit).await?;
                if failed {
                    return Ok("ROLLBACK".to_owned());
                }
            }
            Control::Savepoint(_) | Control::Release(_) | Control::RollbackTo(_) => {
                let back = matches!(control, Control::RollbackTo(_));
                if !back {
                    self.check_block()?;
                }
                let block = self.block.as_ref().filter(|block| !block.implicit).ok_or_else(|| {
                    Failure::new("25P01", format!("{tag} can only be used in transaction blocks"), "BEGIN opens one")
                })?;
                self.shared.app.executor.execute_in(&block.session, self.request(text)).await?;
                if back && let Some(block) = &mut self.block {
                    block.failed = false;
                }
            }
        }
        Ok(tag)
    }

    /// A request without parameters.
    pub(super) fn request(&self, text: &str) -> Request {
        Request {
            text: text.to_owned(),
            timeout: self.settings.statement_timeout(),
            origin: "postgresql",
            ..Request::default()
        }
    }

    /// Whether there is room for one more statement or portal of so many bytes.
    pub(super) fn check_room(&self, bytes: usize) -> Result<(), Failure> {
        let (statements, portals) = (self.statements.values(), self.portals.values());
        let held = statements.map(|one| one.size()).chain(portals.map(Portal::size)).sum::<usize>();
        if self.statements.len() + self.portals.len() < PG_STATEMENTS_MAX && held + bytes <= PG_HELD_BYTES_MAX {
            return Ok(());
        }
        Err(Failure::new(
            "53400",
            format!(
                "a connection keeps at most {PG_STATEMENTS_MAX} prepared statements and portals, of {PG_HELD_BYTES_MAX} bytes"
            ),
            "close those that are not used any more, or DEALLOCATE ALL",
        ))
    }

    /// The connection ends.
    pub async fn close(mut self) {
        self.portals.clear();
        if let Some(block) = self.block.take() {
            self.shared.app.executor.close_session(&block.session).await.ok();
        }
    }
}
