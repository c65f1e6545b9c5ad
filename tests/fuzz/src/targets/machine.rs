//! A whole machine under a guest that does anything.

use crate::Feed;
use bulkhead_devices::layout;
use bulkhead_devices::{Machine, MachineConfig};
use bulkhead_types::{Frequency, Gpa, Ticks};

const TSC: u64 = 10_000_000;
/// Ports where something answers, and some where nothing does.
const PORTS: [u16; 32] = [
    0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3F8, 0x3F9,
    0x3FA, 0x3FB, 0x3FC, 0x3FD, 0x510, 0x511, 0x600, 0x602, 0x604, 0x608, 0xCF8, 0xCF9, 0xCFC, 0xF4,
];

/// What whoever runs the machine looks at when it has changed.
type Seen = (Option<Ticks>, bool, bool);

fn seen(machine: &Machine) -> Seen {
    let interrupts = machine.interrupts();
    (machine.deadline(), interrupts.has_interrupt(), interrupts.nmi_pending())
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

fn processor(machine: &mut Machine, feed: &mut Feed<'_>, now: Ticks) {
    match feed.u8() & 7 {
        0 | 1 => {
            let had = machine.interrupts().has_interrupt();
            assert_eq!(machine.interrupts_mut().acknowledge().is_some(), had);
        }
        2 => {
            let had = machine.interrupts().nmi_pending();
            assert_eq!(machine.interrupts_mut().take_nmi(), had);
            assert!(!machine.interrupts().nmi_pending());
        }
        3 => machine.interrupts_mut().set_cr8(feed.u8() & 15),
        4 => {
            machine.console_input(feed.u8());
        }
        5 => while machine.console_output().is_some() {},
        6 => {
            let index =
                if feed.flag() { 0x800 + u32::from(feed.u8()) } else { [0x1B, 0x6E0][usize::from(feed.u8() & 1)] };
            let _ = machine.read_interrupt_msr(index, now);
        }
        _ => {
            let index =
                if feed.flag() { 0x800 + u32::from(feed.u8()) } else { [0x1B, 0x6E0][usize::from(feed.u8() & 1)] };
            let _ = machine.interrupts_mut().msr_write(index, feed.magnitude(), now);
        }
    }
}

/// Leaves the machine alone for a while, and counts how often it wants to act.
fn idle(machine: &mut Machine, now: Ticks, ticks: u64) -> Ticks {
    let end = now.after(ticks);
    let mut acted = 0_u64;
    while let Some(at) = machine.deadline().filter(|&at| at <= end) {
        machine.advance(at.max(now));
        assert!(machine.deadline().is_none_or(|next| next > at.max(now)), "the next deadline lies ahead");
        acted += 1;
        // The local APIC's timer every 50 microseconds, the PIT every 99, the clock 8,192 times a second and at each
        // second, the power-management timer seldom.
        let most = ticks / (TSC / 20_000) + ticks / (TSC / 10_100) + ticks / (TSC / 8_193) + 8;
        assert!(acted <= most, "{acted} deadlines in {ticks} ticks");
    }
    machine.advance(end);
    end
}

/// Any accesses in any order, with time passing.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut machine = Machine::new(&MachineConfig {
        tsc: Frequency::hertz(TSC),
        memory: 64 << 20,
        wall_clock: 1_700_000_000,
        cpus: 1,
        test_exit: feed.flag(),
        test_device: feed.flag(),
    });
    let mut now = Ticks::ZERO;
    let mut settled: Option<Seen> = None;
    while !feed.is_empty() {
        match feed.u8() & 7 {
            0 | 1 => {
                let (port, width) = (port(&mut feed), feed.port_width());
                let value = machine.port_read(port, width, now);
                assert!(u64::from(value) <= width.mask(), "{value:#x} of {width:?} from port {port:#x}");
            }
            2 | 3 => machine.port_write(port(&mut feed), feed.port_width(), feed.u32(), now),
            4 => {
                let (gpa, width) = (address(&mut feed), feed.width());
                assert!(machine.mmio_read(gpa, width, now) <= width.mask());
            }
            5 => {
                let (gpa, width) = (address(&mut feed), feed.width());
                machine.mmio_write(gpa, width, feed.magnitude() & width.mask(), now);
            }
            6 => processor(&mut machine, &mut feed, now),
            _ => {
                let ticks = if feed.flag() { u64::from(feed.u8()) } else { u64::from(feed.u16()) << 2 };
                now = idle(&mut machine, now, ticks);
                assert!(machine.deadline().is_none_or(|next| next > now), "the deadline lies ahead");
                machine.unsettle();
            }
        }
        machine.take_request();
        if machine.has_changed() {
            machine.settle();
            settled = Some(seen(&machine));
        } else if let Some(settled) = settled {
            assert_eq!(settled, seen(&machine), "the machine changed and did not say so");
        }
    }
}
