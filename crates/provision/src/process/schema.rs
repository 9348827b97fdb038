//! A server's tables, types and functions, made on another one by PostgreSQL's own programs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::NAME;

/// Reading or making a schema may take this long; indexes over rows that were copied take most of it.
const SCHEMA_MAX: Duration = Duration::from_secs(6 * 3_600);

/// Which part of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaPart {
    /// What rows need to be there: types, tables, functions.
    Before,
    /// What is made faster, or only, when the rows are there: indexes, constraints, triggers.
    After,
}

/// Make a part of the source's schema on the target, all of it or nothing. Roles, rights and publications don't go along, and
/// neither does what moves leave (`pleat_move_*`). The error is what the program said.
pub async fn copy_schema(
    programs: &Path,
    source: SocketAddr,
    target: SocketAddr,
    password: Option<&str>,
    part: SchemaPart,
) -> Result<(), String> {
    let section = match part {
        SchemaPart::Before => "--section=pre-data",
        SchemaPart::After => "--section=post-data",
    };
    let mut dump = client(programs, "pg_dump", source, password);
    dump.args(["--schema-only", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions"]);
    dump.args([section, "--exclude-schema=pleat_move_*"]);
    // Read to its end first: half of a schema would be taken for a whole one.
    let schema = to_its_end(dump, "pg_dump", Vec::new()).await?;
    let mut psql = client(programs, "psql", target, password);
    psql.args(["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
    to_its_end(psql, "psql", schema).await.map(drop)
}

fn client(programs: &Path, name: &str, server: SocketAddr, password: Option<&str>) -> Command {
    let mut command = Command::new(programs.join(name));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("PGCLIENTENCODING", "UTF8").current_dir("/");
    if let Some(password) = password {
        // Not an argument: those are for everybody to see.
        command.env("PGPASSWORD", password);
    }
    command.args(["-h", &server.ip().to_string(), "-p", &server.port().to_string()]);
    command.args(["-U", NAME, "-d", NAME, "--no-password"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Run a program with this input to its end, which must be a good one. What it wrote.
async fn to_its_end(mut command: Command, name: &str, input: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut child: Child = command.spawn().map_err(|error| format!("{name} can't be run: {error}"))?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // One that ends early tells why on its standard error.
            let _ = stdin.write_all(&input).await;
        }
    };
    let run = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = timeout(SCHEMA_MAX, run).await.map_err(|_| format!("{name}: no end after {SCHEMA_MAX:?}"))?;
    let output = output.map_err(|error| format!("{name}: {error}"))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
