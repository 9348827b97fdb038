//! PostgreSQL servers, as far as schema changes are concerned: what is committed, what is prepared, and that the one waits for the other.

use std::collections::BTreeMap;

use pleat_cluster::*;
use pleat_engine::postgres::Asked;
use pleat_host::{HostError, ServerError};

#[derive(Default)]
pub struct Servers {
    of: BTreeMap<ShardId, Server>,
    pub ledger: Ledger,
}

/// A change is known by its text, and made once.
#[derive(Default)]
pub struct Server {
    pub made: Vec<String>,
    pub prepared: BTreeMap<String, String>,
    /// The data forbids every change.
    pub refuses: bool,
    /// For so many tries somebody has a lock.
    pub locked: u32,
    /// A client's transaction goes on for so many looks.
    pub busy: u32,
    /// What the one sequence has given.
    pub last_value: Option<i64>,
    /// Of the one table, with their partitions.
    pub rows: Vec<Vec<Option<String>>>,
}

fn error(code: &str) -> HostError {
    let message = format!("test {code}");
    HostError::Server(ServerError { code: code.to_owned(), message, detail: String::new(), retryable: false })
}

impl Servers {
    pub fn server(&mut self, shard: ShardId) -> &mut Server {
        self.of.entry(shard).or_default()
    }

    pub fn all(&self) -> impl Iterator<Item = &Server> {
        self.of.values()
    }

    /// What is left open by the last of these texts is taken back.
    pub fn ask(&mut self, shard: ShardId, texts: &[String]) -> Result<Vec<Asked>, HostError> {
        let server = self.server(shard);
        let mut open = None;
        texts.iter().map(|text| server.one(&mut open, text)).collect()
    }
}

impl Server {
    fn one(&mut self, open: &mut Option<String>, text: &str) -> Result<Asked, HostError> {
        let name = text.split('\'').nth(1).unwrap_or_default().to_owned();
        let tag = |tag: &str| Ok(Asked { tag: tag.to_owned(), ..Asked::default() });
        match text {
            text if text.starts_with("BEGIN") => tag("BEGIN"),
            "COMMIT" => tag("COMMIT"),
            text if text.starts_with("SELECT clock_timestamp") => {
                Ok(Asked { rows: vec![vec![Some("now".to_owned())]], ..Asked::default() })
            }
            text if text.starts_with("SELECT pid") => {
                self.busy = self.busy.saturating_sub(1);
                let one = ["7", "", "0.1", "idle in transaction", "UPDATE"];
                let rows =
                    if self.busy > 0 { vec![one.map(|value| Some(value.to_owned())).to_vec()] } else { Vec::new() };
                Ok(Asked { rows, ..Asked::default() })
            }
            text if text.starts_with("SELECT last_value") || text.starts_with("SELECT greatest") => {
                let last = self.last_value.map(|last| vec![Some(last.to_string())]);
                Ok(Asked { rows: last.into_iter().collect(), ..Asked::default() })
            }
            text if text.starts_with("SELECT ") && text.contains(" FROM \"public\".") => {
                let wanted = !text.contains("IS NULL") && !text.contains("count(*)");
                Ok(Asked { rows: if wanted { self.rows.clone() } else { Vec::new() }, ..Asked::default() })
            }
            text if text.starts_with("SELECT gid") => {
                let names = self.prepared.keys().filter(|known| known.starts_with(&name));
                Ok(Asked { rows: names.map(|name| vec![Some(name.clone())]).collect(), ..Asked::default() })
            }
            text if text.starts_with("PREPARE TRANSACTION") => {
                let change = open.take().expect("a transaction");
                assert!(self.prepared.insert(name, change).is_none(), "the name is in use");
                tag("PREPARE TRANSACTION")
            }
            text if text.starts_with("COMMIT PREPARED") => {
                self.made.push(self.prepared.remove(&name).ok_or_else(|| error("42704"))?);
                tag("COMMIT PREPARED")
            }
            text if text.starts_with("ROLLBACK PREPARED") => {
                self.prepared.remove(&name).ok_or_else(|| error("42704"))?;
                tag("ROLLBACK PREPARED")
            }
            _ if self.locked > 0 => {
                self.locked -= 1;
                Err(error("55P03"))
            }
            more if open.is_some() => {
                open.get_or_insert_default().push_str(&format!("\n{more}"));
                tag("DO")
            }
            change if self.prepared.values().any(|other| other.lines().next() == change.lines().next()) => {
                Err(error("55P03"))
            }
            change if self.made.iter().any(|made| made == change) => Err(error("42P07")),
            _ if self.refuses => Err(error("23505")),
            change => {
                *open = Some(change.to_owned());
                tag("CREATE TABLE")
            }
        }
    }
}
