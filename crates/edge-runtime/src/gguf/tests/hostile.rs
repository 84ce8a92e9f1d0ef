//! Files that are cut off, damaged or made to harm: an error in one sentence, never a panic, and no
//! memory beyond the file's own size.

use gguf_rs_lib::format::metadata::MetadataArray;
use gguf_rs_lib::format::types::GGUFValueType as Value;

use super::*;

/// The whole way of a file, as far as a model goes.
fn open(path: &Path) -> Result<()> {
    let gguf = Gguf::open(path)?;
    let (_, config) = gguf.config()?;
    folder::tokenizer(&gguf)?;
    gguf.into_checkpoint(&config)?;
    Ok(())
}

fn array(kind: Value, values: Vec<MetadataValue>) -> MetadataValue {
    MetadataValue::Array(Box::new(MetadataArray::new(kind, values).unwrap()))
}

fn texts(values: &[&str]) -> MetadataValue {
    array(Value::String, values.iter().map(|value| text(value)).collect())
}

fn ids(values: &[i32]) -> MetadataValue {
    array(Value::I32, values.iter().map(|id| MetadataValue::I32(*id)).collect())
}

fn tokenizer() -> Pairs {
    let mut pairs = sizes();
    let mut set = |key: &str, value| pairs.push((format!("tokenizer.ggml.{key}"), value));
    set("model", text("gpt2"));
    set("pre", text("gpt-2"));
    set("tokens", texts(&["a", "b", "ab"]));
    set("token_type", ids(&[1, 1, 1]));
    set("merges", texts(&["a b"]));
    pairs
}

/// A sentence that names the file.
fn refused(path: &Path, part: &str) {
    let error = message(open(path));
    assert!(error.contains("m.gguf") && error.contains(part), "no {part} in: {error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), tokenizer(), &TENSORS);
    open(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let last = Gguf::open(&path).unwrap().tensors.iter().map(|t| t.bytes.end).max().unwrap();
    for len in 0..last {
        std::fs::write(&path, &whole[..len]).unwrap();
        refused(&path, "no whole GGUF file");
    }
}

#[test]
fn any_byte_may_be_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), tokenizer(), &TENSORS);
    let whole = std::fs::read(&path).unwrap();
    let first = Gguf::open(&path).unwrap().tensors.iter().map(|t| t.bytes.start).min().unwrap();
    let mut refusals = 0;
    for at in 0..first {
        for flip in [0x01, 0x80, 0xFF] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, bytes).unwrap();
            if let Err(error) = open(&path) {
                assert!(!format!("{error:#}").contains('\n'), "{at}: {error:#}");
                refusals += 1;
            }
        }
    }
    assert!(refusals > first, "{refusals} of {first} bytes");
}

#[test]
fn hostile_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), tokenizer(), &TENSORS);
    let whole = std::fs::read(&path).unwrap();
    let patch = |at: usize, bytes: &[u8]| {
        let mut out = whole.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, out).unwrap();
    };
    let huge = (u64::MAX - 1).to_le_bytes();
    let many = (1u64 << 40).to_le_bytes();
    for (at, bytes, part) in [
        (0, &b"GGML"[..], "magic"),
        (4, &2u32.to_le_bytes(), "version 2"),
        (4, &3u32.to_be_bytes(), "big-endian"),
        (4, &99u32.to_le_bytes(), "version 99"),
        // Tensors, pairs, the length of the first key.
        (8, &huge, "no whole GGUF file"),
        (8, &many, "no whole GGUF file"),
        (16, &huge, "no whole GGUF file"),
        (16, &many, "no whole GGUF file"),
        (24, &huge, "no whole GGUF file"),
        (24, &65_000u64.to_le_bytes(), "no whole GGUF file"),
    ] {
        patch(at, bytes);
        refused(&path, part);
    }
    let mut aligned = tokenizer();
    aligned.push(("general.alignment".into(), MetadataValue::U32(32)));
    let bytes = std::fs::read(file(dir.path(), aligned, &TENSORS)).unwrap();
    let key = b"general.alignment";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    for alignment in [0, 3, u32::MAX, 1 << 31] {
        let mut out = bytes.clone();
        out[at..at + 4].copy_from_slice(&u32::to_le_bytes(alignment));
        std::fs::write(&path, out).unwrap();
        refused(&path, "no whole GGUF file");
    }
    // The count and the first length of the list of tokens.
    let key = b"tokenizer.ggml.tokens";
    let at = whole.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    for place in [at + 8, at + 16] {
        for bytes in [huge, many] {
            patch(place, &bytes);
            refused(&path, "no whole GGUF file");
        }
    }
    // Lists in lists, deeper than any stack.
    let mut nested = whole[..at].to_vec();
    nested.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    std::fs::write(&path, nested).unwrap();
    refused(&path, "no whole GGUF file");
}

