//! Flat binaries.

use super::super::{InitialState, LoadError, LoadModule, Part, Protocol, Request, load};
use super::{Ram, assert_protected, request, segment};
use bulkhead_arch::{Segment, SegmentName};
use bulkhead_types::manifest::LoadAs;

const RSP: usize = 4;

fn boot(kernel: &[u8], at: u64) -> Result<(InitialState, Ram), LoadError> {
    let mut ram = Ram::new(8 << 20);
    let state = load(&Request { load: LoadAs::Flat { at }, ..request(kernel, "", &[], 8 << 20) }, &mut ram)?;
    Ok((state, ram))
}

#[test]
fn real_mode_below_1_mib() {
    let (state, ram) = boot(&[0xF4; 3], 0x7C00).unwrap();
    assert_eq!((state.protocol, state.rip, state.gpr[RSP]), (Protocol::FlatReal, 0, 0xFFF0));
    assert_eq!((state.cr0, state.cr4, state.efer, state.rflags), (0x10, 0, 0, 2));
    let real = |selector, attributes, base| Segment { selector, attributes, limit: 0xFFFF, base };
    assert_eq!(segment(&state, SegmentName::Cs), real(0x7C0, 0x9B, 0x7C00));
    for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
        assert_eq!(segment(&state, name), real(0x7C0, 0x93, 0x7C00));
    }
    assert_eq!(segment(&state, SegmentName::Ss), real(0x9000, 0x93, 0x9_0000));
    assert_eq!((state.gdt.limit, state.idt.limit), (0, 0x3FF));
    assert_eq!(ram.at(0x7C00, 4), [0xF4, 0xF4, 0xF4, super::UNTOUCHED]);
    assert_eq!(boot(&[0xF4], 0).unwrap().0.protocol, Protocol::FlatReal);
}

#[test]
fn protected_mode_from_1_mib_on() {
    let (state, ram) = boot(&[0xF4; 3], 0x10_0001).unwrap();
    assert_eq!((state.protocol, state.rip, state.gpr[RSP]), (Protocol::FlatProtected, 0x10_0001, 0x9_FFF0));
    assert_protected(&state, &ram);
    assert_eq!(ram.at(0x10_0001, 3), [0xF4; 3]);
}

#[test]
fn addresses_that_can_not_be() {
    assert_eq!(
        boot(&[1], 0x7C01).err(),
        Some(LoadError::Field { field: "at", value: 0x7C01, must: "a multiple of 16 below 1 MiB" })
    );
    for at in [0xA_0000, 0xE_0000, 0xF_FFF0, 0x80_0000, 0xC000_0000, 1 << 32, u64::MAX] {
        assert!(matches!(boot(&[1], at).err(), Some(LoadError::OutsideRam { .. })), "{at:#x}");
    }
    let overlap = boot(&[1; 32], 0x9_EFF0).err();
    assert!(matches!(overlap, Some(LoadError::Overlap { part: Part::Kernel, other: Part::Stack, .. })), "{overlap:?}");
    assert_eq!(boot(&[], 0x1000).err(), Some(LoadError::Short { what: "the flat binary", needed: 1, have: 0 }));
}

#[test]
fn what_it_can_not_be_told_is_refused() {
    let modules = [LoadModule { bytes: &[], cmdline: "" }];
    for (cmdline, modules, what) in [("a", &[][..], "command line"), ("", &modules[..], "modules")] {
        let request = Request { load: LoadAs::Flat { at: 0x1000 }, ..request(&[1], cmdline, modules, 8 << 20) };
        let error = load(&request, &mut Ram::new(8 << 20)).err();
        assert_eq!(error, Some(LoadError::NotPassed { protocol: Protocol::FlatReal, what }));
    }
}
