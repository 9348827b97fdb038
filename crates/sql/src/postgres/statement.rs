//! From a message's text to its statements, and what each of them is.
//!
//! What concerns the session and its transaction is told by its first words. What is routed by its tables goes through `query`.

use super::lex::{Kind, Tokens};
use super::plan::{Planned, Query, What};
use super::{copy, ddl, query};
use crate::Schema;
use crate::error::{Code, SqlError};
use crate::parse::STATEMENT_BYTES_MAX;

/// Plans the statements of one message.
pub(super) fn prepare(text: &str, schema: &Schema<'_>) -> Result<Vec<Planned>, SqlError> {
    if text.len() > STATEMENT_BYTES_MAX {
        return Err(SqlError::new(
            Code::TooLong,
            format!("the statement is {} bytes long; the most is {STATEMENT_BYTES_MAX}", text.len()),
        )
        .hint("send values as parameters, and many rows with COPY"));
    }
    let tokens = Tokens::of(text)?;
    let mut planned = Vec::new();
    let (mut from, mut start) = (0, 0);
    for end in ends(&tokens) {
        if end > from {
            let what = What::of(&Reader { tokens: &tokens, schema: *schema }, from, end)?;
            let until = if end < tokens.len() { tokens.start(end) } else { text.len() };
            planned.push(Planned { text: text[start..until].trim().to_owned(), what });
        }
        (from, start) = (end + 1, tokens.end(end));
    }
    Ok(planned)
}

/// The tokens at which statements end: each `;` between them, and the end of the text. Those inside of brackets (CREATE RULE) and of
/// BEGIN ATOMIC are none.
fn ends(tokens: &Tokens) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut depth, mut blocks) = (0usize, 0usize);
    for at in 0..tokens.len() {
        match tokens.opens(at) {
            1 => depth += 1,
            -1 => depth = depth.saturating_sub(1),
            _ => {}
        }
        if tokens.are(at, &["BEGIN", "ATOMIC"]) || blocks > 0 && tokens.is(at, "CASE") {
            blocks += 1;
        } else if tokens.is(at, "END") {
            blocks = blocks.saturating_sub(1);
        }
        if depth == 0 && blocks == 0 && tokens.is_symbol(at, ";") {
            found.push(at);
        }
    }
    found.push(tokens.len());
    found
}

/// The tokens of a message, and what they are read against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub tokens: &'a Tokens<'a>,
    pub schema: Schema<'a>,
}

impl Reader<'_> {
    /// A name at `at`, or what was expected there.
    pub fn name(&self, at: usize, to: usize, what: &str) -> Result<String, SqlError> {
        let name = (at < to).then(|| self.tokens.name(at)).flatten();
        name.ok_or_else(|| self.expected(at, what))
    }

    pub fn expected(&self, at: usize, what: &str) -> SqlError {
        SqlError::syntax(format!("{what} was expected here")).at(self.tokens.text, self.tokens.start(at))
    }

    fn is(&self, at: usize, to: usize, words: &[&str]) -> bool {
        at + words.len() <= to && self.tokens.are(at, words)
    }

    /// Behind `word`, if that is what comes at `at`.
    fn skip(&self, at: usize, to: usize, words: &[&str]) -> usize {
        if words.iter().any(|word| self.is(at, to, &[word])) { at + 1 } else { at }
    }

    fn statement(&self, from: usize, to: usize) -> Result<Planned, SqlError> {
        let what = What::of(self, from, to)?;
        Ok(Planned { text: self.tokens.slice(from, to).to_owned(), what })
    }
}

