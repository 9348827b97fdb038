//! From PostgreSQL's tokens to `sqlparser`'s syntax tree.
//!
//! The tree is only ever read; what is sent to a shard is cut from the client's text. Every token's column is its index in Pleat's own list plus
//! one, which leads from a node of the tree back to the text. Words that aren't quoted are in lower case, so that names compare as PostgreSQL's do.

use sqlparser::ast;
use sqlparser::ast::DollarQuotedString;
use sqlparser::dialect::{Dialect, PostgreSqlDialect};
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token as Theirs, TokenWithSpan, Tokenizer};

use super::lex::{Kind, Tokens};
use crate::error::SqlError;
use crate::parse::{Weight, check_weights, too_complex};

/// `sqlparser` enters a handful of guarded functions for each level of nesting.
const PARSER_RECURSION_MAX: usize = 400;
static DIALECT: PostgreSqlDialect = PostgreSqlDialect {};

/// Parses the one statement that the tokens `from..to` spell.
pub(super) fn statement(tokens: &Tokens, from: usize, to: usize) -> Result<ast::Statement, SqlError> {
    check_nesting(tokens, from, to)?;
    let mut parser = parser(tokens, from, to)?;
    let parsed = parser.parse_statement().map_err(|error| refused(tokens, to, &mut parser, &error))?;
    if parser.peek_token_ref().token != Theirs::EOF {
        return Err(refused(tokens, to, &mut parser, &ParserError::ParserError(String::new())));
    }
    Ok(parsed)
}

/// Parses the one expression that the tokens `from..to` spell. `None` when they spell none.
pub(super) fn expression(tokens: &Tokens, from: usize, to: usize) -> Option<ast::Expr> {
    let mut parser = parser(tokens, from, to).ok()?;
    let parsed = parser.parse_expr().ok()?;
    (parser.peek_token_ref().token == Theirs::EOF).then_some(parsed)
}

/// The index in Pleat's tokens of the token that `span` starts at.
pub(super) fn token_of(span: Span) -> Option<usize> {
    usize::try_from(span.start.column).ok()?.checked_sub(1)
}

fn parser(tokens: &Tokens, from: usize, to: usize) -> Result<Parser<'static>, SqlError> {
    // `OVERRIDING SYSTEM VALUE` is unknown to their parser, and says nothing of where rows belong.
    let overrides = |at: usize| (at..at + 3).any(|at| at >= 2 && overriding(tokens, at - 2));
    let seen = (from..to).filter(|at| !overrides(*at));
    let theirs = seen.map(|at| convert(tokens, at)).collect::<Result<Vec<_>, _>>()?;
    Ok(Parser::new(&DIALECT as &dyn Dialect)
        .with_recursion_limit(PARSER_RECURSION_MAX)
        .with_tokens_with_locations(theirs))
}

/// Whether `OVERRIDING SYSTEM VALUE` (or USER) stands at `at`.
pub(super) fn overriding(tokens: &Tokens, at: usize) -> bool {
    tokens.is(at, "OVERRIDING")
        && (tokens.is(at + 1, "SYSTEM") || tokens.is(at + 1, "USER"))
        && tokens.is(at + 2, "VALUE")
}

fn convert(tokens: &Tokens, at: usize) -> Result<TokenWithSpan, SqlError> {
    let text = tokens.str(at);
    let not_read = || {
        let shown: String = text.chars().take(40).collect();
        SqlError::unsupported(format!("Pleat does not understand {shown}"))
            .hint("write names without Unicode escapes, and operators as functions")
            .at(tokens.text, tokens.start(at))
    };
    let token = match tokens.kind(at).ok_or_else(not_read)? {
        Kind::Word => Theirs::make_word(&text.to_ascii_lowercase(), None),
        Kind::Name => Theirs::make_word(&tokens.name(at).ok_or_else(not_read)?, Some('"')),
        Kind::Text if text.starts_with('$') => {
            Theirs::DollarQuotedString(DollarQuotedString { value: tokens.string(at).ok_or_else(not_read)?, tag: None })
        }
        Kind::Text => Theirs::SingleQuotedString(tokens.string(at).ok_or_else(not_read)?),
        Kind::Opaque => opaque(text).ok_or_else(not_read)?,
        Kind::Number => Theirs::Number(text.to_owned(), false),
        Kind::Param => Theirs::Placeholder(text.to_owned()),
        Kind::Symbol => symbol(text).ok_or_else(not_read)?,
    };
    let here = Location { line: 1, column: at as u64 + 1 };
    Ok(TokenWithSpan { token, span: Span { start: here, end: here } })
}

