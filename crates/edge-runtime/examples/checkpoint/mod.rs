//! Checkpoints of random weights: what `demo_model` and `synth_model` share.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use edge_kernels::util::SeededRng;
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

/// The numbers of a `config.json` that shape its tensors.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    tied: bool,
}

impl Shape {
    /// From a Llama or Mistral `config.json`.
    pub(crate) fn interpret(config: &Value) -> Result<Self> {
        let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("missing");
        ensure!(
            matches!(kind, "llama" | "mistral"),
            "model_type is {kind}, and supported are llama and mistral: choose another config"
        );
        for key in ["attention_bias", "mlp_bias"] {
            ensure!(
                config.get(key).and_then(Value::as_bool) != Some(true),
                "{key} is true, and biases are not written here: set it to false"
            );
        }
        let hidden = count(config, "hidden_size")?;
        let heads = count(config, "num_attention_heads")?;
        let kv_heads = count_or(config, "num_key_value_heads", heads)?;
        ensure!(
            heads.is_multiple_of(kv_heads),
            "num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}: \
             correct one of them"
        );
        ensure!(
            config.get("head_dim").is_some_and(|v| !v.is_null()) || hidden.is_multiple_of(heads),
            "hidden_size {hidden} is no multiple of num_attention_heads {heads}: correct them or \
             state head_dim"
        );
        Ok(Self {
            hidden,
            intermediate: count(config, "intermediate_size")?,
            layers: count(config, "num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim: count_or(config, "head_dim", hidden / heads)?,
            vocabulary: count(config, "vocab_size")?,
            tied: match config.get("tie_word_embeddings") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(tied)) => *tied,
                Some(other) => bail!("tie_word_embeddings is {other}: write true or false"),
            },
        })
    }

    /// Name, shape and standard deviation of all tensors; a deviation of 0 stands for ones.
    fn tensors(&self) -> Vec<(String, Vec<usize>, f32)> {
        let (d, f) = (self.hidden, self.intermediate);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        // Each block adds twice to the residual stream, which should not grow with the depth.
        let residual = STD / (2.0 * self.layers as f32).sqrt();
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_string(), vec![self.vocabulary, d], STD),
            ("model.norm.weight".to_string(), vec![d], 0.0),
        ];
        if !self.tied {
            tensors.push(("lm_head.weight".to_string(), vec![self.vocabulary, d], STD));
        }
        for layer in 0..self.layers {
            let parts = [
                ("input_layernorm", vec![d], 0.0),
                ("self_attn.q_proj", vec![q, d], STD),
                ("self_attn.k_proj", vec![kv, d], STD),
                ("self_attn.v_proj", vec![kv, d], STD),
                ("self_attn.o_proj", vec![d, q], residual),
                ("post_attention_layernorm", vec![d], 0.0),
                ("mlp.gate_proj", vec![f, d], STD),
                ("mlp.up_proj", vec![f, d], STD),
                ("mlp.down_proj", vec![d, f], residual),
            ];
            tensors.extend(parts.map(|(part, shape, std)| {
                (format!("model.layers.{layer}.{part}.weight"), shape, std)
            }));
        }
        tensors
    }

    /// Writes the checkpoint, one tensor in memory at a time, and returns its parameter count.
    /// The weights depend on the seed and the shape only, not on the number of threads.
    pub(crate) fn write(&self, path: &Path, element: Element, seed: u64) -> Result<u64> {
        let tensors = self.tensors();
        let views = tensors.into_iter().enumerate().map(|(index, (name, shape, std))| {
            // A stream for each tensor, far from those of neighbouring seeds.
            let seed = seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (name, Random { shape, std, element, seed })
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

fn count(config: &Value, key: &str) -> Result<usize> {
    let value = config.get(key).with_context(|| format!("{key} is missing: add it"))?;
    value
        .as_u64()
        .filter(|n| (1..=1 << 24).contains(n))
        .map(|n| n as usize)
        .with_context(|| format!("{key} is {value}: write a number from 1 to {}", 1 << 24))
}

fn count_or(config: &Value, key: &str, default: usize) -> Result<usize> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(_) => count(config, key),
    }
}

/// A tensor that is made when it is written.
struct Random {
    shape: Vec<usize>,
    std: f32,
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
                let values = if self.std == 0.0 { [1.0; 2] } else { normal(&mut rng, self.std) };
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
