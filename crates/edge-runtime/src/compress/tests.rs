//! Compressed folders of the bundled model: written, opened, damaged.

use std::path::{Path, PathBuf};

use edge_kernels::pack::{PackedHost, pack};
use edge_kernels::{Format, Packing, Sparsity};
use edge_scheduler::policy::block_bytes;
use edge_scheduler::{BlockPolicy, ModelShape, Policy, Projection};
use safetensors::SafeTensors;
use serde_json::json;
use tempfile::tempdir;

use super::header::{self, About};
use super::layout::{ALIGN, Layout};
use super::write::{FILE, Writer};
use super::{policy_file, read};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::config::ModelConfig;
use crate::family::names::weight_name;
use crate::session::Source;
use crate::testing::message;

fn source() -> Source {
    Source::open(&demo()).unwrap()
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/model")
}

/// Blocks of several formats, one with a projection of its own.
fn policy() -> Policy {
    let grouped = Packing::new(4).group_size(64).zero_point().sparsity(Sparsity::RowGrouped);
    let formats =
        [Format::Q4, Format::two_four(3), grouped.format(), Format::Bf16, Format::Q2, Format::Q3];
    let mut blocks: Vec<_> = formats.map(BlockPolicy::uniform).into();
    blocks[0].overrides[Projection::Down.index()] = Some(Format::row_grouped(16));
    Policy { name: "own".into(), blocks }
}

fn about(embedding: Format) -> About {
    About {
        policy: policy(),
        embedding,
        head: embedding,
        calibration_hash: "c\"0".into(),
        source_hash: "50".into(),
        program_version: "1.2.3".into(),
    }
}

fn matrices(source: &Source, policy: &Policy, block: usize) -> Vec<PackedHost> {
    let packed = |projection| {
        let (n, k) = source.config.shape().projection(projection);
        let tensor = source.checkpoint.tensor(&weight_name(block, projection)).unwrap();
        pack(policy.blocks[block].get(projection), n, k, &tensor.to_f32().unwrap())
    };
    Projection::ALL.into_iter().map(packed).collect()
}

fn compress(source: &Source, about: About, out: &Path) -> u64 {
    let policy = about.policy.clone();
    let mut writer = Writer::create(out, source, about).unwrap();
    for block in 0..policy.blocks.len() {
        assert_eq!(writer.next_block(), block);
        writer.block(&matrices(source, &policy, block)).unwrap();
    }
    writer.finish().unwrap()
}

fn open(dir: &Path) -> anyhow::Result<Checkpoint> {
    Checkpoint::open_compressed(dir, &ModelConfig::load(&demo())?)
}

/// Opens and checks all data.
fn check(dir: &Path) -> anyhow::Result<()> {
    let checkpoint = open(dir)?;
    (0..7).try_for_each(|section| checkpoint.verify(section))
}

#[test]
fn a_folder_holds_what_was_written() {
    let (source, dir) = (source(), tempdir().unwrap());
    for (index, table) in [Format::Bf16, Format::Q8].into_iter().enumerate() {
        let out = dir.path().join(index.to_string());
        let bytes = compress(&source, about(table), &out);
        let file = std::fs::read(out.join(FILE)).unwrap();
        assert_eq!(bytes, file.len() as u64);
        check(&out).unwrap();
        let checkpoint = open(&out).unwrap();
        let compressed = checkpoint.compressed().unwrap();
        assert_eq!((&compressed.about, compressed.bytes), (&about(table), bytes));
        assert_eq!(policy_file::read(&out.join("policy.json"), 6).unwrap(), policy());
        // Any reader of safetensors takes it, and finds the words of each matrix.
        let tensors = SafeTensors::deserialize(&file).unwrap();
        for block in 0..6 {
            let packed = matrices(&source, &policy(), block);
            for (projection, matrix) in Projection::ALL.into_iter().zip(packed) {
                let name = weight_name(block, projection);
                let words = |part: &str| {
                    let tensor = tensors.tensor(&format!("{name}.{part}.0")).unwrap();
                    bytemuck::pod_collect_to_vec::<u8, u32>(tensor.data())
                };
                assert_eq!(words("values"), matrix.values);
                assert!(checkpoint.is_packed(&name));
                if matrix.format.is_packed() {
                    assert_eq!(words("scales"), matrix.scales);
                }
            }
        }
        let norm = checkpoint.expect("model.norm.weight", &[128]).unwrap();
        let own = source.checkpoint.expect("model.norm.weight", &[128]).unwrap();
        assert_eq!(norm.to_f32().unwrap(), own.to_f32().unwrap());
        if table == Format::Bf16 {
            let name = "model.embed_tokens.weight";
            let (ours, own) = (checkpoint.tensor(name).unwrap(), source.checkpoint.tensor(name));
            let bytes = |view: TensorView<'_>| view.bytes(0..view.rows()).unwrap();
            assert_eq!(bytes(ours), bytes(own.unwrap()));
        }
        assert!(out.join("tokenizer.json").exists() && out.join("config.json").exists());
        // Once more, elsewhere: the same bytes.
        let again = dir.path().join(format!("{index}-again"));
        compress(&source, about(table), &again);
        assert!(std::fs::read(again.join(FILE)).unwrap() == file);
    }
}

