//! From SQLite's tokens to `sqlparser`'s syntax tree.
//!
//! The tree is only ever *read*: to find tables, keys and clauses. What is sent to a shard is cut from the
//! user's own text. So the tokens may be bent a little on their way to the parser, where SQLite's grammar
//! and `sqlparser`'s differ without a difference to what Pleat looks for:
//!
//! - a word that is no keyword of SQLite is handed over as a quoted name, so that `interval`, `array` or
//!   `qualify` are plain columns;
//! - `GLOB`, `MATCH` and `REGEXP` become `LIKE`, `IS x` becomes `IS NOT DISTINCT FROM x`, `ISNULL` and
//!   `NOTNULL` are written out; `<<` and `>>` become `&`, which binds as they do;
//! - `INDEXED BY i`, `NOT INDEXED`, `[NOT] MATERIALIZED` and a frame's `EXCLUDE …` are dropped;
//! - a type in `CAST` is reduced to one word, and `CROSS JOIN` (which may have an ON) becomes `JOIN`.
//!
//! A parameter is handed over as `?slot`. Every token's column is its index in Pleat's own list plus one,
//! which leads from a node of the tree back to the text.

use sqlparser::ast;
use sqlparser::dialect::SQLiteDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token as Theirs, TokenWithSpan, Word};

use crate::error::{Code, SqlError};
use crate::lex::{Kind, Tokens, unquote};
use crate::params::Slots;

/// The longest statement text.
pub const STATEMENT_BYTES_MAX: usize = 1024 * 1024;
/// The deepest nesting of parentheses, subqueries and `CASE`.
pub const NESTING_MAX: usize = 48;
/// The most operators on the way from a statement's root to a leaf (SQLite's own limit is 1,000).
pub const OPERATORS_MAX: usize = 500;
/// `sqlparser` enters a handful of guarded functions for each level of nesting.
const PARSER_RECURSION_MAX: usize = 400;

/// Parses the one statement that the tokens `from..to` spell.
pub(crate) fn statement(tokens: &Tokens, slots: &Slots, from: usize, to: usize) -> Result<ast::Statement, SqlError> {
    statement_of(tokens, slots, &[(from, to)])
}

/// Parses the one statement that these runs of tokens spell together.
pub(crate) fn statement_of(
    tokens: &Tokens,
    slots: &Slots,
    spans: &[(usize, usize)],
) -> Result<ast::Statement, SqlError> {
    let mut theirs = Vec::new();
    for (from, to) in spans {
        check_nesting(tokens, *from, *to)?;
        theirs.extend(convert(tokens, slots, *from, *to));
    }
    let to = spans.last().map_or(0, |span| span.1);
    let mut parser = parser(theirs);
    let parsed = parser.parse_statement().map_err(|error| refused(tokens, to, &mut parser, &error))?;
    if parser.peek_token_ref().token != Theirs::EOF {
        return Err(refused(tokens, to, &mut parser, &ParserError::ParserError(String::new())));
    }
    Ok(parsed)
}

/// Parses the `WITH …` that the tokens `from..to` spell, before an INSERT, UPDATE or DELETE.
pub(crate) fn with_clause(tokens: &Tokens, slots: &Slots, from: usize, to: usize) -> Result<ast::With, SqlError> {
    check_nesting(tokens, from, to)?;
    let mut parser = parser(convert(tokens, slots, from, to));
    let with_token = ast::helpers::attached_token::AttachedToken::empty();
    let parsed = parser.expect_keyword(Keyword::WITH).and_then(|_| {
        let recursive = parser.parse_keyword(Keyword::RECURSIVE);
        let cte_tables = parser.parse_comma_separated(Parser::parse_cte)?;
        Ok(ast::With { with_token, recursive, cte_tables })
    });
    let parsed = parsed.map_err(|error| refused(tokens, to, &mut parser, &error))?;
    if parser.peek_token_ref().token != Theirs::EOF {
        return Err(refused(tokens, to, &mut parser, &ParserError::ParserError(String::new())));
    }
    Ok(parsed)
}

/// Parses the one expression that the tokens `from..to` spell. `None` when they spell none.
pub(crate) fn expression(tokens: &Tokens, slots: &Slots, from: usize, to: usize) -> Option<ast::Expr> {
    let mut parser = parser(convert(tokens, slots, from, to));
    let parsed = parser.parse_expr().ok()?;
    (parser.peek_token_ref().token == Theirs::EOF).then_some(parsed)
}

