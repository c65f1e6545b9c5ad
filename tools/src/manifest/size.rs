//! Sizes as people write them: `256M`, `1G`, `4096`.

/// Bytes of `text`: a number, with K, M, G or T (powers of 1024; `B` or `iB` may follow).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: write it like 256M or 1G");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().trim_end_matches("iB").trim_end_matches('B');
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn units_are_powers_of_1024() {
        let good = [("0", 0), ("4096", 4096), ("64K", 65536), ("256M", 256 << 20), ("1 GiB", 1 << 30), ("2T", 2 << 40)];
        for (text, bytes) in good {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "64Q", "99999999999T", "1MM", "1é"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
