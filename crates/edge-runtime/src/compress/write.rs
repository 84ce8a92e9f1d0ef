//! Writes a compressed model folder, one block after the other.

use std::borrow::{Borrow, Cow};
use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use edge_kernels::Format;
use edge_kernels::pack::{PackedHost, pack};
use edge_scheduler::{ModelShape, Projection, Shard};

use super::header::{self, About};
use super::layout::{Layout, TABLE_FORMATS, scales_name, shards_of, table_shards_of, values_name};
use super::policy_file;
use crate::checkpoint::Checkpoint;
use crate::exits::HeadTerm;
use crate::family::names::{EMBEDDING, HEAD, NORM, weight_name};
use crate::merge::untied;
use crate::model::load::dense_format;
use crate::run_dir::{RunDir, write_atomically};
use crate::session::Source;

/// Name of the weights in a compressed model folder.
pub const FILE: &str = "compressed.safetensors";

/// Rows of a table that are converted at once.
const TABLE_ROWS: usize = 1024;

/// Words that are turned to bytes at once.
const WORDS: usize = 1 << 14;

/// What a [`Writer`] leaves behind if it does not finish: nothing.
struct Leftovers {
    dir: PathBuf,
    /// Whether the folder was not there before.
    made: bool,
    files: Vec<PathBuf>,
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        // Nothing more can be done about what cannot be removed.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        if self.made {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// What differs from the source outside the blocks.
#[derive(Default)]
pub struct Changes<'a> {
    /// In place of the source's final norm, as a checkpoint has it.
    pub norm: Option<Vec<f32>>,
    /// What is added to the head, which is then no longer tied to the embedding.
    pub head: Option<HeadTerm<'a>>,
}

/// A compressed model folder that is being written.
pub struct Writer<'a> {
    source: &'a Source,
    about: About,
    changes: Changes<'a>,
    shape: ModelShape,
    layout: Layout,
    leftovers: Leftovers,
    temporary: PathBuf,
    file: BufWriter<File>,
    /// Bytes of data written.
    position: u64,
    /// Tensors written.
    tensors: usize,
    /// Of the section that is being written.
    checksum: crc32fast::Hasher,
    /// Of the sections before.
    checksums: Vec<u32>,
}

impl<'a> Writer<'a> {
    /// Creates the folder `out`, and in it, under a temporary name, a file with the tables. The
    /// blocks of `about.policy` are then given to [`Writer::block`] in order.
    ///
    /// # Errors
    /// `out` exists and is not empty, or cannot be written; the source is compressed itself, lacks
    /// a tensor, or has another number of blocks; a table's format is none of [`TABLE_FORMATS`].
    pub fn create(out: &Path, source: &'a Source, about: About) -> Result<Self> {
        ensure!(
            source.checkpoint.compressed().is_none(),
            "{} is compressed already: give --model the original checkpoint",
            source.dir.display()
        );
        Self::create_again(out, source, about, Changes::default())
    }

    /// The same of a source that may be compressed itself, and with another final norm and head.
    ///
    /// # Errors
    /// As [`Writer::create`]; the source is compressed with tables in other formats.
    pub fn create_again(
        out: &Path,
        source: &'a Source,
        mut about: About,
        changes: Changes<'a>,
    ) -> Result<Self> {
        let mut config = source.config.clone();
        if changes.head.is_some() && config.tie_word_embeddings {
            config.tie_word_embeddings = false;
            about.head = about.embedding;
        }
        let shape = config.shape();
        let given = about.policy.blocks.len();
        ensure!(
            given == shape.num_blocks as usize,
            "the policy has {given} blocks and the model {}: use a policy of this model",
            shape.num_blocks
        );
        for format in [about.embedding, about.head] {
            ensure!(
                TABLE_FORMATS.contains(&format),
                "a table cannot be stored in {}: use f16, bf16 or q8",
                format.name()
            );
        }
        let own = source.checkpoint.compressed().map(|own| [own.about.embedding, own.about.head]);
        let tied = source.config.tie_word_embeddings;
        ensure!(
            own.is_none_or(|own| own[0] == about.embedding && (tied || own[1] == about.head)),
            "{} is compressed already, with tables in other formats: give --model the original \
             checkpoint",
            source.dir.display()
        );
        RunDir::check(Some(out))?;
        let layout = Layout::new(&config, &about.policy, [about.embedding, about.head]);
        let zeros = vec![0; layout.sections.len()];
        let header = header::encode(&about, &shape, &layout, &zeros)?;
        let mut leftovers = Leftovers { dir: out.to_owned(), made: !out.exists(), files: vec![] };
        fs::create_dir_all(out)
            .with_context(|| format!("cannot create {}: give another path", out.display()))?;
        let temporary = out.join(format!("{FILE}.tmp"));
        leftovers.files.push(temporary.clone());
        let file = File::create(&temporary).map_err(|error| failed(&temporary, &error))?;
        let mut writer = Self {
            source,
            about,
            changes,
            shape,
            layout,
            leftovers,
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            position: 0,
            tensors: 0,
            checksum: crc32fast::Hasher::new(),
            checksums: Vec::new(),
        };
        writer.file.write_all(&header).map_err(|error| failed(&writer.temporary, &error))?;
        writer.tables()?;
        Ok(writer)
    }

