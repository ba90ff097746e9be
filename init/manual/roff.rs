//! Manual pages in the `man` macros (man(7)).

/// A manual page.
pub(crate) struct Page(String);

impl Page {
    /// A page with its title and its section NAME.
    pub(crate) fn new(name: &str, section: u8, version: &str, summary: &str) -> Page {
        let mut page = Page(format!(
            ".\\\" Made by init/manual of the source code of tl-init; changes belong there.\n\
             .TH {} {section} \"\" \"tl-init {version}\" \"tl-init manual\"\n",
            name.to_uppercase()
        ));
        page.section("NAME");
        page.0 += &format!("{name} \\- {}\n", escape(summary));
        page
    }

    pub(crate) fn section(&mut self, title: &str) {
        self.0 += &format!(".SH {title}\n");
    }

    pub(crate) fn subsection(&mut self, title: &str) {
        self.0 += &format!(".SS \"{}\"\n", escape(title));
    }

    /// A paragraph; `**word**` is bold, `*word*` is italic.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.begin_paragraph();
        self.line(text);
    }

    /// Right after a heading, a paragraph needs no request of its own.
    fn begin_paragraph(&mut self) {
        let last = self.0.trim_end().rsplit('\n').next().unwrap_or_default();
        if !last.starts_with(".SH") && !last.starts_with(".SS") {
            self.0 += ".PP\n";
        }
    }

    /// A term and its explanation.
    pub(crate) fn term(&mut self, term: &str, text: &str) {
        self.0 += ".TP\n";
        self.line(term);
        self.line(text);
    }

    /// Lines that are shown as they are.
    pub(crate) fn example(&mut self, lines: &[&str]) {
        self.begin_paragraph();
        self.0 += ".RS 4\n.nf\n";
        for line in lines {
            self.0 += &protect(&escape(line));
            self.0.push('\n');
        }
        self.0 += ".fi\n.RE\n";
    }

    fn line(&mut self, text: &str) {
        self.0 += &protect(&fonts(&escape(text)));
        self.0.push('\n');
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }
}

/// The text without characters that mean something to roff.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "").replace('…', "...")
}

/// A line that begins with a dot would be a request.
fn protect(line: &str) -> String {
    if line.starts_with('.') { format!("\\&{line}") } else { line.to_owned() }
}

/// Sets the fonts of `**bold**` and `*italic*`. A single `*` stands for itself.
fn fonts(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split("**").enumerate() {
        if at % 2 == 1 {
            out += &format!("\\fB{part}\\fR");
            continue;
        }
        let parts: Vec<&str> = part.split('*').collect();
        for (at, part) in parts.iter().enumerate() {
            out += &match (at % 2 == 1, at + 1 == parts.len()) {
                (true, true) => format!("*{part}"),
                (true, false) => format!("\\fI{part}\\fR"),
                (false, _) => (*part).to_owned(),
            };
        }
    }
    out
}
