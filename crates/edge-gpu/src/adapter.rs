//! Which devices there are, which one a selector means, and what it can do.

use edge_kernels::op::{Cooperative, Hardware};
use edge_kernels::preference::Vendor;

use crate::device::Options;
use crate::error::Error;

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A GPU with memory of its own.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU lent to a virtual machine.
    Virtual,
    /// A driver that runs shaders on the CPU.
    Software,
    /// A GPU that the driver does not classify.
    Other,
    /// The `cpu` device: no driver at all.
    Host,
}

impl DeviceKind {
    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Software => "software",
            Self::Other => "other",
            Self::Host => "host",
        }
    }

    /// Whether shaders (or references) run on the CPU's cores.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Software | Self::Host)
    }

    /// Which variants of an op suit it.
    pub fn hardware(self) -> Hardware {
        if self.is_cpu() { Hardware::Software } else { Hardware::Gpu }
    }

    fn of(kind: wgpu::DeviceType) -> Self {
        match kind {
            wgpu::DeviceType::DiscreteGpu => Self::Discrete,
            wgpu::DeviceType::IntegratedGpu => Self::Integrated,
            wgpu::DeviceType::VirtualGpu => Self::Virtual,
            wgpu::DeviceType::Cpu => Self::Software,
            wgpu::DeviceType::Other => Self::Other,
        }
    }
}

/// One line of [`crate::Device::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// Selects it in [`crate::Device::open`].
    pub index: usize,
    /// Name of the adapter.
    pub name: String,
    /// What it is.
    pub kind: DeviceKind,
    /// API that it is reached through: `vulkan`, `metal`, `dx12` or `host`.
    pub backend: String,
    /// Name of the driver.
    pub driver: String,
    /// Version of the driver.
    pub driver_info: String,
}

impl AdapterSummary {
    fn matches(&self, needle: &str) -> bool {
        let found = [&self.name, &self.driver, &self.driver_info]
            .iter()
            .any(|text| text.to_lowercase().contains(needle));
        // Mesa calls one driver by two names.
        found || (needle == "lavapipe" && self.matches("llvmpipe"))
    }

    pub(crate) fn line(&self) -> String {
        format!("{}: {} ({})", self.index, self.name, self.backend)
    }
}

/// An open device: what it is, what it can do, what it allows. Sizes are in bytes unless the name
/// says words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name of the adapter, or `cpu`.
    pub name: String,
    /// API that it is reached through: `vulkan`, `metal`, `dx12` or `host`.
    pub backend: String,
    /// Name of the driver.
    pub driver: String,
    /// Version of the driver.
    pub driver_info: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Who made it.
    pub vendor: Vendor,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Subgroup operations in shaders.
    pub subgroups: bool,
    /// Shaders may use 64-bit integers.
    pub int64: bool,
    /// Matrices that subgroups of 32 lanes multiply together.
    pub cooperative: Vec<Cooperative>,
    /// Least lanes in a subgroup.
    pub subgroup_min: u32,
    /// Most lanes in a subgroup.
    pub subgroup_max: u32,
    /// GPU time by timestamps; without them [`crate::Device::take_profile`] reads the host clock.
    pub timestamps: bool,
    /// Parameters as immediates (push constants) instead of a uniform buffer.
    pub immediates: bool,
    /// Storage buffers can be mapped: buffers filled at creation need no staging.
    pub mappable: bool,
    /// Shaders run with bounds checks and one at a time.
    pub checked: bool,
    /// Largest storage binding.
    pub max_binding_bytes: u64,
    /// Largest buffer.
    pub max_buffer_bytes: u64,
    /// Most storage bindings of a dispatch.
    pub max_storage_bindings: u32,
    /// Most invocations in a workgroup.
    pub max_invocations: u32,
    /// Most bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// Most workgroups in one dimension of a grid.
    pub max_grid: u32,
    /// Offsets of slices are multiples of this many words.
    pub alignment_words: u64,
}

