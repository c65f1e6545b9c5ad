//! Registers at a guest's first instruction.
//!
//! Three shapes serve all protocols: 16-bit real mode, 32-bit protected mode with flat segments and paging off, 64-bit mode
//! with flat segments and identity page tables. SDM vol. 3A 9.1.1 "Processor State After Reset" is where they differ
//! from a reset: CR0.CD and CR0.NW are clear, since the caches of a running machine are on.

use super::Protocol;
use super::error::{LoadError, Part};
use super::space::Space;
use super::write::Cursor;
use bulkhead_arch::{Cr0, Cr4, Efer, Gpr, Rflags, Segment, SegmentName};
use bulkhead_types::GuestMemory;

/// Selector of the flat code segment: `__BOOT_CS` of the Linux boot protocol.
const CODE: u16 = 0x10;
/// Selector of the flat data segment: `__BOOT_DS`.
const DATA: u16 = 0x18;

/// Flat 32-bit code, accessed.
const CODE32: u32 = 0xC09B;
/// Flat 64-bit code, accessed.
const CODE64: u32 = 0xA09B;
/// Flat data, writable, accessed.
const DATA32: u32 = 0xC093;
/// 16-bit code.
const CODE16: u32 = 0x9B;
/// 16-bit data, and stack.
const DATA16: u32 = 0x93;
/// Busy 32-bit (in 64-bit mode: 64-bit) task-state segment.
const BUSY_TSS: u32 = 0x8B;
/// Local descriptor table.
const LDT: u32 = 0x82;

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableRegister {
    /// Linear address of the table.
    pub base: u64,
    /// Its length in bytes, less one; 0 with `base` 0: none.
    pub limit: u16,
}

/// Registers at the guest's first instruction; what is not here is as after a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitialState {
    /// General registers by [`Gpr::number`].
    pub gpr: [u64; 16],
    /// Instruction pointer, relative to CS.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// Segments in the order of [`SegmentName::ALL`].
    pub segments: [Segment; 8],
    /// Global descriptor table: selectors 0x10 and 0x18 are CS and the data segments. None in real mode.
    pub gdt: TableRegister,
    /// Interrupt descriptor table: real mode's vectors at 0; else none, so that a fault before the kernel has its own is
    /// the last.
    pub idt: TableRegister,
    /// The protocol that this state is of.
    pub protocol: Protocol,
}

impl InitialState {
    /// 32-bit protected mode, flat, paging off, entered at `rip`. Writes a descriptor table.
    pub(super) fn protected(
        protocol: Protocol,
        rip: u32,
        space: &mut Space,
        memory: &mut impl GuestMemory,
    ) -> Result<Self, LoadError> {
        let gdt = write_gdt(CODE32, space, memory)?;
        let segments = SegmentName::ALL.map(|name| flat(name, CODE32));
        let cr0 = (Cr0::PE | Cr0::ET).bits();
        Ok(Self { rip: u64::from(rip), cr0, segments, gdt, ..Self::clear(protocol) })
    }

    /// 64-bit mode with the page tables at `cr3`, entered at `rip`. Writes a descriptor table.
    pub(super) fn long(
        protocol: Protocol,
        rip: u32,
        cr3: u32,
        space: &mut Space,
        memory: &mut impl GuestMemory,
    ) -> Result<Self, LoadError> {
        let gdt = write_gdt(CODE64, space, memory)?;
        Ok(Self {
            rip: u64::from(rip),
            cr0: (Cr0::PE | Cr0::ET | Cr0::PG).bits(),
            cr3: u64::from(cr3),
            cr4: Cr4::PAE.bits(),
            efer: (Efer::LME | Efer::LMA).bits(),
            segments: SegmentName::ALL.map(|name| flat(name, CODE64)),
            gdt,
            ..Self::clear(protocol)
        })
    }

    /// 16-bit real mode, entered at `segment`:0 with all data segments there too, and the stack in segment `stack`.
    pub(super) fn real(protocol: Protocol, segment: u16, stack: u16) -> Self {
        let segments = SegmentName::ALL.map(|name| match name {
            SegmentName::Cs => real(segment, CODE16),
            SegmentName::Ss => real(stack, DATA16),
            SegmentName::Ldtr | SegmentName::Tr => system(name),
            _ => real(segment, DATA16),
        });
        Self { segments, idt: TableRegister { base: 0, limit: 0x3FF }, ..Self::clear(protocol) }
    }

    /// Nothing set but what always is.
    fn clear(protocol: Protocol) -> Self {
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: Rflags::FIXED.bits(),
            cr0: Cr0::ET.bits(),
            cr3: 0,
            cr4: 0,
            efer: 0,
            segments: [Segment::default(); 8],
            gdt: TableRegister::default(),
            idt: TableRegister::default(),
            protocol,
        }
    }

    /// This state with `value` in `gpr`.
    pub(super) fn with(mut self, gpr: Gpr, value: u64) -> Self {
        if let Some(register) = self.gpr.get_mut(gpr.number()) {
            *register = value;
        }
        self
    }
}

fn flat(name: SegmentName, code: u32) -> Segment {
    let flat = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
    match name {
        SegmentName::Cs => flat(CODE, code),
        SegmentName::Ldtr | SegmentName::Tr => system(name),
        _ => flat(DATA, DATA32),
    }
}

fn real(selector: u16, attributes: u32) -> Segment {
    Segment { selector, attributes, limit: 0xFFFF, base: u64::from(selector) << 4 }
}

/// LDTR unusable; TR as PVH wants it, which suits the others.
fn system(name: SegmentName) -> Segment {
    match name {
        SegmentName::Ldtr => Segment { attributes: Segment::UNUSABLE | LDT, ..Segment::default() },
        _ => Segment { attributes: BUSY_TSS, limit: 0x67, ..Segment::default() },
    }
}

/// Writes the descriptors that CS and the data segments were loaded from: none of the protocols promises them to be
/// there, but a kernel that reloads a selector lives on.
fn write_gdt(code: u32, space: &mut Space, memory: &mut impl GuestMemory) -> Result<TableRegister, LoadError> {
    let table = [0, 0, descriptor(code), descriptor(DATA32)];
    let base = space.place_structure(Part::Tables, 32, 8)?;
    let mut cursor = Cursor::new(base);
    for entry in table {
        cursor.u64(memory, entry)?;
    }
    Ok(TableRegister { base: u64::from(base), limit: 31 })
}

/// A descriptor of base 0 and limit 4 GiB. SDM vol. 3A 3.4.5 "Segment Descriptors".
const fn descriptor(attributes: u32) -> u64 {
    0x000F_0000_0000_FFFF | (attributes as u64) << 40
}

#[cfg(test)]
mod tests {
    use super::{CODE32, CODE64, DATA32, descriptor};

    #[test]
    fn flat_descriptors() {
        assert_eq!(descriptor(CODE32), 0x00CF_9B00_0000_FFFF);
        assert_eq!(descriptor(CODE64), 0x00AF_9B00_0000_FFFF);
        assert_eq!(descriptor(DATA32), 0x00CF_9300_0000_FFFF);
    }
}
