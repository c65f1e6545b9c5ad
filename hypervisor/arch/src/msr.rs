//! Numbers of model-specific registers. SDM vol. 4 2.1 "Architectural MSRs"; APM vol. 2 appendix A.

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Local APIC base.
pub const APIC_BASE: u32 = 0x1B;
/// Feature control: VMX enable and lock.
pub const FEATURE_CONTROL: u32 = 0x3A;
/// Offset of the time-stamp counter.
pub const TSC_ADJUST: u32 = 0x3B;
/// Speculation control.
pub const SPEC_CTRL: u32 = 0x48;
/// Prediction command.
pub const PRED_CMD: u32 = 0x49;
/// Microcode revision.
pub const BIOS_SIGN_ID: u32 = 0x8B;
/// Memory-type range capabilities.
pub const MTRRCAP: u32 = 0xFE;
/// Flush command.
pub const FLUSH_CMD: u32 = 0x10B;
/// Architectural capabilities.
pub const ARCH_CAPABILITIES: u32 = 0x10A;
/// SYSENTER code segment.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER entry.
pub const SYSENTER_EIP: u32 = 0x176;
/// Machine-check capabilities.
pub const MCG_CAP: u32 = 0x179;
/// Machine-check status.
pub const MCG_STATUS: u32 = 0x17A;
/// Debug control.
pub const DEBUGCTL: u32 = 0x1D9;
/// First variable memory-type range.
pub const MTRR_PHYSBASE0: u32 = 0x200;
/// Fixed memory-type range of the first 512 KiB.
pub const MTRR_FIX64K: u32 = 0x250;
/// Page attribute table.
pub const PAT: u32 = 0x277;
/// Default memory type.
pub const MTRR_DEF_TYPE: u32 = 0x2FF;
/// Deadline of the local APIC's timer.
pub const TSC_DEADLINE: u32 = 0x6E0;
/// First x2APIC register.
pub const X2APIC_BASE: u32 = 0x800;
/// Last x2APIC register.
pub const X2APIC_END: u32 = 0x8FF;
/// Extended features enabled.
pub const EFER: u32 = 0xC000_0080;
/// SYSCALL targets.
pub const STAR: u32 = 0xC000_0081;
/// SYSCALL entry of 64-bit mode.
pub const LSTAR: u32 = 0xC000_0082;
/// SYSCALL entry of compatibility mode.
pub const CSTAR: u32 = 0xC000_0083;
/// SYSCALL flag mask.
pub const FMASK: u32 = 0xC000_0084;
/// FS base.
pub const FS_BASE: u32 = 0xC000_0100;
/// GS base.
pub const GS_BASE: u32 = 0xC000_0101;
/// GS base that SWAPGS swaps in.
pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
/// Value that RDTSCP returns.
pub const TSC_AUX: u32 = 0xC000_0103;
/// First of four performance event selectors; APM vol. 2 13.2.1 "Performance Monitoring Counters".
pub const PERF_EVENT_SELECT0: u32 = 0xC001_0000;
/// Last of four performance counters, which follow them.
pub const PERF_COUNTER3: u32 = 0xC001_0007;
/// System configuration; APM vol. 2 7.9.3 "SYSCFG".
pub const SYSCFG: u32 = 0xC001_0010;
/// Hardware configuration; APM vol. 2 appendix A.
pub const HWCR: u32 = 0xC001_0015;
/// How a pending interrupt is told to the chipset; APM vol. 2 appendix A.
pub const INT_PENDING: u32 = 0xC001_0055;
/// SVM control.
pub const VM_CR: u32 = 0xC001_0114;
/// SVM host state area.
pub const VM_HSAVE_PA: u32 = 0xC001_0117;
/// First of the VMX capability MSRs; SDM vol. 3D appendix A "VMX Capability Reporting Facility".
pub const VMX_BASIC: u32 = 0x480;
