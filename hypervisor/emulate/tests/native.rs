//! Every instruction form, carried out on a device and by the processor that runs the test: same registers, same memory,
//! same flags.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "a test")]

mod common;

use bulkhead_arch::{Gpr, Rflags};
use common::{DEVICE, Event, World};
use core::arch::{asm, naked_asm};
use proptest::prelude::*;

/// Registers and a buffer, as [`Native::run`] and the code page see them.
#[repr(C)]
#[derive(Clone, Debug)]
struct State {
    gprs: [u64; 16],
    flags: u64,
    memory: [u8; 64],
}

/// A page that holds one instruction between loading and storing all registers.
struct Native {
    page: *mut u8,
}

/// Puts the registers of the state at RDI in place, calls the code at RSI, stores the registers. The code is a single
/// instruction and a return; it must leave RSP alone.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(_state: *mut State, _code: *const u8) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "push rsi",
        "push qword ptr [rdi + 128]",
        "popfq",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rbp, [rdi + 40]",
        "mov rsi, [rdi + 48]",
        "mov r8, [rdi + 64]",
        "mov r9, [rdi + 72]",
        "mov r10, [rdi + 80]",
        "mov r11, [rdi + 88]",
        "mov r12, [rdi + 96]",
        "mov r13, [rdi + 104]",
        "mov r14, [rdi + 112]",
        "mov r15, [rdi + 120]",
        "mov rdi, [rdi + 56]",
        "call [rsp]",
        "xchg rdi, [rsp + 8]",
        "mov [rdi], rax",
        "mov [rdi + 8], rcx",
        "mov [rdi + 16], rdx",
        "mov [rdi + 24], rbx",
        "mov [rdi + 40], rbp",
        "mov [rdi + 48], rsi",
        "mov [rdi + 64], r8",
        "mov [rdi + 72], r9",
        "mov [rdi + 80], r10",
        "mov [rdi + 88], r11",
        "mov [rdi + 96], r12",
        "mov [rdi + 104], r13",
        "mov [rdi + 112], r14",
        "mov [rdi + 120], r15",
        "pushfq",
        "pop qword ptr [rdi + 128]",
        "cld",
        "mov rax, [rsp + 8]",
        "mov [rdi + 56], rax",
        "add rsp, 16",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

impl Native {
    fn new() -> Self {
        let page: *mut u8;
        // SAFETY: mmap(NULL, 4096, RWX, PRIVATE | ANONYMOUS, -1, 0) makes a new mapping and touches nothing else.
        unsafe {
            asm!("syscall", inlateout("rax") 9_u64 => page, in("rdi") 0, in("rsi") 4096, in("rdx") 7, in("r10") 0x22,
                in("r8") -1_i64, in("r9") 0, lateout("rcx") _, lateout("r11") _);
        }
        assert!((page as isize) > 0);
        Self { page }
    }

    /// Runs `code` with RBX, RSI and RDI (as far as `pointers` says) pointing into the state's memory, and takes that off again.
    fn run(&self, code: &[u8], state: &State, pointers: &[Gpr]) -> State {
        let mut state = state.clone();
        let base = (&raw mut state.memory) as u64;
        for gpr in pointers {
            state.gprs[gpr.number()] = state.gprs[gpr.number()].wrapping_add(base);
        }
        // SAFETY: the page is this object's alone, writable, and longer than any instruction; the instruction works on
        // the general registers without RSP and on the memory that its pointers name, which lies in `state`.
        unsafe {
            self.page.copy_from(code.as_ptr(), code.len());
            self.page.add(code.len()).write(0xC3);
            enter(&raw mut state, self.page);
        }
        for gpr in pointers {
            state.gprs[gpr.number()] = state.gprs[gpr.number()].wrapping_sub(base);
        }
        state
    }
}

const STATUS: u64 = 0x8D5;
const CF: u64 = 1;
const ARITHMETIC: u64 = STATUS;
/// AF is undefined.
const LOGIC: u64 = STATUS & !0x10;
/// OF, SF, AF and PF are undefined.
const BIT: u64 = CF | 0x40;

/// A form: opcode, /digit or register, bytes of immediate (at operand size 2, 4, 8 if 0xFF), flags that are defined.
#[derive(Clone, Copy, Debug)]
struct Form {
    opcode: &'static [u8],
    digit: Option<u8>,
    immediate: u8,
    flags: u64,
    /// The register operand is a byte register whatever the prefixes.
    byte: bool,
    /// Legal with LOCK when writing memory.
    lock: bool,
}

