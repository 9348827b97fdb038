//! The log of a node: its standard error, line by line, in a file of bounded size.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::cli::output;

/// A log that has grown to this many bytes becomes `log.1`, in the place of the `log.1` before.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How many of the last lines are kept to be shown when a node ends.
const TAIL_LINES: usize = 15;

/// Where a node's lines go.
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
    tail: VecDeque<String>,
    /// Show lines here as well, after this name.
    forward: Option<String>,
}

impl LogFile {
    pub fn open(dir: &Path, forward: Option<String>) -> LogFile {
        let mut log = LogFile { path: dir.join("log"), file: None, bytes: 0, tail: VecDeque::new(), forward };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        self.file = File::options().create(true).append(true).open(&self.path).ok();
        self.bytes = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |about| about.len());
    }

    /// Take everything that `source` says, until it ends. What can't be written (a full disk) is dropped: a node
    /// must never wait for its log.
    pub async fn pump(&mut self, source: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line).await, Ok(count) if count > 0) {
            self.line(&line);
            line.clear();
        }
    }

    fn line(&mut self, line: &[u8]) {
        if let Some(file) = &mut self.file
            && file.write_all(line).is_ok()
        {
            self.bytes += line.len() as u64;
        }
        if self.bytes > LOG_BYTES_MAX {
            let _ = std::fs::rename(&self.path, self.path.with_file_name("log.1"));
            self.reopen();
        }
        let text = String::from_utf8_lossy(line).trim_end().to_string();
        if let Some(name) = &self.forward {
            output::complain(&format!("{name} | {text}"));
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }

    /// The last lines.
    pub fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_kept_in_the_file_and_the_last_ones_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        let mut log = LogFile::open(dir.path(), None);
        log.pump(text.as_bytes()).await;
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), text);
        assert_eq!((log.tail().len(), log.tail()[0].as_str()), (TAIL_LINES, "line 6"));
    }

    #[tokio::test]
    async fn a_log_that_has_grown_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("log"), vec![b'x'; LOG_BYTES_MAX as usize]).unwrap();
        let mut log = LogFile::open(dir.path(), None);
        log.pump(b"last\nfirst\n".as_slice()).await;
        assert!(std::fs::metadata(dir.path().join("log.1")).unwrap().len() > LOG_BYTES_MAX);
        assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "first\n");
    }
}
