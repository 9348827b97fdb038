//! A panic in a simulation is the run's verdict, and belongs into its report instead of onto the terminal.

use std::cell::RefCell;
use std::sync::Once;

use crate::trace::Trace;

static HOOKED: Once = Once::new();

thread_local! {
    static OF_THREAD: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// While it lives, this thread's panics are noted.
pub struct Noted(());

/// Note what panics on this thread. Other threads' panics go where they went before.
pub fn note_in(trace: &Trace) -> Noted {
    HOOKED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match OF_THREAD.with(|trace| trace.borrow().clone()) {
            Some(trace) => trace.panicked(panic.to_string()),
            None => before(panic),
        }));
    });
    OF_THREAD.with(|of_thread| *of_thread.borrow_mut() = Some(trace.clone()));
    Noted(())
}

impl Drop for Noted {
    fn drop(&mut self) {
        OF_THREAD.with(|trace| drop(trace.borrow_mut().take()));
    }
}
