//! Types of tensors in GGUF files: how many values a block has, and how many bytes.

use std::fmt;

use gguf_rs_lib::format::types::GGUFTensorType as Code;

use crate::checkpoint::Dtype;

/// A type of tensor that is read here. Rows are whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Numbers that stand for themselves.
    Plain(Dtype),
    /// 32 values of 4 bits, a scale in f16.
    Q4_0,
    /// 32 values of 4 bits, scale and minimum in f16.
    Q4_1,
    /// 32 values of 5 bits, a scale in f16.
    Q5_0,
    /// 32 values of 5 bits, scale and minimum in f16.
    Q5_1,
    /// 32 values of 8 bits, a scale in f16.
    Q8_0,
    /// 256 values of 2 bits, 16 scales and minima of 4 bits.
    Q2K,
    /// 256 values of 3 bits, 16 scales of 6 bits.
    Q3K,
    /// 256 values of 4 bits, 8 scales and minima of 6 bits.
    Q4K,
    /// 256 values of 5 bits, 8 scales and minima of 6 bits.
    Q5K,
    /// 256 values of 6 bits, 16 scales of 8 bits.
    Q6K,
}

/// The types by name, for messages.
pub const NAMES: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K";

impl Type {
    /// The type of a code in a file; the others are not computed here.
    pub(crate) fn of(code: Code) -> Option<Self> {
        Some(match code {
            Code::F32 => Self::Plain(Dtype::F32),
            Code::F16 => Self::Plain(Dtype::F16),
            Code::BF16 => Self::Plain(Dtype::BF16),
            Code::Q4_0 => Self::Q4_0,
            Code::Q4_1 => Self::Q4_1,
            Code::Q5_0 => Self::Q5_0,
            Code::Q5_1 => Self::Q5_1,
            Code::Q8_0 => Self::Q8_0,
            Code::Q2_K => Self::Q2K,
            Code::Q3_K => Self::Q3K,
            Code::Q4_K => Self::Q4K,
            Code::Q5_K => Self::Q5K,
            Code::Q6_K => Self::Q6K,
            _ => return None,
        })
    }

    /// Its code in a file.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Plain(Dtype::F32) => Code::F32,
            Self::Plain(Dtype::F16) => Code::F16,
            Self::Plain(Dtype::BF16) => Code::BF16,
            Self::Q4_0 => Code::Q4_0,
            Self::Q4_1 => Code::Q4_1,
            Self::Q5_0 => Code::Q5_0,
            Self::Q5_1 => Code::Q5_1,
            Self::Q8_0 => Code::Q8_0,
            Self::Q2K => Code::Q2_K,
            Self::Q3K => Code::Q3_K,
            Self::Q4K => Code::Q4_K,
            Self::Q5K => Code::Q5_K,
            Self::Q6K => Code::Q6_K,
        }
    }

    /// Values of a block, and its bytes (`ggml-common.h`).
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.bytes()),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 4 + 16),
            Self::Q5_0 => (32, 2 + 4 + 16),
            Self::Q5_1 => (32, 4 + 4 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q2K => (256, 16 + 64 + 4),
            Self::Q3K => (256, 32 + 64 + 12 + 2),
            Self::Q4K => (256, 4 + 12 + 128),
            Self::Q5K => (256, 4 + 12 + 32 + 128),
            Self::Q6K => (256, 128 + 64 + 16 + 2),
        }
    }

    /// Bytes of a row of `cols` values, whole blocks.
    pub fn row_bytes(self, cols: usize) -> usize {
        let (values, bytes) = self.block();
        cols / values * bytes
    }

    /// The numbers that a loaded tensor is taken to have: its own, or f16 for what is quantised,
    /// since that errs by far less than quantising did.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::Plain(dtype) => dtype,
            _ => Dtype::F16,
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code().name())
    }
}
