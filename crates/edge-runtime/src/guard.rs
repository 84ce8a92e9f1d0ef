//! Panics of a library that reads what strangers wrote, as errors.
//!
//! The tokenizers library takes a file's word for much: it indexes by ids that the file states, and
//! unwraps what it parsed halfway. Its five hundred places cannot be checked from outside.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread will be an error, and so is not to be printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic. What it has borrowed mutably must not be used after an error.
///
/// # Errors
/// Its own error or the message of its panic.
pub(crate) fn guarded<T, E: std::fmt::Display>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                before(info);
            }
        }));
    });
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("it is damaged: {}", text.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_errors() {
        let index = std::hint::black_box(3);
        let panics = || Ok::<_, String>([1, 2][index]);
        assert!(guarded(panics).unwrap_err().contains("out of bounds"));
        assert_eq!(guarded(|| Err::<(), _>("no")).unwrap_err(), "no");
        assert_eq!(guarded(|| Ok::<_, String>(3)), Ok(3));
        let nested = guarded(|| {
            let _ = guarded(|| Ok::<_, String>(1));
            Err::<(), _>(GUARDED.get())
        });
        assert_eq!(nested.unwrap_err(), "true");
    }
}
