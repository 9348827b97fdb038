//! A real PostgreSQL server, a pool to it, and what a client would do with a lease.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use pleat_engine::postgres::wire::backend::{SqlState, Status};
use pleat_engine::postgres::wire::frontend::Bind;
use pleat_engine::postgres::{
    Address, Connection, Lease, Limits, Password, Pool, PostgresError, Reply, Request, Server, Statement,
};
use pleat_provision::process::{self, NAME, PROGRAMS, ProcessConfig, Role, Size};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

pub const LONG: Duration = Duration::from_secs(60);
pub const LIMITS: Limits = Limits { connections: 4, waiting: 100, wait: LONG };

pub struct World {
    pub server: process::Server,
    pub dir: TempDir,
}

impl World {
    pub async fn start() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let server = process::Server::start(config(&dir)).await.unwrap();
        World { server, dir }
    }

    pub fn target(&self) -> Server {
        target(Address::Tcp(self.server.address()), None)
    }

    pub fn pool(&self, limits: Limits) -> Pool {
        Pool::new(self.target(), limits)
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("shard/data")
    }
}

pub fn config(dir: &TempDir) -> ProcessConfig {
    let size = Size { memory_mib: 128, connections: 10 };
    let (dir, programs) = (dir.path().join("shard"), PathBuf::from(PROGRAMS));
    ProcessConfig { dir, programs, port: None, size, password_file: None, role: Role::Primary { make: true } }
}

pub fn target(address: Address, password: Option<&str>) -> Server {
    let password = password.map(|password| Password(password.to_owned()));
    Server { address, user: NAME.to_owned(), database: NAME.to_owned(), password, identity: None }
}

/// What came up to an event, as messages.
#[derive(Debug)]
pub struct Answer {
    pub bytes: BytesMut,
    pub end: Reply,
}

impl Answer {
    pub fn messages(&self) -> Vec<(u8, &[u8])> {
        let (mut rest, mut found) = (&self.bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            found.push((rest[0], &rest[5..1 + length]));
            rest = &rest[1 + length..];
        }
        found
    }

    /// The letters of the messages, without those that may come at any time.
    pub fn letters(&self) -> String {
        let letters = self.messages().into_iter().map(|(letter, _)| char::from(letter));
        letters.filter(|letter| !"SN".contains(*letter)).collect()
    }

    /// The values of all rows, as text.
    pub fn values(&self) -> Vec<String> {
        let rows = self.messages().into_iter().filter(|(letter, _)| *letter == b'D');
        rows.flat_map(|(_, mut row)| {
            let mut values = Vec::new();
            row = &row[2..];
            while !row.is_empty() {
                let length = usize::try_from(i32::from_be_bytes(row[..4].try_into().unwrap())).unwrap();
                values.push(String::from_utf8(row[4..4 + length].to_vec()).unwrap());
                row = &row[4 + length..];
            }
            values
        })
        .collect()
    }

    pub fn status(&self) -> Status {
        match self.end {
            Reply::Ready { status, .. } => status,
            ref other => panic!("{other:?}"),
        }
    }

    pub fn error(&self) -> Option<String> {
        match self.end {
            Reply::Ready { error, .. } => error.map(|code: SqlState| code.as_str().to_owned()),
            ref other => panic!("{other:?}"),
        }
    }
}

/// Everything up to the next event.
pub async fn answer(connection: &mut Connection) -> Result<Answer, PostgresError> {
    let mut bytes = BytesMut::new();
    let receive = async {
        loop {
            match connection.receive().await? {
                Reply::Bytes(more) => bytes.extend_from_slice(&more),
                end => return Ok::<_, PostgresError>(end),
            }
        }
    };
    let end = timeout(LONG, receive).await.expect("an answer")?;
    Ok(Answer { bytes, end })
}

/// What a server in good health says to a query.
pub async fn query(lease: &mut Lease, sql: &str) -> Answer {
    lease.push(Request::Query(sql.to_owned())).unwrap();
    answer(lease).await.unwrap()
}

/// The values that a query gives, on any connection.
pub async fn ask(pool: &Pool, sql: &str) -> Vec<String> {
    query(&mut pool.lease().await.unwrap(), sql).await.values()
}

pub async fn until(pool: &Pool, sql: &str, wanted: &str) {
    let wait = async {
        while ask(pool, sql).await != [wanted] {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("never {wanted}: {sql}"));
}

pub fn statement(sql: &str) -> Arc<Statement> {
    Statement::new(sql.to_owned(), vec![])
}

/// Bind with text values and execute, without a Sync.
pub fn execute(lease: &mut Lease, statement: &Arc<Statement>, values: &[&str]) {
    lease.push(Request::Bind(statement.clone(), bind("", values))).unwrap();
    lease.push(Request::Execute { portal: String::new(), rows: 0 }).unwrap();
}

pub fn bind(portal: &str, values: &[&str]) -> Bind {
    let values = values.iter().map(|value| Some(value.to_string().into())).collect();
    Bind { portal: portal.to_owned(), statement: String::new(), formats: vec![], values, results: vec![] }
}

/// For servers that won't do.
pub fn short() -> Limits {
    Limits { wait: Duration::from_millis(300), ..LIMITS }
}
