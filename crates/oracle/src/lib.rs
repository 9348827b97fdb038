//! What must be true of every answer, by what clients were told before.
//!
//! # The data
//!
//! Each account has a balance and a list of *tokens*. Every write has a token of its own, which it appends to the
//! list of each account that it touches, so a list is the very order in which writes took effect on its account. That
//! makes strong consistency cheap to check, per account, without any search:
//!
//! 1. *One history.* Of two lists that were ever read of one account, one is a beginning of the other.
//! 2. *Nothing lost.* A read that begins after a write was acknowledged has its token.
//! 3. *No way back.* A read that begins after another one ended has at least its tokens. A write that begins after a
//!    read ended stands behind what that had shown, and behind every write that was acknowledged by then.
//! 4. *Nothing doubled, nothing invented.* A token stands once, and only if a client sent it and was not told that it was
//!    not done.
//! 5. *Nothing torn.* The balance is what the tokens in the list make of the first balance; a transfer's token is in both
//!    lists or in none, also in a read of all accounts.
//!
//! A write whose outcome is unknown may stand there or not, and once it is read it stays.
//!
//! The first three say that each account's history is linearizable: the lists give one order of all its writes, each
//! read has its place in it, and no operation stands before one that had ended when it began.
//!
//! Answers are checked as they arrive, so a run ends close to what went wrong. The oracle knows nothing of how they
//! came: the simulation asks it, and so do the tests of real processes. Only tests use this crate.

use std::collections::{BTreeMap, BTreeSet};

/// An account's number.
pub type Account = i64;
/// A write's number.
pub type Token = u64;

/// Every account's balance at first.
pub const BALANCE: i64 = 1_000;

/// A write that a client sent.
#[derive(Clone, Debug)]
pub struct Write {
    /// What it adds to the balance of each account that it touches.
    pub changes: Vec<(Account, i64)>,
    /// By account: what was known of it when the write began.
    behind: BTreeMap<Account, Behind>,
    outcome: Outcome,
}

/// What was known of an account at some moment, as the lengths that its [`Known`] had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behind {
    list: usize,
    acknowledged: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Unknown,
    Done,
    Not,
}

/// What is known of an account.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The longest list that was read.
    list: Vec<Token>,
    /// Tokens that were acknowledged, in that order.
    acknowledged: Vec<Token>,
}

impl Known {
    fn now(&self) -> Behind {
        Behind { list: self.list.len(), acknowledged: self.acknowledged.len() }
    }
}

/// What a read must show at least: taken when it begins.
#[derive(Clone, Debug)]
pub struct Floor(BTreeMap<Account, Behind>);

/// An account as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub account: Account,
    pub balance: i64,
    pub list: Vec<Token>,
}

/// What clients were told so far.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    writes: Vec<Write>,
    known: BTreeMap<Account, Known>,
}

/// What went wrong.
pub type Wrong = String;

impl Oracle {
    pub fn new(accounts: impl Iterator<Item = Account>) -> Self {
        Oracle { writes: Vec::new(), known: accounts.map(|account| (account, Known::default())).collect() }
    }

    /// A client is about to send a write. Gives its token.
    pub fn begin_write(&mut self, changes: Vec<(Account, i64)>) -> Token {
        let behind = changes.iter().map(|(account, _)| (*account, self.known[account].now())).collect();
        self.writes.push(Write { changes, behind, outcome: Outcome::Unknown });
        self.writes.len() as Token
    }

    /// A client was told that its write is done.
    pub fn done(&mut self, token: Token) {
        self.write(token).outcome = Outcome::Done;
        for (account, _) in self.write(token).changes.clone() {
            self.known.entry(account).or_default().acknowledged.push(token);
        }
    }

    /// A client was told that its write was not done.
    pub fn not_done(&mut self, token: Token) {
        self.write(token).outcome = Outcome::Not;
    }

    fn write(&mut self, token: Token) -> &mut Write {
        &mut self.writes[token as usize - 1]
    }

    /// How many writes were acknowledged on the account that has the fewest.
    pub fn acknowledged_least(&self) -> usize {
        self.known.values().map(|known| known.acknowledged.len()).min().unwrap_or(0)
    }

    /// How many writes were sent, and how many acknowledged.
    pub fn counts(&self) -> (usize, usize) {
        (self.writes.len(), self.writes.iter().filter(|write| write.outcome == Outcome::Done).count())
    }

    /// The deposits in the longest list of an account that was read, in the order of their numbers.
    pub fn deposits(&self, account: Account) -> Vec<Token> {
        let alone = |token: &&Token| self.writes[**token as usize - 1].changes.len() == 1;
        let mut found: Vec<Token> = self.known[&account].list.iter().filter(alone).copied().collect();
        found.sort_unstable();
        found
    }

    /// A client is about to read.
    pub fn begin_read(&self) -> Floor {
        Floor(self.known.iter().map(|(account, known)| (*account, known.now())).collect())
    }

