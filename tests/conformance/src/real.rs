//! The bench of a real processor: the guest gets the code and the state that lead to what shall happen.

use crate::bench::{Arrival, Bench, Came, Entries, Entry, Failure, Fault, Happens, Instruction};
use crate::broken::Broken;
use crate::guest;
use alloc::vec::Vec;
use bulkhead_arch::{Cr0, Efer, Gpr, Rflags, Segment, SegmentName};
use bulkhead_core::{BackendError, Exit, Register, Vcpu};
use bulkhead_types::{Gpa, GuestMemory};

pub mod code;

/// How often a guest that was interrupted before its turn is entered again.
const ROUNDS: u32 = 8;

/// What may be done with a page in the nested tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowed {
    /// It is not there.
    Nothing,
    /// To read and execute.
    NoWrite,
    /// To read and write.
    NoExecute,
    /// All.
    All,
}

/// The machine that the bench stands on.
pub trait Machine {
    /// The backend's vCPU.
    type Vcpu: Vcpu;
    /// The guest's memory.
    type Memory: GuestMemory;
    /// VMCALL or VMMCALL.
    const HYPERCALL: [u8; 3];

    /// A new vCPU in the place of the one before, whose entries are noted.
    ///
    /// # Errors
    /// If the processor refuses.
    fn vcpu(&mut self, entries: &Entries) -> Result<Self::Vcpu, BackendError>;

    /// The guest's memory.
    fn memory(&mut self) -> &mut Self::Memory;

    /// Sets what the guest may do with one page of its RAM. Nothing is flushed. False if the tables can not say so.
    fn allow(&mut self, page: Gpa, allowed: Allowed) -> bool;

    /// Why it is the emulator's doing that `came` of `happens`, with the guest's RIP at `rip`, after the processor was told
    /// `entry`.
    fn excuse(&self, happens: Happens, entry: &Entry, came: Came, rip: u64) -> Option<&'static str>;

    /// Interrupts the host as soon as it lets itself be interrupted.
    fn interrupt_host(&mut self);

    /// Lets the host be interrupted.
    fn take_interrupts(&mut self);

    /// The time-stamp counter.
    fn count(&self) -> u64;

    /// Its rate in ticks a second.
    fn rate(&self) -> u64;
}

/// The bench.
#[derive(Debug)]
pub struct Real<M> {
    machine: M,
    entries: Entries,
    arrived: Option<Arrival>,
}

impl<M: Machine> Real<M> {
    /// A bench on this machine.
    pub fn new(machine: M) -> Self {
        Self { machine, entries: Entries::default(), arrived: None }
    }

    /// Gives the guest the code and the state from which `happens` comes.
    fn prepare(&mut self, vcpu: &mut M::Vcpu, happens: Happens) -> Result<(), Failure> {
        guest::write_handlers(self.machine.memory()).map_err(|_| Failure::CanNot("the guest has too little memory"))?;
        if happens != Happens::Return {
            vcpu.set_gpr(Gpr::Rsp, guest::STACK)?;
        }
        let long = vcpu.read(Register::Efer)? & Efer::LMA.bits() != 0;
        let mut code = Vec::new();
        match happens {
            Happens::Instruction(which, length) => {
                set_operands(vcpu, which)?;
                code = code::instruction(which, length, M::HYPERCALL);
            }
            Happens::InShadow(which, length) => {
                set_operands(vcpu, which)?;
                let flags = vcpu.read(Register::Rflags)?;
                vcpu.write(Register::Rflags, flags & !Rflags::IF.bits())?;
                code.push(code::STI);
                code.extend(code::instruction(which, length, M::HYPERCALL));
            }
            Happens::Nested { fault, delivering: None } => {
                self.restrict(fault)?;
                let linear = if fault.walk { guest::linear_by_way_of(fault.gpa) } else { Some(fault.gpa) };
                let linear = linear.ok_or(Failure::CanNot("no guest table is at that address"))?;
                code = code::access(linear, fault.write, fault.execute, long);
            }
            Happens::Nested { fault, delivering: Some(event) } => {
                // Delivery begins with a push.
                vcpu.set_gpr(Gpr::Rsp, fault.gpa + 4)?;
                vcpu.inject(event)?;
            }
            Happens::Debug(causes) => code = code::debug(causes, vcpu.read(Register::Rip)?),
            Happens::InterruptWindow => code = Vec::from(code::NOP),
            Happens::TripleFault => {
                vcpu.write(Register::IdtLimit, 0)?;
                code = Vec::from(code::UNDEFINED);
            }
            Happens::TaskSwitch => code = code::jump_to_task(guest::OTHER_TASK),
            Happens::Timer | Happens::Refused { .. } => {}
            Happens::Host => self.machine.interrupt_host(),
            Happens::Touch => code = code::touch(guest::SPARE),
            Happens::Count => code = Vec::from(code::COUNT),
            Happens::Return => code = Vec::from(code::RETURN),
        }
        code.extend(code::SPIN);
        let rip = vcpu.segment(SegmentName::Cs)?.base.wrapping_add(vcpu.read(Register::Rip)?);
        if matches!(happens, Happens::Refused { .. }) {
            return Ok(());
        }
        let written = self.machine.memory().write(Gpa::new(rip), &code);
        written.map_err(|_| Failure::CanNot("the guest has no memory where it executes"))
    }

