//! The word that was probably meant.

/// The one of `candidates` that is nearest to `word`, if it is near enough to be meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = word.chars().count().div_ceil(3);
    let with_distance = candidates.into_iter().map(|c| (distance(word, c), c));
    with_distance.filter(|(d, _)| *d <= most).min_by_key(|(d, _)| *d).map(|(_, c)| c)
}

/// Edits (insert, delete, replace one character) from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (y, &up) in b.iter().zip(row.iter().skip(1)) {
            let replaced = diagonal + usize::from(x != *y);
            left = replaced.min(up + 1).min(left + 1);
            next.push(left);
            diagonal = up;
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn edits_are_counted() {
        for (a, b, want) in
            [("", "", 0), ("a", "", 1), ("kernal", "kernel", 1), ("initrd", "intird", 2), ("abc", "xyz", 3)]
        {
            assert_eq!((distance(a, b), distance(b, a)), (want, want), "{a} {b}");
        }
    }

    #[test]
    fn only_what_is_near_is_offered() {
        let words = ["name", "kernel", "memory"];
        assert_eq!(nearest("kernal", words), Some("kernel"));
        assert_eq!(nearest("mem", words), None);
        assert_eq!(nearest("disk", words), None);
    }
}
