//! A guest's machine: all its devices, and who answers at which port and address.
//!
//! The machine is plain data. Each access brings the guest's time with it; what is due at a certain time is announced by
//! [`Machine::deadline`] and done by [`Machine::advance`]. After each access the interrupt lines that it can have moved
//! are passed on to the interrupt system.
//!
//! A port access goes whole to a device that has wide registers (PCI configuration, power management, fw_cfg's selector,
//! the test exit). Any other wide access is split into bytes at consecutive ports, as the ISA bus does. Where nobody
//! answers, reads give ones and writes go nowhere: that is also what the delay ports 0x80 and 0xED and the debug
//! consoles 0xE9 and 0x402 of emulators do here.
//!
//! | a hostile guest may | and then |
//! |---|---|
//! | access any port or address in any width | a fixed amount of work, and nothing outside this structure changes |
//! | ask for timer interrupts without end | each device bounds its own rate; the local APIC's timer bounds its own |

use crate::bits::{byte, low_u16, low_u32};
use crate::fw_cfg::FwCfg;
use crate::i8042::KeyboardController;
use crate::interrupt::{InterruptSystem, InvalidMsr};
use crate::layout;
use crate::pci::Pci;
use crate::pit::Pit;
use crate::pm::PowerManagement;
use crate::reset::ResetControl;
use crate::rtc::Rtc;
use crate::test_device::TestDevice;
use crate::uart::Uart;
use bulkhead_types::{Frequency, Gpa, PAGE_SIZE, Ticks, VcpuId, Width};

const COM1_END: u16 = layout::COM1 + 7;
const PM_END: u16 = layout::ACPI_PM + layout::ACPI_PM_PORTS - 1;
const PCI_DATA: u16 = layout::PCI_CONFIG + 4;
const PCI_DATA_END: u16 = PCI_DATA + 3;
const FW_CFG_DATA: u16 = layout::FW_CFG + 1;
const RTC_DATA: u16 = layout::RTC + 1;

/// What a machine is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MachineConfig {
    /// Rate of the guest's time-stamp counter.
    pub tsc: Frequency,
    /// RAM in bytes.
    pub memory: u64,
    /// Seconds since 1970 at [`Ticks::ZERO`].
    pub wall_clock: u64,
    /// Processors, 1 to [`bulkhead_types::MAX_VCPUS`].
    pub cpus: u8,
    /// Whether there is the test exit.
    pub test_exit: bool,
    /// Whether there is the test device.
    pub test_device: bool,
}

/// What the guest asks of whoever runs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// It has switched its machine off.
    PowerOff,
    /// It wants its machine to start anew.
    Reset,
    /// It has written this to the test exit.
    TestExit(u32),
}

/// One guest's machine.
#[derive(Clone, Debug)]
pub struct Machine {
    interrupts: InterruptSystem,
    uart: Uart,
    pm: PowerManagement,
    pit: Pit,
    rtc: Rtc,
    pci: Pci,
    fw_cfg: FwCfg,
    keyboard: KeyboardController,
    reset: ResetControl,
    test_device: Option<TestDevice>,
    test_exit: bool,
    request: Option<Request>,
    /// Levels as the interrupt system knows them, a bit per line.
    lines: u32,
    /// See [`Machine::take_changed`].
    changed: bool,
}

impl Machine {
    /// The machine as it is when the guest's first instruction runs, at [`Ticks::ZERO`].
    #[must_use]
    pub fn new(config: &MachineConfig) -> Self {
        Self {
            interrupts: InterruptSystem::new(config.cpus, config.tsc),
            uart: Uart::new(),
            pm: PowerManagement::new(config.tsc),
            pit: Pit::new(config.tsc),
            rtc: Rtc::new(config.tsc, config.wall_clock, config.memory),
            pci: Pci::new(),
            fw_cfg: FwCfg::new(config.memory, config.cpus.into()),
            keyboard: KeyboardController::new(),
            reset: ResetControl::new(),
            test_device: config.test_device.then(TestDevice::new),
            test_exit: config.test_exit,
            request: None,
            lines: 0,
            changed: true,
        }
    }

