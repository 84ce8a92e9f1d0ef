//! Compiled shaders and bind groups, each made once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use edge_kernels::op::{Access, Binding, Call, Needs, Op, Variant};
use edge_kernels::shader::{Assembled, assemble};

use crate::adapter::DeviceInfo;
use crate::buffer::{Slice, next_id};
use crate::error::{Error, one_line};
use crate::sync::Lock;

/// Room for any `Params`.
pub(crate) const PARAMS_BYTES: u32 = 4 * edge_kernels::op::CALL_WORDS as u32;

/// A compiled variant.
pub(crate) struct Pipeline {
    id: u64,
    pub(crate) compute: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// Everything that decides the text, the layout and the entry point.
#[derive(PartialEq, Eq, Hash)]
struct PipelineKey {
    op: &'static str,
    variant: Variant,
    bindings: usize,
}

/// The pipelines of a device.
pub(crate) struct Pipelines {
    immediates: bool,
    checked: bool,
    /// What the driver refused once is refused without asking it again.
    made: Lock<HashMap<PipelineKey, Result<Arc<Pipeline>, Error>>>,
}

/// Whether a device can run a variant.
pub(crate) fn satisfies(info: &DeviceInfo, needs: &Needs) -> bool {
    (info.f16 || !needs.f16)
        && (info.subgroups || !needs.subgroups)
        && (info.int64 || !needs.int64)
        && (needs.subgroup_size == 0
            || [info.subgroup_min, info.subgroup_max] == [needs.subgroup_size; 2])
        && needs.cooperative.is_none_or(|kind| info.cooperative.contains(&kind))
        && needs.invocations <= info.max_invocations
        && needs.workgroup_bytes <= info.max_workgroup_bytes
}

impl Pipelines {
    pub(crate) fn new(immediates: bool, checked: bool) -> Self {
        Self { immediates, checked, made: Lock::default() }
    }

    /// The pipeline of a variant, compiled on first use.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        op: &dyn Op,
        call: &Call,
        bindings: &[Binding],
        variant: &Variant,
    ) -> Result<Arc<Pipeline>, Error> {
        let key = PipelineKey { op: op.name(), variant: variant.clone(), bindings: bindings.len() };
        // Held while compiling: two threads that want the same pipeline must not both compile it.
        let mut made = self.made.lock();
        if let Some(known) = made.get(&key) {
            return known.clone();
        }
        let compiled = self.compile(device, op, call, bindings, variant).map(Arc::new);
        if let Err(error) = &compiled {
            tracing::warn!("{error}");
        }
        made.insert(key, compiled.clone());
        compiled
    }

    fn compile(
        &self,
        device: &wgpu::Device,
        op: &dyn Op,
        call: &Call,
        bindings: &[Binding],
        variant: &Variant,
    ) -> Result<Pipeline, Error> {
        let fail = |message: String| Error::Shader {
            op: op.name(),
            variant: variant.name,
            message: one_line(&message),
        };
        let assembled =
            assemble(op, variant, self.immediates).map_err(|error| fail(error.to_string()))?;
        let (pipeline, error) = scoped(device, || {
            let module = self.module(device, op.name(), &assembled);
            let complaints = complaints(&module, &assembled);
            let layout = self.bind_group_layout(device, op.name(), bindings);
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(op.name()),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: if self.immediates { 4 * call.words().len() as u32 } else { 0 },
            });
            let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(op.name()),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(op.name()),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Shaders write workgroup memory before they read it, and zeroing it
                    // costs a loop per workgroup on some backends.
                    zero_initialize_workgroup_memory: self.checked,
                    ..Default::default()
                },
                cache: None,
            });
            (Pipeline { id: next_id(), compute, layout }, complaints)
        });
        match (error, pipeline) {
            (None, (pipeline, _)) => Ok(pipeline),
            (Some(error), (_, None)) => Err(fail(error.to_string())),
            (Some(_), (_, Some(complaints))) => Err(fail(complaints)),
        }
    }

    fn module(
        &self,
        device: &wgpu::Device,
        name: &str,
        assembled: &Assembled,
    ) -> wgpu::ShaderModule {
        let description = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(assembled.text.as_str().into()),
        };
        if self.checked {
            return device.create_shader_module(description);
        }
        // SAFETY: the text is one of this project's own shaders, whose accesses stay inside
        // their bindings and whose loops end: the parity tests run every one of them between
        // guard zones, and again in checked mode.
        unsafe {
            device.create_shader_module_trusted(description, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }

    fn bind_group_layout(
        &self,
        device: &wgpu::Device,
        name: &str,
        bindings: &[Binding],
    ) -> wgpu::BindGroupLayout {
        let entry = |binding: usize, ty, dynamic| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty,
                has_dynamic_offset: dynamic,
                min_binding_size: None,
            },
            count: None,
        };
        let mut entries = Vec::with_capacity(bindings.len() + 1);
        if !self.immediates {
            entries.push(entry(0, wgpu::BufferBindingType::Uniform, true));
        }
        for (index, binding) in bindings.iter().enumerate() {
            let read_only = binding.access == Access::Read;
            entries.push(entry(index + 1, wgpu::BufferBindingType::Storage { read_only }, false));
        }
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &entries,
        })
    }
}

