//! Properties of both formats, against a model; and what the manual says of single entries.

extern crate std;

use crate::{
    Access, ENTRIES, Entry, Ept, Format, Host, Item, Leaf, Mapping, Memory, Npt, PagingError, ReadTables, Size, Tables,
    map, tables_needed, translate, unmap, visit,
};
use bulkhead_types::Hpa;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const ROOT: Hpa = Hpa::new(0x1000);
const PAGE: u64 = 0x1000;
const MIB2: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Tables in a map by address; so many more can be allocated.
struct Memories {
    tables: BTreeMap<u64, [u64; ENTRIES]>,
    left: u64,
}

impl Memories {
    fn new(left: u64) -> Self {
        Self { tables: BTreeMap::from([(ROOT.as_u64(), [0; ENTRIES])]), left }
    }

    fn used(&self) -> u64 {
        self.tables.len() as u64 - 1
    }
}

impl ReadTables for Memories {
    fn read(&self, table: Hpa, index: usize) -> Result<u64, PagingError> {
        self.tables.get(&table.as_u64()).map(|t| t[index]).ok_or(PagingError::Unreachable(table))
    }
}

impl Tables for Memories {
    fn write(&mut self, table: Hpa, index: usize, value: u64) -> Result<(), PagingError> {
        let entries = self.tables.get_mut(&table.as_u64()).ok_or(PagingError::Unreachable(table))?;
        entries[index] = value;
        Ok(())
    }

    fn allocate(&mut self) -> Result<Hpa, PagingError> {
        self.left = self.left.checked_sub(1).ok_or(PagingError::OutOfTables)?;
        let table = ROOT.as_u64() + PAGE * self.tables.len() as u64;
        self.tables.insert(table, [0; ENTRIES]);
        Ok(Hpa::new(table))
    }
}

fn mapping(from: u64, to: u64, bytes: u64, largest: Size) -> Mapping {
    Mapping { from, to: Hpa::new(to), bytes, access: Access::READ_WRITE, memory: Memory::WriteBack, largest }
}

/// Every leaf that a walk finds: first address, page, size.
fn leaves<F: Format>(tables: &Memories) -> Vec<(u64, u64, Size)> {
    let mut found = Vec::new();
    visit::<F>(tables, ROOT, &mut |from, item| {
        match item {
            Item::Leaf(leaf) => found.push((from, leaf.page.as_u64(), leaf.size)),
            Item::Table { .. } => {}
            other => panic!("{other:?}"),
        }
        true
    });
    found
}

#[test]
fn pages_are_as_large_as_alignment_allows() {
    let mut tables = Memories::new(100);
    // From one page below 1 GiB to one page past 2 GiB + 2 MiB.
    let range = mapping(GIB - PAGE, 5 * GIB - PAGE, GIB + MIB2 + 2 * PAGE, Size::Page1G);
    map::<Ept>(&mut tables, ROOT, range).unwrap();
    assert_eq!(
        leaves::<Ept>(&tables),
        [
            (GIB - PAGE, 5 * GIB - PAGE, Size::Page4K),
            (GIB, 5 * GIB, Size::Page1G),
            (2 * GIB, 6 * GIB, Size::Page2M),
            (2 * GIB + MIB2, 6 * GIB + MIB2, Size::Page4K),
        ]
    );
}

#[test]
fn a_table_that_is_there_is_filled_rather_than_replaced() {
    let mut tables = Memories::new(100);
    map::<Host>(&mut tables, ROOT, mapping(MIB2, 0, PAGE, Size::Page4K)).unwrap();
    unmap::<Host>(&mut tables, ROOT, MIB2, PAGE).unwrap();
    map::<Host>(&mut tables, ROOT, mapping(MIB2, MIB2, MIB2, Size::Page2M)).unwrap();
    assert_eq!(leaves::<Host>(&tables).len(), 512);
    assert_eq!(translate::<Host>(&tables, ROOT, 2 * MIB2 - 1).unwrap().hpa, Hpa::new(2 * MIB2 - 1));
}

