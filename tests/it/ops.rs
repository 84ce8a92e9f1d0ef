//! Every op, every case, every variant: shader against reference.
//!
//! `EDGE_TEST_BENCH_CASES=1` adds the model-sized cases, `EDGE_TEST_OPS=name,name` leaves out
//! all other ops.

use edge_gpu::Options;
use edge_kernels::op::{
    Binding, Call, Case, CaseBuffer, Cooperative, Field, HostBuffer, Needs, Op, Tolerance, Variant,
    Work,
};
use edge_kernels::ops::matmul::matmul_nt::MatmulNt;
use edge_kernels::ops::norm::rms_norm_forward::RmsNormForward;
use edge_kernels::util::SeededRng;
use edge_kernels::{Format, OPS};
use edge_tests::gpu_with;
use edge_tests::parity::{Extent, Outcome, check_op};

/// Runs all ops on a device opened with these options.
fn check_all(options: &Options, extent: Extent) {
    let Some(device) = gpu_with(options) else { return };
    let only = std::env::var("EDGE_TEST_OPS").ok();
    let wanted = |op: &&dyn Op| match &only {
        Some(names) => names.split(',').any(|name| name == op.name()),
        None => true,
    };
    let bench_cases = std::env::var_os("EDGE_TEST_BENCH_CASES").is_some_and(|value| value == "1");
    let mut outcome = Outcome::default();
    let mut ops = 0;
    for op in OPS.iter().filter(|op| wanted(*op)) {
        ops += 1;
        let before = outcome.ran;
        check_op(&device, *op, |case| bench_cases || !case.bench, extent, &mut outcome);
        assert!(outcome.ran > before, "no case of {} ran", op.name());
    }
    assert!(ops > 0, "EDGE_TEST_OPS names no op");
    let Outcome { ran, failures } = outcome;
    assert!(
        failures.is_empty(),
        "{} failures in {ran} runs on {}:\n{}",
        failures.len(),
        device.info().name,
        failures.join("\n")
    );
    eprintln!("{ran} variants of cases of {ops} ops on {}", device.info().name);
}

#[test]
fn shaders_match_references() {
    check_all(&Options::default(), Extent::All);
}

#[test]
fn shaders_match_references_without_f16_and_subgroups() {
    let options = Options {
        disable_f16: true,
        disable_subgroups: true,
        disable_int64: true,
        ..Options::default()
    };
    check_all(&options, Extent::EachOnce);
}

#[test]
fn shaders_match_references_with_uniform_parameters() {
    let options = Options { disable_immediates: true, disable_mapping: true, ..Options::default() };
    check_all(&options, Extent::EachOnce);
}

#[test]
fn shaders_match_references_with_bounds_checks() {
    check_all(&Options { checked: true, ..Options::default() }, Extent::EachOnce);
}

/// What a [`Broken`] op gets wrong.
#[derive(Clone, Copy)]
enum Fault {
    /// Nothing: the op must pass.
    None,
    /// The definition is off by a part in a thousand.
    Definition,
    /// An output is one element too short for the shader.
    ShortOutput,
}

/// An op with a fault, for testing the test.
struct Broken(Fault);

static SOUND: Broken = Broken(Fault::None);
static WRONG: Broken = Broken(Fault::Definition);
static SHORT: Broken = Broken(Fault::ShortOutput);

