//! The control group's state machine: a [`Catalog`] in memory, published to whoever watches, and beside it the
//! [`Ledger`] of transactions, which whoever needs it looks at.
//!
//! The catalog is small, so a checkpoint writes all of it, with the position in the log that it stands for,
//! to a file of its own: written, synced, renamed. After a restart the log is replayed from there. In memory
//! and in the file, the position and the effects of what was applied are always of one piece.
//!
//! A command travels in an envelope with an id. The outcomes of the last [`RECENT_COMMANDS`] are part of the
//! state, so a command that is sent again because its leader was lost is answered, not repeated. The ledger's commands
//! need neither: done twice they do no harm.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use parking_lot::RwLock;
use pleat_cluster::{Catalog, Command, CommandError, Ledger, LedgerCommand, LedgerError, LedgerReply, Reply};
use pleat_consensus::{Applied, Entry, StateMachine};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::position::with_index;

/// How many outcomes are remembered for commands that are sent again.
const RECENT_COMMANDS: usize = 256;
/// The format of the file, and of outcomes.
const FORMAT: u8 = 7;
/// The format of a proposal that is a catalog's command.
const COMMAND: u8 = 5;
/// The format of a proposal that is a ledger's command.
const LEDGER: u8 = 2;

/// A command as it stands in the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    pub id: u128,
    pub command: Command,
}

/// What a command gave.
pub type CommandOutcome = Result<Reply, CommandError>;

/// What a ledger's command gave.
pub type LedgerOutcome = Result<LedgerReply, LedgerError>;

impl Envelope {
    pub fn encode(&self) -> anyhow::Result<Bytes> {
        encode_as(COMMAND, self)
    }
}

/// A ledger's command as it stands in the log.
pub fn encode_ledger(command: &LedgerCommand) -> anyhow::Result<Bytes> {
    encode_as(LEDGER, command)
}

/// Whether a proposal decides about a transaction.
#[cfg(feature = "failpoints")]
pub fn is_decision(proposal: &[u8]) -> bool {
    matches!(decode_as(LEDGER, proposal), Ok(LedgerCommand::Decide { .. }))
}

/// The outcome of a proposal, as its proposer gets it back.
pub fn decode_outcome(bytes: &[u8]) -> anyhow::Result<CommandOutcome> {
    decode_as(FORMAT, bytes)
}

/// The same of a ledger's command.
pub fn decode_ledger_outcome(bytes: &[u8]) -> anyhow::Result<LedgerOutcome> {
    decode_as(FORMAT, bytes)
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    applied: Applied,
    catalog: Arc<Catalog>,
    recent: VecDeque<(u128, CommandOutcome)>,
    ledger: Ledger,
}

/// The state machine.
pub struct CatalogMachine {
    file: PathBuf,
    state: State,
    publish: watch::Sender<Arc<Catalog>>,
    /// The ledger, while this runs. It is in `state` only on its way to and from a file.
    ledger: Arc<RwLock<Ledger>>,
}

/// What the rest of the node sees of the state machine.
pub struct Seen {
    pub catalog: watch::Receiver<Arc<Catalog>>,
    pub ledger: Arc<RwLock<Ledger>>,
}

