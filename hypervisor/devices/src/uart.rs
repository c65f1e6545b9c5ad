//! Serial port: the 16550A UART.
//!
//! Data sheet: National Semiconductor PC16550D "Universal Asynchronous Receiver/Transmitter with FIFOs", June 1995,
//! sections 8.1 "Line Control Register" to 8.10 "Scratchpad Register" and 8.11 "FIFO Interrupt Mode Operation".
//!
//! Emulated: both FIFO modes and the four trigger levels, all four interrupt sources with their priority and their
//! ways to go away, the divisor latch, loopback with modem deltas and overrun, the scratch register, and the PC's own
//! twist that OUT2 connects the interrupt output to the bus.
//!
//! Not emulated: the line. It is infinitely fast in both directions, so a byte is sent as it is written, and the
//! character time-out (four character times of silence) has passed as soon as a byte below the trigger level lies in
//! the FIFO. There are no framing errors, parity errors or breaks; DMA mode has no pins to act on.
//!
//! Output waits in a ring until the hypervisor takes it. While the ring has not even room for a FIFO's worth, the
//! transmitter reports itself busy: a driver that looks waits, and one that does not loses what it writes, which is counted.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | write without end | the ring stays full, further bytes are lost and counted, nobody waits |
//! | never read its input | the FIFO is full, [`Uart::receive`] refuses, the sender keeps the byte |
//! | leave loopback on | input is refused as if the FIFO were full |
//! | toggle IER.THRE to make interrupts | each toggle is one exit of its own, paid from its share |

use heapless::Deque;

/// Bytes of each of the chip's FIFOs.
const FIFO: usize = 16;
/// Bytes of output that wait for the hypervisor.
const RING: usize = 256;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_MASK: u8 = 0x0F;

const IIR_NONE: u8 = 0x01;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_RECEIVED: u8 = 0x04;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_FIFO: u8 = 0xC0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1F;

const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_EMPTY: u8 = 1 << 5;
const LSR_IDLE: u8 = 1 << 6;

/// Delta bits are these shifted right by four.
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RING: u8 = 1 << 6;
const MSR_CARRIER: u8 = 1 << 7;

/// One 16550A.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// Bytes that make a received-data interrupt; 0: the FIFOs are off.
    trigger: u8,
    overrun: bool,
    /// The transmitter went empty and nobody has been told.
    went_empty: bool,
    /// The transmitter went busy, and the hypervisor has not been told.
    went_busy: bool,
    /// Bytes that were written while there was no room.
    lost: u64,
    /// Modem lines, high nibble as in MSR, and their deltas in the low nibble.
    modem: u8,
    input: Deque<u8, FIFO>,
    output: Deque<u8, RING>,
}

