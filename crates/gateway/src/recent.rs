//! What was worked out for a text, kept while the text is used.
//!
//! Eviction is in two halves: new and used entries go to the young half; when it is full it becomes the old half, and
//! what the old half held unused is gone. That is a coarse LRU without a list.

use std::collections::HashMap;

/// At most `max` values by text.
#[derive(Debug)]
pub struct Recent<V> {
    max: usize,
    young: HashMap<Box<str>, V>,
    old: HashMap<Box<str>, V>,
}

impl<V: Clone> Recent<V> {
    /// An empty cache.
    pub fn new(max: usize) -> Self {
        Self { max, young: HashMap::new(), old: HashMap::new() }
    }

    /// What is known for a text.
    pub fn find(&mut self, text: &str) -> Option<V> {
        if let Some(value) = self.young.get(text) {
            return Some(value.clone());
        }
        let (text, value) = self.old.remove_entry(text)?;
        self.insert(text, value.clone());
        Some(value)
    }

    /// Keep a value, as long as it is used.
    pub fn insert(&mut self, text: Box<str>, value: V) {
        if self.young.len() >= self.max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text, value);
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut recent = Recent::new(100);
        recent.insert("hot".into(), 0);
        for n in 1..1_000 {
            recent.insert(format!("q{n}").into(), n);
            assert_eq!(recent.find("hot"), Some(0));
            assert!(recent.young.len() + recent.old.len() <= 100);
        }
        assert_eq!((recent.find("q999"), recent.find("q1")), (Some(999), None));
    }
}