#[test]
fn a_large_page_is_not_split() {
    let mut tables = Memories::new(100);
    map::<Ept>(&mut tables, ROOT, mapping(MIB2, MIB2, MIB2, Size::Page2M)).unwrap();
    assert_eq!(unmap::<Ept>(&mut tables, ROOT, MIB2, PAGE), Err(PagingError::Split(MIB2)));
    assert_eq!(unmap::<Ept>(&mut tables, ROOT, MIB2 + PAGE, MIB2), Err(PagingError::Split(MIB2 + PAGE)));
    let over = mapping(MIB2 + PAGE, 0, PAGE, Size::Page4K);
    assert_eq!(map::<Ept>(&mut tables, ROOT, over), Err(PagingError::Mapped(MIB2 + PAGE)));
    assert_eq!(unmap::<Ept>(&mut tables, ROOT, 0, GIB), Ok(()));
    assert_eq!(leaves::<Ept>(&tables), []);
}

#[test]
fn wrong_ranges_are_refused() {
    fn refused<F: Format>(from: u64, to: u64, bytes: u64) -> PagingError {
        let mut tables = Memories::new(100);
        let error = map::<F>(&mut tables, ROOT, mapping(from, to, bytes, Size::Page1G)).unwrap_err();
        assert_eq!(tables.used(), 0);
        error
    }
    assert_eq!(refused::<Host>(1, 0, PAGE), PagingError::Unaligned);
    assert_eq!(refused::<Host>(0, 1, PAGE), PagingError::Unaligned);
    assert_eq!(refused::<Host>(0, 0, 0), PagingError::Unaligned);
    assert_eq!(refused::<Host>(0, 0, PAGE + 1), PagingError::Unaligned);
    assert_eq!(refused::<Host>(1 << 47, 0, PAGE), PagingError::OutOfRange, "in the hole");
    assert_eq!(refused::<Host>((1 << 47) - PAGE, 0, 2 * PAGE), PagingError::OutOfRange, "into the hole");
    assert_eq!(refused::<Host>(0, 0, 0u64.wrapping_sub(PAGE)), PagingError::OutOfRange, "across the hole");
    assert_eq!(refused::<Host>(0u64.wrapping_sub(PAGE), 0, 2 * PAGE), PagingError::OutOfRange, "past the end");
    assert_eq!(refused::<Host>(0, (1 << 52) - PAGE, 2 * PAGE), PagingError::OutOfRange, "past physical memory");
    assert_eq!(refused::<Ept>(1 << 48, 0, PAGE), PagingError::OutOfRange);
    assert_eq!(refused::<Ept>((1 << 48) - PAGE, 0, 2 * PAGE), PagingError::OutOfRange);
}

#[test]
fn the_last_page_of_each_space() {
    let mut tables = Memories::new(100);
    map::<Host>(&mut tables, ROOT, mapping(0u64.wrapping_sub(PAGE), 0, PAGE, Size::Page4K)).unwrap();
    assert_eq!(leaves::<Host>(&tables), [(0u64.wrapping_sub(PAGE), 0, Size::Page4K)]);
    assert_eq!(translate::<Host>(&tables, ROOT, u64::MAX).unwrap().hpa, Hpa::new(0xFFF));
    assert_eq!(translate::<Host>(&tables, ROOT, (1 << 48) - 1), None, "not canonical");
    let mut tables = Memories::new(100);
    map::<Ept>(&mut tables, ROOT, mapping((1 << 48) - PAGE, 0, PAGE, Size::Page4K)).unwrap();
    assert_eq!(leaves::<Ept>(&tables), [((1 << 48) - PAGE, 0, Size::Page4K)]);
}

