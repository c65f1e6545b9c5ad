//! Attacks by several processors of one machine: on what they share, against each other, and all together.
#![no_std]
#![no_main]
#![allow(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a panic ends a test guest as a failure")]

use bulkhead_hostile::{Random, hold, ram_end, run, saw, vector_of};
use bulkhead_rt::memory::Region;
use bulkhead_rt::paging::{self, P, W};
use bulkhead_rt::{apic, cpu, exit, ioapic, pic, port, println, scenario, serial, smp, time, trap};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

scenario!(main);

const DEVICE: u64 = 0xFED8_0000;
const HOLE: u64 = 0xC000_0000;
/// RAM above the image.
const BUFFER: u64 = 0x40_0000;
// SAFETY: RAM above the image that holds no Rust object, and low memory that no firmware uses any more.
const CODE: Region = unsafe { Region::new(BUFFER as usize + 0x1_0000, 4096) };
// SAFETY: as above; the interrupt table of real mode.
const VECTORS: Region = unsafe { Region::new(0, 1024) };
// SAFETY: as above; a page below the trampoline.
const STOP_PAGE: Region = unsafe { Region::new(0x6000, 4096) };
const LONG: u64 = 20_000_000;

static OVER: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU64 = AtomicU64::new(0);

fn main() {
    for vector in 0x20..=0xFD {
        trap::on(vector, |_| apic::end_of_interrupt());
    }
    trap::on(2, |_| ());
    smp::start();
    hold!(smp::count() > 1, "there is one processor");
    run(&[
        ("changing-instruction", changing_instruction),
        ("changing-tables", changing_tables),
        ("changing-code-page", changing_code_page),
        ("ipi-storm", ipi_storm),
        ("init-storm", init_storm),
        ("init-kept", init_kept),
        ("wild-start", wild_start),
        ("init-first", init_first),
        ("stolen", stolen),
        ("deaf-exit", || with_others(deaf, || ())),
        ("deaf-power-off", || with_others(deaf, || exit::power_off())),
        ("deaf-reset", || with_others(deaf, || port::write8(0xCF9, 6))),
        ("last-words", || with_others(deaf, last_words)),
        ("other-power-off", || other(|_| exit::power_off())),
        ("other-reset", || other(|_| port::write8(0xCF9, 6))),
        ("triple-fault-halted", || other(|_| triple_fault())),
        ("triple-fault-spinning", || with_others(deaf, triple_fault)),
        ("triple-fault-device", || with_others(device_loop, triple_fault)),
        ("device-race", device_race),
        ("lazy-race", lazy_race),
        ("cpuid-flood", || together(|| _ = cpu::cpuid(0x8000_0008, 0))),
        ("hypercall-flood", || {
            together(|| {
                // SAFETY: a call that nobody knows, or an exception, which catch() takes.
                _ = vector_of(|| unsafe { asm!("vmcall", inout("rax") 0_u64 => _) });
            })
        }),
        ("everything-flood", everything),
        ("sleepers", sleepers),
    ]);
}

/// Starts `work` on all others; they go on until [`OVER`].
fn others(work: smp::Work) {
    (1..smp::count()).for_each(|number| smp::run_on(number, work));
}

/// Tells all others that it is over, and waits for them.
fn finish() {
    OVER.store(true, Ordering::SeqCst);
    hold!(smp::join(LONG), "a processor is lost");
}

/// Does `thing` for about `microseconds` of this machine's time; how often.
fn during(microseconds: u64, mut thing: impl FnMut()) -> u64 {
    let (begin, length) = (cpu::rdtsc(), time::ticks(microseconds));
    let mut count = 0;
    while cpu::rdtsc() - begin < length {
        thing();
        count += 1;
    }
    count
}

