//! Token embeddings: rows of a table.
//!
//! out\[t,:\] = scale · W\[ids\[t\] − row0, :\] for ids in row0..row0 + rows
//!
//! | tensor | shape          | dtype      | role                               |
//! |--------|----------------|------------|------------------------------------|
//! | ids    | \[tokens\]     | u32        | in                                 |
//! | out    | [tokens, cols] | f32        | out; rows of other ids stay        |
//! | W      | [rows, cols]   | any format | in: the table, or a shard of it    |
//!
//! How: one invocation an element; one dispatch a shard.
//! Accuracy: one rounding by the scale, one more for packed formats.
//! Cost: bound by bandwidth.

use crate::format::{Format, WeightBuffers};
use crate::lanes;
use crate::op::{
    Binding, Call, Case, CaseBuffer, Dispatch, Field, HostBuffer, Op, Tolerance, Variant, Work,
    read, read_write,
};
use crate::pack::{pack, unpack_rows};
use crate::util::{SeededRng, uniform_f32, uniform_vec};
use rand::RngExt;
use rayon::prelude::*;

/// See the module.
pub struct EmbeddingGather;

crate::params! {
    /// Parameters of `embedding_gather`.
    pub struct Params {
        /// Tokens.
        tokens: u32,
        /// Columns (hidden size).
        cols: u32,
        /// Id of the first row of `W`.
        row0: u32,
        /// Rows of `W`.
        rows: u32,
        /// Factor of all elements: 1, or √cols in models that scale their embeddings.
        scale: f32,
    }
}

/// Writes the rows of `out` whose ids are in this shard of the table.
pub fn dispatch<B>(params: Params, ids: B, out: B, w: WeightBuffers<B>) -> Dispatch<B> {
    let call = Call::with_format(&params, w.format);
    let bindings = [ids, out].into_iter().chain(w.bindings()).collect();
    Dispatch::new(&EmbeddingGather, call, bindings)
}

fn fragment(format: Format) -> &'static str {
    match format {
        Format::F32 => "weights/element_f32.wgsl",
        Format::F16 => "weights/element_f16.wgsl",
        Format::Bf16 => "weights/element_bf16.wgsl",
        Format::Packed(_) => "weights/element_packed.wgsl",
    }
}

