//! Text of limited length.

/// The beginning of `text`, of whole characters and of at most `max` bytes.
pub(crate) fn prefix(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_whole_characters() {
        for (text, max, right) in [("", 3, ""), ("abc", 3, "abc"), ("abcd", 3, "abc"), ("aé", 2, "a"), ("é", 1, "")] {
            assert_eq!(prefix(text, max), right, "{text} {max}");
        }
    }
}
