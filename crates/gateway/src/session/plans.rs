//! Plans kept ready by statement text, so that a text is parsed and split once, not once a request.
//!
//! A plan depends on the text and on the tables and views, not on who owns what, so it outlives moves. It is dropped
//! when the tables change: the cache belongs to one state of the schema at a time, told by the catalog's
//! generation and, when that rises, by comparing the tables. A request that still holds an older catalog
//! than the cache plans for itself.

use std::sync::Arc;

use parking_lot::Mutex;
use pleat_cluster::Catalog;

use crate::recent::Recent;
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
    plans: Recent<Arc<P>>,
}

impl<P> Plans<P> {
    /// An empty cache.
    pub fn new() -> Self {
        Self { inner: Mutex::new(Inner { catalog: None, plans: Recent::new(PLANS_CACHED_MAX) }) }
    }

    /// The plan for `text`, if it is known.
    pub fn find(&self, text: &str, catalog: &Arc<Catalog>) -> Option<Arc<P>> {
        let mut inner = self.inner.lock();
        if inner.follow(catalog) { inner.plans.find(text) } else { None }
    }

    /// The plan for `text` on the tables of `catalog`, made by `plan` unless it is known. The flag tells
    /// whether it was known.
    pub fn get<E>(
        &self,
        text: &str,
        catalog: &Arc<Catalog>,
        plan: impl FnOnce() -> Result<P, E>,
    ) -> Result<(Arc<P>, bool), E> {
        let current = {
            let mut inner = self.inner.lock();
            let current = inner.follow(catalog);
            if current && let Some(known) = inner.plans.find(text) {
                return Ok((known, true));
            }
            current
        };
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
                self.plans.clear();
            }
            self.catalog = Some(catalog.clone());
        }
        true
    }

    fn keep(&mut self, text: &str, catalog: &Arc<Catalog>, plan: Arc<P>) {
        // The tables may have changed while the plan was made.
        if self.catalog.as_ref().is_some_and(|known| known.generation == catalog.generation) {
            self.plans.insert(text.into(), plan);
        }
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
    fn a_long_text_is_not_kept() {
        let plans = Plans::new();
        let long = "x".repeat(PLAN_TEXT_BYTES_MAX + 1);
        known(&plans, &long, &catalog(1, &[]));
        assert!(!known(&plans, &long, &catalog(1, &[])));
    }
}
