//! Applying what concerns triggers. See [`crate::trigger`] for why a trigger stands at its table longer than it is shown.

use crate::apply::{Applied, busy, invalid};
use crate::{
    Catalog, CommandError, DdlEffect, OperationKind, Retold, Table, Trigger, TriggerState, newest_trigger,
    trigger_named, trigger_naming, triggers_about,
};

impl Catalog {
    pub(crate) fn admit_trigger(&self, name: &str, trigger: &Trigger, about: &[Table], seen: u32) -> Applied {
        let table = self.known_table(name)?;
        if trigger_named(&self.tables, &trigger.name).is_some() {
            return Err(CommandError::Exists { what: format!("trigger {}", trigger.name) });
        }
        if newest_trigger(&self.tables) > seen {
            return Err(busy("another trigger has just been made".to_owned()));
        }
        if let Some(changed) = about.iter().find(|before| self.table(&before.name) != Some(before)) {
            return Err(busy(format!("table {} has just been changed", changed.name)));
        }
        let named = |id| about.iter().any(|table| table.id == id);
        if !named(table.id) || !trigger.writes.iter().chain(&trigger.reads).all(|id| named(*id)) {
            return Err(invalid(format!("trigger {} names tables that were not looked at", trigger.name)));
        }
        if table.triggers.len() >= Self::TRIGGERS_MAX {
            return Err(invalid(format!("a table has at most {} triggers", Self::TRIGGERS_MAX)));
        }
        Ok(())
    }

    /// What triggers say of a table is known in full, and nothing else of them changes.
    pub(crate) fn admit_retold(&self, name: &str, retold: &[Retold]) -> Applied {
        let about = || triggers_about(&self.tables, name);
        let known = |retold: &Retold| about().any(|(of, now)| of.name == retold.table && *now == retold.before);
        let ready = about().all(|(_, trigger)| trigger.state == TriggerState::Ready);
        if !ready || about().count() != retold.len() || !retold.iter().all(known) {
            return Err(busy(format!("a trigger that names {name} has just been changed")));
        }
        let texts_only = |retold: &Retold| {
            let Trigger { sql, on_shards, .. } = retold.after.clone();
            retold.after == Trigger { sql, on_shards, ..retold.before.clone() }
        };
        match retold.iter().all(texts_only) {
            true => Ok(()),
            false => Err(invalid(format!("of triggers that name {name} only the texts are to change"))),
        }
    }

    pub(crate) fn retell(&mut self, retold: &[Retold]) {
        for trigger in self.tables.values_mut().flat_map(|table| &mut table.triggers) {
            if let Some(Retold { after, .. }) = retold.iter().find(|retold| retold.before.id == trigger.id) {
                (trigger.sql, trigger.on_shards) = (after.sql.clone(), after.on_shards.clone());
            }
        }
    }

    pub(crate) fn admit_drop(&self, name: &str) -> Applied {
        let table = self.known_table(name)?;
        match trigger_naming(&self.tables, table.id) {
            Some((of, trigger)) => Err(invalid(format!("trigger {} of table {} names {name}", trigger.name, of.name))),
            None => Ok(()),
        }
    }

    /// From the start of its operation on a trigger counts.
    pub(crate) fn announce_trigger(&mut self, kind: &OperationKind) {
        let OperationKind::Ddl { effect: DdlEffect::CreateTrigger { table, trigger, .. }, .. } = kind else { return };
        let since = self.bump();
        let Some(table) = self.tables.get_mut(&table.to_ascii_lowercase()) else { return };
        self.last_trigger += 1;
        table.triggers.push(Trigger { id: self.last_trigger, state: TriggerState::Coming, since, ..trigger.clone() });
    }

    /// At the end of its operation a trigger that did not come, or that went, is gone.
    pub(crate) fn forget_trigger(&mut self, kind: &OperationKind, committed: bool) {
        let OperationKind::Ddl { effect, .. } = kind else { return };
        let (table, trigger) = match effect {
            DdlEffect::CreateTrigger { table, trigger, .. } if !committed => (table, &trigger.name),
            DdlEffect::DropTrigger { table, trigger } if committed => (table, trigger),
            _ => return,
        };
        let Some(table) = self.tables.get_mut(&table.to_ascii_lowercase()) else { return };
        table.triggers.retain(|known| known.state == TriggerState::Ready || !known.name.eq_ignore_ascii_case(trigger));
        self.bump();
    }
}

impl Table {
    pub(crate) fn set_trigger(&mut self, name: &str, state: TriggerState) {
        let mut triggers = self.triggers.iter_mut();
        if let Some(trigger) = triggers.find(|trigger| trigger.name.eq_ignore_ascii_case(name)) {
            trigger.state = state;
        }
    }
}
