//! Inputs that nobody should send, for everything that reads what strangers send. For tests.
//!
//! # The problem
//!
//! A parser that a test feeds with bytes at random sees their first byte and refuses them. What breaks parsers is nearly right: a message whose
//! length is one too small, a statement with half of another one in it. And whoever finds such an input has to be able to show it again.
//!
//! # The mechanism
//!
//! A [`Target`] has seeds, which are right, and a function that takes any bytes, asserts what must hold, and gives a number for what it
//! made of them ([`outcome`]). Inputs are made from seeds by a few changes each ([`mutate`](Mutator)), from one seed number, so a run is the same
//! each time. An input whose outcome is new is changed further: that is all of the feedback that a stable compiler gives, and it leads past
//! the first check of a parser.
//!
//! A target has failed when it panics, takes longer than [`TIME_MAX`], or holds more than [`HELD_MAX`] bytes at a time (see [`held`]). The
//! input is then made smaller as far as it still fails, and printed in the form that `cargo xtask fuzz TARGET --input …` takes.
//! One that ends the whole process (a stack that overflows) can't be printed any more: so each is written to a file before it is tried, and that stays.
//!
//! The crates have their targets among their own tests, because parsers are nobody else's business: each has a test `fuzz_targets` that calls
//! [`run`]. Without anything said it is short and always the same; `cargo xtask fuzz` tells it otherwise by the environment.

mod held;
mod mutate;
mod shown;

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use held::{held, peak_during};
pub use mutate::Mutator;

use shown::{escaped, unescaped};

/// How long a target may take for one input. Much more than any takes: machines that run tests are busy.
pub const TIME_MAX: Duration = Duration::from_secs(20);
/// What it may hold at a time, in bytes, beside what it held before.
pub const HELD_MAX: usize = 64 << 20;
/// An input may have so many bytes.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// Inputs that are kept to be changed further.
const KEPT_MAX: usize = 1_000;
/// Tries to make a failing input smaller.
const SHRINKS_MAX: usize = 2_000;

/// Something that reads what strangers send.
pub struct Target {
    /// `crate/what`.
    pub name: &'static str,
    /// Inputs of a short run.
    pub inputs: usize,
    /// Inputs that are right.
    pub seeds: Vec<Vec<u8>>,
    /// Panics when something is wrong; see [`outcome`] for what it gives.
    pub run: fn(&[u8]) -> u64,
}

impl Target {
    /// A target whose seeds are these.
    pub fn new<S: AsRef<[u8]>>(
        name: &'static str,
        inputs: usize,
        seeds: impl IntoIterator<Item = S>,
        run: fn(&[u8]) -> u64,
    ) -> Target {
        Target { name, inputs, seeds: seeds.into_iter().map(|seed| seed.as_ref().to_vec()).collect(), run }
    }
}

/// A number for what a parser made of an input. Inputs with another one than all before are changed further, so it should tell apart what the parser
/// tells apart (the kind of an error, how much was read), and not every value.
pub fn outcome(of: &impl Debug) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{of:?}").hash(&mut hasher);
    hasher.finish()
}

/// What a run was told by the environment.
struct Told {
    target: Option<String>,
    input: Option<Vec<u8>>,
    /// For each target.
    time: Option<Duration>,
    seed: u64,
}

impl Told {
    fn read() -> Told {
        let text = |name: &str| std::env::var(name).ok();
        let number = |name: &str| {
            let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}"));
            text(name).map(number)
        };
        Told {
            target: text("PLEAT_FUZZ_TARGET"),
            input: text("PLEAT_FUZZ_INPUT").map(|text| unescaped(&text)),
            time: number("PLEAT_FUZZ_SECONDS").map(Duration::from_secs),
            seed: number("PLEAT_FUZZ_SEED").unwrap_or(1),
        }
    }
}

/// Try the targets: with so many inputs as each names, or as the environment says.
///
/// # Panics
///
/// When one fails; with the input.
pub fn run(targets: &[Target]) {
    let told = Told::read();
    if let Some(wanted) = &told.target {
        let known: Vec<&str> = targets.iter().map(|target| target.name).collect();
        assert!(known.contains(&wanted.as_str()), "there is no target {wanted} here; there are {}", known.join(", "));
    }
    for target in targets {
        if told.target.as_ref().is_some_and(|wanted| wanted != target.name) {
            continue;
        }
        if let Some(input) = &told.input {
            println!("{}: outcome {:016x}", target.name, (target.run)(input));
            continue;
        }
        let begun = Instant::now();
        let run = Run::new(target, &told);
        let found = run.go(told.time);
        println!("{}: {} inputs, {} outcomes in {:.1?}", target.name, found.0, found.1, begun.elapsed());
    }
}

struct Run<'a> {
    target: &'a Target,
    seed: u64,
    /// The input that is being tried is in it. It stays open: some file systems take their time to make one anew.
    file: PathBuf,
    open: Option<File>,
    /// What is being tried, and since when: for the watch.
    current: Arc<Mutex<Option<Instant>>>,
}

/// What is wrong.
struct Failed(String);

