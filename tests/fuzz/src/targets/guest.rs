//! A guest's turn: whatever exits come, with whatever registers.

use crate::Feed;
use crate::ram::Ram;
use bulkhead_arch::{Gpr, Segment, SegmentName, Vector};
use bulkhead_core::host::CpuidResult;
use bulkhead_core::{
    BackendError, Event, Exit, Guest, Host, Interruptibility, IoAccess, Limits, NestedFault, Register, Vcpu,
    VirtualCpu, Windows, Yield,
};
use bulkhead_devices::MachineConfig;
use bulkhead_types::{Frequency, Gpa, Gva, VcpuId, Width};
use std::fmt;

const RAM: usize = 0x4000;
const TSC: Frequency = Frequency::hertz(10_000_000);
const MEMORY: u64 = 16 << 20;

/// A processor whose exits come from the input.
struct Script<'a> {
    feed: Feed<'a>,
    gprs: [u64; 16],
    registers: [u64; 21],
    segments: [Segment; 8],
    blocked: Interruptibility,
    interrupted: Option<Event>,
    injected: Option<Event>,
    windows: Windows,
    runs: u32,
    timer: Option<u64>,
    /// The n-th call that can fail does; 0: none.
    fails: std::cell::Cell<u32>,
}

impl Script<'_> {
    fn refuse(&self) -> Result<(), BackendError> {
        match self.fails.get() {
            0 => Ok(()),
            1 => Err(BackendError::Field { field: 7, code: 12 }),
            more => {
                self.fails.set(more - 1);
                Ok(())
            }
        }
    }

    const fn slot(register: Register) -> usize {
        register as usize
    }

    fn set(&mut self, register: Register, value: u64) {
        self.registers[Self::slot(register)] = value;
    }

    fn get(&self, register: Register) -> u64 {
        self.registers[Self::slot(register)]
    }

    /// What the processor checks at entry, of what policy lets a guest set. SDM vol. 3C 27.3.1.1 "Checks on Guest
    /// Control Registers, Debug Registers, and MSRs", 27.3.1.4 "Checks on Guest RIP, RFLAGS, and SSP".
    fn assert_can_enter(&self) {
        let (cr0, cr4, efer) = (self.get(Register::Cr0), self.get(Register::Cr4), self.get(Register::Efer));
        assert!(cr0 & 1 << 31 == 0 || cr0 & 1 != 0, "PG without PE");
        assert!(cr0 >> 32 == 0 && cr4 >> 32 == 0, "reserved bits of CR0 {cr0:#x}, CR4 {cr4:#x}");
        let long = efer & 1 << 10 != 0;
        assert_eq!(long, cr0 & 1 << 31 != 0 && efer & 1 << 8 != 0, "LMA is LME and PG");
        assert!(!long || cr4 & 1 << 5 != 0, "long mode without PAE");
        assert!(cr4 & 1 << 17 == 0 || long, "PCIDE outside long mode");
        assert!(efer & !0xD01 == 0, "reserved bits of EFER {efer:#x}");
        let kinds = self.get(Register::Pat).to_le_bytes();
        assert!(kinds.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)), "PAT {kinds:x?}");
        let legal = |at: u64| at << 16 >> 16 == at || (at as i64) << 16 >> 16 == at as i64;
        assert!(legal(self.get(Register::SysenterEsp)) && legal(self.get(Register::SysenterEip)), "SYSENTER");
        if let Some(Event::Interrupt(_)) = self.injected {
            let flags = self.get(Register::Rflags);
            let fresh = !self.blocked.sti && !self.blocked.mov_ss && flags & 1 << 9 != 0;
            assert!(fresh, "an interrupt into a guest that takes none");
        }
    }

    fn nested(&mut self) -> Exit {
        let bits = self.feed.u8();
        let set = |bit: u8| bits >> bit & 1 != 0;
        let device = [0xFEE0_0000, 0xFEC0_0000, 0xFED8_0000, 0xA_0000][usize::from(self.feed.u8() & 3)];
        let at = device + u64::from(self.feed.u16() & 0xFFF);
        let at = if set(0) { self.feed.magnitude() } else { at };
        Exit::Nested(NestedFault {
            gpa: Gpa::new(at),
            gva: set(1).then(|| Gva::new(at)),
            write: set(2),
            execute: set(3) && set(4),
            table_walk: set(5) && set(6),
            present: set(4),
            malformed: bits == 0xFF,
        })
    }

    fn io(&mut self) -> Exit {
        let bits = self.feed.u8();
        let set = |bit: u8| bits >> bit & 1 != 0;
        let common =
            [0x3F8, 0x20, 0x21, 0xA1, 0x40, 0x43, 0x70, 0x71, 0x604, 0xCF8, 0xCFC, 0x64, 0x60, 0x92, 0xF4, 0x510];
        let port = if set(0) { self.feed.u16() } else { common[usize::from(self.feed.u8() & 15)] };
        Exit::Io(IoAccess {
            port,
            width: [Width::Byte, Width::Word, Width::Dword][usize::from(self.feed.below(3))],
            write: set(1),
            string: set(2) && set(3),
            repeat: set(4),
            segment: set(5).then_some(SegmentName::Ds),
            address_bytes: set(6).then_some(4),
        })
    }

    fn exit(&mut self) -> Exit {
        match self.feed.u8() % 24 {
            0 => Exit::Host,
            1 => Exit::Timer,
            2 => Exit::InterruptWindow,
            3 => Exit::NmiWindow,
            4 => Exit::Exception { vector: Vector(1), error: None, debug_status: self.feed.u64() & 0x600F },
            5 => Exit::Exception { vector: Vector(17), error: Some(0), debug_status: 0 },
            6 => Exit::Cpuid,
            7 => Exit::Halt,
            8 => Exit::Hypercall,
            9..12 => self.io(),
            12 | 13 => Exit::ReadMsr,
            14 | 15 => Exit::WriteMsr,
            16 => Exit::WriteCr {
                number: [0, 4, 8, 0][usize::from(self.feed.u8() & 3)],
                from: Gpr::from_number(self.feed.u8()),
            },
            17 => {
                let number = [8, 4][usize::from(self.feed.u8() & 1)];
                Exit::ReadCr { number, to: Gpr::from_number(self.feed.u8()) }
            }
            18 => Exit::Lmsw { value: [None, Some(self.feed.u16())][usize::from(self.feed.u8() & 1)] },
            19 => Exit::Xsetbv,
            20 => [Exit::CacheFlush, Exit::Undefined, Exit::MachineCheck, Exit::TripleFault]
                [usize::from(self.feed.u8() & 3)],
            21 => Exit::Unexpected { reason: self.feed.u64(), info: self.feed.u64() },
            _ => self.nested(),
        }
    }

    /// What the guest did to its registers before it stopped.
    fn guest_moves(&mut self) {
        const MSRS: [u32; 16] = [
            0x10,
            0x1B,
            0x3A,
            0x3B,
            0x277,
            0x2FF,
            0x200,
            0x174,
            0x175,
            0x6E0,
            0x830,
            0x80F,
            0xC000_0080,
            0xC000_0102,
            0x1A0,
            0xDA0,
        ];
        for _ in 0..self.feed.u8() & 3 {
            let gpr = usize::from(self.feed.u8() & 15);
            self.gprs[gpr] = match self.feed.u8() & 7 {
                0 => MSRS[usize::from(self.feed.u8() & 15)].into(),
                1 => 0x800 + u64::from(self.feed.u8()),
                2 => self.feed.u8().into(),
                3 => 0xC000_0000 + u64::from(self.feed.u16()),
                4 => 0xFEE0_0000 + u64::from(self.feed.u16() & 0xFFF),
                5 => 1 << (self.feed.u8() & 63) | 1 << (self.feed.u8() & 63) | self.gprs[gpr],
                6 => self.feed.u64(),
                _ => self.feed.u32().into(),
            };
        }
        let flags = self.feed.u8();
        let toggled = u64::from(flags & 3) << 9 | u64::from(flags >> 7) << 17;
        self.set(Register::Rflags, self.get(Register::Rflags) ^ toggled);
        let bits = self.feed.u8();
        let set = |bit: u8| bits >> bit & 1 != 0;
        self.blocked = Interruptibility { sti: set(0) && set(1), mov_ss: set(2) && set(3), nmi: set(4) };
        self.interrupted = match bits >> 5 {
            5 => Some(Event::Nmi),
            6 => Some(Event::Exception { vector: Vector(14), error: Some(2) }),
            7 => Some(Event::SoftwareInterrupt { vector: 0x80, length: 2 }),
            _ => None,
        };
    }
}

