//! Product with a weight matrix: the backward pass of a linear layer with respect to its input.
//!
//! dX\[m,k\] (+)= alpha · dY\[m,n\] · W\[n,k\]
//!
//! | tensor | shape  | dtype      | role |
//! |--------|--------|------------|------|
//! | dy     | [m, n] | f32        | in, rows `ld_in` apart behind `in_offset` |
//! | dx     | [m, k] | f32        | out, rows `ld_out` apart behind `out_offset` |
//! | w      | [n, k] | any format | in   |
//!
//! How: one of several bodies, which all walk over n, so that the packing of the forward pass
//! serves as it is: slices of n for few rows or columns, tiles through workgroup memory or through
//! the caches for many.
//! Accuracy: f32 products and sums over n, weights dequantised to f32.
//! Cost: bound by arithmetic and, in the packed formats, by dequantisation.

use crate::format::{Format, Packing, WeightBuffers};
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, Hardware, HostBuffer, Needs, Op, Tolerance,
    Variant, Work,
};
use crate::ops::matmul::weight_rows::for_weight_rows;
use crate::ops::matmul::{
    LANES, broadcast, is_row_grouped, k_fast, loading, portable, quads, spec, split_lanes,
    storing_four, strided_input, strided_output, unexpanded, weight_bindings, weight_buffers,
    weight_variants,
};
use crate::ops::product::{Layout, product};
use crate::util::{SeededRng, fold_grid};

/// See the module.
pub struct MatmulNn;

crate::params! {
    /// Parameters of `matmul_nn`; sizes, strides and offsets in elements.
    pub struct Params {
        /// Rows of dY and dX (tokens).
        m: u32,
        /// Columns of dY, rows of W (output channels).
        n: u32,
        /// Columns of dX and W (input channels).
        k: u32,
        /// Between rows of dY.
        ld_in: u32,
        /// Of the first element of dY.
        in_offset: u32,
        /// Between rows of dX.
        ld_out: u32,
        /// Of the first element of dX.
        out_offset: u32,
        /// 1: adds to dX.
        accumulate: u32,
        /// Factor of the product.
        alpha: f32,
        /// Unused.
        pad0: u32,
        /// Unused.
        pad1: u32,
        /// Unused.
        pad2: u32,
    }
}

impl Params {
    /// Contiguous operands, `alpha` 1, overwriting.
    pub fn dense(m: u32, n: u32, k: u32) -> Self {
        Self {
            m,
            n,
            k,
            ld_in: n,
            in_offset: 0,
            ld_out: k,
            out_offset: 0,
            accumulate: 0,
            alpha: 1.0,
            pad0: 0,
            pad1: 0,
            pad2: 0,
        }
    }
}

/// Multiplies `dy [m, n]` by `w [n, k]` into `dx [m, k]`.
pub fn dispatch<B>(params: Params, w: WeightBuffers<B>, dy: B, dx: B) -> Dispatch<B> {
    let call = Call::with_format(&params, w.format);
    Dispatch::new(&MatmulNn, call, [dy, dx].into_iter().chain(w.bindings()).collect())
}

/// Columns a thread.
fn step(format: Format) -> u32 {
    if format.is_packed() { 32 } else { 8 }
}

/// Rows a thread of the tile without workgroup memory, where W has so many blocks of columns.
fn tile_rows(m: u32, blocks: u32, format: Format) -> u32 {
    let most = if format.is_packed() { 4 } else { 8 };
    match m {
        1 => 1,
        8.. if m.div_ceil(most) * blocks >= 4 * LANES => most,
        _ => 4,
    }
}

/// How `rows` rows are packed, where four of them can be loaded at once.
fn four_rows(format: Format, rows: u32) -> Option<Packing> {
    let packing = format.packing()?;
    (!is_row_grouped(format) && rows.is_multiple_of(8)).then_some(packing)
}

