//! What happened in a run, in order: the thing that two runs of a seed are compared by, and that a person reads.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;

/// Lines kept of a run whose trace nobody asked for: enough to see what led to its end.
const LINES_KEPT: usize = 400;

/// Whose log becomes part of a trace.
const LOGGED: &str = "off,pleat_host=info,pleat_control=info,pleat_consensus=info,pleat_gateway=info,pleat_engine=info";

/// A run's trace. Clones share it.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

struct Inner {
    lines: VecDeque<String>,
    kept_max: usize,
    count: u64,
    hash: u64,
    panic: Option<String>,
}

impl Trace {
    /// A trace that keeps all lines, or only the last.
    pub fn new(whole: bool) -> Self {
        let kept_max = if whole { usize::MAX } else { LINES_KEPT };
        // FNV-1a: comparable between processes.
        let (lines, hash) = (VecDeque::new(), 0xcbf2_9ce4_8422_2325);
        Trace(Arc::new(Mutex::new(Inner { lines, kept_max, count: 0, hash, panic: None })))
    }

    /// Something happened.
    pub fn note(&self, event: impl std::fmt::Display) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_micros();
        self.note_at(at, event);
    }

    /// Something happened outside of every node.
    pub fn note_at(&self, at_micros: u128, event: impl std::fmt::Display) {
        let line = format!("{at_micros:>9} {event}");
        let mut inner = self.0.lock();
        for byte in line.bytes().chain([b'\n']) {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        inner.count += 1;
        if inner.lines.len() >= inner.kept_max {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    /// Until what is returned is dropped, what this thread logs becomes part of the trace, without the name of `dir`.
    pub fn follow_log(&self, dir: &Path) -> tracing::subscriber::DefaultGuard {
        let (trace, dir) = (self.clone(), dir.to_string_lossy().into_owned());
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(LOGGED))
            .with_ansi(false)
            .without_time()
            .with_writer(move || Logged { trace: trace.clone(), dir: dir.clone() })
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// Something panicked. What follows from the first panic tells nothing more.
    pub fn panicked(&self, what: String) {
        self.0.lock().panic.get_or_insert(what);
    }

    /// The first panic.
    pub fn panic(&self) -> Option<String> {
        self.0.lock().panic.clone()
    }

    /// How many lines there were, and the hash of all.
    pub fn hash(&self) -> (u64, u64) {
        let inner = self.0.lock();
        (inner.count, inner.hash)
    }

    /// The lines that are kept.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().lines.iter().cloned().collect()
    }
}

/// Takes what is logged.
struct Logged {
    trace: Trace,
    dir: String,
}

impl io::Write for Logged {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).replace(&self.dir, "");
        self.trace.note(format_args!("LOG {}", text.trim_end()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