impl What {
    /// What the tokens `from..to` are.
    fn of(reader: &Reader, from: usize, to: usize) -> Result<What, SqlError> {
        let word = match reader.tokens.kind(from) {
            Some(Kind::Word) => reader.tokens.str(from).to_ascii_uppercase(),
            _ => String::new(),
        };
        let next = from + 1;
        Ok(match word.as_str() {
            "BEGIN" | "START" => begin(reader, from, to),
            "COMMIT" | "END" if reader.is(next, to, &["PREPARED"]) => What::PrepareTransaction,
            "COMMIT" | "END" => What::Commit { chain: chains(reader, next, to) },
            "ROLLBACK" | "ABORT" => rollback(reader, next, to)?,
            "SAVEPOINT" => What::Savepoint(reader.name(next, to, "a savepoint's name")?),
            "RELEASE" => What::Release(reader.name(reader.skip(next, to, &["SAVEPOINT"]), to, "a savepoint's name")?),
            "PREPARE" if reader.is(next, to, &["TRANSACTION"]) => What::PrepareTransaction,
            "PREPARE" => prepared(reader, next, to)?,
            "EXECUTE" => execute(reader, next, to)?,
            "DEALLOCATE" => What::Deallocate(one_or_all(reader, reader.skip(next, to, &["PREPARE"]), to)?),
            "SET" => set(reader, next, to)?,
            "RESET" => reset(reader, next, to)?,
            "DISCARD" => What::Discard { all: reader.is(next, to, &["ALL"]) },
            "DECLARE" => declare(reader, next, to)?,
            "FETCH" | "MOVE" => What::Fetch { cursor: reader.name(to - 1, to, "a cursor's name")? },
            "CLOSE" => What::Close(one_or_all(reader, next, to)?),
            "LISTEN" | "UNLISTEN" => What::Listen,
            "NOTIFY" => What::Notify,
            "COPY" => What::Copy(copy::plan(reader, from, to)?),
            "CREATE" | "ALTER" | "DROP" | "COMMENT" | "GRANT" | "REVOKE" | "REINDEX" | "SECURITY" | "IMPORT"
            | "REFRESH" | "REASSIGN" | "CLUSTER" => return ddl::plan(reader, from, to),
            _ => What::Query(query::plan(reader, from, to)?),
        })
    }
}

fn begin(reader: &Reader, from: usize, to: usize) -> What {
    What::Begin { read_only: (from..to).any(|at| reader.is(at, to, &["READ", "ONLY"])) }
}

fn chains(reader: &Reader, from: usize, to: usize) -> bool {
    (from..to).any(|at| reader.is(at, to, &["AND", "CHAIN"]))
}

fn rollback(reader: &Reader, at: usize, to: usize) -> Result<What, SqlError> {
    if reader.is(at, to, &["PREPARED"]) {
        return Ok(What::PrepareTransaction);
    }
    let at = reader.skip(at, to, &["WORK", "TRANSACTION"]);
    if reader.is(at, to, &["TO"]) {
        let at = reader.skip(at + 1, to, &["SAVEPOINT"]);
        return Ok(What::RollbackTo(reader.name(at, to, "a savepoint's name")?));
    }
    Ok(What::Rollback { chain: chains(reader, at, to) })
}

fn one_or_all(reader: &Reader, at: usize, to: usize) -> Result<Option<String>, SqlError> {
    if reader.is(at, to, &["ALL"]) { Ok(None) } else { reader.name(at, to, "a name or ALL").map(Some) }
}

fn prepared(reader: &Reader, at: usize, to: usize) -> Result<What, SqlError> {
    let tokens = reader.tokens;
    let name = reader.name(at, to, "the name of a prepared statement")?;
    let (types, at) = listed(tokens, at + 1, to);
    if !reader.is(at, to, &["AS"]) || at + 1 >= to {
        return Err(reader.expected(at, "AS and a statement"));
    }
    let statement = reader.statement(at + 1, to)?;
    if !matches!(statement.what, What::Query(_)) {
        return Err(SqlError::syntax("only SELECT, INSERT, UPDATE, DELETE and VALUES can be prepared"));
    }
    Ok(What::Prepare { name, types, statement: Box::new(statement) })
}

