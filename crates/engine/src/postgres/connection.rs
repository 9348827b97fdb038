//! A connection to a server, as long as it is somebody's.
//!
//! What is [pushed](Connection::push) is sent, and what comes back [received](Connection::receive), at the same time: a client that sends much
//! ahead can't make both ends wait for each other. The server's bytes are passed on as they are; only the heads of
//! messages are looked at, and the bodies of a few small ones. A row of a gigabyte is never held.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::cancel::{Canceller, Turn};
use super::error::PostgresError;
use super::exchange::{Exchange, Expected, Verdict};
use super::server::{Address, Server, Stream};
use super::start::{PARAMETERS_MAX, Started, start};
use super::statement::{HELD_MAX, Held, Statement};
use super::wire::backend::{Failure, Head, SqlState, Status, parameter};
use super::wire::frontend::{Bind, Message, Target};
use super::wire::{Broken, HEAD};

/// What may wait to be sent, in bytes.
const UNSENT_BYTES_MAX: usize = 64 << 20;
/// So much is read at a time.
const READ_BYTES: usize = 32 << 10;
/// What a server may say while it is sent rows, in bytes.
const ASIDE_BYTES_MAX: usize = 1 << 20;
const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";

/// What a client wants of the server.
#[derive(Clone, Debug)]
pub enum Request {
    /// The simple protocol.
    Query(String),
    Parse(Arc<Statement>),
    /// The statement's name in it is not looked at.
    Bind(Arc<Statement>, Bind),
    DescribeStatement(Arc<Statement>),
    DescribePortal(String),
    Execute {
        portal: String,
        rows: u32,
    },
    /// The client needs its name for a statement no more. The server may keep the statement.
    CloseStatement,
    ClosePortal(String),
    Flush,
    Sync,
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// For the client, as it is. It may begin and end in the middle of a message.
    Bytes(Bytes),
    /// The server waits for rows.
    CopyIn,
    /// All is answered up to a Sync or the end of a Query. The ReadyForQuery itself is not passed on.
    Ready { status: Status, error: Option<SqlState> },
    /// All is answered that was sent, and no Sync was.
    Answered,
}

/// The settings of a session, as the SETs that make them. Two sessions with the same may have the same connection without a word in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(Option<Arc<str>>);

impl Profile {
    /// SETs, with semicolons between them. They must be alone what the session differs by.
    pub fn new(sets: &str) -> Profile {
        Profile((!sets.is_empty()).then(|| Arc::from(sets)))
    }
}

/// A connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: BytesMut,
    /// Written to TLS and perhaps not to the socket.
    unflushed: bool,
    exchange: Exchange,
    /// Bytes of a message that is being passed on.
    rest: usize,
    /// What was found behind bytes that were handed out first.
    next: Option<Reply>,
    status: Status,
    /// The first since the last Ready.
    error: Option<SqlState>,
    held: Held,
    /// A portal may be open that needs its statement.
    portals: bool,
    /// Something was left in the session that the next client must not find.
    stained: bool,
    parameters: BTreeMap<String, String>,
    /// The settings that the session has.
    profile: Profile,
    pub(super) turn: Turn,
}

impl Connection {
    /// Connect and log in, and see that the server is the shard that it has to be.
    pub async fn open(server: &Server) -> Result<Connection, PostgresError> {
        Connection::open_with(server, &[("application_name", "pleat")]).await
    }

    /// The same, with these settings of the session.
    pub(super) async fn open_with(server: &Server, settings: &[(&str, &str)]) -> Result<Connection, PostgresError> {
        let mut connection = Connection::begun(start(server, settings).await?, server.address.clone());
        if let Some(identity) = &server.identity {
            connection.check(identity).await?;
        }
        Ok(connection)
    }

    /// A connection whose session has begun.
    pub(super) fn begun(started: Started, address: Address) -> Connection {
        let Started { stream, buffer, parameters, process, secret } = started;
        Connection {
            stream,
            input: buffer,
            output: BytesMut::new(),
            unflushed: false,
            exchange: Exchange::default(),
            rest: 0,
            next: None,
            status: Status::Idle,
            error: None,
            held: Held::default(),
            portals: false,
            stained: false,
            parameters,
            profile: Profile::default(),
            turn: Turn::new(address, process, secret),
        }
    }

    /// What is below the protocol, and what was read ahead: for a stream of changes, which is not asked and answered.
    pub(super) fn into_stream(self) -> (Box<dyn Stream>, BytesMut) {
        (self.stream, self.input)
    }

    /// What the server reports of a setting: `server_version`, `TimeZone`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Ends what this connection runs, until it is somebody else's.
    pub fn canceller(&self) -> Canceller {
        self.turn.canceller()
    }

