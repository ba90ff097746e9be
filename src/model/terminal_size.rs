//! [`TerminalSize`]: rows and columns.

/// The size of a terminal in characters: 1 to 500 rows and 1 to 1000 columns. The default is 24 rows and 80 columns.
///
/// ```
/// use tl_supervisor::TerminalSize;
///
/// let size = TerminalSize::new(50, 0);
/// assert_eq!((size.rows(), size.cols()), (50, 80));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TerminalSize {
    pub(crate) rows: u16,
    pub(crate) cols: u16,
}

impl TerminalSize {
    const MAX_ROWS: u16 = 500;
    const MAX_COLS: u16 = 1000;

    /// A size of `rows` and `cols`. A number above the maximum becomes the maximum. 0, which clients without a terminal
    /// send, becomes the default.
    pub fn new(rows: u64, cols: u64) -> TerminalSize {
        let default = TerminalSize::default();
        TerminalSize {
            rows: clamp(rows, default.rows, TerminalSize::MAX_ROWS),
            cols: clamp(cols, default.cols, TerminalSize::MAX_COLS),
        }
    }

    /// Rows, from 1 to 500.
    pub fn rows(self) -> u16 {
        self.rows
    }

    /// Columns, from 1 to 1000.
    pub fn cols(self) -> u16 {
        self.cols
    }
}

impl Default for TerminalSize {
    fn default() -> TerminalSize {
        TerminalSize { rows: 24, cols: 80 }
    }
}

fn clamp(requested: u64, default: u16, max: u16) -> u16 {
    match requested {
        0 => default,
        _ => u16::try_from(requested).unwrap_or(max).min(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_above_the_maximum_are_clamped_and_zero_is_the_default() {
        for (rows, cols, expected) in [
            (24, 80, (24, 80)),
            (0, 0, (24, 80)),
            (0, 7, (24, 7)),
            (1, 1, (1, 1)),
            (500, 1000, (500, 1000)),
            (501, 1001, (500, 1000)),
            (u64::MAX, 1 << 16, (500, 1000)),
        ] {
            let size = TerminalSize::new(rows, cols);
            assert_eq!((size.rows, size.cols), expected, "{rows} {cols}");
        }
    }
}
