//! Blocks against those of the package `gguf` (`tests/interop/gguf_blocks.py` makes the fixture).

use safetensors::SafeTensors;

use super::super::dequant::dequantize;
use super::super::quant::quantize;
use super::super::types::Type;
use crate::checkpoint::Dtype;

const FIXTURE: &[u8] = include_bytes!("../fixtures/blocks.safetensors");

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[test]
fn blocks_have_the_values_that_ggml_has() {
    let fixture = SafeTensors::deserialize(FIXTURE).unwrap();
    let kinds = [
        Type::Q4_0,
        Type::Q4_1,
        Type::Q5_0,
        Type::Q5_1,
        Type::Q8_0,
        Type::Q2K,
        Type::Q3K,
        Type::Q4K,
        Type::Q5K,
        Type::Q6K,
    ];
    for kind in kinds {
        let blocks = fixture.tensor(&format!("{kind}.blocks")).unwrap();
        let wanted = floats(fixture.tensor(&format!("{kind}.values")).unwrap().data());
        let mut got = vec![0.0; wanted.len()];
        dequantize(kind, blocks.data(), &mut got);
        assert_eq!(got, wanted, "{kind}");
        let distinct = wanted.iter().map(|value| value.to_bits());
        assert!(distinct.collect::<std::collections::BTreeSet<_>>().len() > 3, "{kind}");
    }
}

#[test]
fn blocks_are_made_as_ggml_makes_them() {
    let fixture = SafeTensors::deserialize(FIXTURE).unwrap();
    let given = floats(fixture.tensor("given").unwrap().data());
    for kind in [Type::Q8_0, Type::Q4_0] {
        let wanted = fixture.tensor(&format!("{kind}.made")).unwrap();
        let mut made = Vec::new();
        quantize(kind, &given, &mut made);
        assert_eq!(made, wanted.data(), "{kind}");
        let mut back = vec![0.0; given.len()];
        dequantize(kind, &made, &mut back);
        // A step of the block's largest value, half of it, and the last level of Q4_0.
        let (steps, half) = if kind == Type::Q8_0 { (127.0, 0.51) } else { (8.0, 1.01) };
        for (block, given) in given.chunks(32).enumerate() {
            let step = given.iter().fold(0.0f32, |most, v| most.max(v.abs())) / steps;
            for (given, back) in given.iter().zip(&back[32 * block..]) {
                assert!((given - back).abs() <= half * step, "{kind} {given} {back} {step}");
            }
        }
    }
}

#[test]
fn numbers_stand_for_themselves() {
    let values = [1.5f32, -2.0, 0.25, 65504.0];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let mut made = Vec::new();
        quantize(Type::Plain(dtype), &values[..3], &mut made);
        assert_eq!(made.len(), 3 * dtype.bytes());
        let mut back = [0.0; 3];
        dequantize(Type::Plain(dtype), &made, &mut back);
        assert_eq!(back, values[..3], "{dtype:?}");
    }
}
