use super::{MAX_BYTES, tables};
use crate::layout;
use crate::machine::MachineConfig;
use bulkhead_types::{Frequency, VcpuId};
use std::string::String;
use std::vec::Vec;

const CONFIG: MachineConfig = MachineConfig {
    tsc: Frequency::hertz(1_000_000_000),
    memory: 256 << 20,
    wall_clock: 0,
    cpus: 2,
    test_exit: false,
    test_device: false,
};

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// The table at a guest-physical address, after a check of its sum.
fn table(area: &[u8], address: u64) -> &[u8] {
    let table = &area[usize::try_from(address - layout::RSDP.as_u64()).unwrap()..];
    let table = &table[..u32_at(table, 4) as usize];
    assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
    table
}

fn find<'a>(area: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
    let xsdt = table(area, u64_at(area, 24));
    let entries = xsdt[36..].chunks_exact(8).map(|entry| table(area, u64_at(entry, 0)));
    entries.into_iter().find(|table| &table[..4] == signature).unwrap()
}

#[test]
fn root_pointer_leads_to_both_root_tables() {
    let area = tables(&CONFIG);
    assert_eq!(&area[..8], b"RSD PTR ");
    assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
    let rsdt = table(&area, u32_at(&area, 16).into());
    let xsdt = table(&area, u64_at(&area, 24));
    let short: Vec<u64> = rsdt[36..].chunks_exact(4).map(|entry| u32_at(entry, 0).into()).collect();
    let long: Vec<u64> = xsdt[36..].chunks_exact(8).map(|entry| u64_at(entry, 0)).collect();
    assert_eq!(short, long);
    let names: Vec<_> = long.iter().map(|&address| &table(&area, address)[..4]).collect();
    assert_eq!(names, [b"FACP", b"APIC"]);
}

#[test]
fn tables_fit_their_area() {
    assert!(tables(&MachineConfig { cpus: VcpuId::MOST, ..CONFIG }).len() <= MAX_BYTES);
    assert!(MAX_BYTES as u64 <= layout::FIRMWARE_END.as_u64() - layout::RSDP.as_u64());
}

#[test]
fn fixed_description() {
    let area = tables(&CONFIG);
    let fadt = find(&area, b"FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    assert_eq!(u64_at(fadt, 140), u32_at(fadt, 40).into());
    assert_eq!(&table(&area, u64_at(fadt, 140))[..4], b"DSDT");
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!(facs % 64, 0);
    let facs = &area[usize::try_from(facs - layout::RSDP.as_u64()).unwrap()..];
    assert_eq!((&facs[..4], u32_at(facs, 4)), (b"FACS".as_slice(), 64));
    assert_eq!((fadt[46], u32_at(fadt, 48)), (9, 0), "SCI, and no SMI command port");
    for (short, long, length, port) in [(56, 148, 88, 0x600), (64, 172, 89, 0x604), (76, 208, 91, 0x608)] {
        assert_eq!((u32_at(fadt, short), u64_at(fadt, long + 4)), (port, port.into()));
        assert_eq!((fadt[long], fadt[long + 1]), (1, fadt[length] * 8));
    }
    assert_eq!((u64_at(fadt, 120), fadt[128]), (0xCF9, 6), "reset register");
    assert_eq!(u32_at(fadt, 112) >> 4 & 0b111, 0b110, "a power button in fixed hardware, no other, and no RTC wake-up");
}

#[test]
fn interrupt_controllers() {
    let area = tables(&CONFIG);
    let madt = find(&area, b"APIC");
    assert_eq!(u32_at(madt, 36), 0xFEE0_0000);
    let mut kinds = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, length, ..] = rest {
        kinds.push((*kind, rest[2..usize::from(*length)].to_vec()));
        rest = &rest[usize::from(*length)..];
    }
    let expected: [(u8, &[u8]); 6] = [
        (0, &[0, 0, 1, 0, 0, 0]),
        (0, &[1, 1, 1, 0, 0, 0]),
        (1, &[0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]),
        (2, &[0, 0, 2, 0, 0, 0, 0, 0]),
        (2, &[0, 9, 9, 0, 0, 0, 0x0D, 0]),
        (4, &[0xFF, 0, 0, 1]),
    ];
    assert_eq!(kinds.len(), expected.len());
    for ((kind, body), (expected_kind, expected_body)) in kinds.iter().zip(expected) {
        assert_eq!((*kind, body.as_slice()), (expected_kind, expected_body));
    }
}

/// Walks the terms of a definition block; the names of all devices and what `_S5_` is.
#[test]
fn definition_block_nests_exactly() {
    let area = tables(&CONFIG);
    let dsdt = table(&area, u64_at(find(&area, b"FACP"), 140));
    let aml = &dsdt[36..];
    assert_eq!(&aml[..14], b"\x08_S5_\x12\x08\x04\x0A\x05\x0A\x05\x00\x00", "Package () {{ 5, 5, 0, 0 }}");
    let (scope, rest) = package(&aml[14..], &[0x10]);
    assert_eq!((&scope[..5], rest.len()), (b"\\_SB_".as_slice(), 0));
    let mut devices = Vec::new();
    let mut rest = &scope[5..];
    while !rest.is_empty() {
        let (device, after) = package(rest, &[0x5B, 0x82]);
        let at = device.windows(4).position(|name| name == b"_CRS").unwrap() + 4;
        let (buffer, end) = package(&device[at..], &[0x11]);
        assert!(end.is_empty());
        assert_eq!((buffer[0], usize::from(buffer[1])), (0x0A, buffer.len() - 2), "buffer size");
        assert_eq!(buffer[buffer.len() - 2..], [0x79, 0]);
        devices.push((&device[..4], &device[9..14]));
        rest = after;
    }
    let expected: [(&[u8], &[u8]); 3] =
        [(b"PCI0", b"\x0C\x41\xD0\x0A\x03"), (b"COM1", b"\x0C\x41\xD0\x05\x01"), (b"RTC_", b"\x0C\x41\xD0\x0B\x00")];
    assert_eq!(devices, expected);
}

/// What is inside the package that starts with `opcode`, and what follows it.
fn package<'a>(aml: &'a [u8], opcode: &[u8]) -> (&'a [u8], &'a [u8]) {
    assert_eq!(&aml[..opcode.len()], opcode);
    let aml = &aml[opcode.len()..];
    let first = usize::from(aml[0]);
    let (lead, total) = if first < 0x40 { (1, first) } else { (2, first & 0xF | usize::from(aml[1]) << 4) };
    (&aml[lead..total], &aml[total..])
}
