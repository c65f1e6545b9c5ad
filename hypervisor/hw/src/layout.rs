//! The host's virtual address map: the same in every address space.
//!
//! ```text
//! 0000_0000_0000_0000  nothing (start-up: physical memory up to 4 GiB, gone before the first guest is made)
//! FFFF_8000_0000_0000  the window: this compartment's own stacks, control pages and page tables
//! FFFF_8080_0000_0000  the window: this guest's RAM, byte for byte at its guest-physical address
//! FFFF_8100_0000_0000  the window: this guest's images, read-only
//! FFFF_8180_0000_0000  the idle compartment alone: the skeleton of a compartment under construction
//! FFFF_FF80_0000_0000  shared: the frame table
//! FFFF_FFFF_8000_0000  shared: the image (text, constants, variables)
//! FFFF_FFFF_A000_0000  shared: the page tables of the shared part, read-only
//! FFFF_FFFF_C000_0000  shared: local APIC
//! ```
//!
//! Everything from FFFF_FF80_0000_0000 on hangs on one entry of the root, which all roots have in common.

use bulkhead_types::{Hpa, Hva, PAGE_SIZE};

/// Offset of the image's addresses from its physical ones.
pub const IMAGE_OFFSET: u64 = 0xFFFF_FFFF_8000_0000;
/// Index of the root's entry for the shared part.
pub const SHARED_INDEX: usize = 511;
/// The frame table.
pub const FRAME_TABLE: Hva = Hva::new(0xFFFF_FF80_0000_0000);
/// The shared part's page tables.
pub const SHARED_TABLES: Hva = Hva::new(0xFFFF_FFFF_A000_0000);
/// The local APIC's registers.
pub const LOCAL_APIC: Hva = Hva::new(0xFFFF_FFFF_C000_0000);

/// This compartment's own part.
pub const WINDOW: Hva = Hva::new(0xFFFF_8000_0000_0000);
/// End of what the window can hold besides RAM and images.
pub const WINDOW_END: Hva = Hva::new(0xFFFF_8080_0000_0000);
/// Page tables of this compartment: the host's and the nested ones.
pub const TABLES: Hva = Hva::new(0xFFFF_8000_4000_0000);
/// Control pages: control structures, permission bitmaps.
pub const CONTROL: Hva = Hva::new(0xFFFF_8000_2000_0000);
/// RAM of this compartment's guest.
pub const RAM: Hva = Hva::new(0xFFFF_8080_0000_0000);
/// Images of this compartment's guest.
pub const IMAGES: Hva = Hva::new(0xFFFF_8100_0000_0000);
/// Skeleton under construction.
pub const CONSTRUCTION: Hva = Hva::new(0xFFFF_8180_0000_0000);

/// A part of a compartment's skeleton: where it is mapped, and how many pages it has. Around each nothing is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// First byte.
    pub start: Hva,
    /// Length in pages.
    pub pages: u64,
}

impl Area {
    /// The area of this kind with number `index`.
    const fn new(base: u64, index: usize, pages: u64) -> Self {
        Self { start: WINDOW.wrapping_add(base + STRIDE * index as u64), pages }
    }

    /// First address behind it: the top, if it is a stack.
    #[must_use]
    pub const fn end(self) -> Hva {
        self.start.wrapping_add(self.pages * PAGE_SIZE)
    }
}

/// Distance between areas of one kind.
pub const STRIDE: u64 = 0x4_0000;
/// Where the areas of the processors begin, and where the stacks do.
const PROCESSORS: u64 = 0x100_0000;
const STACKS: u64 = 0x1000_0000;

/// The stack of execution `index`: in a guest's compartment on which the exits of its vCPU with this number are handled, in
/// the idle compartment that of the processor with this number.
#[must_use]
pub const fn stack(index: usize) -> Area {
    Area::new(STACKS + 0x1_0000, index, 48)
}

/// What processor `index` needs in each address space: the stacks for non-maskable interrupts, double faults and machine
/// checks, and the task-state segment that names them.
#[must_use]
pub const fn processor(index: usize) -> [Area; 4] {
    [
        Area::new(PROCESSORS + 0x1_0000, index, 4),
        Area::new(PROCESSORS + 0x1_8000, index, 4),
        Area::new(PROCESSORS + 0x2_0000, index, 4),
        Area::new(PROCESSORS + 0x2_8000, index, 1),
    ]
}

/// Ends of the image's parts, from the linker script.
#[derive(Clone, Copy, Debug)]
pub struct ImageLayout {
    /// First and end address of the code.
    pub text: (Hva, Hva),
    /// First and end address of the constants.
    pub rodata: (Hva, Hva),
    /// First and end address of the variables.
    pub data: (Hva, Hva),
}

unsafe extern "C" {
    static text_start: u8;
    static text_end: u8;
    static rodata_start: u8;
    static rodata_end: u8;
    static data_start: u8;
    static data_end: u8;
}

/// The image as it was linked.
#[must_use]
pub fn image() -> ImageLayout {
    // Only addresses of the linker's symbols are taken, nothing is read.
    let at = |symbol: *const u8| Hva::new(symbol as u64);
    ImageLayout {
        text: (at(&raw const text_start), at(&raw const text_end)),
        rodata: (at(&raw const rodata_start), at(&raw const rodata_end)),
        data: (at(&raw const data_start), at(&raw const data_end)),
    }
}

/// Physical address of a byte of the image.
#[must_use]
pub const fn image_physical(address: Hva) -> Hpa {
    Hpa::new(address.as_u64().wrapping_sub(IMAGE_OFFSET))
}
