//! Ending work whose result nobody wants any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Kept by whoever wants a result: when it is dropped, the work for it ends soon, wherever it is just then.
#[derive(Debug, Default)]
pub struct Wanted {
    cancelled: Arc<AtomicBool>,
}

impl Wanted {
    /// What the work looks at: set when the result is not wanted any more.
    pub fn cancelled(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }
}