    /// The same where there are several copies, which get a write one after the other until it is acknowledged: one copy may show
    /// what another one, that is read later, does not.
    pub fn begin_read_of_a_copy(&self) -> Floor {
        let known = |known: &Known| Behind { list: 0, ..known.now() };
        Floor(self.known.iter().map(|(account, of)| (*account, known(of))).collect())
    }

    /// A client has read accounts: one, or all of them in one statement.
    pub fn read(&mut self, floor: &Floor, seen: &[Seen]) -> Result<(), Wrong> {
        for one in seen {
            self.check_account(floor, one)?;
        }
        self.check_transfers(seen)?;
        for one in seen {
            let known = self.known.entry(one.account).or_default();
            if known.list.len() < one.list.len() {
                known.list.clone_from(&one.list);
            }
        }
        Ok(())
    }

    /// Whether all accounts are there, each once.
    pub fn all_there(&self, seen: &[Seen]) -> Result<(), Wrong> {
        let found: Vec<Account> = seen.iter().map(|one| one.account).collect();
        let mut sorted = found.clone();
        sorted.sort_unstable();
        match sorted.iter().eq(self.known.keys()) {
            true => Ok(()),
            false => Err(format!("a read of all accounts shows {found:?}")),
        }
    }

    fn check_account(&self, floor: &Floor, seen: &Seen) -> Result<(), Wrong> {
        let Seen { account, balance, list } = seen;
        let Some(known) = self.known.get(account) else { return Err(format!("account {account} does not exist")) };
        let shorter = known.list.len().min(list.len());
        if known.list[..shorter] != list[..shorter] {
            return Err(format!("account {account} had the list {:?}, and now has {list:?}", known.list));
        }
        let floor = floor.0[account];
        if list.len() < floor.list {
            let length = floor.list;
            return Err(format!("account {account} showed {length} tokens before this read began; it has {list:?}"));
        }
        let places: BTreeMap<Token, usize> = list.iter().enumerate().map(|(place, token)| (*token, place)).collect();
        if places.len() != list.len() {
            return Err(format!("a token stands twice in the list of account {account}: {list:?}"));
        }
        if let Some(lost) = known.acknowledged[..floor.acknowledged].iter().find(|token| !places.contains_key(token)) {
            return Err(format!("token {lost} was acknowledged before this read of account {account}: {list:?}"));
        }
        self.check_order(*account, list, &places)?;
        self.check_tokens(*account, *balance, list)
    }

    /// A write stands behind those that were acknowledged before it began.
    fn check_order(&self, account: Account, list: &[Token], places: &BTreeMap<Token, usize>) -> Result<(), Wrong> {
        // For each number of writes that were acknowledged first: the last of their places, and whose it is. One that
        // is not there at all stands behind everything.
        let place = |token: &Token| (places.get(token).copied().unwrap_or(usize::MAX), *token);
        let mut last = vec![(0, 0)];
        for token in &self.known[&account].acknowledged {
            last.push(place(token).max(last[last.len() - 1]));
        }
        for (at, token) in list.iter().enumerate() {
            let Some(write) = self.sent(*token) else { continue };
            let Some(behind) = write.behind.get(&account) else { continue };
            let (before, earlier) = last[behind.acknowledged];
            if behind.acknowledged > 0 && at < before {
                return Err(format!(
                    "token {earlier} of account {account} was acknowledged before {token} was sent, and does not stand \
                     before it: {list:?}"
                ));
            }
        }
        Ok(())
    }

    fn sent(&self, token: Token) -> Option<&Write> {
        self.writes.get(usize::try_from(token).ok()?.checked_sub(1)?)
    }

    fn check_tokens(&self, account: Account, balance: i64, list: &[Token]) -> Result<(), Wrong> {
        let mut sum = BALANCE;
        for (place, token) in list.iter().enumerate() {
            let Some(write) = self.sent(*token) else {
                return Err(format!("nobody sent token {token} of account {account}"));
            };
            let Some((_, change)) = write.changes.iter().find(|(of, _)| *of == account) else {
                return Err(format!("token {token} was not for account {account}"));
            };
            if write.outcome == Outcome::Not {
                return Err(format!("token {token} stands in account {account}, and its client was told it does not"));
            }
            if place < write.behind[&account].list {
                return Err(format!(
                    "token {token} of account {account} stands before what was read before it was sent"
                ));
            }
            sum += change;
        }
        match sum == balance {
            true => Ok(()),
            false => Err(format!("account {account} has {balance}, and its tokens make {sum}: {list:?}")),
        }
    }

