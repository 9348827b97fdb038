//! `pleat user`: who may connect over the PostgreSQL protocol.
//!
//! A password is read where nobody looks over the shoulder: from the terminal without an echo, from a file, or from a pipe; never from
//! the command line, which others on the machine can see and the shell remembers. It goes no further than this process: what the
//! cluster gets is the verifier that is made of it here, so that it can be in no log, on no disk and on no wire.

mod terminal;

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use pleat_engine::scram;
use serde_json::{Value, json};

use super::{Target, output};

#[derive(Args)]
pub struct UserArgs {
    #[command(flatten)]
    pub target: Target,
    #[command(subcommand)]
    command: Option<UserCommand>,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Add a user, or give one another password
    Add {
        name: String,
        /// Read the password from a file, without the line's end; `-` is standard input. Asked for on the terminal otherwise
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// The users (the default)
    List,
    /// Remove a user; sessions that it has open go on
    Remove {
        name: String,
        /// Also the last one: without any, nobody on a node's machine is asked for a password
        #[arg(long)]
        last: bool,
    },
}

pub async fn run(args: UserArgs) -> anyhow::Result<()> {
    let client = args.target.client()?;
    let path = |name: &str| format!("/users/{}", in_a_path(name));
    let (answer, told) = match args.command.unwrap_or(UserCommand::List) {
        UserCommand::Add { name, password_file } => {
            pleat_cluster::User::check_name(&name).map_err(anyhow::Error::msg)?;
            let password = match password_file {
                Some(file) => from_file(&file)?,
                None => terminal::new_password(&name).await?,
            };
            let salt = scram::random().map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
            let verifier = scram::verifier_of(&password, salt).map_err(anyhow::Error::msg)?;
            let user = client.put(&path(&name), &json!({"verifier": scram::text(&verifier)})).await?;
            let told = match user["added"] == user["changed"] {
                true => format!("added user {}", output::text(&user, "name")),
                false => format!("user {} has another password", output::text(&user, "name")),
            };
            (user, told)
        }
        UserCommand::Remove { name, last } => {
            let user = client.delete(&format!("{}?last={last}", path(&name))).await?;
            let told = format!("removed user {}", output::text(&user, "name"));
            (user, told)
        }
        UserCommand::List => {
            let users = client.get("/users").await?;
            return list(&users, args.target.json);
        }
    };
    match args.target.json {
        true => output::json(&answer)?,
        false => output::line(&told)?,
    }
    Ok(())
}

fn list(users: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(output::json(users)?);
    }
    let users = output::items(users, "users");
    if users.is_empty() {
        let nobody =
            "no users: whoever is on a node's machine connects without a password; `pleat user add NAME` adds one";
        return Ok(output::line(nobody)?);
    }
    let columns = ["name", "added", "changed"];
    let rows = users.iter().map(|user| columns.iter().map(|column| output::text(user, column)).collect());
    Ok(output::list(&columns, &[], rows.collect())?)
}

/// A name as part of a path, whatever is in it.
fn in_a_path(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let written = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(written).collect()
}

/// The first line of a file or of standard input, which must be the only one.
pub(super) fn from_file(file: &Path) -> anyhow::Result<Vec<u8>> {
    // A line's end, and one byte that shows that it is too long.
    let limit = scram::PASSWORD_BYTES_MAX as u64 + 3;
    let mut password = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut password).context("read the password")?;
    } else {
        let opened = std::fs::File::open(file);
        let read = opened.and_then(|opened| opened.take(limit).read_to_end(&mut password));
        read.with_context(|| format!("the password file {} can't be read", file.display()))?;
    }
    only_line(password)
}

fn only_line(mut password: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    if password.last() == Some(&b'\n') {
        password.pop();
        if password.last() == Some(&b'\r') {
            password.pop();
        }
    }
    ensure!(!password.contains(&b'\n'), "a password file has one line, and this one has more");
    if password.is_empty() {
        bail!("the password is empty");
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_one_part_of_a_path() {
        assert_eq!(in_a_path("a-b_1"), "a-b_1");
        assert_eq!(in_a_path("../x?y=ü"), "%2E%2E%2Fx%3Fy%3D%C3%BC");
    }

    #[test]
    fn a_password_file_has_one_line() {
        let of = |text: &[u8]| only_line(text.to_vec()).map_err(|error| error.to_string());
        for text in [&b"secret"[..], b"secret\n", b"secret\r\n"] {
            assert_eq!(of(text).unwrap(), b"secret");
        }
        assert_eq!(of(b" a b \n").unwrap(), b" a b ", "blanks belong to it");
        assert!(of(b"a\nb\n").unwrap_err().contains("one line"));
        assert!(of(b"\n").unwrap_err().contains("empty"));
        assert!(of(b"").unwrap_err().contains("empty"));
    }
}