#[test]
fn no_host_page_is_writable_and_executable_or_for_users() {
    let user = Access { user: true, ..Access::READ };
    let none = Access { read: false, ..Access::READ };
    for (host, access) in [(true, Access::ALL), (true, user), (true, none), (false, user), (false, none)] {
        let mut tables = Memories::new(100);
        let range = Mapping { access, ..mapping(0, 0, PAGE, Size::Page4K) };
        let done = if host { map::<Host>(&mut tables, ROOT, range) } else { map::<Ept>(&mut tables, ROOT, range) };
        assert_eq!(done, Err(PagingError::Access), "{access:?}");
        assert_eq!(tables.used(), 0, "no table is made for nothing");
    }
}

#[test]
fn running_out_of_tables_is_an_error() {
    let mut tables = Memories::new(2);
    assert_eq!(map::<Ept>(&mut tables, ROOT, mapping(0, 0, PAGE, Size::Page4K)), Err(PagingError::OutOfTables));
    assert_eq!(leaves::<Ept>(&tables), []);
}

/// SDM vol. 3A 4.5.4, tables 4-15 to 4-20.
#[test]
fn host_entries_by_the_manual() {
    let leaf = |page, size, access, memory| Host::leaf(Leaf { page: Hpa::new(page), size, access, memory });
    let text = leaf(0x5000, Size::Page4K, Access::READ_EXECUTE, Memory::WriteBack);
    assert_eq!(text, Ok(0x5061), "present, accessed, dirty");
    let data = leaf(MIB2, Size::Page2M, Access::READ_WRITE, Memory::WriteBack);
    assert_eq!(data, Ok(1 << 63 | MIB2 | 0xE3), "no execute, large, writable");
    let device = leaf(0xFEE0_0000, Size::Page4K, Access::READ_WRITE, Memory::Uncached);
    assert_eq!(device, Ok(1 << 63 | 0xFEE0_007B), "PCD and PWT");
    assert_eq!(Host::decode(0x7E, 1), Entry::Absent);
    assert_eq!(Host::decode(0x81, 4), Entry::Malformed, "no pages of 512 GiB");
    assert_eq!(Host::decode(GIB | MIB2 | 0x81, 3), Entry::Malformed, "reserved address bits");
    assert_eq!(Host::decode(0x1081, 2), Entry::Malformed, "PAT bit of a large page");
    let access = Access { user: true, ..Access::ALL };
    assert_eq!(Host::decode(0x7007, 2), Entry::Table { table: Hpa::new(0x7000), allows: access });
}

/// SDM vol. 3C 29.3.2 and 29.3.3.1, tables 29-1 to 29-6.
#[test]
fn ept_entries_by_the_manual() {
    let leaf = |page, size, access, memory| Ept::leaf(Leaf { page: Hpa::new(page), size, access, memory });
    assert_eq!(leaf(0x5000, Size::Page4K, Access::ALL, Memory::WriteBack), Ok(0x5037));
    assert_eq!(leaf(GIB, Size::Page1G, Access::READ_WRITE, Memory::Uncached), Ok(GIB | 0x83));
    assert_eq!(Ept::decode(0xF_FFFF_F000, 1), Entry::Absent);
    assert_eq!(Ept::decode(0x5032, 1), Entry::Malformed, "writable but not readable");
    assert_eq!(Ept::decode(0x5034, 1), Entry::Malformed, "execute-only");
    assert_eq!(Ept::decode(0x5017, 1), Entry::Malformed, "memory type 2");
    assert_eq!(Ept::decode(0x500F, 2), Entry::Malformed, "memory type in a table's entry");
    assert_eq!(Ept::decode(0x5087, 4), Entry::Malformed, "no pages of 512 GiB");
    assert_eq!(Ept::decode(MIB2 | 0x1000 | 0xB7, 2), Entry::Malformed, "reserved address bits");
    assert_eq!(
        Ept::decode(0x5307, 2),
        Entry::Table { table: Hpa::new(0x5000), allows: Access::ALL },
        "accessed, dirty"
    );
}