/// The index in Pleat's tokens of the token that `span` starts at.
pub(crate) fn token_of(span: Span) -> Option<usize> {
    usize::try_from(span.start.column).ok()?.checked_sub(1)
}

/// Whether token `index` ends an operand.
pub(crate) fn ends_operand(tokens: &Tokens, index: usize) -> bool {
    match tokens.kind(index) {
        Some(Kind::Symbol) => tokens.str(index) == ")",
        Some(Kind::Word) => {
            let word = tokens.str(index).to_ascii_uppercase();
            !is_keyword(&word) || matches!(word.as_str(), "END" | "NULL")
        }
        Some(_) => true,
        None => false,
    }
}

fn parser(tokens: Vec<TokenWithSpan>) -> Parser<'static> {
    const DIALECT: &SQLiteDialect = &SQLiteDialect {};
    Parser::new(DIALECT).with_recursion_limit(PARSER_RECURSION_MAX).with_tokens_with_locations(tokens)
}

/// `sqlparser`'s complaint, pointed at the user's text.
fn refused(tokens: &Tokens, to: usize, parser: &mut Parser, error: &ParserError) -> SqlError {
    if matches!(error, ParserError::RecursionLimitExceeded) {
        return too_complex("the statement is nested too deeply");
    }
    let index = token_of(parser.peek_token_ref().span).unwrap_or(to).min(to);
    let near = match tokens.str(index) {
        _ if index >= to => "at the end of the statement".to_owned(),
        near => format!("near {}", near.chars().take(40).collect::<String>()),
    };
    SqlError::syntax(format!("syntax error {near}"))
        .hint("Pleat speaks SQLite's SQL; if SQLite accepts this statement, please report it")
        .at(tokens.text, tokens.offset(index))
}

pub(crate) fn too_complex(message: &str) -> SqlError {
    SqlError::new(Code::TooComplex, message)
        .hint("use IN (…) instead of many OR, a CTE instead of deep nesting, or several statements")
}

fn check_nesting(tokens: &Tokens, from: usize, to: usize) -> Result<(), SqlError> {
    check_weights((from..to).map(|index| weigh(tokens, index)))
        .map_err(|(index, error)| error.at(tokens.text, tokens.offset(from + index)))
}

/// Refuses what would make the syntax tree too deep, before it is built: dropping a tree recurses. The error comes with the number of the token
/// that is too much.
///
/// Each open parenthesis or `CASE` is a level; each level counts its operators since the last comma or
/// clause. The depth of the tree is at most the sum over the open levels.
pub(crate) fn check_weights(weights: impl Iterator<Item = Weight>) -> Result<(), (usize, SqlError)> {
    let mut open: Vec<usize> = vec![0];
    let mut sum = 0;
    for (index, weight) in weights.enumerate() {
        match weight {
            Weight::Open => open.push(0),
            Weight::Close if open.len() > 1 => sum -= open.pop().unwrap_or(0),
            Weight::Reset => sum -= open.last_mut().map_or(0, std::mem::take),
            Weight::Operator => {
                sum += 1;
                *open.last_mut().unwrap_or(&mut 0) += 1;
            }
            Weight::Close | Weight::None => {}
        }
        let message = match () {
            () if open.len() > NESTING_MAX => format!("the statement is nested more than {NESTING_MAX} levels deep"),
            () if sum > OPERATORS_MAX => format!("an expression has more than {OPERATORS_MAX} operators"),
            () => continue,
        };
        return Err((index, too_complex(&message)));
    }
    Ok(())
}

/// What a token adds to the depth of the tree.
pub(crate) enum Weight {
    Open,
    Close,
    Reset,
    Operator,
    None,
}

fn weigh(tokens: &Tokens, index: usize) -> Weight {
    let text = tokens.str(index);
    match tokens.kind(index) {
        Some(Kind::Symbol) => match text {
            "(" => Weight::Open,
            ")" => Weight::Close,
            "," => Weight::Reset,
            "." | ";" => Weight::None,
            _ => Weight::Operator,
        },
        Some(Kind::Word) => match text.to_ascii_uppercase().as_str() {
            "CASE" => Weight::Open,
            "END" => Weight::Close,
            "FROM" | "WHERE" | "GROUP" | "HAVING" | "ORDER" | "SET" | "VALUES" => Weight::Reset,
            "AND" | "OR" | "NOT" | "IS" | "IN" | "LIKE" | "GLOB" | "BETWEEN" | "MATCH" | "REGEXP" | "COLLATE"
            | "ISNULL" | "NOTNULL" | "UNION" | "EXCEPT" | "INTERSECT" | "JOIN" | "EXISTS" => Weight::Operator,
            _ => Weight::None,
        },
        _ => Weight::None,
    }
}

