//! PICs, I/O APIC and local APIC as one system.
//!
//! A guest programs all three as it likes, lines rise and fall, the processor takes what there is. In the end the system is
//! set up anew as a well-behaved kernel does it: then exactly the lines that are active must be heard, through the I/O
//! APIC and through the PICs.

use crate::Feed;
use bulkhead_devices::interrupt::{InterruptSystem, PicPair};
use bulkhead_types::{Frequency, Ticks, VcpuId, Width};

/// Processors.
const CPUS: u8 = 3;
const APIC_BASE: u32 = 0x1B;
const ENABLED: u64 = 0xFEE0_0900;
const EOI: u64 = 0xB0;
const IN_SERVICE: u64 = 0x100;
const REQUESTED: u64 = 0x200;
const PRIORITY: u64 = 0xA0;

/// The system, and every byte that the guest wrote anywhere: a vector can only be one of these.
struct Bench {
    system: InterruptSystem,
    /// The processor that acts.
    by: VcpuId,
    now: Ticks,
    written: [bool; 256],
    lines: u32,
}

impl Bench {
    fn wrote(&mut self, value: u64) {
        for byte in value.to_le_bytes() {
            self.written[usize::from(byte)] = true;
        }
    }

    /// A register of the local APIC by its offset in the page, in either mode.
    fn lapic(&mut self, offset: u64) -> u64 {
        let system = &mut self.system;
        if system.lapic(self.by).is_x2apic() {
            return system.msr_read(self.by, 0x800 + (offset >> 4) as u32, self.now).unwrap_or(0);
        }
        system.lapic_mmio_read(self.by, offset, Width::Dword, self.now)
    }

    fn set(&mut self, first: u64) -> [u64; 8] {
        std::array::from_fn(|index| self.lapic(first + 0x10 * index as u64))
    }

