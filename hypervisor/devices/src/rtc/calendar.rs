//! Seconds since 1970 to the fields of a clock, and back, in the proleptic Gregorian calendar.

/// Seconds of a day.
pub const DAY: i64 = 86_400;
/// Days of 400 years, after which the calendar repeats.
const DAYS_400: i64 = 146_097;

/// A date and time of day. Fields that a guest wrote may be out of their ranges; see [`Moment::to_seconds`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Year, 0 to 9999.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: i64,
    /// Day of the month, from 1.
    pub day: i64,
    /// Hour, 0 to 23.
    pub hour: i64,
    /// Minute.
    pub minute: i64,
    /// Second.
    pub second: i64,
    /// Day of the week, 1 (Sunday) to 7.
    pub weekday: i64,
}

impl Moment {
    /// The moment `seconds` after 1970 began (or before it, if negative).
    pub const fn from_seconds(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years that start in March have the leap day at their end. Day 0 of such a year 0 is 719,468 days before 1970.
        let days = days.saturating_add(719_468);
        let (era, day) = (days.div_euclid(DAYS_400), days.rem_euclid(DAYS_400));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        // From March on, five months have 153 days.
        let month = (5 * day_of_year + 2) / 153;
        let in_next_year = if month >= 10 { 1 } else { 0 };
        Self {
            year: (era * 400 + year + in_next_year).rem_euclid(10_000),
            month: if month >= 10 { month - 9 } else { month + 3 },
            day: day_of_year - (153 * month + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
            // 1970 began on a Thursday.
            weekday: (seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1,
        }
    }

    /// Seconds since 1970. A field beyond its range counts on into the next larger one, as far as a byte can go; a month
    /// is brought into range. The day of the week does not matter.
    pub const fn to_seconds(self) -> i64 {
        let month = if self.month < 1 { 0 } else { (self.month - 1) % 12 };
        let (month, year) = if month < 2 { (month + 10, self.year - 1) } else { (month - 2, self.year) };
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let days = era * DAYS_400 + 365 * year + year / 4 - year / 100 + (153 * month + 2) / 5 + self.day - 1 - 719_468;
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;
    use proptest::prelude::{prop_assert_eq, proptest};

    fn fields(seconds: i64) -> (i64, i64, i64, i64, i64, i64, i64) {
        let m = Moment::from_seconds(seconds);
        (m.year, m.month, m.day, m.hour, m.minute, m.second, m.weekday)
    }

    #[test]
    fn known_moments() {
        assert_eq!(fields(0), (1970, 1, 1, 0, 0, 0, 5));
        assert_eq!(fields(951_782_400), (2000, 2, 29, 0, 0, 0, 3));
        assert_eq!(fields(1_700_000_000), (2023, 11, 14, 22, 13, 20, 3));
        assert_eq!(fields(4_102_444_799), (2099, 12, 31, 23, 59, 59, 5));
        assert_eq!(fields(4_107_542_400), (2100, 3, 1, 0, 0, 0, 2), "2100 has no leap day");
        assert_eq!(fields(-1), (1969, 12, 31, 23, 59, 59, 4));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -62_167_219_200_i64..253_402_300_800) {
            prop_assert_eq!(Moment::from_seconds(seconds).to_seconds(), seconds);
        }

        #[test]
        fn days_follow_each_other(day in -700_000_i64..2_900_000) {
            let (a, b) = (Moment::from_seconds(day * 86_400), Moment::from_seconds(day * 86_400 + 86_400));
            prop_assert_eq!(a.weekday % 7 + 1, b.weekday);
            if a.month == b.month {
                prop_assert_eq!(a.day + 1, b.day);
            } else {
                prop_assert_eq!((b.day, a.month % 12 + 1), (1, b.month));
            }
        }
    }
}
