//! Tests of safetensors folders: whole, cut off, damaged, sharded.

use half::{bf16, f16};
use safetensors::tensor::TensorView as FileView;
use serde_json::json;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::testing::message;

const UP: &str = "model.layers.0.mlp.up_proj.weight";

type Row<'a> = (&'a str, FileDtype, &'a [usize], &'a [u8]);

fn file(tensors: &[Row<'_>]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, FileView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn values(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn folder(bytes: &[u8]) -> TempDir {
    let dir = tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

fn sample() -> Vec<u8> {
    let halves = [1.5f32, -2.0, 0.25].map(|x| bf16::from_f32(x).to_le_bytes()).concat();
    let small = [6e-8f32, 65504.0, -0.5].map(|x| f16::from_f32(x).to_le_bytes()).concat();
    file(&[
        ("b", FileDtype::BF16, &[3, 1], &halves),
        ("h", FileDtype::F16, &[3], &small),
        (UP, FileDtype::F32, &[3, 2], &values(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])),
        ("ids", FileDtype::I64, &[1], &[0; 8]),
    ])
}

#[test]
fn tensors_are_read_in_each_dtype() {
    let dir = folder(&sample());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["b", "h", "ids", UP]);
    let up = checkpoint.expect(UP, &[3, 2]).unwrap();
    assert_eq!(up.to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(up.rows_f32(1..3).unwrap(), [2.0, 3.0, 4.0, 5.0]);
    assert_eq!(up.words(2..3).unwrap(), [4f32.to_bits(), 5f32.to_bits()]);
    let b = checkpoint.tensor("b").unwrap();
    assert_eq!((b.dtype, b.to_f32().unwrap()), (Dtype::BF16, vec![1.5, -2.0, 0.25]));
    assert_eq!(b.words(0..3).unwrap(), [0xC000_3FC0, 0x0000_3E80]);
    let h = checkpoint.tensor("h").unwrap();
    assert_eq!(h.to_f32().unwrap(), [5.960_464_5e-8, 65504.0, -0.5]);
    assert_eq!((h.rows(), h.cols(), h.rows_f32(1..2).unwrap()), (3, 1, vec![65504.0]));
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    let dir = folder(&sample());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = message(checkpoint.tensor("ids"));
    assert!(error.contains("ids") && error.contains("I64"), "{error}");
    let error = message(checkpoint.tensor("absent.weight"));
    assert!(error.contains("absent.weight") && error.contains("model.safetensors"), "{error}");
    let error = message(checkpoint.expect(UP, &[4, 2]));
    assert!(error.contains("[3, 2] instead of [4, 2]"), "{error}");
    assert!(error.contains("contradicts intermediate_size in config"), "{error}");
    assert!(message(checkpoint.expect(UP, &[3, 2, 1])).contains("expected shape"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = sample();
    let dir = tempdir().unwrap();
    assert!(message(Checkpoint::open(dir.path())).contains("neither model.safetensors"));
    for len in 0..whole.len() {
        std::fs::write(dir.path().join("model.safetensors"), &whole[..len]).unwrap();
        let error = message(Checkpoint::open(dir.path()));
        assert!(error.contains("model.safetensors"), "{len}: {error}");
    }
    let mut longer = whole;
    longer.push(0);
    std::fs::write(dir.path().join("model.safetensors"), longer).unwrap();
    assert!(message(Checkpoint::open(dir.path())).contains("fewer bytes"));
}

#[test]
fn a_damaged_header_is_refused() {
    let headers = [
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#,
        "garbage",
    ];
    for header in headers {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let dir = folder(&bytes);
        let error = message(Checkpoint::open(dir.path()));
        assert!(error.contains("no whole safetensors file"), "{header}: {error}");
    }
    let dir = folder(&[0xFF; 64]);
    assert!(message(Checkpoint::open(dir.path())).contains("no whole safetensors file"));
}

#[test]
fn a_file_that_is_cut_off_in_use_is_an_error() {
    let dir = folder(&sample());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(16).unwrap();
    let up = checkpoint.expect(UP, &[3, 2]).unwrap();
    for error in [message(up.to_f32()), message(up.words(0..1)), message(up.bytes(2..3))] {
        assert!(error.contains("model.safetensors was changed"), "{error}");
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("m-1.safetensors", &file(&[("a", FileDtype::F32, &[1], &values(&[1.0]))]));
    write("m-2.safetensors", &file(&[("b", FileDtype::F32, &[1], &values(&[2.0]))]));
    let index = |a: &str, b: &str| {
        let text = json!({"metadata": {}, "weight_map": {"a": a, "b": b}}).to_string();
        write("model.safetensors.index.json", text.as_bytes());
        Checkpoint::open(dir.path())
    };
    let checkpoint = index("m-1.safetensors", "m-2.safetensors").unwrap();
    assert_eq!(checkpoint.tensor("a").unwrap().to_f32().unwrap(), [1.0]);
    assert_eq!(checkpoint.tensor("b").unwrap().to_f32().unwrap(), [2.0]);
    assert!(message(checkpoint.tensor("c")).contains("the 2 shards"));
    for path in ["../m-2.safetensors", "/m-2.safetensors", "x/m.safetensors", "..", "", "a\\b"] {
        assert!(message(index("m-1.safetensors", path)).contains("no file of this folder"));
    }
    assert!(message(index("m-1.safetensors", "m-3.safetensors")).contains("m-3.safetensors"));
    let error = message(index("m-1.safetensors", "m-1.safetensors"));
    assert!(error.contains("tensor b in m-1.safetensors, which lacks it"), "{error}");
    write("model.safetensors.index.json", b"{\"weight_map\": 3}");
    assert!(message(Checkpoint::open(dir.path())).contains("index.json"));
    write("model.safetensors.index.json", b"{\"weight_map\": {}}");
    assert!(message(Checkpoint::open(dir.path())).contains("lists no tensor"));
}