fn convert(tokens: &Tokens, slots: &Slots, from: usize, to: usize) -> Vec<TokenWithSpan> {
    let mut bend =
        Bend { tokens, slots, out: Vec::with_capacity(to.saturating_sub(from)), casts: Vec::new(), depth: 0 };
    let mut index = from;
    while index < to {
        index = bend.step(index, to);
    }
    bend.out
}

/// The conversion in progress.
struct Bend<'a> {
    tokens: &'a Tokens<'a>,
    slots: &'a Slots,
    out: Vec<TokenWithSpan>,
    /// The depths of the parentheses that belong to a `CAST` whose `AS` is still to come.
    casts: Vec<usize>,
    depth: usize,
}

impl Bend<'_> {
    /// Converts from token `index` on; gives the next index to convert.
    fn step(&mut self, index: usize, to: usize) -> usize {
        let text = self.tokens.str(index);
        match self.tokens.kind(index) {
            Some(Kind::Word) => return self.word(index, to),
            Some(Kind::Name) => self.push(index, name(unquote(text))),
            Some(Kind::Text) => self.push(index, Theirs::SingleQuotedString(unquote(text))),
            Some(Kind::Blob) => self.push(index, Theirs::HexStringLiteral(text[2..text.len() - 1].to_owned())),
            Some(Kind::Number) => self.push(index, Theirs::Number(text.replace('_', ""), false)),
            Some(Kind::Parameter) => {
                let slot = self.slots.at(index).unwrap_or(0);
                self.push(index, Theirs::Placeholder(format!("?{slot}")));
            }
            Some(Kind::Symbol) => self.symbol(index, text),
            None => {}
        }
        index + 1
    }

    fn push(&mut self, index: usize, token: Theirs) {
        let here = Location { line: 1, column: index as u64 + 1 };
        self.out.push(TokenWithSpan { token, span: Span { start: here, end: here } });
    }

    fn keywords(&mut self, index: usize, words: &[&str]) {
        for word in words {
            self.push(index, Theirs::make_keyword(word));
        }
    }

    fn symbol(&mut self, index: usize, text: &str) {
        match text {
            "(" => self.depth += 1,
            ")" => {
                self.depth = self.depth.saturating_sub(1);
                let depth = self.depth;
                self.casts.retain(|cast| *cast <= depth);
            }
            _ => {}
        }
        self.push(index, symbol(text));
    }

    /// Whether the token before `index` ends an operand, so that what follows is an infix or postfix.
    fn after_operand(&self, index: usize) -> bool {
        index.checked_sub(1).is_some_and(|before| ends_operand(self.tokens, before))
    }

    fn word(&mut self, index: usize, to: usize) -> usize {
        let tokens = self.tokens;
        let text = tokens.str(index);
        let upper = text.to_ascii_uppercase();
        let called = tokens.is_symbol(index + 1, "(") && index + 1 < to;
        match upper.as_str() {
            "INDEXED" if tokens.is(index + 1, "BY") => return index + 3,
            "CROSS" if tokens.is(index + 1, "JOIN") => return index + 1,
            "NOT" if tokens.is(index + 1, "INDEXED") => return index + 2,
            "NOT" if tokens.is(index + 1, "MATERIALIZED") => return index + 2,
            "MATERIALIZED" if index > 0 && tokens.is(index - 1, "AS") => return index + 1,
            "EXCLUDE" if self.after_frame(index) => {
                return index + if tokens.is(index + 1, "NO") || tokens.is(index + 1, "CURRENT") { 3 } else { 2 };
            }
            "NOT" if tokens.is(index + 1, "NULL") && self.after_operand(index) => {
                self.keywords(index, &["IS", "NOT", "NULL"]);
                return index + 2;
            }
            "ISNULL" if self.after_operand(index) => self.keywords(index, &["IS", "NULL"]),
            "NOTNULL" if self.after_operand(index) => self.keywords(index, &["IS", "NOT", "NULL"]),
            "GLOB" | "MATCH" | "REGEXP" if self.after_operand(index) || tokens.is(index.wrapping_sub(1), "NOT") => {
                self.keywords(index, &["LIKE"]);
            }
            "IS" => return self.is(index),
            "CAST" if called => {
                self.casts.push(self.depth + 1);
                self.push(index, Theirs::make_keyword("CAST"));
            }
            "AS" if self.casts.last() == Some(&self.depth) => return self.cast_type(index, to),
            "REPLACE" | "IF" | "GLOB" | "LIKE" | "MATCH" | "REGEXP" if called && !self.after_operand(index) => {
                self.push(index, name(text.to_owned()));
            }
            "TRUE" | "FALSE" => self.push(index, Theirs::make_keyword(&upper)),
            _ if is_keyword(&upper) => self.push(index, Theirs::make_word(text, None)),
            _ => self.push(index, name(text.to_owned())),
        }
        index + 1
    }

    /// `EXCLUDE` is also a name; in a frame it follows the frame's bounds.
    fn after_frame(&self, index: usize) -> bool {
        let next = |word| self.tokens.is(index + 1, word);
        let before = |word| self.tokens.is(index.wrapping_sub(1), word);
        (before("PRECEDING") || before("FOLLOWING") || before("ROW"))
            && (next("NO") || next("CURRENT") || next("GROUP") || next("TIES"))
    }

    fn is(&mut self, index: usize) -> usize {
        let tokens = self.tokens;
        let negated = tokens.is(index + 1, "NOT");
        let value = index + 1 + usize::from(negated);
        if ["NULL", "TRUE", "FALSE", "DISTINCT"].iter().any(|word| tokens.is(value, word)) {
            self.keywords(index, &["IS"]);
            return index + 1;
        }
        self.keywords(index, if negated { &["IS", "DISTINCT", "FROM"] } else { &["IS", "NOT", "DISTINCT", "FROM"] });
        value
    }

    /// `AS UNSIGNED BIG INT(8))` as `AS "UNSIGNED")`.
    fn cast_type(&mut self, index: usize, to: usize) -> usize {
        self.casts.pop();
        self.push(index, Theirs::make_keyword("AS"));
        let mut next = index + 1;
        if let Some(word) = self.tokens.name(next) {
            self.push(next, name(word));
        }
        let mut depth = 0usize;
        while next < to {
            match self.tokens.str(next) {
                "(" => depth += 1,
                ")" if depth == 0 => break,
                ")" => depth -= 1,
                _ => {}
            }
            next += 1;
        }
        next
    }
}

