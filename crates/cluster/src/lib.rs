//! What a Pleat cluster *is*: nodes, shards, partitions, tables, policy, users, operations and decisions, and
//! the one function that changes them.
//!
//! The control group replicates a log of [`Command`]s. Every node applies them in order to its own
//! [`Catalog`] with [`Catalog::apply`], which is total and deterministic: the same commands give the same
//! catalog everywhere, and a command that can't be carried out changes nothing and says why.
//! [`Catalog::check`] names every invariant that does not hold; tests and simulation call it after each
//! command.
//!
//! This crate is pure. It has no clock, no randomness, no files, no sockets and no threads: time comes in
//! as an argument ([`Millis`]) and ids are handed out by the catalog itself.

mod apply;
mod apply_servers;
mod apply_trigger;
mod catalog;
mod check;
mod command;
mod decision;
mod id;
mod key;
mod ledger;
mod merge;
mod moves;
mod node;
mod operation;
pub mod planted;
mod policy;
mod prepared;
mod rebuild;
mod receipt;
mod serial;
mod shard;
mod standby;
mod table;
mod time;
mod trigger;
mod user;
mod value;
mod view;

pub use catalog::{Catalog, Planned};
pub use check::Violation;
pub use command::{Command, CommandError, Reply};
pub use decision::{Decision, Measurement, Option_, Verdict};
pub use id::{DecisionId, Generation, Millis, NodeId, OperationId, PartitionId, ShardId, TableId, TxnId};
pub use key::{
    KeyError, KeyType, PARTITION_COUNT_DEFAULT, PARTITION_COUNT_MAX, partition_in_postgres, partition_of,
    partition_of_text,
};
pub use ledger::{CommitNumber, Decided, Ledger, LedgerCommand, LedgerError, LedgerReply};
pub use node::{Node, NodeState};
pub use operation::{Cause, Operation, OperationKind, Phase, Step};
pub use policy::{Mode, Policy, ScaleIn, Strategy, Thresholds};
pub use prepared::PreparedName;
pub use receipt::{Digest, RECEIPT_TABLES_MAX, Receipt, TableReceipt};
pub use serial::{Serial, withhold};
pub use shard::{Engine, SERVER_NAME, Shard, ShardState};
pub use standby::{Follows, Pair, Place, Standbys};
pub use table::{
    Column, DdlEffect, Index, Table, TableChange, TableKind, Tables, Tried, concerns_others, table_key, tied,
};
pub use time::rfc3339;
pub use trigger::{
    Retold, Trigger, TriggerEvent, TriggerState, newest_trigger, reached, trigger_about, trigger_named, trigger_naming,
    triggers_about,
};
pub use user::{Secret, User, Users, Verifier};
pub use value::Value;
pub use view::{Rewritten, View, ViewChange, Views};
