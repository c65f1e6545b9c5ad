//! A load for all processors of the guest Linux: `/init` run from its shell.
//!
//! One line of result for each: how many processors there are; a computation pinned to each, and the user time that
//! /proc/stat then has of each; a page that is mapped anew while the others read it, so that each has to forget the old one;
//! memory barriers on all processors; a byte to and fro between two. System calls are x86-64's.

use super::{decimal, print, system_call};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const READ: u64 = 0;
const OPEN: u64 = 2;
const CLOSE: u64 = 3;
const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const PIPE: u64 = 22;
const WAIT4: u64 = 61;
const SET_AFFINITY: u64 = 203;
const GET_AFFINITY: u64 = 204;
const CLOCK_GETTIME: u64 = 228;
const MEMBARRIER: u64 = 324;
/// CLONE_VM, CLONE_FS, CLONE_FILES, and SIGCHLD at the end.
const SHARED: u64 = 0x100 | 0x200 | 0x400 | 17;
/// PROT_READ and PROT_WRITE; MAP_PRIVATE, MAP_FIXED and MAP_ANONYMOUS.
const READ_WRITE: u64 = 3;
const FIXED: u64 = 0x32;
/// Where nothing else is.
const PAGE: u64 = 0x5000_0000;
const MOST: usize = 8;
const STACK: usize = 16 << 10;
const REMAPS: u64 = 2000;
const BARRIERS: u64 = 2000;
const TURNS: u64 = 1000;
/// Time of the computation, and least user time of each processor in it, in hundredths of a second.
const LOAD_MILLISECONDS: u64 = 500;
const LEAST_TICKS: u64 = 5;

global_asm!(
    // linux_spawn(flags: rdi, stack: rsi, function: rdx, argument: rcx) -> the process, or an error
    ".globl linux_spawn",
    "linux_spawn:",
    "mov r8, rdx",
    "mov r9, rcx",
    "mov eax, 56",
    "syscall",
    "test rax, rax",
    "jnz 2f",
    "mov rdi, r9",
    "call r8",
    "mov edi, eax",
    "mov eax, 60",
    "syscall",
    "2: ret",
);

type Work = extern "sysv64" fn(u64) -> u64;

unsafe extern "sysv64" {
    fn linux_spawn(flags: u64, stack: u64, function: Work, argument: u64) -> i64;
}

#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; MOST]>);

// SAFETY: each stack is one process's alone; Rust never refers to the bytes.
unsafe impl Sync for Stacks {}

/// Room for /proc/stat. There is no C library, so no large array is set to zero on the stack.
#[repr(C)]
struct Text(UnsafeCell<[u8; 2048]>);

// SAFETY: the first process alone uses it, in one function.
unsafe impl Sync for Text {}

static TEXT: Text = Text(UnsafeCell::new([0; 2048]));
static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MOST]));
static READY: AtomicU32 = AtomicU32::new(0);
static OVER: AtomicBool = AtomicBool::new(false);
static ROUND: AtomicU64 = AtomicU64::new(0);
static STALE: AtomicU64 = AtomicU64::new(0);

/// Runs all; whether all was right.
pub fn run() -> bool {
    let cpus = online();
    line(b"cpus", &[cpus], cpus > 0);
    let computed = load(cpus);
    let remapped = remap(cpus);
    let fenced = barriers(cpus);
    let answered = turns(cpus);
    let right = computed && remapped && fenced && answered;
    print(if right { b"smp PASS\n" } else { b"smp FAIL\n" });
    right
}

fn line(what: &[u8], numbers: &[u64], right: bool) {
    print(b"smp ");
    print(what);
    for number in numbers {
        print(b" ");
        print(decimal(*number, &mut [0; super::DIGITS]));
    }
    print(if right { b": ok\n" } else { b": WRONG\n" });
}

fn call(number: u64, first: u64, second: u64, third: u64) -> u64 {
    // SAFETY: callers here pass addresses of their own live objects, or pages that only this load uses.
    unsafe { system_call(number, first, second, third) }
}

