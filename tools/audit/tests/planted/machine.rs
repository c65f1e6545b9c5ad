//! A small machine, laid out as the hypervisor lays out its own, as a dump.
//!
//! Three guests; guests 1 and 2 have a channel. Tables are written here by hand, entry by entry.

use bulkhead_audit::{Dump, Expected, ExpectedGuest, Format, Image, Report, Secret, audit};

const FRAMES: usize = 1024;
pub const CODE_AT: u64 = 0xFFFF_FFFF_8020_0000;
const FRAME_TABLE: u64 = 0xFFFF_FF80_0000_0000;
pub const WINDOW: u64 = 0xFFFF_8000_0000_0000;
const TABLES_AT: u64 = 0xFFFF_8000_4000_0000;
pub const RAM_AT: u64 = 0xFFFF_8080_0000_0000;
pub const CHANNEL_AT: u64 = 0xFFFF_8100_0000_0000;
pub const PAGES_OF_RAM: u64 = 8;
pub const RW: u64 = 1 << 63 | 3;
pub const RX: u64 = 1;

pub const VARIABLES: u32 = 0x12 << 16;
pub const FREE: u32 = 3 << 16;
pub const RAM: u32 = 0x20 << 16;
const TABLES: u32 = 0x21 << 16;
pub const STATE: u32 = 0x22 << 16;
pub const CHANNEL: u32 = 0x30 << 16;

pub struct Guest {
    pub root: u64,
    pub nested: u64,
    pub ram: u64,
    pub control: u64,
}

pub struct Machine {
    pub format: Format,
    pub memory: Vec<u8>,
    next: u64,
    owners: Vec<u32>,
    frame_table: u64,
    pub code: u64,
    pub variables: u64,
    pub channel: u64,
    pub free: u64,
    pub guests: Vec<Guest>,
}

impl Machine {
    pub fn new(format: Format) -> Self {
        let mut machine = Self {
            format,
            memory: vec![0; FRAMES * 4096],
            next: 0x10_0000,
            owners: vec![FREE; FRAMES],
            frame_table: 0,
            code: 0,
            variables: 0,
            channel: 0,
            free: 0,
            guests: Vec::new(),
        };
        machine.frame_table = machine.take(0x14 << 16, 1);
        machine.code = machine.take(0x10 << 16, 1);
        machine.variables = machine.take(VARIABLES, 1);
        machine.channel = machine.take(CHANNEL | 2 << 8 | 1, 1);
        let at = usize::try_from(machine.code).unwrap();
        machine.memory[at..at + 4096].copy_from_slice(&code());
        let first = machine.take(0x13 << 16, 1);
        let tables = 0x13 << 16;
        machine.map(first, Format::Host, CODE_AT, machine.code, RX, tables);
        machine.map(first, Format::Host, CODE_AT + 4096, machine.variables, RW, tables);
        machine.map(first, Format::Host, FRAME_TABLE, machine.frame_table, RW, tables);
        let shared = machine.word(first + 511 * 8);
        for number in 1..=3 {
            machine.add_guest(number, shared);
        }
        machine.map_tables();
        machine.free = 0x3F_0000;
        machine
    }

    fn add_guest(&mut self, number: u32, shared: u64) {
        let root = self.take(TABLES | number, 1);
        let nested = self.take(TABLES | number, 1);
        let (control, ram) = (self.take(STATE | number, 1), self.take(RAM | number, PAGES_OF_RAM));
        self.set(root + 511 * 8, shared);
        self.map(root, Format::Host, WINDOW, control, RW, TABLES | number);
        for page in 0..PAGES_OF_RAM {
            self.map(root, Format::Host, RAM_AT + page * 4096, ram + page * 4096, RW, TABLES | number);
            let nested_access = if self.format == Format::Ept { 0x37 } else { 7 };
            self.map(nested, self.format, page * 4096, ram + page * 4096, nested_access, TABLES | number);
        }
        if number < 3 {
            self.map(root, Format::Host, CHANNEL_AT, self.channel, RW, TABLES | number);
        }
        match self.format {
            Format::Ept => self.set(control + 0x128, nested | 0x5E),
            _ => {
                for (offset, value) in [(0x10, 1), (0x58, 1), (0x90, 1), (0xB0, nested), (0x4D0, 0x1000), (0x558, 0x11)]
                {
                    self.set(control + offset, value);
                }
            }
        }
        self.guests.push(Guest { root, nested, ram, control });
    }

