//! The size of a terminal's window.

/// Rows and columns, within what a client may ask for (section 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TerminalSize {
    /// 1..=500.
    pub rows: u16,
    /// 1..=1000.
    pub cols: u16,
}

impl TerminalSize {
    const MOST_ROWS: u16 = 500;
    const MOST_COLS: u16 = 1000;

    /// Clamps what was asked for. A client without a terminal of its own sends 0: that means the default.
    pub fn new(rows: u64, cols: u64) -> TerminalSize {
        let default = TerminalSize::default();
        TerminalSize {
            rows: clamp(rows, default.rows, TerminalSize::MOST_ROWS),
            cols: clamp(cols, default.cols, TerminalSize::MOST_COLS),
        }
    }
}

impl Default for TerminalSize {
    fn default() -> TerminalSize {
        TerminalSize { rows: 24, cols: 80 }
    }
}

fn clamp(wanted: u64, default: u16, most: u16) -> u16 {
    match wanted {
        0 => default,
        _ => u16::try_from(wanted).unwrap_or(most).min(most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_clamped() {
        for (rows, cols, right) in [
            (24, 80, (24, 80)),
            (0, 0, (24, 80)),
            (0, 7, (24, 7)),
            (1, 1, (1, 1)),
            (500, 1000, (500, 1000)),
            (501, 1001, (500, 1000)),
            (u64::MAX, 1 << 16, (500, 1000)),
        ] {
            let window = TerminalSize::new(rows, cols);
            assert_eq!((window.rows, window.cols), right, "{rows} {cols}");
        }
    }
}
