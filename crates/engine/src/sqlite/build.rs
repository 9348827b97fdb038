//! What this build computes with.

use anyhow::Context;
use rusqlite::Connection;

/// Pleat's version, SQLite's, and SQLite's compile options as one number. Replicas run the same statements each for itself, so
/// all nodes of a cluster must say the same here.
pub fn build() -> anyhow::Result<String> {
    let conn = Connection::open_in_memory().context("ask SQLite for its version")?;
    let source: String = conn.query_row("SELECT sqlite_source_id()", [], |row| row.get(0))?;
    let mut options = conn.prepare("PRAGMA compile_options")?;
    let mut options: Vec<String> = options.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    // Which compiler it was does not matter.
    options.retain(|option| !option.starts_with("COMPILER="));
    options.sort();
    let sum = pleat_cluster::partition_of_text(options.join(" ").as_bytes(), u32::MAX);
    Ok(format!("Pleat {} with SQLite {source} (options {:08x})", env!("CARGO_PKG_VERSION"), sum.0))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_build_names_what_it_computes_with() {
        let build = super::build().unwrap();
        assert!(build.contains(rusqlite::version()) || build.contains("SQLite 20"), "{build}");
        assert_eq!(build, super::build().unwrap());
    }
}
