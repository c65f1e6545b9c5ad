//! The guest walker against SDM vol. 3A chapter 4, rule by rule.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use bulkhead_arch::{Cr0, Cr4, Efer, Rflags};
use bulkhead_paging::guest::{Access, PagingState, WalkError, walk};
use bulkhead_types::{Gpa, GuestMemory, Gva, MemoryError, Width};

/// 64 KiB of RAM from 0 on; tables at 0x1000 to 0x4000.
struct Ram {
    bytes: Vec<u8>,
    /// Another processor changes this entry to this value just before each compare-exchange.
    meddler: Option<(u64, u32)>,
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let from = self.bytes.get(start..start + into.len()).ok_or(MemoryError { gpa, bytes: into.len() })?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(gpa.as_u64()).unwrap();
        let into = self.bytes.get_mut(start..start + from.len()).ok_or(MemoryError { gpa, bytes: from.len() })?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn zero(&mut self, _: Gpa, _: u64) -> Result<(), MemoryError> {
        Ok(())
    }

    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryError> {
        assert_eq!(width, Width::Dword, "both bits are in the low half");
        if let Some((at, value)) = self.meddler {
            self.write(Gpa::new(at), &value.to_le_bytes())?;
        }
        let same = u64::from(self.read_u32(gpa)?) == old;
        if same {
            self.write(gpa, &new.to_le_bytes()[..4])?;
        }
        Ok(same)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Bits32,
    Pae,
    Long,
}

const MODES: [Mode; 3] = [Mode::Bits32, Mode::Pae, Mode::Long];
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

struct World {
    ram: Ram,
    state: PagingState,
    mode: Mode,
}

/// Entry bits.
const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
/// Error-code bits.
const FETCH: u32 = 0x10;
const RSVD: u32 = 8;

impl World {
    /// Linear 0 is mapped through the tables at 0x1000 (PML4), 0x2000 (PDPT), 0x3000 (PD), 0x4000 (PT) to 0x5000.
    fn new(mode: Mode) -> Self {
        let state = PagingState {
            cr0: Cr0::PE | Cr0::PG | Cr0::WP,
            cr3: if mode == Mode::Long { 0x1018 } else { 0x3018 },
            cr4: if mode == Mode::Bits32 { Cr4::PSE } else { Cr4::PAE },
            efer: match mode {
                Mode::Bits32 => Efer::empty(),
                Mode::Pae => Efer::NXE,
                Mode::Long => Efer::NXE | Efer::LMA | Efer::LME,
            },
            pdptes: [0x3001, 0, 0, 0],
            rflags: Rflags::FIXED,
            cpl: 0,
            physical_bits: 40,
        };
        let mut world = Self { ram: Ram { bytes: vec![0; 0x1_0000], meddler: None }, state, mode };
        world.put(0x1000, 0x2000 | P | RW | US);
        world.put(0x2000, 0x3000 | P | RW | US);
        world.put(0x3000, 0x4000 | P | RW | US);
        world.put(0x4000, 0x5000 | P | RW | US);
        world
    }

    fn put(&mut self, at: u64, entry: u64) {
        let bytes = entry.to_le_bytes();
        let width = if self.mode == Mode::Bits32 { 4 } else { 8 };
        self.ram.write(Gpa::new(at), &bytes[..width]).unwrap();
    }

    fn entry(&self, at: u64) -> u64 {
        if self.mode == Mode::Bits32 {
            self.ram.read_u32(Gpa::new(at)).unwrap().into()
        } else {
            self.ram.read_u64(Gpa::new(at)).unwrap()
        }
    }

    fn walk(&mut self, gva: u64, access: Access) -> Result<u64, WalkError> {
        walk(&mut self.ram, &self.state, Gva::new(gva), access).map(Gpa::as_u64)
    }

