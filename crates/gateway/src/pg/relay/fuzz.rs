//! What servers answer where Pleat looks into it, the values that statements are routed by, and settings.

use bytes::Bytes;
use pleat_cluster::{KeyType, Value};
use pleat_fuzz::outcome;

pub use super::copy::fuzz::{rows, seeds as rows_seeds};
use super::extended::{key_value, oid};
use super::messages::{Messages, counted, with_formats, words};
use super::settings::{Settings, check, value_of};
use crate::pg::start::Started;
use crate::pg::wire::Bind;

/// A server's messages, however they are cut, are the same; a description keeps its length when its formats are written.
pub fn messages(input: &[u8]) -> u64 {
    let read = |pieces: &[&[u8]]| {
        let (mut messages, mut found) = (Messages::default(), Vec::new());
        for piece in pieces {
            messages.push(piece);
            loop {
                match messages.next() {
                    Ok(Some(whole)) => found.push(whole),
                    Ok(None) => break,
                    Err(failure) => return (found, failure.code.to_string()),
                }
            }
        }
        (found, String::new())
    };
    let pieces: Vec<&[u8]> = input.chunks(1 + input.len() % 7).collect();
    let (found, failed) = read(&[input]);
    let again = read(&pieces);
    assert_eq!((&found, &failed), (&again.0, &again.1));
    for whole in &found {
        for formats in [&[][..], &[1], &[0, 1]] {
            assert_eq!(with_formats(whole, formats).len(), whole.bytes.len());
        }
        drop((counted(&whole.body()), words(&whole.body())));
    }
    outcome(&(found.iter().map(|whole| whole.tag).take(5).collect::<Vec<_>>(), failed))
}

/// The value of a parameter: the first bytes are the key's type, the format, and the type that was declared.
pub fn key(input: &[u8]) -> u64 {
    let [of, format, declared, bytes @ ..] = input else { return 0 };
    let of = [KeyType::Integer, KeyType::Text, KeyType::Uuid, KeyType::Bytes][usize::from(of % 4)];
    let all = [0, oid::INT2, oid::INT4, oid::INT8, oid::TEXT, oid::UUID, oid::BYTEA, 701, oid::UNKNOWN];
    let declared = all[usize::from(*declared) % all.len()];
    let formats = match format % 4 {
        0 => vec![],
        3 => vec![0, 1],
        one => vec![i16::from(one == 1)],
    };
    let bind = Bind { formats, values: vec![Some(Bytes::copy_from_slice(bytes)), None], ..Bind::default() };
    let value = key_value(&bind, &[declared], 0, of);
    assert_eq!(key_value(&bind, &[declared], 1, of), Some(Value::Null));
    outcome(&value.map(|value| std::mem::discriminant(&value)))
}

/// Settings of a first message, and statements that set some.
pub fn settings(started: &Started) -> u64 {
    let made = Settings::new(started).map(|settings| settings.profile().clone()).map_err(|failure| failure.code);
    for (name, value) in &started.settings {
        drop(check(name, value_of(value)));
    }
    outcome(&made.map(|profile| profile == pleat_engine::postgres::Profile::default()))
}
