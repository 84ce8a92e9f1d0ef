//! New inputs from known ones: bits, bytes and numbers at their edges, pieces that are repeated,
//! moved, or taken from another input.

use edge_kernels::util::SeededRng;
use rand::RngExt;

use crate::INPUT_BYTES;

/// Numbers at whose edges parsers go wrong.
const EDGES: [i128; 18] = [
    -1,
    0,
    1,
    127,
    128,
    255,
    256,
    32_767,
    65_535,
    65_536,
    1 << 24,
    i32::MAX as i128,
    u32::MAX as i128,
    1 << 32,
    1 << 53,
    i64::MAX as i128,
    u64::MAX as i128,
    i128::MAX,
];

/// Texts that mean something in the formats.
const WORDS: [&str; 36] = [
    "null",
    "true",
    "1e999",
    "-0.0",
    "NaN",
    "inf",
    ".inf",
    "\"",
    "\\",
    "\u{0}",
    "\u{feff}",
    "\r\n",
    "[",
    "]",
    "{",
    "}",
    "[[[[[[[[",
    "{\"a\":",
    ",",
    ":",
    "../",
    "/",
    "{{ ",
    " }}",
    "{% for m in ",
    " %}",
    "~",
    "|replace('a', 'aa')",
    "range(99999)",
    "\u{1f600}",
    "&a ",
    "*a ",
    "- ",
    "<<: ",
    "(a+)+$",
    "\u{10ffff}",
];

/// A mutation of one of `pool`, which is not empty.
pub fn mutate(pool: &[Vec<u8>], rng: &mut SeededRng) -> Vec<u8> {
    let mut bytes = pool[rng.random_range(0..pool.len())].clone();
    let rounds = 1 << rng.random_range(0..4u32);
    for _ in 0..rounds {
        once(&mut bytes, pool, rng);
    }
    bytes.truncate(INPUT_BYTES);
    bytes
}

fn once(bytes: &mut Vec<u8>, pool: &[Vec<u8>], rng: &mut SeededRng) {
    if bytes.is_empty() {
        bytes.extend(WORDS[rng.random_range(0..WORDS.len())].bytes());
        return;
    }
    let at = rng.random_range(0..bytes.len());
    let some = |rng: &mut SeededRng, most: usize| {
        let scale = 1 << rng.random_range(0..12u32);
        rng.random_range(0..=most.max(1).min(scale)).min(most)
    };
    match rng.random_range(0..10u32) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8u32),
        1 => bytes[at] = rng.random_range(0..=255u32) as u8,
        2 => {
            let end = at + some(rng, bytes.len() - at);
            bytes.drain(at..end);
        }
        3 => {
            let end = at + some(rng, bytes.len() - at);
            let piece = bytes[at..end].to_vec();
            let times = if rng.random_range(0..20u32) == 0 { 10_000 } else { 1 };
            let times = times.min(INPUT_BYTES / piece.len().max(1));
            let place = rng.random_range(0..=bytes.len());
            bytes.splice(place..place, piece.repeat(times));
        }
        4 => {
            let word = WORDS[rng.random_range(0..WORDS.len())];
            bytes.splice(at..at, word.bytes());
        }
        5 => {
            let width = 1 << rng.random_range(0..4usize);
            let value = EDGES[rng.random_range(0..EDGES.len())].to_le_bytes();
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        6 | 7 => number(bytes, at, rng),
        8 => {
            let other = &pool[rng.random_range(0..pool.len())];
            let from = rng.random_range(0..=other.len());
            let end = from + some(rng, other.len() - from).min(other.len() - from);
            let to = at + some(rng, bytes.len() - at);
            bytes.splice(at..to, other[from..end].iter().copied());
        }
        _ => bytes.truncate(at),
    }
}

/// Replaces the decimal number behind `at`.
fn number(bytes: &mut Vec<u8>, at: usize, rng: &mut SeededRng) {
    let Some(start) = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else { return };
    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = match rng.random_range(0..3u32) {
        0 => format!("{}", rng.random_range(0..300u32)),
        1 => format!("{}e{}", rng.random_range(0..10u32), rng.random_range(0..400u32)),
        _ => EDGES[rng.random_range(0..EDGES.len())].to_string(),
    };
    bytes.splice(start..start + digits, text.bytes());
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn inputs_differ_and_are_bounded() {
        let pool = [b"{\"a\": 12}".to_vec(), Vec::new()];
        let mut rng = SeededRng::seed_from_u64(1);
        let made: Vec<Vec<u8>> = (0..2000).map(|_| mutate(&pool, &mut rng)).collect();
        let distinct: std::collections::HashSet<_> = made.iter().collect();
        assert!(distinct.len() > 1000, "{}", distinct.len());
        assert!(made.iter().all(|bytes| bytes.len() <= INPUT_BYTES));
        assert!(made.iter().any(|bytes| bytes.len() > 1000));
        let mut again = SeededRng::seed_from_u64(1);
        assert!(made.iter().all(|bytes| *bytes == mutate(&pool, &mut again)));
    }
}
