//! Files that are read as a whole: ordinary ones, and not larger than any that is honest. A pipe
//! would be waited for without end, and parsed JSON takes many times the memory of its text.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::path::Path;

/// Bytes of settings, configurations, policies and descriptions at most.
pub(crate) const SETTINGS: u64 = 16 << 20;

/// Bytes of tokenizers, logs and questions at most; the largest vocabularies take 40 MB.
pub(crate) const LARGE: u64 = 256 << 20;

/// Opens an ordinary file.
///
/// # Errors
/// It is absent, or something else.
pub(crate) fn open(path: &Path) -> Result<File> {
    // Before it is opened, which a pipe would wait for.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::other("it is no file"));
    }
    File::open(path)
}

/// The contents of an ordinary file of up to `most` bytes.
///
/// # Errors
/// It is absent, something else, or larger.
pub(crate) fn bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Its length may be nothing to go by, as below /proc.
    open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(Error::other(format!("it has more than {} MiB", most >> 20)));
    }
    Ok(bytes)
}

/// The same as a text.
///
/// # Errors
/// As [`bytes`], or it is not UTF-8.
pub(crate) fn text(path: &Path, most: u64) -> Result<String> {
    let bytes = bytes(path, most)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::other(format!("it is not UTF-8 at byte {at}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ordinary_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "caf\u{e9}").unwrap();
        assert_eq!(text(&path, 5).unwrap(), "caf\u{e9}");
        let error = |result: Result<String>| result.unwrap_err().to_string();
        assert!(error(text(&path, 4)).contains("more than 0 MiB"));
        std::fs::write(&path, b"ab\xFF").unwrap();
        assert!(error(text(&path, 9)).contains("UTF-8 at byte 2"));
        assert_eq!(bytes(&path, 3).unwrap(), b"ab\xFF");
        assert!(error(text(dir.path(), 9)).contains("no file"));
        assert!(text(&dir.path().join("b"), 9).is_err());
    }
}
