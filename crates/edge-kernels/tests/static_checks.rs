//! What can be known about every shader without a GPU: that naga accepts it with no more than it
//! declares to need, and that it says the same as its Rust file about names, bindings,
//! parameters, workgroup memory and invocations.
//!
//! A WebGPU implementation finds some of these mistakes when it makes a pipeline, but not all:
//! too much workgroup memory, for instance, passes.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use edge_kernels::OPS;
use edge_kernels::op::{Access, Binding, Call, Cooperative, Field, Needs, Op, Scalar, Variant};
use edge_kernels::shader::{Assembled, assemble, files};
use naga::AddressSpace;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// Limits of core WebGPU.
const PORTABLE_WORKGROUP_BYTES: u32 = 16384;
const PORTABLE_INVOCATIONS: u32 = 256;
const PORTABLE_STORAGE_BINDINGS: usize = 8;

/// All that is wrong, to be shown at once.
#[derive(Default)]
struct Problems(BTreeSet<String>);

impl Problems {
    fn add(&mut self, place: &str, what: impl std::fmt::Display) {
        self.0.insert(format!("{place}: {what}"));
    }

    fn finish(self) {
        let list: Vec<String> = self.0.into_iter().collect();
        assert!(list.is_empty(), "{} problems:\n{}", list.len(), list.join("\n"));
    }
}

/// A shader text and where it comes from.
struct Shader<'a> {
    op: &'a dyn Op,
    call: &'a Call,
    variant: &'a Variant,
    assembled: Assembled,
    immediates: bool,
    place: String,
}

