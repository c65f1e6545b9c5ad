//! A whole machine under a guest that does anything.

use crate::Feed;
use bulkhead_devices::layout;
use bulkhead_devices::machine::earlier;
use bulkhead_devices::{Machine, MachineConfig};
use bulkhead_types::{Frequency, Gpa, Ticks, VcpuId};

const TSC: u64 = 10_000_000;
/// Ports where something answers, and some where nothing does.
const PORTS: [u16; 32] = [
    0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3F8, 0x3F9,
    0x3FA, 0x3FB, 0x3FC, 0x3FD, 0x510, 0x511, 0x600, 0x602, 0x604, 0x608, 0xCF8, 0xCF9, 0xCFC, 0xF4,
];

/// Processors.
const CPUS: u8 = 3;

/// What whoever runs a processor looks at when the machine has changed.
type Seen = (Option<Ticks>, bool, bool, bool);

fn seen(machine: &Machine, id: VcpuId) -> Seen {
    let interrupts = machine.interrupts();
    (deadline(machine, id), interrupts.has_interrupt(id), interrupts.nmi_pending(id), interrupts.lapic(id).is_parked())
}

/// When the machine wants to act, as far as it is up to this processor.
fn deadline(machine: &Machine, id: VcpuId) -> Option<Ticks> {
    earlier(machine.deadline(), machine.interrupts().deadline(id))
}

fn port(feed: &mut Feed<'_>) -> u16 {
    match feed.u8() {
        near @ 0..0xE0 => PORTS[usize::from(near & 31)],
        _ => feed.u16(),
    }
}

fn address(feed: &mut Feed<'_>) -> Gpa {
    let page = match feed.u8() & 7 {
        0 | 1 => layout::IO_APIC,
        2 => layout::TEST_DEVICE,
        7 => return Gpa::new(feed.u64()),
        _ => layout::LOCAL_APIC,
    };
    let offset = if feed.flag() { u64::from(feed.u8()) << 4 } else { u64::from(feed.u16()) };
    page.wrapping_add(offset & 0xFFF)
}

fn processor(machine: &mut Machine, id: VcpuId, feed: &mut Feed<'_>, now: Ticks) {
    match feed.u8() & 7 {
        0 | 1 => {
            let had = machine.interrupts().has_interrupt(id);
            assert_eq!(machine.interrupts_mut().acknowledge(id).is_some(), had);
        }
        2 => {
            let had = machine.interrupts().nmi_pending(id);
            assert_eq!(machine.interrupts_mut().take_nmi(id), had);
            machine.interrupts_mut().merge_nmis(id);
            let another = machine.interrupts().nmi_pending(id);
            assert!(had || !another, "none waited");
            assert_eq!(machine.interrupts_mut().take_nmi(id), another);
            assert!(!machine.interrupts().nmi_pending(id), "two wait at most, and one beside one that is handled");
        }
        3 => machine.interrupts_mut().set_cr8(id, feed.u8() & 15),
        4 => {
            machine.console_input(feed.u8());
        }
        5 if feed.flag() => {
            machine.interrupts_mut().take_init(id);
            let parked = machine.interrupts().lapic(id).is_parked();
            assert!(parked || machine.interrupts_mut().take_startup(id).is_none(), "it runs already");
        }
        5 => while machine.console_output().is_some() {},
        6 => {
            let index =
                if feed.flag() { 0x800 + u32::from(feed.u8()) } else { [0x1B, 0x6E0][usize::from(feed.u8() & 1)] };
            let _ = machine.read_interrupt_msr(id, index, now);
        }
        _ => {
            let index =
                if feed.flag() { 0x800 + u32::from(feed.u8()) } else { [0x1B, 0x6E0][usize::from(feed.u8() & 1)] };
            let _ = machine.interrupts_mut().msr_write(id, index, feed.magnitude(), now);
        }
    }
}

/// Leaves the machine alone for a while, and counts how often it wants to act, as far as it is up to this processor.
fn idle(machine: &mut Machine, id: VcpuId, now: Ticks, ticks: u64) -> Ticks {
    let end = now.after(ticks);
    let mut acted = 0_u64;
    while let Some(at) = deadline(machine, id).filter(|&at| at <= end) {
        machine.advance(id, at.max(now));
        assert!(deadline(machine, id).is_none_or(|next| next > at.max(now)), "the next deadline lies ahead");
        acted += 1;
        // The local APIC's timer every 50 microseconds, the PIT every 99, the clock 8,192 times a second and at each
        // second, the power-management timer seldom.
        let most = ticks / (TSC / 20_000) + ticks / (TSC / 10_100) + ticks / (TSC / 8_193) + 8;
        assert!(acted <= most, "{acted} deadlines in {ticks} ticks");
    }
    VcpuId::all(CPUS).for_each(|id| machine.advance(id, end));
    end
}

/// Any accesses in any order, with time passing.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut machine = Machine::new(&MachineConfig {
        tsc: Frequency::hertz(TSC),
        memory: 64 << 20,
        wall_clock: 1_700_000_000,
        cpus: CPUS,
        test_exit: feed.flag(),
        test_device: feed.flag(),
    });
    let mut now = Ticks::ZERO;
    let mut settled: [Option<Seen>; CPUS as usize] = Default::default();
    while !feed.is_empty() {
        let bits = feed.u8();
        // The first of them does most.
        let by = VcpuId::new([0, 0, 1, 2][usize::from(bits >> 6)]).unwrap_or_default();
        let mut all = false;
        match bits & 7 {
            0 | 1 => {
                let (port, width) = (port(&mut feed), feed.port_width());
                let value = machine.port_read(port, width, now);
                assert!(u64::from(value) <= width.mask(), "{value:#x} of {width:?} from port {port:#x}");
            }
            2 | 3 => machine.port_write(port(&mut feed), feed.port_width(), feed.u32(), now),
            4 => {
                let (gpa, width) = (address(&mut feed), feed.width());
                assert!(machine.mmio_read(by, gpa, width, now) <= width.mask());
            }
            5 => {
                let (gpa, width) = (address(&mut feed), feed.width());
                machine.mmio_write(by, gpa, width, feed.magnitude() & width.mask(), now);
            }
            6 if bits & 0x38 == 0x38 => _ = machine.press_power_button(),
            6 => processor(&mut machine, by, &mut feed, now),
            _ => {
                let ticks = if feed.flag() { u64::from(feed.u8()) } else { u64::from(feed.u16()) << 2 };
                now = idle(&mut machine, by, now, ticks);
                assert!(deadline(&machine, by).is_none_or(|next| next > now), "the deadline lies ahead");
                all = true;
            }
        }
        machine.take_request();
        let others = machine.take_attention();
        let own = machine.take_changed();
        for (id, settled) in VcpuId::all(CPUS).zip(&mut settled) {
            if all || others & id.bit() != 0 || own && id == by {
                *settled = Some(seen(&machine, id));
            } else if let Some(settled) = settled {
                let is = seen(&machine, id);
                if own {
                    // It may have been that of a device that they share.
                    settled.0 = is.0;
                }
                // Of the deadline of the shared devices, the one who did it learns; what is gone nobody need be told.
                let told = |was: bool, is: bool| was || !is;
                assert!(told(settled.1, is.1) && told(settled.2, is.2), "{id} was not told: {settled:?}, {is:?}");
                assert!(id != by || settled.0 == is.0, "the deadline changed and {id} was not told");
            }
        }
    }
}
