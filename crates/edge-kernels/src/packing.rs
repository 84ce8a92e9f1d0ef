//! Packed weights: bits of a value, columns that share a scale, zero point, sparsity.
//!
//! `K` is cut into blocks of [`BLOCK`] columns (the last one padded), and a block of a row stores
//! all of its 32 values, or with 2:4 sparsity the 16 that it keeps, two of each four columns in
//! ascending order. Values are unsigned levels: `W = (level - offset) * scale` with the offset
//! 128, 8, 4 or 3/2 (the four levels of 2 bits would not be symmetric with a zero), or with a zero
//! point `W = level * scale + min`. 16 bits are f16 values without scales, for sparse weights only.
//!
//! Everything is block-major with the output channel fastest, so that neighbouring lanes that own
//! neighbouring channels read neighbouring words, in forward, GEMV and `dX = dY·W` alike.
//!
//! Values, `[K/32][N][words]`; stored value `v` of a block, of 32 or 16:
//!
//! * 16 bits: two a word, the even one in the low half.
//! * 8 bits: four consecutive ones a word.
//! * 4 bits: word `w` holds values `8w..8w+4` in the low nibbles of its bytes 0..4 and values
//!   `8w+4..8w+8` in the high nibbles.
//! * 2 bits: value `16w + 4i + j` in bits `2i..2i + 2` of byte `j` of word `w`, so that one mask
//!   gives four consecutive values.
//! * 3 bits: two planes, so that no value straddles words: the two low bits as in 2 bits, and
//!   behind all of them the high bits. Of 32 values they are a word, value `4i + j` in bit `i` of
//!   byte `j`; the number of these words is padded to an even one. Of 16 values two neighbouring
//!   rows share a word: the even row has the low nibbles of the bytes, `[K/32][N/2]`.
//!
//! A second buffer, of words:
//!
//! * scales `[K/group][N]` f16, two channels a word (`N` rounded up to even); with a zero point a
//!   word a channel, the scale in the low half and the minimum in the high half.
//! * then, if sparse, positions `[K/32][N]`, one word a block, for each four columns the columns
//!   that are kept: bits `4i..4i + 2` the first of them, in 0..3, and `4i + 2..4i + 4` the second,
//!   in 1..4, always a larger one. Row-grouped weights have one word for [`ROW_GROUP`] rows.

use crate::format::Format;

/// Columns in a block of packed values.
pub const BLOCK: u32 = 32;

/// Output channels that share their positions in [`Sparsity::RowGrouped`].
///
/// It is what the workgroups of `matmul_nt` own at most, 8 lanes of 4 channels each, so that all
/// of a workgroup keep the same columns of the activations. A smaller group would cut the
/// workgroups, a larger one would cost accuracy. Shards of weights are multiples of 64 rows, so
/// that none cuts a group.
pub const ROW_GROUP: u32 = 32;

/// Which weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sparsity {
    /// All.
    Dense,
    /// Two of each four consecutive columns, each row its own.
    TwoFour,
    /// Two of each four consecutive columns, the same ones in [`ROW_GROUP`] consecutive rows.
    RowGrouped,
}

/// How a packed matrix is stored. Made by [`Packing::new`] and the methods that change one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    bits: u32,
    group: u32,
    zero_point: bool,
    sparsity: Sparsity,
}

/// The name of a packing of one of these numbers of bits.
macro_rules! name {
    ($packing:expr; $($bits:literal)*) => {
        match ($packing.bits, $packing.group, $packing.zero_point, $packing.sparsity) {
            $(
                ($bits, 32, false, Sparsity::Dense) => concat!("q", $bits),
                ($bits, 32, false, Sparsity::TwoFour) => concat!("q", $bits, "s"),
                ($bits, 32, false, Sparsity::RowGrouped) => concat!("q", $bits, "r"),
                ($bits, 32, true, Sparsity::Dense) => concat!("q", $bits, "z"),
                ($bits, 32, true, Sparsity::TwoFour) => concat!("q", $bits, "zs"),
                ($bits, 32, true, Sparsity::RowGrouped) => concat!("q", $bits, "zr"),
                ($bits, _, false, Sparsity::Dense) => concat!("q", $bits, "g64"),
                ($bits, _, false, Sparsity::TwoFour) => concat!("q", $bits, "g64s"),
                ($bits, _, false, Sparsity::RowGrouped) => concat!("q", $bits, "g64r"),
                ($bits, _, true, Sparsity::Dense) => concat!("q", $bits, "g64z"),
                ($bits, _, true, Sparsity::TwoFour) => concat!("q", $bits, "g64zs"),
                ($bits, _, true, Sparsity::RowGrouped) => concat!("q", $bits, "g64zr"),
            )*
            (_, _, _, Sparsity::RowGrouped) => "f16r",
            _ => "f16s",
        }
    };
}