impl Vcpu for Script<'_> {
    fn activate(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn deactivate(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn run(&mut self) -> Result<Exit, BackendError> {
        self.assert_can_enter();
        assert!(self.timer.take().is_some(), "an entry without a bound on time");
        self.injected = None;
        self.runs += 1;
        self.refuse()?;
        if self.feed.is_empty() {
            return Ok(Exit::TripleFault);
        }
        self.guest_moves();
        Ok(self.exit())
    }

    fn gpr(&self, gpr: Gpr) -> Result<u64, BackendError> {
        self.refuse()?;
        Ok(self.gprs[gpr.number()])
    }

    fn set_gpr(&mut self, gpr: Gpr, value: u64) -> Result<(), BackendError> {
        self.refuse()?;
        self.gprs[gpr.number()] = value;
        Ok(())
    }

    fn read(&self, register: Register) -> Result<u64, BackendError> {
        self.refuse()?;
        Ok(self.get(register))
    }

    fn write(&mut self, register: Register, value: u64) -> Result<(), BackendError> {
        self.refuse()?;
        self.set(register, value);
        Ok(())
    }

    fn segment(&self, name: SegmentName) -> Result<Segment, BackendError> {
        self.refuse()?;
        Ok(self.segments[name as usize])
    }

    fn set_segment(&mut self, name: SegmentName, value: Segment) -> Result<(), BackendError> {
        self.refuse()?;
        self.segments[name as usize] = value;
        Ok(())
    }

    fn privilege(&self) -> Result<u8, BackendError> {
        self.refuse()?;
        Ok(self.segments[SegmentName::Ss as usize].dpl())
    }

    fn skip_instruction(&mut self) -> Result<(), BackendError> {
        self.skip_bytes(1)
    }

    fn skip_bytes(&mut self, length: u8) -> Result<(), BackendError> {
        self.refuse()?;
        assert!(length <= 15);
        // The code is everywhere the same place, so that the emulator always finds it.
        self.blocked = Interruptibility { nmi: self.blocked.nmi, ..Interruptibility::default() };
        Ok(())
    }

    fn inject(&mut self, event: Event) -> Result<(), BackendError> {
        self.refuse()?;
        assert!(
            !matches!(event, Event::Interrupt(_)) || self.injected.is_none(),
            "{event:?} in place of {:?}",
            self.injected
        );
        self.injected = Some(event);
        Ok(())
    }

    fn take_interrupted(&mut self) -> Option<Event> {
        self.interrupted.take()
    }

    fn interruptibility(&self) -> Result<Interruptibility, BackendError> {
        self.refuse()?;
        Ok(self.blocked)
    }

    fn set_interruptibility(&mut self, value: Interruptibility) -> Result<(), BackendError> {
        self.refuse()?;
        self.blocked = value;
        Ok(())
    }

    fn request_windows(&mut self, windows: Windows) -> Result<(), BackendError> {
        self.refuse()?;
        self.windows = windows;
        Ok(())
    }

    fn flush_nested(&mut self) {}

    fn set_tsc_offset(&mut self, _: u64) -> Result<(), BackendError> {
        self.refuse()
    }

    fn set_timer(&mut self, ticks: u64) -> Result<(), BackendError> {
        self.timer = Some(ticks);
        self.refuse()
    }

    fn allow_msr(&mut self, _: u32, _: bool) {}

    fn explain_entry_failure(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }

    fn dump(&self, _: &mut dyn fmt::Write) -> fmt::Result {
        Ok(())
    }
}

/// A host with a clock that runs, and a processor that has everything.
struct Everything {
    tsc: std::cell::Cell<u64>,
    step: u64,
    xcr0: u64,
    input: u8,
}

impl Host for Everything {
    fn tsc(&self) -> u64 {
        self.tsc.set(self.tsc.get() + self.step);
        self.tsc.get()
    }

    fn waited(&self) -> u64 {
        self.tsc.get() / 2
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: 0x16, ..CpuidResult::default() },
            (0xD, 0) => CpuidResult { eax: 7, ebx: 0x340, ecx: 0x340, edx: 0 },
            (0xD, 2) => CpuidResult { eax: 0x100, ebx: 0x240, ecx: 0, edx: 0 },
            (0x8000_0000, _) => CpuidResult { eax: 0x8000_0008, ..CpuidResult::default() },
            (0x8000_0008, _) => CpuidResult { eax: 0x3027, ..CpuidResult::default() },
            _ => CpuidResult { eax: u32::MAX, ebx: u32::MAX, ecx: u32::MAX, edx: u32::MAX },
        }
    }

    fn console(&mut self, _: u8) -> bool {
        true
    }

    fn machine_check(&mut self) {}

    fn console_input(&mut self) -> Option<u8> {
        self.input = self.input.checked_sub(1)?;
        Some(self.input)
    }

    fn clear_debug_addresses(&mut self) {
        panic!("INIT ends a guest of one vCPU");
    }

    fn set_xcr0(&mut self, value: u64) {
        assert!(value & 1 != 0 && value & !7 == 0 && (value & 4 == 0 || value & 2 != 0), "XCR0 {value:#x}");
        self.xcr0 = value;
    }

    fn populate(&mut self, gpa: Gpa) -> bool {
        assert!(gpa.as_u64() < 0x1_0000_0000 + MEMORY, "{gpa} can be no RAM");
        false
    }

    fn kick(&mut self, vcpu: VcpuId) -> bool {
        panic!("there is no vCPU {vcpu}");
    }
}

