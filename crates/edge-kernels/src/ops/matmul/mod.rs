//! Products of matrices: with weights in any format, and for weight gradients.

pub mod matmul_nn;
pub mod matmul_nt;
pub mod matmul_nt_lora;
pub mod matmul_nt_swiglu;
pub mod matmul_tn;
pub(crate) mod nt_bodies;
pub mod sum_partials;
pub(crate) mod weight_rows;

#[cfg(test)]
mod tests;

use crate::format::{Format, Packing, ROW_GROUP, Sparsity};
use crate::op::{Binding, CaseBuffer, Needs, Tolerance, Variant, read, read_write};
use crate::pack::pack;
use crate::util::{SeededRng, uniform_vec};

/// Lanes of the small workgroups that suit register tiles without workgroup memory.
const LANES: u32 = 8;

/// A variant whose workgroup is one subgroup of [`LANES`] lanes that load rows for each other. Of
/// the devices known, only a software one has such subgroups, and loads are what it is slow at.
fn broadcast(variant: Variant) -> Variant {
    let needs = Needs { subgroups: true, subgroup_size: LANES, ..variant.needs };
    let variant = variant.spec("WX", LANES).spec("WY", 1).spec("SHARE", LANES);
    variant.fragment("lib/row_own.wgsl", "lib/row_broadcast.wgsl").needs(needs)
}

/// A variant that stores four values at once, where all of these sizes and strides of what it
/// writes allow that. On GPUs it was not measured.
fn storing_four(variant: Variant, out: &[u32]) -> Variant {
    if quads(out) {
        return variant.fragment("lib/stored_one.wgsl", "lib/stored_four.wgsl");
    }
    variant
}

/// A variant with these pieces in place of those that load packed weights row by row.
fn loading(variant: Variant, pieces: Vec<(&'static str, &'static str)>) -> Variant {
    pieces.into_iter().fold(variant, |variant, (path, near)| variant.replace(path, near))
}

/// In dense formats neighbouring lanes load neighbouring columns of a row, since rows are far
/// apart; in packed formats neighbouring rows of a block.
fn k_fast(variant: Variant, format: Format) -> Variant {
    variant.spec("K_FAST", (!format.is_packed()).into())
}

/// Bindings of a product with weights.
fn weight_bindings(input: &'static str, output: &'static str, format: Format) -> Vec<Binding> {
    let mut bindings = vec![read(input), read_write(output), read("w")];
    if format.is_packed() {
        bindings.push(read("w_scales"));
    }
    bindings
}

/// The fragments that load weights with `cols` columns, once for each way to load them.
fn weight_variants(variant: &Variant, format: Format, cols: u32) -> Vec<Variant> {
    let default = Format::F32.fragment();
    if let Format::Packed(packing) = format {
        return vec![variant.clone().fragment(default, format.fragment()).packing(packing)];
    }
    if !cols.is_multiple_of(8) {
        let any = match format {
            Format::F16 => "weights/f16_any.wgsl",
            Format::Bf16 => "weights/bf16_any.wgsl",
            _ => "weights/f32_any.wgsl",
        };
        return vec![variant.clone().fragment(default, any)];
    }
    let portable = variant.clone().fragment(default, format.fragment());
    if format != Format::F16 {
        return vec![portable];
    }
    let native = Variant { name: "f16", ..variant.clone() }
        .fragment(default, "weights/f16_native.wgsl")
        .needs(Needs { f16: true, ..variant.needs });
    // Unpacking integers was the faster of the two where it was measured (REJECTED.md).
    vec![portable, native]
}

/// Whether positions are shared by the channels of a workgroup.
fn is_row_grouped(format: Format) -> bool {
    format.packing().is_some_and(|packing| packing.kept() == Sparsity::RowGrouped)
}

/// Variants of `matmul_nt` for row-grouped weights: they gather the activations that are kept, and
/// multiply only those.
///
/// # Panics
/// When channels of two groups share what is gathered: a mistake in the op's file.
fn gathering(variants: Vec<Variant>) -> Vec<Variant> {
    let gather = |variant: Variant| {
        let channels = match variant.name {
            "subgroup" | "subgroup_wide" => 4 * spec(&variant, "WX"),
            // A lane gathers for the one channel that it owns.
            "channel" => 1,
            "gemv" => spec(&variant, "CHANNELS") * spec(&variant, "TN"),
            _ => spec(&variant, "WX") * spec(&variant, "TN"),
        };
        assert!(ROW_GROUP.is_multiple_of(channels), "'{}' owns {channels} channels", variant.name);
        let variant = unexpanded(variant).spec("SPREAD", 2);
        match variant.name {
            "subgroup" | "subgroup_wide" => variant
                .fragment("lib/taken_own.wgsl", "lib/taken_gather.wgsl")
                .fragment("lib/handed_own.wgsl", "lib/handed_gather.wgsl"),
            "channel" => variant.fragment("lib/staged_own.wgsl", "lib/staged_gather.wgsl"),
            name if name.starts_with("shared") => {
                variant.fragment("lib/stage_own.wgsl", "lib/stage_gather.wgsl")
            }
            "broadcast" => variant.fragment("lib/held_own.wgsl", "lib/held_gather_each.wgsl"),
            _ => variant.fragment("lib/held_own.wgsl", "lib/held_gather.wgsl"),
        }
    };
    variants.into_iter().map(gather).collect()
}