const Z: u8 = 0xFF;

const fn form(opcode: &'static [u8], digit: Option<u8>, immediate: u8, flags: u64, byte: bool, lock: bool) -> Form {
    Form { opcode, digit, immediate, flags, byte, lock }
}

fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let group: [[&'static [u8]; 4]; 8] = [
        [&[0x00], &[0x01], &[0x02], &[0x03]],
        [&[0x08], &[0x09], &[0x0A], &[0x0B]],
        [&[0x10], &[0x11], &[0x12], &[0x13]],
        [&[0x18], &[0x19], &[0x1A], &[0x1B]],
        [&[0x20], &[0x21], &[0x22], &[0x23]],
        [&[0x28], &[0x29], &[0x2A], &[0x2B]],
        [&[0x30], &[0x31], &[0x32], &[0x33]],
        [&[0x38], &[0x39], &[0x3A], &[0x3B]],
    ];
    for (digit, opcodes) in (0_u8..).zip(group) {
        let flags = if matches!(digit, 1 | 4 | 6) { LOGIC } else { ARITHMETIC };
        let lock = digit != 7;
        for (index, opcode) in opcodes.into_iter().enumerate() {
            forms.push(form(opcode, None, 0, flags, index % 2 == 0, lock && index < 2));
        }
        forms.push(form(&[0x80], Some(digit), 1, flags, false, lock));
        forms.push(form(&[0x81], Some(digit), Z, flags, false, lock));
        forms.push(form(&[0x83], Some(digit), 1, flags, false, lock));
    }
    forms.extend([
        form(&[0x84], None, 0, LOGIC, true, false),
        form(&[0x85], None, 0, LOGIC, false, false),
        form(&[0x86], None, 0, STATUS, true, true),
        form(&[0x87], None, 0, STATUS, false, true),
        form(&[0x88], None, 0, STATUS, true, false),
        form(&[0x89], None, 0, STATUS, false, false),
        form(&[0x8A], None, 0, STATUS, true, false),
        form(&[0x8B], None, 0, STATUS, false, false),
        form(&[0xC6], Some(0), 1, STATUS, false, false),
        form(&[0xC7], Some(0), Z, STATUS, false, false),
        form(&[0xF6], Some(0), 1, LOGIC, false, false),
        form(&[0xF7], Some(0), Z, LOGIC, false, false),
        form(&[0xF6], Some(2), 0, STATUS, false, true),
        form(&[0xF7], Some(2), 0, STATUS, false, true),
        form(&[0xF6], Some(3), 0, ARITHMETIC, false, true),
        form(&[0xF7], Some(3), 0, ARITHMETIC, false, true),
        form(&[0xFE], Some(0), 0, ARITHMETIC, false, true),
        form(&[0xFF], Some(0), 0, ARITHMETIC, false, true),
        form(&[0xFE], Some(1), 0, ARITHMETIC, false, true),
        form(&[0xFF], Some(1), 0, ARITHMETIC, false, true),
        form(&[0x63], None, 0, STATUS, false, false),
        form(&[0x0F, 0xB6], None, 0, STATUS, false, false),
        form(&[0x0F, 0xB7], None, 0, STATUS, false, false),
        form(&[0x0F, 0xBE], None, 0, STATUS, false, false),
        form(&[0x0F, 0xBF], None, 0, STATUS, false, false),
        form(&[0x0F, 0xC0], None, 0, ARITHMETIC, true, true),
        form(&[0x0F, 0xC1], None, 0, ARITHMETIC, false, true),
        form(&[0x0F, 0xB0], None, 0, ARITHMETIC, true, true),
        form(&[0x0F, 0xB1], None, 0, ARITHMETIC, false, true),
        form(&[0x0F, 0xA3], None, 0, BIT, false, false),
        form(&[0x0F, 0xAB], None, 0, BIT, false, true),
        form(&[0x0F, 0xB3], None, 0, BIT, false, true),
        form(&[0x0F, 0xBB], None, 0, BIT, false, true),
        form(&[0x0F, 0xBA], Some(4), 1, BIT, false, false),
        form(&[0x0F, 0xBA], Some(5), 1, BIT, false, true),
        form(&[0x0F, 0xBA], Some(6), 1, BIT, false, true),
        form(&[0x0F, 0xBA], Some(7), 1, BIT, false, true),
        form(&[0x0F, 0x38, 0xF0], None, 0, STATUS, false, false),
        form(&[0x0F, 0x38, 0xF1], None, 0, STATUS, false, false),
        form(&[0x0F, 0xC3], None, 0, STATUS, false, false),
    ]);
    forms
}