impl CatalogMachine {
    /// Read the last checkpoint in `dir`, or start empty. The receiver shows every applied change.
    pub fn open(dir: &Path) -> anyhow::Result<(Self, Seen)> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let file = dir.join("catalog");
        let mut state: State = match fs::read(&file) {
            Ok(bytes) => decode_as(FORMAT, &bytes).with_context(|| format!("read {}", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let (publish, catalog) = watch::channel(state.catalog.clone());
        let ledger = Arc::new(RwLock::new(std::mem::take(&mut state.ledger)));
        let seen = Seen { catalog, ledger: ledger.clone() };
        Ok((Self { file, state, publish, ledger }, seen))
    }

    fn whole(&self) -> State {
        State { ledger: self.ledger.read().clone(), ..self.state.clone() }
    }

    fn apply_proposal(&mut self, proposal: &[u8]) -> anyhow::Result<Bytes> {
        match proposal.first() {
            Some(&LEDGER) => encode_as(FORMAT, &self.apply_ledger(proposal)?),
            _ => encode_as(FORMAT, &self.apply_one(proposal)?),
        }
    }

    fn apply_ledger(&mut self, proposal: &[u8]) -> anyhow::Result<LedgerOutcome> {
        let command: LedgerCommand = decode_as(LEDGER, proposal).context("decode a command of the ledger")?;
        let mut ledger = self.ledger.write();
        if let LedgerCommand::AllocateIds { table: asked, .. } = command {
            let catalog = &self.state.catalog;
            ledger.keep_tables(catalog.tables.len(), |table| table == asked || catalog.table_by_id(table).is_some());
        }
        Ok(ledger.apply(&command))
    }

    fn apply_one(&mut self, proposal: &[u8]) -> anyhow::Result<CommandOutcome> {
        let envelope: Envelope = decode_as(COMMAND, proposal).context("decode a command")?;
        if let Some((_, outcome)) = self.state.recent.iter().find(|(id, _)| *id == envelope.id) {
            return Ok(outcome.clone());
        }
        let outcome = Arc::make_mut(&mut self.state.catalog).apply(&envelope.command);
        debug_assert_eq!(self.state.catalog.check(), []);
        self.state.recent.push_back((envelope.id, outcome.clone()));
        if self.state.recent.len() > RECENT_COMMANDS {
            self.state.recent.pop_front();
        }
        Ok(outcome)
    }
}

impl StateMachine for CatalogMachine {
    fn applied(&mut self) -> anyhow::Result<Applied> {
        Ok(self.state.applied.clone())
    }

    fn apply(&mut self, entries: Vec<Entry>, applied: Applied) -> anyhow::Result<Vec<Vec<Bytes>>> {
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in &entries {
            let of_entry =
                entry.proposals.iter().map(|proposal| Ok(with_index(entry.index, &self.apply_proposal(proposal)?)));
            outcomes.push(of_entry.collect::<anyhow::Result<Vec<_>>>()?);
        }
        self.state.applied = applied;
        let commands = |entry: &Entry| entry.proposals.iter().any(|proposal| proposal.first() != Some(&LEDGER));
        if entries.iter().any(commands) {
            self.publish.send_replace(self.state.catalog.clone());
        }
        Ok(outcomes)
    }

    fn checkpoint(&mut self) -> anyhow::Result<Applied> {
        replace_file(&self.file, &encode_as(FORMAT, &self.whole())?)?;
        Ok(self.state.applied.clone())
    }

    fn snapshot(&mut self) -> anyhow::Result<Box<dyn FnOnce(&Path) -> anyhow::Result<Applied> + Send>> {
        let state = self.whole();
        Ok(Box::new(move |into| {
            replace_file(into, &encode_as(FORMAT, &state)?)?;
            Ok(state.applied)
        }))
    }

    fn install(&mut self, from: &Path, applied: Applied) -> anyhow::Result<()> {
        let mut state: State = decode_as(FORMAT, &fs::read(from).with_context(|| format!("read {}", from.display()))?)?;
        state.applied = applied;
        replace_file(&self.file, &encode_as(FORMAT, &state)?)?;
        *self.ledger.write() = std::mem::take(&mut state.ledger);
        self.state = state;
        self.publish.send_replace(self.state.catalog.clone());
        Ok(())
    }
}

/// Write a file so that after a crash either the old or the new content is there, whole.
pub fn replace_file(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let fresh = file.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut handle = File::create(&fresh)?;
        handle.write_all(content)?;
        handle.sync_all()?;
        fs::rename(&fresh, file)?;
        match file.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().with_context(|| format!("write {}", file.display()))
}

fn encode_as<T: Serialize>(format: u8, value: &T) -> anyhow::Result<Bytes> {
    Ok(postcard::to_extend(value, vec![format])?.into())
}

fn decode_as<'a, T: Deserialize<'a>>(format: u8, bytes: &'a [u8]) -> anyhow::Result<T> {
    match bytes.split_first() {
        Some((found, rest)) if *found == format => Ok(postcard::from_bytes(rest)?),
        Some((other, _)) => anyhow::bail!("format {other} is not known to this version of Pleat (it knows {format})"),
        None => anyhow::bail!("it is empty"),
    }
}

#[cfg(test)]
mod tests {
    use pleat_cluster::{NodeId, Policy};

    use super::*;

    fn init(id: u128) -> Bytes {
        let command = Command::Init {
            cluster_id: "c".into(),
            partition_count: 8,
            replication_factor: 1,
            nodes: vec![(NodeId(1), "node-1".into(), "127.0.0.1:1".into())],
            incarnations: Default::default(),
            shards: 1,
            engine: Default::default(),
            policy: Policy::default(),
            at: 1,
        };
        Envelope { id, command }.encode().unwrap()
    }

    fn entry(index: u64, proposals: Vec<Bytes>) -> (Vec<Entry>, Applied) {
        (vec![Entry { index, term: 1, proposals }], Applied { index, bytes: vec![7] })
    }

    #[test]
    fn a_checkpoint_is_what_a_restart_finds() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, Seen { catalog: watch, .. }) = CatalogMachine::open(dir.path()).unwrap();
        let (entries, applied) = entry(3, vec![init(1)]);
        machine.apply(entries, applied.clone()).unwrap();
        assert!(watch.borrow().is_initialised());
        let (before, _) = CatalogMachine::open(dir.path()).unwrap();
        assert_eq!(before.state.applied, Applied::default(), "nothing is on disk before a checkpoint");
        machine.checkpoint().unwrap();
        let (mut after, Seen { catalog: watch, .. }) = CatalogMachine::open(dir.path()).unwrap();
        assert_eq!(after.applied().unwrap(), applied);
        assert_eq!(watch.borrow().cluster_id, "c");
    }