impl Uart {
    /// The chip after reset, with a peer that is ready (CTS, DSR and carrier on), at 115,200 baud.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: [1, 0],
            trigger: 0,
            overrun: false,
            went_empty: false,
            went_busy: false,
            lost: 0,
            modem: MSR_CTS | MSR_DSR | MSR_CARRIER,
            input: Deque::new(),
            output: Deque::new(),
        }
    }

    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u8) -> u8 {
        match offset & 7 {
            0 if self.latch_selected() => self.divisor[0],
            0 => self.input.pop_front().unwrap_or(0),
            1 if self.latch_selected() => self.divisor[1],
            1 => self.ier,
            2 => self.read_identification(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.read_line_status(),
            6 => {
                let value = self.modem;
                self.modem &= 0xF0;
                value
            }
            _ => self.scratch,
        }
    }

    /// Writes the register at `offset` (0 to 7).
    pub fn write(&mut self, offset: u8, value: u8) {
        match offset & 7 {
            0 if self.latch_selected() => self.divisor[0] = value,
            0 => self.transmit(value),
            1 if self.latch_selected() => self.divisor[1] = value,
            1 => self.write_enable(value),
            2 => self.write_fifo_control(value),
            3 => self.lcr = value,
            4 => self.write_modem_control(value),
            7 => self.scratch = value,
            // The status registers are not for writing (the data sheet keeps that for the factory's test).
            _ => {}
        }
    }

    /// Level of the interrupt line, as the PC has it: nothing without OUT2, which loopback holds inactive.
    #[must_use]
    pub fn line(&self) -> bool {
        self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.source() != IIR_NONE
    }

    /// A byte comes in from the line. `false`: there is no room now (or loopback is on), it was not taken.
    pub fn receive(&mut self, byte: u8) -> bool {
        !self.in_loopback() && self.store(byte)
    }

    /// Whether [`Uart::receive`] would take a byte now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.in_loopback() && self.input.len() < self.capacity()
    }

    /// The oldest byte that was sent and not taken.
    #[must_use]
    pub fn output(&self) -> Option<u8> {
        self.output.front().copied()
    }

    /// Whether the transmitter went busy since this was asked last.
    pub const fn take_busy(&mut self) -> bool {
        core::mem::replace(&mut self.went_busy, false)
    }

    /// How many bytes were lost: written while the transmitter was busy, and there was no room.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes the oldest byte that was sent.
    pub fn pop_output(&mut self) -> Option<u8> {
        let was_ready = self.ready();
        let byte = self.output.pop_front()?;
        self.went_empty |= !was_ready && self.ready();
        Some(byte)
    }

    const fn latch_selected(&self) -> bool {
        self.lcr & LCR_DIVISOR != 0
    }

    const fn in_loopback(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    /// Whether the transmitter can take what a driver sends without looking again: one FIFO.
    fn ready(&self) -> bool {
        self.output.len() + FIFO <= RING
    }

    fn capacity(&self) -> usize {
        if self.trigger == 0 { 1 } else { FIFO }
    }

    fn store(&mut self, byte: u8) -> bool {
        self.input.len() < self.capacity() && self.input.push_back(byte).is_ok()
    }

    fn transmit(&mut self, byte: u8) {
        if self.in_loopback() {
            self.overrun |= !self.store(byte);
        } else {
            let was_ready = self.ready();
            // A full ring loses the byte: the guest was told not to send.
            self.lost = self.lost.saturating_add(self.output.push_back(byte).is_err().into());
            self.went_busy |= was_ready && !self.ready();
        }
        self.went_empty = self.ready();
    }

    fn write_enable(&mut self, value: u8) {
        let risen = value & !self.ier;
        self.ier = value & IER_MASK;
        // 8.7 "Interrupt Enable Register": enabling it while the transmitter is empty interrupts at once.
        self.went_empty |= risen & IER_TRANSMIT_EMPTY != 0 && self.ready();
    }

    fn write_fifo_control(&mut self, value: u8) {
        let enabled = value & FCR_ENABLE != 0;
        // Switching the mode empties the FIFOs; the other bits only count with the enable bit set.
        if enabled != (self.trigger != 0) || (enabled && value & FCR_CLEAR_RECEIVER != 0) {
            self.input.clear();
        }
        self.trigger = match (enabled, value >> 6) {
            (false, _) => 0,
            (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        };
    }

    fn write_modem_control(&mut self, value: u8) {
        self.mcr = value & MCR_MASK;
        let lines = if self.in_loopback() {
            // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
            (value & 2) << 3 | (value & 1) << 5 | (value & 4) << 4 | (value & 8) << 4
        } else {
            MSR_CTS | MSR_DSR | MSR_CARRIER
        };
        let changed = lines ^ self.modem & 0xF0;
        // The ring indicator reports its trailing edge only.
        let changed = changed & !(lines & MSR_RING);
        self.modem = lines | self.modem & 0x0F | changed >> 4;
    }

    fn read_identification(&mut self) -> u8 {
        let source = self.source();
        if source == IIR_TRANSMIT_EMPTY {
            self.went_empty = false;
        }
        source | if self.trigger == 0 { 0 } else { IIR_FIFO }
    }

    fn read_line_status(&mut self) -> u8 {
        let mut value = if self.ready() { LSR_EMPTY } else { 0 };
        if self.output.is_empty() {
            value |= LSR_IDLE;
        }
        if !self.input.is_empty() {
            value |= LSR_DATA;
        }
        if self.overrun {
            value |= LSR_OVERRUN;
            self.overrun = false;
        }
        value
    }

    /// The pending source of the highest priority, as in IIR bits 0-3. 8.6 "Interrupt Identification Register".
    fn source(&self) -> u8 {
        let received = self.input.len();
        if self.ier & IER_LINE_STATUS != 0 && self.overrun {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVED != 0 && received != 0 {
            if received >= self.trigger as usize { IIR_RECEIVED } else { IIR_TIMEOUT }
        } else if self.ier & IER_TRANSMIT_EMPTY != 0 && self.went_empty {
            IIR_TRANSMIT_EMPTY
        } else if self.ier & IER_MODEM_STATUS != 0 && self.modem & 0x0F != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
