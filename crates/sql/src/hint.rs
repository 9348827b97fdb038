//! Routing by hand: `/* pleat: shard=2 */ SELECT …`.
//!
//! A hint is a block comment before the first word of a request, so that it passes through every driver and means
//! nothing to another database. Elsewhere in the text such a comment is a comment. A hint that can't be read is an
//! error and not ignored: whoever writes one counts on it.

use pleat_cluster::ShardId;

use crate::error::{Code, SqlError};
use crate::lex::leading_comments;

/// What a request's leading comment asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Read only the rows of this shard, as though there were no others.
    pub shard: Option<ShardId>,
    /// Refuse the request rather than carry it out on several shards.
    pub no_scatter: bool,
}

impl Hint {
    /// The hint of a request's text.
    pub fn of(text: &str) -> Result<Hint, SqlError> {
        let mut hint = Hint::default();
        for (offset, comment) in leading_comments(text) {
            let Some(asked) = comment.trim_start().strip_prefix("pleat:") else { continue };
            for item in asked.split([',', ' ', '\t', '\r', '\n']).filter(|item| !item.is_empty()) {
                hint.take(item).map_err(|error| error.at(text, offset))?;
            }
        }
        Ok(hint)
    }

    fn take(&mut self, item: &str) -> Result<(), SqlError> {
        if item.eq_ignore_ascii_case("no-scatter") {
            self.no_scatter = true;
            return Ok(());
        }
        let number = item.strip_prefix("shard=").map(|shard| shard.strip_prefix("shard-").unwrap_or(shard));
        let Some(Ok(number)) = number.map(str::parse::<u32>) else {
            let shown: String = item.chars().take(40).collect();
            return Err(SqlError::new(Code::Syntax, format!("'{shown}' is no hint"))
                .hint("the hints are /* pleat: shard=2 */ and /* pleat: no-scatter */"));
        };
        match self.shard.replace(ShardId(number)) {
            Some(other) if other != ShardId(number) => {
                Err(SqlError::new(Code::Syntax, format!("the hints name {other} and shard-{number}"))
                    .hint("name one shard, or none"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u32) -> Hint {
        Hint { shard: Some(ShardId(number)), no_scatter: false }
    }

    #[test]
    fn a_leading_comment_is_a_hint_and_any_other_is_a_comment() {
        assert_eq!(Hint::of("/* pleat: shard=2 */ SELECT 1"), Ok(shard(2)));
        assert_eq!(Hint::of("-- why\n /* app */ /*pleat: shard=shard-12*/SELECT 1"), Ok(shard(12)));
        assert_eq!(
            Hint::of("/* pleat: no-scatter, shard=3 */ SELECT 1"),
            Ok(Hint { shard: Some(ShardId(3)), no_scatter: true })
        );
        for none in [
            "SELECT /* pleat: shard=2 */ 1",
            "SELECT '/* pleat: shard=2 */'",
            "-- pleat: shard=2\nSELECT 1",
            "/* pleat shard=2 */ SELECT 1",
            "/* open",
            "",
        ] {
            assert_eq!(Hint::of(none), Ok(Hint::default()), "{none}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for wrong in ["shard", "shard=x", "shard=-1", "shards=2", "shard=1 shard=2", "shard=99999999999"] {
            let error = Hint::of(&format!("\n/* pleat: {wrong} */ SELECT 1")).unwrap_err();
            assert_eq!((error.sqlstate(), error.position.unwrap().line), ("42601", 2), "{wrong}");
            assert!(error.hint.is_some());
        }
    }
}
