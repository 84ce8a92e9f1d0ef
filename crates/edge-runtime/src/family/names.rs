//! What a checkpoint calls its tensors, and which rows of them a weight is.

use std::ops::Range;

use anyhow::{Result, ensure};
use edge_scheduler::{BlockVector, Projection};

use crate::checkpoint::{Checkpoint, TensorView};
use crate::config::ModelConfig;

/// Name of the embedding table in a checkpoint.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of an untied head in a checkpoint.
pub const HEAD: &str = "lm_head.weight";
/// Name of the final norm in a checkpoint.
pub const NORM: &str = "model.norm.weight";

/// Where a projection's weight is in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The tensor.
    pub name: String,
    /// The weight's rows there.
    pub rows: Range<usize>,
    /// Rows of the whole tensor.
    pub whole: usize,
}

/// Name of a projection's weight where it has a tensor of its own; in compressed models it always
/// has.
pub fn weight_name(layer: usize, projection: Projection) -> String {
    format!("model.layers.{layer}.{}.weight", projection.path())
}

impl ModelConfig {
    /// Where a projection's weight is.
    pub fn weight_place(&self, layer: usize, projection: Projection) -> Place {
        let fused = self.family.layer(projection);
        let rows = self.part_rows(projection);
        let whole = fused.parts.iter().map(|part| self.shape().projection(*part).0 as usize).sum();
        Place { name: format!("model.layers.{layer}.{}.weight", fused.path), rows, whole }
    }

    /// The rows of a projection in the layer that it is a part of.
    pub fn part_rows(&self, projection: Projection) -> Range<usize> {
        let shape = self.shape();
        let rows = |part: &Projection| shape.projection(*part).0 as usize;
        let parts = self.family.layer(projection).parts.iter();
        let first = parts.take_while(|part| **part != projection).map(rows).sum();
        first..first + rows(&projection)
    }

    /// Name of a block's norm or bias.
    pub fn vector_name(&self, layer: usize, vector: BlockVector) -> String {
        let path = match vector {
            BlockVector::InputNorm => "input_layernorm.weight",
            BlockVector::AttentionOutNorm => "post_attention_layernorm.weight",
            BlockVector::MlpNorm => {
                return format!("model.layers.{layer}.{}.weight", self.family.mlp_norm);
            }
            BlockVector::MlpOutNorm => "post_feedforward_layernorm.weight",
            BlockVector::QNorm => "self_attn.q_norm.weight",
            BlockVector::KNorm => "self_attn.k_norm.weight",
            BlockVector::QBias => "self_attn.q_proj.bias",
            BlockVector::KBias => "self_attn.k_proj.bias",
            BlockVector::VBias => "self_attn.v_proj.bias",
        };
        format!("model.layers.{layer}.{path}")
    }

    /// What is to be added to a stored vector: norms of some families are stored less 1.
    fn vector_offset(&self, vector: BlockVector) -> f32 {
        if vector.is_norm() { self.family.norm_offset } else { 0.0 }
    }

    /// A block's norm or bias as a checkpoint holds it, from the values that are multiplied by or
    /// added.
    pub fn stored_vector(&self, vector: BlockVector, values: &[f32]) -> Vec<f32> {
        let offset = self.vector_offset(vector);
        values.iter().map(|value| value - offset).collect()
    }

    /// The final norm as a checkpoint holds it, from the values that are multiplied by.
    pub fn stored_norm(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|value| value - self.family.norm_offset).collect()
    }

    /// Checks that adapters are on whole layers of the checkpoint.
    ///
    /// # Errors
    /// Only some of the projections that are one layer are among `targets`.
    pub fn check_targets(&self, targets: &[Projection]) -> Result<()> {
        for layer in self.family.layers() {
            let lacks = layer.parts.iter().find(|part| !targets.contains(part));
            let has = layer.parts.iter().find(|part| targets.contains(part));
            if let (Some(lacks), Some(has)) = (lacks, has) {
                let (lacks, has, name) = (lacks.name(), has.name(), layer.name());
                anyhow::bail!(
                    "--targets has {has} without {lacks}, which are one layer, {name}, in {} \
                     models: give {name}, or neither",
                    self.family.name
                );
            }
        }
        Ok(())
    }
}

impl Checkpoint {
    /// The weight of a projection, `[n, k]`.
    ///
    /// # Errors
    /// It is missing or has another shape than `config.json` says.
    pub fn weight(
        &self,
        config: &ModelConfig,
        layer: usize,
        projection: Projection,
    ) -> Result<TensorView<'_>> {
        let place = config.weight_place(layer, projection);
        let (_, k) = config.shape().projection(projection);
        Ok(self.expect(&place.name, &[place.whole, k as usize])?.take_rows(place.rows))
    }

    /// A block's norm or bias as it is computed with.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn vector(
        &self,
        config: &ModelConfig,
        layer: usize,
        vector: BlockVector,
    ) -> Result<Vec<f32>> {
        let len = config.shape().vectors().find(|(other, _)| *other == vector);
        let name = config.vector_name(layer, vector);
        ensure!(len.is_some(), "{name} is no tensor of {} models", config.family.name);
        let len = len.map_or(0, |(_, len)| len as usize);
        Ok(plus(self.expect(&name, &[len])?.to_f32()?, config.vector_offset(vector)))
    }

    /// The final norm as it is computed with.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn final_norm(&self, config: &ModelConfig) -> Result<Vec<f32>> {
        let stored = self.expect(NORM, &[config.hidden_size])?.to_f32()?;
        Ok(plus(stored, config.family.norm_offset))
    }
}

fn plus(mut values: Vec<f32>, offset: f32) -> Vec<f32> {
    values.iter_mut().for_each(|value| *value += offset);
    values
}