/// Instructions on a device whose first byte another processor rewrites all the time: two, three or six bytes long, read,
/// write or both. What follows does no harm, whichever length is taken.
fn changing_instruction() {
    const OPCODES: [u8; 10] = [0x89, 0x8B, 0x01, 0x31, 0x87, 0xC7, 0x81, 0x83, 0x88, 0x39];
    let at = paging::set(1, DEVICE | P | W) + 0x40;
    CODE.copy_in(0, &[0x89, 0x07, 0x90, 0x90, 0x90, 0x90, 0xC3]);
    others(|me| {
        let mut index = me;
        while !OVER.load(Ordering::Relaxed) {
            CODE.write8(0, OPCODES[index % OPCODES.len()]);
            index += 3;
        }
    });
    let count = during(3_000_000, || {
        // SAFETY: the code returns; it writes to the device's memory and EAX alone.
        let seen = vector_of(|| unsafe {
            asm!("call {}", in(reg) CODE.base(), inout("rax") 5_u64 => _, in("rdi") at);
        });
        hold!(seen.is_none(), "an instruction takes {seen:?}");
    });
    finish();
    saw!("{count} instructions");
}

/// Entries for one page that others write in turn: the device, RAM, nothing, a hole, no RAM at all, a reserved bit.
fn changing_tables() {
    paging::set(1, DEVICE | P | W);
    paging::set_gigabyte(5, BUFFER | P | W);
    others(|me| {
        let entries = [
            DEVICE | P | W,
            BUFFER | P | W,
            0,
            HOLE | P | W,
            DEVICE | P,
            1 << 51 | P | W,
            u64::MAX,
            0xFEE0_0000 | P | W,
        ];
        let mut random = Random::new();
        (0..me).for_each(|_| _ = random.number());
        while !OVER.load(Ordering::Relaxed) {
            let entry = random.one_of(&entries);
            paging::set(1, entry);
            if random.below(8) == 0 {
                paging::set_gigabyte(5, if entry & 1 << 7 == 0 { entry } else { HOLE | P | W });
            }
        }
    });
    let count = during(3_000_000, || {
        // Offsets at which the device and the local APIC have nothing that does harm.
        for at in [paging::WINDOW + 0x40, paging::WINDOW + 0xFC, (5 << 30) + 0x40] {
            cpu::invlpg(at);
            // SAFETY: a device, RAM above the image, or a page fault, which catch() takes.
            let seen = vector_of(|| unsafe {
                asm!("mov rax, [{0}]", "mov rax, [{0}]", in(reg) at, out("rax") _, options(nostack));
            });
            hold!(matches!(seen, None | Some(14)), "an access takes {seen:?}");
        }
    });
    finish();
    saw!("{count} rounds");
}

/// The page of the instruction itself goes away and comes back, elsewhere, while it is carried out.
fn changing_code_page() {
    let at = paging::set(1, DEVICE | P | W) + 0x40;
    CODE.copy_in(0, &[0x89, 0x07, 0xC3]);
    CODE.copy_in(0x800, &[0x8B, 0x07, 0xC3]);
    let code = paging::set(2, CODE.base() as u64 | P | W);
    others(|_| {
        while !OVER.load(Ordering::Relaxed) {
            paging::set(2, 0);
            paging::set(2, CODE.base() as u64 | P | W);
            paging::set(2, HOLE);
            paging::set(2, CODE.base() as u64 | P);
        }
    });
    let count = during(3_000_000, || {
        for entry in [code, code + 0x800] {
            cpu::invlpg(code);
            // SAFETY: the code returns or is not there, which is a page fault; it writes to the device's memory and EAX.
            let seen = vector_of(|| unsafe { asm!("call {}", in(reg) entry, inout("rax") 5_u64 => _, in("rdi") at) });
            hold!(matches!(seen, None | Some(14)), "an instruction takes {seen:?}");
        }
    });
    finish();
    saw!("{count} rounds");
}