impl Packing {
    /// Dense values of 2, 3, 4, 8 or 16 bits, symmetric, with a scale for 32 columns.
    ///
    /// # Panics
    /// With any other number of bits.
    pub const fn new(bits: u32) -> Self {
        assert!(matches!(bits, 2 | 3 | 4 | 8 | 16), "bits of a packed value");
        Self { bits, group: 32, zero_point: false, sparsity: Sparsity::Dense }
    }

    /// With `group` columns that share a scale: 32 or 64.
    ///
    /// # Panics
    /// With any other number.
    pub const fn group_size(self, group: u32) -> Self {
        assert!(group == 32 || group == 64, "columns that share a scale");
        Self { group, ..self }
    }

    /// With a minimum beside each scale.
    pub const fn zero_point(self) -> Self {
        Self { zero_point: true, ..self }
    }

    /// With this sparsity.
    pub const fn sparsity(self, sparsity: Sparsity) -> Self {
        Self { sparsity, ..self }
    }

    /// As a format.
    ///
    /// # Panics
    /// With 16 bits that are not sparse (that is [`Format::F16`]) or have a zero point or a group.
    pub const fn format(self) -> Format {
        if self.bits == 16 {
            let sparse = !matches!(self.sparsity, Sparsity::Dense);
            assert!(sparse && !self.zero_point && self.group == 32, "16 bits are sparse f16");
        }
        Format::Packed(self)
    }

    /// Every packing.
    pub fn all() -> impl Iterator<Item = Self> {
        let sparsities = [Sparsity::Dense, Sparsity::TwoFour, Sparsity::RowGrouped];
        let with_scales = sparsities.into_iter().flat_map(|sparsity| {
            let bits = [2, 3, 4, 8].into_iter();
            let dense =
                bits.flat_map(|bits| [32, 64].map(|group| Self::new(bits).group_size(group)));
            dense.flat_map(move |p| [p, p.zero_point()].map(|p| p.sparsity(sparsity)))
        });
        let sparse = sparsities.into_iter().filter(|sparsity| *sparsity != Sparsity::Dense);
        let f16 = sparse.map(|sparsity| Self::new(16).sparsity(sparsity));
        with_scales.chain(f16)
    }

    /// Bits of a value.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Columns that share a scale; `None` without scales.
    pub fn group(self) -> Option<u32> {
        (self.bits < 16).then_some(self.group)
    }

    /// Whether each scale has a minimum beside it.
    pub fn has_zero_point(self) -> bool {
        self.zero_point
    }

    /// Which weights are stored.
    pub fn kept(self) -> Sparsity {
        self.sparsity
    }

    /// Whether positions are stored.
    pub fn is_sparse(self) -> bool {
        self.sparsity != Sparsity::Dense
    }

    /// Whether it is one of those whose kernels are tested with all shapes: 4 bits in symmetric
    /// groups of 32, with any sparsity.
    pub(crate) fn is_basic(self) -> bool {
        self.bits == 4 && self.group == 32 && !self.zero_point
    }

    /// Whether it is dense and symmetric with this number of bits.
    pub fn is_plain(self, bits: u32) -> bool {
        self.bits == bits && !self.zero_point && !self.is_sparse()
    }

    /// Rows that share their positions.
    ///
    /// # Panics
    /// When it is dense.
    pub fn rows_of_positions(self) -> u32 {
        match self.sparsity {
            Sparsity::Dense => panic!("a dense matrix has no positions"),
            Sparsity::TwoFour => 1,
            Sparsity::RowGrouped => ROW_GROUP,
        }
    }