impl Op for Broken {
    fn name(&self) -> &'static str {
        RmsNormForward.name()
    }
    fn shader(&self) -> &'static str {
        RmsNormForward.shader()
    }
    fn bindings(&self, call: &Call) -> Vec<Binding> {
        RmsNormForward.bindings(call)
    }
    fn fields(&self) -> &'static [Field] {
        RmsNormForward.fields()
    }
    fn variants(&self, call: &Call) -> Vec<Variant> {
        RmsNormForward.variants(call)
    }
    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        RmsNormForward.grid(call, variant)
    }
    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        RmsNormForward.reference(call, buffers);
        if let Fault::Definition = self.0 {
            buffers[2].f32_mut().iter_mut().for_each(|y| *y *= 1.001);
        }
    }
    fn cases(&self) -> Vec<Case> {
        RmsNormForward.cases().into_iter().filter(|case| case.name == "33x96").collect()
    }
    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        let mut buffers = RmsNormForward.buffers(call, rng);
        if let (Fault::ShortOutput, CaseBuffer::Output(len)) = (self.0, &mut buffers[3]) {
            *len -= 1;
        }
        buffers
    }
    fn work(&self, call: &Call) -> Work {
        RmsNormForward.work(call)
    }
    fn tolerance(&self, call: &Call) -> Tolerance {
        RmsNormForward.tolerance(call)
    }
}

#[test]
fn a_wrong_definition_and_a_stray_write_are_found() {
    let Some(device) = gpu_with(&Options::default()) else { return };
    let failures = |op: &'static Broken| {
        let mut outcome = Outcome::default();
        check_op(&device, op, |case| case.call.format == Format::F32, Extent::All, &mut outcome);
        assert!(outcome.ran > 0);
        outcome.failures.join("\n")
    };
    assert_eq!(failures(&SOUND), "");
    let wrong = failures(&WRONG);
    assert!(wrong.contains("`y`: ") && wrong.contains(" want "), "{wrong}");
    let short = failures(&SHORT);
    assert!(short.contains("`rstd`: 1 words of the guard zone after it changed"), "{short}");
}

/// `matmul_nt` through the body for cooperative matrices, with these emulated.
struct Emulated;

impl Op for Emulated {
    fn name(&self) -> &'static str {
        MatmulNt.name()
    }
    fn shader(&self) -> &'static str {
        MatmulNt.shader()
    }
    fn bindings(&self, call: &Call) -> Vec<Binding> {
        MatmulNt.bindings(call)
    }
    fn fields(&self) -> &'static [Field] {
        MatmulNt.fields()
    }
    fn variants(&self, call: &Call) -> Vec<Variant> {
        let of_f32 = |variant: &Variant| {
            variant.needs.cooperative.is_some_and(|kind| kind == Cooperative::F32Side8)
        };
        let emulated = |variant: Variant| {
            let variant = variant.replace("lib/coop_f32.wgsl", "lib/coop_emulated.wgsl");
            variant.needs(Needs::default())
        };
        MatmulNt.variants(call).into_iter().filter(of_f32).map(emulated).collect()
    }
    fn grid(&self, call: &Call, variant: &Variant) -> [u32; 3] {
        MatmulNt.grid(call, variant)
    }
    fn reference(&self, call: &Call, buffers: &mut [HostBuffer<'_>]) {
        MatmulNt.reference(call, buffers);
    }
    fn cases(&self) -> Vec<Case> {
        MatmulNt.cases()
    }
    fn buffers(&self, call: &Call, rng: &mut SeededRng) -> Vec<CaseBuffer> {
        MatmulNt.buffers(call, rng)
    }
    fn work(&self, call: &Call) -> Work {
        MatmulNt.work(call)
    }
    fn tolerance(&self, call: &Call) -> Tolerance {
        MatmulNt.tolerance(call)
    }
}

/// Tiles, indices and edges of the body; what the matrices of a GPU do is not tested by this.
#[test]
fn the_body_for_cooperative_matrices_is_right_with_emulated_ones() {
    let Some(device) = gpu_with(&Options::default()) else { return };
    // A software driver compiles each for half a minute, hence two: odd sizes, and a shard.
    let names = ["odd_17x39x69_q4", "shard_17x71x64_f32"];
    let wanted = |case: &Case| names.contains(&case.name.as_str());
    let mut outcome = Outcome::default();
    check_op(&device, &Emulated, wanted, Extent::All, &mut outcome);
    assert_eq!(outcome.ran, names.len());
    assert!(outcome.failures.is_empty(), "{}", outcome.failures.join("\n"));
}