/// What a list in brackets at `at` has, and where it ends; nothing if there is none.
fn listed(tokens: &Tokens, at: usize, to: usize) -> (Vec<String>, usize) {
    if at >= to || !tokens.is_symbol(at, "(") {
        return (Vec::new(), at);
    }
    let close = tokens.closing(at).min(to);
    let items = super::clauses::commas(tokens, at + 1, close);
    (items.into_iter().map(|(from, to)| tokens.slice(from, to).to_owned()).collect(), close + 1)
}

fn execute(reader: &Reader, at: usize, to: usize) -> Result<What, SqlError> {
    let name = reader.name(at, to, "the name of a prepared statement")?;
    let (values, end) = listed(reader.tokens, at + 1, to);
    if end < to {
        return Err(reader.expected(end, "the end of the statement"));
    }
    Ok(What::Execute { name, values })
}

fn set(reader: &Reader, at: usize, to: usize) -> Result<What, SqlError> {
    if reader.is(at, to, &["TRANSACTION"])
        || reader.is(at, to, &["CONSTRAINTS"])
        || reader.is(at, to, &["LOCAL", "TRANSACTION"])
    {
        return Ok(What::SetTransaction);
    }
    if reader.is(at, to, &["SESSION", "CHARACTERISTICS"]) {
        return Ok(What::SetSessionCharacteristics);
    }
    let local = reader.is(at, to, &["LOCAL"]);
    let at = reader.skip(at, to, &["LOCAL"]);
    let authorization = |at: usize| reader.is(at, to, &["SESSION", "AUTHORIZATION"]);
    let at = if !local && !authorization(at) { reader.skip(at, to, &["SESSION"]) } else { at };
    Ok(What::Set { name: setting(reader, at, to)?, local })
}

/// The name that SHOW knows for what SET or RESET name at `at`.
fn setting(reader: &Reader, at: usize, to: usize) -> Result<String, SqlError> {
    for (words, name) in [
        (&["TIME", "ZONE"][..], "timezone"),
        (&["SESSION", "AUTHORIZATION"], "session_authorization"),
        (&["TRANSACTION", "ISOLATION", "LEVEL"], "transaction_isolation"),
        (&["NAMES"], "client_encoding"),
        (&["SCHEMA"], "search_path"),
        (&["ROLE"], "role"),
        (&["XML", "OPTION"], "xmloption"),
    ] {
        if reader.is(at, to, words) {
            return Ok(name.to_owned());
        }
    }
    let mut name = reader.name(at, to, "a setting's name")?;
    let mut at = at + 1;
    while at + 1 < to && reader.tokens.is_symbol(at, ".") {
        name = format!("{name}.{}", reader.name(at + 1, to, "a setting's name")?);
        at += 2;
    }
    Ok(name.to_ascii_lowercase())
}

fn reset(reader: &Reader, at: usize, to: usize) -> Result<What, SqlError> {
    if reader.is(at, to, &["ALL"]) {
        return Ok(What::Reset(None));
    }
    Ok(What::Reset(Some(setting(reader, at, to)?)))
}

/// Where the query of a DECLARE starts.
pub(super) fn declared(tokens: &Tokens, at: usize, to: usize) -> Option<usize> {
    (at..to).find(|at| tokens.is(*at, "FOR")).map(|at| at + 1).filter(|start| *start < to)
}

fn declare(reader: &Reader, at: usize, to: usize) -> Result<What, SqlError> {
    let name = reader.name(at, to, "a cursor's name")?;
    let start = declared(reader.tokens, at, to).ok_or_else(|| reader.expected(to, "FOR and a query"))?;
    let hold = (at..start).any(|at| reader.is(at, to, &["WITH", "HOLD"]));
    let text = reader.tokens.slice(start, to).to_owned();
    let query: Query = query::plan(reader, start, to)?;
    super::serial::refuse(&query, "a cursor")?;
    Ok(What::Declare { name, hold, text, query })
}