/// Every distinct text of every op.
fn for_each_shader(problems: &mut Problems, mut body: impl FnMut(&mut Problems, &Shader<'_>)) {
    for op in OPS {
        let mut seen = HashSet::new();
        for case in op.cases() {
            for variant in op.variants(&case.call) {
                for immediates in [false, true] {
                    let place =
                        format!("{} case {} variant {}", op.name(), case.name, variant.name);
                    let assembled = match assemble(*op, &variant, immediates) {
                        Ok(assembled) => assembled,
                        Err(error) => {
                            problems.add(&place, error);
                            continue;
                        }
                    };
                    // A text may stand for two sets of bindings or needs only by mistake, which
                    // is a reason to look at both.
                    let key =
                        (assembled.text.clone(), variant.needs, op.bindings(&case.call).len());
                    if seen.insert(key) {
                        let (call, variant) = (&case.call, &variant);
                        let op = *op;
                        body(problems, &Shader { op, call, variant, assembled, immediates, place });
                    }
                }
            }
        }
    }
}

/// Parses and validates, with what the variant needs and nothing else.
fn parse(shader: &Shader<'_>) -> Result<(naga::Module, ModuleInfo), String> {
    let text = &shader.assembled.text;
    let at = |location: Option<naga::SourceLocation>| match location {
        Some(at) => shader.assembled.origin(at.line_number as usize),
        None => format!("shaders/{}", shader.op.shader()),
    };
    let module = naga::front::wgsl::parse_str(text)
        .map_err(|error| format!("{}: {}", at(error.location(text)), error.message()))?;
    // The conversions between f32 and f16 bits are core WebGPU, unlike the type f16.
    let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    allowed.set(Capabilities::SHADER_FLOAT16, shader.variant.needs.f16);
    allowed.set(Capabilities::SUBGROUP, shader.variant.needs.subgroups);
    allowed.set(Capabilities::SHADER_INT64, shader.variant.needs.int64);
    allowed.set(Capabilities::IMMEDIATES, shader.immediates);
    allowed.set(Capabilities::COOPERATIVE_MATRIX, shader.variant.needs.cooperative.is_some());
    let info =
        Validator::new(ValidationFlags::all(), allowed).validate(&module).map_err(|error| {
            let cause =
                std::iter::successors(std::error::Error::source(error.as_inner()), |error| {
                    error.source()
                });
            let causes: Vec<String> = cause.map(ToString::to_string).collect();
            let origin = at(error.location(text));
            format!("{origin}: {}: {}", error.as_inner(), causes.join(": "))
        })?;
    Ok((module, info))
}

#[test]
fn every_shader_is_what_its_op_says() {
    let mut problems = Problems::default();
    let mut count = 0;
    for_each_shader(&mut problems, |problems, shader| {
        count += 1;
        match parse(shader) {
            Ok((module, info)) => {
                let mut complain = |what: String| problems.add(&shader.place, what);
                check_entry_point(shader, &module, &info, &mut complain);
                check_bindings(shader, &module, &mut complain);
                check_params(shader.op.fields(), &module, &mut complain);
            }
            Err(message) => problems.add(&shader.place, message),
        }
    });
    problems.finish();
    assert!(count >= 2 * OPS.len(), "{count} texts for {} ops", OPS.len());
}

/// SPIR-V, in words.
fn spirv(module: &naga::Module, info: &ModuleInfo) -> Result<Vec<u32>, String> {
    let options = naga::back::spv::Options { lang_version: (1, 3), ..Default::default() };
    naga::back::spv::write_vec(module, info, &options, None).map_err(|error| error.to_string())
}

/// Metal's language, in the first version that has matrices of a subgroup.
fn metal(module: &naga::Module, info: &ModuleInfo) -> Result<String, String> {
    let options = naga::back::msl::Options { lang_version: (2, 3), ..Default::default() };
    let written = naga::back::msl::write_string(module, info, &options, &Default::default());
    let (text, entries) = written.map_err(|error| error.to_string())?;
    match entries.entry_point_names.into_iter().find_map(Result::err) {
        Some(error) => Err(error.to_string()),
        None => Ok(text),
    }
}

/// How often an operation occurs in SPIR-V.
fn operations(words: &[u32], code: u32) -> usize {
    let mut rest = &words[5..];
    let mut count = 0;
    while let Some(&first) = rest.first() {
        count += usize::from(first & 0xffff == code);
        rest = &rest[(first >> 16) as usize..];
    }
    count
}

/// No device here has cooperative matrices: at least naga translates them as they are meant.
#[test]
fn cooperative_matrices_are_translated() {
    const LOAD: u32 = 4457;
    const STORE: u32 = 4458;
    const MULTIPLY_ADD: u32 = 4459;
    let mut problems = Problems::default();
    let mut kinds = HashSet::new();
    for_each_shader(&mut problems, |problems, shader| {
        let Some(kind) = shader.variant.needs.cooperative else { return };
        let Ok((module, info)) = parse(shader) else { return };
        kinds.insert(kind);
        match spirv(&module, &info) {
            Ok(words) => {
                let found = [LOAD, STORE, MULTIPLY_ADD].map(|code| operations(&words, code));
                // X, W and sums are loaded, in a function each.
                let wanted = [3, 1, 1];
                if found != wanted {
                    problems.add(&shader.place, format!("SPIR-V has {found:?}, not {wanted:?}"));
                }
            }
            Err(error) => problems.add(&shader.place, format!("SPIR-V: {error}")),
        }
        // Metal has no others.
        if kind.side() == 8 {
            match metal(&module, &info) {
                Ok(text) if text.contains("simdgroup_multiply_accumulate(d,a,b,c)") => {}
                Ok(_) => problems.add(&shader.place, "Metal's text multiplies no matrices"),
                Err(error) => problems.add(&shader.place, format!("Metal: {error}")),
            }
        }
    });
    problems.finish();
    assert_eq!(kinds.len(), Cooperative::ALL.len(), "{kinds:?}");
}

fn stem(path: &str) -> &str {
    Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

fn check_entry_point(
    shader: &Shader<'_>,
    module: &naga::Module,
    info: &ModuleInfo,
    complain: &mut impl FnMut(String),
) {
    let (op, needs) = (shader.op, shader.variant.needs);
    let [entry] = module.entry_points.as_slice() else {
        return complain(format!("{} entry points, not one", module.entry_points.len()));
    };
    if entry.name != op.name() {
        complain(format!("entry point `{}`, op `{}`", entry.name, op.name()));
    }
    if stem(op.shader()) != op.name() {
        complain(format!("file {}, op `{}`", op.shader(), op.name()));
    }
    let invocations: u32 = entry.workgroup_size.iter().product();
    let limit = needs.invocations.max(PORTABLE_INVOCATIONS);
    if invocations == 0 || invocations > limit {
        complain(format!("{invocations} invocations in a workgroup, declared at most {limit}"));
    }
    let mut layouter = naga::proc::Layouter::default();
    if let Err(error) = layouter.update(module.to_ctx()) {
        return complain(format!("layout: {error}"));
    }
    let usage = info.get_entry_point(0);
    let bytes: u32 = module
        .global_variables
        .iter()
        .filter(|(handle, variable)| {
            variable.space == AddressSpace::WorkGroup && !usage[*handle].is_empty()
        })
        // Drivers lay variables out at 16-byte boundaries.
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum();
    let limit = needs.workgroup_bytes.max(PORTABLE_WORKGROUP_BYTES);
    if bytes > limit {
        complain(format!("{bytes} bytes of workgroup memory, declared at most {limit}"));
    }
}

fn check_bindings(shader: &Shader<'_>, module: &naga::Module, complain: &mut impl FnMut(String)) {
    let declared = shader.op.bindings(shader.call);
    if declared.len() > PORTABLE_STORAGE_BINDINGS {
        complain(format!("{} storage bindings, at most 8 are portable", declared.len()));
    }
    let mut found: Vec<(u32, Binding)> = Vec::new();
    let mut params = None;
    for (_, variable) in module.global_variables.iter() {
        let name = variable.name.clone().unwrap_or_default();
        match (variable.space, &variable.binding) {
            (AddressSpace::Immediate | AddressSpace::Uniform, binding) => {
                params = Some((name, variable.space, binding.map(|at| at.binding)));
            }
            (AddressSpace::Storage { access }, Some(at)) => {
                if at.group != 0 {
                    complain(format!("binding `{name}` is in group {}", at.group));
                }
                let access = if access.contains(naga::StorageAccess::STORE) {
                    Access::ReadWrite
                } else {
                    Access::Read
                };
                found.push((at.binding, Binding { name: name.leak(), access }));
            }
            (_, Some(_)) => complain(format!("`{name}` is neither parameters nor storage")),
            _ => {}
        }
    }
    let expected = if shader.immediates {
        (String::from("params"), AddressSpace::Immediate, None)
    } else {
        (String::from("params"), AddressSpace::Uniform, Some(0))
    };
    if params != Some(expected) {
        complain(format!("parameters are {params:?}, not `params` at binding 0"));
    }
    found.sort_by_key(|(binding, _)| *binding);
    let wanted: Vec<(u32, Binding)> = (1..).zip(declared).collect();
    if found != wanted {
        complain(format!("the shader binds {found:?}, the op {wanted:?}"));
    }
}

fn check_params(fields: &[Field], module: &naga::Module, complain: &mut impl FnMut(String)) {
    let params = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
    let Some((_, naga::Type { inner: naga::TypeInner::Struct { members, .. }, .. })) = params
    else {
        return complain("no struct `Params`".into());
    };
    let of_shader: Vec<(String, usize, String)> = members
        .iter()
        .map(|member| {
            let kind = match module.types[member.ty].inner {
                naga::TypeInner::Scalar(naga::Scalar::U32) => "u32".into(),
                naga::TypeInner::Scalar(naga::Scalar::F32) => "f32".into(),
                ref other => format!("{other:?}"),
            };
            (member.name.clone().unwrap_or_default(), member.offset as usize, kind)
        })
        .collect();
    let of_op: Vec<(String, usize, String)> = fields
        .iter()
        .map(|field| {
            let kind = match field.scalar {
                Scalar::U32 => "u32",
                Scalar::F32 => "f32",
            };
            (field.name.into(), field.offset, kind.into())
        })
        .collect();
    if of_shader != of_op {
        complain(format!("`Params` is {of_shader:?} in the shader, {of_op:?} in the op"));
    }
}

#[test]
fn variants_are_named_and_the_last_is_portable() {
    let mut problems = Problems::default();
    for op in OPS {
        for case in op.cases() {
            let place = format!("{} case {}", op.name(), case.name);
            let variants = op.variants(&case.call);
            let names: HashSet<&str> = variants.iter().map(|variant| variant.name).collect();
            if names.len() != variants.len() {
                problems.add(&place, "two variants have one name");
            }
            match variants.last() {
                Some(last) if last.approximate => {
                    problems.add(&place, "the last variant changes the numbers");
                }
                Some(last) if last.needs == Needs::default() => {}
                Some(last) => problems.add(&place, format!("the last variant needs {last:?}")),
                None => problems.add(&place, "no variants"),
            }
            for variant in &variants {
                let grid = op.grid(&case.call, variant);
                if grid.iter().any(|&count| count > edge_kernels::util::MAX_GRID) {
                    problems.add(&place, format!("variant {}: grid {grid:?}", variant.name));
                }
            }
        }
    }
    problems.finish();
}

/// Whether one of the sizes is odd, and more than a flag is.
fn is_odd(op: &dyn Op, call: &edge_kernels::Call) -> bool {
    let words = call.words();
    op.fields().iter().filter(|field| field.scalar == Scalar::U32).any(|field| {
        let word = words[field.offset / 4];
        word > 2 && word % 2 == 1
    })
}

#[test]
fn ops_are_named_once_and_have_cases() {
    let mut problems = Problems::default();
    let mut names = HashSet::new();
    for op in OPS {
        if !names.insert(op.name()) {
            problems.add(op.name(), "two ops have this name");
        }
        let cases = op.cases();
        let distinct: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        if distinct.len() != cases.len() {
            problems.add(op.name(), "two cases have one name");
        }
        if cases.iter().all(|case| case.bench) {
            problems.add(op.name(), "no case that tests run");
        }
        if !cases.iter().any(|case| !case.bench && is_odd(*op, &case.call)) {
            problems.add(op.name(), "no case of an odd size: sizes that fit hide wrong bounds");
        }
        if cases.iter().all(|case| !case.bench) {
            problems.add(op.name(), "no case that benches time");
        }
    }
    problems.finish();
}

/// Run by tests alone, in place of what no device here has.
const EMULATED: &str = "lib/coop_emulated.wgsl";

#[test]
fn every_shader_file_is_used() {
    let mut problems = Problems::default();
    let mut used: HashSet<String> = HashSet::new();
    for_each_shader(&mut problems, |_, shader| {
        used.insert(shader.op.shader().to_string());
        used.extend(shader.assembled.lines.iter().map(|(file, _)| file.clone()));
    });
    for file in files() {
        if !used.contains(file) && file != EMULATED {
            problems.add(&format!("shaders/{file}"), "neither an op's file nor included by one");
        }
    }
    problems.finish();
}

/// The checks above have to be able to fail.
#[test]
fn a_wrong_shader_is_refused() {
    let op = edge_kernels::ops::find("rms_norm_forward").expect("an op of the registry");
    let call = &op.cases()[0].call;
    let variant = &Variant::plain();
    let source = assemble(op, variant, false).expect("a sound op assembles");
    let refuse = |from: &str, to: &str| {
        assert!(source.text.contains(from), "{from}");
        let assembled =
            Assembled { text: source.text.replace(from, to), lines: source.lines.clone() };
        let shader =
            Shader { op, call, variant, assembled, immediates: false, place: String::new() };
        let mut found = Vec::new();
        match parse(&shader) {
            Ok((module, info)) => {
                check_entry_point(&shader, &module, &info, &mut |what| found.push(what));
                check_bindings(&shader, &module, &mut |what| found.push(what));
                check_params(op.fields(), &module, &mut |what| found.push(what));
            }
            Err(message) => found.push(message),
        }
        found.join("\n")
    };
    assert_eq!(refuse(op.name(), op.name()), "");
    let renamed = format!("fn {}_other(", op.name());
    assert!(refuse(&format!("fn {}(", op.name()), &renamed).contains("entry point"));
    assert!(refuse("@binding(1)", "@binding(31)").contains("the shader binds"));
    assert!(refuse("struct Params {", "struct Params { extra: u32,").contains("`Params` is"));
    assert!(refuse("@workgroup_size(", "@workgroup_size(1024 + ").contains("invocations"));
    let half = "enable f16;\nvar<private> half: f16;\n@compute";
    assert!(refuse("@compute", half).contains("shaders/"), "f16 without declaring it");
    assert!(refuse(": Params;", ": Wrong;").contains("shaders/"), "an unknown type");
}
