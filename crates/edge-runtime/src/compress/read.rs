//! Opens the weights of a compressed model folder, checked before anything is used.
//!
//! Opening checks the header's checksum, and every tensor's place against what policy and
//! `config.json` demand. The data of a section are checked by [`Checkpoint::verify`] when a model
//! loads it: just before it is read, while the system has it in its cache.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use edge_kernels::Format;
use edge_kernels::pack::PackedHost;
use edge_scheduler::Shard as Rows;

pub use super::header::About;
use super::layout::{Layout, scales_name, values_name};
use super::{header, policy_file, write};
use crate::checkpoint::{Checkpoint, Kind, Shard};
use crate::config::ModelConfig;

/// Bytes that are read at once to be checked.
const PIECE: usize = 1 << 20;

/// What is known of an open compressed checkpoint.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// The file.
    pub path: PathBuf,
    /// What it says of itself.
    pub about: About,
    /// What is where.
    pub layout: Layout,
    /// Bytes of the file.
    pub bytes: u64,
    checksums: Vec<u32>,
}

impl Compressed {
    /// CRC-32 of the tables and of each block, which are checked when they are loaded.
    pub fn checksums(&self) -> &[u32] {
        &self.checksums
    }
}

/// Whether a folder has a compressed model.
pub fn is_compressed(dir: &Path) -> bool {
    dir.join(write::FILE).exists()
}

impl Checkpoint {
    /// Opens the compressed weights in a model folder.
    ///
    /// # Errors
    /// The file is cut off, of another program or of a newer one, its header is damaged, or it
    /// contradicts itself, `config.json` or `policy.json` beside it.
    pub fn open_compressed(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let path = dir.join(write::FILE);
        let shown = path.display().to_string();
        for dense in ["model.safetensors", "model.safetensors.index.json"] {
            ensure!(
                !dir.join(dense).exists(),
                "{} has both {dense} and {}: remove one of them",
                dir.display(),
                write::FILE
            );
        }
        let shard = Shard::open(path.clone(), "copy or compress it again")?;
        let shape = config.shape();
        let text = shard.file.read(8..shard.data)?;
        let (about, checksums) = header::decode(&shown, &text, &shard.notes, &shape)?;
        let layout = Layout::new(config, &about.policy, [about.embedding, about.head]);
        check_tensors(&shown, &shard, &layout)?;
        let beside = dir.join(policy_file::FILE);
        if beside.exists() {
            let policy = policy_file::read(&beside, shape.num_blocks as usize)?;
            ensure!(
                policy == about.policy,
                "{} says otherwise than {}, which it cannot change: remove it, or compress the \
                 original model by it",
                beside.display(),
                write::FILE
            );
        }
        let bytes = shard.file.bytes();
        let mut checkpoint = Self::from_shard(shard);
        checkpoint.compressed = Some(Compressed { path, about, layout, bytes, checksums });
        Ok(checkpoint)
    }

    /// What is known of it, where it is compressed.
    pub fn compressed(&self) -> Option<&Compressed> {
        self.compressed.as_ref()
    }

    /// Whether a matrix is stored as words of its format, in shards.
    pub fn is_packed(&self, name: &str) -> bool {
        self.compressed.is_some() && self.contains(&values_name(name, 0))
    }

    /// Bytes of a stored tensor.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn stored_bytes(&self, name: &str) -> Result<u64> {
        let (start, end) = self.stored_place(name)?;
        Ok((end - start) as u64)
    }

    /// Reads the words of a stored tensor.
    ///
    /// # Errors
    /// There is none of this name, or the file was changed since it was opened.
    ///
    /// # Panics
    /// When `out` is too short.
    pub fn stored(&self, name: &str, out: &mut [u32]) -> Result<()> {
        let (start, end) = self.stored_place(name)?;
        let shard = &self.shards[0];
        shard.file.read_words(shard.data + start as u64..shard.data + end as u64, out)
    }

    /// A part of a matrix `[.., cols]` that is stored as words of its format.
    ///
    /// # Errors
    /// There is none of this name, it is of another size, or the file was changed.
    pub fn stored_part(
        &self,
        name: &str,
        index: usize,
        part: Rows,
        cols: u32,
        format: Format,
    ) -> Result<PackedHost> {
        let words = |name: String, words: u64| -> Result<Vec<u32>> {
            let stored = self.stored_bytes(&name)?;
            ensure!(
                stored == 4 * words,
                "tensor {name} has {stored} bytes instead of {}",
                4 * words
            );
            let mut found = vec![0; words as usize];
            self.stored(&name, &mut found)?;
            Ok(found)
        };
        let rows = part.rows;
        let values = words(values_name(name, index), format.value_words(rows, cols))?;
        let scales = match format.is_packed() {
            true => words(scales_name(name, index), format.scale_words(rows, cols))?,
            false => Vec::new(),
        };
        Ok(PackedHost { format, rows, cols, values, scales })
    }

    fn stored_place(&self, name: &str) -> Result<(usize, usize)> {
        let shard = &self.shards[0];
        let info = shard.tensors.get(name).with_context(|| {
            format!("{} has no tensor {name}: compress the model again", shard.path().display())
        })?;
        Ok(info.data_offsets)
    }

    /// Checks the data of a section of a compressed checkpoint: 0 the tables, then the blocks. Of
    /// any other checkpoint nothing is known.
    ///
    /// # Errors
    /// They are damaged, or cannot be read.
    pub fn verify(&self, section: usize) -> Result<()> {
        let Some(compressed) = &self.compressed else { return Ok(()) };
        let (shard, place) = (&self.shards[0], &compressed.layout.sections[section]);
        let mut sum = crc32fast::Hasher::new();
        for start in (place.start..place.end).step_by(PIECE) {
            let end = place.end.min(start + PIECE as u64);
            sum.update(&shard.read((start as usize, end as usize))?);
        }
        ensure!(
            sum.finalize() == compressed.checksums[section],
            "{} is damaged in {} (its checksum differs): copy or compress it again",
            compressed.path.display(),
            place.name
        );
        Ok(())
    }
}

/// The tensors of the file must be those of the layout.
fn check_tensors(shown: &str, shard: &Shard, layout: &Layout) -> Result<()> {
    for tensor in &layout.tensors {
        let name = &tensor.name;
        let info = shard.tensors.get(name).with_context(|| {
            format!("{shown} lacks tensor {name}, which its policy demands: compress it again")
        })?;
        ensure!(
            info.dtype == Kind::Safetensors(tensor.dtype) && info.shape == tensor.shape,
            "tensor {name} in {shown} is {} {:?} instead of {:?} {:?}, which contradicts its \
             policy: compress it again",
            info.dtype,
            info.shape,
            tensor.dtype,
            tensor.shape
        );
        ensure!(
            info.data_offsets == (tensor.start as usize, tensor.end as usize),
            "tensor {name} in {shown} is not at its place: compress it again"
        );
    }
    if shard.tensors.len() > layout.tensors.len() {
        let known = |name: &str| layout.tensors.iter().any(|tensor| tensor.name == name);
        let further = shard.tensors.keys().find(|name| !known(name));
        bail!("{shown} has tensor {further:?}, which its policy has not: compress it again");
    }
    Ok(())
}
