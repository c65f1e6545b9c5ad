//! Page-table editing, against a model that knows pages and tables but no entries.

use crate::Feed;
use bulkhead_paging::{
    Access, ENTRIES, Ept, Format, Host, Item, Mapping, Memory, Npt, PagingError, ReadTables, Size, Tables, map,
    translate, unmap, visit,
};
use bulkhead_types::Hpa;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = 0x1000;
const ROOT: Hpa = Hpa::new(PAGE);

/// Tables side by side from [`ROOT`] on; so many can be made.
struct Frames {
    tables: Vec<[u64; ENTRIES]>,
    most: usize,
}

impl Frames {
    fn place(&self, table: Hpa) -> Result<usize, PagingError> {
        let index = (table.as_u64() / PAGE).wrapping_sub(1) as usize;
        if index < self.tables.len() { Ok(index) } else { Err(PagingError::Unreachable(table)) }
    }
}

impl ReadTables for Frames {
    fn read(&self, table: Hpa, index: usize) -> Result<u64, PagingError> {
        Ok(self.tables[self.place(table)?][index])
    }
}

impl Tables for Frames {
    fn write(&mut self, table: Hpa, index: usize, value: u64) -> Result<(), PagingError> {
        let place = self.place(table)?;
        self.tables[place][index] = value;
        Ok(())
    }

    fn allocate(&mut self) -> Result<Hpa, PagingError> {
        if self.tables.len() == self.most {
            return Err(PagingError::OutOfTables);
        }
        self.tables.push([0; ENTRIES]);
        Ok(Hpa::new(PAGE * self.tables.len() as u64))
    }
}

/// A page of the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    to: u64,
    size: Size,
    access: Access,
    memory: Memory,
}

/// What should be there.
struct Model {
    pages: BTreeMap<u64, Page>,
    /// Tables below the root: level, and the first address that they serve.
    tables: BTreeSet<(u32, u64)>,
    most: usize,
}

/// Bytes that one table of `level` serves.
const fn span(level: u32) -> u64 {
    1 << (12 + 9 * level)
}

impl Model {
    /// The page at `at`, and where it starts.
    fn page(&self, at: u64) -> Option<(u64, Page)> {
        let (&from, &page) = self.pages.range(..=at).next_back()?;
        (at - from < page.size.bytes()).then_some((from, page))
    }

    fn map(&mut self, mapping: Mapping) -> Result<(), PagingError> {
        let mut done = 0;
        while done < mapping.bytes {
            let at = mapping.from + done;
            if self.page(at).is_some() {
                return Err(PagingError::Mapped(at));
            }
            let to = mapping.to.as_u64() + done;
            let fits = |size: &Size| {
                let whole = at.is_multiple_of(size.bytes()) && to.is_multiple_of(size.bytes());
                let free = *size == Size::Page4K || !self.tables.contains(&(size.level() - 1, at));
                *size <= mapping.largest && whole && mapping.bytes - done >= size.bytes() && free
            };
            let size = [Size::Page1G, Size::Page2M, Size::Page4K].into_iter().find(fits).unwrap();
            for level in (size.level()..=3).rev() {
                let table = (level, at & !(span(level) - 1));
                if !self.tables.contains(&table) {
                    if self.tables.len() + 1 == self.most {
                        return Err(PagingError::OutOfTables);
                    }
                    self.tables.insert(table);
                }
            }
            self.pages.insert(at, Page { to, size, access: mapping.access, memory: mapping.memory });
            done += size.bytes();
        }
        Ok(())
    }

    fn unmap(&mut self, from: u64, bytes: u64) -> Result<(), PagingError> {
        let end = from + (bytes - 1);
        let mut at = from;
        loop {
            let Some((start, page)) = self.page(at).or_else(|| {
                let (&start, &page) = self.pages.range(at..=end).next()?;
                Some((start, page))
            }) else {
                return Ok(());
            };
            at = at.max(start);
            let last = start + (page.size.bytes() - 1);
            if start != at || last > end {
                return Err(PagingError::Split(at));
            }
            self.pages.remove(&start);
            if last == end {
                return Ok(());
            }
            at = last + 1;
        }
    }
}

/// What a format may refuse.
#[derive(Clone, Copy)]
struct Rules {
    write_and_execute: bool,
    upper_half: bool,
}

impl Rules {
    /// What a range is refused for, before anything is looked at.
    fn range(self, from: u64, bytes: u64) -> Result<(), PagingError> {
        if bytes == 0 || !(from | bytes).is_multiple_of(PAGE) {
            return Err(PagingError::Unaligned);
        }
        let last = from.checked_add(bytes - 1).ok_or(PagingError::OutOfRange)?;
        let lower = last < 1 << 47 || !self.upper_half && last < 1 << 48;
        let upper = self.upper_half && from >= 0xFFFF_8000_0000_0000;
        if lower || upper { Ok(()) } else { Err(PagingError::OutOfRange) }
    }

    fn check(self, mapping: &Mapping) -> Result<(), PagingError> {
        self.range(mapping.from, mapping.bytes)?;
        if !mapping.to.as_u64().is_multiple_of(PAGE) {
            return Err(PagingError::Unaligned);
        }
        if mapping.to.as_u64().checked_add(mapping.bytes).is_none_or(|end| end > 1 << 52) {
            return Err(PagingError::OutOfRange);
        }
        let access = mapping.access;
        let refused = !access.read || access.user || access.write && access.execute && !self.write_and_execute;
        if refused { Err(PagingError::Access) } else { Ok(()) }
    }
}

