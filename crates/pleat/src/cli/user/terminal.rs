//! A password from the terminal, without an echo.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, bail, ensure};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use pleat_engine::scram::PASSWORD_BYTES_MAX;
use tokio::signal::unix::{SignalKind, signal};

/// Ask for a new password, twice.
pub async fn new_password(name: &str) -> anyhow::Result<Vec<u8>> {
    let hint =
        "there is no terminal to ask for the password on: give it with --password-file FILE, or - for standard input";
    let terminal = File::options().read(true).write(true).open("/dev/tty").context(hint)?;
    // Before the echo goes, so that whoever interrupts gets it back.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let silence = Silence::over(terminal.try_clone()?)?;
    let prompts = [format!("Password for user {name:?}: "), "Again: ".to_owned()];
    // Reading can't be broken off, so it has a thread of its own.
    let asking = tokio::task::spawn_blocking(move || ask(terminal, prompts));
    let [password, again] = tokio::select! {
        asked = asking => asked??,
        _ = interrupts.recv() => bail!("interrupted: nothing was changed"),
    };
    drop(silence);
    ensure!(password == again, "the two passwords differ: nothing was changed");
    Ok(password)
}

fn ask(mut terminal: File, prompts: [String; 2]) -> anyhow::Result<[Vec<u8>; 2]> {
    let mut lines = BufReader::new(terminal.try_clone()?);
    let mut read = |prompt: &str| {
        write!(terminal, "{prompt}")?;
        let mut line = Vec::new();
        (&mut lines).take(PASSWORD_BYTES_MAX as u64 + 2).read_until(b'\n', &mut line)?;
        // The Enter that ended it was not shown either.
        writeln!(terminal)?;
        super::only_line(line)
    };
    Ok([read(&prompts[0])?, read(&prompts[1])?])
}

/// A terminal that shows nothing of what is typed, until this is dropped.
struct Silence {
    terminal: File,
    before: Termios,
}

impl Silence {
    fn over(terminal: File) -> anyhow::Result<Self> {
        let before = tcgetattr(&terminal).context("ask the terminal how it is set")?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent).context("switch the terminal's echo off")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // If it can't be, the terminal is gone.
        let _ = tcsetattr(&self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
