//! Packing against its promises, for every format of the kernels' tests and more.

use half::f16;
use rand::SeedableRng;

use super::{Scale, magnitude_mask, nearest, pack, pack_masked, pack_scaled, unpack_rows};
use crate::format::{Format, Packing, Sparsity};
use crate::util::{SeededRng, uniform_vec};

const SHAPES: [(u32, u32); 6] = [(1, 1), (3, 31), (5, 33), (2, 64), (37, 96), (7, 130)];

/// Every format there is.
fn all() -> Vec<Format> {
    let packed = Packing::all().map(Packing::format);
    [Format::F32, Format::F16, Format::Bf16].into_iter().chain(packed).collect()
}

fn matrix(rows: u32, cols: u32, size: f32) -> Vec<f32> {
    let mut rng = SeededRng::seed_from_u64(u64::from(rows * 1000 + cols));
    uniform_vec(&mut rng, (rows * cols) as usize, -size, size)
}

/// What is left of a matrix in a format, before its values are rounded.
fn pruned(format: Format, rows: u32, cols: u32, data: &[f32]) -> Vec<f32> {
    let sparsity = format.packing().map_or(Sparsity::Dense, Packing::kept);
    let mask = magnitude_mask(sparsity, rows, cols, data);
    data.iter().zip(mask).map(|(x, kept)| if kept { *x } else { 0.0 }).collect()
}

#[test]
fn all_formats_have_names_of_their_own() {
    let names: std::collections::HashSet<&str> = all().into_iter().map(Format::name).collect();
    assert_eq!((names.len(), all().len()), (53, 53));
    assert!(all().iter().all(|format| Format::from_name(format.name()) == Some(*format)));
    assert!(Format::TESTED.iter().chain(&Format::TIMED).all(|format| all().contains(format)));
}

#[test]
fn packing_the_unpacked_changes_nothing() {
    for format in all() {
        for (rows, cols) in SHAPES {
            for size in [1e-9, 1e-5, 1e-3, 0.7, 300.0, 1e9] {
                let once = pack(format, rows, cols, &matrix(rows, cols, size));
                assert_eq!(once.values.len() as u64, format.value_words(rows, cols));
                assert_eq!(once.scales.len() as u64, format.scale_words(rows, cols));
                let values = once.unpack();
                let twice = pack(format, rows, cols, &values);
                let what = format!("{} {rows}x{cols} size {size}", format.name());
                let bits = |values: &[f32]| -> Vec<u32> {
                    // Where a kept weight rounds to 0, another zero may take its place, and with
                    // it the sign goes.
                    values.iter().map(|x| if *x == 0.0 { 0 } else { x.to_bits() }).collect()
                };
                assert_eq!(bits(&twice.unpack()), bits(&values), "{what}");
                let sparse = format.packing().is_some_and(Packing::is_sparse);
                assert!(sparse || once == twice, "{what}");
            }
        }
    }
}

#[test]
fn the_error_is_at_most_half_a_step() {
    for format in all() {
        for (rows, cols) in SHAPES {
            let data = pruned(format, rows, cols, &matrix(rows, cols, 0.3));
            let packed = pack(format, rows, cols, &data);
            for (i, (&w, &got)) in data.iter().zip(&packed.unpack()).enumerate() {
                let (n, c) = (i / cols as usize, i % cols as usize);
                let bound = match (format, format.group()) {
                    (Format::F32, _) => 0.0,
                    (Format::Bf16, _) => w.abs() * 2.0_f32.powi(-8),
                    // Below 2^-14 the steps of f16 stay as they are.
                    (_, None) => w.abs().max(2.0_f32.powi(-14)) * 2.0_f32.powi(-11),
                    (_, Some(_)) if w == 0.0 && got == 0.0 => 0.0,
                    (_, Some(group)) => {
                        let zero = format.packing().is_some_and(Packing::has_zero_point);
                        let rows = rows as usize;
                        let index = c / group as usize;
                        let bits = match zero {
                            true => packed.scales[index * rows + n],
                            false => {
                                packed.scales[index * rows.div_ceil(2) + n / 2] >> (16 * (n % 2))
                            }
                        };
                        // The rounding of scale and minimum moves values by 2^-11 of them.
                        let moved = if zero { 0.6 } else { w.abs() } * 2.0_f32.powi(-11);
                        f16::from_bits(bits as u16).to_f32() * 0.5 + moved
                    }
                };
                assert!((w - got).abs() <= bound * 1.0001, "{} {w} became {got}", format.name());
            }
        }
    }
}