#[test]
fn hostile_tensors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), tokenizer(), &TENSORS);
    let whole = std::fs::read(&path).unwrap();
    let name = b"blk.0.attn_q.weight";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap() + name.len();
    let patch = |at: usize, bytes: &[u8]| {
        let mut out = whole.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, out).unwrap();
    };
    // Behind the name: dimensions, two sizes, type, offset.
    for (at, bytes, part) in [
        (at, &5u32.to_le_bytes()[..], "no whole GGUF file"),
        (at, &0u32.to_le_bytes(), "no whole GGUF file"),
        (at + 4, &(u64::MAX / 2).to_le_bytes(), "no whole GGUF file"),
        (at + 4, &(1u64 << 40).to_le_bytes(), "no whole GGUF file"),
        (at + 4, &0u64.to_le_bytes(), "blk.0.attn_q.weight"),
        (at + 20, &2u32.to_le_bytes(), "no whole GGUF file"),
        (at + 20, &26u32.to_le_bytes(), "I32"),
        (at + 20, &99u32.to_le_bytes(), "99"),
        (at + 24, &u64::MAX.to_le_bytes(), "no whole GGUF file"),
        (at + 24, &33u64.to_le_bytes(), "aligned"),
        (at + 24, &0u64.to_le_bytes(), "overlap"),
        (at + 24, &(1u64 << 30).to_le_bytes(), "cut off"),
        (at - 1, b"q", "blk.0.attn_q.weighq"),
    ] {
        patch(at, bytes);
        refused(&path, part);
    }
    // 8 rows of 4 are no blocks, but 1 row of 32 is, and 32 of 1 in a vector is not.
    for (code, part) in [(20u32, "IQ4_NL"), (39, "MXFP4")] {
        let mut out = whole.clone();
        out[at + 4..at + 12].copy_from_slice(&32u64.to_le_bytes());
        out[at + 12..at + 20].copy_from_slice(&1u64.to_le_bytes());
        out[at + 20..at + 24].copy_from_slice(&code.to_le_bytes());
        std::fs::write(&path, out).unwrap();
        refused(&path, part);
    }
}

#[test]
fn metadata_of_other_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let number = MetadataValue::U32;
    let cases = [
        ("general.architecture", text("phi3"), "phi3"),
        ("general.architecture", text("gemma3"), "gemma3"),
        ("general.architecture", number(1), "general.architecture"),
        ("general.type", text("adapter"), "adapter"),
        ("split.count", number(3), "llama-gguf-split"),
        ("llama.expert_count", number(8), "experts"),
        ("llama.block_count", text("one"), "llama.block_count"),
        ("llama.block_count", number(0), "num_hidden_layers"),
        ("llama.embedding_length", number(u32::MAX), "hidden_size"),
        ("llama.attention.head_count", ids(&[2, 2]), "llama.attention.head_count"),
        ("llama.attention.head_count", number(0), "num_attention_heads"),
        ("llama.attention.key_length", number(6), "heads of 6"),
        ("llama.attention.value_length", number(8), "value_length"),
        ("llama.rope.dimension_count", number(2), "rope.dimension_count"),
        ("llama.attention.layer_norm_rms_epsilon", MetadataValue::F32(f32::NAN), "epsilon"),
        ("tokenizer.ggml.model", text("t5"), "tokenizer.json beside"),
        ("tokenizer.ggml.pre", text("klingon"), "tokenizer.json beside"),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "a"]), "twice"),
        ("tokenizer.ggml.tokens", ids(&[1, 2, 3]), "tokens"),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "c"]), "kinds"),
        ("tokenizer.ggml.merges", texts(&["ab"]), "no pair"),
        ("tokenizer.ggml.merges", texts(&["a x"]), "no tokenizer"),
        ("tokenizer.ggml.model", text("llama"), "score"),
        ("tokenizer.ggml.eos_token_id", text("b"), "eos_token_id"),
    ];
    for (key, value, part) in cases {
        let mut pairs = tokenizer();
        pairs.retain(|(own, _)| own != key);
        pairs.push((key.to_owned(), value));
        refused(&file(dir.path(), pairs, &TENSORS), part);
    }
    for missing in ["llama.context_length", "general.architecture", "tokenizer.ggml.tokens"] {
        let mut pairs = tokenizer();
        pairs.retain(|(own, _)| own != missing);
        refused(&file(dir.path(), pairs, &TENSORS), missing);
    }
    refused(&file(dir.path(), tokenizer(), &TENSORS[1..]), "token_embd.weight");
}

#[test]
fn a_failed_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let kind = Type::Plain(Dtype::F32);
    let plan = |name: &str| [Planned { name: name.to_owned(), kind, shape: vec![4] }];
    let failed = write_atomically(&path, sizes(), &plan("a"), &mut |_, _| bail!("no more"));
    assert!(message(failed).contains("no more"));
    let long = "a".repeat(64);
    let failed = write_atomically(&path, sizes(), &plan(&long), &mut |_, _| Ok(()));
    assert!(message(failed).contains(&long));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let gone = write_atomically(&dir.path().join("no/x"), sizes(), &[], &mut |_, _| Ok(()));
    assert!(message(gone).contains("no/x"));
}
