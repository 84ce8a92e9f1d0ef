//! Product of a transposed gradient and an input: the gradient of a weight matrix.
//!
//! dW\[n,k\] (+)= alpha · dY\[m,n\]ᵀ · X\[m,k\]
//!
//! | tensor | shape          | dtype | role |
//! |--------|----------------|-------|------|
//! | dy     | [m, n]         | f32   | in, rows `ld_dy` apart behind `dy_offset` |
//! | x      | [m, k]         | f32   | in   |
//! | dw     | [splits, n, k] | f32   | out; with `splits` above 1 partial sums for `sum_partials` |
//!
//! How: an outer product of TN x TK a thread, over one part of m, through workgroup memory or the
//! caches; partial sums instead of atomics keep repeat runs equal to the bit.
//! Accuracy: f32 products and sums over m.
//! Cost: bound by arithmetic where n and k are large, by reading dy and x in the skinny shapes of
//! low-rank adapters.

use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, Hardware, HostBuffer, Op, Tolerance, Variant,
    Work, read, read_write,
};
use crate::ops::matmul::{
    LANES, broadcast, quads, spec, split_lanes, storing_four, strided_input, strided_output,
};
use crate::ops::product::{Layout, product};
use crate::util::{SeededRng, fold_grid};

/// See the module.
pub struct MatmulTn;

crate::params! {
    /// Parameters of `matmul_tn`; sizes, strides and offsets in elements.
    pub struct Params {
        /// Rows of dY and X (tokens).
        m: u32,
        /// Columns of dY, rows of dW.
        n: u32,
        /// Columns of X and dW.
        k: u32,
        /// Between rows of dY.
        ld_dy: u32,
        /// Of the first element of dY.
        dy_offset: u32,
        /// Parts of m that are summed apart; at least 1.
        splits: u32,
        /// 1: adds to dW; must be 0 with `splits` above 1.
        accumulate: u32,
        /// Factor of the product.
        alpha: f32,
    }
}

impl Params {
    /// Contiguous operands, `alpha` 1, overwriting, one part.
    pub fn dense(m: u32, n: u32, k: u32) -> Self {
        Self { m, n, k, ld_dy: n, dy_offset: 0, splits: 1, accumulate: 0, alpha: 1.0 }
    }
}

/// Lanes along the long side of `lib/tn_slices.wgsl`: a transaction of a row.
const SLICE_LANES: u32 = 16;

/// Multiplies the transpose of `dy [m, n]` by `x [m, k]` into `dw [splits, n, k]`.
///
/// # Panics
/// When `splits` is 0, or above 1 together with `accumulate`.
pub fn dispatch<B>(params: Params, dy: B, x: B, dw: B) -> Dispatch<B> {
    assert!(params.splits >= 1, "matmul_tn: splits is at least 1");
    assert!(params.splits == 1 || params.accumulate == 0, "matmul_tn: partial sums overwrite");
    Dispatch::new(&MatmulTn, Call::new(&params), vec![dy, x, dw])
}

/// Parts of m that give a few hundred threads even where n · k is small (adapters), each of at
/// least 32 rows.
pub fn splits(m: u32, n: u32, k: u32) -> u32 {
    let tiles = n.div_ceil(8) * k.div_ceil(8);
    (512 / tiles).clamp(1, (m / 32).max(1))
}