fn name(value: String) -> Theirs {
    Theirs::Word(Word { value, quote_style: Some('"'), keyword: Keyword::NoKeyword })
}

fn symbol(text: &str) -> Theirs {
    match text {
        "->>" => Theirs::LongArrow,
        "->" => Theirs::Arrow,
        "||" => Theirs::StringConcat,
        "<=" => Theirs::LtEq,
        ">=" => Theirs::GtEq,
        "<>" | "!=" => Theirs::Neq,
        "==" | "=" => Theirs::Eq,
        "-" => Theirs::Minus,
        "|" => Theirs::Pipe,
        "<" => Theirs::Lt,
        ">" => Theirs::Gt,
        "&" | "<<" | ">>" => Theirs::Ampersand,
        "~" => Theirs::Tilde,
        "+" => Theirs::Plus,
        "*" => Theirs::Mul,
        "/" => Theirs::Div,
        "%" => Theirs::Mod,
        "," => Theirs::Comma,
        ";" => Theirs::SemiColon,
        "(" => Theirs::LParen,
        ")" => Theirs::RParen,
        _ => Theirs::Period,
    }
}

/// Whether `word` (in upper case) is a keyword of SQLite.
pub(crate) fn is_keyword(word: &str) -> bool {
    KEYWORDS.binary_search(&word).is_ok()
}