    /// Maps each guest's tables in its own compartment, as the hypervisor does; that may take a table more.
    fn map_tables(&mut self) {
        for guest in [0, 1, 2, 0, 1, 2] {
            let owner = TABLES | u32::try_from(guest + 1).unwrap();
            for frame in (0..self.next).step_by(4096) {
                if self.owners[usize::try_from(frame / 4096).unwrap()] == owner {
                    self.map_for(guest, Format::Host, TABLES_AT + frame, frame, RW);
                }
            }
        }
    }

    /// Takes frames for an owner.
    pub fn take(&mut self, owner: u32, count: u64) -> u64 {
        let start = self.next;
        self.next += count * 4096;
        for frame in (start..self.next).step_by(4096) {
            self.own(frame, owner);
        }
        start
    }

    /// Says in the frame table whose a frame is.
    pub fn own(&mut self, frame: u64, owner: u32) {
        self.owners[usize::try_from(frame / 4096).unwrap()] = owner;
    }

    pub fn word(&self, at: u64) -> u64 {
        let at = usize::try_from(at).unwrap();
        u64::from_le_bytes(self.memory[at..at + 8].try_into().unwrap())
    }

    pub fn set(&mut self, at: u64, value: u64) {
        let at = usize::try_from(at).unwrap();
        self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Maps a page; tables that are missing are `owner`'s.
    pub fn map(&mut self, root: u64, format: Format, at: u64, frame: u64, access: u64, owner: u32) {
        let mut table = root;
        for level in (2..=4).rev() {
            let slot = table + ((at >> (12 + 9 * (level - 1))) & 511) * 8;
            if self.word(slot) == 0 {
                let new = self.take(owner, 1);
                self.set(slot, new | if format == Format::Npt || format == Format::Ept { 7 } else { 3 });
            }
            table = self.word(slot) & 0x000F_FFFF_FFFF_F000;
        }
        self.set(table + ((at >> 12) & 511) * 8, frame | access);
    }

    /// The guest's table for its own use, one of whose frames `map` may add.
    pub fn map_for(&mut self, guest: usize, format: Format, at: u64, frame: u64, access: u64) {
        let number = u32::try_from(guest + 1).unwrap();
        let root = if format == Format::Host { self.guests[guest].root } else { self.guests[guest].nested };
        self.map(root, format, at, frame, access, TABLES | number);
    }

    /// The audit of this machine.
    pub fn audit(mut self, secrets: &[Secret]) -> Report {
        self.map_tables();
        for (frame, owner) in (0..).zip(self.owners.clone()) {
            let at = usize::try_from(self.frame_table).unwrap() + frame * 4;
            self.memory[at..at + 4].copy_from_slice(&owner.to_le_bytes());
        }
        let guest = |name: &str| ExpectedGuest { name: name.to_owned(), memory: PAGES_OF_RAM * 4096 };
        let expected = Expected { guests: ["one", "two", "three"].map(guest).to_vec(), channels: vec![(1, 2)] };
        let root = self.guests[0].root;
        let dump = Dump::new(core_file(&self.memory, root)).unwrap();
        let image = Image::new(&program(CODE_AT, &code())).unwrap();
        audit(&dump, &image, &expected, secrets).unwrap()
    }
}

fn code() -> Vec<u8> {
    (0..4096_u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

/// An ELF with one segment of code.
pub fn program(address: u64, code: &[u8]) -> Vec<u8> {
    elf(2, &[(1, 5, address, code)])
}

/// An ELF core of memory from address 0 on and one processor.
fn core_file(memory: &[u8], cr3: u64) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [5_u32, 440, 0] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"QEMU\0\0\0\0");
    let mut cpu = vec![0; 440];
    cpu[416..424].copy_from_slice(&cr3.to_le_bytes());
    note.extend(cpu);
    elf(4, &[(4, 0, 0, &note), (1, 7, 0, memory)])
}

fn elf(kind: u16, segments: &[(u32, u32, u64, &[u8])]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..18].copy_from_slice(&kind.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    file[56..58].copy_from_slice(&u16::try_from(segments.len()).unwrap().to_le_bytes());
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, flags, address, content) in segments {
        let bytes = content.len() as u64;
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [offset, *address, *address, bytes, bytes, 4096] {
            file.extend(word.to_le_bytes());
        }
        offset += bytes;
    }
    segments.iter().for_each(|(_, _, _, content)| file.extend(*content));
    file
}