fn online() -> u64 {
    let mut mask = [0_u64; 16];
    call(GET_AFFINITY, 0, size_of_val(&mask) as u64, (&raw mut mask) as u64);
    mask.iter().map(|word| u64::from(word.count_ones())).sum::<u64>().min(MOST as u64)
}

/// Binds the caller to processor `cpu`.
fn pin(cpu: u64) -> bool {
    let mask = [1_u64 << cpu];
    call(SET_AFFINITY, 0, 8, (&raw const mask) as u64) == 0
}

fn milliseconds() -> u64 {
    let mut time = [0_u64; 2];
    call(CLOCK_GETTIME, 1, (&raw mut time) as u64, 0);
    let [seconds, nanoseconds] = time;
    seconds * 1000 + nanoseconds / 1_000_000
}

/// Starts `work` on each processor in `cpus`, in this address space; it is given the processor's number.
fn spawn(cpus: core::ops::Range<u64>, work: Work) -> u64 {
    READY.store(0, Ordering::SeqCst);
    OVER.store(false, Ordering::SeqCst);
    let mut started = 0;
    for cpu in cpus {
        let top = STACKS.0.get() as u64 + (cpu + 1) * STACK as u64;
        // SAFETY: the stack is this process's alone until it has been waited for; `work` ends by returning.
        started += u64::from(unsafe { linux_spawn(SHARED, top, work, cpu) } > 0);
    }
    started
}

/// Waits for `count` processes; whether each has returned 0.
fn wait(count: u64) -> bool {
    let mut right = true;
    for _ in 0..count {
        let mut status = 0_u32;
        let none = 0_u64;
        call(WAIT4, u64::MAX, (&raw mut status) as u64, none);
        right &= status == 0;
    }
    right
}

fn wait_ready(count: u64) {
    while u64::from(READY.load(Ordering::SeqCst)) < count {
        core::hint::spin_loop();
    }
}

extern "sysv64" fn compute(cpu: u64) -> u64 {
    if !pin(cpu) {
        return 1;
    }
    let end = milliseconds() + LOAD_MILLISECONDS;
    let mut value = cpu | 1;
    while milliseconds() < end {
        for _ in 0..20_000 {
            value = core::hint::black_box(value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    u64::from(value == 0)
}

/// User time of each processor, in hundredths of a second: the lines `cpuN USER ...` of /proc/stat.
fn user_times() -> [u64; MOST] {
    let mut times = [0; MOST];
    let file = call(OPEN, c"/proc/stat".as_ptr() as u64, 0, 0);
    let bytes = call(READ, file, TEXT.0.get() as u64, 2048);
    call(CLOSE, file, 0, 0);
    // SAFETY: the kernel has written to it, and nobody does until the next call.
    let text = unsafe { &*TEXT.0.get() };
    let text = text.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ');
        let number = words.next().and_then(|name| name.strip_prefix(b"cpu")).filter(|digits| !digits.is_empty());
        let (Some(number), Some(user)) = (number, words.next()) else { continue };
        if let Some(time) = usize::try_from(value(number)).ok().and_then(|number| times.get_mut(number)) {
            *time = value(user);
        }
    }
    times
}

fn value(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit.wrapping_sub(b'0')))
}

fn load(cpus: u64) -> bool {
    let before = user_times();
    let started = spawn(0..cpus, compute);
    let came = wait(started) && started == cpus;
    let mut grown = user_times();
    grown.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
    let grown = grown.get(..usize::try_from(cpus).unwrap_or(0)).unwrap_or_default();
    let right = came && grown.iter().all(|ticks| *ticks >= LEAST_TICKS);
    line(b"user time of each", grown, right);
    right
}

/// Reads the page all the time; what it reads may be newer than the round, not older.
extern "sysv64" fn reader(cpu: u64) -> u64 {
    let pinned = pin(cpu);
    READY.fetch_add(1, Ordering::SeqCst);
    while !OVER.load(Ordering::SeqCst) {
        let round = ROUND.load(Ordering::SeqCst);
        // SAFETY: remap() has mapped the page, and a mapping takes the place of the one before in one step.
        let seen = unsafe { (PAGE as *const u64).read_volatile() };
        // Zero is a page that has just come and is not yet filled.
        if seen != 0 && seen < round {
            STALE.fetch_add(1, Ordering::SeqCst);
        }
    }
    u64::from(!pinned)
}

