//! The few port devices of the host that the hypervisor itself uses.

use x86_64::instructions::port::Port;

/// Reads a byte of a host device register.
///
/// # Safety
/// Reading `port` has no effect beyond the device, and the device does no DMA for it.
#[must_use]
pub unsafe fn read(port: u16) -> u8 {
    // SAFETY: as the caller vouches.
    unsafe { Port::new(port).read() }
}

/// Writes a byte to a host device register.
///
/// # Safety
/// Writing `value` to `port` has no effect beyond the device, and the device does no DMA for it.
pub unsafe fn write(port: u16, value: u8) {
    // SAFETY: as the caller vouches.
    unsafe { Port::new(port).write(value) }
}
