//! Results as one JSON document, written as text without building a tree, up to a limit.

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use serde::Serialize;

use super::query::Trailer;
use super::value::ObjectShape;
use crate::session::{Effect, Failure, Output, Response as Answer};

/// The answer as one JSON document.
pub async fn response(answer: Answer, limit: usize) -> Result<Response, Failure> {
    let trailer = Trailer::of(&answer);
    let mut text = Text { bytes: Vec::new(), limit };
    match answer.output {
        Output::Rows { columns, mut rows } => {
            let shape = ObjectShape::new(&columns);
            let mut separator = b"{\"data\":[".as_slice();
            while let Some(chunk) = rows.try_next().await? {
                for row in &chunk {
                    text.raw(std::mem::replace(&mut separator, b","));
                    text.json(&shape.object(row))?;
                }
            }
            // No row came: the document is still to be opened.
            text.raw(if separator == b"," { b"" } else { separator });
            text.raw(b"]");
            text.fields(&trailer)?;
            text.field("columns", &columns)?;
            text.field("last_insert_id", &None::<i64>)?;
        }
        Output::Effects(effects) => effects_document(&mut text, &effects, &trailer)?,
    }
    text.raw(b"}");
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((headers, Bytes::from(text.bytes)).into_response())
}

fn effects_document(text: &mut Text, effects: &[Effect], trailer: &Trailer) -> Result<(), Failure> {
    let none = Effect::default();
    let last = effects.last().unwrap_or(&none);
    text.raw(b"{\"data\":");
    text.rows(last)?;
    text.fields(trailer)?;
    text.field("columns", &last.columns)?;
    text.field("last_insert_id", &last.last_insert_id)?;
    if effects.len() > 1 {
        text.raw(b",\"results\":");
        text.results(effects)?;
    }
    Ok(())
}

/// A JSON document that is being written, within a limit.
pub(super) struct Text {
    pub bytes: Vec<u8>,
    pub limit: usize,
}

impl Text {
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn json<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.bytes, value)
            .map_err(|error| Failure::internal(format!("writing the answer: {error}")))?;
        match self.bytes.len() <= self.limit {
            true => Ok(()),
            false => Err(Failure::new(
                "54000",
                format!("the result is larger than {} bytes of JSON", self.limit),
                "add a LIMIT, or ask for it as lines with Accept: application/x-ndjson, which has no limit",
            )
            .at_limit("limits.result_bytes")),
        }
    }

    /// `,"name":value`
    pub(super) fn field<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), Failure> {
        self.raw(b",");
        self.json(&name)?;
        self.raw(b":");
        self.json(value)
    }

    /// All fields of a struct, each after a comma.
    pub(super) fn fields<T: Serialize>(&mut self, fields: &T) -> Result<(), Failure> {
        let begin = self.bytes.len();
        self.json(fields)?;
        // `{"a":1}` becomes `,"a":1`.
        if let Some(brace) = self.bytes.get_mut(begin) {
            *brace = b',';
        }
        self.bytes.pop();
        Ok(())
    }

    /// A statement's rows as an array of objects.
    fn rows(&mut self, effect: &Effect) -> Result<(), Failure> {
        let shape = ObjectShape::new(&effect.columns);
        self.raw(b"[");
        for (at, row) in effect.rows.iter().enumerate() {
            self.raw(if at > 0 { b"," } else { b"" });
            self.json(&shape.object(row))?;
        }
        self.raw(b"]");
        Ok(())
    }

    /// What each statement gave, as an array.
    pub(super) fn results(&mut self, effects: &[Effect]) -> Result<(), Failure> {
        self.raw(b"[");
        for (at, effect) in effects.iter().enumerate() {
            self.raw(if at > 0 { b",{\"data\":" } else { b"{\"data\":" });
            self.rows(effect)?;
            self.field("columns", &effect.columns)?;
            self.field("rows_affected", &effect.rows_affected)?;
            self.field("last_insert_id", &effect.last_insert_id)?;
            self.raw(b"}");
        }
        self.raw(b"]");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use futures::stream;
    use pleat_cluster::{ShardId, Value};
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::http::QueryResponse;
    use crate::session::Touched;

    fn answer(output: Output) -> Answer {
        Answer {
            output,
            touched: Touched::One(ShardId(2)),
            generation: 7,
            token: None,
            notice: None,
            operation: None,
            replayed: false,
        }
    }

    fn rows(columns: &[&str], chunks: Vec<Vec<Vec<Value>>>) -> Output {
        let columns = columns.iter().map(|name| (*name).to_owned()).collect();
        Output::Rows { columns, rows: stream::iter(chunks.into_iter().map(Ok)).boxed() }
    }

    async fn text(answer: Answer, limit: usize) -> Result<String, Failure> {
        let response = response(answer, limit).await?;
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Ok(String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn one_shard_answers_with_its_rows_and_its_name() {
        let one = || vec![Value::Integer(1)];
        for chunks in [vec![vec![one(), one()]], vec![vec![], vec![one()], vec![one()]]] {
            let text = text(answer(rows(&["id"], chunks)), 1_000).await.unwrap();
            let wanted = r#"{"data":[{"id":1},{"id":1}],"shard":"shard-2","rows_affected":0,"generation":7,"columns":["id"],"last_insert_id":null}"#;
            assert_eq!(text, wanted);
        }
        for chunks in [vec![], vec![vec![]]] {
            let text = text(answer(rows(&["id"], chunks)), 1_000).await.unwrap();
            assert!(text.starts_with(r#"{"data":[],"shard":"shard-2""#), "{text}");
            let read: QueryResponse = serde_json::from_str(&text).unwrap();
            assert_eq!(read.columns, ["id"]);
        }
    }

    #[tokio::test]
    async fn several_shards_are_listed() {
        let touched = Touched::Many(vec![ShardId(1), ShardId(2)]);
        let answer = Answer { touched, ..answer(rows(&["n"], vec![vec![vec![Value::Integer(3)]]])) };
        let read: Json = serde_json::from_str(&text(answer, 1_000).await.unwrap()).unwrap();
        assert_eq!((&read["data"], &read["shards"]), (&json!([{"n": 3}]), &json!(["shard-1", "shard-2"])));
        assert!(read.get("shard").is_none());
    }

    #[tokio::test]
    async fn several_statements_have_a_result_each() {
        let insert = Effect { rows_affected: 2, last_insert_id: Some(9), ..Effect::default() };
        let returning = Effect {
            columns: vec!["id".to_owned()],
            rows: vec![vec![Value::Integer(4)]],
            rows_affected: 1,
            last_insert_id: None,
        };
        let answer = answer(Output::Effects(vec![insert, returning]));
        let read: QueryResponse = serde_json::from_str(&text(answer, 1_000).await.unwrap()).unwrap();
        assert_eq!((read.trailer.rows_affected, read.data.len()), (3, 1));
        let results = read.results.unwrap();
        assert_eq!((results[0].last_insert_id, results[1].columns.as_slice()), (Some(9), &["id".to_owned()][..]));
    }

    #[tokio::test]
    async fn a_result_over_the_limit_is_an_error_that_names_the_ways_out() {
        let many = vec![vec![vec![Value::from("x".repeat(100))]; 20]];
        let failure = text(answer(rows(&["t"], many)), 500).await.unwrap_err();
        assert_eq!(failure.code, "54000");
        assert!(failure.hint.contains("LIMIT") && failure.hint.contains("ndjson"), "{}", failure.hint);
    }
}
