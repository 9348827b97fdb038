//! The server's log: passed on to ours, its last lines kept for whoever asks why it ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Lines that are kept, and bytes of each.
const LINES_MAX: usize = 8;
const LINE_BYTES_MAX: usize = 500;

/// The last lines of a log.
#[derive(Clone, Debug, Default)]
pub struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// Read a log to its end.
    pub async fn follow(self, mut log: impl AsyncRead + Unpin) {
        let (mut chunk, mut line) = ([0; 4_096], Vec::new());
        while let Ok(read @ 1..) = log.read(&mut chunk).await {
            for byte in &chunk[..read] {
                match byte {
                    b'\n' => self.line(&std::mem::take(&mut line)),
                    byte if line.len() < LINE_BYTES_MAX => line.push(*byte),
                    _ => {}
                }
            }
        }
    }

    fn line(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line).into_owned();
        tracing::info!(target: "postgres", "{line}");
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Those that tell why a server ended, if it said so.
    pub fn reason(&self) -> Option<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bad = |line: &&String| ["FATAL:", "PANIC:", "ERROR:"].iter().any(|word| line.contains(word));
        lines.iter().rfind(bad).or_else(|| lines.back()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_bad_line_is_the_reason_and_long_ones_are_cut() {
        let tail = Tail::default();
        assert_eq!(tail.reason(), None);
        let log = format!("LOG:  starting\nFATAL:  no\n{}\n", "x".repeat(10_000));
        tail.clone().follow(log.as_bytes()).await;
        assert_eq!(tail.reason().unwrap(), "FATAL:  no");
        tail.clone().follow("LOG:  more\n".repeat(LINES_MAX).as_bytes()).await;
        assert_eq!(tail.reason().unwrap(), "LOG:  more");
    }
}
