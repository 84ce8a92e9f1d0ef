//! The references against naive f64 loops and against each other (adjoints); the shaders
//! against naga.

use rand::SeedableRng;

use super::{matmul_nn, matmul_nt, matmul_tn, sum_partials};
use crate::format::Format;
use crate::op::{Call, CaseBuffer, HostBuffer, Op};
use crate::pack::{pack, unpack};
use crate::shader::assemble;
use crate::util::{SeededRng, uniform_vec};

/// Runs the reference on these buffers and returns the output, binding `output`.
fn run(op: &dyn Op, call: &Call, buffers: &[CaseBuffer], output: usize) -> Vec<f32> {
    let bindings = op.bindings(call);
    assert_eq!(bindings.len(), buffers.len(), "{}", op.name());
    let mut words: Vec<Vec<u32>> = buffers.iter().map(CaseBuffer::words).collect();
    let mut host: Vec<HostBuffer<'_>> = words
        .iter_mut()
        .enumerate()
        .map(|(i, words)| match i == output {
            true => HostBuffer::ReadWrite(words),
            false => HostBuffer::Read(words),
        })
        .collect();
    op.reference(call, &mut host);
    host[output].f32().to_vec()
}

fn floats(buffer: &CaseBuffer) -> Vec<f32> {
    bytemuck::cast_vec(buffer.words())
}