/// The adapters of all backends but GL, which has neither f16 nor subgroups.
pub(crate) fn adapters() -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        // Driver validation layers are asked for through the environment only.
        flags: wgpu::InstanceFlags::empty().with_env(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = pollster::block_on(instance.enumerate_adapters(backends));
    let compute = wgpu::DownlevelFlags::COMPUTE_SHADERS;
    found
        .into_iter()
        .filter(|adapter| adapter.get_downlevel_capabilities().flags.contains(compute))
        .collect()
}

/// What can be selected: the adapters, and last the `cpu` device.
pub(crate) fn summaries(adapters: &[wgpu::Adapter]) -> Vec<AdapterSummary> {
    let mut list: Vec<AdapterSummary> = adapters
        .iter()
        .enumerate()
        .map(|(index, adapter)| {
            let info = adapter.get_info();
            AdapterSummary {
                index,
                name: info.name,
                kind: DeviceKind::of(info.device_type),
                backend: info.backend.to_str().to_string(),
                driver: info.driver,
                driver_info: info.driver_info,
            }
        })
        .collect();
    list.push(AdapterSummary {
        index: list.len(),
        name: "cpu".into(),
        kind: DeviceKind::Host,
        backend: "host".into(),
        driver: "edge-kernels".into(),
        driver_info: env!("CARGO_PKG_VERSION").into(),
    });
    list
}

/// Index into `list` (whose last element is the `cpu` device) of what `selector` means.
pub(crate) fn select(list: &[AdapterSummary], selector: &str) -> Result<usize, Error> {
    let cpu = list.len() - 1;
    let needle = selector.trim().to_lowercase();
    if needle == "cpu" {
        return Ok(cpu);
    }
    if needle == "auto" {
        // A software driver is slower than the `cpu` device, which calls optimised products.
        let rank = |kind| match kind {
            DeviceKind::Discrete => 0,
            DeviceKind::Integrated => 1,
            DeviceKind::Virtual => 2,
            DeviceKind::Other => 3,
            DeviceKind::Software | DeviceKind::Host => 4,
        };
        let best = list.iter().min_by_key(|device| rank(device.kind));
        return Ok(best.filter(|device| !device.kind.is_cpu()).map_or(cpu, |best| best.index));
    }
    let unknown = || Error::NoSuchDevice {
        selector: selector.to_string(),
        choices: list.iter().map(AdapterSummary::line).collect(),
    };
    match needle.parse::<usize>() {
        Ok(index) if index < list.len() => return Ok(index),
        // A longer number is a part of a name: 4090.
        Ok(_) if needle.len() < 3 => return Err(unknown()),
        _ => {}
    }
    let matching: Vec<&AdapterSummary> =
        list[..cpu].iter().filter(|device| !needle.is_empty() && device.matches(&needle)).collect();
    let first = matching.first().ok_or_else(unknown)?;
    // The same GPU through two APIs is one choice; the first API listed is the preferred one.
    if matching.iter().any(|device| {
        device.name != first.name || device.backend == first.backend && device.index != first.index
    }) {
        return Err(Error::AmbiguousDevice {
            selector: selector.to_string(),
            choices: matching.iter().map(|device| device.line()).collect(),
        });
    }
    Ok(first.index)
}

/// The features of an adapter that are used here.
pub(crate) fn features(adapter: &wgpu::Adapter, options: &Options) -> wgpu::Features {
    use wgpu::Features;
    let mut wanted = Features::TIMESTAMP_QUERY;
    wanted.set(Features::SHADER_INT64, !options.disable_int64);
    wanted.set(Features::SHADER_F16, !options.disable_f16);
    // naga's HLSL gives subgroup builtins in a struct, as `lib/reduce_subgroup.wgsl` has them, no
    // semantics.
    let written = adapter.get_info().backend != wgpu::Backend::Dx12;
    wanted.set(Features::SUBGROUP, written && !options.disable_subgroups);
    let room = adapter.limits().max_immediate_size >= crate::pipeline::PARAMS_BYTES;
    wanted.set(Features::IMMEDIATES, !options.disable_immediates && room);
    // On a discrete GPU mappable memory is at the far end of the bus.
    let unified = matches!(
        adapter.get_info().device_type,
        wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu
    );
    wanted.set(Features::MAPPABLE_PRIMARY_BUFFERS, unified && !options.disable_mapping);
    let cooperative = !options.disable_cooperative && !cooperative(adapter).is_empty();
    wanted.set(Features::EXPERIMENTAL_COOPERATIVE_MATRIX, cooperative);
    wanted & adapter.features()
}

