//! Floods: exits of one kind without pause, while the neighbour measures what is left of the CPU.
#![no_std]
#![no_main]
#![allow(clippy::cast_possible_truncation, reason = "a guest of 64 bits")]

use bulkhead_hostile::{Random, hold, run, saw};
use bulkhead_rt::apic::register::{DIVIDE, INITIAL_COUNT, TIMER};
use bulkhead_rt::paging::{self, P, W};
use bulkhead_rt::{apic, catch, cpu, port, scenario, serial, time, trap};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

scenario!(main);

/// The test device, and a vector for interrupts.
const DEVICE: u64 = 0xFED8_0000;
const VECTOR: u8 = 0x60;

/// When the flood is over.
static END: AtomicU64 = AtomicU64::new(u64::MAX);

fn main() {
    run(&[
        ("spin", || flood(cpu::pause)),
        ("cpuid", || flood(|| _ = cpu::cpuid(0x8000_0008, 0))),
        ("port", || flood(|| _ = port::read8(0x70))),
        ("port-string", port_string),
        ("mmio", mmio),
        ("mmio-string", mmio_string),
        ("msr", || flood(|| _ = cpu::rdmsr(0x277))),
        ("msr-unknown", || flood(|| _ = cpu::rdmsr(0x1234_5678))),
        ("hypercall", hypercall),
        ("nested", nested),
        ("exception", || {
            flood(|| {
                _ = catch(|| {
                    // SAFETY: an exception that catch() takes.
                    unsafe { asm!("ud2") }
                })
            })
        }),
        ("control", control),
        ("interrupt", interrupt),
        ("timer", timer),
        ("nmi", nmi),
        ("halt", halt),
        ("late", late),
        ("sleep", sleep),
        ("spin-of-three", || flood(cpu::pause)),
        ("wake", wake),
        ("reset", reset),
        ("console", console),
        ("cache", || {
            flood(|| {
                // SAFETY: nothing is lost: caches are coherent.
                unsafe { asm!("wbinvd", options(nostack)) }
            })
        }),
    ]);
}

/// Does `thing` for about eight seconds of this machine's time.
fn flood(thing: impl Fn()) {
    let (begin, length) = (cpu::rdtsc(), time::announced_hertz().unwrap_or(10_000_000) * 8);
    saw!("the flood begins");
    let mut count = 0_u64;
    while cpu::rdtsc() - begin < length {
        for _ in 0..16 {
            thing();
        }
        count += 16;
    }
    saw!("the flood ends after {count}");
    hold!(count > 0, "it comes to nothing");
}

fn port_string() {
    flood(|| {
        // SAFETY: RAM above the image, 1 KiB.
        unsafe {
            asm!("rep insb", in("dx") 0x70_u16, inout("rcx") 1024_u64 => _, inout("rdi") 0x40_0000_u64 => _, options(nostack))
        };
    });
}

fn mmio() {
    let at = paging::set(1, DEVICE | P | W);
    // SAFETY: a register of a device.
    flood(|| unsafe { asm!("lock add dword ptr [{}], 1", in(reg) at, options(nostack)) });
}

fn mmio_string() {
    let at = paging::set(1, DEVICE | P | W);
    let hole = paging::set(2, 0xC000_0000 | P | W);
    // SAFETY: a device and a hole.
    flood(|| unsafe {
        asm!("rep movsq", inout("rcx") 256_u64 => _, inout("rsi") hole => _, inout("rdi") at => _, options(nostack));
    });
}

fn hypercall() {
    // SAFETY: a call that nobody knows; the other maker's is an exception, which catch() takes.
    let vmcall = catch(|| unsafe { asm!("vmcall", inout("rax") 0_u64 => _) }).is_none();
    // SAFETY: a call that nobody knows; where it is an exception, it was not chosen.
    flood(|| unsafe {
        if vmcall {
            asm!("vmcall", inout("rax") 0_u64 => _);
        } else {
            asm!("vmmcall", inout("rax") 0_u64 => _);
        }
    });
}