#[test]
fn sizes_equal_the_arithmetic() {
    // Those of Llama 2 7B and 13B: some matrices are in two parts.
    for (hidden_size, intermediate_size, num_heads) in [(4096_u32, 11008, 32), (5120, 13824, 40)] {
        let keys = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
            "hidden_size": hidden_size, "intermediate_size": intermediate_size,
            "num_hidden_layers": 6, "num_attention_heads": num_heads
        });
        let config = ModelConfig::from_value(&keys, "config.json".as_ref()).unwrap();
        let (shape, policy) = (config.shape(), policy());
        let layout = Layout::new(&config, &policy, [Format::F16, Format::Q8]);
        let mut next = 0;
        for tensor in &layout.tensors {
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(tensor.start, next);
            assert_eq!(tensor.end - tensor.start, (elements * tensor.dtype.bitsize() / 8) as u64);
            next = tensor.end;
        }
        assert_eq!(next, layout.bytes());
        let norms = 2 * 4 * u64::from(hidden_size);
        let mut blocks = 0;
        for (section, block) in layout.sections[1..].iter().zip(&policy.blocks) {
            assert_eq!(section.start % ALIGN, 0, "{}", section.name);
            let bytes = block_bytes(&shape, &block.formats());
            let padding = section.end - section.start - bytes - norms;
            assert!(padding < ALIGN, "{}", section.name);
            blocks += bytes;
        }
        assert_eq!(blocks, policy.averages(&shape).bytes);
        let name = "model.layers.3.mlp.gate_proj.weight.values.1";
        assert!(layout.tensors.iter().any(|tensor| tensor.name == name), "no matrix in parts");
    }
}

#[test]
fn a_cut_off_or_damaged_file_is_refused() {
    let (source, dir) = (source(), tempdir().unwrap());
    let out = dir.path().join("m");
    compress(&source, about(Format::Bf16), &out);
    let path = out.join(FILE);
    let file = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    assert_eq!(header as u64 % ALIGN, 0);
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = message(check(&out));
        assert!(error.contains(FILE) && error.contains("it again"), "{what}: {error}");
        error
    };
    let offsets = (0..header).chain((header..file.len()).step_by(9973));
    for len in offsets.chain([file.len() - 1]) {
        refused(&file[..len], &format!("cut off at {len}"));
    }
    let mut longer = file.clone();
    longer.push(0);
    refused(&longer, "a byte more");
    let mut damaged = file.clone();
    for at in (0..header).step_by(7).chain((header..file.len()).step_by(9973)) {
        damaged[at] ^= 0x04;
        std::fs::write(&path, &damaged).unwrap();
        assert!(message(check(&out)).contains(FILE), "damaged at {at}");
        damaged[at] ^= 0x04;
    }
    // The last byte belongs to the last block, which is named.
    *damaged.last_mut().unwrap() ^= 1;
    assert!(refused(&damaged, "the last byte").contains("model.layers.5 "));
    std::fs::write(&path, &file).unwrap();
    check(&out).unwrap();
}