/// The matrices that subgroups of an adapter multiply together and shaders here use.
fn cooperative(adapter: &wgpu::Adapter) -> Vec<Cooperative> {
    if whole_subgroups(&adapter.get_info()) {
        cooperative_of(&adapter.cooperative_matrix_properties())
    } else {
        Vec::new()
    }
}

/// Whether a workgroup of 32 lanes is one subgroup. Metal says 4 to 64 for all GPUs, but those that
/// have matrices of a subgroup have 32 lanes in each.
fn whole_subgroups(info: &wgpu::AdapterInfo) -> bool {
    info.backend == wgpu::Backend::Metal
        || [info.subgroup_min_size, info.subgroup_max_size] == [32; 2]
}

fn cooperative_of(offered: &[wgpu::CooperativeMatrixProperties]) -> Vec<Cooperative> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let offers = |kind: &Cooperative| {
        let operands = if kind.is_f16() { F16 } else { F32 };
        offered.iter().any(|one| {
            [one.m_size, one.n_size, one.k_size] == [kind.side(); 3]
                && [one.ab_type, one.cr_type] == [operands, F32]
        })
    };
    Cooperative::ALL.into_iter().filter(offers).collect()
}

/// What an open device is, from its adapter and the features that were enabled.
pub(crate) fn info(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    options: &Options,
) -> DeviceInfo {
    use wgpu::Features;
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let has = |feature| features.contains(feature);
    let binding = limits.max_storage_buffer_binding_size;
    let maker = vendor(&info);
    DeviceInfo {
        name: info.name,
        backend: info.backend.to_str().to_string(),
        driver: info.driver,
        driver_info: info.driver_info,
        kind: DeviceKind::of(info.device_type),
        vendor: maker,
        f16: has(Features::SHADER_F16),
        subgroups: has(Features::SUBGROUP),
        int64: has(Features::SHADER_INT64),
        cooperative: match has(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            true => cooperative(adapter),
            false => Vec::new(),
        },
        subgroup_min: info.subgroup_min_size,
        subgroup_max: info.subgroup_max_size,
        timestamps: has(Features::TIMESTAMP_QUERY),
        immediates: has(Features::IMMEDIATES),
        mappable: has(Features::MAPPABLE_PRIMARY_BUFFERS),
        checked: options.is_checked(),
        max_binding_bytes: options.max_binding_bytes.map_or(binding, |most| most.min(binding)),
        max_buffer_bytes: limits.max_buffer_size,
        max_storage_bindings: limits.max_storage_buffers_per_shader_stage,
        max_invocations: limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x),
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_grid: limits.max_compute_workgroups_per_dimension,
        alignment_words: u64::from(limits.min_storage_buffer_offset_alignment).div_ceil(4),
    }
}

/// Metal reports no ids; its GPUs are Apple's but for old Macs.
fn vendor(info: &wgpu::AdapterInfo) -> Vendor {
    match (info.backend, Vendor::from_pci(info.vendor)) {
        (wgpu::Backend::Metal, Vendor::Other) => Vendor::Apple,
        (_, vendor) => vendor,
    }
}

