//! Hashes that say what a measurement belongs to: they find changes, not forgeries.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result};

use crate::checkpoint::Checkpoint;
use crate::gguf::Gguf;
use crate::whole_file::{self, SETTINGS};

/// Tensors of more bytes than this are hashed in pieces.
const WHOLE_BYTES: u64 = 1 << 20;

/// Bytes of a piece.
const PIECE_BYTES: u64 = 4096;

/// FNV-1a of 64 bits (Fowler, Noll and Vo), the same on every platform and in every release.
#[derive(Clone, Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Fnv {
    /// Takes bytes in.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        self
    }

    /// Takes a text in, with its length, so that neighbouring texts do not run into each other.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64).bytes(text.as_bytes())
    }

    /// Takes bytes in: all of them, or where they are many, pieces ([`model_hash`]).
    pub fn sampled(&mut self, bytes: &[u8]) -> &mut Self {
        for piece in pieces(bytes.len() as u64) {
            self.bytes(&bytes[piece.start as usize..piece.end as usize]);
        }
        self
    }

    /// Takes a number in.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    /// What was taken in, as 16 hexadecimal digits.
    pub fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Hash of a model folder: `config.json` (of a GGUF file its header), and the name, sizes, number
/// format and bytes of every tensor. Of a tensor above 1 MiB 256 pieces of 4 KiB are taken, evenly
/// spaced from its first bytes to its last: training changes nearly all weights, so pieces show it,
/// and a model of many gigabytes is hashed in seconds. Of a compressed model what it says of
/// itself, and the checksums of its blocks.
///
/// # Errors
/// A file cannot be read, or a tensor has no supported number format.
pub fn model_hash(dir: &Path, checkpoint: &Checkpoint) -> Result<String> {
    let path = dir.join("config.json");
    let config = match dir.is_file() {
        true => Gguf::open(dir)?.header()?,
        false => whole_file::bytes(&path, SETTINGS)
            .with_context(|| format!("cannot read {}: check its permissions", path.display()))?,
    };
    let mut hash = Fnv::default();
    hash.bytes(&config);
    if let Some(compressed) = checkpoint.compressed() {
        // Checksums that loading verifies say the same, and are there already.
        hash.text(&format!("{:?}", compressed.about));
        hash.bytes(bytemuck::cast_slice(compressed.checksums()));
        return Ok(hash.hex());
    }
    for name in checkpoint.names() {
        let tensor = checkpoint.tensor(name)?;
        hash.text(name).text(&format!("{:?} {:?}", tensor.dtype, tensor.shape));
        for piece in pieces(tensor.byte_len()) {
            hash.bytes(&tensor.piece(piece)?);
        }
    }
    Ok(hash.hex())
}

/// All of `len` bytes, or evenly spaced pieces with first and last bytes among them.
fn pieces(len: u64) -> impl Iterator<Item = Range<u64>> {
    let count = WHOLE_BYTES / PIECE_BYTES;
    let (count, size) = if len > WHOLE_BYTES { (count, PIECE_BYTES) } else { (1, len) };
    let last = len - size;
    (0..count).map(move |index| {
        let start = last * index / (count - 1).max(1);
        start..start + size
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // Vectors of the authors' test suite.
        assert_eq!(Fnv::default().hex(), "cbf29ce484222325");
        assert_eq!(Fnv::default().bytes(b"a").hex(), "af63dc4c8601ec8c");
        assert_eq!(Fnv::default().bytes(b"foobar").hex(), "85944171f73967e8");
        let joined = |a: &str, b: &str| Fnv::default().text(a).text(b).hex();
        assert_ne!(joined("ab", "c"), joined("a", "bc"));
    }

    #[test]
    fn pieces_reach_both_ends() {
        let len = 3 * WHOLE_BYTES + 5;
        let taken: Vec<Range<u64>> = pieces(len).collect();
        assert_eq!((taken.len(), taken[0].clone()), (256, 0..PIECE_BYTES));
        assert_eq!(taken[255], len - PIECE_BYTES..len);
        assert_eq!(pieces(WHOLE_BYTES).next(), Some(0..WHOLE_BYTES));
        assert_eq!(pieces(0).next(), Some(0..0));
    }
}
