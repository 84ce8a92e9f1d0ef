//! A model and its adapter as one checkpoint: `W + (alpha / r) · B·A` (LoRA, Hu et al. 2021,
//! section 4.1), and the last exit's norm in place of the final one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use half::{bf16, f16};
use safetensors::View;
use safetensors::tensor::Dtype as Kind;

use crate::adapter::AdapterConfig;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::exits::Exits;
use crate::family::names::NORM;
use crate::run_dir::{write_atomically, write_tensors_atomically};
use crate::session::{Source, Tuned};
use crate::tune::save::COMPANIONS;

/// File name of the weights.
const WEIGHTS: &str = "model.safetensors";

/// Writes the model at its last exit, merged, into `out`, a model folder for any program: tensor by
/// tensor, so that one weight is in memory at a time; the weights last, atomically. Of a run with
/// isolated windows it takes the top window's adapters, which the last exit alone has.
///
/// # Errors
/// The base is compressed, or a file cannot be written.
pub fn merge(
    source: &Source,
    tuned: &Tuned,
    out: &Path,
    dtype: Option<Dtype>,
    progress: &dyn Fn(),
) -> Result<()> {
    ensure!(
        source.checkpoint.compressed().is_none(),
        "{} is compressed, and an adapter cannot be merged into packed weights: give --model the \
         original checkpoint",
        source.dir.display()
    );
    let exits = tuned.exits.as_ref();
    // The last exit of isolated windows stands on the base and the top window's adapters.
    let first_layer = exits.map_or(0, Exits::first_adapted);
    fs::create_dir_all(out)
        .with_context(|| format!("cannot make {}: give another --out", out.display()))?;
    for name in COMPANIONS {
        let path = source.dir.join(name);
        if path.is_file() {
            let bytes =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            write_atomically(&out.join(name), &bytes)?;
        }
    }
    let norm = exits.and_then(|exits| exits.gammas.last());
    let adapter = tuned.adapter.as_ref();
    let mut changes: BTreeMap<String, Change<'_>> = BTreeMap::new();
    if let Some((config, tensors)) = adapter {
        for ((layer, projection), (a, b)) in tensors {
            if *layer < first_layer {
                continue;
            }
            let place = source.config.weight_place(*layer, *projection);
            let change = changes.entry(place.name);
            let change = change.or_insert_with(|| Change::Lora { config, parts: Vec::new() });
            if let Change::Lora { parts, .. } = change {
                parts.push((place.rows, a, b));
            }
        }
    }
    if let Some(norm) = norm {
        changes.insert(NORM.into(), Change::Values(source.config.stored_norm(norm)));
    }
    let names: Vec<&str> = source.checkpoint.names().collect();
    let mut views = Vec::with_capacity(names.len());
    for &name in &names {
        let tensor = source.checkpoint.tensor(name)?;
        views.push((
            name,
            Merged {
                checkpoint: &source.checkpoint,
                name,
                shape: tensor.shape.to_vec(),
                dtype: dtype.unwrap_or(tensor.dtype),
                change: changes.get(name),
                progress,
            },
        ));
    }
    write_tensors_atomically(&out.join(WEIGHTS), views, || Ok(()))
}

/// What becomes of a tensor.
enum Change<'a> {
    /// Products `B·A` for some rows each.
    Lora {
        config: &'a AdapterConfig,
        parts: Vec<(Range<usize>, &'a [f32], &'a [f32])>,
    },
    Values(Vec<f32>),
}

/// A tensor that is computed when it is written.
struct Merged<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    shape: Vec<usize>,
    dtype: Dtype,
    change: Option<&'a Change<'a>>,
    progress: &'a dyn Fn(),
}

impl Merged<'_> {
    fn bytes(&self) -> Cow<'_, [u8]> {
        (self.progress)();
        let Ok(tensor) = self.checkpoint.tensor(self.name) else {
            unreachable!("the tensor was there when the file was laid out");
        };
        if self.change.is_none() && tensor.dtype == self.dtype {
            return Cow::Borrowed(tensor.bytes);
        }
        let mut values = tensor.to_f32();
        match self.change {
            None => {}
            Some(Change::Values(new)) => values.copy_from_slice(new),
            Some(Change::Lora { config, parts }) => {
                let cols = tensor.cols();
                for (rows, a, b) in parts {
                    let values = &mut values[rows.start * cols..rows.end * cols];
                    add_product(values, (a, b), config.r, config.scale());
                }
            }
        }
        Cow::Owned(encode(&values, self.dtype))
    }
}

impl View for Merged<'_> {
    fn dtype(&self) -> Kind {
        match self.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// `W += scale · B·A`; W \[n, k\], A \[r, k\], B \[n, r\].
fn add_product(w: &mut [f32], (a, b): (&[f32], &[f32]), rank: usize, scale: f32) {
    let k = a.len() / rank;
    for (w, b) in w.chunks_exact_mut(k).zip(b.chunks_exact(rank)) {
        for (a, b) in a.chunks_exact(k).zip(b) {
            w.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
        }
    }
}

/// Little-endian bytes in a number format.
pub(crate) fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_added_scaled() {
        let mut w = vec![1.0; 6];
        // A [2, 3], B [2, 2].
        let (a, b) = ([1.0, 2.0, 3.0, 0.0, 1.0, 0.0], [1.0, 2.0, 0.0, -1.0]);
        add_product(&mut w, (&a, &b), 2, 0.5);
        assert_eq!(w, [1.5, 3.0, 2.5, 1.0, 0.5, 1.0]);
        assert_eq!(encode(&[1.0], Dtype::BF16), [0x80, 0x3F]);
        assert_eq!(encode(&[1.0], Dtype::F16), [0x00, 0x3C]);
    }
}
