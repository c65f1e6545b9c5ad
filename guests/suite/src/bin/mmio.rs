//! Device registers in memory: every instruction form, each held against the same instruction on RAM.
//!
//! An instruction is carried out twice from the same registers, flags and bytes: on RAM, by the processor, and on the
//! test device (256 bytes that remember), by the hypervisor. Registers, flags and bytes must come out the same. On
//! another machine, which has no test device, both runs are on RAM: that checks the scenario itself.
#![no_std]
#![no_main]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a panic ends a test guest as a failure, which is right"
)]

use bulkhead_rt::cpu::{self, Machine, cpuid, machine, wrmsr};
use bulkhead_rt::memory::Region;
use bulkhead_rt::{catch, check, check_eq, expect_eq, has_word, paging, println, scenario, skip};
use core::arch::asm;

scenario!(main);

const DEVICE: usize = 0xFED8_0000;
const RAM: usize = 0x40_0000;
const OTHER_RAM: usize = 0x50_0000;
/// Bytes that are compared.
const BYTES: usize = 128;
/// Words of two such stretches.
const WORDS: usize = 2 * BYTES / 8;
/// Where the operand lies in them.
const OPERAND: usize = 40;

/// Status flags.
const ALL: u64 = 0x8D5;
/// Those that logic instructions define (AF is not among them).
const LOGIC: u64 = ALL & !0x10;
/// Bit tests define CF only.
const CARRY: u64 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    /// Distance from the start.
    rsi: u64,
    /// Distance from the start.
    rdi: u64,
    r8: u64,
    flags: u64,
}

type Run = fn(&mut State, u64, u64);

