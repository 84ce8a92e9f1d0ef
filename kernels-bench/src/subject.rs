//! What is timed: every op's own bench cases, and the linear layers of the models that edge
//! devices adapt, at several numbers of tokens, in every format.

use crate::gpu_targets;
use edge_kernels::op::Op;
use edge_kernels::ops::matmul::{matmul_nn, matmul_nt};
use edge_kernels::{Call, Format, OPS, Packing};

/// A call that is timed.
#[derive(Clone)]
pub struct Subject {
    /// The op.
    pub op: &'static dyn Op,
    /// Its parameters and format.
    pub call: Call,
    /// The case's name without the format: the same for all formats of a shape.
    pub shape: String,
    /// Timed only where its format is asked for by name, or everything is.
    pub further: bool,
}

/// A model's linear layers.
struct Model {
    name: &'static str,
    hidden: u32,
    /// Width of the keys and of the values.
    kv: u32,
    intermediate: u32,
}

/// From the models' `config.json`: SmolLM2-135M, Qwen2.5-0.5B, TinyLlama-1.1B.
const MODELS: &[Model] = &[
    Model { name: "smollm2", hidden: 576, kv: 192, intermediate: 1536 },
    Model { name: "qwen2.5", hidden: 896, kv: 128, intermediate: 4864 },
    Model { name: "tinyllama", hidden: 2048, kv: 256, intermediate: 5632 },
];

/// Tokens of a product: one is generation, the others are chunks of a training step.
const TOKENS: &[u32] = &[1, 8, 64, 256, 512];

/// The formats of the layers' rows: all that are timed.
pub fn layer_formats() -> impl Iterator<Item = Format> {
    Format::TIMED.into_iter()
}

/// Whether a format of the layers' rows is timed by default: dense and symmetric. Of the sparse
/// ones, zero points and wider groups the ops' own cases have two shapes, and these are enough
/// where nobody asks for more.
fn by_default(format: Format) -> bool {
    let plain = |packing: Packing| {
        packing.group() == Some(32) && !packing.has_zero_point() && !packing.is_sparse()
    };
    format.packing().is_none_or(plain)
}

impl Model {
    /// Layers with their `[output, input]` channels. `o_proj` has the shape of `q_proj`, `v_proj`
    /// that of `k_proj`, `gate_proj` that of `up_proj`.
    fn layers(&self) -> [(&'static str, [u32; 2]); 4] {
        let Self { hidden, kv, intermediate, .. } = *self;
        [
            ("q_proj", [hidden, hidden]),
            ("k_proj", [kv, hidden]),
            ("up_proj", [intermediate, hidden]),
            ("down_proj", [hidden, intermediate]),
        ]
    }
}

impl Subject {
    /// `x [m, k] · wᵀ`, `w [n, k]` in `format`: forward.
    pub fn forward(name: &str, [m, n, k]: [u32; 3], format: Format) -> Self {
        let call = Call::with_format(&matmul_nt::Params::dense(m, n, k), format);
        let shape = format!("{name}_{m}x{n}x{k}");
        Self { op: &matmul_nt::MatmulNt, call, shape, further: false }
    }

    /// `dy [m, n] · w`, `w [n, k]` in `format`: the gradient of the input.
    pub fn backward(name: &str, [m, n, k]: [u32; 3], format: Format) -> Self {
        let call = Call::with_format(&matmul_nn::Params::dense(m, n, k), format);
        let shape = format!("{name}_{m}x{n}x{k}");
        Self { op: &matmul_nn::MatmulNn, call, shape, further: false }
    }

    /// The cases of all ops that are flagged `Case::bench`.
    pub fn own() -> Vec<Self> {
        let mut found = Vec::new();
        for op in OPS {
            for case in op.cases().into_iter().filter(|case| case.bench) {
                let suffix = format!("_{}", case.call.format.name());
                let shape = case.name.strip_suffix(&suffix).unwrap_or(&case.name).to_string();
                found.push(Self { op: *op, call: case.call, shape, further: false });
            }
        }
        found
    }

    /// The linear layers of the models, forward and backward, in the layers' formats.
    fn layers() -> Vec<Self> {
        let mut found = Vec::new();
        for make in [Self::forward, Self::backward] {
            for model in MODELS {
                for (layer, [n, k]) in model.layers() {
                    let name = format!("{}_{layer}", model.name);
                    for &m in TOKENS {
                        found.extend(layer_formats().map(|format| Self {
                            further: !by_default(format),
                            ..make(&name, [m, n, k], format)
                        }));
                    }
                }
            }
        }
        found
    }

    /// Everything there is to time; the formats of one op and shape are neighbours.
    pub fn all() -> Vec<Self> {
        let mut found = Self::own();
        for layer in Self::layers().into_iter().chain(gpu_targets::subjects()) {
            let same =
                |other: &Self| other.op.name() == layer.op.name() && other.call == layer.call;
            if !found.iter().any(same) {
                found.push(layer);
            }
        }
        let mut groups: Vec<(String, Vec<Self>)> = Vec::new();
        for subject in found {
            let group = subject.group();
            match groups.iter_mut().find(|(name, _)| *name == group) {
                Some((_, members)) => members.push(subject),
                None => groups.push((group, vec![subject])),
            }
        }
        groups.into_iter().flat_map(|(_, members)| members).collect()
    }

    /// Name of the weight format.
    pub fn format(&self) -> &'static str {
        self.call.format.name()
    }

    /// `op/shape`: what all formats of it share, and are timed together.
    pub fn group(&self) -> String {
        format!("{}/{}", self.op.name(), self.shape)
    }

    /// `op/format/shape`: the key of a row, and the name of the criterion bench.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.op.name(), self.format(), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_op_has_a_bench_case() {
        for op in OPS {
            let timed = op.cases().iter().filter(|case| case.bench).count();
            assert!(timed > 0, "{}: flag a model-sized case with `Case::bench`", op.name());
        }
    }

    #[test]
    fn names_are_unique_and_groups_contiguous() {
        let all = Subject::all();
        let names: HashSet<String> = all.iter().map(Subject::name).collect();
        assert_eq!(names.len(), all.len(), "two subjects share op, format and shape");
        let mut groups: Vec<String> = all.iter().map(Subject::group).collect();
        groups.dedup();
        let distinct: HashSet<&String> = groups.iter().collect();
        assert_eq!(groups.len(), distinct.len(), "a group is in two places");
        // Two directions, three models, four layers, five numbers of tokens.
        let layers = Subject::layers();
        assert_eq!(layers.len(), 2 * 3 * 4 * 5 * layer_formats().count());
        for layer in layers {
            assert!(all.iter().any(|one| one.op.name() == layer.op.name()
                && one.call == layer.call
                && one.shape == layer.shape));
        }
    }
}