/// All send to all: each mode, destination and shorthand, but nothing that stops a processor.
fn ipi_storm() {
    fn storm(me: usize) {
        let mut random = Random::new();
        (0..me * 7).for_each(|_| _ = random.number());
        for _ in 0..6000 {
            let mode = random.one_of(&[0_u32, 1, 3, 4, 7]);
            let vector = 0x20 + random.below(0xD8) as u32;
            let bits = (random.below(4) as u32 * (1 << 18)) | ((random.below(2) as u32) << 11) | 0x4000;
            let to = random.one_of(&[0_u32, 1, 2, 3, 0xF, 0xFF, 0x80]);
            apic::send_to(to, bits | mode << 8 | vector);
            if random.below(16) == 0 {
                cpu::enable_interrupts();
                cpu::disable_interrupts();
            }
        }
        cpu::enable_interrupts();
        time::delay(10_000);
        cpu::disable_interrupts();
    }
    hold!(smp::all(storm), "a processor is lost");
    let sum: u64 = (0x20..=0xFD).map(|vector| u64::from(trap::count(vector))).sum();
    hold!(sum > 0 && trap::count(2) > 0, "nothing came");
    saw!("{sum} interrupts, {} NMIs", trap::count(2));
}

/// Up to some thousand instructions. PAUSE would give a turn away on TCG.
fn wait_a_little(random: &mut Random) {
    (0..random.below(4000)).for_each(|step| _ = core::hint::black_box(step));
}

/// INIT and start-up interrupts at every moment, also between the two; in the end all can be had back. No NMI: one that comes
/// before the interrupt table is loaded is a triple fault.
fn init_storm() {
    let mut random = Random::new();
    for _ in 0..3000 {
        let to = smp::apic_id(1 + random.below(smp::count() as u64 - 1) as usize);
        let command = random.one_of(&[smp::INIT, smp::STARTUP | 7, smp::STARTUP | 7, 0x8500, 0x4060]);
        apic::send_to(to, command);
        wait_a_little(&mut random);
    }
    apic::send(0xC_0000 | smp::INIT);
    back();
    saw!("all of them again");
}

/// INIT and start-up for each of the others, and work for each.
fn back() {
    for number in 1..smp::count() {
        hold!(smp::restart(number), "processor {number} does not come back");
    }
    hold!(smp::all(|_| _ = COUNT.fetch_add(1, Ordering::SeqCst)), "a processor does not work");
    hold!(COUNT.load(Ordering::SeqCst) == smp::count() as u64, "work is lost");
}

/// INIT at every moment of a processor in x2APIC mode that works its registers: of them nothing is left to the next life.
fn init_kept() {
    fn work(_: usize) {
        let mut random = Random::new();
        loop {
            let _ = cpu::wrmsr(0x808, random.below(0x100));
            let _ = cpu::wrmsr(0x83F, 0x20 + random.below(0xD8));
            if random.below(4) == 0 {
                cpu::enable_interrupts();
                cpu::disable_interrupts();
            }
        }
    }
    fn look(_: usize) {
        // The one vector that brought this work.
        let own = |register: u32| if register & 7 == 7 { !(1 << (smp::WAKE & 31)) } else { u64::MAX };
        let left = |register| cpu::rdmsr(0x800 + register).map_or(true, |bits| bits & own(register) != 0);
        let vectors = (0x10..0x18).chain(0x20..0x28).filter(|&register| left(register)).count();
        COUNT.store(vectors as u64 + u64::from(cpu::rdmsr(0x808).ok() != Some(0)), Ordering::SeqCst);
    }
    let all = smp::all(|_| hold!(apic::enter_x2apic(), "no x2APIC mode"));
    hold!(all, "a processor is lost");
    let mut random = Random::new();
    for _ in 0..100 {
        smp::run_on(1, work);
        wait_a_little(&mut random);
        hold!(smp::restart(1), "it does not come again");
        COUNT.store(u64::MAX, Ordering::SeqCst);
        smp::run_on(1, look);
        hold!(smp::join(LONG), "a processor is lost");
        hold!(COUNT.load(Ordering::SeqCst) == 0, "{} registers have something left", COUNT.load(Ordering::SeqCst));
    }
    saw!("100 lives");
}

