//! A block in f64 with plain loops, as far as the inputs of its linear layers: what second moments
//! are held against.

use edge_runtime::checkpoint::Checkpoint;
use edge_runtime::config::ModelConfig;
use edge_runtime::family::names::weight_name;
use edge_scheduler::{BlockVector, Projection};

/// `[rows, n]` of `[rows, k]` and a weight `[n, k]`.
fn linear(x: &[f64], k: usize, weight: &[f32]) -> Vec<f64> {
    let dot =
        |x: &[f64], w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum() };
    x.chunks(k).flat_map(|x| weight.chunks(k).map(move |w| dot(x, w))).collect()
}

fn rms_norm(x: &[f64], gamma: &[f32], eps: f64) -> Vec<f64> {
    x.chunks(gamma.len())
        .flat_map(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let factor = 1.0 / (mean + eps).sqrt();
            x.iter().zip(gamma).map(move |(x, g)| x * factor * f64::from(*g)).collect::<Vec<_>>()
        })
        .collect()
}

/// Rotates the halves of each head (RoPE), positions counted in each sequence.
fn rope(x: &mut [f64], seq_len: usize, heads: usize, head_dim: usize) {
    let half = head_dim / 2;
    for (row, x) in x.chunks_mut(heads * head_dim).enumerate() {
        let position = (row % seq_len) as f64;
        for head in x.chunks_mut(head_dim) {
            for i in 0..half {
                let angle = position / 10000_f64.powf(2.0 * i as f64 / head_dim as f64);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + half] = b * angle.cos() + a * angle.sin();
            }
        }
    }
}

/// Causal attention of one head over one sequence.
fn attend(q: &[Vec<f64>], k: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let scale = (q[0].len() as f64).sqrt();
    (0..q.len())
        .map(|row| {
            let scores: Vec<f64> = (0..=row).map(|col| dot(&q[row], &k[col]) / scale).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let exp: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let sum: f64 = exp.iter().sum();
            (0..v[0].len()).map(|i| (0..=row).map(|col| exp[col] / sum * v[col][i]).sum()).collect()
        })
        .collect()
}

/// The inputs of a block's linear layers in f64, in the order of
/// [`edge_scheduler::LinearInput::ALL`]. RoPE with base 10000.
pub(crate) fn inputs(
    config: &ModelConfig,
    checkpoint: &Checkpoint,
    block: u32,
    seq_len: usize,
    x: &[f32],
) -> [Vec<f64>; 4] {
    let floats = |name: &str| checkpoint.tensor(name).expect("a tensor").to_f32().expect("values");
    let shape = config.shape();
    let d = shape.hidden_size as usize;
    let weight = |p: Projection| floats(&weight_name(block as usize, p));
    let norm = |which| floats(&config.vector_name(block as usize, which));
    let eps = f64::from(config.rms_norm_eps);
    let [heads, kv_heads, head_dim] =
        [shape.num_heads, shape.num_kv_heads, shape.head_dim].map(|size| size as usize);
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let normed = rms_norm(&x, &norm(BlockVector::InputNorm), eps);
    let [mut q, mut k, v] =
        [Projection::Q, Projection::K, Projection::V].map(|p| linear(&normed, d, &weight(p)));
    rope(&mut q, seq_len, heads, head_dim);
    rope(&mut k, seq_len, kv_heads, head_dim);
    let mut attention = vec![0.0; x.len() / d * heads * head_dim];
    for sequence in 0..x.len() / d / seq_len {
        for head in 0..heads {
            // Rows of the head, of as many heads as there are in `values`.
            let rows = |values: &'_ [f64], count: usize, head: usize| -> Vec<Vec<f64>> {
                let at = |row: usize| ((sequence * seq_len + row) * count + head) * head_dim;
                (0..seq_len).map(|row| values[at(row)..][..head_dim].to_vec()).collect()
            };
            let kv = head / (heads / kv_heads);
            let (q, k, v) = (rows(&q, heads, head), rows(&k, kv_heads, kv), rows(&v, kv_heads, kv));
            for (row, out) in attend(&q, &k, &v).into_iter().enumerate() {
                let at = ((sequence * seq_len + row) * heads + head) * head_dim;
                attention[at..at + head_dim].copy_from_slice(&out);
            }
        }
    }
    let o = linear(&attention, heads * head_dim, &weight(Projection::O));
    let mid: Vec<f64> = x.iter().zip(&o).map(|(x, o)| x + o).collect();
    let mlp = rms_norm(&mid, &norm(BlockVector::MlpNorm), eps);
    let gate = linear(&mlp, d, &weight(Projection::Gate));
    let up = linear(&mlp, d, &weight(Projection::Up));
    let hidden = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    [normed, attention, mlp, hidden]
}
