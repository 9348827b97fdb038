//! Rows of a COPY in each format, and the keys in them.

use pleat_fuzz::outcome;

use super::*;

/// Rows for [`rows`]: the first byte says the format, the second the key's type.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut binary = b"\x02\0".to_vec();
    binary.extend_from_slice(SIGNATURE);
    binary.extend_from_slice(&[0; 8]);
    binary.extend_from_slice(
        b"\0\x02\0\0\0\x04\0\0\0\x07\0\0\0\x01a\0\x02\0\0\0\x08\0\0\0\0\0\0\0\x07\xff\xff\xff\xff\xff\xff",
    );
    let uuid = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    vec![
        b"\0\x007\tseven\n8\t\\N\n\\.\n".to_vec(),
        format!("\0\x02{uuid}\ta\\tb\\\\\\x41\\101\r\n").into_bytes(),
        b"\x01\x017,\"a \"\"quoted\"\"\nvalue\"\r\n\"8\",\n".to_vec(),
        b"\x01\x03\\xdead,beef\n".to_vec(),
        binary,
    ]
}

/// However the rows are cut into pieces, they are the same, with the same keys, and nothing is left out or added.
pub fn rows(input: &[u8]) -> u64 {
    let [format, of, said @ ..] = input else { return 0 };
    let types = [KeyType::Integer, KeyType::Text, KeyType::Uuid, KeyType::Bytes];
    let of = types[usize::from(of % 4)];
    let load = Load {
        text: String::new(),
        key: Some((0, of, (of == KeyType::Text).then_some(3))),
        giving: None,
        key_name: String::new(),
        columns: 2,
        head: Bytes::new(),
        binary: format % 3 == 2,
        shards: BTreeMap::new(),
    };
    let length = 1 + said.len() % 5;
    // One byte at a time costs the square of a row's length where a row has many values.
    let pieces: Vec<&[u8]> = said.chunks(if said.len() > 2_000 { 700 + length } else { length }).collect();
    let whole = match load.binary {
        true => binary(&load, &[said]),
        false => texts(&load, format % 3 == 1, &[said]),
    };
    let cut = match load.binary {
        true => binary(&load, &pieces),
        false => texts(&load, format % 3 == 1, &pieces),
    };
    assert_eq!(whole, cut, "it matters how the rows are cut");
    let bytes: usize = whole.0.iter().map(|(row, _)| row.len()).sum();
    assert!(bytes <= said.len());
    outcome(&(
        whole.1,
        whole.0.len().min(4),
        whole.0.iter().take(4).map(|(_, key)| key.clone().ok().flatten().is_some()).collect::<Vec<_>>(),
    ))
}

type Rows = (Vec<(Bytes, Result<Option<Value>, String>)>, String);

fn binary(load: &Load, pieces: &[&[u8]]) -> Rows {
    let (mut binary, mut found) = (Binary::default(), Vec::new());
    for piece in pieces {
        binary.push(piece);
        loop {
            match binary.row() {
                Ok(Some((number, row))) => {
                    let key = load.binary_key(number, &row).map_err(|failure| failure.code);
                    found.push((row, key.map_err(String::from)));
                }
                Ok(None) => break,
                Err(failure) => return (found, failure.message),
            }
        }
    }
    (found, binary.ended.to_string())
}

fn texts(load: &Load, csv: bool, pieces: &[&[u8]]) -> Rows {
    let (delimiter, null) = if csv { (b',', "") } else { (b'\t', "\\N") };
    let form = Form { csv, header: false, delimiter, null: null.to_owned(), quote: b'"', escape: b'"' };
    let (mut decoder, mut found) = (Decoder::new(&form), Vec::new());
    for (at, piece) in pieces.iter().chain([&&b""[..]]).enumerate() {
        decoder.push(piece);
        loop {
            match decoder.raw(at == pieces.len()) {
                Ok(Some((line, row))) => {
                    let key = load.text_key(&form, line, &row).map_err(|failure| failure.code);
                    found.push((row.freeze(), key.map_err(String::from)));
                }
                Ok(None) => break,
                Err(failure) => return (found, failure.message),
            }
        }
    }
    (found, String::new())
}