impl Op for MatmulNn {
    fn name(&self) -> &'static str {
        "matmul_nn"
    }

    fn shader(&self) -> &'static str {
        "matmul/matmul_nn.wgsl"
    }

    fn bindings(&self, call: &Call) -> Vec<Binding> {
        weight_bindings("dy", "dx", call.format)
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        let aligned = quads(&[p.n, p.ld_in, p.in_offset]);
        let input = if aligned { "lib/dy_vec4.wgsl" } else { "lib/dy_any.wgsl" };
        let blocks = p.k.div_ceil(step(call.format));
        let sized = |name, tm, lanes| {
            let (wx, wy) = split_lanes(lanes, blocks, 8);
            let variant = Variant::named(name).fragment("lib/dy_vec4.wgsl", input);
            variant.spec("TM", tm).spec("WX", wx).spec("WY", wy)
        };
        let weights = |variant: &Variant| {
            let variants = weight_variants(variant, call.format, p.k);
            // Walks of one thread over all rows skip what row-grouped weights leave out; the
            // other bodies expand it.
            if is_row_grouped(call.format) && ["broadcast", "tile", "wide"].contains(&variant.name)
            {
                let walk = |v: Variant| {
                    unexpanded(v).fragment("lib/nn_walk.wgsl", "lib/nn_walk_group.wgsl")
                };
                return variants.into_iter().map(walk).collect();
            }
            variants
        };
        let out = [p.k, p.ld_out, p.out_offset];
        let mut variants = Vec::new();
        // Lanes without columns pay where blocks are narrow, and else as long as they are fewer
        // than the others.
        if p.m >= 32 && (!call.format.is_packed() || blocks >= LANES / 2) {
            let variant = Variant::named("broadcast").fragment("lib/dy_vec4.wgsl", input);
            let tm = if call.format.is_packed() { 16 } else { 32 };
            let variant = storing_four(broadcast(variant.spec("TM", tm)), &out);
            let variant = variant.suits(Hardware::Software);
            if let Some(packing) = four_rows(call.format, p.n) {
                let needs = Needs { int64: true, ..variant.needs };
                let wide = Variant { name: "broadcast_wide", ..variant.clone() }.needs(needs);
                let wide = wide.fragment("lib/steps_each.wgsl", "lib/steps_four.wgsl");
                let wide = weights(&wide).into_iter();
                variants.extend(wide.map(|variant| loading(variant, packing.four_pieces())));
            }
            variants.extend(portable(weights(&variant)));
        }
        let mut add = |variant: Variant| variants.extend(portable(weights(&variant)));
        let gpu = |name, body| {
            let variant = Variant::named(name).fragment("lib/dy_vec4.wgsl", input);
            variant.fragment("lib/nn_tile.wgsl", body).suits(Hardware::Gpu)
        };
        if (p.m <= 4 || p.k <= 16) && p.n >= 64 {
            let octets = if call.format.is_packed() { 4 } else { split_lanes(16, p.k / 8, 16).0 };
            let variant =
                gpu("gemv", "lib/nn_gemv.wgsl").spec("TM", p.m.next_power_of_two().min(4));
            add(variant.spec("OCTETS", octets).spec("SLICES", 128 / octets));
        }
        if p.m >= 32 && p.k >= 32 {
            let variant = gpu("shared", "lib/nn_shared.wgsl").spec("TM", 4).spec("KQ", 1);
            add(k_fast(variant.spec("WX", 16).spec("WY", 16), call.format));
        }
        let rows = tile_rows(p.m, blocks, call.format);
        let tile = storing_four(sized("tile", rows, LANES), &out);
        variants.extend(weights(&tile.suits(Hardware::Software)));
        // Fewer registers, whole subgroups on any GPU.
        let few = if call.format.is_packed() { 2 } else { 4 };
        variants.extend(portable(weights(&sized("wide", few, 64))));
        variants
    }

    fn sizes(&self, call: &Call) -> Option<[u32; 3]> {
        let p: Params = call.params();
        Some([p.m, p.n, p.k])
    }

    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        let (rows, cols) = match variant.name {
            "gemv" => (spec(variant, "TM"), 8 * spec(variant, "OCTETS")),
            "shared" => (64, 64),
            _ => {
                let cols = spec(variant, "WX") * step(call.format);
                (spec(variant, "TM") * spec(variant, "WY"), cols)
            }
        };
        fold_grid(p.m.div_ceil(rows) * p.k.div_ceil(cols))
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [dy, dx, weights @ ..] = buffers else { unreachable!("three bindings or more") };
        let [m, k] = [p.m, p.k].map(|size| size as usize);
        let dx_at = Layout::rows(p.out_offset as usize, p.ld_out as usize);
        let dx = dx.f32_mut();
        for_weight_rows(call.format, [p.n, p.k], weights, |first, rows| {
            let dy_at = Layout::rows(p.in_offset as usize + first, p.ld_in as usize);
            let shape = [m, k, rows.len() / k];
            let add = p.accumulate == 1 || first > 0;
            let w_at = Layout::rows(0, k);
            product(shape, p.alpha, add, (dy.f32(), dy_at), (rows, w_at), (&mut *dx, dx_at));
        });
    }

    fn cases(&self) -> Vec<Case> {
        cases()
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        let mut buffers = vec![
            strided_input(rng, [p.m, p.n], p.ld_in, p.in_offset),
            strided_output(rng, [p.m, p.k], p.ld_out, p.out_offset, p.accumulate),
        ];
        buffers.extend(weight_buffers(rng, call.format, p.n, p.k));
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
        let outputs = m * k * (1 + u64::from(p.accumulate));
        Work { bytes: 4 * (m * n + outputs) + call.format.bytes(p.n, p.k), flops: 2 * m * n * k }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        let p: Params = call.params();
        super::sum_tolerance(p.n, p.alpha)
    }
}

