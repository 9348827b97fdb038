//! Putting statements together from the user's words and Pleat's own.
//!
//! A [`Snippet`] is a piece of the user's text in which parameters are known by their slots in the request. A
//! [`Composer`] joins snippets and numbers the parameters anew. Slots beyond those of the request stand for values that
//! are known later: ids, or the columns of a row that was read.

use crate::clauses::Span;
use crate::lex::Tokens;
use crate::params::Slots;
use crate::read::Template;

/// A piece of a statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snippet {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Slot(usize),
}

impl Snippet {
    /// The user's own text of `span`.
    pub fn of(tokens: &Tokens, slots: &Slots, span: Span) -> Snippet {
        let mut snippet = Snippet::default();
        let mut start = span.0;
        for index in span.0..span.1 {
            if let Some(slot) = slots.at(index) {
                snippet.push(tokens.slice(start, index));
                snippet.parts.push(Part::Slot(slot));
                start = index + 1;
            }
        }
        snippet.push(tokens.slice(start, span.1));
        snippet
    }

    /// One parameter.
    pub fn slot(slot: usize) -> Snippet {
        Snippet { parts: vec![Part::Slot(slot)] }
    }

    /// Appends another item, after a comma if there is one before.
    pub fn append(&mut self, item: Snippet) {
        if !self.parts.is_empty() {
            self.push(",");
        }
        self.parts.extend(item.parts);
    }

    /// Appends what follows.
    pub fn join(&mut self, next: Snippet) {
        self.parts.extend(next.parts);
    }

    pub fn push(&mut self, text: &str) {
        if !text.is_empty() {
            self.parts.push(Part::Text(text.to_owned()));
        }
    }
}

/// A statement in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Composer {
    sql: String,
    slots: Vec<usize>,
    /// The number of each slot's parameter, by slot.
    numbers: std::collections::BTreeMap<usize, usize>,
}

impl Composer {
    /// Appends Pleat's own text, after a space.
    pub fn text(&mut self, text: &str) -> &mut Self {
        if !self.sql.is_empty() && !self.sql.ends_with([' ', '(']) && !text.starts_with([')', ',']) {
            self.sql.push(' ');
        }
        self.sql.push_str(text);
        self
    }

    pub fn snippet(&mut self, snippet: &Snippet) -> &mut Self {
        for part in &snippet.parts {
            match part {
                Part::Text(text) => self.text(text),
                Part::Slot(slot) => self.slot(*slot),
            };
        }
        self
    }

    pub fn span(&mut self, tokens: &Tokens, slots: &Slots, span: Span) -> &mut Self {
        self.snippet(&Snippet::of(tokens, slots, span))
    }

    pub fn slot(&mut self, slot: usize) -> &mut Self {
        let number = *self.numbers.entry(slot).or_insert_with(|| {
            self.slots.push(slot);
            self.slots.len()
        });
        self.text(&format!("?{number}"))
    }

    /// Appends `items`, each by `write`, with commas between.
    pub fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) -> &mut Self {
        for (at, item) in items.into_iter().enumerate() {
            if at > 0 {
                self.text(",");
            }
            write(self, item);
        }
        self
    }

    pub fn template(self) -> Template {
        Template { sql: self.sql.into(), slots: self.slots }
    }
}
