//! Pleat's own statements: a few, short, and answered with little. What clients send is passed on as bytes and never read like this.

use bytes::{Bytes, BytesMut};

use super::connection::{Connection, Reply, Request};
use super::error::PostgresError;
use super::wire::HEAD;
use super::wire::backend::{Failure, columns, tag, values};

/// What an answer may have, in bytes. It is held whole.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What a server answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Of the last statement that has rows.
    pub columns: Vec<String>,
    /// Its rows, in the text format; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// Of the last statement: `COMMIT`, `SELECT 3`. A COMMIT of a transaction that had failed says `ROLLBACK`.
    pub tag: String,
}

impl Connection {
    /// Send a text of one or several statements, and read what they give. For Pleat's own statements: everything is held, up to
    /// [`ANSWER_BYTES_MAX`]; whoever asks for more gets [`PostgresError::TooMuch`], and should drop the connection.
    ///
    /// An error of the server is [`PostgresError::Answered`], after which the connection is as good as before. A COPY from the client is refused.
    pub async fn ask(&mut self, text: &str) -> Result<Asked, PostgresError> {
        self.push(Request::Query(text.to_owned()))?;
        self.answer().await
    }

    /// What the server says up to where it is ready again.
    pub(super) async fn answer(&mut self) -> Result<Asked, PostgresError> {
        self.answers(&mut Vec::new()).await
    }

    /// The same, with what it says of each statement: `INSERT 0 1`.
    pub(super) async fn answers(&mut self, tags: &mut Vec<String>) -> Result<Asked, PostgresError> {
        let mut answer = BytesMut::new();
        loop {
            match self.receive().await? {
                Reply::Bytes(bytes) if answer.len() + bytes.len() > ANSWER_BYTES_MAX => {
                    return Err(PostgresError::TooMuch(format!(
                        "the server's answer has more than {ANSWER_BYTES_MAX} bytes"
                    )));
                }
                Reply::Bytes(bytes) => answer.extend_from_slice(&bytes),
                Reply::CopyIn => self.copy_fail("there are no rows to send"),
                Reply::Ready { .. } => return read(answer.freeze(), tags),
                Reply::Answered => {}
            }
        }
    }
}

/// Read whole messages.
pub(super) fn read(mut messages: Bytes, tags: &mut Vec<String>) -> Result<Asked, PostgresError> {
    let mut asked = Asked::default();
    while messages.len() >= HEAD {
        let length = messages[1..HEAD].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let mut message = messages.split_to(messages.len().min(1 + length));
        let body = message.split_off(HEAD);
        match message[0] {
            b'E' => return Err(PostgresError::answered(Failure::read(&body))),
            b'T' => {
                asked.columns = columns(body).map_err(PostgresError::within)?;
                asked.rows.clear();
            }
            b'D' => asked.rows.push(values(body).map_err(PostgresError::within)?),
            b'C' => tags.push(tag(body).map_err(PostgresError::within)?),
            _ => {}
        }
    }
    asked.tag = tags.last().cloned().unwrap_or_default();
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::super::wire::{message, text};
    use super::*;

    #[test]
    fn the_first_error_is_the_answer() {
        let mut out = BytesMut::new();
        message(&mut out, b'C', |body| text(body, "SELECT 1"));
        message(&mut out, b'E', |body| {
            ["VERROR", "C23505", "Mtwice", "Dwhich", ""].iter().for_each(|field| text(body, field));
        });
        let Err(PostgresError::Answered { code, message, detail }) = read(out.freeze(), &mut Vec::new()) else {
            panic!("no error")
        };
        assert_eq!((code.as_str(), message.as_str(), detail.as_str()), ("23505", "twice", "which"));
    }
}