    /// Whether all is answered that was sent, and nothing waits to be.
    pub fn is_settled(&self) -> bool {
        self.exchange.is_over() && self.output.is_empty()
    }

    /// Whether something failed, so that nothing but a Sync is answered.
    pub fn is_skipping(&self) -> bool {
        self.exchange.is_skipping()
    }

    /// Give the session these settings, and no others. Nothing is sent when it has them.
    pub async fn assume(&mut self, profile: &Profile) -> Result<(), PostgresError> {
        if self.profile == *profile {
            return Ok(());
        }
        let text = match profile.0.as_deref() {
            None => "RESET ALL".to_owned(),
            Some(sets) => format!("RESET ALL; {sets}"),
        };
        let stained = self.stained;
        self.push(Request::Query(text))?;
        let error = loop {
            match self.receive().await? {
                Reply::Ready { error, .. } => break error,
                Reply::Bytes(_) | Reply::CopyIn | Reply::Answered => {}
            }
        };
        match error {
            None => {
                // What was left before is still there; the settings themselves are known.
                self.stained = stained;
                self.profile = profile.clone();
                Ok(())
            }
            Some(code) => {
                self.stained = true;
                let message = "the server does not take the settings of the session".to_owned();
                Err(PostgresError::Refused { code, message })
            }
        }
    }

    /// Send this with what is sent next. While the server skips what follows an error, nothing but a Sync is.
    pub fn push(&mut self, request: Request) -> Result<(), PostgresError> {
        if self.output.len() > UNSENT_BYTES_MAX {
            return Err(PostgresError::TooMuch(format!(
                "more than {UNSENT_BYTES_MAX} bytes wait to be sent to the server"
            )));
        }
        match request {
            // A server that takes rows ignores these, too.
            Request::Flush | Request::Sync if self.exchange.is_copying() => return Ok(()),
            _ if self.exchange.is_copying() => {
                return Err(PostgresError::OutOfTurn("the server waits for the rows of a COPY".to_owned()));
            }
            Request::Sync => {}
            _ if self.exchange.is_skipping() => return Ok(()),
            _ => {}
        }
        if self.exchange.is_over() && !self.portals && !matches!(request, Request::Query(_)) {
            self.forget_excess();
        }
        let (message, expected) = match request {
            Request::Query(text) => (Message::Query(text), Expected::Query),
            Request::Parse(statement) if self.held.uses(&statement.name) => {
                self.exchange.expect(Expected::Made(PARSE_COMPLETE));
                return Ok(());
            }
            Request::Parse(statement) => return self.prepare(&statement, true),
            Request::Bind(statement, bind) => {
                self.need(&statement)?;
                self.portals |= !bind.portal.is_empty();
                (Message::Bind(Bind { statement: statement.name.clone(), ..bind }), Expected::Bind)
            }
            Request::DescribeStatement(statement) => {
                self.need(&statement)?;
                (Message::Describe(Target::Statement(statement.name.clone())), Expected::DescribeStatement)
            }
            Request::DescribePortal(name) => (Message::Describe(Target::Portal(name)), Expected::DescribePortal),
            Request::Execute { portal, rows } => (Message::Execute { portal, rows }, Expected::Execute),
            Request::CloseStatement => {
                self.exchange.expect(Expected::Made(CLOSE_COMPLETE));
                return Ok(());
            }
            Request::ClosePortal(name) => (Message::Close(Target::Portal(name)), Expected::ClosePortal),
            Request::Flush => {
                Message::Flush.write(&mut self.output);
                return Ok(());
            }
            Request::Sync => (Message::Sync, Expected::Sync),
        };
        message.write(&mut self.output);
        self.exchange.expect(expected);
        Ok(())
    }

    fn need(&mut self, statement: &Statement) -> Result<(), PostgresError> {
        match self.held.uses(&statement.name) {
            true => Ok(()),
            false => self.prepare(statement, false),
        }
    }

    fn prepare(&mut self, statement: &Statement, told: bool) -> Result<(), PostgresError> {
        if self.held.is_full() {
            return Err(PostgresError::TooMuch(format!(
                "a transaction with open portals has prepared {HELD_MAX} statements, which is the limit"
            )));
        }
        let Statement { name, text, types } = statement;
        let parse = Message::Parse { name: name.clone(), text: text.clone(), types: types.clone() };
        parse.write(&mut self.output);
        self.held.add(name);
        self.exchange.expect(Expected::Parse { name: name.clone(), told });
        Ok(())
    }

    fn forget_excess(&mut self) {
        for name in self.held.excess() {
            Message::Close(Target::Statement(name)).write(&mut self.output);
            self.exchange.expect(Expected::Forget);
        }
    }