    fn fault(&mut self, gva: u64, access: Access) -> Option<u32> {
        match self.walk(gva, access) {
            Err(WalkError::PageFault { error }) => Some(error),
            Ok(_) => None,
            other => panic!("{other:?}"),
        }
    }
}

/// 4.6.1 "Determination of Access Rights", sentence by sentence. `pages` are the rights of each entry on the way.
fn allowed(state: &PagingState, access: Access, entries: &[u64]) -> bool {
    let user_address = entries.iter().all(|entry| entry & US != 0);
    let writable = entries.iter().all(|entry| entry & RW != 0);
    let executable = entries.iter().all(|entry| entry & NX == 0);
    let supervisor_access = state.cpl < 3;
    let smap = state.cr4.contains(Cr4::SMAP);
    let wp = state.cr0.contains(Cr0::WP);
    match (supervisor_access, access, user_address) {
        // Supervisor-mode accesses, data reads.
        (true, Access::Read, false) => true,
        (true, Access::Read, true) => !smap || state.rflags.contains(Rflags::AC),
        // Data writes.
        (true, Access::Write, false) => writable || !wp,
        (true, Access::Write, true) => (writable || !wp) && (!smap || state.rflags.contains(Rflags::AC)),
        // Instruction fetches.
        (true, Access::Execute, false) => executable,
        (true, Access::Execute, true) => executable && !state.cr4.contains(Cr4::SMEP),
        // User-mode accesses.
        (false, Access::Read, user) => user,
        (false, Access::Write, user) => user && writable,
        (false, Access::Execute, user) => user && executable,
    }
}

#[test]
fn access_rights_of_every_combination() {
    let mut checked = 0;
    for mode in MODES {
        for bits in 0..0x2000_u64 {
            let bit = |position: u64| bits >> position & 1 == 1;
            let mut world = World::new(mode);
            let nx = if mode == Mode::Bits32 { 0 } else { NX };
            let rights = |low: u64| {
                let mut entry = P;
                for (position, right) in [(low, RW), (low + 1, US), (low + 2, nx)] {
                    entry |= if bit(position) { right } else { 0 };
                }
                entry
            };
            let (upper, lower) = (rights(0), rights(3));
            world.put(0x3000, 0x4000 | upper);
            world.put(0x4000, 0x5000 | lower);
            world.state.cpl = if bit(6) { 3 } else { u8::from(bit(12)) };
            world.state.cr0.set(Cr0::WP, bit(7));
            world.state.cr4.set(Cr4::SMEP, bit(8));
            world.state.cr4.set(Cr4::SMAP, bit(9));
            world.state.rflags.set(Rflags::AC, bit(10));
            world.state.cr4.set(Cr4::PGE, bit(11));
            for access in ACCESSES {
                let user = if world.state.cpl == 3 { 4 } else { 0 };
                let fetch = if mode != Mode::Bits32 || bit(8) { FETCH } else { 0 };
                let kind = [0, 2, fetch][access as usize];
                let expected = (!allowed(&world.state, access, &[upper, lower])).then_some(1 | user | kind);
                assert_eq!(world.fault(0x123, access), expected, "{mode:?} {access:?} {bits:#x}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 3 * 3 * 0x2000);
}

#[test]
fn upper_levels_of_4_level_paging_restrict_too() {
    for at in [0x1000, 0x2000] {
        for (clear, set, cpl, access, error) in [
            (RW, 0, 3, Access::Write, 7),
            (US, 0, 3, Access::Read, 5),
            (0, NX, 0, Access::Execute, 1 | FETCH),
            (P, 0, 3, Access::Execute, 4 | FETCH),
            (0, 1 << 40, 0, Access::Read, 1 | RSVD),
        ] {
            let mut world = World::new(Mode::Long);
            world.put(at, world.entry(at) & !clear | set);
            world.state.cpl = cpl;
            assert_eq!(world.fault(0, access), Some(error));
        }
    }
}

#[test]
fn offsets_and_indices() {
    let mut world = World::new(Mode::Long);
    world.put(0x1000 + 8 * 0x1FF, 0x2003);
    world.put(0x2000 + 8 * 0x1FE, 0x3003);
    world.put(0x3000 + 8 * 0x101, 0x4003);
    world.put(0x4000 + 8 * 7, 0x9003);
    let gva = 0xFFFF_0000_0000_0000 | 0x1FF << 39 | 0x1FE << 30 | 0x101 << 21 | 7 << 12 | 0xABC;
    assert_eq!(world.walk(gva, Access::Read), Ok(0x9ABC));
    let mut world = World::new(Mode::Bits32);
    world.put(0x3000 + 4 * 0x3FF, 0x4003);
    world.put(0x4000 + 4 * 0x201, 0x9003);
    assert_eq!(world.walk(0x3FF << 22 | 0x201 << 12 | 0xABC, Access::Read), Ok(0x9ABC));
    let mut world = World::new(Mode::Pae);
    world.state.pdptes[3] = 0x6001;
    world.put(0x6000 + 8 * 0x1FF, 0x4003);
    world.put(0x4000 + 8 * 0x101, 0x8_0000_9003);
    assert_eq!(world.walk(3 << 30 | 0x1FF << 21 | 0x101 << 12 | 0xABC, Access::Read), Ok(0x8_0000_9ABC));
    // Linear addresses outside 64-bit mode have 32 bits.
    assert_eq!(world.walk(0xFF_0000_0000, Access::Read), Ok(0x5000));
}

#[test]
fn large_pages() {
    let mut world = World::new(Mode::Long);
    world.put(0x3000, 0x12_3460_0000 | PS | P);
    assert_eq!(world.walk(0x1F_FEDC, Access::Read), Ok(0x12_347F_FEDC));
    world.put(0x2000, 0x12_4000_0000 | PS | P);
    assert_eq!(world.walk(0x3FFF_FEDC, Access::Read), Ok(0x12_7FFF_FEDC));
    // PAT of a large page is no address bit.
    world.put(0x2000, 0x12_4000_0000 | 1 << 12 | PS | P);
    assert_eq!(world.walk(0x3FFF_FEDC, Access::Read), Ok(0x12_7FFF_FEDC));
    let mut world = World::new(Mode::Pae);
    world.put(0x3000, 0x12_3460_0000 | PS | P);
    assert_eq!(world.walk(0x1F_FEDC, Access::Read), Ok(0x12_347F_FEDC));
    // 4 MiB with PSE-36: bits 20-13 are bits 39-32.
    let mut world = World::new(Mode::Bits32);
    world.put(0x3000, 0x1280_0000 | 0xA5 << 13 | PS | P);
    assert_eq!(world.walk(0x3F_FEDC, Access::Read), Ok(0xA5_12BF_FEDC));
    // Without PSE the bit means nothing.
    world.state.cr4 = Cr4::empty();
    world.put(0x3000, 0x4000 | PS | P);
    assert_eq!(world.walk(0xEDC, Access::Read), Ok(0x5EDC));
}

#[test]
fn reserved_bits() {
    let cases: [(Mode, u64, u64, u8, bool); 22] = [
        // Bits from MAXPHYADDR on: to 51 in 4-level paging, to 62 in PAE paging.
        (Mode::Long, 0x4000, 0x5001 | 1 << 40, 40, true),
        (Mode::Long, 0x4000, 0x5001 | 1 << 40, 41, false),
        (Mode::Long, 0x4000, 0x5001 | 1 << 51, 52, false),
        (Mode::Long, 0x4000, 0x5001 | 1 << 51, 51, true),
        (Mode::Long, 0x4000, 0x5001 | 1 << 52, 40, false),
        (Mode::Long, 0x4000, 0x5001 | 1 << 62, 40, false),
        (Mode::Pae, 0x4000, 0x5001 | 1 << 52, 40, true),
        (Mode::Pae, 0x4000, 0x5001 | 1 << 62, 52, true),
        (Mode::Pae, 0x4000, 0x5001 | 1 << 40, 40, true),
        // PS in a PML4 entry; alignment of large pages.
        (Mode::Long, 0x1000, 0x2001 | PS, 40, true),
        (Mode::Long, 0x2000, 0x4000_0001 | PS | 1 << 13, 40, true),
        (Mode::Long, 0x2000, 0x4000_0001 | PS | 1 << 29, 40, true),
        (Mode::Long, 0x2000, 0x4000_0001 | PS | 1 << 12, 40, false),
        (Mode::Long, 0x3000, 0x20_0001 | PS | 1 << 13, 40, true),
        (Mode::Pae, 0x3000, 0x20_0001 | PS | 1 << 20, 40, true),
        (Mode::Pae, 0x3000, 0x20_0001 | PS | 1 << 12, 40, false),
        // PSE-36: bit 21 always, address bits beyond MAXPHYADDR.
        (Mode::Bits32, 0x3000, PS | P | 1 << 21, 52, true),
        (Mode::Bits32, 0x3000, PS | P | 1 << 20, 40, false),
        (Mode::Bits32, 0x3000, PS | P | 1 << 20, 39, true),
        (Mode::Bits32, 0x3000, PS | P | 1 << 13, 32, true),
        (Mode::Bits32, 0x3000, PS | P | 1 << 16, 36, false),
        (Mode::Bits32, 0x3000, PS | P | 1 << 17, 36, true),
    ];
    for (mode, at, entry, physical_bits, reserved) in cases {
        let mut world = World::new(mode);
        world.put(at, entry);
        world.state.physical_bits = physical_bits;
        assert_eq!(world.fault(0, Access::Read), reserved.then_some(1 | RSVD), "{mode:?} {entry:#x} {physical_bits}");
    }
    for mode in [Mode::Pae, Mode::Long] {
        let mut world = World::new(mode);
        world.put(0x4000, 0x5001 | NX);
        world.state.efer.remove(Efer::NXE);
        assert_eq!(world.fault(0, Access::Execute), Some(1 | RSVD));
    }
    // A reserved bit of an entry that is not present means nothing.
    let mut world = World::new(Mode::Long);
    world.put(0x4000, !P);
    assert_eq!(world.fault(0, Access::Write), Some(2));
}

#[test]
fn accessed_and_dirty_bits() {
    for mode in MODES {
        let levels: &[u64] = if mode == Mode::Long { &[0x1000, 0x2000, 0x3000, 0x4000] } else { &[0x3000, 0x4000] };
        for access in ACCESSES {
            let mut world = World::new(mode);
            let before: Vec<u64> = levels.iter().map(|&at| world.entry(at)).collect();
            assert_eq!(world.walk(0, access), Ok(0x5000));
            for (&at, before) in levels.iter().zip(before) {
                let dirty = if access == Access::Write && at == 0x4000 { D } else { 0 };
                assert_eq!(world.entry(at), before | A | dirty, "{mode:?} {access:?} {at:#x}");
            }
        }
        // Not by an access that faults.
        let mut world = World::new(mode);
        world.put(0x4000, 0x5000 | P);
        let before = world.ram.bytes.clone();
        assert_eq!(world.fault(0, Access::Write), Some(3));
        assert!(world.ram.bytes == before);
    }
    // A large page is dirty in its own entry.
    let mut world = World::new(Mode::Bits32);
    world.put(0x3000, PS | P | RW);
    world.walk(0, Access::Write).unwrap();
    assert_eq!(world.entry(0x3000), PS | P | RW | A | D);
}

#[test]
fn tables_that_map_themselves() {
    let mut world = World::new(Mode::Long);
    world.put(0x1000 + 8 * 0x1FF, 0x1000 | P | RW);
    assert_eq!(world.walk(0xFFFF_FFFF_FFFF_F000, Access::Write), Ok(0x1000));
    assert_eq!(world.entry(0x1FF8), 0x1000 | P | RW | A | D);
    // One level of itself: the page table at 0x2000 of the PML4's slot 0.
    assert_eq!(world.walk(0xFFFF_FFFF_FFFF_F000 & !(0x1FF << 12) | 0xFFFF << 48, Access::Read), Ok(0x2000));
}

#[test]
fn entries_that_change_under_the_walk() {
    let mut world = World::new(Mode::Long);
    world.ram.meddler = Some((0x4000, 0));
    assert_eq!(world.walk(0, Access::Write), Err(WalkError::Raced));
    assert_eq!(world.entry(0x4000), 0);
    // Another processor's accessed bit is no change.
    let mut world = World::new(Mode::Long);
    world.ram.meddler = Some((0x4000, 0x5027));
    assert_eq!(world.walk(0, Access::Write), Ok(0x5000));
    assert_eq!(world.entry(0x4000), 0x5067);
}

#[test]
fn tables_outside_ram() {
    for mode in MODES {
        let mut world = World::new(mode);
        world.put(0x3000, 0x80_0000 | P | RW | US);
        assert_eq!(
            world.walk(0x3008, Access::Read),
            Err(WalkError::Unreachable { gpa: Gpa::new(0x80_0000 + [12, 24, 24][mode as usize]) })
        );
    }
    let mut world = World::new(Mode::Long);
    world.state.cr3 = 0xF_FFFF_FFFF_F000;
    assert_eq!(world.walk(0, Access::Read), Err(WalkError::Unreachable { gpa: Gpa::new(0xF_FFFF_FFFF_F000) }));
}

#[test]
fn pdptes_of_pae_paging_come_from_the_processor() {
    let mut world = World::new(Mode::Pae);
    world.state.cr3 = 0xFFFF_FFE0;
    assert_eq!(world.walk(0, Access::Read), Ok(0x5000));
    world.state.cpl = 3;
    assert_eq!(world.fault(0x4000_0000, Access::Write), Some(6));
}

#[test]
fn addresses_that_are_not_canonical() {
    let mut world = World::new(Mode::Long);
    for gva in [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63] {
        assert_eq!(world.walk(gva, Access::Read), Err(WalkError::NonCanonical));
    }
    assert_eq!(world.fault(0x7FFF_FFFF_FFFF, Access::Read), Some(0));
    assert_eq!(world.fault(0xFFFF_8000_0000_0000, Access::Read), Some(0));
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut world = World::new(Mode::Bits32);
    world.state.cr0 = Cr0::PE;
    world.state.cpl = 3;
    assert_eq!(world.walk(0x1_2345_6789, Access::Write), Ok(0x2345_6789));
}
