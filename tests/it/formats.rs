//! Weights in every tested format on a device: products against f64 sums over the weights that
//! were packed, and the backward product as the adjoint of the forward one.

use edge_gpu::{Device, Options, Slice};
use edge_kernels::format::WeightBuffers;
use edge_kernels::op::CaseBuffer;
use edge_kernels::ops::matmul::{matmul_nn, matmul_nt};
use edge_kernels::pack::{PackedHost, pack};
use edge_kernels::util::{SeededRng, uniform_vec};
use edge_kernels::{Category, Dispatch, Format};
use edge_runtime::compress::solve::{Weight, nearest};
use edge_tests::gpu_with;
use rand::SeedableRng;

/// Tokens, output channels (more than a group of rows), input channels (more than eight blocks).
const M: u32 = 17;
const N: u32 = 39;
const K: u32 = 259;

/// Largest mean square of an error by the mean square of what is wanted.
const NMSE: f64 = 1e-6;

/// Runs the dispatch that `make` makes of weights, input and output; gives the output.
fn run(
    device: &Device,
    w: &PackedHost,
    (input, len): (&[f32], u32),
    make: impl Fn(WeightBuffers<Slice>, [Slice; 2]) -> Dispatch<Slice>,
) -> Vec<f32> {
    let upload = |words: &[u32]| {
        let fill = |out: &mut [u32]| out[..words.len()].copy_from_slice(words);
        let len = words.len() as u64;
        let buffer = device.buffer_init("test", Category::Activations, len, fill);
        buffer.expect("a small buffer").whole()
    };
    let weights = w.clone().case_buffers();
    let weights = WeightBuffers {
        format: weights.format,
        values: upload(&weights.values.words()),
        scales: weights.scales.map(|scales| upload(&scales.words())),
    };
    let output = upload(&CaseBuffer::Output(len as usize).words());
    let mut recorder = device.recorder();
    recorder.push(make(weights, [upload(bytemuck::cast_slice(input)), output.clone()]));
    recorder.submit().expect("a submission");
    let words = device.read(&output).expect("a result");
    bytemuck::cast_slice(&words[..len as usize]).to_vec()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Mean square error of `got[row, col]` against `want(row, col)`, by the mean square of `want`.
fn nmse(got: &[f32], cols: usize, want: impl Fn(usize, usize) -> f64) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (i, got) in got.iter().enumerate() {
        let want = want(i / cols, i % cols);
        error += (f64::from(*got) - want).powi(2);
        size += want * want;
    }
    error / size
}

#[test]
fn products_are_those_of_the_packed_weights_and_adjoint() {
    let Some(device) = gpu_with(&Options::default()) else { return };
    let mut rng = SeededRng::seed_from_u64(7);
    let [m, n, k] = [M, N, K].map(|size| size as usize);
    let x = uniform_vec(&mut rng, m * k, -1.0, 1.0);
    let dy = uniform_vec(&mut rng, m * n, -1.0, 1.0);
    let data = uniform_vec(&mut rng, n * k, -1.0, 1.0);
    // The solver's scales have both signs, and it uses the lowest level too.
    let weight = Weight { rows: n, cols: k, data: &data };
    let solved = |format| nearest(weight, format, None).expect("finite weights").packed;
    let packed = |format| [pack(format, N, K, &data), solved(format)];
    for packed in Format::TESTED.into_iter().flat_map(packed) {
        let name = packed.format.name();
        let w = packed.unpack();
        let y = run(&device, &packed, (&x, M * N), |w, [x, y]| {
            matmul_nt::dispatch(matmul_nt::Params::dense(M, N, K), w, x, y)
        });
        let dx = run(&device, &packed, (&dy, M * K), |w, [dy, dx]| {
            matmul_nn::dispatch(matmul_nn::Params::dense(M, N, K), w, dy, dx)
        });
        let forward =
            nmse(&y, n, |row, col| dot(&x[row * k..(row + 1) * k], &w[col * k..(col + 1) * k]));
        assert!(forward <= NMSE, "{name}: NMSE {forward:e} of the forward product");
        let backward = nmse(&dx, k, |row, col| {
            let column = w.iter().skip(col).step_by(k);
            dy[row * n..].iter().zip(column).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        });
        assert!(backward <= NMSE, "{name}: NMSE {backward:e} of the backward product");
        // <dY, X·Wᵀ> = <dY·W, X>
        let (left, right) = (dot(&dy, &y), dot(&dx, &x));
        let size = (dot(&dy, &dy) * dot(&y, &y)).sqrt();
        assert!((left - right).abs() <= 1e-6 * size, "{name}: {left} and {right}");
    }
}
