//! The decoder's tables come from the heap once; carrying out an instruction takes nothing from it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use bulkhead_arch::Gpr;
use bulkhead_emulate::{Outcome, warm_up};
use common::{CODE, PAGES, World};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread takes from the heap.
struct Counting;

thread_local!(static TAKEN: Cell<usize> = const { Cell::new(0) });

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.set(TAKEN.get() + layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

#[test]
fn only_the_first_decoding_allocates() {
    let start = TAKEN.get();
    warm_up();
    let tables = TAKEN.get() - start;
    assert!((1..160 << 10).contains(&tables), "{tables} bytes of decoder tables");

    let mut world = World::bits64();
    world.device.events.reserve(10_000);
    for code in [
        &[0x8B, 0x03][..],
        &[0x48, 0x01, 0x03],
        &[0xF3, 0xA5],
        &[0x0F, 0xB1, 0x0B],
        // Nothing of the decoder: x87, SSE, VEX, EVEX, XOP, 3DNow!.
        &[0xDB, 0x2B],
        &[0x0F, 0x10, 0x03],
        &[0xC5, 0xF8, 0x10, 0x03],
        &[0x62, 0xF1, 0x7C, 0x48, 0x10, 0x03],
        &[0x8F, 0xE9, 0x78, 0x81, 0x03],
        &[0x0F, 0x0F, 0x03, 0x9E],
    ] {
        world.put(CODE, &[0xCC; 16]);
        world.put(CODE, code);
        world.set(Gpr::Rbx, PAGES + 0xFFE).set(Gpr::Rsi, PAGES).set(Gpr::Rdi, PAGES + 0x1000).set(Gpr::Rcx, 70);
        let before = TAKEN.get();
        let result = world.again(None);
        assert_eq!(TAKEN.get(), before, "{code:02x?}");
        assert!(matches!(result, Ok(Outcome::Done { .. } | Outcome::Again) | Err(_)));
    }
}