    /// Makes an access to a page impossible, in the way that is asked for.
    fn restrict(&mut self, fault: Fault) -> Result<(), Failure> {
        let page = Gpa::new(fault.gpa).align_down(4096);
        let allowed = match (fault.present, fault.execute) {
            (false, _) => Allowed::Nothing,
            (true, true) => Allowed::NoExecute,
            (true, false) => Allowed::NoWrite,
        };
        if page == Gpa::new(guest::FORBIDDEN) && !self.machine.allow(page, allowed) {
            return Err(Failure::CanNot("the nested tables can not say so"));
        }
        Ok(())
    }

    /// Lets the guest switch its breakpoints off by itself. QEMU's TCG keeps what MOV to DR7 has set over VMRUN, which
    /// loads another DR7, and breaks on the next MOV to DR7.
    fn take_breakpoints_back(&mut self, vcpu: &mut M::Vcpu) -> Result<(), Failure> {
        self.finish(vcpu, &code::BREAKPOINTS_OFF)
    }

    /// Lets some guest execute IRET. Bochs keeps NMIs blocked over an entry that says that they are not.
    fn let_nmis_in(&mut self) -> Result<(), Failure> {
        let mut vcpu = self.machine.vcpu(&self.entries)?;
        vcpu.activate()?;
        let code = Segment { selector: 0, attributes: 0x9B, limit: 0xFFFF, base: 0 };
        vcpu.set_segment(SegmentName::Cs, code)?;
        vcpu.set_gpr(Gpr::Rsp, guest::STACK)?;
        self.finish(&mut vcpu, &code::PUSH_AND_RETURN)
    }

    /// Executes `code` up to its HLT, and puts the guest back to where it was.
    fn finish(&mut self, vcpu: &mut M::Vcpu, code: &[u8]) -> Result<(), Failure> {
        let [rip, flags] = [vcpu.read(Register::Rip)?, vcpu.read(Register::Rflags)?];
        let rax = vcpu.gpr(Gpr::Rax)?;
        let written = self.machine.memory().write(Gpa::new(guest::CODE), code);
        written.map_err(|_| Failure::CanNot("the guest has no memory where it executes"))?;
        vcpu.write(Register::Rip, guest::CODE)?;
        vcpu.write(Register::Rflags, Rflags::FIXED.bits())?;
        for _ in 0..ROUNDS {
            vcpu.set_timer(self.machine.rate() / 10)?;
            match vcpu.run()? {
                Exit::Halt => break,
                _ => self.machine.take_interrupts(),
            }
        }
        vcpu.set_gpr(Gpr::Rax, rax)?;
        vcpu.write(Register::Rip, rip)?;
        Ok(vcpu.write(Register::Rflags, flags)?)
    }

