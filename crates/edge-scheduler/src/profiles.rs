//! Facts of devices that are not at hand, each number with its source.
//!
//! They are peaks of public data sheets, for estimates of how long a step would take; what a
//! device reaches is measured on it. Where a number is not published, its source begins with
//! `assumed` and says what it is derived from. Web pages that are named were read in 2026-11; what
//! is cited of a vendor by month alone is that announcement, not read again for this list.

/// A number and where it is from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sourced {
    /// The number, in the unit of the field that has it.
    pub value: f64,
    /// A publication, a derivation from published numbers, or `assumed: ...`.
    pub source: &'static str,
}

impl Sourced {
    /// Whether the number is not published, nor follows from what is.
    pub fn is_assumed(self) -> bool {
        self.source.starts_with("assumed")
    }
}

/// What a device can do at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceProfile {
    /// Name on a command line, in kebab case.
    pub name: &'static str,
    /// What it is: the GPU, and the chip or product it is in.
    pub title: &'static str,
    /// Peak of the vector units in f32, FLOP/s; a multiply-add is two.
    pub flops_f32: Sourced,
    /// Peak of the vector units in f16, FLOP/s. Matrix units are left out: WGSL has no stable
    /// way to them.
    pub flops_f16: Sourced,
    /// Peak of the memory that CPU and GPU share, bytes/s.
    pub memory_bytes_per_s: Sourced,
    /// The usual size of that memory, bytes.
    pub memory_bytes: Sourced,
    /// Sequential reads of the storage, bytes/s.
    pub storage_bytes_per_s: Sourced,
    /// The last level on the chip that the GPU reads through, bytes.
    pub sram_bytes: Sourced,
    /// Whether CPU and GPU share one memory.
    pub unified: bool,
    /// What the CPU spends on one dispatch, seconds.
    pub dispatch_s: Sourced,
}

const fn from(value: f64, source: &'static str) -> Sourced {
    Sourced { value, source }
}

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// Dawn and WebGPU-native, dispatches one after another.
const DISPATCH_VULKAN: Sourced = from(30e-6, "arXiv 2604.02344: 24 to 36 us on Vulkan, the middle");
const DISPATCH_METAL: Sourced = from(51.5e-6, "arXiv 2604.02344: 32 to 71 us on Metal, the middle");
const UFS_4: Sourced = from(4.2e9, "Samsung, 2022-05: UFS 4.0 reads 4,200 MB/s");
const NVME_4: Sourced = from(5e9, "assumed: an M.2 SSD on PCIe 4.0 x4, whose link has 7.9 GB/s");

