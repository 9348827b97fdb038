//! Log lines on standard error, for people or as JSON.
//!
//! `PLEAT_LOG` is the filter, in the form of `tracing`'s directives (`info,pleat_control=debug`); without it
//! the configuration's `log.level` holds for Pleat, and warnings for everything else but openraft, which calls
//! each message that a dead node does not get an error (`PLEAT_LOG=info,openraft=warn` shows it; that a node
//! can't be reached, Pleat says once itself).

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogConfig;

/// Start logging.
pub fn start(config: &LogConfig) -> anyhow::Result<()> {
    let filter = match std::env::var("PLEAT_LOG") {
        Ok(directives) => EnvFilter::try_new(&directives)
            .map_err(|error| anyhow::anyhow!("PLEAT_LOG='{directives}' is not a log filter: {error}"))?,
        Err(_) => EnvFilter::new(default_directives(&config.level)),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr).with_ansi(false);
    // A second start in one process (tests, the library) keeps the first.
    let _ = if config.json { builder.json().try_init() } else { builder.try_init() };
    Ok(())
}

fn default_directives(level: &str) -> String {
    let crates = ["pleat", "pleat_consensus", "pleat_control", "pleat_engine", "pleat_gateway", "pleat_host"];
    let mut directives = String::from("warn,openraft=off");
    for name in crates {
        directives.push_str(&format!(",{name}={level}"));
    }
    directives
}

/// Standard error that never fails: when the supervisor that reads it is gone, a node must still be able to
/// stop in order, so its last lines are dropped rather than turned into a panic.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stderr().flush();
        Ok(())
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Stderr;

    fn make_writer(&self) -> Stderr {
        Stderr
    }
}
