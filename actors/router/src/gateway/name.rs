//! Which service a path names.

/// Longest name, in bytes: what a row can have.
const MAX_NAME: usize = horos_wire::protocol::control::MAX_SERVICE;

/// The service that `path` names: all of it behind the first slash, escapes read. None where that is no name: nothing, too long, or
/// with an escape that is none, a control character, or a segment that is empty or means another directory to some reader.
pub(super) fn of(path: &str) -> Option<Box<str>> {
    let name = read(path.strip_prefix('/')?)?;
    let plain = !name.chars().any(|c| c.is_control() || c == '\\');
    let placed = name.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    (plain && placed && name.len() <= MAX_NAME).then(|| name.into())
}

/// Reads percent escapes (RFC 3986 §2.1), once: what one stands for is not read again.
fn read(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                u8::try_from(digit(rest.next())? << 4 | digit(rest.next())?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_all_of_the_path_with_its_escapes_read_once() {
        for (path, name) in [
            ("/echo", "echo"),
            ("/a/b/c", "a/b/c"),
            ("/a%2Fb", "a/b"),
            ("/caf%C3%A9", "café"),
            ("/a%20b", "a b"),
            ("/100%25", "100%"),
            ("/a%2541", "a%41"),
            ("/stock@bo", "stock@bo"),
            ("/.well", ".well"),
        ] {
            assert_eq!(of(path).as_deref(), Some(name), "{path}");
        }
    }

    #[test]
    fn what_names_nothing_or_two_things_is_no_name() {
        let long = format!("/{}", "x".repeat(MAX_NAME + 1));
        for path in [
            "", "/", "//", "/a/", "/a//b", "//a", "/.", "/..", "/a/../b", "/%2e%2e", "/a/%2E", "/%", "/%4", "/%zz", "/a%00b", "/a%0Ab",
            "/%ff", "/%C3", "/a%5Cb", "/a\\b", "/%7f", "/%C2%85", "/%2F", "/%+1", &long,
        ] {
            assert_eq!(of(path), None, "{path}");
        }
        assert!(of(&long[..=MAX_NAME]).is_some());
    }
}
