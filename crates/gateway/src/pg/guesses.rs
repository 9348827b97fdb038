//! Wrong passwords: how often one may be tried.
//!
//! The first [`PG_GUESSES_FREE`] wrong passwords of a user from an address cost nothing. From then on, after each one nothing from that
//! address is even looked at for that user for a time that doubles from a second to [`PG_GUESS_PAUSE_MAX`], be the password right or
//! wrong, and whether there is such a user or not. A right one begins anew. What counts is when a proof is held against
//! the verifier, so connections side by side don't get more guesses.
//!
//! Addresses of IPv6 count by their first 64 bits, which one customer has. Each node counts by itself and forgets when it stops. Somebody who
//! guesses from the address of an application keeps that application out meanwhile; other addresses, other users and open
//! connections notice nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::settings::{PG_GUESS_FORGOTTEN_AFTER, PG_GUESS_PAUSE_MAX, PG_GUESSERS_MAX, PG_GUESSES_FREE};

/// Who has tried wrong passwords at a node.
#[derive(Default)]
pub struct Guesses {
    known: Mutex<HashMap<(IpAddr, String), Wrong>>,
}

struct Wrong {
    times: u32,
    last: Instant,
}

impl Wrong {
    /// Until when nothing is looked at.
    fn until(&self) -> Instant {
        let beyond = self.times.saturating_sub(PG_GUESSES_FREE);
        let pause = match beyond {
            0 => Duration::ZERO,
            beyond => Duration::from_secs(1 << (beyond - 1).min(16)).min(PG_GUESS_PAUSE_MAX),
        };
        self.last + pause
    }

    fn is_old(&self, now: Instant) -> bool {
        now >= self.last + PG_GUESS_FORGOTTEN_AFTER
    }
}

impl Guesses {
    /// Have `prove` look at a proof; or not, and then for how long not.
    pub fn guard<T, E>(
        &self,
        from: IpAddr,
        user: &str,
        now: Instant,
        prove: impl FnOnce() -> Result<T, E>,
    ) -> Result<Result<T, E>, Duration> {
        let key = (network(from), user.to_owned());
        // Held while the proof is looked at, so that nobody looks at another one meanwhile; it takes microseconds.
        let mut known = self.known.lock();
        match known.get(&key) {
            Some(wrong) if now < wrong.until() => return Err(wrong.until() - now),
            Some(wrong) if wrong.is_old(now) => drop(known.remove(&key)),
            _ => {}
        }
        let proved = prove();
        match &proved {
            Ok(_) => drop(known.remove(&key)),
            Err(_) => {
                make_room(&mut known, now);
                let wrong = known.entry(key).or_insert(Wrong { times: 0, last: now });
                wrong.times = wrong.times.saturating_add(1);
                wrong.last = now;
            }
        }
        Ok(proved)
    }
}

fn make_room(known: &mut HashMap<(IpAddr, String), Wrong>, now: Instant) {
    if known.len() < PG_GUESSERS_MAX {
        return;
    }
    known.retain(|_, wrong| !wrong.is_old(now));
    if known.len() >= PG_GUESSERS_MAX
        && let Some(first) = known.iter().min_by_key(|(_, wrong)| wrong.until()).map(|(key, _)| key.clone())
    {
        known.remove(&first);
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: Result<(), ()> = Err(());
    const RIGHT: Result<(), ()> = Ok(());

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn after_some_wrong_passwords_even_the_right_one_has_to_wait() {
        let (guesses, from, begun) = (Guesses::default(), address("10.0.0.1"), Instant::now());
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let prove = |now, proof: Result<(), ()>| guesses.guard(from, "ada", now, || proof);
        for _ in 0..PG_GUESSES_FREE {
            assert_eq!(prove(at(0), WRONG), Ok(WRONG));
        }
        assert_eq!(prove(at(0), WRONG), Ok(WRONG), "the free ones are followed by one more before the first pause");
        assert_eq!(prove(at(0), RIGHT), Err(Duration::from_secs(1)));
        // Others are not concerned.
        assert_eq!(guesses.guard(from, "bob", at(0), || RIGHT), Ok(RIGHT));
        assert_eq!(guesses.guard(address("10.0.0.2"), "ada", at(0), || RIGHT), Ok(RIGHT));
        assert_eq!(prove(at(1), WRONG), Ok(WRONG));
        assert_eq!(prove(at(2), RIGHT), Err(Duration::from_secs(1)), "two seconds now");
        for late in 1..40 {
            prove(at(late * 100), WRONG).unwrap().unwrap_err();
        }
        assert_eq!(prove(at(3_900), RIGHT), Err(PG_GUESS_PAUSE_MAX), "it does not grow for ever");
        assert_eq!(prove(at(4_000), RIGHT), Ok(RIGHT));
        for _ in 0..=PG_GUESSES_FREE {
            assert_eq!(prove(at(4_000), WRONG), Ok(WRONG), "the right one began anew");
        }
        assert!(prove(at(4_000), RIGHT).is_err());
        let much_later = begun + Duration::from_secs(4_000) + PG_GUESS_FORGOTTEN_AFTER;
        assert_eq!(prove(much_later, WRONG), Ok(WRONG));
        assert_eq!(prove(much_later, RIGHT), Ok(RIGHT), "what is long ago is forgotten");
    }

    #[test]
    fn what_is_remembered_is_limited() {
        let (guesses, begun) = (Guesses::default(), Instant::now());
        for number in 0..PG_GUESSERS_MAX as u32 + 10 {
            let from = IpAddr::from(number.to_be_bytes());
            guesses.guard(from, "ada", begun + Duration::from_millis(number.into()), || WRONG).unwrap().unwrap_err();
        }
        assert_eq!(guesses.known.lock().len(), PG_GUESSERS_MAX);
        guesses.guard(address("::1"), "x", begun + PG_GUESS_FORGOTTEN_AFTER * 2, || WRONG).unwrap().unwrap_err();
        assert_eq!(guesses.known.lock().len(), 1);
    }

    #[test]
    fn a_customer_is_one_however_many_addresses_it_has() {
        assert_eq!(network(address("2001:db8::1")), network(address("2001:db8::ffff:1")));
        assert_ne!(network(address("2001:db8::1")), network(address("2001:db8:0:1::1")));
        assert_eq!(network(address("::ffff:10.0.0.1")), network(address("10.0.0.1")));
        assert_ne!(network(address("10.0.0.1")), network(address("10.0.0.2")));
    }
}