    /// Reads a port. No port is 64 bits wide: such an access reads 32.
    pub fn port_read(&mut self, port: u16, width: Width, now: Ticks) -> u32 {
        match width {
            Width::Byte => self.read_byte(port, now).into(),
            _ => self.read_wide(port, width, now),
        }
    }

    #[inline(never)]
    fn read_wide(&mut self, port: u16, width: Width, now: Ticks) -> u32 {
        match (port, width) {
            (layout::ACPI_PM..=PM_END, _) if fits(port, width) => self.read_pm(port, width, now),
            (layout::PCI_CONFIG, Width::Dword) => self.pci.read_address(),
            (PCI_DATA..=PCI_DATA_END, _) if fits(port, width) => self.pci.read_data(low_byte(port - PCI_DATA), width),
            _ => {
                let mut bytes = [0; 4];
                for (index, byte) in (0..).zip(bytes.iter_mut().take(width.bytes())) {
                    *byte = self.read_byte(port.wrapping_add(index), now);
                }
                u32::from_le_bytes(bytes)
            }
        }
    }

    /// Writes a port. No port is 64 bits wide: such an access writes 32.
    pub fn port_write(&mut self, port: u16, width: Width, value: u32, now: Ticks) {
        self.changed = true;
        let value = u64::from(value) & width.mask();
        match (port, width) {
            (layout::TEST_EXIT, _) if self.test_exit => self.ask(Request::TestExit(low_u32(value))),
            (_, Width::Byte) => self.write_byte(port, byte(value, 0), now),
            (layout::FW_CFG, Width::Word) => self.fw_cfg.select(low_u16(value)),
            (layout::PCI_CONFIG, Width::Dword) => self.pci.write_address(low_u32(value)),
            _ => {
                for (index, value) in (0..).zip(value.to_le_bytes().into_iter().take(width.bytes().min(4))) {
                    self.write_byte(port.wrapping_add(index), value, now);
                }
            }
        }
    }

    /// Processor `by` reads memory that is not RAM.
    pub fn mmio_read(&mut self, by: VcpuId, gpa: Gpa, width: Width, now: Ticks) -> u64 {
        let (page, offset) = (gpa.align_down(PAGE_SIZE), gpa.page_offset());
        if self.interrupts.lapic_base(by) == Some(page) {
            let value = self.interrupts.lapic_mmio_read(by, offset, width, now);
            // Reading a register that is not there is an error, which may interrupt.
            self.changed |= self.interrupts.has_interrupt(by);
            return value;
        }
        match (page, &mut self.test_device) {
            (layout::IO_APIC, _) => self.interrupts.io_apic_read(offset, width),
            (layout::TEST_DEVICE, Some(device)) => device.read(offset, width),
            _ => width.mask(),
        }
    }

    /// Processor `by` writes memory that is not RAM.
    pub fn mmio_write(&mut self, by: VcpuId, gpa: Gpa, width: Width, value: u64, now: Ticks) {
        self.changed = true;
        let (page, offset) = (gpa.align_down(PAGE_SIZE), gpa.page_offset());
        if self.interrupts.lapic_base(by) == Some(page) {
            return self.interrupts.lapic_mmio_write(by, offset, width, value, now);
        }
        match (page, &mut self.test_device) {
            (layout::IO_APIC, _) => self.interrupts.io_apic_write(offset, width, value),
            (layout::TEST_DEVICE, Some(device)) => {
                device.write(offset, width, value);
                let level = device.line();
                self.drive(layout::TEST_DEVICE_LINE, level);
            }
            _ => {}
        }
    }

    /// Does what is due up to `now`, of the devices and of the local APIC of processor `of`. Time must not go backwards.
    pub fn advance(&mut self, of: VcpuId, now: Ticks) {
        self.advance_pit(now);
        if is_due(self.rtc.deadline(), now) {
            self.rtc.advance(now);
            self.drive_rtc();
        }
        if is_due(self.pm.deadline(), now) {
            self.pm.advance(now);
            self.drive(layout::SCI_LINE, self.pm.line());
        }
        self.interrupts.advance(of, now);
    }