#[test]
fn four_bits_lie_where_the_shaders_mask_them() {
    let (rows, cols) = (3, 64);
    let data: Vec<f32> =
        (0..rows * cols).map(|i| if i % 32 == 0 { 7.0 } else { (i % 15) as f32 - 7.0 }).collect();
    let packed = pack(Format::Q4, rows, cols, &data);
    // Every scale is 1, but for the channel that pads the odd count.
    assert_eq!(packed.scales, [0x3C00_3C00, 0x3C00, 0x3C00_3C00, 0x3C00]);
    let (n, block, word) = (2, 1, 3);
    let bits = packed.values[(block * 3 + n) * 4 + word];
    for i in 0..8 {
        let nibble = bits >> (8 * (i % 4) + 4 * (i / 4)) & 15;
        let want = data[n * 64 + block * 32 + word * 8 + i];
        assert_eq!(nibble as f32 - 8.0, want, "column {i} of the word");
    }
}

#[test]
fn two_and_three_bits_lie_where_the_shaders_mask_them() {
    let levels = [-3.0, 3.0, 0.0, 2.0, -1.0, 1.0, -2.0];
    let data: Vec<f32> = (0..3 * 64).map(|i| levels[i % 7]).collect();
    let packed = pack(Packing::new(3).group_size(64).format(), 3, 64, &data);
    assert_eq!(packed.values.len(), 2 * 6 + 6);
    for (n, column) in [(0, 0), (1, 21), (2, 35), (2, 63)] {
        let (block, c) = (column / 32, column % 32);
        let (i, j, at) = (c % 16 / 4, c % 4, block * 3 + n);
        let low = packed.values[2 * at + c / 16] >> (2 * i) & 0x0303_0303;
        let high = packed.values[12 + at] >> (c / 4) & 0x0101_0101;
        let level = (low | high << 2) >> (8 * j) & 7;
        assert_eq!(level as f32 - 4.0, data[n * 64 + column], "row {n} column {column}");
    }
    let data: Vec<f32> = (0..64).map(|i| [-1.5, 0.5, 1.5, -0.5, 0.5][i % 5]).collect();
    let packed = pack(Format::Q2, 1, 64, &data);
    for column in [0, 1, 18, 31, 47, 63] {
        let word = packed.values[column / 16];
        let level = word >> (8 * (column % 4) + 2 * (column % 16 / 4)) & 3;
        assert_eq!(level as f32 - 1.5, data[column], "column {column}");
    }
}