    #[test]
    fn a_command_that_is_sent_again_is_answered_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, Seen { catalog: watch, .. }) = CatalogMachine::open(dir.path()).unwrap();
        let (entries, applied) = entry(1, vec![init(1)]);
        machine.apply(entries, applied).unwrap();
        let register = Command::RegisterNode {
            id: NodeId(2),
            name: "node-2".into(),
            address: "127.0.0.1:2".into(),
            incarnation: 0,
            at: 2,
        };
        let again = Envelope { id: 5, command: register }.encode().unwrap();
        let (entries, applied) = entry(2, vec![again.clone(), again]);
        let outcomes = machine.apply(entries, applied).unwrap();
        assert_eq!(outcomes[0][0], outcomes[0][1]);
        assert_eq!(watch.borrow().generation, 2);
    }

    #[test]
    fn a_snapshot_carries_the_catalog_to_another_replica() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut leader, _) = CatalogMachine::open(one.path()).unwrap();
        let (entries, applied) = entry(1, vec![init(1)]);
        leader.apply(entries, applied).unwrap();
        let file = one.path().join("copy");
        let position = leader.snapshot().unwrap()(&file).unwrap();
        let (mut follower, Seen { catalog: watch, .. }) = CatalogMachine::open(two.path()).unwrap();
        follower.install(&file, position.clone()).unwrap();
        assert_eq!(follower.applied().unwrap(), position);
        assert!(watch.borrow().is_initialised());
    }

    #[test]
    fn the_ledger_is_kept_and_copied_with_the_catalog_and_wakes_nobody() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut machine, mut seen) = CatalogMachine::open(one.path()).unwrap();
        let txn = pleat_cluster::TxnId(7);
        let decide = |commit| {
            encode_ledger(&LedgerCommand::Decide { txn, commit, participants: Vec::new(), began: 5, at: 5 }).unwrap()
        };
        let (entries, applied) = entry(1, vec![init(1)]);
        machine.apply(entries, applied).unwrap();
        seen.catalog.mark_unchanged();
        let (entries, applied) = entry(2, vec![decide(false), decide(true)]);
        let outcomes = machine.apply(entries, applied).unwrap();
        for outcome in &outcomes[0] {
            let (_, outcome) = crate::position::split_index(outcome).unwrap();
            assert_eq!(decode_ledger_outcome(outcome).unwrap(), Ok(LedgerReply::Decided { commit: None }));
        }
        assert!(!seen.catalog.has_changed().unwrap());
        machine.checkpoint().unwrap();
        let (_, after) = CatalogMachine::open(one.path()).unwrap();
        assert_eq!(after.ledger.read().decided(txn).unwrap().commit, None);
        let file = one.path().join("copy");
        let position = machine.snapshot().unwrap()(&file).unwrap();
        let (mut follower, copied) = CatalogMachine::open(two.path()).unwrap();
        follower.install(&file, position).unwrap();
        assert_eq!(*copied.ledger.read(), *seen.ledger.read());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("catalog"), [9, 9, 9]).unwrap();
        let error = CatalogMachine::open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("format 9"), "{error:#}");
    }
}
