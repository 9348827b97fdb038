//! What a server has been sent and still has to answer. Pure: letters in, what to do with them out.
//!
//! A server answers in the order of the messages, so a queue of what is expected tells what each of its messages belongs to. Some of
//! what is sent is ours (a Parse in front of a Bind, where this connection does not have the statement yet), and its answer is
//! not passed on; some of what a client asked needs no sending (a Parse of what is there already), and its answer is made here, in its
//! place between the others.
//!
//! After an error the server skips everything up to the next Sync, and so does the queue.

use std::collections::VecDeque;

use super::wire::Broken;

/// What the next messages of the server answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A Query: anything, up to ReadyForQuery.
    Query,
    /// A Parse of the statement with this name. `told`: the client asked for it.
    Parse {
        name: String,
        told: bool,
    },
    /// A Close of a statement that nobody needs.
    Forget,
    Bind,
    DescribeStatement,
    DescribePortal,
    Execute,
    ClosePortal,
    /// A Sync: ReadyForQuery.
    Sync,
    /// Nothing was sent; the answer is this.
    Made(&'static [u8]),
}

/// What to do with a message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the client's.
    Pass,
    /// It answers what the client did not ask.
    Drop,
    /// The server waits for rows.
    CopyIn,
    /// An execution stopped at its limit of rows.
    Suspended,
    /// Something failed; these Parses were not carried out.
    Failed { unparsed: Vec<String> },
    /// An error that answers nothing: the connection ends.
    Unasked,
    /// ReadyForQuery.
    Ready,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Exchange {
    expected: VecDeque<Expected>,
    /// An error came, and no Sync was sent since: nothing is answered up to one.
    skipping: bool,
    /// The server takes rows.
    copying: bool,
}

impl Exchange {
    /// Nothing is open: the connection may be another's.
    pub fn is_over(&self) -> bool {
        self.expected.is_empty() && !self.skipping && !self.copying
    }

    pub fn is_answered(&self) -> bool {
        self.expected.is_empty()
    }

    pub fn is_copying(&self) -> bool {
        self.copying
    }

    /// Whether something that is sent now would be skipped.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Something was sent.
    pub fn expect(&mut self, expected: Expected) {
        match expected {
            Expected::Sync => self.skipping = false,
            _ if self.skipping => return,
            _ => {}
        }
        self.expected.push_back(expected);
    }

    /// The rows of a COPY end.
    pub fn copied(&mut self) {
        self.copying = false;
    }