fn script(feed: Feed<'_>, code: [u8; 15], long: bool) -> (Script<'_>, Ram) {
    let flat = |attributes| Segment { selector: 8, attributes, limit: u32::MAX, base: 0 };
    let mut segments = [flat(0xC093); 8];
    segments[SegmentName::Cs as usize] = flat(if long { 0xA09B } else { 0xC09B });
    let mut vcpu = Script {
        feed,
        gprs: [0xFEE0_0080; 16],
        registers: [0; 21],
        segments,
        blocked: Interruptibility::default(),
        interrupted: None,
        injected: None,
        windows: Windows::default(),
        runs: 0,
        timer: None,
        fails: std::cell::Cell::new(0),
    };
    let mut ram = Ram(vec![0; RAM]);
    ram.0[0x3000..0x300F].copy_from_slice(&code);
    vcpu.set(Register::Rip, 0x3000);
    vcpu.set(Register::Rflags, 2);
    vcpu.set(Register::Pat, 0x0007_0406_0007_0406);
    vcpu.set(Register::Cr0, if long { 0x8000_0011 } else { 0x11 });
    if long {
        vcpu.set(Register::Cr3, 0x1000);
        vcpu.set(Register::Cr4, 0x20);
        vcpu.set(Register::Efer, 0x500);
        ram.0[0x1000..0x1002].copy_from_slice(&[3, 0x20]);
        for index in 0..4 {
            ram.0[0x2000 + 8 * index..0x2004 + 8 * index].copy_from_slice(&[0x83, 0, 0, (index as u8) << 6]);
        }
    }
    (vcpu, ram)
}

