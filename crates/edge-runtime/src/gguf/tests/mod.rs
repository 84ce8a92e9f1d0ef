//! Tests of GGUF files made here: the header, names, frequencies, the model folder behind a file.

mod blocks;
mod hostile;
mod vocabularies;

use std::path::{Path, PathBuf};

use super::coding::stored_row;
use super::families::FAMILIES;
use super::rope::{Llama3, recognise};
use super::write::{Planned, write_atomically};
use super::*;
use crate::checkpoint::Dtype;
use crate::config::RopeScaling;
use crate::testing::{message, shared};

type Pairs = Vec<(String, MetadataValue)>;

fn text(value: &str) -> MetadataValue {
    MetadataValue::String(value.to_owned())
}

/// A file of matrices and vectors in f32 whose values count up from 0.
fn file(dir: &Path, metadata: Pairs, tensors: &[(&str, &[usize])]) -> PathBuf {
    let path = dir.join("m.gguf");
    let plan = |(name, shape): &(&str, &[usize])| Planned {
        name: (*name).to_owned(),
        kind: Type::Plain(Dtype::F32),
        shape: shape.to_vec(),
    };
    let planned: Vec<Planned> = tensors.iter().map(plan).collect();
    write_atomically(&path, metadata, &planned, &mut |index, out| {
        let count = planned[index].bytes() / 4;
        for value in 0..count {
            out.write_all(&(value as f32).to_le_bytes())?;
        }
        Ok(())
    })
    .unwrap();
    path
}

/// A whole tiny model: 1 block, hidden size 4, 2 heads of 4 over 1, vocabulary 3.
const TENSORS: [(&str, &[usize]); 11] = [
    ("token_embd.weight", &[3, 4]),
    ("output_norm.weight", &[4]),
    ("blk.0.attn_norm.weight", &[4]),
    ("blk.0.attn_q.weight", &[8, 4]),
    ("blk.0.attn_k.weight", &[4, 4]),
    ("blk.0.attn_v.weight", &[4, 4]),
    ("blk.0.attn_output.weight", &[4, 8]),
    ("blk.0.ffn_norm.weight", &[4]),
    ("blk.0.ffn_gate.weight", &[6, 4]),
    ("blk.0.ffn_up.weight", &[6, 4]),
    ("blk.0.ffn_down.weight", &[4, 6]),
];

fn sizes() -> Pairs {
    let mut out: Pairs = vec![("general.architecture".into(), text("llama"))];
    for (key, size) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 4),
        ("feed_forward_length", 6),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 4),
    ] {
        out.push((format!("llama.{key}"), MetadataValue::U32(size)));
    }
    let eps = MetadataValue::F32(1e-5);
    out.push(("llama.attention.layer_norm_rms_epsilon".into(), eps));
    out
}

fn with(key: &str, value: MetadataValue) -> Pairs {
    let mut out = sizes();
    out.retain(|(own, _)| own != key);
    out.push((key.into(), value));
    out
}

#[test]
fn a_file_is_the_folder_that_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), with("llama.rope.freq_base", MetadataValue::F32(5e5)), &TENSORS);
    let gguf = Gguf::open(&path).unwrap();
    let (_, config) = gguf.config().unwrap();
    assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (3, 4, 6));
    assert_eq!((config.num_attention_heads, config.num_key_value_heads), (2, 1));
    assert_eq!((config.head_dim, config.max_position_embeddings), (4, 64));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 5e5));
    assert_eq!((config.bos_token_id, config.eos_token_ids.len()), (None, 0));
    assert!(config.tie_word_embeddings && config.rope_scaling == RopeScaling::None);
    let checkpoint = gguf.into_checkpoint(&config).unwrap();
    assert_eq!(checkpoint.names().count(), TENSORS.len());
    let query = checkpoint.expect("model.layers.0.self_attn.q_proj.weight", &[8, 4]).unwrap();
    // The file has rows 0, 2, 1, 3 of each head.
    let first: Vec<f32> = query.to_f32().unwrap().chunks(4).map(|row| row[0] / 4.0).collect();
    assert_eq!(first, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(query.rows_f32(1..2).unwrap(), [8.0, 9.0, 10.0, 11.0]);
    assert_eq!(query.words(1..2).unwrap()[0], 8f32.to_bits());
    assert!(!query.is_plain());
    let value = checkpoint.tensor("model.layers.0.self_attn.v_proj.weight").unwrap();
    assert_eq!(value.rows_f32(1..2).unwrap(), [4.0, 5.0, 6.0, 7.0]);
    assert!(value.is_plain());
    assert_eq!(
        checkpoint.tensor("model.norm.weight").unwrap().to_f32().unwrap(),
        [0.0, 1.0, 2.0, 3.0]
    );
    let untied: Vec<_> = TENSORS.into_iter().chain([("output.weight", &[3, 4][..])]).collect();
    let gguf = Gguf::open(&file(dir.path(), sizes(), &untied)).unwrap();
    assert!(!gguf.config().unwrap().1.tie_word_embeddings);
}

#[test]
fn rows_are_interleaved_as_the_converter_does() {
    // reshape(heads, 2, d / 2, ..).swapaxes(1, 2), by its own definition.
    let (heads, head_dim) = (3, 8);
    let mut seen = vec![false; heads * head_dim];
    for head in 0..heads {
        for side in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = (head * 2 + side) * (head_dim / 2) + pair;
                let wanted = (head * (head_dim / 2) + pair) * 2 + side;
                assert_eq!(stored_row(row, head_dim), wanted);
                seen[wanted] = true;
            }
        }
    }
    assert!(seen.into_iter().all(|seen| seen));
}

