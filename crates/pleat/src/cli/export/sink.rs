//! Where an export goes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;

/// A file that gets its name when it is whole, or standard output.
pub struct Sink {
    out: Out,
    /// The file's name until then, and its own.
    names: Option<(PathBuf, PathBuf)>,
    bytes: u64,
}

enum Out {
    Plain(BufWriter<Box<dyn Write + Send>>),
    Gzip(GzEncoder<BufWriter<Box<dyn Write + Send>>>),
}

impl Sink {
    pub fn open(path: Option<&Path>) -> anyhow::Result<Sink> {
        let Some(path) = path else {
            return Ok(Sink { out: Out::Plain(BufWriter::new(Box::new(io::stdout()))), names: None, bytes: 0 });
        };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
        let file: BufWriter<Box<dyn Write + Send>> = BufWriter::new(Box::new(file));
        let gzip = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
        let out = if gzip { Out::Gzip(GzEncoder::new(file, Compression::default())) } else { Out::Plain(file) };
        Ok(Sink { out, names: Some((partial, path.to_path_buf())), bytes: 0 })
    }

    pub fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.bytes += text.len() as u64;
        match &mut self.out {
            Out::Plain(out) => out.write_all(text.as_bytes())?,
            Out::Gzip(out) => out.write_all(text.as_bytes())?,
        }
        Ok(())
    }

    /// All is written: give the file its name. How many bytes were written, before compression.
    pub fn finish(mut self) -> anyhow::Result<u64> {
        match &mut self.out {
            Out::Plain(out) => out.flush()?,
            Out::Gzip(out) => {
                out.try_finish()?;
                out.get_mut().flush()?;
            }
        }
        if let Some((partial, path)) = self.names.take() {
            File::open(&partial)?.sync_all()?;
            std::fs::rename(&partial, &path).with_context(|| format!("name the export {}", path.display()))?;
        }
        Ok(self.bytes)
    }
}

impl Drop for Sink {
    /// Half an export is of no use.
    fn drop(&mut self) {
        if let Some((partial, _)) = &self.names {
            let _ = std::fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_whole_and_leaves_nothing_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv.gz");
        let mut sink = Sink::open(Some(&path)).unwrap();
        sink.write("a,b\n").unwrap();
        assert!(!path.exists());
        assert_eq!(sink.finish().unwrap(), 4);
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "a,b\n");
        let mut given_up = Sink::open(Some(&dir.path().join("u.csv"))).unwrap();
        given_up.write("a").unwrap();
        drop(given_up);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