    /// Where several accounts were read at once, a transfer between two of them is in both or in none.
    fn check_transfers(&self, seen: &[Seen]) -> Result<(), Wrong> {
        let lists: BTreeMap<Account, BTreeSet<Token>> =
            seen.iter().map(|one| (one.account, one.list.iter().copied().collect())).collect();
        for one in seen {
            for token in &one.list {
                for (other, _) in &self.writes[*token as usize - 1].changes {
                    if lists.get(other).is_some_and(|list| !list.contains(token)) {
                        return Err(format!(
                            "half of transfer {token} is visible: in {} and not in {other}",
                            one.account
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(account: Account, balance: i64, list: &[Token]) -> Seen {
        Seen { account, balance, list: list.to_vec() }
    }

    /// Two accounts, a deposit of 1 on the first that is done, and a transfer of 5 whose outcome is unknown.
    fn oracle() -> Oracle {
        let mut oracle = Oracle::new([1, 2].into_iter());
        let deposit = oracle.begin_write(vec![(1, 1)]);
        oracle.done(deposit);
        oracle.begin_write(vec![(1, -5), (2, 5)]);
        oracle
    }

    fn wrong(oracle: &mut Oracle, reads: &[&[Seen]]) -> String {
        let floor = oracle.begin_read();
        let outcomes = reads.iter().map(|read| oracle.read(&floor, read));
        outcomes.collect::<Result<Vec<_>, _>>().unwrap_err()
    }

    #[test]
    fn what_may_be_is_accepted() {
        let both = [seen(1, 996, &[1, 2]), seen(2, 1005, &[2])];
        for read in [&[seen(1, 1001, &[1]), seen(2, 1000, &[])][..], &both[..]] {
            let mut oracle = oracle();
            let floor = oracle.begin_read();
            oracle.read(&floor, read).unwrap();
        }
    }

    #[test]
    fn what_must_not_be_is_found() {
        let one = |balance, list| seen(1, balance, list);
        assert!(wrong(&mut oracle(), &[&[one(1000, &[])]]).contains("was acknowledged"));
        assert!(wrong(&mut oracle(), &[&[one(1002, &[1, 1])]]).contains("stands twice"));
        assert!(wrong(&mut oracle(), &[&[one(1001, &[1, 9])]]).contains("nobody sent"));
        assert!(wrong(&mut oracle(), &[&[one(1000, &[1])]]).contains("its tokens make 1001"));
        assert!(wrong(&mut oracle(), &[&[one(996, &[1, 2])], &[one(996, &[2, 1])]]).contains("had the list"));
        assert!(wrong(&mut oracle(), &[&[one(996, &[1, 2]), seen(2, 1000, &[])]]).contains("half of transfer"));
    }

    #[test]
    fn what_was_told_not_to_be_done_must_not_appear() {
        let mut oracle = oracle();
        oracle.not_done(2);
        assert!(wrong(&mut oracle, &[&[seen(1, 996, &[1, 2])]]).contains("told it does not"));
    }

    #[test]
    fn there_is_no_way_back() {
        let mut oracle = oracle();
        let floor = oracle.begin_read();
        oracle.read(&floor, &[seen(1, 996, &[1, 2])]).unwrap();
        oracle.read(&floor, &[seen(1, 1001, &[1])]).unwrap();
        assert!(wrong(&mut oracle, &[&[seen(1, 1001, &[1])]]).contains("before this read began"));
        let late = oracle.begin_write(vec![(1, 1)]);
        assert!(wrong(&mut oracle, &[&[seen(1, 997, &[1, late, 2])]]).contains("had the list"));
    }

    #[test]
    fn a_copy_may_lag_behind_another_and_not_behind_what_was_acknowledged() {
        let mut oracle = oracle();
        let floor = oracle.begin_read();
        oracle.read(&floor, &[seen(1, 996, &[1, 2])]).unwrap();
        let floor = oracle.begin_read_of_a_copy();
        oracle.read(&floor, &[seen(1, 1001, &[1])]).unwrap();
        assert!(oracle.read(&floor, &[seen(1, 1000, &[])]).unwrap_err().contains("was acknowledged"));
        assert!(oracle.read(&floor, &[seen(1, 995, &[2])]).unwrap_err().contains("had the list"));
    }

    #[test]
    fn a_write_stands_behind_those_that_were_acknowledged_before_it() {
        let mut oracle = oracle();
        let late = oracle.begin_write(vec![(1, 1)]);
        let floor = oracle.begin_read();
        // 2 is as old as `late`, since nobody knows when it was done.
        for (balance, list) in [(1002, vec![1, late]), (997, vec![1, late, 2]), (997, vec![1, 2, late])] {
            oracle.clone().read(&floor, &[seen(1, balance, &list)]).unwrap();
        }
        assert!(wrong(&mut oracle.clone(), &[&[seen(1, 1002, &[late, 1])]]).contains("does not stand before it"));
        oracle.done(late);
        let last = oracle.begin_write(vec![(1, 1)]);
        let early = oracle.read(&floor, &[seen(1, 1002, &[1, last])]).unwrap_err();
        assert!(early.contains("does not stand before it"), "{early}");
    }
}