    /// Rows for a server that waits for them. One that has failed meanwhile needs none.
    pub async fn copy_data(&mut self, data: Bytes) -> Result<(), PostgresError> {
        if self.exchange.is_copying() {
            Message::CopyData(data).write(&mut self.output);
            self.drive(Until::Written).await?;
        }
        Ok(())
    }

    /// All rows were sent.
    pub fn copy_done(&mut self) {
        self.copied(Message::CopyDone);
    }

    /// There are no more rows, and those that were sent don't count.
    pub fn copy_fail(&mut self, why: &str) {
        self.copied(Message::CopyFail(why.to_owned()));
    }

    fn copied(&mut self, message: Message) {
        if self.exchange.is_copying() {
            message.write(&mut self.output);
            self.exchange.copied();
        }
    }

    /// Send what was pushed, so that the server begins with it. [`receive`](Self::receive) does so, too.
    pub async fn send(&mut self) -> Result<(), PostgresError> {
        match self.output.is_empty() {
            true => Ok(()),
            false => self.drive(Until::Written).await,
        }
    }

    /// What comes next. It may be given up and called again.
    pub async fn receive(&mut self) -> Result<Reply, PostgresError> {
        loop {
            if let Some(reply) = self.scan()? {
                return Ok(reply);
            }
            if self.exchange.is_answered() && self.output.is_empty() {
                return Ok(Reply::Answered);
            }
            let until = if self.exchange.is_answered() { Until::Written } else { Until::Read };
            self.drive(until).await?;
        }
    }

    /// What the server says without being asked: notices, and notifications that LISTEN asked for. To be waited for while all is answered; it
    /// may be given up and called again.
    pub async fn unasked(&mut self) -> Result<Bytes, PostgresError> {
        loop {
            match self.scan()? {
                Some(Reply::Bytes(bytes)) => return Ok(bytes),
                Some(_) => {}
                None => self.drive(Until::Read).await?,
            }
        }
    }

    /// What was read and is to be handed out.
    fn scan(&mut self) -> Result<Option<Reply>, PostgresError> {
        if let Some(next) = self.next.take() {
            return Ok(Some(next));
        }
        // So many bytes at the beginning are passed on.
        let mut run = 0;
        loop {
            let more = self.rest.min(self.input.len() - run);
            (run, self.rest) = (run + more, self.rest - more);
            if self.rest > 0 {
                break;
            }
            if run == 0
                && let Some(made) = self.exchange.made()
            {
                return Ok(Some(Reply::Bytes(Bytes::from_static(made))));
            }
            let head = match Head::read(&self.input[run..]).map_err(PostgresError::within)? {
                Some(head) if self.input.len() - run >= head.needed() && !(run > 0 && self.exchange.has_made()) => head,
                _ => break,
            };
            match self.message(run, head)? {
                After::Pass => self.rest = head.bytes,
                After::Drop(next) => {
                    let passed = self.input.split_to(run).freeze();
                    self.input.advance(head.bytes);
                    match (passed.is_empty(), next) {
                        (true, None) => run = 0,
                        (true, next) => return Ok(next),
                        (false, next) => {
                            self.next = next;
                            return Ok(Some(Reply::Bytes(passed)));
                        }
                    }
                }
                After::Tell(next) => {
                    self.next = Some(next);
                    return Ok(Some(Reply::Bytes(self.input.split_to(run + head.bytes).freeze())));
                }
            }
        }
        Ok((run > 0).then(|| Reply::Bytes(self.input.split_to(run).freeze())))
    }

    /// One message, as far as it is needed.
    fn message(&mut self, at: usize, head: Head) -> Result<After, PostgresError> {
        let body = &self.input[at + HEAD..at + head.needed()];
        match head.tag {
            b'S' => {
                let (name, value) = parameter(Bytes::copy_from_slice(body)).map_err(PostgresError::within)?;
                if self.parameters.contains_key(&name) || self.parameters.len() < PARAMETERS_MAX {
                    self.parameters.insert(name, value);
                }
                self.stained = true;
            }
            b'C' => self.complete(at, head),
            _ => {}
        }
        match self.exchange.take(head.tag).map_err(PostgresError::within)? {
            Verdict::Pass => Ok(After::Pass),
            Verdict::Drop => Ok(After::Drop(None)),
            Verdict::Suspended => {
                self.portals = true;
                Ok(After::Pass)
            }
            Verdict::CopyIn => Ok(After::Tell(Reply::CopyIn)),
            Verdict::Failed { unparsed } => {
                let failure = Failure::read(&self.input[at + HEAD..at + head.needed()]);
                unparsed.iter().for_each(|name| self.held.remove(name));
                self.failed(failure)
            }
            Verdict::Unasked => Err(lost(&Failure::read(&self.input[at + HEAD..at + head.needed()]))),
            Verdict::Ready => {
                let body = &self.input[at + HEAD..at + head.bytes];
                self.status = Status::read(body).map_err(PostgresError::within)?;
                self.portals &= self.status != Status::Idle;
                Ok(After::Drop(Some(Reply::Ready { status: self.status, error: self.error.take() })))
            }
        }
    }

