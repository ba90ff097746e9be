//! Text for the terminal: tables that fit its width, colours, and names without control characters.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use tl_os::pty;

use super::error::Error;
use crate::logger::Escaped;

/// Columns of a terminal that does not tell its size.
const DEFAULT_WIDTH: usize = 80;

/// Rows of a terminal that does not tell its size.
const DEFAULT_HEIGHT: usize = 24;

/// Characters between two columns.
const GAP: usize = 2;

/// Narrowest width that a column of more is reduced to.
const NARROWEST: usize = 4;

/// Where the output goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Columns; `None` if stdout is not a terminal.
    pub(crate) width: Option<usize>,
    /// Rows; `None` if stdout is not a terminal, or a dumb one, which cannot move its cursor.
    pub(crate) height: Option<usize>,
    pub(crate) has_colours: bool,
}

/// The colour of a cell, as a parameter of the escape sequence for it (console_codes(4)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    None = 0,
    Bold = 1,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// A column of a table.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) head: &'static str,
    /// It is never made narrower than its content.
    pub(crate) is_fixed: bool,
}

/// A cell of a table. Its text has no control characters.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    /// A cell with this text; control characters are escaped.
    pub(crate) fn new(text: &str, colour: Colour) -> Cell {
        Cell { text: escape(text), colour }
    }

    /// A cell without a colour.
    #[inline(never)]
    pub(crate) fn plain(text: &str) -> Cell {
        Cell::new(text, Colour::None)
    }

    /// A number, or nothing.
    #[inline(never)]
    pub(crate) fn of_number(number: Option<u64>) -> Cell {
        Cell::plain(&number.map(|number| number.to_string()).unwrap_or_default())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl Screen {
    /// The screen of stdout.
    pub(crate) fn of_stdout() -> Screen {
        if !io::stdout().is_terminal() {
            return Screen { width: None, height: None, has_colours: false };
        }
        let size = pty::size(&io::stdout()).ok();
        let known = |value: Option<u16>, default: usize| value.filter(|value| *value > 0).map_or(default, usize::from);
        // https://no-color.org: any value that is not empty.
        let refuses = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Screen {
            width: Some(known(size.map(|size| size.cols), DEFAULT_WIDTH)),
            height: (!is_dumb).then(|| known(size.map(|size| size.rows), DEFAULT_HEIGHT)),
            has_colours: !refuses && !is_dumb,
        }
    }

    /// Adds a cell, cut to this many columns, in its colour if the screen has colours. Returns its width.
    pub(crate) fn add(&self, out: &mut String, cell: &Cell, most: usize) -> usize {
        let shown = cut(&cell.text, most);
        if self.has_colours && cell.colour != Colour::None {
            let _ = write!(out, "\x1b[{}m{shown}\x1b[0m", cell.colour as u8);
        } else {
            *out += &shown;
        }
        width(&shown)
    }

    /// A table with a line of heads; the cells are in rows. No line is wider than the screen.
    pub(crate) fn table(&self, columns: &[Column], cells: &[Cell]) -> String {
        let heads: Vec<Cell> = columns.iter().map(|column| Cell::new(column.head, Colour::Bold)).collect();
        let widths = self.widths(columns, cells);
        let mut text = String::new();
        self.add_row(&mut text, &heads, &widths);
        for row in cells.chunks(columns.len().max(1)) {
            self.add_row(&mut text, row, &widths);
        }
        text
    }

    /// The width of each column.
    fn widths(&self, columns: &[Column], cells: &[Cell]) -> Vec<usize> {
        let mut widths: Vec<usize> = columns.iter().map(|column| width(column.head)).collect();
        for row in cells.chunks(columns.len().max(1)) {
            for (cell, widest) in row.iter().zip(&mut widths) {
                *widest = width(&cell.text).max(*widest);
            }
        }
        let mut total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        while self.width.is_some_and(|most| total > most) {
            let mut widest: Option<&mut usize> = None;
            for (width, column) in widths.iter_mut().zip(columns) {
                // Of equally wide columns, the last one.
                let least = widest.as_ref().map_or(NARROWEST + 1, |widest| **widest);
                if !column.is_fixed && *width >= least {
                    widest = Some(width);
                }
            }
            let Some(widest) = widest else { break };
            *widest -= 1;
            total -= 1;
        }
        widths
    }

    /// Adds one row. Columns that do not fit at all are cut off, and no line ends in spaces.
    fn add_row(&self, text: &mut String, row: &[Cell], widths: &[usize]) {
        let most = self.width.unwrap_or(usize::MAX);
        // Where the line ends so far, and where the cell begins.
        let (mut end, mut begin) = (0, 0);
        for (cell, column) in row.iter().zip(widths) {
            if begin >= most {
                break;
            }
            if !cell.is_empty() {
                for _ in end..begin {
                    text.push(' ');
                }
                end = begin + self.add(text, cell, (most - begin).min(*column));
            }
            begin += column + GAP;
        }
        text.push('\n');
    }
}

/// Writes to stdout. Returns the exit status 0.
///
/// # Errors
/// If that fails.
pub(crate) fn print(text: &[u8]) -> Result<u8, Error> {
    let mut out = io::stdout();
    out.write_all(text).and_then(|()| out.flush()).map(|()| 0).map_err(Error::output)
}

/// Writes JSON as one line to stdout. Returns the exit status 0.
///
/// # Errors
/// If that fails.
pub(crate) fn print_json(json: &[u8]) -> Result<u8, Error> {
    print(json.trim_ascii())?;
    print(b"\n")
}

/// Prints an error as one line on stderr.
pub(crate) fn print_error(error: Error) {
    let _ = writeln!(io::stderr(), "tlctl: {}", escape(&error.to_string()));
}

/// The text with its control characters escaped.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Writing to a string cannot fail.
    let _ = Escaped(&mut out).write_str(text);
    out
}