fn pattern(at: usize) -> u64 {
    (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Carries `run` out with RSI and RDI in the two regions; what it did to registers and memory.
fn carry_out(source: &Region, destination: &Region, run: Run, mut state: State) -> (State, [u64; WORDS]) {
    let same = source.base() == destination.base();
    for at in (0..BYTES).step_by(8) {
        source.write64(at, pattern(at));
        if !same {
            destination.write64(at, !pattern(at));
        }
    }
    // In one region, the two operands lie apart.
    let apart = if same { 20 } else { 0 };
    run(&mut state, (source.base() + OPERAND) as u64, (destination.base() + OPERAND + apart) as u64);
    let mut memory = [0; WORDS];
    for (index, word) in memory.iter_mut().enumerate() {
        let (region, at) = if index < WORDS / 2 { (source, index * 8) } else { (destination, index * 8 - BYTES) };
        *word = if same && index >= WORDS / 2 { 0 } else { region.read64(at) };
    }
    (state, memory)
}

/// Some register contents to start from.
fn starts() -> [State; 4] {
    let values = [(0x8877_6655_4433_2211, 3, 0x8D5), (u64::MAX, 1, 0), (0x80, 2, 1), (0x7FFF_FFFF_8000_7F80, 4, 0x40)];
    values.map(|(rax, rcx, flags): (u64, u64, u64)| State {
        rax,
        rbx: !rax,
        rcx,
        rdx: rax.rotate_left(20),
        rsi: 0,
        rdi: 0,
        r8: rax ^ 0x5A5A,
        flags: flags | 2,
    })
}

/// `run` on RAM and on the device, RSI and RDI in the same region.
fn compare(name: &str, flags: u64, run: Run) {
    // SAFETY: RAM above the image, and the device (or more such RAM), which hold no Rust object.
    let (ram, device) = unsafe { (Region::new(RAM, BYTES), Region::new(device_base(), BYTES)) };
    for start in starts() {
        compare_from(name, flags, run, start, [&ram, &ram], [&device, &device]);
    }
}

/// `run` from RAM to RAM and the same with the device as source, as destination, and as both.
fn compare_copy(name: &str, run: Run) {
    // SAFETY: as for the one above: no Rust object lies there.
    let (ram, device) = unsafe { (Region::new(RAM, BYTES), Region::new(device_base(), BYTES)) };
    // SAFETY: as for the one above: no Rust object lies there.
    let other = unsafe { Region::new(OTHER_RAM + 0x1000, BYTES) };
    for start in starts() {
        compare_from(name, ALL, run, start, [&ram, &other], [&device, &other]);
        compare_from(name, ALL, run, start, [&ram, &other], [&ram, &device]);
        compare_from(name, ALL, run, start, [&ram, &ram], [&device, &device]);
    }
}

fn compare_from(name: &str, flags: u64, run: Run, start: State, reference: [&Region; 2], tested: [&Region; 2]) {
    let (mut expected, bytes) = carry_out(reference[0], reference[1], run, start);
    let (mut seen, device_bytes) = carry_out(tested[0], tested[1], run, start);
    expected.flags &= flags;
    seen.flags &= flags;
    expect_eq!(seen, expected, "registers of {name} from {start:x?}");
    if device_bytes != bytes {
        let at = (0..WORDS).find(|at| bytes[*at] != device_bytes[*at]).unwrap_or_default();
        let (seen, expected) = (device_bytes[at], bytes[at]);
        check!(false, "memory of {name} from {start:x?}: word {at} is {seen:#x}, not {expected:#x}");
    }
}

fn device_base() -> usize {
    if machine() == Machine::Virtual && !has_word("ram") { DEVICE } else { OTHER_RAM }
}

/// A function that carries the lines out with the registers of a state.
macro_rules! form {
    ($($line:expr),+) => {{
        fn run(state: &mut State, source: u64, destination: u64) {
            let (mut rsi, mut rdi) = (source, destination);
            // SAFETY: the lines access at most the 128 bytes around RSI and RDI, which belong to this scenario, and leave
            // the stack as it was; the direction flag is cleared behind them.
            unsafe {
                asm!(
                    "xchg rbx, r10", "push r9", "popfq", $($line,)+ "pushfq", "pop r9", "cld", "xchg rbx, r10",
                    inout("rax") state.rax, inout("r10") state.rbx, inout("rcx") state.rcx, inout("rdx") state.rdx,
                    inout("rsi") rsi, inout("rdi") rdi, inout("r8") state.r8, inout("r9") state.flags
                );
            }
            state.rsi = rsi.wrapping_sub(source);
            state.rdi = rdi.wrapping_sub(destination);
        }
        run
    }};
}

/// One line of each width, the register operand being RAX or RCX of that width.
macro_rules! widths {
    ($name:expr, $flags:expr, $before:expr, $after:expr) => {
        compare(concat!($name, " 8"), $flags, form!(concat!($before, "al", $after)));
        compare(concat!($name, " 8h"), $flags, form!(concat!($before, "bh", $after)));
        compare(concat!($name, " 8r"), $flags, form!(concat!($before, "r8b", $after)));
        compare(concat!($name, " 16"), $flags, form!(concat!($before, "dx", $after)));
        compare(concat!($name, " 32"), $flags, form!(concat!($before, "eax", $after)));
        compare(concat!($name, " 32r"), $flags, form!(concat!($before, "r8d", $after)));
        compare(concat!($name, " 64"), $flags, form!(concat!($before, "rbx", $after)));
    };
}

/// One line of each width with an immediate operand, and the short form of it.
macro_rules! immediates {
    ($name:expr, $flags:expr, $op:expr) => {
        compare(concat!($name, " 8, imm"), $flags, form!(concat!($op, " byte ptr [rsi], 0x5A")));
        compare(concat!($name, " 16, imm"), $flags, form!(concat!($op, " word ptr [rsi], 0x1234")));
        compare(concat!($name, " 16, imm8"), $flags, form!(concat!($op, " word ptr [rsi], -3")));
        compare(concat!($name, " 32, imm"), $flags, form!(concat!($op, " dword ptr [rsi], 0x12345678")));
        compare(concat!($name, " 32, imm8"), $flags, form!(concat!($op, " dword ptr [rsi], -5")));
        compare(concat!($name, " 64, imm"), $flags, form!(concat!($op, " qword ptr [rsi], -0x12345678")));
        compare(concat!($name, " 64, imm8"), $flags, form!(concat!($op, " qword ptr [rsi], 7")));
    };
}

/// All forms of a two-operand instruction.
macro_rules! two_operands {
    ($name:expr, $flags:expr, $op:expr) => {
        widths!(concat!($name, " m, r"), $flags, concat!($op, " [rsi], "), "");
        widths!(concat!($name, " r, m"), $flags, concat!($op, " "), ", [rsi]");
        immediates!($name, $flags, $op);
        check!(true, $name);
    };
}

fn main() {
    println!("device at {:#x}", device_base());
    moves();
    addresses();
    two_operands!("ADD", ALL, "add");
    two_operands!("ADC", ALL, "adc");
    two_operands!("SUB", ALL, "sub");
    two_operands!("SBB", ALL, "sbb");
    two_operands!("CMP", ALL, "cmp");
    two_operands!("AND", LOGIC, "and");
    two_operands!("OR", LOGIC, "or");
    two_operands!("XOR", LOGIC, "xor");
    one_operand();
    exchange();
    bits();
    strings();
    repeated();
    if machine() == Machine::Virtual {
        absolute();
        pages();
    } else {
        skip!("absolute addresses and pages");
    }
}

fn moves() {
    widths!("MOV m, r", ALL, "mov [rsi], ", "");
    widths!("MOV r, m", ALL, "mov ", ", [rsi]");
    immediates!("MOV", ALL, "mov");
    check!(true, "MOV");
    compare("MOVZX 16, 8", ALL, form!("movzx ax, byte ptr [rsi]"));
    compare("MOVZX 32, 8", ALL, form!("movzx eax, byte ptr [rsi]"));
    compare("MOVZX 64, 8", ALL, form!("movzx rax, byte ptr [rsi]"));
    compare("MOVZX 32, 16", ALL, form!("movzx r8d, word ptr [rsi]"));
    compare("MOVZX 64, 16", ALL, form!("movzx rbx, word ptr [rsi]"));
    compare("MOVSX 16, 8", ALL, form!("movsx ax, byte ptr [rsi]"));
    compare("MOVSX 32, 8", ALL, form!("movsx eax, byte ptr [rsi + 1]"));
    compare("MOVSX 64, 8", ALL, form!("movsx rax, byte ptr [rsi + 2]"));
    compare("MOVSX 32, 16", ALL, form!("movsx r8d, word ptr [rsi + 3]"));
    compare("MOVSX 64, 16", ALL, form!("movsx rbx, word ptr [rsi + 4]"));
    compare("MOVSXD 64, 32", ALL, form!("movsxd rdx, dword ptr [rsi]"));
    compare("MOVSXD 64, 32, other sign", ALL, form!("movsxd rdx, dword ptr [rsi + 1]"));
    check!(true, "MOVZX, MOVSX, MOVSXD");
    compare("MOVNTI 32", ALL, form!("movnti [rsi], eax"));
    compare("MOVNTI 64", ALL, form!("movnti [rsi], rax"));
    if cpuid(1, 0).ecx & 1 << 22 != 0 {
        compare("MOVBE m, 16", ALL, form!("movbe [rsi], ax"));
        compare("MOVBE m, 32", ALL, form!("movbe [rsi], eax"));
        compare("MOVBE m, 64", ALL, form!("movbe [rsi], rax"));
        compare("MOVBE 16, m", ALL, form!("movbe ax, [rsi]"));
        compare("MOVBE 32, m", ALL, form!("movbe eax, [rsi]"));
        compare("MOVBE 64, m", ALL, form!("movbe rax, [rsi]"));
    }
    compare("PUSH m64", ALL, form!("push qword ptr [rsi]", "pop rbx"));
    compare("PUSH m16", ALL, form!("push word ptr [rsi]", "pop bx"));
    check!(true, "MOVNTI, MOVBE, PUSH");
}

/// SDM vol. 1 3.7.5 "Specifying an Offset".
fn addresses() {
    check!(wrmsr(0xC000_0100, 0x10).is_ok() && wrmsr(0xC000_0101, 0x20).is_ok(), "FS and GS bases");
    compare("displacement of 8 bits", ALL, form!("mov eax, [rsi - 8]"));
    compare("displacement of 32 bits", ALL, form!("mov eax, [rsi + 0x1234]", "mov eax, [rsi]"));
    compare("base, index, scale", ALL, form!("mov eax, [rsi + rcx * 4 - 4]"));
    compare("index alone", ALL, form!("mov eax, [rsi * 1 + 8]"));
    compare("extended registers", ALL, form!("push r12", "mov r12, rsi", "mov [r12 + 4], r8w", "pop r12"));
    compare("FS", ALL, form!("mov eax, fs:[rsi - 0x10]"));
    compare("GS", ALL, form!("mov gs:[rsi - 0x20], al"));
    compare("32-bit address", ALL, form!("mov eax, [esi + 4]"));
    compare("32-bit address that wraps", ALL, form!("mov ecx, 0xFFFFFFFC", "mov eax, [esi + ecx]"));
    compare("unaligned", ALL, form!("mov rax, [rsi + 3]", "mov [rsi - 5], eax"));
    check!(true, "address forms");
    check!(wrmsr(0xC000_0100, 0).is_ok() && wrmsr(0xC000_0101, 0).is_ok(), "FS and GS bases back");
}

fn one_operand() {
    widths!("TEST", LOGIC, "test [rsi], ", "");
    compare("TEST 8, imm", LOGIC, form!("test byte ptr [rsi], 0x18"));
    compare("TEST 16, imm", LOGIC, form!("test word ptr [rsi], 0x1234"));
    compare("TEST 32, imm", LOGIC, form!("test dword ptr [rsi], 0x80000000"));
    compare("TEST 64, imm", LOGIC, form!("test qword ptr [rsi], -0x80000000"));
    check!(true, "TEST");
    compare("INC 8", ALL, form!("inc byte ptr [rsi]"));
    compare("INC 16", ALL, form!("inc word ptr [rsi]"));
    compare("INC 64", ALL, form!("lock inc qword ptr [rsi]"));
    compare("DEC 8", ALL, form!("dec byte ptr [rsi]"));
    compare("DEC 32", ALL, form!("lock dec dword ptr [rsi]"));
    compare("NEG 16", ALL, form!("neg word ptr [rsi]"));
    compare("NEG 64", ALL, form!("neg qword ptr [rsi]"));
    compare("NOT 8", ALL, form!("not byte ptr [rsi]"));
    compare("NOT 32", ALL, form!("lock not dword ptr [rsi]"));
    check!(true, "INC, DEC, NEG, NOT");
}

fn exchange() {
    widths!("XCHG", ALL, "xchg [rsi], ", "");
    widths!("XADD", ALL, "lock xadd [rsi], ", "");
    compare("LOCK OR 32", LOGIC, form!("lock or [rsi], eax"));
    compare("LOCK AND 64", LOGIC, form!("lock and qword ptr [rsi], 0x7F"));
    compare("CMPXCHG 8, other", ALL, form!("cmpxchg [rsi], cl"));
    compare("CMPXCHG 32, other", ALL, form!("lock cmpxchg [rsi], ecx"));
    compare("CMPXCHG 64, other", ALL, form!("lock cmpxchg [rsi], rdx"));
    compare("CMPXCHG 8, same", ALL, form!("mov al, [rsi]", "lock cmpxchg [rsi], cl"));
    compare("CMPXCHG 32, same", ALL, form!("mov eax, [rsi]", "lock cmpxchg [rsi], ecx"));
    compare("CMPXCHG 64, same", ALL, form!("mov rax, [rsi]", "cmpxchg [rsi], rdx"));
    check!(true, "XCHG, XADD, CMPXCHG, LOCK");
}

/// SDM vol. 2A "BT": with a register, the bit may lie far from the operand.
fn bits() {
    compare("BT 16, imm", CARRY, form!("bt word ptr [rsi], 5"));
    compare("BT 32, imm", CARRY, form!("bt dword ptr [rsi], 31"));
    compare("BTS 32, imm", CARRY, form!("bts dword ptr [rsi], 6"));
    compare("BTR 64, imm", CARRY, form!("lock btr qword ptr [rsi], 63"));
    compare("BTC 16, imm", CARRY, form!("btc word ptr [rsi], 14"));
    compare("BT 32, r", CARRY, form!("bt [rsi], ecx"));
    compare("BTS 32, r beyond", CARRY, form!("mov ecx, 77", "lock bts [rsi], ecx"));
    compare("BTR 64, r below", CARRY, form!("mov rcx, -70", "btr [rsi], rcx"));
    compare("BTC 16, r below", CARRY, form!("mov cx, -3", "btc [rsi], cx"));
    check!(true, "BT, BTS, BTR, BTC");
}

fn strings() {
    compare_copy("MOVSB", form!("movsb"));
    compare_copy("MOVSW", form!("movsw"));
    compare_copy("MOVSD", form!("movsd"));
    compare_copy("MOVSQ", form!("movsq"));
    compare_copy("MOVSD down", form!("std", "movsd"));
    compare_copy("STOSB", form!("stosb"));
    compare_copy("STOSW", form!("stosw"));
    compare_copy("STOSD", form!("stosd"));
    compare_copy("STOSQ down", form!("std", "stosq"));
    compare_copy("LODSB", form!("lodsb"));
    compare_copy("LODSW", form!("lodsw"));
    compare_copy("LODSD down", form!("std", "lodsd"));
    compare_copy("LODSQ", form!("lodsq"));
    compare_copy("CMPSB", form!("cmpsb"));
    compare_copy("CMPSW down", form!("std", "cmpsw"));
    compare_copy("CMPSQ", form!("cmpsq"));
    compare_copy("SCASB", form!("scasb"));
    compare_copy("SCASD", form!("scasd"));
    compare_copy("MOVSB, 32-bit addresses", form!(".byte 0x67", "movsb"));
    check!(true, "MOVS, STOS, LODS, CMPS, SCAS");
}

fn repeated() {
    compare_copy("REP MOVSB", form!("rep movsb"));
    compare_copy("REP MOVSW", form!("rep movsw"));
    compare_copy("REP MOVSQ", form!("rep movsq"));
    compare_copy("REP MOVSD down", form!("std", "rep movsd"));
    compare_copy("REP MOVSB, 60 bytes", form!("mov ecx, 60", "rep movsb"));
    compare_copy("REP STOSB", form!("rep stosb"));
    compare_copy("REP STOSQ", form!("rep stosq"));
    compare_copy("REP STOSB, 60 bytes", form!("mov ecx, 60", "rep stosb"));
    compare_copy("REP STOSW, none", form!("xor ecx, ecx", "rep stosw"));
    compare_copy("REP LODSD", form!("rep lodsd"));
    compare_copy("REPE CMPSB", form!("repe cmpsb"));
    compare_copy("REPNE CMPSW", form!("repne cmpsw"));
    compare_copy("REPNE SCASB", form!("mov al, [rdi + 3]", "mov ecx, 20", "repne scasb"));
    compare_copy("REPE SCASB", form!("mov al, [rdi]", "repe scasb"));
    check!(true, "REP");
}

/// The forms of MOV with a full address in the instruction.
fn absolute() {
    // SAFETY: the test device, which holds no Rust object.
    let device = unsafe { Region::new(DEVICE, 256) };
    device.write64(0x10, 0x8877_6655_4433_2211);
    let (mut byte, mut dword, mut qword) = (0_u64, 0_u64, 0_u64);
    // SAFETY: reads and one write of the test device.
    unsafe {
        asm!("movabs al, [0xFED80010]", inout("rax") byte);
        asm!("movabs eax, [0xFED80010]", inout("rax") dword);
        asm!("movabs rax, [0xFED80010]", inout("rax") qword);
        asm!("movabs [0xFED80018], ax", in("rax") 0xABCD_u64);
    }
    check_eq!((byte, dword, qword), (0x11, 0x4433_2211, 0x8877_6655_4433_2211), "MOV from an absolute address");
    check_eq!(device.read16(0x18), 0xABCD, "MOV to an absolute address");
}

fn read64(address: u64) -> Result<u64, (u64, u64)> {
    let mut value = 0;
    // SAFETY: the address is a page of the window, which holds no Rust object; a fault is caught.
    let caught = catch(|| unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack)) });
    caught.map_or(Ok(value), |e| Err(e.code()))
}