#[test]
fn sparse_values_minima_and_positions_lie_where_the_shaders_look() {
    // Row n keeps columns n % 3 and 3 of each four: two levels of 3 bits, 1 and 8 with scale 1.
    let data: Vec<f32> = (0..3 * 64)
        .map(|i| match (i / 64, i % 4) {
            (_, 3) => 7.0,
            (n, column) if column == n => 1.0 + (i % 64 / 4 % 4) as f32,
            _ => 0.0,
        })
        .collect();
    let packing = Packing::new(3).zero_point().sparsity(Sparsity::TwoFour);
    let packed = pack(packing.format(), 3, 64, &data);
    // A minimum of 0 and a scale of 1 for two blocks of three rows, then positions.
    assert_eq!(packed.scales[..6], [0x3C00; 6]);
    assert_eq!(packed.scales[6..], [0xCCCC_CCCC, 0xDDDD_DDDD, 0xEEEE_EEEE].repeat(2));
    for (n, v) in [(0, 0), (0, 1), (1, 6), (1, 9), (2, 14), (2, 15)] {
        let low = packed.values[3 + n] >> (2 * (v / 4)) & 0x0303_0303;
        let high = packed.values[6 + 2 + n / 2] >> (4 * (n % 2)) >> (v / 4) & 0x0101_0101;
        let level = (low | high << 2) >> (8 * (v % 4)) & 7;
        let want = if v % 2 == 1 { 7 } else { 1 + v as u32 / 2 % 4 };
        assert_eq!(level, want, "row {n} value {v}");
    }
    let grouped = pack(Packing::new(16).sparsity(Sparsity::RowGrouped).format(), 33, 8, &{
        let mut data = vec![0.0; 33 * 8];
        data[31 * 8 + 6] = 2.0;
        data[32 * 8 + 1] = 3.0;
        data
    });
    assert_eq!(grouped.scales, [0x4444_4484, 0x4444_4444]);
    // Column 6 is stored value 3 of row 31, column 1 value 1 of row 32: the high half of a word.
    assert_eq!(grouped.values[31 * 8 + 1], 0x4000_0000);
    assert_eq!(grouped.values[32 * 8], 0x4200_0000);
}

#[test]
fn zero_constant_and_huge_rows() {
    for format in all() {
        for (value, exact) in [(0.0, true), (0.5, true), (-2.0, true), (f32::MAX, false)] {
            let want = pruned(format, 2, 40, &[value; 80]);
            let got = pack(format, 2, 40, &want).unpack();
            let name = format.name();
            for (got, want) in got.iter().zip(want) {
                assert!(got.is_finite(), "{name} {value}");
                let near = (got - want).abs() <= want.abs() * 1.5e-3;
                assert!(!exact || near, "{name} {value}: {got}");
                assert!(exact || want == 0.0 || *got > 60000.0, "{name}: {got}");
            }
        }
    }
}

#[test]
fn some_rows_are_the_same_as_in_the_whole() {
    for format in all() {
        let packed = pack(format, 37, 50, &matrix(37, 50, 1.0));
        let mut some = vec![0.0; 20 * 50];
        unpack_rows(format, [37, 50], &packed.values, &packed.scales, 9, &mut some);
        assert_eq!(some, packed.unpack()[9 * 50..29 * 50], "{}", format.name());
    }
}

#[test]
fn a_mask_decides_what_is_kept() {
    let (rows, cols) = (35, 70);
    let data = matrix(rows, cols, 1.0);
    for format in all() {
        let sparse = format.packing().is_some_and(Packing::is_sparse);
        // The smallest ones, not the largest; one of four in every eighth row.
        let keeps = |i: usize| match (i / 70, i % 70 % 4) {
            (row, column) if row % 8 == 0 => column == 0,
            (_, column) => !sparse || column < 3 && column != 1,
        };
        let mask: Vec<bool> = (0..data.len()).map(keeps).collect();
        let got = pack_masked(format, rows, cols, &data, &mask);
        let zeroed: Vec<f32> =
            data.iter().zip(&mask).map(|(x, kept)| if *kept { *x } else { 0.0 }).collect();
        if !sparse {
            assert_eq!(got, pack(format, rows, cols, &zeroed), "{}", format.name());
            continue;
        }
        for (i, (got, want)) in got.unpack().iter().zip(zeroed).enumerate() {
            // Zeros fill up: in rows that keep one of four, and where the last four are two.
            let filled = i / 70 % 8 == 0 && i % 70 % 4 <= 2 || i % 70 == 69;
            let stored = mask[i] || filled;
            assert!(stored || *got == 0.0, "{} {i}: {got}", format.name());
            assert!(!mask[i] || (got - want).abs() < 0.51, "{} {i}: {got} {want}", format.name());
        }
    }
}

