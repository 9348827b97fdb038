//! `ALTER TABLE … SHARD BY (column)`, `… REFERENCE`, `… SINGLE`: the same table, with its rows elsewhere.
//!
//! What its definition and its indexes promise has to hold in the new place as well, so they are read again from their
//! own texts. Foreign keys are not moved along, unless they are to reference tables: both tables would have to change at once. Triggers neither: what stays with a row's
//! shard by one key does not by another.

use pleat_cluster::{DdlEffect, ShardId, Table, TableKind};

use super::rules::{Rules, Unique, check_unique, sharded};
use super::{DdlAction, DdlPlan, Placement, Reader, nothing};
use crate::error::SqlError;
use crate::lex::Tokens;

impl Reader<'_> {
    /// SHARD BY (column), REFERENCE or SINGLE, if that is what comes here.
    pub(super) fn placement(&mut self) -> Result<Option<Placement>, SqlError> {
        Ok(if self.accept(&["SHARD", "BY"]) {
            Some(Placement::Sharded { key: self.shard_key()? })
        } else if self.accept(&["REFERENCE"]) {
            Some(Placement::Reference)
        } else if self.accept(&["SINGLE"]) {
            Some(Placement::Single)
        } else {
            None
        })
    }

    pub(super) fn place_table(&mut self, table: Table, placement: Placement) -> Result<DdlPlan, SqlError> {
        self.end_here()?;
        if let Some(already) = already(&table, &placement) {
            return Ok(nothing(&table.name, format!("table {} {already} already: nothing to do", table.name)));
        }
        self.check_ties(&table)?;
        self.no_trigger_about(&table, "placed anew")?;
        let rules = self.rules_of(&table)?;
        let plan = DdlPlan {
            table: table.name.clone(),
            action: DdlAction::Place(placement),
            statements: Vec::new(),
            notice: None,
            rules,
            before: Some(table),
        };
        // All that can be wrong is wrong on any shard.
        plan.place_effect(ShardId(0)).map(|_| plan)
    }

    /// Rows that refer to each other would have to go together.
    fn check_ties(&self, table: &Table) -> Result<(), SqlError> {
        // Every shard has all rows of a reference table.
        let away = |other: &Table| other.kind != TableKind::Reference && table.references(&other.name);
        let tied = self.tables.values().find(|other| other.references(&table.name) || away(other));
        match tied {
            Some(other) => Err(SqlError::unsupported(format!(
                "{} can't get another placement while a foreign key ties it to {}",
                table.name, other.name
            ))
            .hint("make new tables without the foreign key, or with the other placement, and copy the rows")),
            None => Ok(()),
        }
    }

    /// What the table and its unique indexes promise.
    fn rules_of(&self, table: &Table) -> Result<Rules, SqlError> {
        let tokens = Tokens::of(&table.create_sql)?;
        let reader = Reader { tokens: &tokens, at: 0, end: tokens.len(), tables: self.tables, views: self.views };
        let open = (0..tokens.len()).find(|at| tokens.is_symbol(*at, "("));
        let mut rules = match open {
            Some(open) => reader.rules((open + 1, tokens.closing(open)))?,
            None => Rules::default(),
        };
        for index in &table.indexes {
            let tokens = Tokens::of(&index.sql)?;
            let open = (0..tokens.len()).find(|at| tokens.is_symbol(*at, "("));
            let Some(open) = open.filter(|_| tokens.is(1, "UNIQUE")) else { continue };
            let reader = Reader { tokens: &tokens, at: 0, end: tokens.len(), tables: self.tables, views: self.views };
            let columns = reader.indexed_columns((open + 1, tokens.closing(open)));
            rules.uniques.push(Unique { what: format!("the unique index {}", index.name), columns });
        }
        Ok(rules)
    }
}

impl DdlPlan {
    /// The table with its other placement; a single one lives on `single_on`.
    pub(super) fn place_effect(&self, single_on: ShardId) -> Result<DdlEffect, SqlError> {
        let before = self.before.clone().ok_or_else(|| self.not_described())?;
        let kind = match &self.action {
            DdlAction::Place(Placement::Sharded { key }) => sharded(&before, key)?,
            DdlAction::Place(Placement::Reference) => TableKind::Reference,
            _ => TableKind::Single { shard: single_on },
        };
        let after = Table { kind, ..before.clone() };
        self.rules.uniques.iter().try_for_each(|unique| check_unique(&after, unique))?;
        // Pleat gives ids above SQLite's counters; SQLite knows nothing of Pleat's.
        if self.rules.autoincrement && after.shard_key().is_none() {
            return Err(SqlError::unsupported(format!(
                "{} has AUTOINCREMENT, and SQLite's counter would not know of ids that Pleat has given",
                before.name
            ))
            .hint("make a new table without AUTOINCREMENT, or with the other placement, and copy the rows"));
        }
        let in_primary_key = |key: &str| before.primary_key.iter().any(|column| column.eq_ignore_ascii_case(key));
        if let Some((key, _)) = before.shard_key().filter(|(key, _)| !in_primary_key(key)) {
            return Err(SqlError::unsupported(format!(
                "{} can't get another placement: its primary key does not contain its shard key {key}",
                before.name
            ))
            .hint("make a new table with the other placement, and copy the rows with INSERT … SELECT"));
        }
        Ok(DdlEffect::PlaceTable { before: Box::new(before), after: Box::new(after) })
    }
}

/// How the table is placed, when that is what is asked for.
fn already(table: &Table, placement: &Placement) -> Option<String> {
    match (&table.kind, placement) {
        (TableKind::Sharded { key, .. }, Placement::Sharded { key: wanted }) if key.eq_ignore_ascii_case(wanted) => {
            Some(format!("is sharded by {key}"))
        }
        (TableKind::Reference, Placement::Reference) => Some("is a reference table".to_owned()),
        (TableKind::Single { shard }, Placement::Single) => Some(format!("is single, on {shard},")),
        _ => None,
    }
}