/// Turns until the input is used up or the guest has ended.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    let bits = feed.u8();
    let code = feed.array();
    let fails = if bits & 2 != 0 { u32::from(feed.u8()) + 1 } else { 0 };
    let step = u64::from(feed.u8()) * u64::from(feed.u8()) + 1;
    let length = data.len();
    let (vcpu, ram) = script(feed, code, bits & 1 != 0);
    let mut host = Everything { tsc: std::cell::Cell::new(1000), step, xcr0: 1, input: 20 };
    let config = MachineConfig {
        tsc: TSC,
        memory: MEMORY,
        wall_clock: 1_700_000_000,
        cpus: 1,
        test_exit: bits & 4 != 0,
        test_device: bits & 8 != 0,
    };
    let limits = Limits::of(&host, TSC, MEMORY);
    vcpu.fails.set(fails);
    let guest = Guest::new(&config, limits, 1000);
    let Ok(mut cpu) = VirtualCpu::new(&guest, VcpuId::BOOT, vcpu, ram) else { return };
    // An exit takes at least one byte, a turn without any moves time on.
    for _ in 0..64 {
        let until = host.tsc.get() + 100_000;
        match cpu.run(&mut host, until) {
            Yield::Ended(_) => break,
            Yield::TurnOver => {}
            Yield::Waiting { until } => {
                let Some(until) = until else { break };
                host.tsc.set(host.tsc.get().max(until.min(host.tsc.get() + 1_000_000)));
            }
        }
    }
    assert!(cpu.vcpu.runs as usize <= length + 2, "{} entries", cpu.vcpu.runs);
    assert!(host.xcr0 & 1 != 0);
}