impl Op for EmbeddingGather {
    fn name(&self) -> &'static str {
        "embedding_gather"
    }

    fn shader(&self) -> &'static str {
        "embedding/embedding_gather.wgsl"
    }

    fn bindings(&self, call: &Call) -> Vec<Binding> {
        let mut bindings = vec![read("ids"), read_write("out"), read("w")];
        if call.format.is_packed() {
            bindings.push(read("w_scales"));
        }
        bindings
    }

    fn fields(&self) -> &'static [Field] {
        Params::FIELDS
    }

    fn variants(&self, call: &Call) -> Vec<Variant> {
        let plain = Variant::plain().fragment("weights/element_f32.wgsl", fragment(call.format));
        vec![match call.format.packing() {
            Some(packing) => plain.packing(packing),
            None => plain,
        }]
    }

    fn grid(&self, call: &Call, _: &Variant) -> [u32; 3] {
        let p: Params = call.params();
        lanes::grid(u64::from(p.tokens) * u64::from(p.cols), false, 256)
    }

    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        let p: Params = call.params();
        let [ids, out, values, rest @ ..] = buffers else { unreachable!("three or four bindings") };
        let (ids, values) = (ids.u32(), values.u32());
        let scales = rest.first().map_or(&[][..], HostBuffer::u32);
        let rows = out.f32_mut().par_chunks_mut(p.cols as usize).take(p.tokens as usize);
        rows.zip(ids).for_each(|(out, id)| {
            let row = id.wrapping_sub(p.row0);
            if row < p.rows {
                unpack_rows(call.format, [p.rows, p.cols], values, scales, row as usize, out);
                out.iter_mut().for_each(|value| *value *= p.scale);
            }
        });
    }

    fn cases(&self) -> Vec<Case> {
        let call = |format, tokens, cols, row0, rows| {
            let scale = if row0 == 0 { 1.0 } else { 11.5 };
            Call::with_format(&Params { tokens, cols, row0, rows, scale }, format)
        };
        let mut cases = Vec::new();
        for format in Format::TESTED {
            for (tokens, cols, row0, rows) in [(1, 1, 0, 1), (7, 37, 0, 13), (9, 130, 5, 11)] {
                let name = format!("{}_{tokens}x{cols}_of_{rows}_from_{row0}", format.name());
                cases.push(Case::new(name, call(format, tokens, cols, row0, rows)));
            }
        }
        cases.push(Case::bench("tinyllama_256", call(Format::F16, 256, 2048, 0, 32000)));
        cases
    }

    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let p: Params = call.params();
        // Of a shard, some ids lie on either side.
        let (low, high) = if p.row0 == 0 { (0, p.rows) } else { (0, 2 * p.row0 + p.rows) };
        let ids = (0..p.tokens).map(|_| rng.random_range(low..high)).collect();
        let out = (p.tokens * p.cols) as usize;
        let out =
            if p.row0 == 0 { CaseBuffer::Output(out) } else { uniform_f32(rng, out, -1.0, 1.0) };
        let data = uniform_vec(rng, (p.rows * p.cols) as usize, -1.0, 1.0);
        let w = pack(call.format, p.rows, p.cols, &data);
        let mut buffers = vec![CaseBuffer::U32(ids), out, CaseBuffer::U32(w.values)];
        if call.format.is_packed() {
            buffers.push(CaseBuffer::U32(w.scales));
        }
        buffers
    }

    fn work(&self, call: &Call) -> Work {
        let p: Params = call.params();
        let read = call.format.bytes(p.tokens, p.cols);
        let written = 4 * u64::from(p.tokens) * u64::from(p.cols);
        Work { bytes: 4 * u64::from(p.tokens) + read + written, flops: written / 4 }
    }

    fn tolerance(&self, call: &Call) -> Tolerance {
        // The smallest normal f16 is 6.1e-5: a device may read anything below it as 0.
        let abs = if call.format == Format::F16 { 6.2e-5 } else { 1e-7 };
        let abs = abs * call.params::<Params>().scale;
        Tolerance { abs, rel: 3e-7, why: "two roundings; f16 subnormals may be flushed" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embedding::embedding_scatter::{self, EmbeddingScatter};
    use crate::pack::unpack;
    use rand::SeedableRng;

    fn gather(p: Params, format: Format, ids: &[u32], out: &mut [f32], w: &[f32]) {
        let w = pack(format, p.rows, p.cols, w);
        let mut buffers = vec![
            HostBuffer::Read(ids),
            HostBuffer::ReadWrite(bytemuck::cast_slice_mut(out)),
            HostBuffer::Read(&w.values),
            HostBuffer::Read(&w.scales),
        ];
        EmbeddingGather.reference(&Call::with_format(&p, format), &mut buffers);
    }

    #[test]
    fn rows_of_every_format_come_from_the_right_shard() {
        let mut rng = SeededRng::seed_from_u64(5);
        let (rows, cols) = (9, 70);
        let w = uniform_vec(&mut rng, rows * cols, -1.0, 1.0);
        let ids = [11, 3, 12, 20, 4, 12, u32::MAX];
        for format in Format::TESTED {
            let packed = pack(format, 9, 70, &w);
            let dense = unpack(format, 9, 70, &packed.values, &packed.scales);
            let mut out = vec![7.0; ids.len() * cols];
            let params = Params { tokens: 7, cols: 70, row0: 4, rows: 9, scale: 1.0 };
            gather(params, format, &ids, &mut out, &w);
            for (t, id) in ids.into_iter().enumerate() {
                let got = &out[t * cols..(t + 1) * cols];
                match id.checked_sub(4).filter(|row| *row < 9) {
                    Some(row) => assert_eq!(got, &dense[row as usize * cols..][..cols]),
                    None => assert_eq!(got, [7.0; 70]),
                }
            }
        }
    }

    /// <dy, gather(w)> = <scatter(dy), w>, over two shards of the table.
    #[test]
    fn scatter_is_the_adjoint() {
        let mut rng = SeededRng::seed_from_u64(6);
        let (cols, tokens) = (5, 12);
        let ids: Vec<u32> = (0..tokens).map(|_| rng.random_range(0..10)).collect();
        let w = uniform_vec(&mut rng, 10 * cols, -1.0, 1.0);
        let dy = uniform_vec(&mut rng, ids.len() * cols, -1.0, 1.0);
        let mut out = vec![0.0; ids.len() * cols];
        let mut backward = 0.0;
        for (row0, rows) in [(0, 6), (6, 4)] {
            let shard = &w[row0 * cols..(row0 + rows) * cols];
            let (first, count) = (row0 as u32, rows as u32);
            let tokens = ids.len() as u32;
            let p = Params { tokens, cols: 5, row0: first, rows: count, scale: 3.0 };
            gather(p, Format::F32, &ids, &mut out, shard);
            let (segments, order) = embedding_scatter::segments(&ids, first, count);
            let p = embedding_scatter::Params {
                segments: segments.len() as u32 / 3,
                cols: 5,
                tokens,
                rows: count,
                scale: 3.0,
            };
            let mut dw = vec![0.0_f32; rows * cols];
            EmbeddingScatter.reference(
                &Call::new(&p),
                &mut [
                    HostBuffer::Read(&segments),
                    HostBuffer::Read(&order),
                    HostBuffer::Read(bytemuck::cast_slice(&dy)),
                    HostBuffer::ReadWrite(bytemuck::cast_slice_mut(&mut dw)),
                ],
            );
            backward += dw.iter().zip(shard).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        }
        let forward: f64 = dy.iter().zip(&out).map(|(a, b)| f64::from(a * b)).sum();
        assert!((forward - backward).abs() < 1e-5, "{forward} {backward}");
    }
}
