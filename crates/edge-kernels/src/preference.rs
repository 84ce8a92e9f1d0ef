//! Which variants a device runs where nothing was measured on it: those that were written for its
//! kind of hardware first, and among these the ones that its vendor's GPUs are said to like.

use crate::op::{Hardware, Variant};

/// Who made a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
    /// Apple.
    Apple,
    /// Qualcomm: Adreno.
    Qualcomm,
    /// Arm: Mali.
    Arm,
    /// Anybody else, drivers that run on the CPU included.
    Other,
}

impl Vendor {
    /// From the PCI id that drivers report.
    pub fn from_pci(id: u32) -> Self {
        match id {
            0x10de => Self::Nvidia,
            0x1002 => Self::Amd,
            0x8086 => Self::Intel,
            0x106b => Self::Apple,
            0x5143 => Self::Qualcomm,
            0x13b5 => Self::Arm,
            _ => Self::Other,
        }
    }
}

/// Names of variants in the order in which a vendor's GPUs try them; all others come behind, in
/// the op's order.
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    /// Whose GPUs.
    pub vendor: Vendor,
    /// Names of variants, or what they begin with before a `_`.
    pub first: &'static [&'static str],
    /// Whether it was measured on such a GPU with these kernels.
    pub tested: bool,
    /// Where it is from.
    pub why: &'static str,
}

/// Untested where it says so: read from what others have published about their kernels.
pub const PREFERENCES: &[Preference] = &[
    Preference {
        vendor: Vendor::Nvidia,
        first: &["gemv", "channel", "shared"],
        tested: true,
        why: "an H200 runs gemv and shared several times as fast as tile and wide (docs/gpu.md); \
              channel was not among the shapes measured",
    },
    Preference {
        vendor: Vendor::Amd,
        first: &["gemv", "channel", "shared"],
        tested: false,
        why: "tiles through workgroup memory win in llama.cpp's search of constants (#22241)",
    },
    Preference {
        vendor: Vendor::Intel,
        first: &["gemv", "channel", "shared"],
        tested: false,
        why: "a lane a channel took prefill on three GPUs to 2 to 20 times (onnxruntime#23908)",
    },
    Preference {
        vendor: Vendor::Apple,
        first: &["gemv", "channel", "shared"],
        tested: false,
        why: "published WGSL reaches 61 to 72 % of an M2's peak with tiles through workgroup \
              memory, 35 % of an M1's without",
    },
    Preference {
        vendor: Vendor::Qualcomm,
        first: &["gemv", "wide"],
        tested: false,
        why: "many lanes that read one address of workgroup memory wait (onnxruntime#25730), and \
              more than 16 accumulators spill",
    },
    Preference {
        vendor: Vendor::Arm,
        first: &["gemv", "wide"],
        tested: false,
        why: "workgroup memory is ordinary memory (vello#1816)",
    },
];

/// The order in which a device tries variants that it can run. Approximate ones are left out;
/// cooperative matrices come last, behind what runs everywhere, so that only a measurement or a
/// name takes them.
pub fn by_preference(
    mut variants: Vec<Variant>,
    hardware: Hardware,
    vendor: Vendor,
) -> Vec<Variant> {
    let preference = PREFERENCES.iter().find(|preference| preference.vendor == vendor);
    let first = preference.map_or(&[][..], |preference| preference.first);
    // `shared_8x8` is a kind of `shared`: among these the op knows which suits the shape.
    let is = |name: &str, kind: &str| {
        name.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let place = |name: &str| first.iter().position(|kind| is(name, kind)).unwrap_or(first.len());
    let suits = |variant: &Variant| [Hardware::Any, hardware].contains(&variant.suits);
    variants.retain(|variant| !variant.approximate);
    variants.sort_by_key(|variant| {
        (variant.needs.cooperative.is_some(), !suits(variant), place(variant.name))
    });
    variants
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Cooperative, Needs};
    use crate::ops::OPS;

    fn order(hardware: Hardware, vendor: Vendor) -> Vec<&'static str> {
        let cooperative = Needs { cooperative: Some(Cooperative::F32Side8), ..Needs::default() };
        let variants = vec![
            Variant::named("int8").approximate(),
            Variant::named("shared").suits(Hardware::Gpu),
            Variant::named("broadcast").suits(Hardware::Software),
            Variant::named("coop").suits(Hardware::Gpu).needs(cooperative),
            Variant::named("wide"),
            Variant::named("shared_8x8").suits(Hardware::Gpu),
        ];
        let ordered = by_preference(variants, hardware, vendor);
        ordered.iter().map(|variant| variant.name).collect()
    }

    #[test]
    fn devices_prefer_what_suits_them_and_never_approximate() {
        assert_eq!(
            order(Hardware::Gpu, Vendor::Other),
            ["shared", "wide", "shared_8x8", "broadcast", "coop"]
        );
        assert_eq!(
            order(Hardware::Software, Vendor::Other),
            ["broadcast", "wide", "shared", "shared_8x8", "coop"]
        );
        assert_eq!(
            order(Hardware::Gpu, Vendor::Arm),
            ["wide", "shared", "shared_8x8", "broadcast", "coop"]
        );
    }

    #[test]
    fn every_name_is_that_of_a_variant() {
        let exists = |name: &str| {
            let cases =
                OPS.iter().flat_map(|op| op.cases().into_iter().map(move |case| (op, case)));
            cases.into_iter().any(|(op, case)| {
                op.variants(&case.call).iter().any(|variant| variant.name == name)
            })
        };
        for preference in PREFERENCES {
            for name in preference.first {
                assert!(exists(name), "{:?}: no op has a variant `{name}`", preference.vendor);
            }
        }
    }
}