/// A variant of `subgroup` for 2:4 weights whose rows keep columns of their own: each lane takes
/// the activations that its channels keep from the lanes that hold them, and multiplies only those.
fn picking(variant: Variant, format: Format) -> Variant {
    if format.packing().is_none_or(|packing| packing.kept() != Sparsity::TwoFour) {
        return variant;
    }
    variant
        .spec("SPREAD", 2)
        .replace(Packing::EXPAND, "weights/part_pick.wgsl")
        .fragment("lib/handed_own.wgsl", "lib/handed_pick.wgsl")
        .fragment("lib/dots_own.wgsl", "lib/dots_pick.wgsl")
}

/// A variant that takes the values of 2:4 weights as they are stored, without zeros between.
fn unexpanded(variant: Variant) -> Variant {
    let kept = |(path, instead): (&'static str, &'static str)| match path {
        Packing::DENSE => (path, "weights/part_gather.wgsl"),
        _ => (path, instead),
    };
    let fragments = variant.fragments.iter().copied().map(kept).collect();
    Variant { fragments, ..variant }
}

/// Those that need no f16.
fn portable(variants: Vec<Variant>) -> impl Iterator<Item = Variant> {
    variants.into_iter().filter(|variant| !variant.needs.f16)
}

/// Divides `lanes` (a power of two): as many along the first dimension as it has `tiles`, but at
/// most `most`, and the rest along the second, so that skinny shapes leave few lanes idle.
fn split_lanes(lanes: u32, tiles: u32, most: u32) -> (u32, u32) {
    let first = tiles.max(1).next_power_of_two().min(most);
    (first, lanes / first)
}

/// The value that a variant gives to a constant.
///
/// # Panics
/// When it gives none: a mistake in the op's file.
fn spec(variant: &Variant, name: &str) -> u32 {
    let found = variant.spec.iter().find(|(spec, _)| *spec == name);
    found.unwrap_or_else(|| panic!("variant '{}' does not set {name}", variant.name)).1
}

/// Whether all are multiples of 4: rows can then be read four elements at a time.
fn quads(values: &[u32]) -> bool {
    values.iter().all(|value| value.is_multiple_of(4))
}

/// An input `[rows, ld]` behind `offset`, of which only columns `0..cols` may be read: everything
/// else is NaN.
fn strided_input(rng: &mut SeededRng, shape: [u32; 2], ld: u32, offset: u32) -> CaseBuffer {
    let [rows, cols, ld, offset] = [shape[0], shape[1], ld, offset].map(|x| x as usize);
    let mut data = vec![f32::NAN; offset + (rows - 1) * ld + cols.max(1)];
    for row in data[offset..].chunks_mut(ld) {
        let len = cols.min(row.len());
        row[..len].copy_from_slice(&uniform_vec(rng, len, -1.0, 1.0));
    }
    CaseBuffer::F32(data)
}

/// An output `[rows, ld]` behind `offset`: poisoned where all of it is written, else with contents
/// that must survive or be added to.
fn strided_output(
    rng: &mut SeededRng,
    shape: [u32; 2],
    ld: u32,
    offset: u32,
    accumulate: u32,
) -> CaseBuffer {
    let [rows, cols] = shape;
    let len = (offset + (rows - 1) * ld + cols) as usize;
    if accumulate == 0 && offset == 0 && ld == cols {
        return CaseBuffer::Output(len);
    }
    CaseBuffer::F32(uniform_vec(rng, len, -1.0, 1.0))
}

/// Random weights `[n, k]` in a format, as the last bindings of a case.
fn weight_buffers(rng: &mut SeededRng, format: Format, n: u32, k: u32) -> Vec<CaseBuffer> {
    let data = uniform_vec(rng, n as usize * k as usize, -1.0, 1.0);
    pack(format, n, k, &data).case_buffers().bindings().collect()
}

/// Tolerance of sums of `terms` products of numbers below 1.
fn sum_tolerance(terms: u32, alpha: f32) -> Tolerance {
    // Partial sums are about sqrt(terms) / 3; roundings of half an epsilon of them add up like a
    // random walk, to terms * epsilon / 6 or so. Sixteen times sqrt(terms) epsilon leaves room for
    // a maximum over a million outputs at 8192 terms.
    let size = f32::max(1.0, (terms as f32).sqrt());
    Tolerance {
        abs: 16.0 * f32::EPSILON * size * f32::max(1.0, size / 16.0) * f32::max(1.0, alpha.abs()),
        rel: 1e-5,
        why: "f32 sums of products below 1 in another order",
    }
}
