//! What time the host says it is.
//!
//! Motorola MC146818 data sheet, "Time, Calendar, and Alarm Locations"; the century byte 0x32 is the PC's custom.

use crate::ports::{read, write};

fn register(index: u8) -> u8 {
    // SAFETY: index and data port of the clock's memory; reading changes nothing but status C, which nobody uses.
    unsafe {
        write(0x70, index);
        read(0x71)
    }
}

/// Seconds since the start of 1970 (UTC, if the host keeps its clock so); 0 if the host has no clock.
#[must_use]
pub fn wall_clock() -> u64 {
    // Read twice until the same, so that no update falls in between; an absent clock never says that it is ready.
    for _ in 0..10_000 {
        if register(0x0A) & 0x80 != 0 {
            continue;
        }
        let fields = [0, 2, 4, 7, 8, 9, 0x32].map(register);
        if fields == [0, 2, 4, 7, 8, 9, 0x32].map(register) {
            return seconds(fields, register(0x0B));
        }
    }
    0
}

/// Seconds since 1970 of second, minute, hour, day, month, year, century, as status B says they are written.
fn seconds(fields: [u8; 7], status: u8) -> u64 {
    let binary = status & 4 != 0;
    let number = |field: u8| u64::from(if binary { field } else { (field >> 4) * 10 + (field & 15) });
    let [second, minute, hour, day, month, year, century] = fields;
    let mut hours = number(hour & 0x7F);
    if status & 2 == 0 {
        hours = hours % 12 + if hour & 0x80 != 0 { 12 } else { 0 };
    }
    let century = match number(century) {
        known @ 19..=30 => known,
        _ => 20,
    };
    let days = days_from_1970(century * 100 + number(year), number(month), number(day));
    days * 86_400 + hours * 3600 + number(minute) * 60 + number(second)
}

/// Days from 1 January 1970 to a date of the Gregorian calendar, 0 for earlier ones.
fn days_from_1970(year: u64, month: u64, day: u64) -> u64 {
    // Count from March, so that the leap day comes last.
    let (year, month) = if month <= 2 { (year.saturating_sub(1), month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    days.saturating_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::{days_from_1970, seconds};

    #[test]
    fn dates() {
        assert_eq!(days_from_1970(1970, 1, 1), 0);
        assert_eq!(days_from_1970(2000, 3, 1), 11_017);
        assert_eq!(days_from_1970(2024, 2, 29), 19_782);
    }

    #[test]
    fn encodings() {
        // 2023-11-14 22:13:20, which is 1700000000.
        assert_eq!(seconds([0x20, 0x13, 0x22, 0x14, 0x11, 0x23, 0x20], 2), 1_700_000_000);
        assert_eq!(seconds([20, 13, 22, 14, 11, 23, 20], 6), 1_700_000_000);
        assert_eq!(seconds([0x20, 0x13, 0x90, 0x14, 0x11, 0x23, 0x20], 0), 1_700_000_000);
    }
}