/// Addresses near the ends of pages, tables and the address space; lengths of a few pages of some size.
fn address(feed: &mut Feed<'_>) -> u64 {
    let near =
        [0, 1 << 21, 1 << 30, 1 << 39, (1 << 47) - (1 << 21), 0xFFFF_8000_0000_0000, 0u64.wrapping_sub(1 << 30), 0];
    match feed.u8() {
        byte @ 0..0xF8 => {
            let units = u64::from(feed.u8() & 7);
            let unit = [PAGE, 1 << 21, 1 << 30, PAGE][usize::from(byte >> 3 & 3)];
            let pages = u64::from(feed.u8() & 3) * PAGE;
            near[usize::from(byte & 7)].wrapping_add(units * unit).wrapping_sub(pages)
        }
        _ => feed.u64(),
    }
}

fn length(feed: &mut Feed<'_>) -> u64 {
    match feed.u8() {
        byte @ 0..0xFC => {
            let unit = [PAGE, PAGE, 1 << 21, 1 << 30][usize::from(byte & 3)];
            unit * u64::from(byte >> 2 & 3) + PAGE * u64::from(byte >> 6)
        }
        _ => feed.magnitude(),
    }
}

fn mapping(feed: &mut Feed<'_>) -> Mapping {
    /// Pages of a range that can only be mapped by 4 KiB: enough to cross from one table into the next.
    const MOST_SMALL: u64 = 12;
    let bits = feed.u8();
    let flag = |bit: u8| bits >> bit & 1 != 0;
    // Mostly what is allowed.
    let read = bits >> 4 != 0;
    let (from, to, bytes) = (address(feed), address(feed), length(feed));
    let largest = [Size::Page1G, Size::Page2M, Size::Page4K][usize::from(feed.below(3))];
    let small = largest == Size::Page4K || (from ^ to) & (Size::Page2M.bytes() - 1) != 0;
    Mapping {
        from,
        to: Hpa::new(to),
        bytes: if small && from % PAGE == 0 { bytes.min(MOST_SMALL * PAGE) } else { bytes },
        access: Access { read, write: flag(0), execute: flag(1), user: !read && flag(2) },
        memory: if flag(2) { Memory::Uncached } else { Memory::WriteBack },
        largest,
    }
}

fn check<F: Format>(feed: &mut Feed<'_>, rules: Rules) {
    let most = 2 + usize::from(feed.u8() & 7);
    let mut frames = Frames { tables: vec![[0; ENTRIES]], most };
    let mut model = Model { pages: BTreeMap::new(), tables: BTreeSet::new(), most };
    for _ in 0..8 {
        if feed.is_empty() {
            break;
        }
        match feed.u8() & 3 {
            0 | 1 => {
                let mapping = mapping(feed);
                let want = rules.check(&mapping).and_then(|()| model.map(mapping));
                assert_eq!(map::<F>(&mut frames, ROOT, mapping), want, "{mapping:x?}");
            }
            2 => {
                let (from, bytes) = (address(feed), length(feed));
                let want = rules.range(from, bytes).and_then(|()| model.unmap(from, bytes));
                assert_eq!(unmap::<F>(&mut frames, ROOT, from, bytes), want, "unmap {bytes:#x} from {from:#x}");
            }
            _ => {
                let at = address(feed).wrapping_add(feed.u16().into());
                let found = translate::<F>(&frames, ROOT, at);
                let want = model.page(at).map(|(from, page)| (page.to + (at - from), page));
                assert_eq!(
                    found.map(|t| (t.hpa.as_u64(), t.size, t.access, t.memory)),
                    want.map(|(hpa, page)| { (hpa, page.size, page.access, page.memory) }),
                    "{at:#x}"
                );
            }
        }
        assert_eq!(frames.tables.len() - 1, model.tables.len(), "a table is made where one is missing, and only there");
    }
    let mut seen = BTreeSet::new();
    let mut pages = model.pages.iter();
    visit::<F>(&frames, ROOT, &mut |at, item| {
        match item {
            Item::Table { table, .. } => assert!(seen.insert(table), "{table} is used twice"),
            Item::Leaf(leaf) => {
                let (&from, &page) = pages.next().expect("only what was mapped is there");
                let found = Page { to: leaf.page.as_u64(), size: leaf.size, access: leaf.access, memory: leaf.memory };
                assert_eq!((at, found), (from, page));
            }
            other => panic!("{other:?}"),
        }
        true
    });
    assert_eq!(pages.next(), None, "all that was mapped is there");
    assert_eq!(seen.len(), frames.tables.len(), "each table is in use");
}

/// A few edits in one of the three formats.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    match feed.below(3) {
        0 => check::<Host>(&mut feed, Rules { write_and_execute: false, upper_half: true }),
        1 => check::<Ept>(&mut feed, Rules { write_and_execute: true, upper_half: false }),
        _ => check::<Npt>(&mut feed, Rules { write_and_execute: true, upper_half: false }),
    }
}
