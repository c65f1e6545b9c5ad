//! The vendor seam: what a processor's virtualization must offer, about a dozen primitives. All policy is above it.

use crate::event::Event;
use crate::exit::Exit;
use bulkhead_arch::{Gpr, Segment, SegmentName};
use bulkhead_devices::interrupt::Requests;
use core::fmt;

/// A primitive did not work. It ends the guest, never the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendError {
    /// The processor refused to access a control-structure field.
    Field {
        /// The backend's number of the field.
        field: u32,
        /// The processor's error number, 0 if none.
        code: u32,
    },
    /// The processor refused an instruction of its virtualization extension.
    Instruction {
        /// The instruction's mnemonic.
        name: &'static str,
        /// The processor's error number, 0 if none.
        code: u32,
    },
    /// The processor refused to enter the guest. [`Vcpu::explain_entry_failure`] says why.
    Entry {
        /// The backend's raw exit reason or error number.
        code: u64,
    },
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field { field, code } => write!(f, "field {field:#x}, error {code}"),
            Self::Instruction { name, code } => write!(f, "{name}, error {code}"),
            Self::Entry { code } => write!(f, "the entry, {code:#x}"),
        }
    }
}

/// A register that policy reads or writes by name. General registers and segments have accessors of their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Register {
    Rip,
    Rflags,
    /// As the guest sees it: reading merges the host-owned bits' shadow; writing sets the shadow and the real register.
    Cr0,
    /// The linear address of the last page fault. Not a virtualized register: the processor's own.
    Cr2,
    Cr3,
    /// As the guest sees it, like CR0.
    Cr4,
    /// A write also puts the next entry into or out of long mode, by LMA.
    Efer,
    Dr6,
    Dr7,
    Pat,
    GdtBase,
    GdtLimit,
    IdtBase,
    IdtLimit,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    /// The four page-directory-pointer entries of PAE paging; see [`Vcpu::caches_pdptes`].
    Pdpte0,
    Pdpte1,
    Pdpte2,
    Pdpte3,
}

/// What keeps the guest from taking an event at once. SDM vol. 3C 25.4.2 "Guest Non-Register State".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interruptibility {
    /// The shadow of an STI.
    pub sti: bool,
    /// The shadow of a MOV to SS or POP SS.
    pub mov_ss: bool,
    /// An NMI is being handled: no further one until IRET.
    pub nmi: bool,
}

/// Which exits to ask for as soon as the guest can take an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Windows {
    /// [`Exit::InterruptWindow`].
    pub interrupt: bool,
    /// [`Exit::NmiWindow`].
    pub nmi: bool,
}

/// One virtual processor of one guest. Its state lies in its guest's compartment.
pub trait Vcpu {
    /// Makes this vCPU the one that this CPU runs (loads what the processor does not switch by itself).
    ///
    /// # Errors
    /// If the processor refuses.
    fn activate(&mut self) -> Result<(), BackendError>;

    /// Takes this vCPU off this CPU; saves what [`Vcpu::activate`] loads.
    ///
    /// # Errors
    /// If the processor refuses.
    fn deactivate(&mut self) -> Result<(), BackendError>;

    /// Enters the guest, and returns when it has stopped.
    ///
    /// # Errors
    /// [`BackendError::Entry`] if the guest's state or controls are refused.
    fn run(&mut self) -> Result<Exit, BackendError>;

    /// A general register, RSP included.
    ///
    /// # Errors
    /// If the processor refuses.
    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError>;

