//! Parts of a processor, and lengths of time, as a person writes them.

/// `50%` in thousandths.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.trim().strip_suffix('%').and_then(|digits| digits.trim().parse::<u32>().ok());
    let thousandths = number.and_then(|percent| percent.checked_mul(10));
    thousandths.ok_or_else(|| format!("`{text}` is no part of a processor: write it like \"50%\""))
}

/// `200ms` in microseconds.
pub fn parse_time(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no length of time: write it like 200ms, 500us or 2s");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.trim() {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// `90s` in seconds.
pub fn parse_seconds(text: &str) -> Result<u64, String> {
    match parse_time(text)? {
        time if time != 0 && time.is_multiple_of(1_000_000) => Ok(time / 1_000_000),
        _ => Err(format!("`{text}` is not a number of seconds: write it like 90s")),
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_percent, parse_time};

    #[test]
    fn parts_and_times_are_read() {
        assert_eq!(parse_percent("50%"), Ok(500));
        assert_eq!(parse_percent(" 150 % "), Ok(1500));
        assert_eq!(parse_time("200ms"), Ok(200_000));
        assert_eq!(parse_time("2 s"), Ok(2_000_000));
        assert_eq!(parse_time("7us"), Ok(7));
        for text in ["", "50", "%", "-1%", "5000000000%"] {
            assert!(parse_percent(text).unwrap_err().contains("50%"), "{text}");
        }
        for text in ["", "5", "ms", "5m", "1.5s", "99999999999999999999s"] {
            assert!(parse_time(text).unwrap_err().contains("200ms"), "{text}");
        }
    }
}
