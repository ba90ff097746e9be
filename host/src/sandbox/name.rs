//! Ids and names of sandboxes and snapshots: which are valid, and how an id is made.

use std::io;

use tl_os::random;

/// Length of an id.
pub(crate) const ID_LENGTH: usize = 21;

/// The maximum length of a name, which is that of a label in a host name.
const MAX_NAME: usize = 63;

/// Why a name is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {name:?} is not valid: {problem}")]
pub(crate) struct InvalidName {
    pub(crate) name: String,
    pub(crate) problem: &'static str,
}

/// Checks that `name` can be the name of a sandbox: the first label of a host name that no id is.
pub(crate) fn check(name: &str) -> Result<(), InvalidName> {
    let problem = match name.as_bytes() {
        [] => "it is empty",
        bytes if bytes.len() > MAX_NAME => "it is longer than 63 characters",
        [first, ..] if !first.is_ascii_lowercase() => "it must begin with a lowercase letter",
        bytes if !bytes.iter().all(|byte| is_id_character(*byte) || *byte == b'-') => {
            "it may have lowercase letters, digits and hyphens only"
        }
        [.., b'-'] => "it must not end with a hyphen",
        _ if is_id(name) => "21 letters and digits are the id of a sandbox",
        _ => return Ok(()),
    };
    Err(InvalidName { name: name.to_owned(), problem })
}

/// Whether `text` has the form of an id.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(is_id_character)
}

fn is_id_character(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Makes an id: 21 random lowercase letters and digits.
pub(crate) fn new_id() -> io::Result<String> {
    const DIGITS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut id = String::with_capacity(ID_LENGTH);
    while id.len() < ID_LENGTH {
        // Bytes from 252 on would make the first four characters more likely.
        let usable = random::bytes::<64>()?.into_iter().filter(|byte| *byte < 252);
        let characters = usable.filter_map(|byte| DIGITS.get(usize::from(byte % 36)));
        id.extend(characters.take(ID_LENGTH - id.len()).map(|byte| char::from(*byte)));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules in other words, for comparison: a state machine over the characters.
    fn is_valid(name: &str) -> bool {
        let characters: Vec<char> = name.chars().collect();
        let allowed = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
        let (Some(first), Some(last)) = (characters.first(), characters.last()) else { return false };
        let is_like_an_id = characters.len() == 21 && !characters.contains(&'-');
        first.is_ascii_lowercase()
            && *last != '-'
            && characters.iter().all(allowed)
            && characters.len() <= 63
            && !is_like_an_id
    }

    #[test]
    fn all_names_of_up_to_four_characters_of_each_kind() {
        let kinds = ['a', 'z', '0', '9', '-', 'A', '_', '.', ' ', '\n', 'é', '\0', '/'];
        let mut names = vec![String::new()];
        for _ in 0..4 {
            for name in &names {
                assert_eq!(check(name).is_ok(), is_valid(name), "{name:?}");
            }
            names = names.iter().flat_map(|name| kinds.map(|kind| format!("{name}{kind}"))).collect();
        }
    }

    #[test]
    fn every_byte_at_each_place() {
        for byte in 0..=127_u8 {
            let byte = char::from(byte);
            for name in [format!("{byte}aa"), format!("a{byte}a"), format!("aa{byte}")] {
                assert_eq!(check(&name).is_ok(), is_valid(&name), "{name:?}");
            }
        }
    }

    #[test]
    fn every_length_with_and_without_a_hyphen() {
        for length in 1..=80 {
            let name = "a".repeat(length);
            assert_eq!(check(&name).is_ok(), length != 21 && length <= 63, "{name:?}");
            let with_hyphen = format!("b-{name}");
            assert_eq!(check(&with_hyphen).is_ok(), with_hyphen.len() <= 63, "{with_hyphen:?}");
        }
    }

    #[test]
    fn the_problem_is_named() {
        for (name, problem) in [
            ("", "it is empty"),
            ("9lives", "it must begin with a lowercase letter"),
            ("Env", "it must begin with a lowercase letter"),
            ("my_env", "it may have lowercase letters, digits and hyphens only"),
            ("env-", "it must not end with a hyphen"),
            ("a23456789012345678901", "21 letters and digits are the id of a sandbox"),
        ] {
            assert_eq!(check(name).unwrap_err().problem, problem, "{name:?}");
        }
        let long = "a".repeat(64);
        assert_eq!(check(&long).unwrap_err().problem, "it is longer than 63 characters");
    }

    #[test]
    fn a_new_id_is_an_id_and_no_valid_name() {
        for _ in 0..1000 {
            let id = new_id().unwrap();
            assert!(is_id(&id) && check(&id).is_err(), "{id:?}");
        }
        assert_ne!(new_id().unwrap(), new_id().unwrap());
    }
}