/// One case: a form with prefixes, register and operands.
#[derive(Clone, Copy, Debug)]
struct Case {
    rex: Option<u8>,
    word: bool,
    lock: bool,
    register: u8,
    immediate: [u8; 4],
}

/// Encodes `[rbx + disp8]`; `None` where this combination would name RBX or RSP, or is no instruction.
fn encode(form: Form, case: Case) -> Option<Vec<u8>> {
    let mut code = Vec::new();
    // MOVNTI has no operand-size prefix.
    let word = case.word && form.opcode != [0x0F, 0xC3];
    if word {
        code.push(0x66);
    }
    if case.lock && form.lock {
        code.push(0xF0);
    }
    // Of the REX prefix: W and R.
    let rex = case.rex.map(|rex| 0x40 | (rex & 0b1100));
    code.extend(rex);
    code.extend(form.opcode);
    let register = form.digit.unwrap_or(case.register & 7);
    let extended = rex.is_some_and(|rex| rex & 4 != 0);
    let legacy_byte = form.byte && rex.is_none();
    if form.digit.is_none()
        && !extended
        && (register == 3 || register == 4 && !legacy_byte || register == 7 && legacy_byte)
    {
        return None;
    }
    code.extend([0x40 | (register << 3) | 3, 24]);
    let wide = rex.is_some_and(|rex| rex & 8 != 0);
    let immediate = match form.immediate {
        Z if word && !wide => 2,
        Z => 4,
        bytes => bytes,
    };
    code.extend(&case.immediate[..usize::from(immediate)]);
    Some(code)
}

/// Values where carries, signs and bit numbers change, from random ones.
fn interesting((random, kind): (u64, u8)) -> u64 {
    match kind % 8 {
        0 => random % 64,
        1 => 1 << (random % 64),
        2 => (1 << (random % 64)) - 1,
        3 => u64::MAX,
        4 => 0x8000_8000_8080_8080,
        5 => 0x7FFF_7FFF_7F7F_7F7F,
        _ => random,
    }
}

fn value() -> impl Strategy<Value = u64> {
    any::<(u64, u8)>().prop_map(interesting)
}

fn case() -> impl Strategy<Value = Case> {
    (proptest::option::of(any::<u8>()), any::<bool>(), any::<bool>(), any::<u8>(), any::<[u8; 4]>())
        .prop_map(|(rex, word, lock, register, immediate)| Case { rex, word, lock, register, immediate })
}

fn state() -> impl Strategy<Value = State> {
    (proptest::collection::vec(value(), 16), any::<u64>(), proptest::collection::vec(value(), 8)).prop_map(
        |(gprs, flags, words)| {
            let mut memory = [0; 64];
            for (into, word) in memory.chunks_exact_mut(8).zip(words) {
                into.copy_from_slice(&word.to_le_bytes());
            }
            State { gprs: gprs.try_into().unwrap(), flags: (flags & STATUS) | 0x202, memory }
        },
    )
}

/// Runs `code` on both and compares.
fn compare(native: &Native, code: &[u8], state: &State, flags: u64, pointers: &[Gpr]) -> Vec<Event> {
    let expected = native.run(code, state, pointers);
    let mut world = World::bits64();
    world.cpu.gprs = state.gprs;
    for &gpr in pointers {
        world.set(gpr, state.gprs[gpr.number()].wrapping_add(DEVICE));
    }
    world.cpu.paging.rflags = Rflags::from_bits_retain(state.flags);
    world.device.bytes[..64].copy_from_slice(&state.memory);
    world.done(code);
    for &gpr in pointers {
        world.set(gpr, world.get(gpr).wrapping_sub(DEVICE));
    }
    for gpr in Gpr::ALL {
        if gpr != Gpr::Rsp {
            assert_eq!(world.get(gpr), expected.gprs[gpr.number()], "{gpr:?} after {code:02x?}");
        }
    }
    let got = world.cpu.paging.rflags.bits();
    assert_eq!(got & flags, expected.flags & flags, "flags after {code:02x?}: {got:#x}, {:#x}", expected.flags);
    assert_eq!(got & !STATUS, state.flags & !STATUS);
    assert_eq!(world.device.bytes[..64], expected.memory, "memory after {code:02x?}");
    world.device.events
}

