//! A reference table: every write is the same on all shards, in one order, and there when it is acknowledged.
//!
//! Its rows are accounts like the others, so the same oracle judges them. They are read beside a row of a sharded table, which picks the
//! shard whose copy is read.

use pleat_oracle::{Account, BALANCE, Seen, Wrong};
use rand::Rng;

use crate::client::{Answer, Told};
use crate::workload::{AGAIN_MS, Client, seen};
use crate::world::{ACCOUNTS, COPIES, Phase};

/// As [`pleat_cluster::Catalog`] and the shards know it.
pub const TABLE: &str = "copies";
const CREATE: &str =
    "CREATE TABLE copies (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, items TEXT NOT NULL) REFERENCE";
/// The pause between two requests, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 20..200;
/// How much of what is asked are writes.
const WRITES: f64 = 0.4;

/// The table and its rows.
pub fn founding() -> Vec<String> {
    let row = |id| format!("INSERT INTO copies (id, balance, items) VALUES ({id}, {BALANCE}, '')");
    std::iter::once(CREATE.to_owned()).chain(COPIES.map(row)).collect()
}

impl Client {
    /// Write to the reference table, and read its copies.
    pub async fn work_on_copies(mut self) {
        loop {
            self.pause(PAUSE_MS).await;
            if self.world.phase() != Phase::Working {
                continue;
            }
            let _asking = self.world.asking();
            let row = self.chance.random_range(COPIES);
            if self.chance.random_bool(WRITES) {
                self.write_copies(row).await;
            } else {
                let account = self.chance.random_range(ACCOUNTS);
                self.read_copy(row, account).await;
            }
        }
    }

    async fn write_copies(&mut self, row: Account) {
        let amount = self.chance.random_range(1..10);
        let token = self.world.copies(|oracle| oracle.begin_write(vec![(row, amount)]));
        let key = self.chance.random_bool(0.5).then(|| format!("copy-{token}"));
        let text =
            format!("UPDATE {TABLE} SET balance = balance + {amount}, items = items || '{token},' WHERE id = {row}");
        match self.see_through(&text, key, 1).await {
            Some(true) => self.world.copies(|oracle| oracle.done(token)),
            Some(false) => self.world.copies(|oracle| oracle.not_done(token)),
            None => {}
        }
    }

    /// Read a row as the shard has it that has the account. False: there was no answer.
    async fn read_copy(&mut self, row: Account, account: Account) -> bool {
        let floor = self.world.copies(|oracle| oracle.begin_read_of_a_copy());
        let text = format!(
            "SELECT c.id, c.balance, c.items FROM accounts AS a JOIN {TABLE} AS c ON c.id = {row} WHERE a.id = {account}"
        );
        let rows = match self.ask(&text, None).await {
            Told::Answer(Answer::Rows(rows)) => rows,
            Told::Answer(answer) => {
                self.world.wrong(format!("a read of a copy was answered {answer:?}"));
                return false;
            }
            Told::Not(_) | Told::Unknown(_) => return false,
        };
        let all = rows.iter().map(|row| seen(row)).collect::<Result<Vec<Seen>, Wrong>>();
        let checked = all.and_then(|all| match all.iter().map(|one| one.account).eq([row]) {
            true => self.world.copies(|oracle| oracle.read(&floor, &all)),
            false => Err(format!("a read of row {row} of {TABLE} shows {all:?}")),
        });
        if let Err(wrong) = checked {
            self.world.wrong(format!("{TABLE}, beside account {account}: {wrong}"));
        }
        true
    }

    /// Read every row once more, beside every account.
    pub async fn audit_copies(&mut self) {
        for row in COPIES {
            for account in ACCOUNTS {
                while !self.read_copy(row, account).await {
                    self.pause(AGAIN_MS).await;
                }
            }
        }
    }
}