/// First touches of pages, then reads through page tables that lie outside: faults of the nested tables without end.
fn nested() {
    let mut random = Random::new();
    let outside = paging::set_gigabyte(5, 0xC000_0000 | P | W);
    let end = bulkhead_hostile::ram_end();
    let fresh = core::cell::Cell::new(0x20_0000);
    let numbers = core::cell::Cell::new(random.number());
    flood(|| {
        numbers.set(numbers.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        if fresh.get() < end {
            let _ = bulkhead_hostile::poke(fresh.get(), 0);
            fresh.set(fresh.get() + 4096);
        } else {
            let _ = bulkhead_hostile::peek(outside + (numbers.get() >> 40 & !7));
        }
    });
}

fn control() {
    let old = cpu::cr0();
    // SAFETY: cache bits, which have no effect, and back.
    flood(|| unsafe {
        cpu::set_cr0(old | 1 << 30);
        cpu::set_cr0(old);
    });
}

fn interrupt() {
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    cpu::enable_interrupts();
    flood(|| apic::send_self(VECTOR));
    cpu::disable_interrupts();
    hold!(trap::count(VECTOR) > 100, "no interrupt came");
}

fn timer() {
    apic::enable();
    // It may leave no time for anything else of this guest.
    trap::on(VECTOR, |_| {
        if cpu::rdtsc() > END.load(Ordering::Relaxed) {
            apic::write(INITIAL_COUNT, 0);
        }
        apic::end_of_interrupt();
    });
    apic::write(DIVIDE, 0xB);
    apic::write(TIMER, 1 << 17 | u32::from(VECTOR));
    // It may leave no time even to begin: the end is set before.
    END.store(cpu::rdtsc() + time::announced_hertz().unwrap_or(10_000_000) * 9, Ordering::Relaxed);
    apic::write(INITIAL_COUNT, 1);
    cpu::enable_interrupts();
    flood(cpu::pause);
    cpu::disable_interrupts();
    apic::write(INITIAL_COUNT, 0);
    hold!(trap::count(VECTOR) > 100, "no interrupt came");
}

fn nmi() {
    apic::enable();
    trap::on(2, |_| ());
    flood(|| apic::send(0x4_0400 | 0x4000));
    hold!(trap::count(2) > 100, "no NMI came");
}

/// Halts that an interrupt ends at once: each gives the turn back. The timer is for a processor that takes the interrupt
/// before the halt, although it is in the shadow of STI.
fn halt() {
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    apic::write(DIVIDE, 0xB);
    apic::write(TIMER, 1 << 17 | u32::from(VECTOR));
    apic::write(INITIAL_COUNT, 1_000_000);
    flood(|| {
        apic::send_self(VECTOR);
        cpu::wait_for_interrupt();
    });
    apic::write(INITIAL_COUNT, 0);
}

/// Ticks of a turn beside another guest.
fn slice() -> u64 {
    time::announced_hertz().unwrap_or(10_000_000) / 100
}

/// Just before each turn's end an instruction that takes half a turn.
fn late() {
    flood(|| {
        // The count jumps when a turn begins; alone on a processor it never does.
        let (slice, first) = (slice(), cpu::rdtsc());
        let (mut before, mut now) = (first, first);
        while now - before < slice / 4 && now - first < 4 * slice {
            before = now;
            now = cpu::rdtsc();
        }
        compute_until(now + slice * 15 / 16);
        print_much();
    });
    serial::init();
}

fn compute_until(end: u64) {
    while cpu::rdtsc() < end {
        cpu::pause();
    }
}

/// Sleeps just before its turn would end, for hardly a moment or a turn, after a little, half of a turn, most of one, and more.
fn sleep() {
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    apic::write(TIMER, 2 << 17 | u32::from(VECTOR));
    let (slice, count) = (slice(), core::cell::Cell::new(0_u64));
    flood(|| {
        count.set(count.get() + 1);
        let run = [15, 1, 8, 15, 17, 31].get((count.get() % 6) as usize).copied().unwrap_or(1);
        compute_until(cpu::rdtsc() + slice * run / 16);
        let wakes = cpu::rdtsc() + if count.get() / 6 % 2 == 0 { slice / 64 } else { slice };
        bulkhead_hostile::sleep_until(wakes);
    });
}

/// Does nothing but sleep, and wakes sixteen times in what would be another guest's turn.
fn wake() {
    apic::enable();
    trap::on(VECTOR, |_| apic::end_of_interrupt());
    apic::write(TIMER, 2 << 17 | u32::from(VECTOR));
    let sixteenth = slice() / 16;
    flood(|| bulkhead_hostile::sleep_until(cpu::rdtsc() + sixteenth));
}

/// Ends as soon as it runs, and is made anew.
fn reset() {
    saw!("the flood begins");
    port::write8(0xCF9, 6);
}

/// The console, whose line is slow for the host.
fn console() {
    flood(print_much);
    serial::init();
}

fn print_much() {
    let text = [b'.'; 1024];
    // SAFETY: sends the text.
    unsafe {
        asm!("rep outsb", in("dx") 0x3F8_u16, inout("rcx") text.len() => _, inout("rsi") text.as_ptr() => _, options(nostack))
    };
}
