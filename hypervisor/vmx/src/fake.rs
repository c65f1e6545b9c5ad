//! A processor made of a map, for tests and for fault injection on the host.

use crate::capabilities::{Capabilities, Fixed};
use crate::controls::{Allowed, EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::fields;
use crate::host::HostState;
use crate::switched;
use crate::vmcs::{Entered, Processor, VmcsAccess};
use bulkhead_core::BackendError;
use bulkhead_hw::frame::Frame;
use bulkhead_hw::region::Region;
use bulkhead_hw::switched::Msrs;
use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;

pub use bulkhead_hw::region::fake as region;

/// What the next entry of the fake comes to.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// How the entry ends.
    pub entered: Entered,
    /// Fields that the exit sets.
    pub fields: Vec<(u32, u64)>,
}

/// A processor made of a map; fields that were never set read as 0.
#[derive(Debug, Default)]
pub struct FakeProcessor {
    /// Which processor it is.
    pub number: usize,
    fields: BTreeMap<u32, u64>,
    /// What the next entries come to; none left: an exit with nothing set.
    pub script: VecDeque<Scripted>,
    /// Fields whose access fails.
    pub broken: Vec<u32>,
    /// Whether INVEPT fails.
    pub invept_fails: bool,
    /// The software-switched MSRs.
    pub msrs: [u64; switched::COUNT],
    /// CR2.
    pub cr2: u64,
    /// DR6.
    pub dr6: u64,
    /// Names of the instructions that were executed, VMREAD and VMWRITE apart.
    pub log: Vec<&'static str>,
    /// How many fields were written.
    pub writes: usize,
}

impl FakeProcessor {
    /// Whether the field was ever written.
    #[must_use]
    pub fn is_set(&self, encoding: u32) -> bool {
        self.fields.contains_key(&encoding)
    }

    /// Sets any field, the read-only ones too.
    pub fn force(&mut self, encoding: u32, value: u64) {
        self.fields.insert(encoding, value);
    }

    /// The field's value, 0 if it was never set.
    #[must_use]
    pub fn get_raw(&self, encoding: u32) -> u64 {
        self.fields.get(&encoding).copied().unwrap_or(0)
    }

    /// Makes the next entry end in an exit that sets `fields`.
    pub fn script_exit(&mut self, fields: &[(u32, u64)]) {
        self.script.push_back(Scripted { entered: Entered::Exit, fields: fields.to_vec() });
    }
}

impl VmcsAccess for FakeProcessor {
    fn read(&self, encoding: u32) -> Result<u64, BackendError> {
        let value = self.fields.get(&encoding).copied();
        if self.broken.contains(&encoding) || value.is_none() && !fields::ALL.contains(&encoding) {
            return Err(BackendError::Field { field: encoding, code: 12 });
        }
        Ok(value.unwrap_or(0))
    }

    fn write(&mut self, encoding: u32, value: u64) -> Result<(), BackendError> {
        self.read(encoding)?;
        if encoding >> 10 & 3 == 1 {
            return Err(BackendError::Field { field: encoding, code: 13 });
        }
        self.writes += 1;
        self.fields.insert(encoding, value);
        Ok(())
    }
}

impl Msrs for FakeProcessor {
    fn switched_msr(&self, msr: u32) -> u64 {
        switched::SWITCHED.iter().zip(self.msrs).find(|(known, _)| **known == msr).map_or(0, |(_, value)| value)
    }

    fn set_switched_msr(&mut self, msr: u32, value: u64) {
        for (_, place) in switched::SWITCHED.iter().zip(&mut self.msrs).filter(|(known, _)| **known == msr) {
            *place = value;
        }
    }
}

impl Processor for FakeProcessor {
    fn number(&self) -> usize {
        self.number
    }

    fn msrs(&mut self) -> &mut dyn Msrs {
        self
    }

    fn clear(&mut self, _: &Region) -> Result<(), BackendError> {
        self.log.push("vmclear");
        Ok(())
    }

    fn load(&mut self, _: &Region) -> Result<(), BackendError> {
        self.log.push("vmptrld");
        Ok(())
    }