#[test]
fn a_walk_takes_what_all_levels_allow() {
    let mut tables = Memories::new(100);
    map::<Ept>(&mut tables, ROOT, mapping(0, 0, PAGE, Size::Page4K)).unwrap();
    let entry = tables.read(ROOT, 0).unwrap();
    tables.write(ROOT, 0, entry & !2).unwrap();
    assert_eq!(translate::<Ept>(&tables, ROOT, 0).unwrap().access, Access::READ);
}

#[test]
fn a_walk_of_malformed_tables_ends() {
    let mut tables = Memories::new(100);
    tables.write(ROOT, 7, Ept::table(ROOT)).unwrap();
    tables.write(ROOT, 8, Ept::table(Hpa::new(0xBAD_0000))).unwrap();
    tables.write(ROOT, 9, 2).unwrap();
    let (mut seen, mut malformed, mut unreachable) = (0, 0, 0);
    visit::<Ept>(&tables, ROOT, &mut |_, item| {
        match item {
            Item::Table { .. } => seen += 1,
            Item::Malformed { .. } => malformed += 1,
            Item::Unreachable { .. } => unreachable += 1,
            Item::Leaf(_) => {}
        }
        true
    });
    // The root is read at each of the four levels; at the lowest its entries are pages, not tables.
    assert_eq!((seen, malformed, unreachable), (7, 4, 3));
}

proptest! {
    #[test]
    fn tables_needed_is_exact(from in 0u64..(1 << 21), to in 0u64..64, pages in 1u64..(1 << 20), size in 0usize..3) {
        let largest = [Size::Page4K, Size::Page2M, Size::Page1G][size];
        // The same offset within the largest page, and not too many small ones to map.
        let (from, bytes) = (from * PAGE, if size == 0 { pages % 4096 + 1 } else { pages } * PAGE);
        let mut tables = Memories::new(u64::MAX);
        map::<Ept>(&mut tables, ROOT, mapping(from, to * GIB + from % GIB, bytes, largest)).unwrap();
        prop_assert_eq!(tables_needed(from, bytes, largest), tables.used());
    }

    #[test]
    fn tables_needed_does_not_overflow(from: u64, bytes: u64, size in 0usize..3) {
        let _ = tables_needed(from, bytes, [Size::Page4K, Size::Page2M, Size::Page1G][size]);
    }

    #[test]
    fn any_entry_decodes_and_what_is_written_reads_back(entry: u64, level in 1u32..=4) {
        if let Entry::Leaf(leaf) = Host::decode(entry, level) {
            if let Ok(written) = Host::leaf(leaf) {
                prop_assert_eq!(Host::decode(written, level), Entry::Leaf(leaf));
            } else {
                prop_assert!(leaf.access.user || leaf.access.write && leaf.access.execute);
            }
        }
        if let Entry::Leaf(leaf) = Ept::decode(entry, level) {
            prop_assert_eq!(Ept::decode(Ept::leaf(leaf).unwrap(), level), Entry::Leaf(leaf));
        }
    }
}

/// One step of a random history: places and sizes near large-page boundaries.
#[derive(Clone, Copy, Debug)]
struct Step {
    map: bool,
    from: u64,
    to: u64,
    pages: u64,
    largest: Size,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let near = |blocks: u64| (0..blocks, -3i64..4).prop_map(|(b, p)| (b * 512).saturating_add_signed(p) * PAGE);
    let pages = prop_oneof![1u64..4, Just(512), 509u64..516, Just(1024)];
    let largest = prop_oneof![Just(Size::Page4K), Just(Size::Page2M), Just(Size::Page1G)];
    let step = (any::<bool>(), near(6), near(6), pages, largest).prop_map(|(map, from, to, pages, largest)| Step {
        map,
        from,
        to,
        pages,
        largest,
    });
    proptest::collection::vec(step, 1..24)
}

