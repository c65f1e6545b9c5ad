//! Descriptor tables: GDT, IDT and the bytes of a TSS.
//!
//! GDT and IDT are in the shared part and hold addresses only. The TSS of each processor lies in the window, at one address
//! in every compartment: the same task register names another frame, with other interrupt stacks, in each address space.
//! The task register is also what tells a processor which one it is ([`crate::cpu::number`]).
//! SDM vol. 3A 3.4.5 "Segment Descriptors", 6.14.1 "64-Bit Mode IDT", 7.7 "Task Management in 64-bit Mode".

use crate::cpu;
use crate::trap;
use bulkhead_arch::Cr4;
use bulkhead_types::{Hva, MAX_CPUS};
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::{lgdt, lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::{PrivilegeLevel, VirtAddr, structures::gdt::SegmentSelector};

/// Bytes of a 64-bit TSS without I/O bitmap.
pub const TSS_BYTES: usize = 104;
/// Vector of the local APIC's timer.
pub const TIMER_VECTOR: u8 = 0x40;
/// Vector of spurious interrupts.
pub const SPURIOUS_VECTOR: u8 = 0xFF;
/// Vector by which one processor makes another look at what there is to do.
pub const KICK_VECTOR: u8 = 0x41;
/// A processor's interrupts to itself.
pub const SELF_VECTOR: u8 = 0x42;
/// First of the 16 vectors of the two 8259A.
pub const LEGACY_VECTOR: u8 = 0x50;

/// Tops of the stacks for exceptions that must not trust the current one.
#[derive(Clone, Copy, Debug)]
pub struct InterruptStacks {
    /// Non-maskable interrupt.
    pub nmi: Hva,
    /// Double fault.
    pub double_fault: Hva,
    /// Machine check.
    pub machine_check: Hva,
}

/// Null, 64-bit code, data, and the TSS of each processor (two words).
static GDT: [AtomicU64; FIRST_TASK + 2 * MAX_CPUS] = {
    let mut table = [const { AtomicU64::new(0) }; FIRST_TASK + 2 * MAX_CPUS];
    table[1] = AtomicU64::new(0x00AF_9B00_0000_FFFF);
    table[2] = AtomicU64::new(0x00CF_9300_0000_FFFF);
    table
};
const FIRST_TASK: usize = 3;
static IDT: [AtomicU64; 512] = [const { AtomicU64::new(0) }; 512];

const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
const DATA: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);

/// The processor whose task register holds `selector`; 0 at start-up, when it holds nothing.
pub(crate) const fn owner(selector: u16) -> usize {
    (selector as usize / 8).saturating_sub(FIRST_TASK) / 2
}

/// The TSS of a compartment with these stacks.
#[must_use]
pub fn tss_bytes(stacks: &InterruptStacks) -> [u8; TSS_BYTES] {
    let mut tss = [0; TSS_BYTES];
    // IST1 is at offset 36; the I/O map base at 102, past the limit: no port for user mode (which never runs).
    let tops = [stacks.nmi, stacks.double_fault, stacks.machine_check];
    let fields = tops.iter().flat_map(|top| top.as_u64().to_le_bytes());
    tss.iter_mut().skip(36).zip(fields).for_each(|(to, from)| *to = from);
    tss.iter_mut().skip(102).zip([104, 0]).for_each(|(to, from)| *to = from);
    tss
}

/// Which interrupt stack a vector uses once the TSS is loaded; 0 for the current stack.
const fn interrupt_stack(vector: usize) -> u64 {
    match vector {
        2 => 1,
        8 => 2,
        18 => 3,
        _ => 0,
    }
}

fn fill_idt(with_stacks: bool) {
    for (vector, gate) in IDT.chunks_exact(2).enumerate() {
        let target = trap::stub(vector);
        let stack = if with_stacks { interrupt_stack(vector) } else { 0 };
        // Offset in three parts, selector, IST, present 64-bit interrupt gate (type 0xE).
        let low = (target & 0xFFFF)
            | (u64::from(CODE.0) << 16)
            | (stack << 32)
            | (0x8E << 40)
            | ((target >> 16 & 0xFFFF) << 48);
        for (word, value) in gate.iter().zip([low, target >> 32]) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

fn load_tables() {
    let pointer = |base: *const AtomicU64, bytes: usize| DescriptorTablePointer {
        limit: u16::try_from(bytes - 1).unwrap_or(u16::MAX),
        base: VirtAddr::new_truncate(base as u64),
    };
    // SAFETY: both tables are static and stay mapped in every address space; the GDT holds flat ring-0 segments that
    // keep code and data where they are; every gate leads to a stub that saves all registers.
    unsafe {
        lgdt(&pointer(GDT.as_ptr(), size_of_val(&GDT)));
        CS::set_reg(CODE);
        DS::set_reg(DATA);
        ES::set_reg(DATA);
        SS::set_reg(DATA);
        lidt(&pointer(IDT.as_ptr(), size_of_val(&IDT)));
    }
}

/// Loads GDT and IDT for start-up, while there is no window: all exceptions on the current stack.
pub fn load_early() {
    fill_idt(false);
    load_tables();
}

/// Makes this processor number `index`: loads its tables, and the task register with the TSS that every compartment has for
/// it ([`crate::layout::processor`]); lets exceptions use its stacks, and machine checks come (without CR4.MCE one would
/// shut the processor down). To be called once on each, in the idle compartment.
pub fn load(index: usize) {
    let [.., task] = crate::layout::processor(index);
    let base = task.start.as_u64();
    let limit = TSS_BYTES as u64 - 1;
    // Type 9: an available 64-bit TSS, present.
    let low = limit | ((base & 0xFF_FFFF) << 16) | (0x89 << 40) | ((base >> 24 & 0xFF) << 56);
    let place = FIRST_TASK + 2 * index;
    for (word, value) in GDT.iter().skip(place).zip([low, base >> 32]) {
        word.store(value, Ordering::Relaxed);
    }
    let selector = u16::try_from(place).unwrap_or(0);
    load_tables();
    // SAFETY: the descriptor was just written, and every skeleton has the TSS there. Loading it touches only the GDT.
    unsafe { load_tss(SegmentSelector::new(selector, PrivilegeLevel::Ring0)) }
    fill_idt(true);
    // SAFETY: every 64-bit processor has machine checks; their handler has just got its stack.
    unsafe { cpu::set_cr4(Cr4::MCE.bits()) }
}

#[cfg(test)]
mod tests {
    use super::{FIRST_TASK, owner};

    #[test]
    fn the_task_register_names_the_processor() {
        assert_eq!(owner(0), 0);
        for index in 0..super::MAX_CPUS {
            let selector = u16::try_from(8 * (FIRST_TASK + 2 * index)).unwrap();
            assert_eq!(owner(selector), index);
        }
    }
}
