//! The file of rejected rows: line number, reason, and the fields as they stood.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::batch::Reject;

/// Written only when there is something to write.
pub struct Rejects {
    path: PathBuf,
    header: Vec<String>,
    file: Option<File>,
    bytes: u64,
}

impl Rejects {
    /// Go on after the first `bytes` of the file at `path`; what an interrupted import wrote beyond them comes again.
    pub fn open(path: &Path, header: Vec<String>, bytes: u64) -> anyhow::Result<Rejects> {
        let mut rejects = Rejects { path: path.to_path_buf(), header, file: None, bytes };
        if bytes == 0 {
            // Rows that an earlier import rejected would be taken for this one's.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove the old {}", path.display()));
                }
                _ => return Ok(rejects),
            }
        }
        let open = || -> std::io::Result<File> {
            let mut file = File::options().write(true).open(path)?;
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok(file)
        };
        rejects.file = Some(open().with_context(|| format!("go on writing {}", path.display()))?);
        Ok(rejects)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long the file is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn write(&mut self, rows: &[Reject]) -> anyhow::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
        if self.file.is_none() {
            writer.write_record(["line", "reason"].into_iter().chain(self.header.iter().map(String::as_str)))?;
        }
        for row in rows {
            writer.write_field(row.line.to_string())?;
            writer.write_field(&row.reason)?;
            writer.write_record(&row.fields)?;
        }
        let text = writer.into_inner().map_err(|error| error.into_error())?;
        self.append(&text).with_context(|| format!("write {}", self.path.display()))
    }

    fn append(&mut self, text: &[u8]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path)?),
        };
        file.write_all(text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reject(line: u64) -> Reject {
        Reject { line, reason: "too, odd".to_string(), fields: vec![b"1".to_vec(), b"a\"b".to_vec()] }
    }

    #[test]
    fn no_file_without_rejects_and_none_left_from_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.csv");
        std::fs::write(&path, "old").unwrap();
        let mut rejects = Rejects::open(&path, vec!["id".to_string()], 0).unwrap();
        rejects.write(&[]).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn going_on_drops_what_was_written_after_the_last_known_point() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.csv");
        let header = vec!["id".to_string(), "name".to_string()];
        let mut rejects = Rejects::open(&path, header.clone(), 0).unwrap();
        rejects.write(&[reject(2)]).unwrap();
        let known = rejects.bytes();
        rejects.write(&[reject(5)]).unwrap();
        let mut rejects = Rejects::open(&path, header, known).unwrap();
        rejects.write(&[reject(7)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "line,reason,id,name\n2,\"too, odd\",1,\"a\"\"b\"\n7,\"too, odd\",1,\"a\"\"b\"\n");
    }
}