/// <https://www.sqlite.org/lang_keywords.html>, sorted.
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    "ABORT", "ACTION", "ADD", "AFTER", "ALL", "ALTER", "ALWAYS", "ANALYZE", "AND", "AS", "ASC", "ATTACH",
    "AUTOINCREMENT", "BEFORE", "BEGIN", "BETWEEN", "BY", "CASCADE", "CASE", "CAST", "CHECK", "COLLATE", "COLUMN",
    "COMMIT", "CONFLICT", "CONSTRAINT", "CREATE", "CROSS", "CURRENT", "CURRENT_DATE", "CURRENT_TIME",
    "CURRENT_TIMESTAMP", "DATABASE", "DEFAULT", "DEFERRABLE", "DEFERRED", "DELETE", "DESC", "DETACH", "DISTINCT",
    "DO", "DROP", "EACH", "ELSE", "END", "ESCAPE", "EXCEPT", "EXCLUDE", "EXCLUSIVE", "EXISTS", "EXPLAIN", "FAIL",
    "FILTER", "FIRST", "FOLLOWING", "FOR", "FOREIGN", "FROM", "FULL", "GENERATED", "GLOB", "GROUP", "GROUPS",
    "HAVING", "IF", "IGNORE", "IMMEDIATE", "IN", "INDEX", "INDEXED", "INITIALLY", "INNER", "INSERT", "INSTEAD",
    "INTERSECT", "INTO", "IS", "ISNULL", "JOIN", "KEY", "LAST", "LEFT", "LIKE", "LIMIT", "MATCH", "MATERIALIZED",
    "NATURAL", "NO", "NOT", "NOTHING", "NOTNULL", "NULL", "NULLS", "OF", "OFFSET", "ON", "OR", "ORDER", "OTHERS",
    "OUTER", "OVER", "PARTITION", "PLAN", "PRAGMA", "PRECEDING", "PRIMARY", "QUERY", "RAISE", "RANGE", "RECURSIVE",
    "REFERENCES", "REGEXP", "REINDEX", "RELEASE", "RENAME", "REPLACE", "RESTRICT", "RETURNING", "RIGHT", "ROLLBACK",
    "ROW", "ROWS", "SAVEPOINT", "SELECT", "SET", "TABLE", "TEMP", "TEMPORARY", "THEN", "TIES", "TO", "TRANSACTION",
    "TRIGGER", "UNBOUNDED", "UNION", "UNIQUE", "UPDATE", "USING", "VACUUM", "VALUES", "VIEW", "VIRTUAL", "WHEN",
    "WHERE", "WINDOW", "WITH", "WITHOUT",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_sorted() {
        assert!(KEYWORDS.is_sorted());
    }

    /// SQLite's own forms that `sqlparser` alone would refuse or read differently.
    #[test]
    fn sqlite_forms_parse() {
        for text in [
            "SELECT a FROM t INDEXED BY i WHERE a IS b AND c IS NOT d",
            "SELECT a FROM t NOT INDEXED WHERE a GLOB 'x*' AND b NOT GLOB 'y' AND c ISNULL AND d NOTNULL AND e NOT NULL",
            "SELECT interval, array, qualify, top, position, date, \"order\", [x y], `z` FROM t",
            "SELECT CAST(a AS UNSIGNED BIG INT), CAST(b AS VARCHAR(20)), CAST((SELECT 1 AS x) AS TEXT)",
            "SELECT a ->> '$.x', b -> 1, x'0aff', 0x1F, 1e5, .5 FROM t",
            "SELECT replace(a, 'x', 'y'), if(a, 1, 2), floor(b), substring(c, 1, 2), date('now', '-1 day') FROM t",
            "SELECT sum(a) FILTER (WHERE b > 1) OVER (PARTITION BY c ORDER BY d ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM t",
            "SELECT rank() OVER w FROM t WINDOW w AS (ORDER BY a)",
            "WITH RECURSIVE n(i) AS NOT MATERIALIZED (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT * FROM n",
            "VALUES (1, 2), (3, 4)",
            "SELECT a IS NOT DISTINCT FROM b, a IS NULL, a IS NOT TRUE FROM t",
            "SELECT group_concat(a, ',' ORDER BY b) FROM t GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 DESC NULLS LAST LIMIT 5, 10",
            "SELECT * FROM t, json_each(t.j) AS e LEFT JOIN u USING (a) NATURAL JOIN v",
            "SELECT count(*), count(DISTINCT a), max(a, b), CASE WHEN a THEN 1 ELSE 2 END FROM (t JOIN u ON t.a = u.a)",
            "SELECT a IN (), b IN (1, 2), (a, b) IN (SELECT c, d FROM u), NOT EXISTS (SELECT 1) FROM main.t AS \"x\"",
            "SELECT year, month, day, hour, key, value, type, name, user, current_date FROM t",
            "INSERT INTO t (a, b) VALUES (1, ?), (:x, $1) ON CONFLICT (a) DO UPDATE SET b = excluded.b WHERE t.a > 1 RETURNING *, a AS z",
            "INSERT OR REPLACE INTO t VALUES (1)",
            "REPLACE INTO t (a) SELECT 1",
            "INSERT INTO t DEFAULT VALUES",
            "UPDATE OR IGNORE t SET a = 1, b = b + 1 WHERE c = 2 RETURNING a",
            "UPDATE t AS x SET a = u.b FROM u WHERE u.c = x.c",
            "DELETE FROM t AS x WHERE a = 1 RETURNING *",
        ] {
            let tokens = Tokens::of(text).unwrap();
            let slots = Slots::of(&tokens).unwrap();
            statement(&tokens, &slots, 0, tokens.len()).unwrap_or_else(|error| panic!("{text}: {error:?}"));
        }
    }
}