/// Groups of a packing, of a matrix with this many columns.
fn groups(packing: Packing, cols: u32) -> u32 {
    packing.group().map_or(0, |group| cols.div_ceil(group))
}

/// What a packing keeps by magnitude; empty for a dense one.
fn mask(packing: Packing, rows: u32, cols: u32, data: &[f32]) -> Vec<bool> {
    match packing.is_sparse() {
        true => magnitude_mask(packing.kept(), rows, cols, data),
        false => Vec::new(),
    }
}

#[test]
fn given_scales_that_fit_make_what_pack_makes() {
    for packing in Packing::all() {
        for (rows, cols) in SHAPES {
            let data = matrix(rows, cols, 0.3);
            let want = pack(packing.format(), rows, cols, &data);
            let kept = pruned(packing.format(), rows, cols, &data);
            let scale = |i: u32| {
                let (group, row) = (i / rows, (i % rows * cols) as usize);
                let first = (group * packing.group().unwrap_or(1)) as usize;
                let last = (first + packing.group().unwrap_or(1) as usize).min(cols as usize);
                Scale::of(packing, kept[row + first..row + last].iter().copied())
            };
            let scales: Vec<Scale> = (0..rows * groups(packing, cols)).map(scale).collect();
            let mask = mask(packing, rows, cols, &data);
            let got = pack_scaled(packing, rows, cols, &data, &mask, &scales);
            assert_eq!(got.unpack(), want.unpack(), "{} {rows}x{cols}", packing.name());
        }
    }
}

#[test]
fn given_scales_make_the_nearest_of_all_levels() {
    for packing in Packing::all() {
        let (rows, cols) = (37, 130);
        let data = matrix(rows, cols, 1.0);
        let mask = mask(packing, rows, cols, &data);
        // Of both signs, and so small that the lowest and the highest level are reached.
        let step = 1.5 / (1 << packing.bits().min(8)) as f32;
        let scale = |i: u32| match packing.has_zero_point() {
            true => Scale::rounded(step, -0.7),
            false => Scale::rounded(if i.is_multiple_of(3) { -step } else { step }, 0.0),
        };
        let scales: Vec<Scale> = (0..rows * groups(packing, cols)).map(scale).collect();
        let packed = pack_scaled(packing, rows, cols, &data, &mask, &scales);
        let got = packed.unpack();
        let mut levels = std::collections::HashSet::new();
        for (i, (x, got)) in data.iter().zip(&got).enumerate() {
            let group = packing.group().map_or(0, |group| i as u32 % cols / group * rows);
            let scale = scales.get(group as usize + i / cols as usize);
            let scale = scale.copied().unwrap_or_default();
            let kept = mask.get(i).is_none_or(|kept| *kept);
            let want = if kept { nearest(packing.format(), *x, scale) } else { 0.0 };
            assert_eq!(got.to_bits(), want.to_bits(), "{} {i}", packing.name());
            if kept && packing.bits() < 16 {
                let (factor, zero) = scale.affine(packing);
                levels.insert(((got - zero) / factor) as u32);
                // No other level is nearer.
                let top = ((1 << packing.bits()) - 1) as f32;
                let near = ((x - zero) / factor).clamp(0.0, top).round() * factor + zero;
                assert!((x - got).abs() <= (x - near).abs() + 1e-6, "{} {x}", packing.name());
            }
        }
        // Sparsity leaves out small weights, and with them levels in the middle.
        let ends = [0, (1 << packing.bits()) - 1];
        let reached = packing.bits() == 16 || ends.iter().all(|level| levels.contains(level));
        assert!(reached, "{} of {}", levels.len(), packing.name());
        let again = pack_scaled(packing, rows, cols, &got, &mask, &scales);
        assert_eq!(again, packed, "{}", packing.name());
    }
}

#[test]
#[should_panic(expected = "number of scales")]
fn scales_of_another_size_are_refused() {
    pack_scaled(Packing::new(4), 2, 64, &[0.0; 128], &[], &[Scale::default(); 3]);
}