impl Op for MatmulTn {
    fn name(&self) -> &'static str {
        "matmul_tn"
    }

    fn shader(&self) -> &'static str {
        "matmul/matmul_tn.wgsl"
    }

    fn bindings(&self, _: &Call) -> Vec<Binding> {
        vec![read("dy"), read("x"), read_write("dw")]
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let p: Params = call.params();
        let dy_any = !quads(&[p.n, p.ld_dy, p.dy_offset]);
        let dy = if dy_any { "lib/dy_any.wgsl" } else { "lib/dy_vec4.wgsl" };
        let x = if quads(&[p.k]) { "lib/x_vec4.wgsl" } else { "lib/x_any.wgsl" };
        let sized = |name, side: u32, lanes| {
            let (wx, wy) = split_lanes(lanes, p.k.div_ceil(side), 8);
            let variant = Variant::named(name)
                .fragment("lib/dy_vec4.wgsl", dy)
                .fragment("lib/x_vec4.wgsl", x);
            variant.spec("TN", side).spec("TK", side).spec("WX", wx).spec("WY", wy)
        };
        let mut variants = Vec::new();
        if p.n.min(p.k) <= 16 && p.n.max(p.k) >= 64 {
            let along_n = p.n >= p.k;
            let quads = p.n.min(p.k).div_ceil(4);
            let (nq, kq) = if along_n { (1, quads) } else { (quads, 1) };
            let variant = Variant::named("slices")
                .fragment("lib/dy_vec4.wgsl", dy)
                .fragment("lib/x_vec4.wgsl", x)
                .fragment("lib/tn_tile.wgsl", "lib/tn_slices.wgsl");
            let variant = variant.spec("NQ", nq).spec("KQ", kq).spec("WX", SLICE_LANES);
            variants.push(variant.spec("ALONG_N", along_n.into()).suits(Hardware::Gpu));
        }
        if p.n >= 32 && p.k >= 32 {
            let variant = Variant::named("shared")
                .fragment("lib/dy_vec4.wgsl", dy)
                .fragment("lib/x_vec4.wgsl", x)
                .fragment("lib/tn_tile.wgsl", "lib/tn_shared.wgsl");
            variants.push(variant.spec("NQ", 1).spec("KQ", 1).suits(Hardware::Gpu));
        }
        // Eight lanes along k. It pays though only two of them have columns, as with rank 8.
        if p.n >= 8 && p.k >= 8 {
            let (tn, tk) = if p.k > 32 { (16, 8) } else { (32, 4) };
            let tn = tn.min(p.n.next_multiple_of(8));
            let variant = Variant::named("broadcast")
                .fragment("lib/dy_vec4.wgsl", dy)
                .fragment("lib/x_vec4.wgsl", x);
            let variant = broadcast(variant.spec("TN", tn).spec("TK", tk).spec("AHEAD", LANES));
            variants.push(storing_four(variant, &[p.k]).suits(Hardware::Software));
        }
        let side = if p.n.min(p.k) <= 4 { 4 } else { 8 };
        let tile = storing_four(sized("tile", side, LANES), &[p.k]);
        variants.push(tile.suits(Hardware::Software));
        // Fewer registers, whole subgroups on any GPU.
        variants.push(sized("wide", 4, 64));
        variants
    }

    fn sizes(&self, call: &Call) -> Option<[u32; 3]> {
        let p: Params = call.params();
        Some([p.m, p.n, p.k])
    }

    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        let (rows, cols) = match variant.name {
            "slices" if spec(variant, "ALONG_N") == 1 => (4 * SLICE_LANES, 4 * spec(variant, "KQ")),
            "slices" => (4 * spec(variant, "NQ"), 4 * SLICE_LANES),
            "shared" => (64, 64),
            _ => (
                spec(variant, "TN") * spec(variant, "WY"),
                spec(variant, "TK") * spec(variant, "WX"),
            ),
        };
        let [x, y, _] = fold_grid(p.n.div_ceil(rows) * p.k.div_ceil(cols));
        [x, y, p.splits]
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [dy, x, dw] = buffers else { unreachable!("three bindings") };
        let [m, n, k] = [p.m, p.n, p.k].map(|size| size as usize);
        let span = m.div_ceil(p.splits as usize);
        for (part, dw) in dw.f32_mut().chunks_mut(n * k).take(p.splits as usize).enumerate() {
            let first = (part * span).min(m);
            let rows = span.min(m - first);
            if rows == 0 {
                dw.fill(0.0);
                continue;
            }
            let ld = p.ld_dy as usize;
            let dy_at = Layout::rows(p.dy_offset as usize + first * ld, ld).transposed();
            let x_at = Layout::rows(first * k, k);
            let (add, dw_at) = (p.accumulate == 1, Layout::rows(0, k));
            product([n, k, rows], p.alpha, add, (dy.f32(), dy_at), (x.f32(), x_at), (dw, dw_at));
        }
    }

    fn cases(&self) -> Vec<Case> {
        let plain = Params::dense;
        let shard =
            Params { ld_dy: 28, dy_offset: 8, accumulate: 1, alpha: -0.75, ..plain(19, 20, 36) };
        let tests = [
            ("1x1x1", plain(1, 1, 1)),
            ("7x5x3", plain(7, 5, 3)),
            ("33x17x67", Params { accumulate: 1, ..plain(33, 17, 67) }),
            ("65x36x68", plain(65, 36, 68)),
            ("19x35x67", plain(19, 35, 67)),
            ("shard_19x20x36", shard),
            ("odd_shard_19x20x36", Params { ld_dy: 27, dy_offset: 1, ..shard }),
            ("slices_75x70x13", plain(75, 70, 13)),
            ("slices_77x5x131", Params { accumulate: 1, alpha: 0.5, ..plain(77, 5, 131) }),
            ("slices_200x64x8", Params { splits: 3, ..plain(200, 64, 8) }),
            ("tiles_21x131x133", plain(21, 131, 133)),
            ("split_70x12x8", Params { splits: 3, ..plain(70, 12, 8) }),
            // More parts than the rows fill: the last ones are zero.
            ("split_5x4x8", Params { splits: 4, ..plain(5, 4, 8) }),
        ];
        let benches = [
            ("tinyllama_q_proj_256x2048x2048", plain(256, 2048, 2048)),
            ("lora_a_2048x8x2048", plain(2048, 8, 2048)),
            ("lora_b_2048x2048x8", plain(2048, 2048, 8)),
            ("lora_2048x64x8", plain(2048, 64, 8)),
            ("lora_a_512x64x2048", plain(512, 64, 2048)),
            ("lora_b_512x2048x64", plain(512, 2048, 64)),
            ("lora_b_512x192x8", plain(512, 192, 8)),
            ("lora_a_512x8x192", plain(512, 8, 192)),
            ("lora_a_512x32x192", plain(512, 32, 192)),
            ("lora_b_512x192x32", plain(512, 192, 32)),
        ];
        let tests = tests.into_iter().map(|(name, p)| Case::new(name, Call::new(&p)));
        let benches = benches.into_iter().map(|(name, p)| {
            let splits = splits(p.m, p.n, p.k);
            Case::bench(name, Call::new(&Params { splits, ..p }))
        });
        tests.chain(benches).collect()
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        vec![
            strided_input(rng, [p.m, p.n], p.ld_dy, p.dy_offset),
            strided_input(rng, [p.m, p.k], p.k, 0),
            strided_output(rng, [p.splits * p.n, p.k], p.k, 0, p.accumulate),
        ]
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
        let outputs = n * k * u64::from(p.splits + p.accumulate);
        Work { bytes: 4 * (m * n + m * k + outputs), flops: 2 * m * n * k }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        let p: Params = call.params();
        super::sum_tolerance(p.m, p.alpha)
    }
}