    /// When the devices that the processors share want [`Machine::advance`] to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Ticks> {
        earlier(earlier(self.pit.deadline(), self.rtc.deadline()), self.pm.deadline())
    }

    /// The interrupt controllers.
    #[must_use]
    pub const fn interrupts(&self) -> &InterruptSystem {
        &self.interrupts
    }

    /// The interrupt controllers, to serve the processors' side of them.
    pub const fn interrupts_mut(&mut self) -> &mut InterruptSystem {
        self.changed = true;
        &mut self.interrupts
    }

    /// Processor `by` reads an interrupt controller's model-specific register, see [`InterruptSystem::msr_read`]; changes
    /// nothing.
    ///
    /// # Errors
    /// [`InvalidMsr`] if there is none, or it can not be read.
    pub fn read_interrupt_msr(&mut self, by: VcpuId, index: u32, now: Ticks) -> Result<u64, InvalidMsr> {
        self.interrupts.msr_read(by, index, now)
    }

    /// Whether a deadline, or what is pending for a processor, may have changed since this was last asked: an access
    /// that leaves it unset spares its processor looking at them again. The other processors for whom that holds are in
    /// [`InterruptSystem::take_attention`].
    pub const fn take_changed(&mut self) -> bool {
        core::mem::replace(&mut self.changed, false)
    }

    /// Which processors have received something, see [`InterruptSystem::take_attention`].
    pub const fn take_attention(&mut self) -> u32 {
        self.interrupts.take_attention()
    }

    /// The byte that [`Machine::console_output`] takes next.
    #[must_use]
    pub fn next_console_output(&self) -> Option<u8> {
        self.uart.output()
    }

    /// Whether the console's transmitter went busy since this was asked last: so much waits to be taken.
    pub const fn take_console_busy(&mut self) -> bool {
        self.uart.take_busy()
    }

    /// How many bytes the guest has written to its console while the transmitter was busy and there was no room: lost.
    #[must_use]
    pub const fn console_lost(&self) -> u64 {
        self.uart.lost()
    }

    /// Takes the oldest byte that the guest has sent to its console. To be asked until there is none after every exit in
    /// which it may have sent some; what is not taken makes the guest's transmitter busy in the end.
    pub fn console_output(&mut self) -> Option<u8> {
        let byte = self.uart.pop_output()?;
        self.drive_uart();
        Some(byte)
    }

    /// A byte for the guest's console. `false`: there is no room, try again later.
    pub fn console_input(&mut self, byte: u8) -> bool {
        let taken = self.uart.receive(byte);
        self.drive_uart();
        taken
    }

    /// Whether [`Machine::console_input`] would take a byte now.
    #[must_use]
    pub fn has_console_room(&self) -> bool {
        self.uart.has_room()
    }

    /// Presses the power button; `false` if the guest does not listen to it.
    pub fn press_power_button(&mut self) -> bool {
        let heard = self.pm.press();
        self.drive(layout::SCI_LINE, self.pm.line());
        heard
    }

    /// What the guest has asked for first, once.
    pub const fn take_request(&mut self) -> Option<Request> {
        self.request.take()
    }

    fn read_byte(&mut self, port: u16, now: Ticks) -> u8 {
        match port {
            layout::COM1..=COM1_END => {
                let value = self.uart.read(low_byte(port - layout::COM1));
                self.drive_uart();
                value
            }
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => {
                // In poll mode reading acknowledges.
                self.changed = true;
                self.interrupts.pic_read(port)
            }
            0x40..=0x43 => self.pit.read(low_byte(port - 0x40), now),
            0x60 => self.keyboard.read_data(),
            0x61 => self.pit.read_port_61(now),
            0x64 => self.keyboard.read_status(),
            RTC_DATA => {
                // Reading status C lets the next interrupt come.
                self.changed = true;
                let value = self.rtc.read(now);
                self.drive_rtc();
                value
            }
            0x92 => self.reset.read_port_a(),
            FW_CFG_DATA => self.fw_cfg.read(),
            layout::ACPI_PM..=PM_END => byte(u64::from(self.read_pm(port, Width::Byte, now)), 0),
            layout::RESET_CONTROL => self.reset.read(),
            PCI_DATA..=PCI_DATA_END => byte(self.pci.read_data(low_byte(port - PCI_DATA), Width::Byte).into(), 0),
            _ => 0xFF,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: Ticks) {
        match port {
            layout::COM1..=COM1_END => {
                self.uart.write(low_byte(port - layout::COM1), value);
                self.drive_uart();
            }
            0x20 | 0x21 | 0xA0 | 0xA1 | 0x4D0 | 0x4D1 => self.interrupts.pic_write(port, value),
            0x40..=0x43 => {
                self.advance_pit(now);
                if self.pit.write(low_byte(port - 0x40), value, now) {
                    let level = self.pit.line(now);
                    self.drive(layout::PIT_LINE, level);
                }
            }
            0x61 => self.pit.write_port_61(value, now),
            0x60 => {
                let reset = self.keyboard.write_data(value);
                self.ask_reset(reset);
            }
            0x64 => {
                let reset = self.keyboard.write_command(value);
                self.ask_reset(reset);
            }
            layout::RTC => self.rtc.select(value),
            RTC_DATA => {
                self.rtc.write(value, now);
                self.drive_rtc();
            }
            0x92 => {
                let reset = self.reset.write_port_a(value);
                self.ask_reset(reset);
            }
            layout::ACPI_PM..=PM_END => self.write_pm(port, value, now),
            layout::RESET_CONTROL => {
                let reset = self.reset.write(value);
                self.ask_reset(reset);
            }
            _ => {}
        }
    }

    fn read_pm(&mut self, port: u16, width: Width, now: Ticks) -> u32 {
        let value = self.pm.read(low_byte(port - layout::ACPI_PM), width, now);
        self.drive(layout::SCI_LINE, self.pm.line());
        value
    }

    fn write_pm(&mut self, port: u16, value: u8, now: Ticks) {
        self.pm.write(low_byte(port - layout::ACPI_PM), value, now);
        self.drive(layout::SCI_LINE, self.pm.line());
        if self.pm.take_power_off() {
            self.ask(Request::PowerOff);
        }
    }

    /// Passes on what counter 0 did up to `now`.
    ///
    /// The line stays high after an edge, until the next one or a new program: when its output falls by itself the guest
    /// has had the time to take the interrupt, but may not have had the processor, and must not lose it by that.
    fn advance_pit(&mut self, now: Ticks) {
        if is_due(self.pit.deadline(), now) && self.pit.take_edge(now) {
            self.drive(layout::PIT_LINE, false);
            self.drive(layout::PIT_LINE, true);
        }
    }

    fn drive_uart(&mut self) {
        self.drive(layout::COM1_LINE, self.uart.line());
    }

    fn drive_rtc(&mut self) {
        self.drive(layout::RTC_LINE, self.rtc.line());
    }

    /// Sets an interrupt line, if it changes.
    fn drive(&mut self, line: u8, level: bool) {
        let bit = 1 << (line & 31);
        if (self.lines & bit != 0) != level {
            self.lines ^= bit;
            self.changed = true;
            self.interrupts.set_line(line, level);
        }
    }

    fn ask(&mut self, request: Request) {
        self.request.get_or_insert(request);
    }

    fn ask_reset(&mut self, reset: bool) {
        if reset {
            self.ask(Request::Reset);
        }
    }
}

/// Whether an access stays within one aligned 32-bit register.
const fn fits(port: u16, width: Width) -> bool {
    (port & 3) as usize + width.bytes() <= 4
}

/// The low byte of a port's distance from its device's first.
const fn low_byte(offset: u16) -> u8 {
    let [low, _] = offset.to_le_bytes();
    low
}

fn is_due(deadline: Option<Ticks>, now: Ticks) -> bool {
    deadline.is_some_and(|deadline| deadline <= now)
}

/// The earlier of two deadlines, as far as they are there.
#[must_use]
pub fn earlier(a: Option<Ticks>, b: Option<Ticks>) -> Option<Ticks> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        _ => a.or(b),
    }
}

#[cfg(test)]
mod tests;
