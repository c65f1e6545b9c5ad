//! The local APIC in x2APIC mode, lent to the processor.
//!
//! While a guest has its local APIC in x2APIC mode, TPR, PPR, ISR, TMR and IRR are in the virtual-APIC page. The guest reads
//! them, writes TPR, CR8 and EOI and sends interrupts to itself without an exit, and the processor delivers what is in IRR as
//! soon as the guest can take it. All other registers stay with the software's model, and their MSRs exit. SDM vol. 3C
//! chapter 30 "APIC Virtualization and Virtual Interrupts": 30.1 "Virtual APIC State", 30.2 "Evaluation and Delivery of
//! Virtual Interrupts", 30.5 "Virtualizing MSR-Based APIC Accesses".
//!
//! An MSR of the range that neither exits nor is virtualized would be the host's own. So only those are open that the controls
//! in [`Secondary::LENT`](crate::controls::Secondary::LENT) virtualize, and only while these are on.
//!
//! The highest vector in IRR and the one in service are in the guest interrupt status. An interrupt to itself leaves TMR as it
//! is; so one with the vector of a level-triggered one ends with an exit too.

use crate::fields::{self as field, Fields};
use crate::vmcs::VmcsAccess;
use bulkhead_core::{BackendError, Requests};
use bulkhead_hw::region::Region;

/// Registers by their number: offset / 16 in the page, index - 800H among the MSRs.
const TASK_PRIORITY: usize = 0x08;
const IN_SERVICE: usize = 0x10;
const TRIGGER_MODE: usize = 0x18;
const REQUESTED: usize = 0x20;

/// What can be read from the page: id, version, TPR, PPR, LDR, ISR, TMR, IRR.
const READS: u64 = 1 << 0x02 | 1 << 0x03 | 1 << 0x08 | 1 << 0x0A | 1 << 0x0D | 0xFF_FFFF << IN_SERVICE;
/// What can be written: TPR and EOI.
const WRITES: u64 = 1 << 0x08 | 1 << 0x0B;
/// SELF IPI, which can be written while the local APIC accepts interrupts.
const SELF_WRITE: u64 = 1 << 0x3F;

/// Where the MSR bitmap has MSRs 800H to 83FH, for reads and for writes. SDM vol. 3C 25.6.9 "MSR-Bitmap Address".
const BITMAP_READS: usize = 0x800 / 8;
const BITMAP_WRITES: usize = 0x800 + 0x800 / 8;

/// A vCPU's virtual-APIC page.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) page: Region,
    on: bool,
    accepts: bool,
    /// What the processor knows as level-triggered; `None` if nothing was told.
    level: Option<[u64; 4]>,
}

impl Lent {
    pub(crate) const fn new(page: Region) -> Self {
        Self { page, on: false, accepts: false, level: None }
    }

    /// Opens what is virtualized. The caller switches the controls.
    pub(crate) fn begin(
        &mut self,
        vmcs: &mut impl VmcsAccess,
        bitmap: &mut Region,
        register: &dyn Fn(u8) -> u32,
    ) -> Result<(), BackendError> {
        self.page.fill(0);
        for number in (0..0x20_u8).filter(|number| READS >> number & 1 != 0) {
            self.page.store(usize::from(number) << 4, 4, register(number).into());
        }
        let in_service: [u64; 4] = core::array::from_fn(|index| self.row(IN_SERVICE, index));
        vmcs.set(field::INTERRUPT_STATUS, u16::from(highest(&in_service)) << 8)?;
        (self.on, self.accepts, self.level) = (true, false, None);
        open(bitmap, READS, WRITES);
        Ok(())
    }

    /// Closes all of it; `false` if nothing was open.
    pub(crate) fn end(&mut self, bitmap: &mut Region) -> bool {
        open(bitmap, 0, 0);
        core::mem::replace(&mut self.on, false)
    }

    /// Puts interrupts into IRR.
    pub(crate) fn request(
        &mut self,
        vmcs: &mut impl VmcsAccess,
        bitmap: &mut Region,
        requests: &Requests,
    ) -> Result<(), BackendError> {
        let Requests { vectors, level, accepts } = *requests;
        if self.level != Some(level) {
            let exits = [field::EOI_EXIT0, field::EOI_EXIT1, field::EOI_EXIT2, field::EOI_EXIT3];
            for ((index, word), exit) in level.into_iter().enumerate().zip(exits) {
                self.set_row(TRIGGER_MODE, index, word);
                vmcs.set(exit, word)?;
            }
            self.level = Some(level);
        }
        if self.accepts != accepts {
            self.accepts = accepts;
            open(bitmap, READS, if accepts { WRITES | SELF_WRITE } else { WRITES });
        }
        if vectors == [0; 4] {
            return Ok(());
        }
        for (index, word) in vectors.into_iter().enumerate().filter(|(_, word)| *word != 0) {
            self.set_row(REQUESTED, index, self.row(REQUESTED, index) | word);
        }
        let [requesting, servicing] = vmcs.known(field::INTERRUPT_STATUS).to_le_bytes();
        vmcs.set(field::INTERRUPT_STATUS, u16::from_le_bytes([requesting.max(highest(&vectors)), servicing]))
    }

    /// Whether the highest vector in IRR is above the processor's priority. SDM vol. 3C 30.2.1 "Evaluation of Pending Virtual
    /// Interrupts", 30.1.3 "PPR Virtualization".
    pub(crate) fn has_interrupt(&self, vmcs: &impl VmcsAccess) -> bool {
        let [requesting, servicing] = vmcs.known(field::INTERRUPT_STATUS).to_le_bytes();
        let task = self.page.load(TASK_PRIORITY << 4, 1);
        self.on && u64::from(requesting >> 4) > (task >> 4).max(u64::from(servicing >> 4))
    }

    /// What the guest wrote to a register.
    pub(crate) fn written(&self, register: u8) -> u32 {
        u32::try_from(self.page.load(usize::from(register) << 4, 4)).unwrap_or(0)
    }

    /// Vectors 64 * `index` and up of the set of registers that begins at `first`.
    fn row(&self, first: usize, index: usize) -> u64 {
        let word = |half| self.page.load((first + 2 * index + half) << 4, 4);
        word(0) | word(1) << 32
    }

    fn set_row(&mut self, first: usize, index: usize, bits: u64) {
        for (half, word) in [bits, bits >> 32].into_iter().enumerate() {
            self.page.store((first + 2 * index + half) << 4, 4, word);
        }
    }
}

/// Lets these of MSRs 800H to 83FH be read and written without an exit, and no others of them.
fn open(bitmap: &mut Region, reads: u64, writes: u64) {
    bitmap.store(BITMAP_READS, 8, !reads);
    bitmap.store(BITMAP_WRITES, 8, !writes);
}

/// The highest vector of a set; 0 if it is empty.
fn highest(vectors: &[u64; 4]) -> u8 {
    let mut found = 0;
    for (first, word) in [0_u8, 64, 128, 192].into_iter().zip(vectors).filter(|(_, word)| **word != 0) {
        let [bit, ..] = (63 ^ word.leading_zeros()).to_le_bytes();
        found = first | bit;
    }
    found
}

#[cfg(test)]
mod tests;
