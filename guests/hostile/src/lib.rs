//! Hostile guests: the line protocol, random numbers, and accesses that may fault.
//!
//! Each program in `src/bin` is a family of attacks, and boots one of them: `attack=NAME` in its command line. It prints
//! `attack NAME`, then `saw TEXT` for what there is to tell, then `held NAME`, or `broke NAME: WHY` for each thing that
//! it got and should not have got. Its exit code is 0 if all held. An attack that ends its own machine prints as far as it
//! comes. `seed=N` seeds its random numbers.
#![no_std]
#![allow(clippy::cast_possible_truncation, reason = "a guest of 64 bits")]
#![allow(clippy::result_large_err, reason = "a caught exception is a whole register state, and nothing here is hot")]

use bulkhead_rt::{Exception, apic, catch, cmdline, cpu, exit, println, serial, word_value};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

static BROKEN: AtomicU32 = AtomicU32::new(0);

/// Most lines `broke` that are printed.
const SHOWN: u32 = 10;

/// An attack: its name and what it does.
pub type Attack = (&'static str, fn());

/// The name of the attack that the command line asks for.
#[must_use]
pub fn name() -> &'static str {
    cmdline().split_ascii_whitespace().find_map(|word| word.strip_prefix("attack=")).unwrap_or_default()
}

/// Runs the attack that the command line asks for, and ends this guest.
pub fn run(attacks: &[Attack]) {
    let name = name();
    println!("attack {name}");
    match attacks.iter().find(|(known, _)| *known == name) {
        Some((_, attack)) => attack(),
        None => broke(format_args!("there is no such attack")),
    }
    // Whatever became of the serial line, the verdict is to be read.
    serial::init();
    let held = BROKEN.load(Ordering::Relaxed) == 0;
    if held {
        println!("\nheld {name}");
    }
    exit(u32::from(!held))
}

/// Notes that the attacker got what it should not get; for the macros.
pub fn broke(why: core::fmt::Arguments<'_>) {
    if BROKEN.fetch_add(1, Ordering::Relaxed) < SHOWN {
        println!("broke {}: {why}", name());
    }
}

/// `saw!("text {}", ...)`: tells what the attacker saw.
#[macro_export]
macro_rules! saw {
    ($($text:tt)+) => { ::bulkhead_rt::println!("saw {}", ::core::format_args!($($text)+)) };
}

/// `hold!(condition, "why {}", ...)`: the boundary is broken if the condition does not hold.
#[macro_export]
macro_rules! hold {
    ($condition:expr, $($why:tt)+) => { if !$condition { $crate::broke(::core::format_args!($($why)+)) } };
}

/// `hold_eq!(seen, expected, "what {}", ...)`: the boundary is broken if they differ.
#[macro_export]
macro_rules! hold_eq {
    ($seen:expr, $expected:expr, $($what:tt)+) => {
        match ($seen, $expected) {
            (seen, expected) => if seen != expected {
                $crate::broke(::core::format_args!("{}: {seen:x?}, not {expected:x?}", ::core::format_args!($($what)+)))
            },
        }
    };
}

/// Halts until the time-stamp counter is there; the local APIC's timer interrupts by it.
pub fn sleep_until(count: u64) {
    hold!(cpu::wrmsr(apic::DEADLINE_MSR, count).is_ok(), "there is no timer by the counter");
    cpu::wait_for_interrupt();
}

/// Marsaglia's xorshift.
pub struct Random(u64);

impl Random {
    /// With the seed of the command line.
    #[must_use]
    pub fn new() -> Self {
        Self(word_value("seed").unwrap_or(1) | 1 << 63)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.number() >> 11) % limit
    }

    /// One of `values`.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        let index = self.below(values.len() as u64) as usize;
        #[expect(clippy::indexing_slicing, reason = "below the length")]
        values[index]
    }

    /// Small, large, or a single bit.
    pub fn value(&mut self) -> u64 {
        let value = self.number();
        match self.below(4) {
            0 => value & 0xFF,
            1 => 1 << (value & 63),
            2 => u64::MAX << (value & 63),
            _ => value,
        }
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

/// Values that boundaries are tried with: none, all, each single bit, ends of ranges.
pub fn walking() -> impl Iterator<Item = u64> {
    let ends = [0, u64::MAX, 0x7FFF_FFFF_FFFF_FFFF, 0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 0xFFFF_FFFF];
    ends.into_iter().chain((0..64).map(|bit| 1 << bit))
}

/// Reads eight bytes at a linear address.
///
/// # Errors
/// The exception that it took.
pub fn peek(address: u64) -> Result<u64, Exception> {
    let mut value = 0_u64;
    // SAFETY: reading changes nothing that Rust knows; a fault is caught.
    match catch(|| unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address, options(nostack)) }) {
        None => Ok(value),
        Some(exception) => Err(exception),
    }
}

/// Writes eight bytes at a linear address, which is the attack's own.
///
/// # Errors
/// The exception that it took.
pub fn poke(address: u64, value: u64) -> Result<(), Exception> {
    // SAFETY: attacks write to what holds no Rust object; a fault is caught.
    catch(|| unsafe { asm!("mov [{}], {}", in(reg) address, in(reg) value, options(nostack)) }).map_or(Ok(()), Err)
}

/// Vector of the exception that `code` takes; `None` if it takes none.
pub fn vector_of(code: impl FnOnce()) -> Option<u64> {
    catch(code).map(|exception| exception.vector())
}

/// End of this guest's RAM below 4 GiB.
#[must_use]
pub fn ram_end() -> u64 {
    let ram = bulkhead_rt::memory_map().filter(|(start, _, kind)| *kind == 1 && *start < 1 << 32);
    ram.map(|(start, bytes, _)| start + bytes).max().unwrap_or(0)
}

/// Bits of a physical address.
#[must_use]
pub fn physical_bits() -> u32 {
    bulkhead_rt::cpu::cpuid(0x8000_0008, 0).eax & 0xFF
}

/// `vector!("instruction", operands)`: vector of the exception that the instruction takes.
#[macro_export]
macro_rules! vector {
    ($($asm:tt)+) => {
        // SAFETY: an instruction that touches nothing but the attack's own memory; a fault is caught.
        $crate::vector_of(|| unsafe { ::core::arch::asm!($($asm)+) })
    };
}
