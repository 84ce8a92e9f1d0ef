//! What the unit tests of the loss and optimizer ops share.

use crate::op::{Access, Dispatch, HostBuffer, Op};
use crate::util::SeededRng;

/// Runs the reference on owned words and gives all of them back.
pub(crate) fn run(mut dispatch: Dispatch<Vec<u32>>) -> Vec<Vec<u32>> {
    let bindings = dispatch.op.bindings(&dispatch.call);
    assert_eq!(bindings.len(), dispatch.bindings.len(), "{}", dispatch.op.name());
    let mut buffers: Vec<HostBuffer<'_>> = dispatch
        .bindings
        .iter_mut()
        .zip(&bindings)
        .map(|(words, binding)| match binding.access {
            Access::Read => HostBuffer::Read(words),
            Access::ReadWrite => HostBuffer::ReadWrite(words),
        })
        .collect();
    dispatch.op.reference(&dispatch.call, &mut buffers);
    drop(buffers);
    dispatch.bindings
}

/// Floats as words.
pub(crate) fn words(values: &[f32]) -> Vec<u32> {
    bytemuck::cast_slice(values).to_vec()
}

/// Words as floats.
pub(crate) fn floats(words: &[u32]) -> Vec<f32> {
    bytemuck::cast_slice(words).to_vec()
}

/// Asserts `|got - want| <= abs + rel * |want|` everywhere.
#[track_caller]
pub(crate) fn assert_close(got: &[f32], want: &[f64], abs: f64, rel: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= abs + rel * want.abs(), "element {i}: got {got}, want {want}");
    }
}

/// Assembles and validates every variant of every case, and runs the reference on the case's own
/// buffers: sizes and roles of the bindings have to fit.
pub(crate) fn check_op(op: &'static dyn Op) {
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    use rand::SeedableRng;
    let mut seen = std::collections::HashSet::new();
    for case in op.cases() {
        for variant in op.variants(&case.call) {
            let text = crate::shader::assemble(op, &variant, false).expect("assembles").text;
            if !seen.insert(text.clone()) {
                continue;
            }
            let module = naga::front::wgsl::parse_str(&text)
                .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
            Validator::new(ValidationFlags::all(), Capabilities::all())
                .validate(&module)
                .unwrap_or_else(|error| panic!("{} {}: {error:?}", op.name(), variant.name));
            assert_eq!(module.entry_points[0].name, op.name());
            assert!(op.grid(&case.call, &variant).iter().all(|&n| (1..=65535).contains(&n)));
        }
        if case.bench {
            continue;
        }
        let buffers = op.buffers(&case.call, &mut SeededRng::seed_from_u64(7));
        let words: Vec<Vec<u32>> = buffers.iter().map(|buffer| buffer.words()).collect();
        for words in run(Dispatch::new(op, case.call, words)).iter().zip(&buffers) {
            if matches!(words.1, crate::op::CaseBuffer::U32(_)) {
                continue;
            }
            let finite = floats(words.0).iter().all(|v| v.is_finite());
            assert!(finite, "{} {}: not finite or not written", op.name(), case.name);
        }
    }
}