const ADRENO_740: DeviceProfile = DeviceProfile {
    name: "adreno-740",
    title: "Adreno 740 (Snapdragon 8 Gen 2, Galaxy S23)",
    flops_f32: from(
        2.09e12,
        "derived: 680 MHz (primua.com/adreno-740) x 1,536 lanes x 2; the lanes are those of the \
         X1-85 (4.6 TFLOPS at 1.5 GHz), of the same entry in Mesa's freedreno_devices.py; other \
         sites have 3.7 TFLOPS",
    ),
    flops_f16: from(4.18e12, "derived: twice f32 (primua.com/adreno-740 has f16 at 2 : 1)"),
    memory_bytes_per_s: from(67.2e9, "derived: LPDDR5X at 4,200 MHz (nanoreview.net), 64 bits"),
    memory_bytes: from(8.0 * GIB, "Samsung, 2023-02: Galaxy S23 with 8 GB"),
    storage_bytes_per_s: UFS_4,
    sram_bytes: from(3.0 * MIB, "assumed: 3 MB of graphics memory (GMEM); not published"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const ADRENO_830: DeviceProfile = DeviceProfile {
    name: "adreno-830",
    title: "Adreno 830 (Snapdragon 8 Elite, Galaxy S25)",
    flops_f32: from(
        3.38e12,
        "assumed: 1,536 lanes as in the Adreno 740 x 2 x 1.1 GHz; the clock: Qualcomm, 2024-10",
    ),
    flops_f16: from(6.76e12, "assumed: twice f32, as in the Adreno 740"),
    memory_bytes_per_s: from(84.8e9, "Qualcomm, 2024-10: LPDDR5X at 5,300 MHz, 84.8 GB/s"),
    memory_bytes: from(12.0 * GIB, "Samsung, 2025-01: Galaxy S25 with 12 GB"),
    storage_bytes_per_s: UFS_4,
    sram_bytes: from(12.0 * MIB, "Qualcomm, 2024-10: 12 MB of graphics memory (GMEM)"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const MALI_G715: DeviceProfile = DeviceProfile {
    name: "mali-g715",
    title: "Mali-G715 with 7 cores (Tensor G3, Pixel 8)",
    flops_f32: from(
        1.59e12,
        "derived: 7 cores (gsmarena, 2023-10) x 128 FMA (Arm GPU data sheet) x 2 x 890 MHz",
    ),
    flops_f16: from(3.19e12, "derived: twice f32 (Arm GPU data sheet)"),
    memory_bytes_per_s: from(68.3e9, "assumed: LPDDR5X at 8,533 MT/s, 64 bits"),
    memory_bytes: from(8.0 * GIB, "Google, 2023-10: Pixel 8 with 8 GB"),
    storage_bytes_per_s: from(2.1e9, "Samsung: UFS 3.1, which a Pixel 8 has, reads 2,100 MB/s"),
    sram_bytes: from(8.0 * MIB, "assumed: a system level cache of 8 MB, as in Tensor (2021)"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const APPLE_M2: DeviceProfile = DeviceProfile {
    name: "apple-m2",
    title: "Apple M2 with 10 GPU cores (MacBook Air 2022)",
    flops_f32: from(3.6e12, "Apple newsroom, 2022-06: 3.6 TFLOPS"),
    flops_f16: from(3.6e12, "philipturner/metal-benchmarks: f16 at the rate of f32"),
    memory_bytes_per_s: from(100e9, "Apple newsroom, 2022-06: 100 GB/s"),
    memory_bytes: from(8.0 * GIB, "Apple, 2022-06: MacBook Air from 8 GB"),
    storage_bytes_per_s: from(1.45e9, "iclarified.com/86732: 1,446 MB/s measured, with 256 GB"),
    sram_bytes: from(8.0 * MIB, "Wikipedia, Apple M2: last level cache of 8 MB"),
    unified: true,
    dispatch_s: DISPATCH_METAL,
};

const INTEL_ARC_140V: DeviceProfile = DeviceProfile {
    name: "intel-arc-140v",
    title: "Intel Arc 140V (Lunar Lake, Core Ultra 7 258V)",
    flops_f32: from(
        3.99e12,
        "derived: 8 cores x 8 vectors of 512 bits (Tom's Hardware, 2024-06) x 2 x 1.95 GHz (Intel)",
    ),
    flops_f16: from(7.99e12, "derived: twice f32, as vectors of 512 bits hold 32 values of f16"),
    memory_bytes_per_s: from(136.5e9, "derived: LPDDR5X-8533 on the package (Intel), 128 bits"),
    memory_bytes: from(32.0 * GIB, "Intel: Core Ultra 7 258V with 32 GB"),
    storage_bytes_per_s: NVME_4,
    sram_bytes: from(8.0 * MIB, "chipsandcheese.com, 2024-10: L2 of 8 MB in the GPU"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const AMD_780M: DeviceProfile = DeviceProfile {
    name: "amd-780m",
    title: "AMD Radeon 780M (Ryzen 7 7840U)",
    flops_f32: from(8.29e12, "fpsbench.com: 8.294 TFLOPS at 2.7 GHz, with two issues a clock"),
    flops_f16: from(8.29e12, "derived: 12 CU x 64 lanes x 2 values x 2 x 2.7 GHz, single issue"),
    memory_bytes_per_s: from(120e9, "derived: LPDDR5X-7500 (AMD, Ryzen 7 7840U), 128 bits"),
    memory_bytes: from(16.0 * GIB, "assumed: the usual laptop with this chip"),
    storage_bytes_per_s: NVME_4,
    sram_bytes: from(2.0 * MIB, "fpsbench.com: L2 of 2 MB"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const AMD_890M: DeviceProfile = DeviceProfile {
    name: "amd-890m",
    title: "AMD Radeon 890M (Ryzen AI 9 HX 370)",
    flops_f32: from(
        11.88e12,
        "derived: twice the 5.939 TFLOPS of fpsbench.com, which count one issue a clock",
    ),
    flops_f16: from(11.88e12, "fpsbench.com: 11.88 TFLOPS, with one issue a clock"),
    memory_bytes_per_s: from(120e9, "derived: LPDDR5X-7500 (AMD, Ryzen AI 9 HX 370), 128 bits"),
    memory_bytes: from(32.0 * GIB, "assumed: the usual laptop with this chip"),
    storage_bytes_per_s: NVME_4,
    sram_bytes: from(2.0 * MIB, "fpsbench.com: L2 of 2 MB"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const JETSON_ORIN_NANO: DeviceProfile = DeviceProfile {
    name: "jetson-orin-nano",
    title: "NVIDIA Jetson Orin Nano 8 GB (as shipped in 2023, not Super)",
    flops_f32: from(1.28e12, "NVIDIA data sheet: 1,024 CUDA cores, 625 MHz; x 2"),
    flops_f16: from(2.56e12, "CUDA guide, compute capability 8.7: f16 at twice the rate of f32"),
    memory_bytes_per_s: from(68e9, "NVIDIA data sheet: 8 GB of LPDDR5, 128 bits, 68 GB/s"),
    memory_bytes: from(8.0 * GIB, "NVIDIA data sheet: 8 GB"),
    storage_bytes_per_s: from(3e9, "assumed: NVMe on its PCIe 3.0 x4, whose link has 3.9 GB/s"),
    sram_bytes: from(2.0 * MIB, "assumed: L2 of 2 MB, half of that of the AGX Orin"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const RASPBERRY_PI_5: DeviceProfile = DeviceProfile {
    name: "raspberry-pi-5",
    title: "VideoCore VII (Raspberry Pi 5, 8 GB)",
    flops_f32: from(
        0.102e12,
        "derived: 16 QPUs x 8 a clock (sci-pi.org.uk/bench) x 800 MHz (Raspberry Pi, 2023-09)",
    ),
    flops_f16: from(0.102e12, "assumed: f32's, as its Vulkan driver has no arithmetic in f16"),
    memory_bytes_per_s: from(17e9, "threedots.ovh, 2023-09: LPDDR4X, 32 bits, 17 GB/s"),
    memory_bytes: from(8.0 * GIB, "Raspberry Pi, 2023-09: 4 or 8 GB"),
    storage_bytes_per_s: from(90e6, "raspberrypi/linux#7103: SD cards end at about 90 MB/s"),
    sram_bytes: from(0.5 * MIB, "assumed: L2 of the GPU; its size is not published"),
    unified: true,
    dispatch_s: DISPATCH_VULKAN,
};

const PAPER: DeviceProfile = DeviceProfile {
    name: "paper",
    title: "the accelerator of Edge-LLM (arXiv 2406.15758)",
    flops_f32: from(0.512e12, "assumed: a quarter of flops_f16, as the array works bit by bit"),
    flops_f16: from(
        2.048e12,
        "assumed: 1,024 multiply-adds a clock at 1 GHz; the paper has neither units nor clock",
    ),
    memory_bytes_per_s: from(25.6e9, "arXiv 2406.15758, Fig. 4(b): DRAM to SRAM, 25.6 GB/s"),
    memory_bytes: from(8.0 * GIB, "arXiv 2406.15758: 8 GB of LPDDR4"),
    storage_bytes_per_s: from(2e9, "arXiv 2406.15758, Fig. 4(b): SSD to DRAM, 2 GB/s"),
    sram_bytes: from(MIB, "arXiv 2406.15758: 1 MB of SRAM"),
    unified: true,
    dispatch_s: from(1e-6, "assumed: a command of an accelerator without a driver"),
};

impl DeviceProfile {
    /// All profiles: phones, laptops, boards, and the paper's.
    pub const ALL: &'static [Self] = &[
        ADRENO_740,
        ADRENO_830,
        MALI_G715,
        APPLE_M2,
        INTEL_ARC_140V,
        AMD_780M,
        AMD_890M,
        JETSON_ORIN_NANO,
        RASPBERRY_PI_5,
        PAPER,
    ];

    /// The profile of this [`DeviceProfile::name`].
    pub fn find(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|profile| profile.name == name)
    }

    /// Its numbers, each with the name of the field.
    pub fn numbers(&self) -> [(&'static str, Sourced); 7] {
        [
            ("flops_f32", self.flops_f32),
            ("flops_f16", self.flops_f16),
            ("memory_bytes_per_s", self.memory_bytes_per_s),
            ("memory_bytes", self.memory_bytes),
            ("storage_bytes_per_s", self.storage_bytes_per_s),
            ("sram_bytes", self.sram_bytes),
            ("dispatch_s", self.dispatch_s),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_kebab_case_and_found() {
        let names: BTreeSet<_> = DeviceProfile::ALL.iter().map(|profile| profile.name).collect();
        assert_eq!(names.len(), DeviceProfile::ALL.len());
        for profile in DeviceProfile::ALL {
            let kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(profile.name.chars().all(kebab), "{}", profile.name);
            assert!(!profile.title.is_empty());
            assert_eq!(DeviceProfile::find(profile.name), Some(profile));
        }
        assert_eq!(DeviceProfile::find("Apple M2"), None);
        assert_eq!(DeviceProfile::find(""), None);
    }

    #[test]
    fn numbers_are_positive_and_have_a_source() {
        for profile in DeviceProfile::ALL {
            for (field, number) in profile.numbers() {
                let name = profile.name;
                assert!(number.value.is_finite() && number.value > 0.0, "{name}: {field}");
                assert!(!number.source.trim().is_empty(), "{name}: {field}");
            }
        }
    }

    #[test]
    fn levels_of_memory_are_in_order() {
        for profile in DeviceProfile::ALL {
            let name = profile.name;
            assert!(profile.sram_bytes.value < profile.memory_bytes.value, "{name}");
            assert!(profile.storage_bytes_per_s.value < profile.memory_bytes_per_s.value, "{name}");
            assert!(profile.flops_f32.value <= profile.flops_f16.value, "{name}");
        }
    }
}