#[test]
fn files_that_contradict_are_refused() {
    let (source, dir) = (source(), tempdir().unwrap());
    let out = dir.path().join("m");
    compress(&source, about(Format::Bf16), &out);
    let path = out.join(FILE);
    let file = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(file[8..header].to_vec()).unwrap();
    let with_text = |from: &str, to: &str| {
        assert!(text.contains(from) && from.len() == to.len(), "{from}");
        let changed = text.replacen(from, to, 1);
        std::fs::write(&path, [&file[..8], changed.as_bytes(), &file[header..]].concat()).unwrap();
        message(open(&out))
    };
    let error = with_text(r#""format_version":"1""#, r#""format_version":"7""#);
    assert!(error.contains("version 7") && error.contains("newer program"), "{error}");
    let error = with_text("edge-llm-compressed", "edge-llm-comprezzed");
    assert!(error.contains("no compressed model of this program"), "{error}");
    let error = with_text(r#""source_hash":"50""#, r#""source_hash":"51""#);
    assert!(error.contains("header") && error.contains("damaged"), "{error}");

    // Whole files that say the wrong thing.
    let (shape, sums) = (source.config.shape(), [0; 7]);
    let layout = Layout::new(&source.config, &policy(), [Format::Bf16; 2]);
    let with_header = |about: &About, shape: &ModelShape| {
        let header = header::encode(about, shape, &layout, &sums).unwrap();
        let data = vec![0; layout.bytes() as usize];
        std::fs::write(&path, [header, data].concat()).unwrap();
        message(open(&out))
    };
    let mut other = about(Format::Bf16);
    other.policy.blocks[2] = BlockPolicy::uniform(Format::Q8);
    let error = with_header(&other, &shape);
    let part = "model.layers.2.self_attn.q_proj.weight.values.0";
    assert!(error.contains(part) && error.contains("contradicts its policy"), "{error}");
    let error = with_header(&about(Format::Q8), &shape);
    assert!(error.contains("lacks tensor model.embed_tokens.weight.values.0"), "{error}");
    let larger = ModelShape { intermediate_size: 384, ..shape };
    let error = with_header(&about(Format::Bf16), &larger);
    assert!(error.contains("intermediate_size 384") && error.contains("config.json"), "{error}");

    // The file beside it.
    std::fs::write(&path, &file).unwrap();
    policy_file::write(&out.join("policy.json"), &other.policy).unwrap();
    let error = message(open(&out));
    assert!(error.contains("policy.json says otherwise"), "{error}");
    std::fs::remove_file(out.join("policy.json")).unwrap();
    check(&out).unwrap();
    std::fs::write(out.join("model.safetensors"), b"").unwrap();
    assert!(message(open(&out)).contains("both"));
    assert!(read::is_compressed(&out));
}

#[test]
fn a_writer_overwrites_nothing_and_leaves_nothing() {
    let (source, dir) = (source(), tempdir().unwrap());
    let out = dir.path().join("m");
    let mut writer = Writer::create(&out, &source, about(Format::F16)).unwrap();
    writer.block(&matrices(&source, &policy(), 0)).unwrap();
    assert!(out.join(format!("{FILE}.tmp")).exists());
    drop(writer);
    assert!(!out.exists());
    // A folder that was there stays.
    std::fs::create_dir(&out).unwrap();
    drop(Writer::create(&out, &source, about(Format::F16)).unwrap());
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    std::fs::write(out.join("mine"), b"x").unwrap();
    let error = message(Writer::create(&out, &source, about(Format::F16)).map(|_| ()));
    assert!(error.contains("has files already"), "{error}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    let out = dir.path().join("n");
    let error = message(Writer::create(&out, &source, about(Format::Q4)).map(|_| ()));
    assert!(error.contains("table cannot be stored in q4"), "{error}");
    let mut short = about(Format::F16);
    short.policy.blocks.pop();
    let error = message(Writer::create(&out, &source, short).map(|_| ()));
    assert!(error.contains("5 blocks and the model 6"), "{error}");
    assert!(!out.exists());
    // What is compressed is not compressed again.
    compress(&source, about(Format::F16), &out);
    let twice = Source::open(&out).unwrap();
    let error =
        message(Writer::create(&dir.path().join("o"), &twice, about(Format::F16)).map(|_| ()));
    assert!(error.contains("compressed already"), "{error}");
}
