//! Composing statements from pieces of the client's text.

use std::sync::Arc;

use super::lex::{Kind, Tokens};
use super::plan::{Part, Piece};

/// A statement in the making: its parameters are numbered as they come.
#[derive(Debug, Default)]
pub(super) struct Composer {
    text: String,
    params: Vec<usize>,
}

impl Composer {
    /// Text without parameters.
    pub fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub fn param(&mut self, param: usize) {
        let known = self.params.iter().position(|other| *other == param);
        let at = known.unwrap_or_else(|| {
            self.params.push(param);
            self.params.len() - 1
        });
        self.text.push_str(&format!("${}", at + 1));
    }

    pub fn piece(&mut self, piece: &Piece) {
        for (at, text) in piece.texts.iter().enumerate() {
            self.text(text);
            if let Some(param) = piece.params.get(at) {
                self.param(*param);
            }
        }
    }

    /// The tokens `from..to` as they are written, with what lies between them.
    pub fn tokens(&mut self, tokens: &Tokens, from: usize, to: usize) {
        self.piece(&Piece::of(tokens, from, to));
    }

    /// The tokens `from..to`, some runs of which are written otherwise. Replacements are in order and don't overlap; those outside are left out.
    pub fn replaced(&mut self, tokens: &Tokens, from: usize, to: usize, replacements: &[Replacement]) {
        let mut at = from;
        for Replacement { from: start, to: end, with } in
            replacements.iter().filter(|one| one.from >= from && one.to <= to)
        {
            if at < *start {
                self.tokens(tokens, at, *start);
                self.text(" ");
            }
            self.piece(with);
            self.text(" ");
            at = *end;
        }
        if at < to {
            self.tokens(tokens, at, to);
        }
    }

    pub fn part(self) -> Part {
        Part { text: Arc::from(self.text.trim()), params: self.params }
    }
}

/// The tokens `from..to` written otherwise.
#[derive(Clone, Debug)]
pub(super) struct Replacement {
    pub from: usize,
    pub to: usize,
    pub with: Piece,
}

impl Piece {
    /// Text without parameters.
    pub fn text(text: impl Into<String>) -> Piece {
        Piece { texts: vec![text.into()], params: Vec::new() }
    }

    /// Puts another piece behind this one.
    pub fn append(&mut self, other: Piece) {
        let mut texts = other.texts.into_iter();
        if let Some(last) = self.texts.last_mut() {
            last.push_str(&texts.next().unwrap_or_default());
        }
        self.texts.extend(texts);
        self.params.extend(other.params);
    }

    /// The tokens `from..to` as they are written.
    pub fn of(tokens: &Tokens, from: usize, to: usize) -> Piece {
        if from >= to {
            return Piece::default();
        }
        let mut piece = Piece::default();
        let mut start = tokens.start(from);
        for at in (from..to).filter(|at| tokens.kind(*at) == Some(Kind::Param)) {
            piece.texts.push(tokens.text[start..tokens.start(at)].to_owned());
            piece.params.push(tokens.param(at).unwrap_or_default());
            start = tokens.end(at);
        }
        piece.texts.push(tokens.text[start..tokens.end(to - 1)].to_owned());
        piece
    }
}

/// A name in double quotes.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
