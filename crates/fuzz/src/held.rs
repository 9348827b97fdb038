//! What a thread holds of the heap, counted where it is given and taken back.
//!
//! Whoever links this crate has its allocator, which is the system's and counts. A thread that frees what another one was given has a count below
//! what it holds; so what is measured is to happen on one thread, as it does in a runtime of tokio with one thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no count any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get().wrapping_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn size(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: each call is the system's own, with what it was given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(size(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-size(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(size(bytes) - size(layout.size()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(place, layout, bytes) }
    }
}

/// Bytes that this thread was given and has not given back.
pub fn held() -> isize {
    HELD.with(Cell::get)
}

/// Do something, and tell how much more than before this thread held at a time, in bytes.
pub fn peak_during<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = held();
    PEAK.with(|peak| peak.set(before));
    let done = work();
    let peak = PEAK.with(Cell::get);
    (done, usize::try_from(peak - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted() {
        let before = held();
        let (kept, peak) = peak_during(|| {
            drop(vec![0_u8; 1 << 20]);
            let mut grown = vec![0_u8; 1_000];
            grown.extend([0; 1_000]);
            grown
        });
        assert!((1 << 20..1 << 21).contains(&peak), "{peak}");
        assert!((2_000..10_000).contains(&(held() - before)), "{}", held() - before);
        drop(kept);
        assert!(held() - before < 1_000);
    }
}
