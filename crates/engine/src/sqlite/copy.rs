//! Copying a replica's database, and replacing it by a copy.
//!
//! A copy is made page by page from a snapshot: a logical copy (`VACUUM INTO`) would give hidden rowids anew, and
//! replicas would drift apart.
//!
//! Replacing is a matter of two files, the database and its WAL, and of crashes between. The copy is first put
//! beside them under a name of its own, complete and synced; from then on the replacement is decided, and opening
//! the replica finishes it: the old WAL goes before the new database takes its name, so that the one is never
//! applied to the other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::connection::Db;
use super::content;
use super::store::Store;
use crate::limits::COPY_PAGES_PER_STEP;

/// Copies the database as `from` sees it now; tells what was applied in it.
pub(crate) fn copy_into(from: &Db, into: &Path) -> anyhow::Result<Vec<u8>> {
    ensure!(!into.exists(), "the copy's file {} exists already", into.display());
    // The snapshot holds for all steps: without it a commit of the writer would begin the copy anew.
    from.conn.execute_batch("BEGIN")?;
    let applied = content::applied(&from.conn)?;
    let mut target = Connection::open(into).with_context(|| format!("make the copy {}", into.display()))?;
    target.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF")?;
    let backup = Backup::new(&from.conn, &mut target)?;
    loop {
        match backup.step(COPY_PAGES_PER_STEP).context("copy pages")? {
            StepResult::Done => break,
            StepResult::More => {}
            other => bail!("the copy can't go on: {other:?}"),
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| error).context("close the copy")?;
    from.conn.execute_batch("COMMIT")?;
    File::open(into)?.sync_all().context("sync the copy")?;
    Ok(applied)
}

/// Refuses a file that is no shard of this cluster's shape.
pub(crate) fn check_copy(path: &Path, partition_count: u32) -> anyhow::Result<()> {
    // Immutable: no WAL is made beside the file and no lock is taken.
    let uri = format!("file:{}?immutable=1", percent_encoded(path)?);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(uri, flags)?;
    ensure!(content::is_set_up(&conn)?, "it is no shard's database");
    let (format, partitions) = content::format_and_partitions(&conn)?;
    ensure!(format == content::FORMAT, "it has format {format}; this build reads format {}", content::FORMAT);
    ensure!(partitions == partition_count, "it was made for {partitions} partitions instead of {partition_count}");
    Ok(())
}

/// Puts a copy of `from` beside the database: complete and durable, or not at all.
pub(crate) fn stage_installation(from: &Path, dir: &Path) -> anyhow::Result<()> {
    let partial = dir.join("shard.db.partial");
    fs::copy(from, &partial).with_context(|| format!("copy {} to {}", from.display(), partial.display()))?;
    File::open(&partial)?.sync_all().context("sync the copy")?;
    fs::rename(&partial, staged(dir)).context("name the copy")?;
    sync_dir(dir)
}

/// Finishes a staged replacement, if there is one.
pub(crate) fn finish_installation(dir: &Path) -> anyhow::Result<()> {
    let staged = staged(dir);
    if !staged.exists() {
        return Ok(());
    }
    for suffix in ["-wal", "-shm", "-journal"] {
        let path = dir.join(format!("{}{suffix}", Store::FILE));
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
        }
    }
    sync_dir(dir)?;
    fs::rename(&staged, dir.join(Store::FILE)).context("put the copy in place")?;
    sync_dir(dir)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("sync the directory {}", dir.display()))
}

fn staged(dir: &Path) -> PathBuf {
    dir.join("shard.db.install")
}

fn percent_encoded(path: &Path) -> anyhow::Result<String> {
    use std::fmt::Write;
    let text = path.to_str().context("the path is not UTF-8")?;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => encoded.push(byte as char),
            _ => write!(encoded, "%{byte:02X}")?,
        }
    }
    Ok(encoded)
}