#[test]
fn every_form_does_what_the_processor_does() {
    let native = Native::new();
    for form in forms() {
        // A runner of its own: a runner counts its cases over all of its runs.
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(200));
        runner
            .run(&(case(), state()), |(case, mut state)| {
                let Some(code) = encode(form, case) else { return Ok(()) };
                state.gprs[3] = 0;
                if matches!(form.opcode, [0x0F, 0xA3 | 0xAB | 0xB3 | 0xBB]) {
                    // Bit numbers within the memory around the operand.
                    for gpr in &mut state.gprs {
                        *gpr = (*gpr % 384).wrapping_sub(192);
                    }
                    state.gprs[3] = 0;
                }
                let events = compare(&native, &code, &state, form.flags, &[Gpr::Rbx]);
                // The device sees at most one read, then at most one write.
                assert!(matches!(
                    events[..],
                    [Event::Read(..) | Event::Write(..)] | [Event::Read(..), Event::Write(..)]
                ));
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn compare_exchange_hits_and_misses() {
    let native = Native::new();
    for (accumulator, old) in [(5_u64, 5_u64), (5, 6), (0xFFFF_FFFF_0000_0005, 5), (u64::MAX, 0x8000_0000)] {
        for code in [
            &[0x0F, 0xB0, 0x4B, 24][..],
            &[0x66, 0x0F, 0xB1, 0x4B, 24],
            &[0x0F, 0xB1, 0x4B, 24],
            &[0x48, 0x0F, 0xB1, 0x4B, 24],
        ] {
            let mut state = State { gprs: [0x1122_3344_5566_7788; 16], flags: 0x202, memory: [0; 64] };
            (state.gprs[0], state.gprs[3]) = (accumulator, 0);
            state.memory[24..32].copy_from_slice(&old.to_le_bytes());
            compare(&native, code, &state, ARITHMETIC, &[Gpr::Rbx]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn string_instructions_do_what_the_processor_does(
        opcode in prop_oneof![0xA4_u8..=0xA7, 0xAA_u8..=0xAF],
        prefix in proptest::option::of(0xF2_u8..=0xF3),
        size in 0_u8..3,
        count in 0_u64..6,
        backwards in any::<bool>(),
        source in 0_u64..3,
        destination in 0_u64..3,
        alphabet in any::<[bool; 64]>(),
        accumulator in value(),
    ) {
        let native = Native::new_once();
        let mut code: Vec<u8> = Vec::new();
        code.extend((size == 1).then_some(0x66));
        code.extend(prefix);
        code.extend((size == 2).then_some(0x48));
        code.push(opcode);
        let mut state = State { gprs: [0; 16], flags: if backwards { 0x602 } else { 0x202 }, memory: alphabet.map(u8::from) };
        let start = if backwards { 40 } else { 0 };
        (state.gprs[0], state.gprs[1]) = (accumulator, count);
        (state.gprs[6], state.gprs[7]) = (start + source * 8, start + destination * 8);
        compare(&native, &code, &state, ARITHMETIC, &[Gpr::Rsi, Gpr::Rdi]);
    }
}

impl Native {
    /// One page for all cases of a property.
    fn new_once() -> Self {
        thread_local!(static PAGE: *mut u8 = Native::new().page);
        Self { page: PAGE.with(|page| *page) }
    }
}

#[test]
fn absolute_addresses_and_high_bytes() {
    let mut world = World::bits32();
    world.device.bytes[..4].copy_from_slice(&[1, 2, 3, 4]);
    world.done(&[0xA1, 0, 0, 0, 0x80]);
    assert_eq!(world.get(Gpr::Rax), 0x0403_0201);
    world.set(Gpr::Rcx, 0x1_1111_7711).done(&[0x88, 0x2D, 8, 0, 0, 0x80]);
    assert_eq!(world.device.bytes[8], 0x77);
    let mut world = World::bits64();
    world.set(Gpr::Rax, 0xAABB).done(&[0xA2, 1, 0, 0, 0x80, 0, 0, 0, 0]);
    assert_eq!(world.device.events, [Event::Write(DEVICE + 1, 1, 0xBB)]);
    world.done(&[0x67, 0xA1, 0, 0, 0, 0x80]);
    assert_eq!(world.device.events.len(), 2);
}
