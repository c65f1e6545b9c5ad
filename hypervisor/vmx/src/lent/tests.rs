use super::{Lent, highest};
use crate::fake::{FakeProcessor, region};
use crate::fields::{self as field, Fields};
use bulkhead_core::Requests;
use bulkhead_hw::region::Region;
use proptest::prelude::{any, proptest};

/// Whether an MSR of the first range is open for reads, and for writes.
fn is_open(bitmap: &Region, index: usize) -> (bool, bool) {
    let open = |base: usize| bitmap.load(base + index / 8, 1) >> (index % 8) & 1 == 0;
    (open(0), open(0x800))
}

struct Bench {
    lent: Lent,
    vmcs: FakeProcessor,
    bitmap: Region,
}

/// Lent with these registers.
fn begun(register: impl Fn(u8) -> u32) -> Bench {
    let mut bench = Bench { lent: Lent::new(region(1)), vmcs: FakeProcessor::default(), bitmap: region(2) };
    bench.bitmap.fill(0xFF);
    bench.lent.begin(&mut bench.vmcs, &mut bench.bitmap, &register).unwrap();
    bench
}

impl Bench {
    fn request(&mut self, vectors: [u64; 4], level: [u64; 4], accepts: bool) {
        let requests = Requests { vectors, level, accepts };
        self.lent.request(&mut self.vmcs, &mut self.bitmap, &requests).unwrap();
    }

    fn status(&self) -> u16 {
        self.vmcs.get(field::INTERRUPT_STATUS).unwrap()
    }
}

/// SDM vol. 3C 30.5: what of 800H to 8FFH is virtualized with the controls that are used. All else would be the host's.
#[test]
fn no_msr_is_open_that_is_not_virtualized() {
    let mut bench = begun(|_| 0);
    bench.request([0; 4], [0; 4], true);
    for index in 0..0x2000 {
        let reads = [0x802, 0x803, 0x808, 0x80A, 0x80D].contains(&index) || (0x810..0x828).contains(&index);
        let writes = [0x808, 0x80B, 0x83F].contains(&index);
        assert_eq!(is_open(&bench.bitmap, index), (reads, writes), "{index:#x}");
    }
    bench.request([0; 4], [0; 4], false);
    assert_eq!(is_open(&bench.bitmap, 0x83F), (false, false), "an interrupt that is not accepted");
    assert!(bench.lent.end(&mut bench.bitmap));
    assert!((0..0x2000).all(|index| is_open(&bench.bitmap, index) == (false, false)));
    assert!(!bench.lent.end(&mut bench.bitmap));
}

#[test]
fn what_is_in_service_and_the_task_priority_go_along() {
    // Vectors 0x31 and 0xA5 are in service.
    let mut bench = begun(|register| match register {
        0x08 => 0x27,
        0x11 => 1 << 17,
        0x15 => 1 << 5,
        0x10..0x18 => 0,
        other => u32::from(other) << 8,
    });
    assert_eq!(bench.status(), 0xA500);
    assert_eq!(bench.lent.page.load(0x80, 4), 0x27);
    assert_eq!(bench.lent.page.load(0x150, 8), 1 << 5);
    assert_eq!(bench.lent.page.load(0x200, 4), 0, "IRR begins empty");
    assert_eq!(bench.lent.page.load(0xF0, 4), 0, "SVR is not lent");
    bench.request([0, 0, 1 << 0x2F, 0], [0; 4], true);
    assert_eq!(bench.status(), 0xA5AF);
    assert!(!bench.lent.has_interrupt(&bench.vmcs), "of the class that is in service");
    bench.request([0, 0, 1 << 0x30, 0], [0; 4], true);
    assert!(bench.lent.has_interrupt(&bench.vmcs));
    bench.lent.page.store(0x80, 4, 0xB0);
    assert!(!bench.lent.has_interrupt(&bench.vmcs), "below the task priority");
}

#[test]
fn the_end_of_level_triggered_ones_exits() {
    let mut bench = begun(|_| 0);
    bench.request([1 << 0x30, 0, 0, 0], [1 << 0x30, 0, 0, 1 << 63], true);
    let exits = [field::EOI_EXIT0, field::EOI_EXIT1, field::EOI_EXIT2, field::EOI_EXIT3];
    assert_eq!(exits.map(|field| bench.vmcs.get(field).unwrap()), [1 << 0x30, 0, 0, 1 << 63]);
    assert_eq!((bench.lent.page.load(0x190, 4), bench.lent.page.load(0x1F0, 4)), (1 << 16, 1 << 31));
    let writes = bench.vmcs.writes;
    bench.request([0; 4], [1 << 0x30, 0, 0, 1 << 63], true);
    assert_eq!(bench.vmcs.writes, writes, "nothing new, nothing written");
    // A new life of the local APIC forgets them.
    bench.lent.begin(&mut bench.vmcs, &mut bench.bitmap, &|_| 0).unwrap();
    bench.request([0; 4], [0; 4], true);
    assert_eq!(exits.map(|field| bench.vmcs.get(field).unwrap()), [0; 4]);
}

proptest! {
    #[test]
    fn requests_add_up(first in any::<[u64; 4]>(), second in any::<[u64; 4]>()) {
        let mut bench = begun(|_| 0);
        bench.request(first, [0; 4], true);
        bench.request(second, [0; 4], true);
        let all: [u64; 4] = core::array::from_fn(|index| first[index] | second[index]);
        for (index, word) in all.into_iter().enumerate() {
            assert_eq!(bench.lent.row(super::REQUESTED, index), word);
        }
        let expected = (0..=255_u8).rev().find(|v| all[usize::from(v >> 6)] >> (v & 63) & 1 != 0).unwrap_or(0);
        assert_eq!((bench.status(), highest(&all)), (expected.into(), expected));
        assert_eq!(bench.lent.has_interrupt(&bench.vmcs), expected >= 16);
    }
}