    /// What has come to the guest's handlers: a handler goes on where it begins, with what was pushed on its stack.
    fn arrival(&mut self, vcpu: &M::Vcpu) -> Result<Option<Arrival>, Failure> {
        let Some(vector) = guest::vector_of(vcpu.read(Register::Rip)?) else { return Ok(None) };
        let rsp = vcpu.gpr(Gpr::Rsp)?;
        let pushed = guest::STACK.wrapping_sub(rsp);
        let protected = vcpu.read(Register::Cr0)? & Cr0::PE.bits() != 0;
        let long = vcpu.read(Register::Efer)? & Efer::LMA.bits() != 0;
        let (word, least) = match (long, protected) {
            (true, _) => (8, 5),
            (false, true) => (4, 3),
            (false, false) => (2, 3),
        };
        let with_error = pushed == word * (least + 1);
        if !with_error && pushed != word * least {
            return Ok(None);
        }
        let mut read = |index: u64| {
            let mut bytes = [0; 8];
            let at = Gpa::new(rsp + index * word);
            let place = bytes.get_mut(..usize::try_from(word).unwrap_or(0)).unwrap_or_default();
            let read = self.machine.memory().read(at, place);
            read.map_err(|_| Failure::CanNot("the guest has no stack"))?;
            Ok::<u64, Failure>(u64::from_le_bytes(bytes))
        };
        let error = if with_error { Some(u32::try_from(read(0)?).unwrap_or(u32::MAX)) } else { None };
        let [rip, flags] = [read(with_error.into())?, read(u64::from(with_error) + 2)?];
        Ok(Some(Arrival { vector, error, rip, flags: Rflags::from_bits_retain(flags) & Arrival::FLAGS }))
    }
}

/// Puts into registers what an instruction wants there.
fn set_operands(vcpu: &mut impl Vcpu, which: Instruction) -> Result<(), BackendError> {
    /// CR4.MCE, which the host owns.
    const MACHINE_CHECKS: u64 = 1 << 6;
    match which {
        Instruction::Port { port, .. } => vcpu.set_gpr(Gpr::Rdx, port.into()),
        Instruction::WriteCr4(from) => {
            let value = vcpu.read(Register::Cr4)? ^ MACHINE_CHECKS;
            vcpu.set_gpr(from, value)
        }
        Instruction::WriteCr8(from) => vcpu.set_gpr(from, 0),
        _ => Ok(()),
    }
}

impl<M: Machine> Bench for Real<M> {
    type Vcpu = M::Vcpu;

    fn vcpu(&mut self) -> Result<Self::Vcpu, Failure> {
        guest::write(self.machine.memory()).map_err(|_| Failure::CanNot("the guest has too little memory"))?;
        for page in [guest::SPARE, guest::FORBIDDEN] {
            self.machine.allow(Gpa::new(page), Allowed::Nothing);
        }
        // What an earlier rule has left waiting.
        self.machine.take_interrupts();
        self.let_nmis_in()?;
        self.entries.borrow_mut().clear();
        Ok(self.machine.vcpu(&self.entries)?)
    }

    fn run(&mut self, vcpu: &mut Broken<Self::Vcpu>, happens: Happens) -> Result<Came, Failure> {
        self.prepare(&mut vcpu.inner, happens)?;
        self.entries.borrow_mut().clear();
        let before = vcpu.inner.read(Register::Rip)?;
        // A guest that does not stop is stopped.
        let patience = self.machine.rate() / 200;
        let mut result = Err(BackendError::Entry { code: 0 });
        for round in 0..ROUNDS {
            if happens != Happens::Timer {
                vcpu.inner.set_timer(patience << round)?;
            }
            result = vcpu.run();
            match result {
                Ok(Exit::Host) if happens != Happens::Host => self.machine.take_interrupts(),
                // It may have had no time to come so far.
                Ok(Exit::Timer) if happens != Happens::Timer && vcpu.inner.read(Register::Rip)? == before => {}
                _ => break,
            }
        }
        self.machine.take_interrupts();
        self.arrived = if result.is_ok() { self.arrival(&vcpu.inner)? } else { None };
        if matches!(happens, Happens::Debug(_)) && result.is_ok() {
            self.take_breakpoints_back(&mut vcpu.inner)?;
        }
        let rip = vcpu.inner.read(Register::Rip)?;
        match self.told().and_then(|entry| self.machine.excuse(happens, &entry, result, rip)) {
            Some(why) => Err(Failure::CanNot(why)),
            None => Ok(result),
        }
    }

    fn told(&self) -> Option<Entry> {
        self.entries.borrow().first().copied()
    }

    fn arrived(&self) -> Option<Arrival> {
        self.arrived
    }

    fn give_spare(&mut self, given: bool) -> Result<(), Failure> {
        let allowed = if given { Allowed::All } else { Allowed::Nothing };
        if self.machine.allow(Gpa::new(guest::SPARE), allowed) {
            return Ok(());
        }
        Err(Failure::CanNot("the nested tables can not be changed"))
    }

    fn count(&self) -> u64 {
        self.machine.count()
    }
}
