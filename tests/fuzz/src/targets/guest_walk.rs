//! The walk of a guest's own page tables.

use crate::Feed;
use crate::ram::Ram;
use bulkhead_arch::{Cr0, Cr4, Efer, Rflags};
use bulkhead_paging::guest::{Access, PagingState, WalkError, walk};
use bulkhead_types::{Gpa, Gva};

const TABLES: usize = 0x4000;
const ACCESSED_AND_DIRTY: u64 = 0x60;

fn state(feed: &mut Feed<'_>) -> PagingState {
    let bits = feed.u8();
    let set = |bit: u8| bits >> bit & 1 != 0;
    let mut cr4 = Cr4::empty();
    let mut efer = Efer::empty();
    cr4.set(Cr4::PAE, bits & 3 != 0);
    cr4.set(Cr4::PSE, set(2));
    cr4.set(Cr4::SMEP, set(3));
    cr4.set(Cr4::SMAP, set(4));
    efer.set(Efer::LMA | Efer::LME, bits & 3 >= 2);
    efer.set(Efer::NXE, set(5));
    let mut cr0 = Cr0::PE | Cr0::PG;
    cr0.set(Cr0::WP, set(6));
    let mut rflags = Rflags::FIXED;
    rflags.set(Rflags::AC, set(7));
    let pdpte = |feed: &mut Feed<'_>| u64::from(feed.u8() & 3) << 12 | u64::from(feed.u8() & 1);
    PagingState {
        cr0,
        cr3: u64::from(feed.u8() & 3) << 12,
        cr4,
        efer,
        pdptes: std::array::from_fn(|_| pdpte(feed)),
        rflags,
        cpl: if feed.flag() { 3 } else { 0 },
        physical_bits: [36, 40, 52, 32][usize::from(feed.u8() & 3)],
    }
}

fn entry(feed: &mut Feed<'_>) -> u64 {
    match feed.u8() {
        byte @ 0..0xF0 => {
            u64::from(feed.u8() & 7) << 12
                | 7 ^ u64::from(byte & 7) ^ u64::from(byte & 8) << 60
                | u64::from(byte & 0x10) << 3
        }
        _ => feed.u64(),
    }
}

/// Any tables, any mode, any access.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    let state = state(&mut feed);
    let gva = Gva::new(match feed.u8() {
        byte @ 0..0xF0 => {
            u64::from(byte & 7) << 39 | u64::from(feed.u8() & 7) << 30 | u64::from(feed.u16()) << 12 | 0x123
        }
        _ => feed.u64(),
    });
    let mut ram = Ram(vec![0; TABLES]);
    while !feed.is_empty() {
        let at = (usize::from(feed.u16()) % TABLES) & !7;
        ram.0[at..at + 8].copy_from_slice(&entry(&mut feed).to_le_bytes());
    }
    let results = [Access::Read, Access::Write, Access::Execute].map(|access| one(&ram, state, gva, access));
    if let (Ok(read), Ok(write)) = (results[0], results[1]) {
        assert_eq!(read, write, "a page is read where it is written");
    }
    assert!(results[1].is_err() || results[0].is_ok(), "what can be written can be read: {results:?}");
}

fn one(ram: &Ram, state: PagingState, gva: Gva, access: Access) -> Result<Gpa, WalkError> {
    let mut after = ram.clone();
    let result = walk(&mut after, &state, gva, access);
    let Ok(gpa) = result else {
        assert!(*ram == after, "a fault leaves no trace");
        if let Err(WalkError::PageFault { error }) = result {
            assert_eq!(error & 4 != 0, state.cpl == 3);
            assert_eq!(error & 2 != 0, access == Access::Write);
            assert!(error & !0x1F == 0 && (error & 8 == 0 || error & 1 != 0), "error {error:#x}");
        }
        return result;
    };
    assert_eq!(gpa.page_offset(), gva.page_offset());
    // An entry may be both a 32-bit one and half of a 64-bit one: the bits of both halves.
    let may = ACCESSED_AND_DIRTY | ACCESSED_AND_DIRTY << 32;
    let mut entries = 0;
    let parts = ram.0.chunks(512).zip(after.0.chunks(512)).filter(|(was, is)| was != is);
    for (was, is) in parts.flat_map(|(was, is)| was.chunks(8).zip(is.chunks(8))) {
        let [was, is] = [was, is].map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        assert!(was & !may == is & !may && was & !is == 0, "only accessed and dirty bits");
        entries += u32::from(was != is);
    }
    assert!(entries <= 4, "{entries} entries changed");
    let again = after.clone();
    assert_eq!(walk(&mut after, &state, gva, access), Ok(gpa), "the same again");
    assert!(again == after, "a second walk changes nothing");
    result
}
