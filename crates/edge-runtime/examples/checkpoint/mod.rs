//! Checkpoints of random weights: what `demo_model` and `synth_model` share.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use edge_kernels::util::SeededRng;
use edge_runtime::config::ModelConfig;
use edge_runtime::family::Fused;
use edge_runtime::family::names::{EMBEDDING, HEAD, NORM};
use edge_scheduler::{BlockVector, Projection};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::Value;

/// What `main` returns: an error becomes one line, without the backtrace that anyhow would add.
pub(crate) fn exit_code(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Element type of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Element {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Element {
    fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn store(self, value: f32, out: &mut [u8]) {
        match self {
            Self::Bf16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            Self::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::F32 => out.copy_from_slice(&value.to_le_bytes()),
        }
    }
}

/// What the numbers of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    /// Normal ones with this standard deviation.
    Normal(f32),
    /// All the same.
    Constant(f32),
}

/// A model whose weights are made up.
#[derive(Clone, Debug)]
pub(crate) struct Shape(ModelConfig);

impl Shape {
    /// From a `config.json`; `path` is for messages.
    pub(crate) fn interpret(config: &Value, path: &Path) -> Result<Self> {
        Ok(Self(ModelConfig::from_value(config, path)?))
    }

    /// Name, shape and contents of all tensors.
    fn tensors(&self) -> Vec<(String, Vec<usize>, Fill)> {
        let (config, shape) = (&self.0, self.0.shape());
        let (vocabulary, d) = (config.vocab_size, config.hidden_size);
        // Each block adds twice to the residual stream, which should not grow with the depth.
        let residual = STD / (2.0 * config.num_hidden_layers as f32).sqrt();
        // Norms that multiply by one.
        let norm = Fill::Constant(1.0 - config.family.norm_offset);
        let mut tensors = vec![
            (EMBEDDING.to_string(), vec![vocabulary, d], Fill::Normal(STD)),
            (NORM.to_string(), vec![d], norm),
        ];
        if !config.tie_word_embeddings {
            tensors.push((HEAD.to_string(), vec![vocabulary, d], Fill::Normal(STD)));
        }
        for layer in 0..config.num_hidden_layers {
            let vector = |(which, len): (BlockVector, u32)| {
                let fill = if which.is_norm() { norm } else { Fill::Normal(STD) };
                (config.vector_name(layer, which), vec![len as usize], fill)
            };
            let matrix = |fused: Fused| {
                let place = config.weight_place(layer, fused.parts[0]);
                let (_, cols) = shape.projection(fused.parts[0]);
                let adds = matches!(fused.parts[0], Projection::O | Projection::Down);
                let fill = Fill::Normal(if adds { residual } else { STD });
                (place.name, vec![place.whole, cols as usize], fill)
            };
            let in_mlp = |fused: &Fused| fused.parts[0] >= Projection::Gate;
            let (mlp, attention): (Vec<_>, Vec<_>) =
                config.family.layers().into_iter().partition(in_mlp);
            tensors.extend(shape.vectors().take(1).map(vector));
            tensors.extend(attention.into_iter().map(matrix));
            tensors.extend(shape.vectors().skip(1).map(vector));
            tensors.extend(mlp.into_iter().map(matrix));
        }
        tensors
    }

    /// Writes the checkpoint, one tensor in memory at a time, and returns its parameter count.
    /// The weights depend on the seed and the shape only, not on the number of threads.
    pub(crate) fn write(&self, path: &Path, element: Element, seed: u64) -> Result<u64> {
        let tensors = self.tensors();
        let views = tensors.into_iter().enumerate().map(|(index, (name, shape, fill))| {
            // A stream for each tensor, far from those of neighbouring seeds.
            let seed = seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (name, Random { shape, fill, element, seed })
        });
        let views: Vec<(String, Random)> = views.collect();
        let parameters = views.iter().map(|(_, view)| view.count() as u64).sum();
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        serialize_to_file(views, Some(metadata), path)
            .with_context(|| format!("cannot write {}: check space and rights", path.display()))?;
        Ok(parameters)
    }
}

/// Standard deviation of weights, as in the `initializer_range` of these models.
const STD: f32 = 0.02;

/// A tensor that is made when it is written.
struct Random {
    shape: Vec<usize>,
    fill: Fill,
    element: Element,
    seed: u64,
}

impl Random {
    fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Elements that share a random stream; even, because normal numbers come in pairs.
const RUN: usize = 1 << 16;

impl View for Random {
    fn dtype(&self) -> Dtype {
        self.element.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let size = self.element.bytes();
        let mut bytes = vec![0; self.data_len()];
        bytes.par_chunks_mut(size * RUN).enumerate().for_each(|(run, bytes)| {
            let mut rng = SeededRng::seed_from_u64(self.seed);
            rng.set_stream(run as u64);
            for pair in bytes.chunks_mut(2 * size) {
                let values = match self.fill {
                    Fill::Constant(value) => [value; 2],
                    Fill::Normal(std) => normal(&mut rng, std),
                };
                for (value, out) in values.into_iter().zip(pair.chunks_mut(size)) {
                    self.element.store(value, out);
                }
            }
        });
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.count() * self.element.bytes()
    }
}

/// Two normal numbers of mean 0 (Box and Muller, 1958).
fn normal(rng: &mut SeededRng, std: f32) -> [f32; 2] {
    // 1 - u is in (0, 1], whose logarithm is finite.
    let radius = std * (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    let (sin, cos) = (std::f32::consts::TAU * rng.random::<f32>()).sin_cos();
    [radius * cos, radius * sin]
}
