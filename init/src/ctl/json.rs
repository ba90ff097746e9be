//! Reads JSON of the API in place: a value is a part of the text, and nothing is copied but the strings that are asked
//! for. A tree of values, as `serde_json` makes it, would be a tenth of what this whole client may add to the program.

/// A JSON value: its text. Empty if there is no such value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    /// The object in `text`; none if there is no object.
    pub(crate) fn object(text: &'a [u8]) -> Option<Json<'a>> {
        let text = std::str::from_utf8(text).ok()?.trim_ascii();
        (text.starts_with('{') && value_length(text) == text.len()).then_some(Json(text))
    }

    /// The value at a path of names: `managed/status`.
    pub(crate) fn get(self, path: &str) -> Json<'a> {
        let mut found = self;
        for name in path.split('/') {
            let mut members = found.members();
            found = loop {
                let key = members.next();
                let value = members.next();
                if key.0.is_empty() || key.0.trim_matches('"') == name {
                    break value;
                }
            };
        }
        found
    }

    /// The members of an array, or the names and values of an object. A string, number or `null` has none.
    pub(crate) fn members(self) -> Members<'a> {
        let is_container = self.0.starts_with(['[', '{']);
        Members(if is_container { self.0.get(1..).unwrap_or_default() } else { "" })
    }

    /// The string; empty if it is none.
    pub(crate) fn text(self) -> String {
        if self.0.starts_with('"') { serde_json::from_str(self.0).unwrap_or_default() } else { String::new() }
    }

    /// The number; none if it is no whole number of at least 0.
    pub(crate) fn number(self) -> Option<u64> {
        self.0.parse().ok()
    }

    /// The number as it is written; empty if it is none.
    pub(crate) fn digits(self) -> &'a str {
        if self.0.starts_with(|letter: char| letter == '-' || letter.is_ascii_digit()) { self.0 } else { "" }
    }

    /// Whether it is exactly this text: `true`, or a string in quotes.
    pub(crate) fn is(self, text: &str) -> bool {
        self.0 == text
    }

    /// Whether there is a value other than `null`.
    pub(crate) fn is_some(self) -> bool {
        !self.0.is_empty() && self.0 != "null"
    }
}

/// Members of an array or of an object, not read yet.
#[derive(Debug)]
pub(crate) struct Members<'a>(&'a str);

impl<'a> Members<'a> {
    /// The next one; an empty value after the last one.
    pub(crate) fn next(&mut self) -> Json<'a> {
        let rest = self.0.trim_start_matches(|letter: char| letter.is_ascii_whitespace() || ",:".contains(letter));
        let (value, rest) = rest.split_at_checked(value_length(rest)).unwrap_or_default();
        self.0 = rest;
        Json(value)
    }
}

/// Length of the value that the text begins with, in bytes; 0 if it begins with none, or with an incomplete one.
fn value_length(text: &str) -> usize {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        if in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_string = false,
                _ => continue,
            }
            if !in_string && depth == 0 {
                return at + 1;
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            // The end of what contains a number or a word.
            b'}' | b']' | b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if depth == 0 => return at,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    if depth == 0 && !in_string { text.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_path() {
        let text =
            br#" {"a": {"b": [1, {"c":"x]}\""}, "y"], "d": null}, "e":-5, "f" : true,"g":"\u00e9\n\ud83d\ude00"} "#;
        let json = Json::object(text).unwrap();
        let mut list = json.get("a/b").members();
        assert_eq!(list.next().number(), Some(1));
        assert_eq!(list.next().get("c").text(), "x]}\"");
        assert_eq!(list.next().text(), "y");
        assert!(!list.next().is_some());
        assert!(!json.get("a/d").is_some() && !json.get("a/x").is_some() && !json.get("x/y/z").is_some());
        assert_eq!((json.get("e").number(), json.get("e").text()), (None, String::new()));
        assert_eq!((json.get("e").digits(), json.get("f").digits(), json.get("x").digits()), ("-5", "", ""));
        assert!(json.get("f").is("true"));
        assert_eq!(json.get("g").text(), "é\n😀");
        assert!(json.get("f").members().next().0.is_empty());
    }

    #[test]
    fn a_name_inside_of_a_string_is_no_name() {
        let json = Json::object(br#"{"x":"\"pid\":1,","y":["pid",2],"pid":3}"#).unwrap();
        assert_eq!(json.get("pid").number(), Some(3));
    }

    #[test]
    fn other_text_is_no_object() {
        for text in ["", "[]", "{", "{\"a\"", "{}x", "{}{}", "<html>", "{\"a\":\"}"] {
            assert_eq!(Json::object(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Json::object(b"\xff{}"), None);
    }

    #[test]
    fn any_cut_of_a_text_ends() {
        let text = r#"{"a":[1,{"b":"\""}],"c":null}"#;
        for end in 0..text.len() {
            let cut = Json(&text[..end]);
            let _ = (cut.get("a/b"), cut.get("c").text());
            let mut members = cut.members();
            while members.next().is_some() {}
        }
    }
}
