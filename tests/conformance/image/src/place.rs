//! The compartment as the suite's machine: control pages that are used again and again, and RAM page by page.

use crate::vendor::Vendor;
use bulkhead_conformance::bench::{Came, Entries, Entry, Happens, Instruction};
use bulkhead_conformance::guest;
use bulkhead_conformance::real::{Allowed, Machine};
use bulkhead_core::{BackendError, Exit};
use bulkhead_hw::compartment::Compartment;
use bulkhead_hw::ram::WindowRam;
use bulkhead_hw::region::Region;
use bulkhead_hw::{apic, cpu, layout};
use bulkhead_kernel::machine::{FRAMES, Facts};
use bulkhead_kernel::make::StartError;
use bulkhead_paging::{Access, Mapping, Memory, Size, map, translate, unmap};
use bulkhead_types::{Gpa, GuestId, Hpa, PAGE_SIZE};
use core::marker::PhantomData;

/// Control pages: as many as the backend that needs most takes.
const CONTROL_PAGES: usize = 7;

/// The place.
pub struct Place<'a, V> {
    facts: &'static Facts,
    id: GuestId,
    compartment: &'a mut Compartment,
    memory: WindowRam,
    control: [Hpa; CONTROL_PAGES],
    /// Pages whose mapping the suite changes.
    pages: [(Gpa, Hpa); 2],
    vendor: PhantomData<V>,
}

impl<'a, V: Vendor> Place<'a, V> {
    /// Completes the compartment of the guest `id` with `memory` bytes of RAM.
    pub fn new(
        facts: &'static Facts,
        id: GuestId,
        memory: u64,
        compartment: &'a mut Compartment,
    ) -> Result<Self, StartError> {
        let frames = FRAMES.get().ok_or(StartError::Missing("there is no frame table"))?;
        let (memory, ram) = compartment.add_ram::<V::Nested>(frames, (memory, true), Size::Page2M, |_| {})?;
        let pages = (0..guest::MAPPED).step_by(0x1000).chain([guest::SPARE, guest::FORBIDDEN]);
        for page in pages {
            compartment.map_nested::<V::Nested>(&ram, Gpa::new(page), PAGE_SIZE)?;
        }
        let control = compartment.add_control_pages::<CONTROL_PAGES>(&mut frames.lock())?.map(|page| page.hpa());
        let (tables, root) = (compartment.tables(), compartment.nested_root());
        let pages = [guest::SPARE, guest::FORBIDDEN].map(|page| {
            let found = translate::<V::Nested>(&tables, root, page);
            (Gpa::new(page), found.map_or(Hpa::new(0), |found| found.hpa))
        });
        Ok(Self { facts, id, compartment, memory, control, pages, vendor: PhantomData })
    }

    /// What start-up found.
    pub const fn facts(&self) -> &'static Facts {
        self.facts
    }

    /// The guest.
    pub const fn id(&self) -> GuestId {
        self.id
    }

    /// The root of the nested tables.
    pub fn nested_root(&self) -> Hpa {
        self.compartment.nested_root()
    }

    /// The guest's memory.
    pub const fn ram(&self) -> WindowRam {
        self.memory
    }

    /// The control pages, for one more vCPU.
    pub fn control_pages(&self) -> [Region; CONTROL_PAGES] {
        let mut at = layout::CONTROL;
        self.control.map(|hpa| {
            let page = at.as_u64() as *mut [u8; 4096];
            at = at.wrapping_add(PAGE_SIZE);
            #[expect(unsafe_code, reason = "the only place that gives a control page to a second vCPU")]
            // SAFETY: `Compartment::add_control_pages` mapped the pages there for as long as the compartment is. The vCPU
            // that had them before is gone: a bench has one at a time (`Bench::vcpu`).
            let region = unsafe { Region::new(page, hpa) };
            // They are addresses of whole pages.
            region.unwrap_or_else(|| cpu::stop())
        })
    }
}

impl<V: Vendor> Machine for Place<'_, V> {
    type Vcpu = V::Vcpu;
    type Memory = WindowRam;
    const HYPERCALL: [u8; 3] = V::HYPERCALL;

    fn vcpu(&mut self, entries: &Entries) -> Result<Self::Vcpu, BackendError> {
        V::vcpu(self, entries)
    }

    fn memory(&mut self) -> &mut WindowRam {
        &mut self.memory
    }

    fn allow(&mut self, page: Gpa, allowed: Allowed) -> bool {
        let Some(&(_, to)) = self.pages.iter().find(|(gpa, _)| *gpa == page) else { return false };
        let (mut tables, root) = (self.compartment.tables(), self.compartment.nested_root());
        let access = match allowed {
            Allowed::Nothing => return unmap::<V::Nested>(&mut tables, root, page.as_u64(), PAGE_SIZE).is_ok(),
            Allowed::NoWrite => Access::READ_EXECUTE,
            Allowed::NoExecute => Access::READ_WRITE,
            Allowed::All => Access::ALL,
        };
        let from = page.as_u64();
        let memory = Memory::WriteBack;
        let mapping = Mapping { from, to, bytes: PAGE_SIZE, access, memory, largest: Size::Page4K };
        unmap::<V::Nested>(&mut tables, root, from, PAGE_SIZE).is_ok()
            && map::<V::Nested>(&mut tables, root, mapping).is_ok()
    }

    fn excuse(&self, happens: Happens, entry: &Entry, came: Came, rip: u64) -> Option<&'static str> {
        if !is_tcg() {
            return None;
        }
        match (happens, came) {
            (Happens::Instruction(Instruction::Xsetbv, _), Ok(Exit::Timer)) => {
                Some("QEMU's TCG does not intercept XSETBV")
            }
            (Happens::TaskSwitch, Ok(Exit::Timer)) => Some("QEMU's TCG does not intercept task switches"),
            (Happens::InterruptWindow, Ok(Exit::InterruptWindow)) if entry.shadow && rip == entry.rip => {
                Some("QEMU's TCG enters a guest without its interrupt shadow")
            }
            (Happens::Refused { kept: true }, Err(_)) if rip != entry.rip => {
                Some("QEMU's TCG writes the host's state over the guest's that it refuses")
            }
            _ => None,
        }
    }

    fn interrupt_host(&mut self) {
        apic::set_deadline(cpu::tsc());
    }

    fn take_interrupts(&mut self) {
        cpu::take_interrupts();
    }

    fn count(&self) -> u64 {
        cpu::tsc()
    }

    fn rate(&self) -> u64 {
        self.facts.tsc.as_hertz()
    }
}

/// Whether the processor is QEMU's own, as its hypervisor leaf says.
fn is_tcg() -> bool {
    let leaf = cpu::cpuid(0x4000_0000, 0);
    let name = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    name.as_flattened() == b"TCGTCGTCGTCG"
}
