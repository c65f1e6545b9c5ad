//! Attacks on the devices: each register, each width, random values, long traces.
#![no_std]
#![no_main]
#![allow(clippy::cast_possible_truncation, reason = "a guest of 64 bits")]

use bulkhead_hostile::{Random, hold, run, saw};
use bulkhead_rt::{apic, catch, pic, port, scenario, trap};
use core::arch::asm;
use core::ops::RangeInclusive;

scenario!(main);

fn main() {
    trap::on(2, |_| ());
    run(&[
        ("serial", || registers(0x3F8..=0x3FF)),
        ("interrupt-controllers", || registers(0x20..=0x21)),
        ("interval-timer", || registers(0x40..=0x43)),
        ("speaker", || registers(0x61..=0x61)),
        ("keyboard", || registers(0x60..=0x64)),
        ("clock", || registers(0x70..=0x71)),
        ("firmware", || registers(0x510..=0x518)),
        ("power", || registers(0x600..=0x60F)),
        ("pci", || registers(0xCF8..=0xCFF)),
        ("pci-configuration", pci),
        ("all-ports", all_ports),
        ("random-trace", || trace(20_000)),
    ]);
}

/// Whether a write to `bytes` ports from here on would end the guest: test exit, power management, resets.
fn ends(first: u16, bytes: u16) -> bool {
    [0xF4..0xF8, 0x600..0x606, 0x64..0x65, 0x92..0x93, 0xCF9..0xCFA]
        .iter()
        .any(|p| first < p.end && p.start < first.saturating_add(bytes))
}

fn access(port: u16, kind: u64, value: u64) {
    let width = 1 << (kind % 3);
    match kind {
        0 => _ = port::read8(port),
        1 => _ = port::read16(port),
        2 => _ = port::read32(port),
        _ if ends(port, width) => {}
        3 => port::write8(port, value as u8),
        4 => port::write16(port, value as u16),
        _ => port::write32(port, value as u32),
    }
}

/// Every port of a device, in every width, with random values, read and written.
fn registers(ports: RangeInclusive<u16>) {
    let mut random = Random::new();
    for _ in 0..300 {
        for port in ports.clone() {
            for kind in 0..6 {
                access(port, kind, random.value());
            }
        }
    }
    bulkhead_rt::serial::init();
    saw!("its own device");
}

/// Every function of every bus, every register.
fn pci() {
    let mut found = 0_u32;
    for function in (0..0x1_0000_u32).step_by(3).take(4000) {
        port::write32(0xCF8, 1 << 31 | function << 8);
        found += u32::from(port::read32(0xCFC) != u32::MAX);
    }
    for register in (0..256).step_by(4) {
        for address in [1 << 31 | register, register, 1 << 31 | 0x7F00_0000 | register] {
            port::write32(0xCF8, address);
            for at in 0xCFC..=0xCFF {
                (0..6).for_each(|kind| access(at, kind, u64::from(address) * 0x9E37_79B9));
            }
        }
    }
    hold!(found <= 1, "{found} devices");
    saw!("{found} device");
}

/// Each of 65536 ports.
fn all_ports() {
    let mut answering = 0_u32;
    for port in 0..=u16::MAX {
        answering += u32::from(port::read8(port) != 0xFF);
        if port % 16 == 0 {
            access(port, 1, 0);
            access(port, 2, 0);
        }
        if !ends(port, 1) && !(0x3F8..0x400).contains(&port) {
            port::write8(port, port as u8);
        }
    }
    hold!(answering < 64, "{answering} ports answer");
    saw!("{answering} ports answer");
}

/// A long trace over all ports, strings among them.
fn trace(length: u32) {
    let mut random = Random::new();
    pic::init(0x20);
    apic::enable();
    let known = [
        0x20_u16, 0x21, 0x40, 0x43, 0x60, 0x61, 0x70, 0x71, 0xA0, 0xA1, 0x3F8, 0x3FB, 0x4D0, 0x510, 0x514, 0x600,
        0x608, 0xCF8, 0xCFC,
    ];
    for _ in 0..length {
        let anywhere = random.below(4) == 0;
        let port = if anywhere { random.number() as u16 } else { random.one_of(&known) + random.below(4) as u16 };
        let (kind, value, count) = (random.below(8), random.value(), random.below(60));
        match kind {
            0..6 => access(port, kind, value),
            6 => {
                // SAFETY: RAM above the image, 240 bytes at most, which holds no Rust object; a fault is caught.
                _ = catch(|| unsafe {
                    asm!("rep insb", in("dx") port, inout("rcx") count => _, inout("rdi") 0x40_0000_u64 => _)
                })
            }
            _ if ends(port, 4) => {}
            _ => {
                // SAFETY: RAM above the image, 240 bytes at most, which holds no Rust object; a fault is caught.
                _ = catch(|| unsafe {
                    asm!("rep outsd", in("dx") port, inout("rcx") count => _, inout("rsi") 0x40_0000_u64 => _)
                })
            }
        }
    }
    saw!("{length} accesses");
}
