//! Plans kept ready by statement text, so that a text is parsed and split once, not once a request.
//!
//! A plan depends on the text and on the tables and views, not on who owns what, so it outlives moves. It is dropped
//! when the tables change: the cache belongs to one state of the schema at a time, told by the catalog's
//! generation and, when that rises, by comparing the tables. A request that still holds an older catalog
//! than the cache plans for itself.
//!
//! Eviction is in two halves: new and used plans go to the young half; when it is full it becomes the old
//! half, and what the old half held unused is gone. That is a coarse LRU without a list.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::Catalog;

use crate::settings::{PLAN_TEXT_BYTES_MAX, PLANS_CACHED_MAX};

/// Plans of type `P` by text.
#[derive(Debug)]
pub struct Plans<P> {
    inner: Mutex<Inner<P>>,
}

#[derive(Debug)]
struct Inner<P> {
    /// The newest catalog seen; its tables are those that the plans were made for.
    catalog: Option<Arc<Catalog>>,
    young: HashMap<Box<str>, Arc<P>>,
    old: HashMap<Box<str>, Arc<P>>,
}

impl<P> Plans<P> {
    /// An empty cache.
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner { catalog: None, young: HashMap::new(), old: HashMap::new() }) }
    }

    /// The plan for `text` on the tables of `catalog`, made by `plan` unless it is known. The flag tells
    /// whether it was known.
    pub fn get<E>(
        &self,
        text: &str,
        catalog: &Arc<Catalog>,
        plan: impl FnOnce() -> Result<P, E>,
    ) -> Result<(Arc<P>, bool), E> {
        let current = self.inner.lock().follow(catalog);
        if current && let Some(known) = self.inner.lock().find(text) {
            return Ok((known, true));
        }
        let made = Arc::new(plan()?);
        if current && text.len() <= PLAN_TEXT_BYTES_MAX {
            self.inner.lock().keep(text, catalog, made.clone());
        }
        Ok((made, false))
    }
}

impl<P> Inner<P> {
    /// Make the cache fit `catalog`; false when `catalog` is older than what the cache has seen.
    fn follow(&mut self, catalog: &Arc<Catalog>) -> bool {
        let Some(known) = &self.catalog else {
            self.catalog = Some(catalog.clone());
            return true;
        };
        if catalog.generation < known.generation {
            return false;
        }
        if catalog.generation > known.generation {
            if catalog.tables != known.tables || catalog.views != known.views {
                self.young.clear();
                self.old.clear();
            }
            self.catalog = Some(catalog.clone());
        }
        true
    }

    fn find(&mut self, text: &str) -> Option<Arc<P>> {
        if let Some(plan) = self.young.get(text) {
            return Some(plan.clone());
        }
        let (text, plan) = self.old.remove_entry(text)?;
        self.insert(text, plan.clone());
        Some(plan)
    }

    fn keep(&mut self, text: &str, catalog: &Arc<Catalog>, plan: Arc<P>) {
        // The tables may have changed while the plan was made.
        if self.catalog.as_ref().is_some_and(|known| known.generation == catalog.generation) {
            self.insert(text.into(), plan);
        }
    }

    fn insert(&mut self, text: Box<str>, plan: Arc<P>) {
        if self.young.len() >= PLANS_CACHED_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text, plan);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use pleat_cluster::{Table, TableId, TableKind};

    use super::*;

    fn catalog(generation: u64, tables: &[&str]) -> Arc<Catalog> {
        let mut catalog = Catalog::default();
        catalog.generation = generation;
        for name in tables {
            let table = Table {
                id: TableId(1),
                name: (*name).to_owned(),
                kind: TableKind::Reference,
                columns: vec![],
                primary_key: vec![],
                rowid_alias: false,
                without_rowid: false,
                create_sql: String::new(),
                indexes: vec![],
                triggers: vec![],
            };
            catalog.tables.insert((*name).to_owned(), table);
        }
        Arc::new(catalog)
    }

    fn known(plans: &Plans<u64>, text: &str, catalog: &Arc<Catalog>) -> bool {
        plans.get(text, catalog, || Ok::<_, Infallible>(catalog.generation)).unwrap().1
    }

    #[test]
    fn a_plan_outlives_a_move_but_not_a_change_of_the_tables() {
        let plans = Plans::new();
        assert!(!known(&plans, "q", &catalog(1, &["t"])));
        assert!(known(&plans, "q", &catalog(1, &["t"])));
        assert!(known(&plans, "q", &catalog(2, &["t"])), "only owners changed");
        assert!(!known(&plans, "q", &catalog(3, &["t", "u"])));
        assert!(known(&plans, "q", &catalog(3, &["t", "u"])));
    }

    #[test]
    fn an_older_catalog_neither_uses_nor_spoils_the_cache() {
        let plans = Plans::new();
        assert!(!known(&plans, "q", &catalog(3, &["t", "u"])));
        assert!(!known(&plans, "q", &catalog(2, &["t"])));
        assert!(known(&plans, "q", &catalog(3, &["t", "u"])));
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let plans = Plans::new();
        let catalog = catalog(1, &[]);
        for n in 0..10 * PLANS_CACHED_MAX {
            known(&plans, &format!("q{n}"), &catalog);
            known(&plans, "hot", &catalog);
        }
        let held = {
            let inner = plans.inner.lock();
            inner.young.len() + inner.old.len()
        };
        assert!(held <= PLANS_CACHED_MAX, "{held}");
        assert!(known(&plans, "hot", &catalog));
        let long = "x".repeat(PLAN_TEXT_BYTES_MAX + 1);
        known(&plans, &long, &catalog);
        assert!(!known(&plans, &long, &catalog));
    }
}