    /// The number of the next block.
    pub fn next_block(&self) -> usize {
        self.checksums.len() - 1
    }

    /// Writes the next block: its norms and biases, as the source has them, and its projections, by
    /// [`Projection::index`], in the formats of the policy.
    ///
    /// # Errors
    /// The disk is full, or the source lacks a norm.
    ///
    /// # Panics
    /// When there is no further block, or a matrix has another shape or format than the policy
    /// says.
    pub fn block<M: Borrow<PackedHost>>(&mut self, matrices: &[M]) -> Result<()> {
        assert_eq!(matrices.len(), Projection::ALL.len(), "a matrix for each projection");
        self.block_in_parts(|projection, (_, part)| {
            let matrix: &PackedHost = matrices[projection.index()].borrow();
            let whole = part.row0 == 0 && part.rows == matrix.rows;
            Ok(match whole {
                true => Cow::Borrowed(matrix),
                false => Cow::Owned(matrix.take_rows(part.row0..part.row0 + part.rows)),
            })
        })
    }

    /// The same with the parts of each projection that the file has, in order, by number and rows.
    ///
    /// # Errors
    /// As [`Writer::block`], and those of `part`.
    ///
    /// # Panics
    /// As [`Writer::block`].
    pub fn block_in_parts<'m>(
        &mut self,
        mut part: impl FnMut(Projection, (usize, Shard)) -> Result<Cow<'m, PackedHost>>,
    ) -> Result<()> {
        let block = self.next_block();
        assert!(block < self.about.policy.blocks.len(), "block {block} of the policy");
        let source = self.source;
        for (vector, len) in self.shape.vectors() {
            self.vector(&source.config.vector_name(block, vector), len)?;
        }
        for projection in Projection::ALL {
            let (n, k) = self.shape.projection(projection);
            let format = self.about.policy.blocks[block].get(projection);
            let name = weight_name(block, projection);
            for (index, shard) in shards_of(n, k, format).into_iter().enumerate() {
                let packed = part(projection, (index, shard))?;
                let got = (packed.rows, packed.cols, packed.format);
                assert_eq!(got, (shard.rows, k, format), "shape and format of {name}");
                self.packed(&name, index, &packed)?;
            }
        }
        self.close()
    }

    /// Completes the folder; returns the size of the weights' file in bytes.
    ///
    /// # Errors
    /// A file cannot be written or copied.
    ///
    /// # Panics
    /// When blocks are missing.
    pub fn finish(mut self) -> Result<u64> {
        let (written, wanted) = (self.checksums.len(), self.layout.sections.len());
        assert_eq!(written, wanted, "sections of the file");
        let header = header::encode(&self.about, &self.shape, &self.layout, &self.checksums)?;
        self.rewrite(&header).map_err(|error| failed(&self.temporary, &error))?;
        let dir = self.leftovers.dir.clone();
        let policy = dir.join(policy_file::FILE);
        self.leftovers.files.push(policy.clone());
        policy_file::write(&policy, &self.about.policy)?;
        for (name, mut bytes) in self.source.companions()? {
            if name == "config.json" && self.unties() {
                bytes = untied(&bytes)?;
            }
            let to = dir.join(name);
            self.leftovers.files.push(to.clone());
            write_atomically(&to, &bytes)?;
        }
        // The folder counts as a compressed model from here on, when all else is in place.
        let place = dir.join(FILE);
        fs::rename(&self.temporary, &place).map_err(|error| failed(&place, &error))?;
        self.leftovers.files.clear();
        self.leftovers.made = false;
        #[cfg(unix)]
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(|error| failed(&place, &error))?;
        Ok(header.len() as u64 + self.position)
    }

    fn rewrite(&mut self, header: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    fn tables(&mut self) -> Result<()> {
        match self.changes.norm.take() {
            Some(norm) => {
                self.begin(NORM);
                self.words(bytemuck::cast_slice(&norm))?;
            }
            None => self.vector(NORM, self.shape.hidden_size)?,
        }
        self.table(EMBEDDING, self.about.embedding)?;
        match self.changes.head {
            Some(term) => self.changed_head(term)?,
            None if !self.shape.tied_head => self.table(HEAD, self.about.head)?,
            None => {}
        }
        self.close()
    }

    /// Whether the head was tied to the embedding and differs from it now.
    fn unties(&self) -> bool {
        self.source.config.tie_word_embeddings && !self.shape.tied_head
    }

    /// The source's head, or the embedding that it was tied to, with what is added.
    fn changed_head(&mut self, term: HeadTerm<'_>) -> Result<()> {
        let checkpoint = &self.source.checkpoint;
        let from = if self.unties() { EMBEDDING } else { HEAD };
        let (format, cols) = (self.about.head, self.shape.hidden_size);
        if !format.is_packed() {
            self.begin(HEAD);
        }
        for (index, part) in table_shards_of(&self.shape, format).into_iter().enumerate() {
            let rows = part.row0 as usize..(part.row0 + part.rows) as usize;
            let mut values = match checkpoint.is_packed(from) {
                true => checkpoint.stored_part(from, index, part, cols, format)?.unpack(),
                false => checkpoint.tensor(from)?.rows_f32(rows.clone())?,
            };
            term.add(rows, &mut values);
            let packed = pack(format, part.rows, cols, &values);
            match format.is_packed() {
                true => self.packed(HEAD, index, &packed)?,
                false => self.dense_rows(&packed)?,
            }
        }
        Ok(())
    }

    /// Rows of 16-bit numbers; those of an odd number of columns end in half a word, which the file
    /// has not.
    fn dense_rows(&mut self, rows: &PackedHost) -> Result<()> {
        let cols = rows.cols as usize;
        for row in rows.values.chunks(cols.div_ceil(2)) {
            let bytes: Vec<u8> = row.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.bytes(&bytes[..2 * cols])?;
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, len: u32) -> Result<()> {
        let checkpoint: &Checkpoint = &self.source.checkpoint;
        let values = checkpoint.expect(name, &[len as usize])?.to_f32()?;
        self.begin(name);
        self.words(bytemuck::cast_slice(&values))
    }

    fn table(&mut self, name: &str, format: Format) -> Result<()> {
        if self.source.checkpoint.is_packed(name) {
            for (index, part) in table_shards_of(&self.shape, format).into_iter().enumerate() {
                let cols = self.shape.hidden_size;
                let packed = self.source.checkpoint.stored_part(name, index, part, cols, format)?;
                self.packed(name, index, &packed)?;
            }
            return Ok(());
        }
        let (rows, cols) = (self.shape.vocab_size as usize, self.shape.hidden_size as usize);
        let tensor = self.source.checkpoint.expect(name, &[rows, cols])?;
        if format.is_packed() {
            for (index, part) in table_shards_of(&self.shape, format).into_iter().enumerate() {
                let first = part.row0 as usize;
                let values = tensor.rows_f32(first..first + part.rows as usize)?;
                let packed = pack(format, part.rows, cols as u32, &values);
                self.packed(name, index, &packed)?;
            }
            return Ok(());
        }
        self.begin(name);
        for first in (0..rows).step_by(TABLE_ROWS) {
            let range = first..rows.min(first + TABLE_ROWS);
            if tensor.is_plain() && dense_format(tensor.dtype) == format {
                self.bytes(&tensor.bytes(range)?)?;
                continue;
            }
            let count = range.len() as u32;
            let packed = pack(format, count, cols as u32, &tensor.rows_f32(range)?);
            self.dense_rows(&packed)?;
        }
        Ok(())
    }

    fn packed(&mut self, name: &str, shard: usize, matrix: &PackedHost) -> Result<()> {
        self.begin(&values_name(name, shard));
        self.words(&matrix.values)?;
        if matrix.format.is_packed() {
            self.begin(&scales_name(name, shard));
            self.words(&matrix.scales)?;
        }
        Ok(())
    }

    /// The tensor that comes next must be this one, here.
    fn begin(&mut self, name: &str) {
        let next = &self.layout.tensors[self.tensors];
        assert_eq!((next.name.as_str(), next.start), (name, self.position), "the next tensor");
        self.tensors += 1;
    }

    fn words(&mut self, words: &[u32]) -> Result<()> {
        for part in words.chunks(WORDS) {
            let bytes: Vec<u8> = part.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.bytes(&bytes)?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failed(&self.temporary, &error))?;
        self.checksum.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Ends a section: padding and checksum.
    fn close(&mut self) -> Result<()> {
        let end = self.layout.sections[self.checksums.len()].end;
        if self.position < end {
            self.begin(&format!("padding.{}", self.checksums.len()));
            self.bytes(&vec![0; (end - self.position) as usize])?;
        }
        assert_eq!(self.position, end, "the end of a section");
        let checksum = std::mem::take(&mut self.checksum);
        self.checksums.push(checksum.finalize());
        Ok(())
    }
}

fn failed(path: &Path, error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot write {} ({error}): check free space and permissions", path.display())
}
