//! Faults: the n-th thing that the backend asks of its processor fails, for every n, under every rule.
//!
//! The backend may pass the processor's error on, or keep the rule all the same. What it may not do is panic, or call a run
//! a success that left the guest in a wrong state; and a vCPU made afterwards keeps the rule.
//!
//! On VT-x each VMREAD, VMWRITE, VMPTRLD, VMCLEAR, INVEPT, INVVPID and entry can fail. Fields that were read before from
//! the current VMCS ([`VmcsAccess::read_known`]) can not, and the backend does not look; there the fault is a wrong value,
//! of which only that nothing panics is asked. On SVM the control block is memory: only an entry can be refused.

use crate::svm::Svm;
use crate::vmx::Vmx;
use bulkhead_conformance::bench::{Bench, Failure};
use bulkhead_conformance::rules::{Kept, RULES, Rule};
use bulkhead_core::BackendError;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use bulkhead_svm::vmcb::Vmcb;
use bulkhead_vmx::fields as field;
use bulkhead_vmx::host::HostState;
use bulkhead_vmx::vmcs::{Entered, Processor, VmcsAccess};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// The error number of every fault, which no processor has.
const CODE: u32 = 0xFA17;

/// How something fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum How {
    /// With an error number: VMfailValid.
    #[default]
    Valid,
    /// Without: VMfailInvalid.
    Invalid,
    /// Only fields that are known to exist: they read as all ones.
    Ones,
    /// As [`How::Ones`], but as 0.
    Zero,
}

impl How {
    const fn code(self) -> u32 {
        if matches!(self, Self::Valid) { CODE } else { 0 }
    }
}

/// What fails, shared with whoever set it.
#[derive(Clone, Default, Debug)]
pub struct Faults(Rc<Plan>);

#[derive(Default, Debug)]
struct Plan {
    how: Cell<How>,
    /// So many more are done until one fails.
    left: Cell<Option<usize>>,
    fired: Cell<bool>,
}

impl Faults {
    /// The one with this number, from 0 on, fails so; or none.
    pub fn set(&self, number: Option<usize>, how: How) {
        self.0.how.set(how);
        self.0.left.set(number);
        self.0.fired.set(false);
    }

    /// Whether it has failed.
    pub fn fired(&self) -> bool {
        self.0.fired.get()
    }

    /// Whether this one fails.
    fn hits(&self) -> bool {
        let hit = self.0.left.get() == Some(0);
        self.0.left.set(self.0.left.get().and_then(|left| left.checked_sub(1)));
        self.0.fired.set(self.0.fired.get() || hit);
        hit
    }

    fn checked(&self) -> bool {
        matches!(self.0.how.get(), How::Valid | How::Invalid) && self.hits()
    }
}

/// A processor that does one thing wrong.
#[derive(Debug)]
pub struct Faulty<P> {
    inner: P,
    faults: Faults,
}

impl<P> Faulty<P> {
    /// `inner`, with these faults.
    pub const fn new(inner: P, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn instruction(&self, name: &'static str) -> Result<(), BackendError> {
        let error = BackendError::Instruction { name, code: self.faults.0.how.get().code() };
        if self.faults.checked() { Err(error) } else { Ok(()) }
    }

    fn access(&self, field: u32) -> Result<(), BackendError> {
        let error = BackendError::Field { field, code: self.faults.0.how.get().code() };
        if self.faults.checked() { Err(error) } else { Ok(()) }
    }
}

impl<P> Deref for Faulty<P> {
    type Target = P;
    fn deref(&self) -> &P {
        &self.inner
    }
}

impl<P> DerefMut for Faulty<P> {
    fn deref_mut(&mut self) -> &mut P {
        &mut self.inner
    }
}

impl<P: Processor> VmcsAccess for Faulty<P> {
    fn read(&self, encoding: u32) -> Result<u64, BackendError> {
        if encoding == field::INSTRUCTION_ERROR.encoding() && self.faults.fired() {
            return Ok(self.faults.0.how.get().code().into());
        }
        self.access(encoding)?;
        self.inner.read(encoding)
    }

    fn read_known(&self, encoding: u32) -> u64 {
        match self.faults.0.how.get() {
            How::Ones if self.faults.hits() => u64::MAX,
            How::Zero if self.faults.hits() => 0,
            _ => self.inner.read_known(encoding),
        }
    }