impl<'a> Run<'a> {
    fn new(target: &'a Target, told: &Told) -> Run<'a> {
        let name = format!("pleat-fuzz-{}-{}", target.name.replace('/', "-"), std::process::id());
        let file = std::env::temp_dir().join(name);
        // Where there can be none, all is well until a stack overflows.
        let open = File::create(&file).ok();
        let run = Run { target, seed: told.seed, file, open, current: Arc::default() };
        run.watch();
        run
    }

    /// End the process when an input takes far too long: a loop without an end can't be left in another way.
    fn watch(&self) {
        let (current, file, name) = (Arc::downgrade(&self.current), self.file.clone(), self.target.name);
        std::thread::spawn(move || {
            while let Some(current) = current.upgrade() {
                let since = *current.lock().unwrap_or_else(PoisonError::into_inner);
                drop(current);
                if since.is_some_and(|since| since.elapsed() > TIME_MAX * 3) {
                    eprintln!("{name} does not come to an end with the input in {}", file.display());
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
    }

    /// How many inputs were tried, and how many outcomes were different.
    fn go(self, time: Option<Duration>) -> (usize, usize) {
        let begun = Instant::now();
        let mut kept = self.target.seeds.clone();
        let mut seen = HashSet::new();
        for (number, seed) in self.target.seeds.iter().enumerate() {
            seen.insert(self.tried(&format!("seed input {number}"), seed));
        }
        let mut mutator = Mutator::new(self.seed, self.target.name, &self.target.seeds);
        let mut tried = kept.len();
        while time.map_or(tried < self.target.inputs, |time| begun.elapsed() < time) {
            let input = mutator.next(&kept);
            tried += 1;
            if seen.insert(self.tried(&format!("input {tried} of seed {}", self.seed), &input)) {
                match kept.len() < KEPT_MAX {
                    true => kept.push(input),
                    false => {
                        let at = mutator.below(kept.len());
                        kept[at] = input;
                    }
                }
            }
        }
        // The next run has a name of its own.
        let _ = std::fs::remove_file(&self.file);
        (tried, seen.len())
    }

    fn tried(&self, which: &str, input: &[u8]) -> u64 {
        self.keep(input);
        match self.attempt(input) {
            Ok(outcome) => outcome,
            Err(Failed(why)) => {
                let small = self.shrunk(input);
                self.keep(&small);
                panic!(
                    "{name} failed with {which}: {why}\nIt is in {file}, {length} bytes; to try it again:\n\
                     cargo xtask fuzz {name} --input '{shown}'",
                    name = self.target.name,
                    file = self.file.display(),
                    length = small.len(),
                    shown = escaped(&small),
                );
            }
        }
    }

    fn keep(&self, input: &[u8]) {
        let Some(mut file) = self.open.as_ref() else { return };
        let kept = file.rewind().and_then(|()| file.write_all(input));
        let _ = kept.and_then(|()| file.set_len(input.len() as u64));
    }

    fn attempt(&self, input: &[u8]) -> Result<u64, Failed> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let begun = Instant::now();
        let (result, peak) = peak_during(|| catch_unwind(AssertUnwindSafe(|| (self.target.run)(input))));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let outcome = result.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Failed(format!("it panics: {}", text.unwrap_or_default()))
        })?;
        if begun.elapsed() > TIME_MAX {
            return Err(Failed(format!("it takes {:.1?}", begun.elapsed())));
        }
        match peak > HELD_MAX {
            true => Err(Failed(format!("it holds {peak} bytes for an input of {}", input.len()))),
            false => Ok(outcome),
        }
    }

    /// The smallest part that was found of an input that still fails, in some way.
    fn shrunk(&self, input: &[u8]) -> Vec<u8> {
        let mut small = input.to_vec();
        let (mut length, mut tries) = (small.len() / 2, 0);
        let begun = Instant::now();
        // It panics again and again, which was told once.
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        while length > 0 && tries < SHRINKS_MAX && begun.elapsed() < TIME_MAX {
            let mut at = 0;
            while at < small.len() && tries < SHRINKS_MAX {
                let end = (at + length).min(small.len());
                let shorter = [&small[..at], &small[end..]].concat();
                tries += 1;
                match self.attempt(&shorter) {
                    Err(_) => small = shorter,
                    Ok(_) => at = end,
                }
            }
            length /= 2;
        }
        std::panic::set_hook(told);
        small
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It trusts a length.
    fn trusting(input: &[u8]) -> u64 {
        let Some((length, rest)) = input.split_first() else { return 0 };
        assert!(usize::from(*length) <= rest.len(), "it reads past the end");
        1
    }

    fn failure(target: &Target) -> String {
        let told = Told { target: None, input: None, time: None, seed: 1 };
        let run = Run::new(target, &told);
        let file = run.file.clone();
        let failed = catch_unwind(AssertUnwindSafe(|| run.go(None)));
        std::fs::remove_file(file).unwrap();
        *failed.unwrap_err().downcast::<String>().unwrap()
    }

    #[test]
    fn what_fails_is_found_made_small_and_can_be_tried_again() {
        let told = failure(&Target::new("fuzz/trusting", 10_000, [b"\x05hello"], trusting));
        assert!(told.contains("it reads past the end"), "{told}");
        let shown = told.split('\'').nth(1).unwrap();
        assert!(catch_unwind(|| trusting(&unescaped(shown))).is_err(), "{told}");
        assert!(unescaped(shown).len() <= 5, "{told}");
        assert_eq!(
            told,
            failure(&Target::new("fuzz/trusting", 10_000, [b"\x05hello"], trusting)),
            "each time the same"
        );
    }

    #[test]
    fn memory_that_only_the_input_asked_for_is_found() {
        let greedy = |input: &[u8]| match input {
            [b'x', a, b, c, d, ..] => {
                let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
                u64::from(Vec::<u8>::with_capacity(length % (1 << 30)).capacity() > 0)
            }
            _ => 0,
        };
        let told = failure(&Target::new("fuzz/greedy", 100_000, [b"x\0\0\0\x04abcd"], greedy));
        assert!(told.contains("it holds"), "{told}");
    }
}