#[test]
fn names_go_both_ways() {
    for family in &FAMILIES {
        for (gguf, _) in names::BLOCK.iter().chain(family.extra) {
            let name = format!("blk.12.{gguf}");
            let folder = names::from_gguf(family, &name).unwrap();
            assert!(folder.starts_with("model.layers.12."), "{folder}");
            assert_eq!(names::to_gguf(family, &folder).unwrap(), name);
        }
        let name = names::to_gguf(family, "lm_head.weight").unwrap();
        assert_eq!(names::from_gguf(family, &name).unwrap(), "lm_head.weight");
        for wrong in ["blk.0.attn_q", "blk.01.attn_q.weight", "blk.x.attn_q.weight", "a", ""] {
            assert_eq!(names::from_gguf(family, wrong), None, "{wrong}");
        }
    }
    let (llama, qwen) = (&FAMILIES[0], &FAMILIES[1]);
    assert_eq!(names::from_gguf(llama, "blk.0.attn_q.bias"), None);
    let query = "model.layers.0.self_attn.q_proj.weight";
    assert!(names::is_interleaved(llama, query) && !names::is_interleaved(qwen, query));
    assert!(!names::is_interleaved(llama, "model.layers.0.self_attn.v_proj.weight"));
}

#[test]
fn the_rule_of_frequencies_is_found_again() {
    let rule = |factor, low, high, context| Llama3 { factor, low, high, context };
    for (own, theta, head_dim) in [
        (rule(8.0, 1.0, 4.0, 8192.0), 5e5, 128),
        (rule(32.0, 1.0, 4.0, 8192.0), 5e5, 64),
        (rule(4.0, 1.5, 6.0, 4096.0), 1e4, 64),
        // One frequency between the bounds, and none.
        (rule(8.0, 1.0, 4.0, 32.0), 5e5, 16),
        (rule(8.0, 1.0, 1.01, 32.0), 5e5, 16),
        (rule(1.0, 1.0, 4.0, 8192.0), 5e5, 16),
    ] {
        let tensor = own.divisors(theta, head_dim);
        for context in [None, Some(own.context as u64)] {
            let found = recognise(&tensor, theta, head_dim, context).unwrap();
            let again = found.divisors(theta, head_dim);
            for (a, b) in tensor.iter().zip(&again) {
                assert!((a / b - 1.0).abs() < 1e-4, "{own:?} {found:?}");
            }
        }
    }
    let published = rule(8.0, 1.0, 4.0, 8192.0);
    let tensor = published.divisors(5e5, 128);
    assert_eq!(recognise(&tensor, 5e5, 128, None), Some(published));
    let mut other = tensor;
    other[10] = 3.0;
    assert_eq!(recognise(&other, 5e5, 128, None), None);
    for wrong in [f32::NAN, f32::INFINITY, 0.0, -1.0] {
        other[10] = wrong;
        assert_eq!(recognise(&other, 5e5, 128, None), None, "{wrong}");
    }
    assert_eq!(recognise(&other[..3], 5e5, 128, None), None);
}

#[test]
fn scaled_frequencies_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let scaling = |pairs: Pairs, tensors: &[(&str, &[usize])]| {
        let gguf = Gguf::open(&file(dir.path(), pairs, tensors)).unwrap();
        gguf.config().map(|(_, config)| config.rope_scaling)
    };
    let mut linear = with("llama.rope.scaling.type", text("linear"));
    linear.push(("llama.rope.scaling.factor".into(), MetadataValue::F32(2.0)));
    let read = scaling(linear, &TENSORS).unwrap();
    assert_eq!(read, RopeScaling::Linear { factor: 2.0 });
    let older =
        scaling(with("llama.rope.scale_linear", MetadataValue::F32(4.0)), &TENSORS).unwrap();
    assert_eq!(older, RopeScaling::Linear { factor: 4.0 });
    let zero = scaling(with("llama.rope.scale_linear", MetadataValue::F32(0.0)), &TENSORS).unwrap();
    assert_eq!(zero, RopeScaling::None);
    let yarn = scaling(with("llama.rope.scaling.type", text("yarn")), &TENSORS);
    assert!(message(yarn).contains("yarn"));
    // Values 0 and 1 divide nothing.
    let factors: Vec<_> = TENSORS.into_iter().chain([("rope_freqs.weight", &[2][..])]).collect();
    assert!(message(scaling(sizes(), &factors)).contains("rope_freqs.weight"));
}

#[test]
fn paths_stand_for_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(locate(dir.path()).unwrap(), None);
    assert_eq!(locate(&dir.path().join("absent.gguf")).unwrap(), None);
    let path = file(dir.path(), sizes(), &TENSORS);
    assert_eq!(locate(&path).unwrap(), Some(path.clone()));
    assert_eq!(locate(dir.path()).unwrap(), Some(path.clone()));
    // By its first bytes as well.
    let bare = dir.path().join("model");
    std::fs::copy(&path, &bare).unwrap();
    assert_eq!(locate(&bare).unwrap(), Some(bare.clone()));
    std::fs::copy(&path, dir.path().join("n.GGUF")).unwrap();
    assert!(message(locate(dir.path())).contains("2 GGUF files"));
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    assert_eq!(locate(dir.path()).unwrap(), None);
}