/// Strings whose value doesn't matter; a name that is written with escapes is not looked into.
fn opaque(text: &str) -> Option<Theirs> {
    let inner = |skip: usize| text.get(skip..text.len() - 1).map(str::to_owned);
    match text.as_bytes().first()? {
        b'b' | b'B' => Some(Theirs::SingleQuotedByteStringLiteral(inner(2)?)),
        b'x' | b'X' => Some(Theirs::HexStringLiteral(inner(2)?)),
        _ if text.ends_with('\'') => Some(Theirs::UnicodeStringLiteral(inner(3)?)),
        _ => None,
    }
}

fn symbol(text: &str) -> Option<Theirs> {
    Some(match text {
        "(" => Theirs::LParen,
        ")" => Theirs::RParen,
        "[" => Theirs::LBracket,
        "]" => Theirs::RBracket,
        "," => Theirs::Comma,
        "." => Theirs::Period,
        ":" => Theirs::Colon,
        "::" => Theirs::DoubleColon,
        ":=" => Theirs::Assignment,
        "=" => Theirs::Eq,
        "<>" | "!=" => Theirs::Neq,
        "<" => Theirs::Lt,
        ">" => Theirs::Gt,
        "<=" => Theirs::LtEq,
        ">=" => Theirs::GtEq,
        "+" => Theirs::Plus,
        "-" => Theirs::Minus,
        "*" => Theirs::Mul,
        "/" => Theirs::Div,
        other => {
            let mut found = Tokenizer::new(&DIALECT, other).tokenize().ok()?;
            let token = found.pop().filter(|_| found.is_empty())?;
            (!matches!(token, Theirs::Whitespace(_))).then_some(token)?
        }
    })
}

/// `sqlparser`'s complaint, pointed at the client's text.
fn refused(tokens: &Tokens, to: usize, parser: &mut Parser, error: &ParserError) -> SqlError {
    if matches!(error, ParserError::RecursionLimitExceeded) {
        return too_complex("the statement is nested too deeply");
    }
    let index = token_of(parser.peek_token_ref().span).unwrap_or(to).min(to);
    let near = match tokens.str(index) {
        _ if index >= to => "at its end".to_owned(),
        near => format!("near {}", near.chars().take(40).collect::<String>()),
    };
    let offset = if index >= to { tokens.end(to.saturating_sub(1)) } else { tokens.start(index) };
    SqlError::unsupported(format!("the statement is not understood {near}"))
        .hint("if a PostgreSQL server accepts this statement, write it with plainer SQL, and please report it")
        .at(tokens.text, offset)
}

fn check_nesting(tokens: &Tokens, from: usize, to: usize) -> Result<(), SqlError> {
    check_weights((from..to).map(|index| weigh(tokens, index)))
        .map_err(|(index, error)| error.at(tokens.text, tokens.start(from + index)))
}

fn weigh(tokens: &Tokens, index: usize) -> Weight {
    match (tokens.kind(index), tokens.str(index)) {
        (Some(Kind::Symbol), "(" | "[") => Weight::Open,
        (Some(Kind::Symbol), ")" | "]") => Weight::Close,
        (Some(Kind::Symbol), ",") => Weight::Reset,
        (Some(Kind::Symbol), "." | ";") => Weight::None,
        (Some(Kind::Symbol), _) => Weight::Operator,
        (Some(Kind::Word), word) => match word.to_ascii_uppercase().as_str() {
            "CASE" => Weight::Open,
            "END" => Weight::Close,
            "FROM" | "WHERE" | "GROUP" | "HAVING" | "ORDER" | "SET" | "VALUES" => Weight::Reset,
            "AND" | "OR" | "NOT" | "IS" | "IN" | "LIKE" | "ILIKE" | "SIMILAR" | "BETWEEN" | "COLLATE" | "AT"
            | "ISNULL" | "NOTNULL" | "UNION" | "EXCEPT" | "INTERSECT" | "JOIN" | "EXISTS" | "OPERATOR" | "EXPLAIN"
            | "OVERLAPS" => Weight::Operator,
            _ => Weight::None,
        },
        _ => Weight::None,
    }
}
