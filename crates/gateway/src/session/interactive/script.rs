//! Scripts with transactions in them, and the id that a session inserted last.

use pleat_sql::split_script;

use super::{State, begins_so, control};
use crate::session::{Effect, Executor, Failure, Output, Params, Request, Response};
use futures::TryStreamExt;

impl Executor {
    /// Carry out a script that begins a transaction, in a session that ends with it.
    pub(in crate::session) async fn execute_script(&self, request: Request) -> Result<Response, Failure> {
        let mut state = State::default();
        let done = self.execute_each(&mut state, request).await;
        let Some(txn) = state.txn.take() else { return done };
        txn.roll_back().await;
        done.and(Err(Failure::new(
            "25P01",
            "the request ended inside the transaction that it began, so that was rolled back",
            "end it with COMMIT; to go on with it in further requests open a session with POST /sessions",
        )))
    }

    /// Carry out a request statement by statement, if it has several and some of them begin or end a transaction.
    pub(super) async fn execute_each(&self, state: &mut State, request: Request) -> Result<Response, Failure> {
        let statements: Vec<String> = split_script(&request.text)?.into_iter().map(str::to_owned).collect();
        if statements.len() <= 1 || !statements.iter().any(|text| begins_so(text)) {
            return self.execute_with(state, request).await;
        }
        if request.params != Params::default() || request.idempotency_key.is_some() {
            return Err(Failure::new(
                "22023",
                "a script that begins or ends a transaction takes no parameters and no idempotency key",
                "send its statements one by one in a session",
            ));
        }
        let mut effects = Vec::new();
        let mut last = None;
        for (at, text) in (1..).zip(statements) {
            let one = Request { text, ..request.clone() };
            let response = self.execute_with(state, one).await;
            let response = match response {
                Ok(response) => gathered(response, &mut effects).await,
                Err(failure) => Err(failure),
            };
            let numbered =
                |failure: Failure| Failure { message: format!("statement {at}: {}", failure.message), ..failure };
            last = Some(response.map_err(numbered)?);
        }
        let last = last.ok_or_else(|| Failure::internal("a script had no statement"))?;
        Ok(Response { output: Output::Effects(effects), ..last })
    }
}

/// Move what a statement gave to the others'.
async fn gathered(response: Response, effects: &mut Vec<Effect>) -> Result<Response, Failure> {
    match response.output {
        Output::Effects(done) => effects.extend(done),
        Output::Rows { columns, rows } => {
            let rows = rows.try_concat().await?;
            effects.push(Effect { columns, rows, ..Effect::default() });
        }
    }
    Ok(Response { output: Output::Effects(Vec::new()), ..response })
}

/// Put the session's last id where a statement asks for it. SQLite keeps it per connection, and a session's
/// statements run on many.
///
/// In a request of several statements it is left to SQLite, where one sees what those before it inserted.
pub(super) fn name_last_id(text: &mut String, last: Option<i64>) {
    const NAME: &str = "last_insert_rowid";
    let ascii_lower = text.to_ascii_lowercase();
    if !ascii_lower.contains(NAME) || control::read(text).is_some() {
        return;
    }
    if split_script(text).map_or(true, |statements| statements.len() != 1) {
        return;
    }
    let mut found = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        at = match bytes[at] {
            quote @ (b'\'' | b'"' | b'`') => after(bytes, at + 1, |rest| rest[0] == quote, 1),
            b'[' => after(bytes, at + 1, |rest| rest[0] == b']', 1),
            b'-' if bytes[at..].starts_with(b"--") => after(bytes, at, |rest| rest[0] == b'\n', 1),
            b'/' if bytes[at..].starts_with(b"/*") => after(bytes, at + 2, |rest| rest.starts_with(b"*/"), 2),
            letter if letter.is_ascii_alphanumeric() || letter == b'_' || !letter.is_ascii() => {
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
                let end = at + bytes[at..].iter().take_while(|byte| is_word(byte)).count();
                if let Some(close) = (ascii_lower[at..end] == *NAME).then(|| call_end(&text[end..])).flatten() {
                    found.push((at, end + close));
                }
                end
            }
            _ => at + 1,
        };
    }
    if let ([(from, to)], true) = (found.as_slice(), ascii_lower.trim_start().starts_with("select")) {
        let (before, after) = (text[..*from].trim(), text[*to..].trim_matches([' ', '\t', '\r', '\n', ';']));
        if before.eq_ignore_ascii_case("select") && after.is_empty() {
            // SQLite names the column after the expression.
            *text = format!("SELECT {} AS \"{}\"", last.unwrap_or(0), &text[*from..*to]);
            return;
        }
    }
    for (from, to) in found.into_iter().rev() {
        text.replace_range(from..to, &format!("({})", last.unwrap_or(0)));
    }
}

/// Where the `()` of a call ends, that begins here.
fn call_end(rest: &str) -> Option<usize> {
    let inner = rest.trim_start().strip_prefix('(')?.trim_start().strip_prefix(')')?;
    Some(rest.len() - inner.len())
}

fn after(bytes: &[u8], from: usize, ends: impl Fn(&[u8]) -> bool, length: usize) -> usize {
    (from..bytes.len()).find(|at| ends(&bytes[*at..])).map_or(bytes.len(), |at| at + length)
}

#[cfg(test)]
mod tests {
    use super::name_last_id;

    #[test]
    fn the_last_id_stands_where_it_is_asked_for() {
        for (text, named) in [
            ("SELECT last_insert_rowid()", "SELECT 7 AS \"last_insert_rowid()\""),
            ("SELECT LAST_INSERT_ROWID ( ) + 1, 'last_insert_rowid()'", "SELECT (7) + 1, 'last_insert_rowid()'"),
            (
                "SELECT \"last_insert_rowid\" -- last_insert_rowid()",
                "SELECT \"last_insert_rowid\" -- last_insert_rowid()",
            ),
            (
                "SELECT last_insert_rowids(), x_last_insert_rowid()",
                "SELECT last_insert_rowids(), x_last_insert_rowid()",
            ),
            ("INSERT INTO t VALUES ('it''s', last_insert_rowid())", "INSERT INTO t VALUES ('it''s', (7))"),
            ("DELETE FROM t; SELECT last_insert_rowid()", "DELETE FROM t; SELECT last_insert_rowid()"),
            ("SELECT 'ü', last_insert_rowid() /* last_insert_rowid() */", "SELECT 'ü', (7) /* last_insert_rowid() */"),
        ] {
            let mut text = text.to_owned();
            name_last_id(&mut text, Some(7));
            assert_eq!(text, named);
        }
        let mut text = "SELECT last_insert_rowid()".to_owned();
        name_last_id(&mut text, None);
        assert_eq!(text, "SELECT 0 AS \"last_insert_rowid()\"");
    }
}