/// Columns that a terminal needs for a character: two for those of East Asia and for most pictures, none for combining
/// marks. An approximation: terminals differ.
fn letter_width(letter: char) -> usize {
    match u32::from(letter) {
        0x300..=0x36F | 0x1AB0..=0x1AFF | 0x20D0..=0x20FF | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F => 0,
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

/// Columns that a terminal needs for a text without control characters.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(letter_width).sum()
}

/// The text, or as much of it as fits into this many columns, with `…` at its end.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let (mut out, mut used) = (String::new(), 1);
    for letter in text.chars() {
        used += letter_width(letter);
        if used > most {
            break;
        }
        out.push(letter);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column { head: "PID", is_fixed: true },
        Column { head: "NAME", is_fixed: false },
        Column { head: "COMMAND", is_fixed: false },
    ];

    fn table(width: Option<usize>, rows: &[[&str; 3]]) -> String {
        let cells: Vec<Cell> = rows.iter().flatten().map(|text| Cell::plain(text)).collect();
        Screen { width, height: None, has_colours: false }.table(COLUMNS, &cells)
    }

    #[test]
    fn a_table_without_a_terminal_has_its_natural_width() {
        assert_eq!(
            table(None, &[["1", "web", "python3 -m http.server"], ["12345", "", "x"]]),
            "PID    NAME  COMMAND\n1      web   python3 -m http.server\n12345        x\n"
        );
    }

    #[test]
    fn the_widest_columns_are_reduced_first_and_fixed_ones_never() {
        assert_eq!(
            table(Some(24), &[["12345", "web", "python3 -m http.server"]]),
            "PID    NAME  COMMAND\n12345  web   python3 -m…\n"
        );
        assert_eq!(table(Some(9), &[["12345", "web", "python3"]]), "PID    N…\n12345  w…\n");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let wide = "世界".repeat(30);
        for width_of in 1..120 {
            let text = table(Some(width_of), &[["1234567", &wide, "e\u{301}x"], ["1", "a\x1b[31m\nb", &wide]]);
            for line in text.lines() {
                assert!(width(line) <= width_of, "{width_of}: {line:?} has {}", width(line));
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escape("a\x1b[31m\tb\u{202e}c\u{7f}é世"), "a\\u{1b}[31m\\tb\\u{202e}c\\u{7f}é世");
    }

    #[test]
    fn colours_are_used_only_if_the_screen_has_them() {
        let add = |has_colours, colour| {
            let mut out = String::new();
            let width = Screen { width: None, height: None, has_colours }.add(&mut out, &Cell::new("xy", colour), 9);
            assert_eq!(width, 2);
            out
        };
        assert_eq!(add(true, Colour::Red), "\x1b[31mxy\x1b[0m");
        assert_eq!(add(true, Colour::None), "xy");
        assert_eq!(add(false, Colour::Red), "xy");
    }
}