    /// Answers that were made here and whose turn it is.
    pub fn made(&mut self) -> Option<&'static [u8]> {
        let Some(Expected::Made(bytes)) = self.expected.front() else { return None };
        let bytes = *bytes;
        self.expected.pop_front();
        Some(bytes)
    }

    /// Whether an answer that was made here is due.
    pub fn has_made(&self) -> bool {
        matches!(self.expected.front(), Some(Expected::Made(_)))
    }

    /// A message of the server.
    pub fn take(&mut self, tag: u8) -> Result<Verdict, Broken> {
        match tag {
            // These come at any time.
            b'N' | b'A' | b'S' => return Ok(Verdict::Pass),
            b'E' => return Ok(self.failed()),
            _ => {}
        }
        let verdict = match (self.expected.front(), tag) {
            (Some(Expected::Query | Expected::Execute), b'G') => return self.copy_in(),
            (Some(Expected::Query), b'T' | b'D' | b'C' | b'I' | b'H' | b'd' | b'c') => return Ok(Verdict::Pass),
            (Some(Expected::Execute), b'D' | b'H' | b'd' | b'c') => return Ok(Verdict::Pass),
            (Some(Expected::DescribeStatement), b't') => return Ok(Verdict::Pass),
            (Some(Expected::Query | Expected::Sync), b'Z') => Verdict::Ready,
            (Some(Expected::Parse { told: true, .. }), b'1') => Verdict::Pass,
            (Some(Expected::Parse { told: false, .. }), b'1') => Verdict::Drop,
            (Some(Expected::Bind), b'2') => Verdict::Pass,
            (Some(Expected::DescribeStatement | Expected::DescribePortal), b'T' | b'n') => Verdict::Pass,
            (Some(Expected::Execute), b'C' | b'I') => Verdict::Pass,
            (Some(Expected::Execute), b's') => Verdict::Suspended,
            (Some(Expected::ClosePortal), b'3') => Verdict::Pass,
            (Some(Expected::Forget), b'3') => Verdict::Drop,
            (expected, tag) => {
                let what = match expected {
                    Some(expected) => format!("where an answer to {expected:?} was due"),
                    None => "unasked".to_owned(),
                };
                return Err(Broken::Malformed(format!("the server sent a message of type {tag:#04x} {what}")));
            }
        };
        self.expected.pop_front();
        Ok(verdict)
    }

    fn copy_in(&mut self) -> Result<Verdict, Broken> {
        if self.expected.front() == Some(&Expected::Execute) {
            // A server that takes rows ignores the Sync that came before them; one comes after them again.
            if self.expected.iter().skip(1).any(|other| *other != Expected::Sync) {
                return Err(Broken::Malformed("messages followed a COPY whose rows were not sent yet".to_owned()));
            }
            self.expected.truncate(1);
        }
        self.copying = true;
        Ok(Verdict::CopyIn)
    }

    fn failed(&mut self) -> Verdict {
        self.copying = false;
        let mut unparsed = Vec::new();
        match self.expected.front() {
            None => return Verdict::Unasked,
            Some(Expected::Query) => return Verdict::Failed { unparsed },
            Some(_) => {}
        }
        while let Some(expected) = self.expected.front() {
            match expected {
                Expected::Sync => return Verdict::Failed { unparsed },
                Expected::Parse { name, .. } => unparsed.push(name.clone()),
                _ => {}
            }
            self.expected.pop_front();
        }
        self.skipping = true;
        Verdict::Failed { unparsed }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(name: &str, told: bool) -> Expected {
        Expected::Parse { name: name.to_owned(), told }
    }

    fn with(expected: impl IntoIterator<Item = Expected>) -> Exchange {
        let mut exchange = Exchange::default();
        expected.into_iter().for_each(|expected| exchange.expect(expected));
        exchange
    }

    fn take(exchange: &mut Exchange, tags: &[u8]) -> Vec<Verdict> {
        tags.iter().map(|tag| exchange.take(*tag).unwrap()).collect()
    }

    #[test]
    fn answers_belong_to_what_was_sent_in_order() {
        let made = || Expected::Made(b"1");
        let mut exchange = with([
            made(),
            parse("a", false),
            Expected::Bind,
            Expected::DescribePortal,
            Expected::Execute,
            Expected::Sync,
        ]);
        assert!(matches!(exchange.take(b'1'), Err(Broken::Malformed(_))), "what was made comes first");
        assert!(exchange.made().is_some() && exchange.made().is_none());
        let pass = || Verdict::Pass;
        assert_eq!(take(&mut exchange, b"12TDD"), [Verdict::Drop, pass(), pass(), pass(), pass()]);
        assert!(!exchange.is_over());
        assert_eq!(take(&mut exchange, b"NCZ"), [pass(), pass(), Verdict::Ready]);
        assert!(exchange.is_over());
        assert!(exchange.take(b'Z').is_err());
        assert_eq!(exchange.take(b'E').unwrap(), Verdict::Unasked);
    }

    #[test]
    fn an_error_skips_to_the_next_sync() {
        let batch = || [parse("a", true), Expected::Bind, Expected::Execute, Expected::Sync];
        let mut exchange = with(batch().into_iter().chain(batch()));
        let unparsed = vec!["a".to_owned()];
        assert_eq!(take(&mut exchange, b"E"), [Verdict::Failed { unparsed: unparsed.clone() }]);
        assert_eq!(take(&mut exchange, b"Z12CZ")[..2], [Verdict::Ready, Verdict::Pass]);
        assert!(exchange.is_over());

        let mut exchange = with(batch().into_iter().take(3));
        assert_eq!(take(&mut exchange, b"E"), [Verdict::Failed { unparsed }]);
        exchange.expect(Expected::Bind);
        assert!(exchange.is_answered() && !exchange.is_over(), "nothing answers what is skipped");
        exchange.expect(Expected::Sync);
        assert_eq!(take(&mut exchange, b"Z"), [Verdict::Ready]);
        assert!(exchange.is_over());
    }

    #[test]
    fn rows_are_taken_and_the_sync_before_them_is_ignored() {
        let mut exchange = with([Expected::Bind, Expected::Execute, Expected::Sync]);
        assert_eq!(take(&mut exchange, b"2G"), [Verdict::Pass, Verdict::CopyIn]);
        exchange.copied();
        exchange.expect(Expected::Sync);
        assert_eq!(take(&mut exchange, b"CZ"), [Verdict::Pass, Verdict::Ready]);
        assert!(exchange.is_over());

        let mut exchange = with([Expected::Query]);
        assert_eq!(take(&mut exchange, b"GE"), [Verdict::CopyIn, Verdict::Failed { unparsed: vec![] }]);
        assert!(!exchange.is_copying());
        assert_eq!(take(&mut exchange, b"Z"), [Verdict::Ready]);
        assert!(with([Expected::Execute, Expected::Bind]).take(b'G').is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_letters_are_answers_or_an_error(tags: Vec<u8>, sent in 0usize..8) {
            let all = [
                Expected::Query, parse("a", true), Expected::Forget, Expected::Bind, Expected::DescribeStatement,
                Expected::Execute, Expected::Sync, Expected::ClosePortal,
            ];
            let mut exchange = with(all.into_iter().skip(sent));
            for tag in tags {
                let _ = exchange.take(tag);
            }
        }
    }
}
