//! `pleat adopt`: what would become of an existing PostgreSQL database on several shards. It reads, and changes nothing.
//!
//! Reading is [`look`], thinking is [`pleat_sql::postgres::adopt`], and [`tell`] is what is printed. The password is in none of it.

mod look;
mod tell;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use pleat_engine::postgres::{Connection, Dsn, Password};
use pleat_sql::postgres::adopt;

use super::{output, user};

/// How long a server may take to let us in.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long reading all of it may take. Each question has a limit of its own.
const LOOK_LIMIT: Duration = Duration::from_secs(300);
/// The password, where it is neither in the server's name nor in a file. PostgreSQL's own programs take it, too.
const PASSWORD_VARIABLE: &str = "PGPASSWORD";

#[derive(Args)]
pub struct AdoptArgs {
    /// The database: postgres://USER:PASSWORD@HOST:PORT/DATABASE, with ?host=/FOLDER for a socket, and
    /// ?sslmode=verify-full&sslrootcert=FILE for TLS. Others on this machine can see a command line: the password is
    /// better in a file, or in PGPASSWORD
    #[arg(value_name = "DSN", env = "PLEAT_ADOPT_DSN", hide_env_values = true)]
    dsn: String,
    /// Read the password from a file, without the line's end; `-` is standard input
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    pub json: bool,
}

pub async fn run(args: AdoptArgs) -> anyhow::Result<()> {
    let mut dsn = Dsn::parse(&args.dsn).map_err(anyhow::Error::msg)?;
    if let Some(password) = password(args.password_file)? {
        dsn.password = Some(password);
    }
    let server = dsn.server().await.map_err(anyhow::Error::msg)?;
    let opened = tokio::time::timeout(CONNECT_LIMIT, Connection::open(&server)).await;
    let opened = opened
        .map_err(|_| anyhow::anyhow!("it does not answer within {CONNECT_LIMIT:?}"))
        .and_then(|opened| Ok(opened?));
    let mut connection = opened.with_context(|| format!("connect to {dsn}"))?;
    let found = match tokio::time::timeout(LOOK_LIMIT, look::look(&mut connection)).await {
        Ok(found) => found.with_context(|| format!("read {dsn}"))?,
        Err(_) => bail!("{dsn} was not read within {LOOK_LIMIT:?}"),
    };
    let proposal = adopt::propose(&found.database);
    match args.json {
        true => output::json(&tell::json(&dsn, &found, &proposal))?,
        false => tell::people(&dsn, &found, &proposal)?,
    }
    Ok(())
}

/// From the file, or else from the environment.
fn password(file: Option<PathBuf>) -> anyhow::Result<Option<Password>> {
    let Some(file) = file else {
        return Ok(std::env::var(PASSWORD_VARIABLE).ok().filter(|password| !password.is_empty()).map(Password));
    };
    let password = String::from_utf8(user::from_file(&file)?);
    Ok(Some(Password(password.map_err(|_| anyhow::anyhow!("the password is not UTF-8"))?)))
}