fn write64(address: u64, value: u64) -> Result<(), (u64, u64)> {
    // SAFETY: as for the one above: no Rust object lies there.
    let caught = catch(|| unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) });
    caught.map_or(Ok(()), |e| Err(e.code()))
}

/// The guest's own page tables hold for emulated accesses: translation, protection, page crossing, accessed and dirty.
fn pages() {
    use paging::{A, D, P, W};
    // SAFETY: the test device and RAM above the image, which hold no Rust object.
    let (device, ram) = unsafe { (Region::new(DEVICE, 256), Region::new(RAM, 4096)) };
    device.write64(0, 0x1122_3344_5566_7788);
    let mapped = paging::set(10, DEVICE as u64 | P | W);
    check_eq!(read64(mapped), Ok(0x1122_3344_5566_7788), "a device page at another address");
    check_eq!(paging::get(10) & (A | D), A, "a read sets accessed");
    check_eq!(write64(mapped + 8, 5), Ok(()), "a write there");
    check_eq!(device.read64(8), 5, "reaches the device");
    check_eq!(paging::get(10) & (A | D), A | D, "and sets dirty");
    let read_only = paging::set(11, DEVICE as u64 | P);
    check_eq!(write64(read_only + 8, 6), Err((14, 3)), "a write to a read-only device page is #PF");
    check_eq!(device.read64(8), 5, "and does not reach the device");
    let last = paging::set(12, DEVICE as u64 | P | W);
    let absent = paging::set(13, 0);
    check_eq!(read64(last + 4092), Err((14, 0)), "a read that crosses into an absent page is #PF");
    check_eq!(cpu::cr2(), absent, "at the second page");
    check_eq!(write64(last + 4092, 0), Err((14, 2)), "a write too");
    ram.write64(4088, 0xAABB_CCDD_0000_0000);
    let crossing = paging::set(14, RAM as u64 | P | W) + 4092;
    paging::set(15, DEVICE as u64 | P | W);
    check_eq!(read64(crossing), Ok(0x5566_7788_AABB_CCDD), "a read from RAM into the device");
    check_eq!(write64(crossing, 0x0102_0304_0506_0708), Ok(()), "a write from RAM into the device");
    check_eq!((ram.read32(4092), device.read32(0)), (0x0506_0708, 0x0102_0304), "reaches both");
}
