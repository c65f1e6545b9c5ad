//! The heap: manifests, and the instruction decoder's tables. No exit is handled with it.

use linked_list_allocator::LockedHeap;

/// A manifest that lies about how many zones, guests and modules it has makes its decoder ask for 1 MiB for each.
const BYTES: usize = 4 << 20;

#[repr(align(4096))]
struct Arena(core::cell::UnsafeCell<[u8; BYTES]>);

// SAFETY: nobody but the allocator, which has a lock, ever looks inside.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; BYTES]));

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();
#[cfg(not(target_os = "none"))]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the heap its memory. A second call does nothing.
pub fn init() {
    let mut heap = HEAP.lock();
    if heap.size() == 0 {
        // SAFETY: the arena is static, and given away only here, once.
        unsafe { heap.init(ARENA.0.get().cast(), BYTES) }
    }
}
