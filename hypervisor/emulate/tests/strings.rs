//! Repeated instructions: chunks, direction, faults in the middle, and the string forms of port access.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use bulkhead_arch::{Gpr, Rflags, SegmentName, Vector};
use bulkhead_emulate::{CHUNK, Outcome, Stop, StringIo};
use bulkhead_types::{Gva, Width};
use common::{DEVICE, Event, PAGES, World};

const REP_MOVSD: [u8; 2] = [0xF3, 0xA5];
const REP_STOSB: [u8; 2] = [0xF3, 0xAA];

fn fault(error: u32, at: u64) -> Result<Outcome, Stop<()>> {
    Err(Stop::Exception { vector: Vector::PF, error, cr2: Some(Gva::new(at)) })
}

#[test]
fn a_long_repetition_is_done_in_chunks() {
    let mut world = World::bits64();
    let total = u64::from(CHUNK) * 2 + 5;
    world.set(Gpr::Rdi, DEVICE).set(Gpr::Rcx, total).set(Gpr::Rax, 0x42);
    assert_eq!(world.run(&REP_STOSB), Ok(Outcome::Again));
    assert_eq!((world.get(Gpr::Rcx), world.get(Gpr::Rdi)), (total - u64::from(CHUNK), DEVICE + u64::from(CHUNK)));
    assert_eq!(world.again(None), Ok(Outcome::Again));
    assert_eq!(world.again(None), Ok(Outcome::Done { length: 2 }));
    assert_eq!((world.get(Gpr::Rcx), world.get(Gpr::Rdi)), (0, DEVICE + total));
    assert_eq!(world.device.events.len() as u64, total);
}

#[test]
fn a_chunk_that_ends_the_count_is_complete() {
    let mut world = World::bits64();
    world.set(Gpr::Rdi, DEVICE).set(Gpr::Rcx, u64::from(CHUNK));
    assert_eq!(world.run(&REP_STOSB), Ok(Outcome::Done { length: 2 }));
}

#[test]
fn a_count_of_zero_does_nothing() {
    let mut world = World::bits64();
    world.set(Gpr::Rdi, DEVICE).set(Gpr::Rcx, 0xFFFF_FFFF_0000_0000);
    // With a 67 prefix, ECX counts.
    assert_eq!(world.run(&[0x67, 0xF3, 0xAA]), Ok(Outcome::Done { length: 3 }));
    assert!(world.device.events.is_empty());
}

#[test]
fn moves_cross_from_ram_to_a_device_and_stop_at_a_missing_page() {
    let mut world = World::bits64();
    world.put(0x5000, &[0x11; 64]);
    world.set(Gpr::Rsi, 0x5000).set(Gpr::Rdi, PAGES + 0x1FF0).set(Gpr::Rcx, 10);
    assert_eq!(world.run(&REP_MOVSD), fault(2, PAGES + 0x2000));
    assert_eq!(world.get(Gpr::Rcx), 6);
    assert_eq!((world.get(Gpr::Rsi), world.get(Gpr::Rdi)), (0x5010, PAGES + 0x2000));
    assert_eq!(world.device.events, [0, 4, 8, 12].map(|at| Event::Write(DEVICE + 0xFF0 + at, 4, 0x1111_1111)));
}

#[test]
fn a_destination_that_faults_leaves_the_source_unread() {
    let mut world = World::bits64();
    world.set(Gpr::Rsi, DEVICE).set(Gpr::Rdi, PAGES + 0x3000).set(Gpr::Rcx, 1);
    assert_eq!(world.run(&REP_MOVSD), fault(3, PAGES + 0x3000));
    assert!(world.device.events.is_empty());
    assert_eq!(world.get(Gpr::Rcx), 1);
}

#[test]
fn backwards_and_with_16_bit_addresses() {
    let mut world = World::real();
    world.cpu.paging.rflags |= Rflags::DF;
    world.cpu.segments[SegmentName::Es as usize].base = DEVICE;
    world.set(Gpr::Rdi, 0xABCD_0001).set(Gpr::Rcx, 0xFFFF_0003).set(Gpr::Rax, 9);
    assert_eq!(world.run(&REP_STOSB), Ok(Outcome::Done { length: 2 }));
    assert_eq!(
        world.device.events,
        [Event::Write(DEVICE + 1, 1, 9), Event::Write(DEVICE, 1, 9), Event::Write(DEVICE + 0xFFFF, 1, 9)]
    );
    assert_eq!((world.get(Gpr::Rdi), world.get(Gpr::Rcx)), (0xABCD_FFFE, 0xFFFF_0000));
}