    fn acknowledge(&mut self) {
        let had = self.system.has_interrupt(self.by);
        let enabled = self.system.lapic(self.by).is_enabled();
        let own = self.system.lapic(self.by).has_interrupt();
        let (requested, priority) = (self.set(REQUESTED), self.lapic(PRIORITY));
        let vector = self.system.acknowledge(self.by);
        assert_eq!(vector.is_some(), had, "what was announced is there");
        let Some(vector) = vector else { return };
        let has = |set: &[u64; 8], vector: u8| set[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0;
        // Those of the PICs do not pass the registers of the local APIC. At most one bit of the IRR goes.
        let after = self.set(REQUESTED);
        let gone: u32 = requested.iter().zip(&after).map(|(was, is)| (was & !is).count_ones()).sum();
        if enabled && own && gone == 1 {
            assert!(vector >= 16 && has(&requested, vector), "vector {vector:#x} was not requested");
            assert!(u64::from(vector & 0xF0) > priority & 0xF0, "vector {vector:#x} below priority {priority:#x}");
            assert!((vector..=255).skip(1).all(|higher| !has(&requested, higher)), "there was a higher one");
            assert!(has(&self.set(IN_SERVICE), vector) && !has(&after, vector));
            assert!(self.written[usize::from(vector)], "nobody wrote vector {vector:#x}");
        } else {
            assert_eq!(gone, 0);
            let base = usize::from(vector & 0xF8);
            let firmware = base == 0x08 || base == 0x70;
            assert!(firmware || self.written[base..base + 8].contains(&true), "nobody wrote vector {vector:#x}");
        }
    }

    fn line(&mut self, line: u8, level: bool) {
        self.system.set_line(line, level);
        let bit = 1_u32.checked_shl(line.into()).unwrap_or(0);
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
    }

    fn io_apic(&mut self, register: u8, value: u32) {
        self.system.io_apic_write(0, Width::Dword, register.into());
        self.system.io_apic_write(0x10, Width::Dword, value.into());
    }

    fn local_write(&mut self, offset: u64, value: u64) {
        if self.system.lapic(self.by).is_x2apic() {
            let _ = self.system.msr_write(self.by, 0x800 + (offset >> 4) as u32, value, self.now);
        } else {
            self.system.lapic_mmio_write(self.by, offset, Width::Dword, value, self.now);
        }
    }

    fn step(&mut self, feed: &mut Feed<'_>) {
        let bits = feed.u8();
        // The first of them does most.
        self.by = VcpuId::new([0, 0, 0, 0, 0, 0, 1, 2][usize::from(bits >> 5)]).unwrap_or_default();
        match (bits & 31) % 12 {
            0 | 1 => self.line(feed.u8() % 26, true),
            2 => self.line(feed.u8() % 26, false),
            3 => {
                let (port, value) = (PicPair::PORTS[usize::from(feed.u8() % 6)], feed.u8());
                self.wrote(value.into());
                self.system.pic_write(port, value);
            }
            4 => {
                let _ = self.system.pic_read(PicPair::PORTS[usize::from(feed.u8() % 6)]);
            }
            5 | 6 => {
                let (register, value) = (feed.u8() & 0x3F, feed.u32());
                self.wrote(value.into());
                self.io_apic(register, value);
            }
            7 => {
                let (offset, value) = (u64::from(feed.u8() & 0x3F) << 4, u64::from(feed.u32()));
                self.wrote(value);
                self.local_write(offset, value);
            }
            8 => {
                let base = [0, 0x100, 0x800, 0x900, 0xC00, 0xD00, 0x400, 1][usize::from(feed.u8() & 7)];
                let _ = self.system.msr_write(self.by, APIC_BASE, 0xFEE0_0000 | base, self.now);
            }
            9 => {
                self.now = self.now.after(feed.u16().into());
                self.system.advance(self.by, self.now);
                assert!(self.system.deadline(self.by).is_none_or(|next| next > self.now), "the deadline lies ahead");
            }
            10 => self.local_write(EOI, 0),
            _ => self.acknowledge(),
        }
        // The deliverable state that is kept at hand is the one that the registers say.
        if self.system.lapic(self.by).is_enabled() {
            let priority = self.lapic(PRIORITY) & 0xF0;
            let requested = self.set(REQUESTED);
            let highest = (0..=255_u8).rev().find(|v| requested[usize::from(v >> 5)] >> (v & 31) & 1 != 0);
            let deliverable = highest.is_some_and(|vector| u64::from(vector & 0xF0) > priority);
            assert_eq!(
                self.system.lapic(self.by).has_interrupt(),
                deliverable,
                "{highest:x?} at priority {priority:#x}"
            );
        }
    }

    /// Takes and ends all that is pending; what was heard.
    fn drain(&mut self) -> [bool; 256] {
        let mut heard = [false; 256];
        // Each input can say its word once, since a level that stays is masked when it was heard.
        for _ in 0..600 {
            let Some(vector) = self.system.acknowledge(self.by) else { return heard };
            heard[usize::from(vector)] = true;
            if (0x40..0x58).contains(&vector) {
                self.io_apic(0x10 + 2 * (vector - 0x40), 1 << 16);
            }
            self.system.lapic_mmio_write(self.by, EOI, Width::Dword, 0, self.now);
        }
        panic!("interrupts without end");
    }

    /// A kernel takes over with the local APIC: from whatever state, to xAPIC mode with everything ended.
    fn take_over(&mut self) {
        self.by = VcpuId::BOOT;
        for base in [0, ENABLED] {
            self.system.msr_write(self.by, APIC_BASE, base, self.now).expect("off and on is always allowed");
        }
        for register in 0..24 {
            self.io_apic(0x10 + 2 * register, 1 << 16);
            self.io_apic(0x11 + 2 * register, 0);
        }
        for (port, value) in [(0x21, 0xFF), (0xA1, 0xFF)] {
            self.initialize_pics();
            self.system.pic_write(port, value);
        }
        self.system.pic_write(0x21, 0xFF);
        self.system.pic_write(0xA1, 0xFF);
        // Enabled, and LINT0 masked: a reset has masked it.
        self.system.lapic_mmio_write(self.by, 0xF0, Width::Dword, 0x1FF, self.now);
    }

    fn initialize_pics(&mut self) {
        for (port, words) in [(0x20, [0x11, 0x20, 4, 1]), (0xA0, [0x11, 0x28, 2, 1])] {
            self.system.pic_write(port, words[0]);
            for word in &words[1..] {
                self.system.pic_write(port + 1, *word);
            }
        }
    }

    fn heard_through_io_apic(&mut self) {
        self.take_over();
        self.drain();
        for input in 0..24 {
            // Ends what the input may still wait for, then level-triggered to processor 0.
            self.io_apic(0x10 + 2 * input, (1 << 16) | (0x40 + u32::from(input)));
            self.system.io_apic_write(0x40, Width::Dword, 0x40 + u64::from(input));
            self.io_apic(0x10 + 2 * input, (1 << 15) | (0x40 + u32::from(input)));
        }
        let heard = self.drain();
        for input in 1..24_u8 {
            // Line 0 is at input 2, and nothing else is.
            let line = if input == 2 { 0 } else { input };
            let active = self.lines >> line & 1 != 0;
            assert_eq!(heard[0x40 + usize::from(input)], active, "input {input} of the I/O APIC");
        }
    }

    fn heard_through_pics(&mut self) {
        const LEVEL: [u8; 2] = [0xF8, 0xDE];
        self.take_over();
        // All that can be level-triggered is. LINT0 lets the PICs through.
        self.system.pic_write(0x4D0, LEVEL[0]);
        self.system.pic_write(0x4D1, LEVEL[1]);
        self.initialize_pics();
        self.drain();
        self.system.pic_write(0x21, !LEVEL[0] & 0xFB);
        self.system.pic_write(0xA1, !LEVEL[1]);
        self.system.lapic_mmio_write(self.by, 0x350, Width::Dword, 0x700, self.now);
        let mut heard = 0_u32;
        for _ in 0..17 {
            let Some(vector) = self.system.acknowledge(self.by) else { break };
            let line = vector.wrapping_sub(0x20);
            assert!(line < 16 && line != 2, "vector {vector:#x} of the PICs");
            heard |= 1 << line;
            let (port, bit) = if line < 8 { (0x21, 1 << line) } else { (0xA1, 1 << (line - 8)) };
            let mask = self.system.pic_read(port);
            self.system.pic_write(port, mask | bit);
            self.system.pic_write(0xA0, 0x20);
            self.system.pic_write(0x20, 0x20);
        }
        let levels = u32::from(u16::from_le_bytes(LEVEL));
        assert_eq!(heard, self.lines & levels, "lines of the PICs");
    }
}

/// Any programming in any order, and then a kernel that does it right.
pub fn run(data: &[u8]) {
    let mut feed = Feed::new(data);
    let system = InterruptSystem::new(CPUS, Frequency::hertz(10_000_000));
    let mut bench = Bench { system, by: VcpuId::BOOT, now: Ticks::ZERO, written: [false; 256], lines: 0 };
    // What firmware wrote, and the reset values of vectors.
    bench.wrote(0x0F);
    bench.wrote(0);
    while !feed.is_empty() {
        bench.step(&mut feed);
    }
    let mut twin = Bench { system: bench.system.clone(), ..bench };
    twin.heard_through_io_apic();
    bench.heard_through_pics();
}
