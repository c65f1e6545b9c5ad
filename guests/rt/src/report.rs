//! Checks and their report lines.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

static FAILED: AtomicU32 = AtomicU32::new(0);

/// Counts and prints one check; for the macros. Returns `right`.
#[doc(hidden)]
pub fn check(right: bool, file: &str, line: u32, name: fmt::Arguments<'_>, seen: fmt::Arguments<'_>) -> bool {
    if right {
        crate::println!("ok {name}");
    } else {
        FAILED.fetch_add(1, Ordering::Relaxed);
        crate::println!("FAIL {file}:{line} {name}{seen}");
    }
    right
}

/// Prints the last line; the exit code.
#[must_use]
pub fn finish() -> u32 {
    let failed = FAILED.load(Ordering::Relaxed);
    if failed == 0 {
        crate::println!("PASS");
    } else {
        crate::println!("FAILED {failed}");
    }
    u32::from(failed != 0)
}

/// `check!(condition, "name {}", ...)`: prints `ok NAME` or `FAIL ...`, goes on, and yields the condition.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($name:tt)+) => {
        $crate::report::check($condition, ::core::file!(), ::core::line!(), ::core::format_args!($($name)+),
            ::core::format_args!(""))
    };
}

/// `check_eq!(seen, expected, "name {}", ...)`: like [`check!`], with both values where they differ.
#[macro_export]
macro_rules! check_eq {
    ($seen:expr, $expected:expr, $($name:tt)+) => {
        match (&$seen, &$expected) {
            (seen, expected) => $crate::report::check(*seen == *expected, ::core::file!(), ::core::line!(),
                ::core::format_args!($($name)+), ::core::format_args!(": {seen:#x?}, expected {expected:#x?}")),
        }
    };
}

/// `check_or_defect!(seen, expected, defect, "name {}", ...)`: like [`check_eq!`], for a check that QEMU's interpreter is
/// proven to fail by itself: there `defect`, and no other wrong value, makes the line `skip NAME`.
#[macro_export]
macro_rules! check_or_defect {
    ($seen:expr, $expected:expr, $defect:expr, $($name:tt)+) => {
        match ($seen, $expected, $defect) {
            (seen, expected, defect) if seen != expected && seen == defect && $crate::cpu::is_tcg() => {
                $crate::skip!($($name)+);
                true
            }
            (seen, expected, _) => $crate::check_eq!(seen, expected, $($name)+),
        }
    };
}

/// Like [`check_eq!`], but silent where they are equal: for many small checks under one name.
#[macro_export]
macro_rules! expect_eq {
    ($seen:expr, $expected:expr, $($name:tt)+) => {
        match (&$seen, &$expected) {
            (seen, expected) => *seen == *expected || $crate::report::check(false, ::core::file!(), ::core::line!(),
                ::core::format_args!($($name)+), ::core::format_args!(": {seen:#x?}, expected {expected:#x?}")),
        }
    };
}

/// `skip!("name {}", ...)`: says that something was not checked because it can not be on this machine; the case table has
/// the reason.
#[macro_export]
macro_rules! skip {
    ($($name:tt)+) => { $crate::println!("skip {}", ::core::format_args!($($name)+)) };
}