#[test]
fn source_segment_can_be_overridden() {
    let mut world = World::bits64();
    world.cpu.segments[SegmentName::Gs as usize].base = DEVICE;
    world.set(Gpr::Rsi, 8).done(&[0x65, 0xAD]);
    assert_eq!(world.device.events, [Event::Read(DEVICE + 8, 4)]);
    assert_eq!(world.get(Gpr::Rsi), 12);
}

fn io(write: bool, repeat: bool, width: Width) -> StringIo {
    StringIo { port: 0x1F0, width, write, repeat, segment: Some(SegmentName::Ds), address_bytes: Some(8) }
}

#[test]
fn ins_fills_memory_and_stops_before_the_port_at_a_missing_page() {
    let mut world = World::bits64();
    world.entry(0x4008, 0x1_2003);
    world.set(Gpr::Rdi, PAGES + 0x1FFC).set(Gpr::Rcx, 4);
    let access = io(false, true, Width::Word);
    assert_eq!(world.string_io(access), fault(2, PAGES + 0x2000));
    assert_eq!(world.device.events, [Event::In(0x1F0, 2); 2]);
    assert_eq!(world.ram.0[0x1_2FFC..0x1_3000], [1, 1, 2, 2]);
    assert_eq!((world.get(Gpr::Rcx), world.get(Gpr::Rdi)), (2, PAGES + 0x2000));
    assert_eq!(world.get(Gpr::Rsi), 0);
}

#[test]
fn ins_writes_into_user_pages_with_the_guest_s_rights() {
    let mut world = World::bits64();
    world.cpu.paging.cpl = 3;
    world.set(Gpr::Rdi, PAGES).set(Gpr::Rcx, 1);
    assert_eq!(world.string_io(io(false, false, Width::Byte)), fault(7, PAGES));
    assert!(world.device.events.is_empty());
}

#[test]
fn outs_reads_its_segment_and_keeps_the_chunk() {
    let mut world = World::bits64();
    world.put(0x1_0000, &[7; 256]);
    world.set(Gpr::Rsi, PAGES).set(Gpr::Rcx, 100);
    let access = io(true, true, Width::Byte);
    assert_eq!(world.string_io(access), Ok(Outcome::Again));
    assert_eq!(world.get(Gpr::Rcx), 100 - u64::from(CHUNK));
    assert_eq!(world.string_io(access), Ok(Outcome::Done { length: 0 }));
    assert_eq!(world.device.events, [Event::Out(0x1F0, 1, 7); 100]);
    assert_eq!((world.get(Gpr::Rsi), world.get(Gpr::Rdi)), (PAGES + 100, 0));
}

#[test]
fn outs_without_details_is_decoded() {
    let mut world = World::bits64();
    world.cpu.segments[SegmentName::Fs as usize].base = 0x5000;
    world.put(0x5010, &[1, 2, 3, 4, 5, 6, 7, 8]);
    world.set(Gpr::Rsi, 0x10).set(Gpr::Rcx, 2);
    // rep fs outsd
    world.put(world.cpu.rip, &[0x64, 0xF3, 0x6F]);
    let access = StringIo { segment: None, address_bytes: None, ..io(true, true, Width::Dword) };
    assert_eq!(world.string_io(access), Ok(Outcome::Done { length: 3 }));
    assert_eq!(world.device.events, [Event::Out(0x1F0, 4, 0x0403_0201), Event::Out(0x1F0, 4, 0x0807_0605)]);
    // Other code by now: nothing happens.
    assert_eq!(world.string_io(StringIo { width: Width::Byte, ..access }), Ok(Outcome::Again));
    assert_eq!(world.string_io(StringIo { repeat: false, ..access }), Ok(Outcome::Again));
    assert_eq!(world.device.events.len(), 2);
}

#[test]
fn ins_into_a_device() {
    let mut world = World::bits64();
    world.set(Gpr::Rdi, DEVICE + 4);
    assert_eq!(world.string_io(io(false, false, Width::Dword)), Ok(Outcome::Done { length: 0 }));
    assert_eq!(world.device.events, [Event::In(0x1F0, 4), Event::Write(DEVICE + 4, 4, 0x0101_0101)]);
}