/// Tiny shapes around the tiles, every format; shapes of TinyLlama and SmolLM2-135M to time.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, format: Format, params: Params| {
        let name = format!("{name}_{}", format.name());
        cases.push(Case::new(name, Call::with_format(&params, format)));
    };
    for format in Format::TESTED {
        let shard = Params {
            ld_in: 80,
            in_offset: 8,
            ld_out: 97,
            out_offset: 3,
            accumulate: 1,
            alpha: -0.75,
            ..Params::dense(37, 68, 64)
        };
        // What packed formats share is tested with a few of them, the way from words to weights
        // with all, where no size is even.
        let odd = Params { m: 17, n: 37, k: 259, ld_in: 37, in_offset: 0, ld_out: 259, ..shard };
        add("odd_17x37x259", format, odd);
        // What loads four rows at once and stores four columns.
        let four = Params { n: 16, k: 264, ld_out: 268, out_offset: 4, ..shard };
        add("four_37x16x264", format, four);
        if format.packing().is_some_and(|packing| !packing.is_basic()) {
            continue;
        }
        let wide = Params { n: 12, k: 264, ld_in: 12, in_offset: 0, ld_out: 264, ..shard };
        add("wide_37x12x264", format, wide);
        add("shard_37x68x64", format, shard);
        add("5x7x59", format, Params::dense(5, 7, 59));
    }
    add("3x70x96", Format::Q4, Params::dense(3, 70, 96));
    add("idle_lanes_33x9x150", Format::Q4, Params::dense(33, 9, 150));
    let dense = [(1, 1, 1), (1, 12, 40), (1, 65, 140), (3, 8, 12), (9, 65, 257), (64, 64, 8)];
    for (m, n, k) in dense {
        add(&format!("{m}x{n}x{k}"), Format::F32, Params::dense(m, n, k));
    }
    // Beyond the largest tiles, in both directions.
    for format in [Format::F32, Format::Q4] {
        add("tiles_131x69x133", format, Params::dense(131, 69, 133));
    }
    let mut bench = |name: &str, format: Format, m, n, k| {
        let name = format!("{name}_{m}x{n}x{k}_{}", format.name());
        cases.push(Case::bench(name, Call::with_format(&Params::dense(m, n, k), format)));
    };
    for format in Format::TIMED {
        bench("tinyllama_q_proj", format, 256, 2048, 2048);
    }
    for format in [Format::F32, Format::Q4] {
        bench("tinyllama_up_proj", format, 256, 5632, 2048);
        bench("tinyllama_down_proj", format, 256, 2048, 5632);
        bench("smollm2_up_proj", format, 256, 1536, 576);
    }
    bench("lora_b", Format::F32, 256, 2048, 8);
    bench("lora_a", Format::F32, 256, 8, 2048);
    bench("lora_b", Format::F32, 512, 192, 8);
    bench("lora_b", Format::F32, 512, 192, 32);
    cases
}