fn weights(call: &Call, n: u32, k: u32, buffers: &[CaseBuffer]) -> Vec<f32> {
    let scales = buffers.get(3).map_or(Vec::new(), CaseBuffer::words);
    unpack(call.format, n, k, &buffers[2].words(), &scales)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Compares a reference with a naive definition: `term(row, col)` is the f64 sum of the output at
/// `offset + row * ld + col`; everything else must be as before.
fn compare(
    op: &dyn Op,
    call: &Call,
    buffers: &[CaseBuffer],
    output: usize,
    (offset, ld, rows, cols): (u32, u32, u32, u32),
    (alpha, accumulate): (f32, u32),
    term: impl Fn(usize, usize) -> f64,
) {
    let before = floats(&buffers[output]);
    let got = run(op, call, buffers, output);
    let tolerance = op.tolerance(call);
    let mut written = vec![false; got.len()];
    for row in 0..rows as usize {
        for col in 0..cols as usize {
            let at = offset as usize + row * ld as usize + col;
            let old = if accumulate == 1 { f64::from(before[at]) } else { 0.0 };
            let want = old + f64::from(alpha) * term(row, col);
            let error = (f64::from(got[at]) - want).abs();
            let bound = f64::from(tolerance.abs) + f64::from(tolerance.rel) * want.abs();
            assert!(error <= bound, "{} {call:?} [{row},{col}]: {} {want}", op.name(), got[at]);
            written[at] = true;
        }
    }
    for (at, written) in written.iter().enumerate() {
        assert!(*written || got[at].to_bits() == before[at].to_bits(), "{} at {at}", op.name());
    }
}

/// Calls of the tests, without those that are model-sized.
fn calls(op: &dyn Op) -> Vec<Call> {
    op.cases().into_iter().filter(|case| !case.bench).map(|case| case.call).collect()
}

#[test]
fn matmul_nt_is_its_definition() {
    let op = &matmul_nt::MatmulNt;
    let mut rng = SeededRng::seed_from_u64(1);
    for call in calls(op) {
        let p: matmul_nt::Params = call.params();
        let buffers = op.buffers(&call, &mut rng);
        let (x, w) = (floats(&buffers[0]), weights(&call, p.n, p.k, &buffers));
        let k = p.k as usize;
        let place = (p.out_offset, p.ld_out, p.m, p.n);
        compare(op, &call, &buffers, 1, place, (p.alpha, p.accumulate), |row, col| {
            let x = &x[p.in_offset as usize + row * p.ld_in as usize..][..k];
            dot(x, &w[col * k..][..k])
        });
    }
}

#[test]
fn matmul_nn_is_its_definition() {
    let op = &matmul_nn::MatmulNn;
    let mut rng = SeededRng::seed_from_u64(2);
    let long = Call::with_format(&matmul_nn::Params::dense(2, 1030, 5), Format::Q8);
    for call in calls(op).into_iter().chain([long]) {
        let p: matmul_nn::Params = call.params();
        let buffers = op.buffers(&call, &mut rng);
        let (dy, w) = (floats(&buffers[0]), weights(&call, p.n, p.k, &buffers));
        let place = (p.out_offset, p.ld_out, p.m, p.k);
        compare(op, &call, &buffers, 1, place, (p.alpha, p.accumulate), |row, col| {
            let dy = &dy[p.in_offset as usize + row * p.ld_in as usize..][..p.n as usize];
            let column: Vec<f32> = w.iter().copied().skip(col).step_by(p.k as usize).collect();
            dot(dy, &column)
        });
    }
}

#[test]
fn matmul_tn_is_its_definition() {
    let op = &matmul_tn::MatmulTn;
    let mut rng = SeededRng::seed_from_u64(3);
    for call in calls(op) {
        let p: matmul_tn::Params = call.params();
        let buffers = op.buffers(&call, &mut rng);
        let (dy, x) = (floats(&buffers[0]), floats(&buffers[1]));
        let [m, n, k] = [p.m, p.n, p.k].map(|size| size as usize);
        let span = m.div_ceil(p.splits as usize);
        let place = (0, p.k, p.splits * p.n, p.k);
        compare(op, &call, &buffers, 2, place, (p.alpha, p.accumulate), |row, col| {
            let first = row / n * span;
            (first..(first + span).min(m))
                .map(|i| {
                    let dy = dy[p.dy_offset as usize + i * p.ld_dy as usize + row % n];
                    f64::from(dy) * f64::from(x[i * k + col])
                })
                .sum()
        });
    }
}

#[test]
fn sum_partials_is_its_definition() {
    let op = &sum_partials::SumPartials;
    let mut rng = SeededRng::seed_from_u64(4);
    for call in calls(op) {
        let p: sum_partials::Params = call.params();
        let buffers = op.buffers(&call, &mut rng);
        let partials = floats(&buffers[0]);
        let place = (0, p.len, 1, p.len);
        compare(op, &call, &buffers, 1, place, (p.alpha, p.accumulate), |_, i| {
            partials.iter().skip(i).step_by(p.len as usize).map(|&x| f64::from(x)).sum()
        });
    }
}

/// <Y, X Wᵀ> = <Y W, X> = <Yᵀ X, W>: forward and both backward products of a linear layer.
#[test]
fn the_products_are_adjoint() {
    let mut rng = SeededRng::seed_from_u64(5);
    let (m, n, k) = (13, 21, 70);
    for format in Format::TESTED {
        let x = uniform_vec(&mut rng, (m * k) as usize, -1.0, 1.0);
        let dy = uniform_vec(&mut rng, (m * n) as usize, -1.0, 1.0);
        let w = pack(format, n, k, &uniform_vec(&mut rng, (n * k) as usize, -1.0, 1.0));
        let dense = w.unpack();
        let with = |input: &[f32], len: u32| {
            let mut buffers =
                vec![CaseBuffer::F32(input.to_vec()), CaseBuffer::Output(len as usize)];
            buffers.extend(w.clone().case_buffers().bindings());
            buffers
        };
        let call = Call::with_format(&matmul_nt::Params::dense(m, n, k), format);
        let forward = dot(&dy, &run(&matmul_nt::MatmulNt, &call, &with(&x, m * n), 1));
        let call = Call::with_format(&matmul_nn::Params::dense(m, n, k), format);
        let backward = dot(&x, &run(&matmul_nn::MatmulNn, &call, &with(&dy, m * k), 1));
        let call = Call::new(&matmul_tn::Params::dense(m, n, k));
        let output = CaseBuffer::Output((n * k) as usize);
        let buffers = [CaseBuffer::F32(dy), CaseBuffer::F32(x), output];
        let gradient = dot(&dense, &run(&matmul_tn::MatmulTn, &call, &buffers, 2));
        let bound = 1e-5 * f64::from(m * n);
        assert!((forward - backward).abs() < bound, "{format:?}: {forward} {backward}");
        assert!((forward - gradient).abs() < bound, "{format:?}: {forward} {gradient}");
    }
}

#[test]
fn splits_suit_the_shape() {
    assert_eq!(matmul_tn::splits(256, 2048, 2048), 1);
    assert_eq!(matmul_tn::splits(1, 8, 8), 1);
    let skinny = matmul_tn::splits(2048, 64, 8);
    assert!((8..=64).contains(&skinny), "{skinny}");
}

#[test]
fn every_variant_of_every_case_is_valid_wgsl() {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    let ops: [&dyn Op; 4] = [
        &matmul_nt::MatmulNt,
        &matmul_nn::MatmulNn,
        &matmul_tn::MatmulTn,
        &sum_partials::SumPartials,
    ];
    let mut seen = std::collections::HashSet::new();
    for op in ops {
        for case in op.cases() {
            let variants = op.variants(&case.call);
            assert!(!variants.last().expect("a variant").needs.f16, "{}", case.name);
            for variant in variants {
                let grid = op.grid(&case.call, &variant);
                assert!(grid.iter().all(|size| (1..=65535).contains(size)), "{}", case.name);
                if !seen.insert((op.name(), variant.clone())) {
                    continue;
                }
                let assembled = assemble(op, &variant, false).expect("assembles");
                let module =
                    naga::front::wgsl::parse_str(&assembled.text).unwrap_or_else(|error| {
                        let line = error.location(&assembled.text).map_or(0, |at| at.line_number);
                        panic!("{}: {error}", assembled.origin(line as usize))
                    });
                // `unpack2x16float` is in every device's capabilities; the type f16 is not.
                let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
                capabilities.set(Capabilities::SHADER_FLOAT16, variant.needs.f16);
                capabilities.set(Capabilities::SUBGROUP, variant.needs.subgroups);
                capabilities.set(Capabilities::SHADER_INT64, variant.needs.int64);
                let cooperative = variant.needs.cooperative.is_some();
                capabilities.set(Capabilities::COOPERATIVE_MATRIX, cooperative);
                let mut validator = Validator::new(ValidationFlags::all(), capabilities);
                validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
                validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
                validator
                    .validate(&module)
                    .unwrap_or_else(|error| panic!("{} {}: {error:?}", case.name, variant.name));
            }
        }
    }
}