/// What the `cpu` device is. Its limits are those of core WebGPU where a looser one would let a
/// mistake pass that a GPU refuses.
pub(crate) fn host_info(options: &Options) -> DeviceInfo {
    // Shaders index with u32, and so do the references.
    let binding = (1 << 32) - 4;
    DeviceInfo {
        name: "cpu".into(),
        backend: "host".into(),
        driver: "edge-kernels".into(),
        driver_info: env!("CARGO_PKG_VERSION").into(),
        kind: DeviceKind::Host,
        vendor: Vendor::Other,
        f16: false,
        subgroups: false,
        int64: false,
        cooperative: Vec::new(),
        subgroup_min: 1,
        subgroup_max: 1,
        timestamps: false,
        immediates: false,
        mappable: true,
        checked: options.is_checked(),
        max_binding_bytes: options.max_binding_bytes.map_or(binding, |most| most.min(binding)),
        max_buffer_bytes: 1 << 46,
        max_storage_bindings: 8,
        max_invocations: 256,
        max_workgroup_bytes: 16384,
        max_grid: 65535,
        alignment_words: 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(devices: &[(&str, &str, DeviceKind)]) -> Vec<AdapterSummary> {
        let mut list = summaries(&[]);
        for (name, driver, kind) in devices.iter().rev() {
            list.insert(
                0,
                AdapterSummary {
                    index: 0,
                    name: name.to_string(),
                    kind: *kind,
                    backend: "vulkan".into(),
                    driver: driver.to_string(),
                    driver_info: String::new(),
                },
            );
        }
        for (index, device) in list.iter_mut().enumerate() {
            device.index = index;
        }
        list
    }

    #[test]
    fn auto_prefers_a_gpu_and_never_takes_a_software_driver() {
        let software = ("llvmpipe (LLVM 15)", "llvmpipe", DeviceKind::Software);
        let small = ("Iris", "anv", DeviceKind::Integrated);
        let big = ("Radeon", "radv", DeviceKind::Discrete);
        assert_eq!(select(&list(&[software, small, big]), "auto"), Ok(2));
        assert_eq!(select(&list(&[software, small]), "auto"), Ok(1));
        assert_eq!(select(&list(&[software]), "auto"), Ok(1));
        assert_eq!(select(&list(&[]), "auto"), Ok(0));
        assert_eq!(select(&list(&[software, big]), "CPU"), Ok(2));
    }

    #[test]
    fn matrices_are_those_that_shaders_here_use() {
        use wgpu::CooperativeScalarType::{F16, F32};
        let offer = |[m_size, n_size, k_size]: [u32; 3], ab_type, cr_type| {
            let saturating_accumulation = false;
            wgpu::CooperativeMatrixProperties {
                m_size,
                n_size,
                k_size,
                ab_type,
                cr_type,
                saturating_accumulation,
            }
        };
        let metal = [offer([8; 3], F32, F32), offer([8; 3], F16, F16), offer([8; 3], F16, F32)];
        assert_eq!(cooperative_of(&metal), [Cooperative::F16Side8, Cooperative::F32Side8]);
        assert_eq!(cooperative_of(&[offer([16; 3], F16, F32)]), [Cooperative::F16]);
        let others = [offer([16, 8, 16], F16, F32), offer([16; 3], F16, F16)];
        assert_eq!(cooperative_of(&others), []);
    }

    #[test]
    fn names_and_indices_select() {
        let list = list(&[
            ("llvmpipe (LLVM 15)", "llvmpipe", DeviceKind::Software),
            ("SwiftShader Device", "SwiftShader driver", DeviceKind::Software),
            ("GeForce A", "nvidia", DeviceKind::Discrete),
            ("GeForce B", "nvidia", DeviceKind::Discrete),
        ]);
        assert_eq!(select(&list, "lavapipe"), Ok(0));
        assert_eq!(select(&list, "LLVMpipe"), Ok(0));
        assert_eq!(select(&list, "swiftshader"), Ok(1));
        assert_eq!(select(&list, "geforce b"), Ok(3));
        assert_eq!(select(&list, "4"), Ok(4));
        let error = select(&list, "nvidia").expect_err("two match");
        assert!(error.to_string().contains("2: GeForce A (vulkan); 3: GeForce B"), "{error}");
        for wrong in ["5", "999", "radeon", ""] {
            let error = select(&list, wrong).expect_err("none matches");
            assert!(error.to_string().contains("4: cpu (host)"), "{error}");
        }
    }
}