/// Start-up at each page of the first megabyte: zeros, tables, the display's hole. Exceptions lead to a halt.
fn wild_start() {
    (0..256).for_each(|vector| VECTORS.write32(vector * 4, 0x0600_0000));
    STOP_PAGE.copy_in(0, &[0xFA, 0xF4, 0xEB, 0xFC]);
    for page in (0..0x100_u32).filter(|page| *page != 7) {
        let to = smp::apic_id(1 + page as usize % (smp::count() - 1));
        apic::send_to(to, smp::INIT);
        apic::send_to(to, smp::STARTUP | page);
        time::delay(1000);
    }
    back();
    saw!("all of them again");
}

/// What is stolen from all of them is to be told at one place, which all write to; INIT comes meanwhile, and ends it.
fn stolen() {
    const STEAL_TIME: u32 = 0x4B56_4D03;
    fn ask(_: usize) {
        for round in 0..200_000 {
            if round % 64 == 0 {
                hold!(cpu::wrmsr(STEAL_TIME, BUFFER | 1).is_ok(), "its own memory is not taken");
                COUNT.fetch_add(1, Ordering::SeqCst);
            }
            if OVER.load(Ordering::Relaxed) {
                break;
            }
            // SAFETY: RAM above the image that holds no Rust object.
            unsafe { (BUFFER as *mut u64).add(round % 8).write_volatile(u64::MAX) };
        }
    }
    for round in 1..=30 {
        COUNT.store(0, Ordering::SeqCst);
        others(ask);
        hold!(time::wait_until(LONG, || COUNT.load(Ordering::SeqCst) >= smp::count() as u64 - 1), "nobody asks");
        time::delay(2000);
        apic::send(0xC_0000 | smp::INIT);
        for number in 1..smp::count() {
            hold!(smp::restart(number), "processor {number} does not come back in round {round}");
        }
        hold!(
            smp::all(|_| hold!(cpu::rdmsr(STEAL_TIME).ok() == Some(0), "it outlives INIT")),
            "a processor does not work"
        );
    }
    saw!("all of them again");
}

/// INIT for the bootstrap processor, by another one.
fn init_first() {
    other(|_| apic::send_to(smp::apic_id(0), smp::INIT));
}

/// Has the others do `work`, waits until they do, then does `last`.
fn with_others(work: smp::Work, last: fn()) {
    others(work);
    let busy = || COUNT.load(Ordering::SeqCst) >= smp::count() as u64 - 1;
    hold!(time::wait_until(LONG, busy), "a processor does not begin");
    println!("saw the last of it");
    last();
}

/// Has processor 1 do what ends the machine while this one and the rest halt.
fn other(work: smp::Work) {
    println!("saw the last of it");
    serial::drain();
    smp::run_on(1, work);
    exit::halt();
}

fn deaf(_: usize) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: for ever, which is the attack.
    unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) };
}

/// Writes as much as can wait for the console's line, and ends.
fn last_words() {
    let text = [b'.'; 1024];
    // SAFETY: sends the text.
    unsafe {
        asm!("rep outsb", in("dx") 0x3F8_u16, inout("rcx") text.len() => _, inout("rsi") text.as_ptr() => _, options(nostack))
    };
    port::write8(0xCF9, 6);
}

fn device_loop(_: usize) {
    let at = paging::set(1, DEVICE | P | W) + 0x40;
    COUNT.fetch_add(1, Ordering::SeqCst);
    // SAFETY: a device's memory, for ever, which is the attack.
    unsafe { asm!("2: lock add dword ptr [{}], 1", "jmp 2b", in(reg) at, options(noreturn)) };
}

fn triple_fault() {
    let pointer = [0_u16; 5];
    // SAFETY: this ends the guest, which is what it is for.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const pointer, options(noreturn)) };
}

