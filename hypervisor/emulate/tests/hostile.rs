//! Whatever a guest's bytes and registers are: an answer comes, within bounds, and nothing but the guest's own changes.

#![allow(clippy::indexing_slicing, reason = "a test")]

mod common;

use bulkhead_arch::{Cr0, Cr4, Rflags, Segment};
use bulkhead_emulate::{CHUNK, Outcome, Stop, StringIo};
use bulkhead_types::Width;
use common::{CODE, DEVICE, PAGES, World};
use proptest::prelude::*;

/// Addresses that mean something, and others.
fn address() -> impl Strategy<Value = u64> {
    any::<(u64, u8)>().prop_map(|(random, kind)| match kind % 8 {
        0 | 1 => DEVICE + random % 0x2000,
        2 => random % 0x20_0000,
        3 | 4 => PAGES + random % 0x6000,
        5 => (PAGES + 0x1000 * (1 + random % 5)).wrapping_sub(random % 9),
        6 => random % 100,
        _ => random,
    })
}

fn world(mode: u8, gprs: &[u64], flags: u64, base: u64) -> World {
    let mut world = match mode % 4 {
        0 => World::real(),
        1 => World::bits32(),
        _ => World::bits64(),
    };
    world.cpu.gprs = std::array::from_fn(|index| gprs[index]);
    world.cpu.paging.rflags = Rflags::from_bits_retain((flags & 0x4_0CD5) | 2);
    world.cpu.segments[4].base = base;
    world.cpu.segments[3].attributes ^= u32::try_from(base & 0x1_001F).unwrap_or(0);
    if mode % 4 == 3 {
        world.cpu.paging.cpl = 3;
        for table in [0x1000, 0x2000] {
            world.ram.0[table] |= 4;
        }
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn any_bytes(
        bytes in any::<[u8; 15]>(),
        mode in any::<u8>(),
        gprs in proptest::collection::vec(address(), 16),
        flags in any::<u64>(),
        base in address(),
        opcode in proptest::option::of(prop_oneof![0x80_u8..=0x8B, 0xA0_u8..=0xAF, 0xC6_u8..=0xC7, 0xF6_u8..=0xF7, 0..0x3C_u8]),
    ) {
        let mut world = world(mode, &gprs, flags, base);
        let rip = world.cpu.rip;
        let mut bytes = bytes;
        // Mostly instructions that are carried out.
        let [_, second, third, ..] = &mut bytes;
        if let Some(opcode) = opcode {
            *second = opcode;
            *third &= 0x7F;
        }
        world.put(CODE, &bytes);
        let before = world.cpu.clone();
        let result = world.again(None);
        prop_assert!(world.device.events.len() <= 8 * 2 * CHUNK as usize);
        prop_assert_eq!(world.cpu.rip, rip);
        match result {
            Ok(Outcome::Done { length }) => prop_assert!((1..=15).contains(&length)),
            Err(Stop::Unsupported { bytes: reported, length }) => {
                prop_assert_eq!(reported, bytes);
                prop_assert!(length <= 15);
                prop_assert_eq!(before.gprs, world.cpu.gprs);
                prop_assert!(world.device.events.is_empty());
            }
            _ => {}
        }
    }

    #[test]
    fn any_tables(
        entries in proptest::collection::vec(any::<(u64, u8)>(), 32),
        control in any::<[u64; 3]>(),
        pdptes in any::<[u64; 4]>(),
        gprs in proptest::collection::vec(address(), 16),
        rip in address(),
        long in any::<bool>(),
    ) {
        let mut world = World::bits64();
        let [cr0, cr3, cr4] = control;
        for (index, (entry, kind)) in entries.iter().enumerate() {
            let entry = match kind % 4 {
                0 => *entry,
                1 => (entry & 0x1F_F000) | 7,
                _ => (entry & 0x7000) | 0x67,
            };
            world.entry(0x1000 + 0x100 * index as u64, entry);
        }
        world.cpu.paging.cr0 = Cr0::from_bits_retain(cr0) | Cr0::PE;
        world.cpu.paging.cr4 = Cr4::from_bits_retain(cr4);
        world.cpu.paging.cr3 = if cr3 & 1 == 0 { 0x1000 } else { cr3 };
        world.cpu.paging.pdptes = pdptes.map(|entry| (entry & 0x1F_F000) | 1);
        world.cpu.gprs = std::array::from_fn(|index| gprs[index]);
        world.cpu.rip = rip;
        if !long {
            world.cpu.paging.efer = bulkhead_arch::Efer::empty();
            world.cpu.segments[1] = Segment { attributes: 0xC09B, ..common::DATA32 };
        }
        let _ = world.again(None);
    }

    #[test]
    fn any_string_io(
        mode in any::<u8>(),
        gprs in proptest::collection::vec(address(), 16),
        flags in any::<u64>(),
        base in address(),
        write in any::<bool>(),
        repeat in any::<bool>(),
        address_bytes in proptest::option::of(any::<u8>()),
        wide in any::<bool>(),
    ) {
        let mut world = world(mode, &gprs, flags, base);
        let width = if wide { Width::Dword } else { Width::Byte };
        let access = StringIo { port: 1, width, write, repeat, segment: Some(bulkhead_arch::SegmentName::Ds), address_bytes };
        let _ = world.string_io(access);
        prop_assert!(world.device.events.len() <= 4 * 2 * CHUNK as usize);
    }
}