/// Maps the page anew and again, fills it, and tells the round; then makes it read-only and writable again.
fn remap(cpus: u64) -> bool {
    map_page();
    pin(0);
    let started = spawn(1..cpus, reader);
    wait_ready(started);
    let mut right = started == cpus - 1;
    for round in 1..=REMAPS {
        right &= map_page();
        // SAFETY: the page has just been mapped, and only this process writes to it.
        unsafe { (PAGE as *mut u64).write_volatile(round) };
        ROUND.store(round, Ordering::SeqCst);
        right &= call(MPROTECT, PAGE, 4096, 1) == 0 && call(MPROTECT, PAGE, 4096, READ_WRITE) == 0;
    }
    OVER.store(true, Ordering::SeqCst);
    right &= wait(started);
    let stale = STALE.load(Ordering::SeqCst);
    right &= stale == 0;
    line(b"pages mapped anew, and stale", &[REMAPS, stale], right);
    right
}

fn map_page() -> bool {
    let result: u64;
    // SAFETY: mmap of private memory at an address where nothing but this page is; six arguments.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") MMAP => result, in("rdi") PAGE, in("rsi") 4096_u64, in("rdx") READ_WRITE,
            in("r10") FIXED, in("r8") u64::MAX, in("r9") 0_u64, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == PAGE
}

extern "sysv64" fn spinner(cpu: u64) -> u64 {
    let pinned = pin(cpu);
    READY.fetch_add(1, Ordering::SeqCst);
    while !OVER.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    u64::from(!pinned)
}

/// MEMBARRIER_CMD_PRIVATE_EXPEDITED: an interrupt for each processor that runs in this address space.
fn barriers(cpus: u64) -> bool {
    const EXPEDITED: u64 = 8;
    const REGISTER: u64 = 16;
    let mut right = call(MEMBARRIER, REGISTER, 0, 0) == 0;
    let started = spawn(1..cpus, spinner);
    wait_ready(started);
    for _ in 0..BARRIERS {
        right &= call(MEMBARRIER, EXPEDITED, 0, 0) == 0;
    }
    OVER.store(true, Ordering::SeqCst);
    right &= wait(started) && started == cpus - 1;
    line(b"barriers", &[BARRIERS], right);
    right
}

/// The ends of two pipes: to the other processor, and back; read end in the low half.
static THERE: AtomicU64 = AtomicU64::new(0);
static BACK: AtomicU64 = AtomicU64::new(0);

/// One byte from the read end of `from` to the write end of `to`.
fn pass(from: &AtomicU64, to: &AtomicU64, byte: &mut u8) -> bool {
    let (from, to) = (from.load(Ordering::SeqCst) & 0xFFFF_FFFF, to.load(Ordering::SeqCst) >> 32);
    call(READ, from, (&raw mut *byte) as u64, 1) == 1 && call(super::WRITE, to, (&raw const *byte) as u64, 1) == 1
}

extern "sysv64" fn answer(cpu: u64) -> u64 {
    let mut byte = 0;
    u64::from(!pin(cpu) || !(0..TURNS).all(|_| pass(&THERE, &BACK, &mut byte)))
}

/// A byte to and fro between the first and the last processor: each waits in turn, and is woken by the other.
fn turns(cpus: u64) -> bool {
    let mut right = call(PIPE, THERE.as_ptr() as u64, 0, 0) == 0 && call(PIPE, BACK.as_ptr() as u64, 0, 0) == 0;
    let started = spawn(cpus - 1..cpus, answer);
    let (there, back) = (THERE.load(Ordering::SeqCst) >> 32, BACK.load(Ordering::SeqCst) & 0xFFFF_FFFF);
    for turn in 0..TURNS {
        let sent = turn as u8;
        let mut seen = !sent;
        right &= call(super::WRITE, there, (&raw const sent) as u64, 1) == 1
            && call(READ, back, (&raw mut seen) as u64, 1) == 1
            && seen == sent;
        if !right {
            break;
        }
    }
    right &= wait(started) && started == 1;
    line(b"bytes to and fro", &[TURNS], right);
    right
}
