//! Why a guest stopped running, in words of no vendor.
//!
//! A backend decodes its own exit codes to this; everything above decides by it alone. Each variant carries all that the
//! processor said, so that nothing needs to be asked twice.

use bulkhead_arch::{Gpr, SegmentName, Vector};
use bulkhead_types::{Gpa, Gva, Width};

/// Why the guest stopped. For the instruction kinds the instruction pointer is still at the instruction;
/// [`crate::Vcpu::skip_instruction`] goes past it.
///
/// The tag is a byte of its own, since every exit is told apart by it more than once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// The host has work (an interrupt is pending for it, or it took a non-maskable one); nothing for the guest.
    Host,
    /// The processor has found an error of its own (#MC), which is the host's to handle.
    MachineCheck,
    /// The timer set by [`crate::Vcpu::set_timer`] ran out.
    Timer,
    /// The guest can take an interrupt now, as was asked by [`crate::Windows`].
    InterruptWindow,
    /// The guest can take a non-maskable interrupt now.
    NmiWindow,
    /// A level-triggered interrupt that the processor delivered by itself ([`crate::Vcpu::lend`]) has ended.
    EndOfInterrupt {
        /// Its vector.
        vector: u8,
    },
    /// The guest has written a register of those that the processor keeps ([`crate::Vcpu::lend`]), and what follows from it
    /// is not the processor's to do. The write is over.
    RegisterWritten {
        /// Number of the register.
        register: u8,
        /// What was written.
        value: u32,
    },
    /// An exception that the hypervisor must see first (#DB, #AC: they can recur without end inside one instruction).
    /// It has not been delivered; deliver it again to let the guest have it.
    Exception {
        /// Its vector.
        vector: Vector,
        /// Its error code, where it has one.
        error: Option<u32>,
        /// For #DB, the bits that belong into DR6.
        debug_status: u64,
    },
    /// The guest's third fault in a row; it can not go on.
    TripleFault,
    /// CPUID.
    Cpuid,
    /// HLT.
    Halt,
    /// The instruction by which a guest calls its hypervisor.
    Hypercall,
    /// IN, OUT, INS, OUTS.
    Io(IoAccess),
    /// RDMSR of the register in ECX.
    ReadMsr,
    /// WRMSR to the register in ECX.
    WriteMsr,
    /// MOV to CR0 or CR4 that changes a bit the host owns, or any MOV to CR8; the value is in `from`.
    WriteCr {
        /// 0, 4 or 8 (others never exit).
        number: u8,
        /// Source register.
        from: Gpr,
    },
    /// MOV from CR8 (the task priority is the local APIC's, which is not the processor's), or from CR4 where the processor
    /// can not show the guest its own bits.
    ReadCr {
        /// 4 or 8 (others never exit).
        number: u8,
        /// Destination register.
        to: Gpr,
    },
    /// LMSW that changes a bit the host owns, or CLTS.
    Lmsw {
        /// The new low 16 bits of CR0; `None`: they are in the instruction's operand, which the processor has not read.
        value: Option<u16>,
    },
    /// XSETBV.
    Xsetbv,
    /// INVD or WBINVD.
    CacheFlush,
    /// MONITOR, MWAIT, RDPMC, RDTSCP where absent, an instruction of virtualization, or another that this machine does
    /// not have: #UD for the guest.
    Undefined,
    /// The guest named guest-physical memory that its nested tables do not map, or not so.
    Nested(NestedFault),
    /// A task switch through a task gate or TSS (not carried out).
    TaskSwitch,
    /// An exit that should not happen with the controls as they are set.
    Unexpected {
        /// The backend's raw exit code.
        reason: u64,
        /// The backend's raw qualification.
        info: u64,
    },
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoAccess {
    /// Port number.
    pub port: u16,
    /// Width; never [`Width::Qword`].
    pub width: Width,
    /// OUT or OUTS rather than IN or INS.
    pub write: bool,
    /// INS or OUTS: memory is involved, the instruction's operands say where.
    pub string: bool,
    /// With a REP prefix.
    pub repeat: bool,
    /// Segment of the memory operand of OUTS, where the processor says so.
    pub segment: Option<SegmentName>,
    /// Address size of INS/OUTS in bytes (2, 4, 8), where the processor says so.
    pub address_bytes: Option<u8>,
}

/// An access that the nested tables do not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedFault {
    /// Guest-physical address.
    pub gpa: Gpa,
    /// Linear address, where the processor says so.
    pub gva: Option<Gva>,
    /// It was a write.
    pub write: bool,
    /// It was an instruction fetch.
    pub execute: bool,
    /// It was the processor's own access to the guest's page tables, not the instruction's operand.
    pub table_walk: bool,
    /// A mapping was there but did not allow this.
    pub present: bool,
    /// The nested tables themselves are malformed (a reserved bit): the hypervisor's fault.
    pub malformed: bool,
}