    /// An error is the client's, unless it ends the connection: the client's own goes on.
    fn failed(&mut self, failure: Failure) -> Result<After, PostgresError> {
        if failure.fatal {
            return Err(lost(&failure));
        }
        // A statement is not what it was, or not there, or there unknown to us.
        self.stained |= matches!(failure.code.as_str(), "0A000" | "26000" | "42P05");
        self.error.get_or_insert(failure.code);
        Ok(After::Pass)
    }

    /// A statement was carried out. Some leave something behind in the session.
    fn complete(&mut self, at: usize, head: Head) {
        const LEAVE: [&[u8]; 12] = [
            b"SET",
            b"RESET",
            b"CREATE ",
            b"PREPARE\0",
            b"DEALLOCATE",
            b"DECLARE",
            b"LISTEN",
            b"UNLISTEN",
            b"LOAD",
            b"DISCARD",
            b"DO",
            b"CALL",
        ];
        let tag = &self.input[at + HEAD..at + head.bytes];
        self.stained |= LEAVE.iter().any(|left| tag.starts_with(left));
        if matches!(tag, b"DEALLOCATE ALL\0" | b"DISCARD ALL\0") {
            self.held.clear();
        }
    }

    async fn drive(&mut self, until: Until) -> Result<(), PostgresError> {
        let read = poll_fn(|cx| self.poll_drive(cx, until)).await;
        read.map_err(|error| PostgresError::within(Broken::Socket(error)))
    }

    /// Write and read as much as goes without waiting.
    fn poll_drive(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(_)) = self.poll_write(cx) {
            // The server is gone; what it said last is still to be read.
            self.output.clear();
            self.unflushed = false;
        }
        if until == Until::Written && self.output.is_empty() && !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        if until == Until::Written && self.input.len() > ASIDE_BYTES_MAX {
            return Poll::Ready(Err(io::Error::other("the server says much where it should take rows")));
        }
        match self.poll_read(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::Error::other("the server has closed it"))),
            Poll::Ready(Ok(_)) if until == Until::Written => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(read) => Poll::Ready(read.map(drop)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(READ_BYTES);
        pin!(self.stream.read_buf(&mut self.input)).poll(cx)
    }

    /// Whether the server has kept up a connection that nobody used. What it said meanwhile is read.
    pub(super) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            loop {
                match self.scan() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
            match self.poll_read(&mut cx) {
                Poll::Pending => return self.is_clean(),
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return false,
            }
        }
    }

    /// Whether it may be somebody else's: nothing is open, on the server or on the way.
    pub(super) fn is_clean(&self) -> bool {
        let on_the_way = self.rest > 0 || self.next.is_some() || !self.input.is_empty() || !self.output.is_empty();
        self.exchange.is_over() && self.status == Status::Idle && !on_the_way
    }

    /// Whether the server may still be working for whoever had it.
    pub(super) fn is_working(&self) -> bool {
        !self.exchange.is_answered() || self.exchange.is_copying()
    }

    /// Whether something has to be undone before it is somebody else's.
    pub(super) fn is_stained(&self) -> bool {
        self.stained
    }

    /// Make the session what it was when it began.
    pub(super) async fn reset(&mut self) -> Result<(), PostgresError> {
        self.push(Request::Query("DISCARD ALL".to_owned()))?;
        loop {
            match self.receive().await? {
                Reply::Ready { status: Status::Idle, error: None } => break,
                Reply::Ready { error, .. } => {
                    return Err(PostgresError::Lost(format!("its session can't be reset: {error:?}")));
                }
                Reply::Bytes(_) | Reply::CopyIn | Reply::Answered => {}
            }
        }
        self.stained = false;
        self.profile = Profile::default();
        Ok(())
    }
}

/// What becomes of a message that was looked at.
enum After {
    Pass,
    /// It is not passed on; this comes in its place.
    Drop(Option<Reply>),
    /// It is, whole, and this comes behind it.
    Tell(Reply),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Read,
    Written,
}

fn lost(failure: &Failure) -> PostgresError {
    PostgresError::Lost(format!("{} ({:?})", failure.message, failure.code))
}
