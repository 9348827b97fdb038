//! PostgreSQL servers, as far as schema changes are concerned: what is committed, what is prepared, and that the one waits for the other.

use std::collections::BTreeMap;

use pleat_cluster::*;
use pleat_engine::postgres::Asked;
use pleat_host::{HostError, ServerError};

#[derive(Default)]
pub struct Servers {
    of: BTreeMap<ShardId, Server>,
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
            change if self.prepared.values().any(|other| other == change) => Err(error("55P03")),
            change if self.made.iter().any(|made| made == change) => Err(error("42P07")),
            _ if self.refuses => Err(error("23505")),
            change => {
                *open = Some(change.to_owned());
                tag("CREATE TABLE")
            }
        }
    }
}
