//! The simple protocol: a Query message with statements in it, each answered as it comes, in text.

use std::sync::Arc;

use super::cancel::Key;
use super::client::{Client, Stop};
use super::dialect::lex::split;
use super::known::{Known, What};
use super::run::{Answer, fields};
use super::session::Session;
use crate::session::Failure;
use crate::settings::STATEMENTS_MAX;

impl Session {
    /// Carry out the statements of a Query message. A failure ends it, and what is implicit about its transaction.
    pub(super) async fn query(&mut self, client: &mut Client, key: &Key, text: &str) -> Result<(), Stop> {
        let before = self.settings.reported();
        let mut done = self.statements_of(client, key, text).await;
        // Also when the connection is gone: half of a message is never committed.
        if done.is_err() {
            self.fail_block();
        }
        // What fails only at the end is told like what fails before.
        let ended = self.end_implicitly().await;
        if done.is_ok() {
            done = ended.map_err(Stop::Failed);
        }
        self.tell_settings(client, &before);
        done
    }

    async fn statements_of(&mut self, client: &mut Client, key: &Key, text: &str) -> Result<(), Stop> {
        let statements = split(text)?;
        if statements.is_empty() {
            client.out.plain(b'I');
            return Ok(());
        }
        if statements.len() > STATEMENTS_MAX {
            let hint = "send them in several messages, or load rows with COPY";
            let message = format!("a message has {} statements; the limit is {STATEMENTS_MAX}", statements.len());
            return Err(Failure::new("54000", message, hint).into());
        }
        // Without a statement beside it that needs one, no transaction is begun.
        let alone = statements.len() == 1;
        for statement in statements {
            let known = self.know(statement).await?;
            self.statement(client, key, &known, alone).await?;
            client.flush_much().await?;
        }
        Ok(())
    }

    async fn statement(&mut self, client: &mut Client, key: &Key, known: &Arc<Known>, alone: bool) -> Result<(), Stop> {
        if !known.parameters.is_empty() {
            let hint = "send values with the extended protocol, as drivers do for statements with parameters";
            return Err(Failure::new("42P02", "there is no parameter $1 in a simple query", hint).into());
        }
        if let What::Copy(command) = &known.what {
            self.check_block()?;
            let tag = self.copy(client, key, command, alone).await?;
            client.out.complete(&tag);
            return Ok(());
        }
        match self.run(client, key, known, Vec::new(), alone).await? {
            Answer::Empty => client.out.plain(b'I'),
            Answer::Done(tag) => client.out.complete(&tag),
            Answer::Rows(mut answer) => {
                client.out.row_description(&fields(&answer.columns, &[]));
                answer.send(client, key, &[], 0).await?;
                client.out.complete(&answer.tag.text(answer.sent));
            }
        }
        Ok(())
    }
}