    fn write(&mut self, encoding: u32, value: u64) -> Result<(), BackendError> {
        self.access(encoding)?;
        self.inner.write(encoding, value)
    }
}

impl<P: Processor> Processor for Faulty<P> {
    fn number(&self) -> usize {
        self.inner.number()
    }
    fn clear(&mut self, vmcs: &Region) -> Result<(), BackendError> {
        self.instruction("vmclear")?;
        self.inner.clear(vmcs)
    }
    fn load(&mut self, vmcs: &Region) -> Result<(), BackendError> {
        self.instruction("vmptrld")?;
        self.inner.load(vmcs)
    }
    fn enter(&mut self, frame: &mut Frame, launched: bool) -> Entered {
        if self.faults.checked() {
            return if self.faults.0.how.get() == How::Valid { Entered::FailValid } else { Entered::FailInvalid };
        }
        self.inner.enter(frame, launched)
    }
    fn invalidate_nested(&mut self, ept_pointer: u64) -> Result<(), BackendError> {
        self.instruction("invept")?;
        self.inner.invalidate_nested(ept_pointer)
    }
    fn invalidate_vpid(&mut self, vpid: u16, single: bool) -> Result<(), BackendError> {
        self.instruction("invvpid")?;
        self.inner.invalidate_vpid(vpid, single)
    }
    fn host_state(&self) -> HostState {
        self.inner.host_state()
    }
    fn cr2(&self) -> u64 {
        self.inner.cr2()
    }
    fn set_cr2(&mut self, value: u64) {
        self.inner.set_cr2(value);
    }
    fn dr6(&self) -> u64 {
        self.inner.dr6()
    }
    fn set_dr6(&mut self, value: u64) {
        self.inner.set_dr6(value);
    }
    fn deliver_nmi(&mut self) {
        self.inner.deliver_nmi();
    }
    fn msrs(&mut self) -> &mut dyn Msrs {
        self.inner.msrs()
    }
}

impl<P: bulkhead_svm::vmcb::Processor> bulkhead_svm::vmcb::Processor for Faulty<P> {
    fn number(&self) -> usize {
        self.inner.number()
    }
    fn save_host(&mut self, host: &Region) {
        self.inner.save_host(host);
    }
    fn enter(&mut self, frame: &mut Frame, vmcb: &mut Vmcb, host: &Region) {
        if self.faults.checked() {
            // VMEXIT_INVALID. APM vol. 2 15.5.1 "Basic Operation".
            vmcb.set(bulkhead_svm::fields::EXIT_CODE, u64::MAX);
            return;
        }
        self.inner.enter(frame, vmcb, host);
    }
    fn interrupt_self(&mut self) {
        self.inner.interrupt_self();
    }
    fn take_interrupts(&mut self) -> bool {
        self.inner.take_interrupts()
    }
    fn tsc(&self) -> u64 {
        self.inner.tsc()
    }
    fn interrupt_by(&mut self, deadline: u64) {
        self.inner.interrupt_by(deadline);
    }
    fn msrs(&mut self) -> &mut dyn Msrs {
        self.inner.msrs()
    }
}

/// Whether a rule's complaint is that the backend passed the fault on.
fn tells(what: &str, code: u32) -> bool {
    // Rules tell what they found in hexadecimal, and what ended them in decimal. A refused VMRUN has no number but -1.
    [code, u32::MAX]
        .iter()
        .any(|code| what.contains(&format!("code: {code} }}")) || what.contains(&format!("code: {code:x} }}")))
}

/// Whether a rule complains of an explanation alone: the guest has ended already, and what can not be read is left out.
fn is_diagnosis(what: &str) -> bool {
    what.starts_with("field, value and rule in")
}

/// What may not be, if anything, after one fault.
fn wrong(kept: std::thread::Result<Kept>, how: How) -> Option<String> {
    match kept {
        Err(_) => Some("it panics".to_owned()),
        Ok(_) if matches!(how, How::Ones | How::Zero) => None,
        // The rule has looked: the state is right.
        Ok(Ok(())) => None,
        Ok(Err(Failure::Wrong(what))) if tells(&what, how.code()) || is_diagnosis(&what) => None,
        Ok(Err(other)) => Some(format!("the fault is not told: {other:?}")),
    }
}

/// Every fault of this kind under one rule; how many there are.
fn each_fault<B: Bench>(make: impl Fn(Faults) -> B, (name, rule): (&str, Rule<B>), how: How) -> usize {
    let mut number = 0;
    loop {
        let faults = Faults::default();
        faults.set(Some(number), how);
        let mut bench = make(faults.clone());
        let kept = catch_unwind(AssertUnwindSafe(|| rule(&mut bench, None)));
        if !faults.fired() {
            assert_eq!(kept.ok(), Some(Ok(())), "{name}, whole");
            return number;
        }
        if let Some(what) = wrong(kept, how) {
            panic!("{name}, fault {number} ({how:?}): {what}");
        }
        // The host goes on: the next vCPU, made by the same bench, is whole.
        faults.set(None, how);
        assert_eq!(rule(&mut bench, None), Ok(()), "{name}: a fresh vCPU after fault {number} ({how:?})");
        number += 1;
    }
}

fn every_fault<B: Bench>(make: impl Fn(Faults) -> B, hows: &[How]) {
    for &how in hows {
        let faults: usize = RULES::<B>().into_iter().map(|rule| each_fault(&make, rule, how)).sum();
        println!("{how:?}: {faults} faults, none gone wrong");
        assert!(faults > 0, "{how:?} reaches nothing");
    }
}

fn vmx(faults: Faults) -> Vmx {
    let mut bench = Vmx::default();
    bench.faults = faults;
    bench
}

#[test]
fn every_vmx_fault_with_a_number_is_told() {
    every_fault(vmx, &[How::Valid]);
}

#[test]
fn every_vmx_fault_without_a_number_is_told() {
    every_fault(vmx, &[How::Invalid]);
}

#[test]
fn no_wrong_value_of_a_known_field_panics() {
    every_fault(vmx, &[How::Ones, How::Zero]);
}

#[test]
fn every_refused_vmrun_is_told() {
    for assists in [true, false] {
        let svm = |faults| {
            let mut bench = Svm::new(assists);
            bench.faults = faults;
            bench
        };
        every_fault(svm, &[How::Valid]);
    }
}

/// A field that silently reads as 0 is what a backend that hides a fault would come to: the judgement sees it.
#[test]
fn a_hidden_fault_is_seen() {
    let mut seen = 0;
    for (_, rule) in RULES::<Vmx>() {
        let faults = Faults::default();
        faults.set(Some(0), How::Zero);
        let kept = rule(&mut vmx(faults.clone()), None);
        seen += usize::from(faults.fired() && wrong(Ok(kept), How::Valid).is_some());
    }
    assert!(seen > 3, "only {seen} rules see it");
}