    /// `q`, bits, `g64` with groups of 64, `z` with a zero point, then `s` (2:4) or `r` (2:4
    /// row-grouped); `f16s` and `f16r` with 16 bits.
    pub fn name(self) -> &'static str {
        name!(self; 8 4 3 2)
    }

    /// Values that a block of a row stores.
    pub fn stored(self) -> u32 {
        if self.is_sparse() { BLOCK / 2 } else { BLOCK }
    }

    /// Words of a block of a row in the first plane, which is all of them but with 3 bits.
    pub fn block_words(self) -> u32 {
        let bits = if self.bits == 3 { 2 } else { self.bits };
        self.stored() * bits / 32
    }

    /// Words of the values of a matrix `[rows, cols]`.
    pub fn value_words(self, rows: u32, cols: u32) -> u64 {
        let (rows, blocks) = (u64::from(rows), u64::from(cols.div_ceil(BLOCK)));
        let first = rows * blocks * u64::from(self.block_words());
        first
            + match (self.bits, self.is_sparse()) {
                (3, false) => (rows * blocks).next_multiple_of(2),
                (3, true) => rows.div_ceil(2) * blocks,
                _ => 0,
            }
    }

    /// Words of the scales and minima of a matrix `[rows, cols]`: the positions start there.
    pub fn position_offset(self, rows: u32, cols: u32) -> u64 {
        let per_group = if self.zero_point { rows } else { rows.div_ceil(2) };
        let groups = self.group().map_or(0, |group| cols.div_ceil(group));
        u64::from(per_group) * u64::from(groups)
    }

    /// Words of the positions of a matrix `[rows, cols]`.
    pub fn position_words(self, rows: u32, cols: u32) -> u64 {
        if !self.is_sparse() {
            return 0;
        }
        u64::from(rows.div_ceil(self.rows_of_positions())) * u64::from(cols.div_ceil(BLOCK))
    }

    /// The pieces of `weights/packed.wgsl`: each included file and the one to include instead.
    pub fn pieces(self) -> [(&'static str, &'static str); 5] {
        let words = match (self.bits, self.block_words()) {
            (3, 2) => "weights/words_3.wgsl",
            (3, _) => "weights/words_3_half.wgsl",
            (_, 8) => "weights/words_8.wgsl",
            (_, 4) => "weights/words_4.wgsl",
            (_, 2) => "weights/words_2.wgsl",
            _ => "weights/words_1.wgsl",
        };
        let levels = match self.bits {
            16 => "weights/levels_16.wgsl",
            8 => "weights/levels_8.wgsl",
            4 => "weights/levels_4.wgsl",
            3 => "weights/levels_3.wgsl",
            _ => "weights/levels_2.wgsl",
        };
        let scale = match (self.bits, self.zero_point) {
            (16, _) => "weights/scale_none.wgsl",
            (_, true) => "weights/scale_min.wgsl",
            (_, false) => "weights/scale.wgsl",
        };
        let part = if self.is_sparse() { Self::EXPAND } else { Self::DENSE };
        let positions = match self.sparsity {
            Sparsity::Dense | Sparsity::TwoFour => "weights/positions_row.wgsl",
            Sparsity::RowGrouped => "weights/positions_group.wgsl",
        };
        [
            ("weights/words_4.wgsl", words),
            ("weights/levels_4.wgsl", levels),
            ("weights/scale.wgsl", scale),
            ("weights/positions_row.wgsl", positions),
            (Self::DENSE, part),
        ]
    }

    /// What else of `weights/packed.wgsl` is to be included for loads of 64 bits, of several rows
    /// at once: each piece and the one in place of it. There must be a multiple of 8 rows.
    pub fn wide_pieces(self) -> Vec<(&'static str, &'static str)> {
        let words = match (self.bits, self.block_words()) {
            (3, 2) => ("weights/load_3.wgsl", "weights/load_3_wide.wgsl"),
            (3, _) => ("weights/load_3_half.wgsl", "weights/load_3_half_wide.wgsl"),
            (_, 8) => ("weights/load_8.wgsl", "weights/load_8_wide.wgsl"),
            (_, 4) => ("weights/load_4.wgsl", "weights/load_4_wide.wgsl"),
            (_, 2) => ("weights/load_2.wgsl", "weights/load_2_wide.wgsl"),
            _ => ("weights/load_1.wgsl", "weights/load_1_wide.wgsl"),
        };
        let scale = match (self.bits, self.zero_point) {
            (16, _) => ("weights/load_scale_none.wgsl", "weights/load_scale_none_wide.wgsl"),
            (_, true) => ("weights/load_scale_min.wgsl", "weights/load_scale_min_wide.wgsl"),
            (_, false) => ("weights/load_scale.wgsl", "weights/load_scale_wide.wgsl"),
        };
        let positions = match self.sparsity {
            Sparsity::RowGrouped => {
                ("weights/positions_group.wgsl", "weights/positions_group_wide.wgsl")
            }
            _ => ("weights/positions_row.wgsl", "weights/positions_row_wide.wgsl"),
        };
        let (block, rows) = match self.sparsity {
            Sparsity::Dense => ("weights/block_dense.wgsl", "weights/block_dense_wide.wgsl"),
            Sparsity::TwoFour => ("weights/block_sparse.wgsl", "weights/block_sparse_wide.wgsl"),
            Sparsity::RowGrouped => ("weights/block_sparse.wgsl", "weights/block_gather_wide.wgsl"),
        };
        let mut pieces = vec![words, scale, (block, rows), (Self::ROWS_EACH, rows)];
        if self.is_sparse() {
            pieces.push(positions);
        }
        pieces
    }

    /// The same for a body that has loaded rows one by one so far. Eight rows at once; of
    /// row-grouped weights four.
    pub fn near_pieces(self) -> Vec<(&'static str, &'static str)> {
        let mut pieces = self.wide_pieces();
        pieces.retain(|(path, _)| *path != Self::ROWS_EACH);
        pieces
    }

    /// The same, four rows at once of weights of any sparsity.
    pub fn four_pieces(self) -> Vec<(&'static str, &'static str)> {
        let four = |rows| match rows {
            "weights/block_dense_wide.wgsl" => "weights/block_dense_four.wgsl",
            "weights/block_sparse_wide.wgsl" => "weights/block_sparse_four.wgsl",
            rows => rows,
        };
        self.near_pieces().into_iter().map(|(path, wide)| (path, four(wide))).collect()
    }

    /// The piece that loads neighbouring rows one by one.
    const ROWS_EACH: &'static str = "weights/rows_each.wgsl";

    /// The piece that gives dense weights as they are.
    pub const DENSE: &'static str = "weights/part_dense.wgsl";

    /// The piece that puts the weights of a sparse matrix where they belong, between zeros.
    pub const EXPAND: &'static str = "weights/part_expand.wgsl";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_it_is() {
        let row_grouped = Packing::new(3).sparsity(Sparsity::RowGrouped);
        for (packing, name) in [
            (Packing::new(4), "q4"),
            (Packing::new(8).group_size(64), "q8g64"),
            (Packing::new(4).zero_point().sparsity(Sparsity::TwoFour), "q4zs"),
            (row_grouped.group_size(64).zero_point(), "q3g64zr"),
            (Packing::new(16).sparsity(Sparsity::TwoFour), "f16s"),
            (Packing::new(16).sparsity(Sparsity::RowGrouped), "f16r"),
        ] {
            assert_eq!(packing.format().name(), name);
        }
    }

    /// Bits of a weight, by the definition: 32 times those that a row takes for 32 columns.
    #[test]
    fn storage_is_counted_with_all_that_belongs_to_it() {
        let bits =
            |packing: Packing| packing.format().bytes(64, 2048) as f64 * 8.0 / f64::from(64 * 2048);
        let of = |bits| Packing::new(bits);
        let (pairs, grouped) = (Sparsity::TwoFour, Sparsity::RowGrouped);
        for (packing, want) in [
            (of(8), 8.5),
            (of(4), 4.5),
            (of(3), 3.5),
            (of(2), 2.5),
            (of(2).group_size(64), 2.25),
            (of(4).zero_point(), 5.0),
            (of(4).group_size(64).zero_point(), 4.5),
            (of(16).sparsity(pairs), 9.0),
            (of(8).sparsity(pairs), 5.5),
            (of(4).sparsity(pairs), 3.5),
            (of(3).sparsity(pairs), 3.0),
            (of(2).sparsity(pairs), 2.5),
            (of(16).sparsity(grouped), 8.0 + 1.0 / 32.0),
            (of(4).sparsity(grouped), 2.5 + 1.0 / 32.0),
            (of(3).sparsity(grouped).zero_point(), 2.5 + 1.0 / 32.0),
        ] {
            assert_eq!(bits(packing), want, "{}", packing.name());
        }
        // Odd numbers of rows and columns are padded: 5 rows, 2 blocks.
        assert_eq!(of(3).value_words(5, 33), 20 + 10);
        assert_eq!(of(3).sparsity(pairs).value_words(5, 33), 10 + 6);
        assert_eq!(of(4).sparsity(pairs).format().scale_words(5, 33), 6 + 10);
        assert_eq!(of(4).sparsity(grouped).format().scale_words(33, 33), 34 + 4);
    }
}
