//! Applying what concerns shards that are servers.

use std::net::SocketAddr;

use crate::apply::{Applied, busy, invalid, unknown};
use crate::{Catalog, CommandError, NodeId, ShardId, ShardState, Table, TableChange, TableId, TableKind};

impl Catalog {
    pub(crate) fn note_server(&mut self, id: ShardId, node: NodeId, address: SocketAddr) -> Applied {
        let shard = self.shards.get_mut(&id).ok_or_else(|| unknown(id))?;
        if shard.state == ShardState::Removed || !shard.replicas.contains(&node) {
            return Err(invalid(format!("{node} does not supervise {id}")));
        }
        if shard.server != Some(address) {
            shard.server = Some(address);
            self.bump();
        }
        Ok(())
    }

    /// Whether the tables are as they were when a schema change was tried on a server.
    pub(crate) fn admit_on_servers(&self, changes: &[TableChange]) -> Applied {
        for TableChange { before, after } in changes {
            if let Some(before) = before
                && self.table(&before.name) != Some(before)
            {
                return Err(busy(format!("table {} has just been changed", before.name)));
            }
            let Some(after) = after else { continue };
            let replaces = before.as_ref().is_some_and(|before| before.name.eq_ignore_ascii_case(&after.name));
            if !replaces && self.table(&after.name).is_some() {
                return Err(CommandError::Exists { what: format!("table {}", after.name) });
            }
            if let Some((key, _)) = after.shard_key()
                && after.column(key).is_none()
            {
                return Err(invalid(format!("table {} has no column {key}, which is its shard key", after.name)));
            }
            if let TableKind::Single { shard } = after.kind {
                self.active(shard)?;
            }
        }
        let made = changes.iter().filter(|change| change.before.is_none()).count();
        if self.tables.len() + made > Self::TABLES_MAX {
            return Err(invalid(format!("a cluster has at most {} tables", Self::TABLES_MAX)));
        }
        Ok(())
    }

    pub(crate) fn change_on_servers(&mut self, changes: &[TableChange]) -> Applied {
        self.admit_on_servers(changes)?;
        for before in changes.iter().filter_map(|change| change.before.as_ref()) {
            self.tables.remove(&before.name.to_ascii_lowercase());
        }
        for TableChange { before, after } in changes {
            let Some(after) = after else { continue };
            let id = match before {
                Some(before) => before.id,
                None => {
                    self.last_table += 1;
                    TableId(self.last_table)
                }
            };
            self.tables.insert(after.name.to_ascii_lowercase(), Table { id, ..after.clone() });
        }
        Ok(())
    }
}