    fn enter(&mut self, _: &mut Frame, launched: bool) -> Entered {
        self.log.push(if launched { "vmresume" } else { "vmlaunch" });
        // Each exit clears these unless it says otherwise.
        self.force(fields::IDT_VECTORING.encoding(), 0);
        let injection = fields::ENTRY_INTERRUPTION.encoding();
        let info = self.read(injection).unwrap_or(0);
        self.force(injection, info & !(1 << 31));
        let Some(next) = self.script.pop_front() else { return Entered::Exit };
        for (encoding, value) in next.fields {
            self.force(encoding, value);
        }
        next.entered
    }

    fn invalidate_nested(&mut self, _: u64) -> Result<(), BackendError> {
        self.log.push("invept");
        if self.invept_fails { Err(BackendError::Instruction { name: "invept", code: 28 }) } else { Ok(()) }
    }

    fn invalidate_vpid(&mut self, _: u16, _: bool) -> Result<(), BackendError> {
        self.log.push("invvpid");
        Ok(())
    }

    fn host_state(&self) -> HostState {
        HOST
    }

    fn cr2(&self) -> u64 {
        self.cr2
    }

    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }

    fn dr6(&self) -> u64 {
        self.dr6
    }

    fn set_dr6(&mut self, value: u64) {
        self.dr6 = value;
    }

    fn deliver_nmi(&mut self) {
        self.log.push("nmi");
    }
}

/// A host in 64-bit mode.
pub const HOST: HostState = [
    (fields::HOST_CR0.encoding(), 0x8001_0033),
    (fields::HOST_CR3.encoding(), 0x10_0000),
    (fields::HOST_CR4.encoding(), 0x20A0),
    (fields::HOST_EFER.encoding(), 0xD01),
    (fields::HOST_PAT.encoding(), 0x0007_0406_0007_0406),
    (fields::HOST_ES_SELECTOR.encoding(), 0),
    (fields::HOST_CS_SELECTOR.encoding(), 8),
    (fields::HOST_SS_SELECTOR.encoding(), 0),
    (fields::HOST_DS_SELECTOR.encoding(), 0),
    (fields::HOST_FS_SELECTOR.encoding(), 0),
    (fields::HOST_GS_SELECTOR.encoding(), 0),
    (fields::HOST_TR_SELECTOR.encoding(), 0x18),
    (fields::HOST_FS_BASE.encoding(), 0),
    (fields::HOST_GS_BASE.encoding(), 0),
    (fields::HOST_TR_BASE.encoding(), 0xFFFF_8000_0000_0000),
    (fields::HOST_GDTR_BASE.encoding(), 0xFFFF_8000_0000_0000),
    (fields::HOST_IDTR_BASE.encoding(), 0xFFFF_8000_0000_0000),
    (fields::HOST_SYSENTER_CS.encoding(), 0),
    (fields::HOST_SYSENTER_ESP.encoding(), 0),
    (fields::HOST_SYSENTER_EIP.encoding(), 0),
    (fields::HOST_RIP.encoding(), 0xFFFF_8000_0000_0000),
];

/// The capabilities of a processor that has what is needed.
#[must_use]
pub fn capabilities() -> Capabilities {
    // The default-1 bits that stay 1 with the TRUE registers.
    let allowed = |must: u32, may: u32| Allowed { must, may: must | may };
    Capabilities {
        revision: 1,
        pin: allowed(0x16, Pin::all().bits()),
        primary: allowed(0x0400_6172, Primary::all().bits()),
        secondary: allowed(0, Secondary::all().bits()),
        exit: allowed(0x0003_6DFB, ExitControls::all().bits()),
        entry: allowed(0x11FB, EntryControls::all().bits()),
        cr0: Fixed { must: 0x8000_0021, may: 0xFFFF_FFFF },
        cr4: Fixed { must: 0x2000, may: 0x0037_67FF },
        ept_vpid: 0x0F01_0633_4141,
        timer_shift: 5,
        string_info: true,
        zero_length: true,
        switched: [true; switched::COUNT],
        physical_bits: 39,
    }
}
