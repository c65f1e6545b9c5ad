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
/// Control pages: control structure, permission bitmaps.
pub const CONTROL: Hva = Hva::new(0xFFFF_8000_0010_0000);
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
    const fn new(start: u64, pages: u64) -> Self {
        Self { start: Hva::new(WINDOW.as_u64() + start), pages }
    }

    /// First address behind it: the top, if it is a stack.
    #[must_use]
    pub const fn end(self) -> Hva {
        self.start.wrapping_add(self.pages * PAGE_SIZE)
    }
}

/// The stack on which a guest's exits are handled.
pub const STACK: Area = Area::new(0x1_0000, 48);
/// Stack for non-maskable interrupts.
pub const NMI_STACK: Area = Area::new(0x5_0000, 4);
/// Stack for double faults.
pub const DOUBLE_FAULT_STACK: Area = Area::new(0x6_0000, 4);
/// Stack for machine checks.
pub const MACHINE_CHECK_STACK: Area = Area::new(0x7_0000, 4);
/// Task-state segment.
pub const TASK_STATE: Area = Area::new(0x8_0000, 1);
/// All parts of a skeleton but its tables.
pub const SKELETON: [Area; 5] = [STACK, NMI_STACK, DOUBLE_FAULT_STACK, MACHINE_CHECK_STACK, TASK_STATE];

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