/// Errors of a module, each behind the line of the file that a person can edit.
fn complaints(module: &wgpu::ShaderModule, assembled: &Assembled) -> Option<String> {
    let info = pollster::block_on(module.get_compilation_info());
    let errors = info
        .messages
        .iter()
        .filter(|message| matches!(message.message_type, wgpu::CompilationMessageType::Error));
    let lines: Vec<String> = errors
        .map(|message| match &message.location {
            Some(at) => {
                format!("{}: {}", assembled.origin(at.line_number as usize), message.message)
            }
            None => message.message.clone(),
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Runs `body` and reports the first error that the device raised in it.
pub(crate) fn scoped<R>(
    device: &wgpu::Device,
    body: impl FnOnce() -> R,
) -> (R, Option<wgpu::Error>) {
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let result = body();
    let validation = pollster::block_on(validation.pop());
    let internal = pollster::block_on(internal.pop());
    let memory = pollster::block_on(memory.pop());
    (result, memory.or(validation).or(internal))
}

/// Pipeline and, for each binding, buffer, offset and size.
#[derive(PartialEq, Eq, Hash)]
struct GroupKey {
    pipeline: u64,
    slices: Vec<(u64, u64, u64)>,
}

#[derive(Default)]
struct Groups {
    made: HashMap<Arc<GroupKey>, wgpu::BindGroup>,
    /// Keys by the buffers that they bind.
    users: HashMap<u64, HashSet<Arc<GroupKey>>>,
}

/// The bind groups of a device, kept until one of their buffers is dropped.
#[derive(Default)]
pub(crate) struct BindGroups(Lock<Groups>);

impl BindGroups {
    /// The bind group of these slices; `uniforms` is the buffer of parameters where those are
    /// not immediates.
    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        pipeline: &Pipeline,
        uniforms: Option<&wgpu::Buffer>,
        slices: &[(&wgpu::Buffer, &Slice)],
    ) -> wgpu::BindGroup {
        let ids = |slice: &Slice| (slice.buffer().id(), slice.offset_words(), slice.words());
        let key = GroupKey {
            pipeline: pipeline.id,
            slices: slices.iter().map(|(_, slice)| ids(slice)).collect(),
        };
        let mut groups = self.0.lock();
        if let Some(group) = groups.made.get(&key) {
            return group.clone();
        }
        let range = |buffer, offset, bytes| {
            wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(bytes),
            })
        };
        let mut entries = Vec::with_capacity(slices.len() + 1);
        if let Some(uniforms) = uniforms {
            let resource = range(uniforms, 0, u64::from(PARAMS_BYTES));
            entries.push(wgpu::BindGroupEntry { binding: 0, resource });
        }
        for (index, (buffer, slice)) in slices.iter().enumerate() {
            let resource = range(buffer, 4 * slice.offset_words(), slice.bytes());
            entries.push(wgpu::BindGroupEntry { binding: index as u32 + 1, resource });
        }
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        let key = Arc::new(key);
        for (buffer, _, _) in &key.slices {
            groups.users.entry(*buffer).or_default().insert(Arc::clone(&key));
        }
        groups.made.insert(key, group.clone());
        group
    }

    /// Forgets the bind groups of a buffer, which would otherwise keep its memory.
    pub(crate) fn purge(&self, buffer: u64) {
        let mut groups = self.0.lock();
        let Some(keys) = groups.users.remove(&buffer) else { return };
        for key in keys {
            groups.made.remove(&key);
            for (other, _, _) in &key.slices {
                if let Some(users) = groups.users.get_mut(other) {
                    users.remove(&key);
                }
            }
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().made.len()
    }
}
