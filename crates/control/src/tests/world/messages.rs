//! Messages to shards: how many are on their way, and what becomes of rows in them.

use super::*;

/// A write on its way.
pub struct Writing<'a>(&'a World);

impl<'a> Writing<'a> {
    pub fn begin(world: &'a World) -> Self {
        world.with(|inner| {
            inner.writing += 1;
            inner.written_at_once = inner.written_at_once.max(inner.writing);
        });
        Self(world)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.with(|inner| inner.writing -= 1);
    }
}

impl Inner {
    /// A message of rows, as it arrives.
    pub(super) fn carried(&mut self, mut action: Action) -> Action {
        let Action::Move(MoveStep { action: MoveAction::Import { changes, .. }, .. }) = &mut action else {
            return action;
        };
        let compared = self.catalog.open_operations().any(|open| open.steps.iter().any(|step| step.name == "verify"));
        let Some(users) = changes.iter_mut().find(|table| table.table == "users" && !table.rows.is_empty()) else {
            return action;
        };
        let mut rows = users.rows.to_values();
        let Some(Value::Text(text)) = rows.last_mut().and_then(|row| row.last_mut()).filter(|_| !compared) else {
            return action;
        };
        self.imports += 1;
        if self.faults.contains(&Fault::Spoil(self.imports)) {
            text.push('!');
            users.rows = rows.into();
        }
        action
    }

    /// How many messages of rows have come before the comparison.
    pub fn imports(&self) -> u64 {
        self.imports
    }
}