/// The model: page number to page number; and whether a large page is in the way of an unmapping is asked of the tables.
fn history<F: Format>(base: u64, steps: &[Step]) {
    let mut tables = Memories::new(u64::MAX);
    let mut model = BTreeMap::new();
    for step in steps {
        let from = base + step.from;
        let pages = (0..step.pages).map(|i| (from + i * PAGE, step.to + i * PAGE));
        if step.map {
            let expected = pages.clone().find(|(at, _)| model.contains_key(at)).map(|(at, _)| PagingError::Mapped(at));
            let done = map::<F>(&mut tables, ROOT, mapping(from, step.to, step.pages * PAGE, step.largest));
            assert_eq!(done.err(), expected);
            model.extend(pages.take_while(|(at, _)| expected.is_none_or(|e| e != PagingError::Mapped(*at))));
        } else {
            let before = tables.tables.clone();
            match unmap::<F>(&mut tables, ROOT, from, step.pages * PAGE) {
                Ok(()) => model.retain(|at, _| !(from..from + step.pages * PAGE).contains(at)),
                Err(PagingError::Split(at)) => {
                    let page = translate::<F>(&tables, ROOT, at).unwrap();
                    let start = at & !(page.size.bytes() - 1);
                    assert!(start < from || start + page.size.bytes() > from + step.pages * PAGE, "it sticks out");
                    tables.tables = before;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    let mut found = BTreeMap::new();
    for (from, page, size) in leaves::<F>(&tables) {
        assert_eq!((from | page) % size.bytes(), 0);
        found.extend((0..size.bytes() / PAGE).map(|i| (from + i * PAGE, page + i * PAGE)));
    }
    assert_eq!(found, model);
    for at in (0..7 * 512).map(|page| base + page * PAGE + 5) {
        let expected = model.get(&(at - 5)).map(|to| Hpa::new(to + 5));
        assert_eq!(translate::<F>(&tables, ROOT, at).map(|t| t.hpa), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn host_tables_agree_with_a_map(steps in steps()) {
        history::<Host>(0xFFFF_8000_4000_0000, &steps);
    }

    #[test]
    fn ept_agrees_with_a_map(steps in steps()) {
        history::<Ept>(GIB - 2 * MIB2, &steps);
    }
}

#[test]
fn npt_is_the_hosts_format_for_user_code() {
    let leaf = |page, size, access, memory| Npt::leaf(Leaf { page: Hpa::new(page), size, access, memory });
    assert_eq!(leaf(0x5000, Size::Page4K, Access::ALL, Memory::WriteBack), Ok(0x5067));
    assert_eq!(leaf(MIB2, Size::Page2M, Access::READ_WRITE, Memory::WriteBack), Ok(1 << 63 | MIB2 | 0xE7));
    assert_eq!(
        leaf(0, Size::Page4K, Access { user: true, ..Access::READ }, Memory::WriteBack),
        Err(PagingError::Access)
    );
    assert_eq!(Npt::table(Hpa::new(0x7000)), 0x7027);
    assert_eq!(Npt::decode(0x5063, 1), Entry::Malformed, "not for user code: out of every guest's reach");
    assert_eq!(Npt::decode(0x5066, 1), Entry::Absent);
    let decoded = Npt::decode(0x5067, 1);
    assert!(matches!(decoded, Entry::Leaf(Leaf { access: Access::ALL, .. })), "{decoded:?}");
}

#[test]
fn npt_maps_and_unmaps_as_ept() {
    let mut tables = Memories::new(8);
    map::<Npt>(&mut tables, ROOT, mapping(MIB2, MIB2, MIB2 + PAGE, Size::Page2M)).unwrap();
    assert_eq!(leaves::<Npt>(&tables), [(MIB2, MIB2, Size::Page2M), (2 * MIB2, 2 * MIB2, Size::Page4K)]);
    unmap::<Npt>(&mut tables, ROOT, 2 * MIB2, PAGE).unwrap();
    assert_eq!(leaves::<Npt>(&tables), [(MIB2, MIB2, Size::Page2M)]);
}
