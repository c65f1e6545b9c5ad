//! Locked instructions on memory that another processor changes between their read and their write.

mod common;

use bulkhead_arch::Gpr;
use bulkhead_emulate::{DecodeCache, Outcome, mmio};
use bulkhead_types::{Gpa, GuestMemory, MemoryError, Width};
use common::{CODE, PAGES, Ram, World};

/// Where the first page at [`PAGES`] is.
const PAGES_RAM: u64 = 0x1_0000;

/// RAM in which the other processor writes this word just before an exchange.
struct Shared {
    ram: Ram,
    other: Option<(u64, u32)>,
}

impl GuestMemory for Shared {
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), MemoryError> {
        self.ram.read(gpa, into)
    }

    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), MemoryError> {
        self.ram.write(gpa, from)
    }

    fn zero(&mut self, gpa: Gpa, bytes: u64) -> Result<(), MemoryError> {
        self.ram.zero(gpa, bytes)
    }

    fn compare_exchange(&mut self, gpa: Gpa, width: Width, old: u64, new: u64) -> Result<bool, MemoryError> {
        if let Some((at, value)) = self.other.take_if(|(at, _)| *at == gpa.as_u64()) {
            self.write(Gpa::new(at), &value.to_le_bytes())?;
        }
        self.ram.compare_exchange(gpa, width, old, new)
    }
}

/// LOCK ADD, LOCK XADD, LOCK CMPXCHG, XCHG, LOCK BTS, LOCK NOT, all of [RBX].
const CODES: [(&[u8], u32, u64); 6] = [
    (&[0xF0, 0x01, 0x0B], 107, 0),
    (&[0xF0, 0x0F, 0xC1, 0x0B], 107, 100),
    (&[0xF0, 0x0F, 0xB1, 0x0B], 7, 0),
    (&[0x87, 0x0B], 7, 100),
    (&[0xF0, 0x0F, 0xAB, 0x0B], 100 | 1 << 7, 0),
    (&[0xF0, 0xF7, 0x13], !100, 0),
];

#[test]
fn what_another_processor_wrote_is_not_overwritten() {
    for (code, result, rcx) in CODES {
        let mut world = World::bits64();
        world.put(CODE, code);
        world.put(PAGES_RAM, &55_u32.to_le_bytes());
        world.set(Gpr::Rbx, PAGES).set(Gpr::Rcx, 7).set(Gpr::Rax, 100);
        let mut memory = Shared { ram: Ram(world.ram.0.clone()), other: Some((PAGES_RAM, 100)) };
        let mut run =
            |memory: &mut Shared| mmio(&mut world.cpu, memory, &mut world.device, None, &mut DecodeCache::new());
        assert_eq!(run(&mut memory), Ok(Outcome::Again), "{code:x?}");
        assert_eq!(memory.ram.read_u32(Gpa::new(PAGES_RAM)), Ok(100), "{code:x?}");
        assert!(matches!(run(&mut memory), Ok(Outcome::Done { .. })), "{code:x?}");
        assert_eq!(memory.ram.read_u32(Gpa::new(PAGES_RAM)), Ok(result), "{code:x?}");
        assert_eq!(world.get(Gpr::Rcx), if rcx == 0 { 7 } else { rcx }, "{code:x?}");
    }
}
