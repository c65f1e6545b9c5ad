//! What a guest may write to a register depends on its processor.
#![allow(dead_code, reason = "what is in common is not all used here")]

mod common;

use bulkhead_arch::msr::APIC_BASE;
use bulkhead_core::Event;
use common::{Bench, Step};

/// SDM vol. 3A 11.4.4 "Local APIC Status and Location": bits from MAXPHYADDR on are reserved.
#[test]
fn the_local_apics_page_has_an_address_of_the_processors_width() {
    // This host tells no width: 32 bits.
    const HIGHEST: u64 = 0xFFFF_FD00;
    for (value, refused) in [(HIGHEST, false), (1 << 32 | HIGHEST, true), (1 << 51 | HIGHEST, true)] {
        let mut bench = Bench::new(&[Step::Write(APIC_BASE, value), Step::Read(APIC_BASE)]);
        bench.run(10_000);
        let kept = bench.cpu.vcpu.values == [value];
        let faults = bench.cpu.vcpu.delivered.iter().any(|&(_, event)| event == Event::GP);
        assert_eq!((kept, faults), (!refused, refused), "{value:#x}");
    }
}