/// All write and read the same registers: serial line, interrupt controllers, timer, clock, I/O APIC, test device.
fn device_race() {
    const PORTS: [u16; 16] =
        [0x20, 0x21, 0xA0, 0xA1, 0x40, 0x42, 0x43, 0x61, 0x70, 0x71, 0x3F9, 0x3FB, 0x3FD, 0xCF8, 0xCFC, 0x511];
    fn race(me: usize) {
        let mut random = Random::new();
        (0..me * 5).for_each(|_| _ = random.number());
        let at = paging::WINDOW + 4096 + 0x40;
        for _ in 0..4000 {
            let (port, value) = (random.one_of(&PORTS), random.value());
            match random.below(5) {
                0 | 1 => port::write8(port, value as u8),
                2 => _ = port::read8(port),
                3 => {
                    ioapic::write(random.below(0x40) as u8, value as u32 | 1 << 16);
                    _ = ioapic::read(random.below(0x40) as u8);
                }
                // SAFETY: a device's memory.
                _ => unsafe {
                    asm!("lock xadd [{}], {:e}", in(reg) at, inout(reg) value as u32 => _, options(nostack))
                },
            }
        }
    }
    paging::set(1, DEVICE | P | W);
    hold!(smp::all(race), "a processor is lost");
    pic::set_mask(0xFFFF);
    saw!("{} accesses", 4000 * smp::count());
}

/// All touch the same pages for the first time at the same moment: each page is there once, and keeps what each adds.
fn lazy_race() {
    const FIRST: u64 = 0x20_0000;
    static MEETING: AtomicU32 = AtomicU32::new(0);
    fn touch(_: usize) {
        MEETING.fetch_add(1, Ordering::SeqCst);
        while (MEETING.load(Ordering::SeqCst) as usize) < smp::count() {
            cpu::pause();
        }
        for page in (FIRST..ram_end()).step_by(4096) {
            // SAFETY: RAM above the image and its stacks, which holds no Rust object.
            unsafe { asm!("lock add qword ptr [{}], 1", in(reg) page, options(nostack)) };
        }
    }
    hold!(smp::all(touch), "a processor is lost");
    let mut pages = 0_u64;
    for page in (FIRST..ram_end()).step_by(4096) {
        let seen = bulkhead_hostile::peek(page).unwrap_or(u64::MAX);
        hold!(seen == smp::count() as u64, "page {page:#x} has {seen:#x}");
        pages += 1;
    }
    saw!("{pages} pages");
}

/// All do the same for two seconds of this machine's time.
fn together(thing: fn()) {
    static THING: AtomicU64 = AtomicU64::new(0);
    THING.store(thing as usize as u64, Ordering::SeqCst);
    let all = smp::all(|_| {
        // SAFETY: it was stored above, and is a function without arguments.
        let thing = unsafe { core::mem::transmute::<usize, fn()>(THING.load(Ordering::SeqCst) as usize) };
        COUNT.fetch_add(during(2_000_000, thing), Ordering::SeqCst);
    });
    hold!(all, "a processor is lost");
    saw!("{} times", COUNT.load(Ordering::SeqCst));
}

/// All do nothing but sleep, each for another part of what would be another guest's turn. The last interrupt is for a processor that
/// took its timer's before the halt, although it is in the shadow of STI.
fn sleepers() {
    saw!("the flood begins");
    let all = smp::all(|me| {
        apic::enable();
        apic::write(apic::register::TIMER, 2 << 17 | 0x60);
        let part = time::ticks(10_000) / 16 * (1 + me as u64);
        COUNT.fetch_add(during(8_000_000, || bulkhead_hostile::sleep_until(cpu::rdtsc() + part)), Ordering::SeqCst);
        apic::send(0xC_4060);
    });
    saw!("the flood ends after {}", COUNT.load(Ordering::SeqCst));
    hold!(all, "a processor is lost");
}

/// Each does something else: CPUID, a port, a device, interrupts for all others.
fn everything() {
    paging::set(1, DEVICE | P | W);
    let all = smp::all(|me| {
        let count = during(2_000_000, || match me % 4 {
            0 => _ = cpu::cpuid(0xB, 0),
            1 => _ = port::read8(0x71),
            2 => _ = bulkhead_hostile::peek(paging::WINDOW + 4096 + 0x40),
            _ => apic::send(0xC_4060),
        });
        COUNT.fetch_add(count, Ordering::SeqCst);
    });
    hold!(all, "a processor is lost");
    saw!("{} times", COUNT.load(Ordering::SeqCst));
}