    /// Sets a general register.
    ///
    /// # Errors
    /// If the processor refuses.
    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), BackendError>;

    /// A register by name.
    ///
    /// # Errors
    /// If the processor refuses.
    fn read(&self, register: Register) -> Result<u64, BackendError>;

    /// Sets a register by name. Legality is the caller's to check.
    ///
    /// # Errors
    /// If the processor refuses.
    fn write(&mut self, register: Register, value: u64) -> Result<(), BackendError>;

    /// Whether the processor keeps the page-directory-pointer entries of PAE paging, so that they are loaded with CR0 and
    /// CR4. Else it reads them from memory when it uses them, and so do we.
    fn caches_pdptes(&self) -> bool {
        true
    }

    /// A segment register with its hidden part.
    ///
    /// # Errors
    /// If the processor refuses.
    fn segment(&self, name: SegmentName) -> Result<Segment, BackendError>;

    /// Sets a segment register with its hidden part.
    ///
    /// # Errors
    /// If the processor refuses.
    fn set_segment(&mut self, name: SegmentName, value: Segment) -> Result<(), BackendError>;

    /// Current privilege level, 0 to 3.
    ///
    /// # Errors
    /// If the processor refuses.
    fn privilege(&self) -> Result<u8, BackendError>;

    /// Goes past the instruction that caused the last exit: advances RIP (32-bit wrap outside 64-bit code), ends the
    /// STI and MOV SS shadows, and makes a pending single step (RFLAGS.TF) due.
    ///
    /// # Errors
    /// If the processor refuses.
    fn skip_instruction(&mut self) -> Result<(), BackendError>;

    /// As [`Vcpu::skip_instruction`], for an exit whose instruction the processor did not measure: it has `length` bytes.
    ///
    /// # Errors
    /// If the processor refuses.
    fn skip_bytes(&mut self, length: u8) -> Result<(), BackendError>;

    /// Delivers `event` at the next entry; the last call before the entry wins. Of #DB, what its cause leaves in DR6 and
    /// DR7 is the caller's to set.
    ///
    /// # Errors
    /// If the processor refuses.
    fn inject(&mut self, event: Event) -> Result<(), BackendError>;

    /// The event whose delivery the last exit interrupted, once. It has to be injected again unless what it ran into
    /// replaces it.
    fn take_interrupted(&mut self) -> Option<Event>;

    /// What keeps the guest from taking an event.
    ///
    /// # Errors
    /// If the processor refuses.
    fn interruptibility(&self) -> Result<Interruptibility, BackendError>;

    /// Sets what keeps the guest from taking an event. A single step that is due is forgotten.
    ///
    /// # Errors
    /// If the processor refuses.
    fn set_interruptibility(&mut self, value: Interruptibility) -> Result<(), BackendError>;

    /// Asks for the window exits of `windows`, and for no others.
    ///
    /// # Errors
    /// If the processor refuses.
    fn request_windows(&mut self, windows: Windows) -> Result<(), BackendError>;

    /// Whether the processor can keep the guest's TPR, ISR and IRR by itself, and deliver from them.
    fn delivers_interrupts(&self) -> bool {
        false
    }

    /// Lets the processor keep TPR, ISR and IRR of a local APIC in x2APIC mode: `register` has the registers as they are,
    /// by their number there. IRR begins empty. The guest reads and writes them without an exit, CR8 too, but for
    /// [`Exit::EndOfInterrupt`] and [`Exit::RegisterWritten`]. [`Vcpu::request`] follows before the next entry.
    ///
    /// # Errors
    /// If the processor refuses.
    fn lend(&mut self, _register: &dyn Fn(u8) -> u32) -> Result<(), BackendError> {
        Ok(())
    }

    /// Ends what [`Vcpu::lend`] began, if it did; nothing of it counts any more.
    ///
    /// # Errors
    /// If the processor refuses.
    fn take_back(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Puts interrupts into the IRR that the processor keeps.
    ///
    /// # Errors
    /// If the processor refuses.
    fn request(&mut self, _requests: &Requests) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether the processor keeps an interrupt that it would deliver now if RFLAGS.IF allowed it.
    fn has_interrupt(&self) -> bool {
        false
    }

    /// Forgets all translations of the guest's nested tables on this CPU; due after one was removed or restricted.
    fn flush_nested(&mut self);

    /// Sets what the guest's time-stamp counter is ahead of the host's, modulo 2^64.
    ///
    /// # Errors
    /// If the processor refuses.
    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), BackendError>;

    /// Makes the guest exit with [`Exit::Timer`] at the latest `ticks` of the time-stamp counter after the next entry
    /// (rounded up to what the timer can count). It holds for that entry only: set it before each.
    ///
    /// # Errors
    /// If the processor refuses.
    fn set_timer(&mut self, ticks: u64) -> Result<(), BackendError>;

    /// Lets the guest read (and with `write` also write) an MSR without an exit. The backend keeps the guest's value
    /// apart from other guests'.
    fn allow_msr(&mut self, index: u32, write: bool);

    /// Says which field of the last refused entry is wrong, its value, and which check of the manual it fails.
    ///
    /// # Errors
    /// Of the writer.
    fn explain_entry_failure(&self, out: &mut dyn fmt::Write) -> fmt::Result;

    /// Writes what the backend holds of the vCPU, for a person to read beside its registers ([`crate::dump`]).
    ///
    /// # Errors
    /// Of the writer.
    fn dump(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
