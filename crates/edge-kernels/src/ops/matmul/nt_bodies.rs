//! The bodies of products X·Wᵀ: which of the files `shaders/lib/nt_*.wgsl` a call may use, with
//! which constants. Shared by all ops that differ only in what they do with each sum.

use crate::format::{Format, ROW_GROUP};
use crate::op::{Cooperative, Hardware, Needs, Variant};
use crate::ops::matmul::{
    LANES, broadcast, gathering, is_row_grouped, k_fast, loading, picking, portable, quads, spec,
    split_lanes, storing_four, weight_variants,
};
use crate::util::fold_grid;

/// What decides which bodies suit a product of `x [m, k]` and `w [n, k]`.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Rows of X (tokens).
    pub m: u32,
    /// Rows of W (output channels).
    pub n: u32,
    /// Columns of both.
    pub k: u32,
    /// Between rows of X.
    pub ld_in: u32,
    /// Of the first element of X.
    pub in_offset: u32,
    /// Between rows of Y.
    pub ld_out: u32,
    /// Of the first element of Y.
    pub out_offset: u32,
    /// Of the weights.
    pub format: Format,
}

/// Rows and channels a thread of the tile without workgroup memory: large tiles save loads, as
/// long as there are threads enough; the largest pays for its compile time in large dense
/// products only.
fn tile(p: &Product) -> (u32, u32) {
    let (m, n) = (p.m, p.n);
    let tn = if n <= 4 || is_row_grouped(p.format) { 4 } else { 8 };
    let enough = |tm: u32| m.div_ceil(tm) * n.div_ceil(tn) >= 4 * LANES;
    let large = u64::from(m) * u64::from(n) * u64::from(p.k) >= 1 << 26;
    match m {
        1 => (1, 4),
        2 => (2, 4),
        3 | 4 => (4, 4),
        _ if large && !p.format.is_packed() && m >= 64 && enough(16) => (16, tn),
        _ if enough(8) => (8, tn),
        _ => (4, 4),
    }
}

impl Product {
    /// Whether a body that reads up to `reach` columns at once finds all rows of X aligned.
    fn is_aligned(&self, reach: u32) -> bool {
        self.k.is_multiple_of(reach) && quads(&[self.ld_in, self.in_offset])
    }

    /// A variant with the fragment that loads X, where bodies read up to `reach` columns at once.
    fn named(&self, name: &'static str, reach: u32) -> Variant {
        let aligned = self.is_aligned(reach);
        let input = if aligned { "lib/x_vec4.wgsl" } else { "lib/x_any.wgsl" };
        Variant::named(name).fragment("lib/x_vec4.wgsl", input)
    }

    fn block(&self) -> u32 {
        if self.format.is_packed() { 32 } else { 8 }
    }

    fn sized(&self, name: &'static str, (tm, tn): (u32, u32), lanes: u32) -> Variant {
        // All channels of a workgroup keep the same columns of row-grouped weights.
        let most = if is_row_grouped(self.format) { ROW_GROUP / tn } else { 16 };
        let (wx, wy) = split_lanes(lanes, self.n.div_ceil(tn), lanes.min(most));
        let variant = self.named(name, self.block());
        variant.spec("TM", tm).spec("TN", tn).spec("WX", wx).spec("WY", wy)
    }

    /// Lanes of neighbouring channels read neighbouring words of packed formats; in dense ones
    /// neighbouring columns are neighbouring words. Two channels a lane have more loads on their
    /// way at once.
    fn gemv(&self) -> Variant {
        let rows = if self.m > 4 { 8 } else { self.m.next_power_of_two() };
        let channels_a_lane = if self.format.is_packed() { 2 } else { 1 };
        let variant = self.named("gemv", self.block()).fragment(TILE, "lib/nt_gemv.wgsl");
        let variant = variant.spec("TM", rows).spec("TN", channels_a_lane);
        let variant = variant.spec("CHANNELS", 8).spec("SLICES", 32);
        k_fast(variant, self.format).suits(Hardware::Gpu)
    }

    /// For drivers on the CPU: one load for the activations that eight lanes share.
    fn subgroup(&self) -> Variant {
        let needs = Needs { subgroups: true, subgroup_size: LANES, ..Needs::default() };
        let variant = self.named("subgroup", 64).fragment(TILE, "lib/nt_subgroup.wgsl");
        let variant = variant.spec("TM", self.m.next_power_of_two()).spec("WX", LANES);
        variant.needs(needs).suits(Hardware::Software)
    }

    /// The same with loads of 64 bits, and of several rows of packed weights at once. There a load
    /// takes as long as its loop over lanes, whatever its width.
    fn subgroup_wide(&self) -> Option<Variant> {
        let Self { n, k, ld_in, in_offset, .. } = *self;
        if !(k.is_multiple_of(64) && [n, ld_in, in_offset].iter().all(|x| x.is_multiple_of(8))) {
            return None;
        }
        // Positions are read four words at a time.
        let positions = n.div_ceil(ROW_GROUP) * k.div_ceil(32);
        if is_row_grouped(self.format) && !positions.is_multiple_of(4) {
            return None;
        }
        let variant = Variant { name: "subgroup_wide", ..self.subgroup() };
        let needs = Needs { int64: true, ..variant.needs };
        Some(variant.replace("lib/x_vec4.wgsl", "lib/x_wide.wgsl").needs(needs))
    }

    /// Channels of a lane of it: `ROWS` of the fragments of [`Packing::wide_pieces`]. Eight lanes
    /// own no more row-grouped channels than share their positions.
    ///
    /// [`Packing::wide_pieces`]: crate::packing::Packing::wide_pieces
    fn rows_at_once(&self) -> u32 {
        if self.format.is_packed() && !is_row_grouped(self.format) { 8 } else { 4 }
    }

    /// For drivers on the CPU: each of eight lanes loads every eighth row for the others. Without
    /// a loop over parts they need not blend all sums with their old ones, which pays where that
    /// is not lost again by registers: in packed formats only with loads of 64 bits.
    fn broadcast(&self) -> Vec<Variant> {
        let out = [self.n, self.ld_out, self.out_offset];
        let sized = |tm, tn| {
            let named = self.named("broadcast", self.block()).spec("TM", tm).spec("TN", tn);
            storing_four(broadcast(named), &out).suits(Hardware::Software)
        };
        let unroll = |v: Variant| v.fragment("lib/parts_rolled.wgsl", "lib/parts_unrolled.wgsl");
        let rolled = sized(32, 4);
        if !self.format.is_packed() || is_row_grouped(self.format) {
            return vec![unroll(rolled)];
        }
        if !self.is_aligned(self.block()) {
            return vec![rolled];
        }
        let near = self.n >= 8 * LANES && self.n.is_multiple_of(8) && quads(&out);
        let wide = match near {
            true => sized(16, 8).fragment("lib/blocks_each.wgsl", "lib/blocks_near.wgsl"),
            false => sized(32, 4),
        };
        let needs = Needs { int64: true, ..wide.needs };
        let wide = unroll(wide).replace("lib/x_vec4.wgsl", "lib/x_vec4_wide.wgsl").needs(needs);
        vec![Variant { name: "broadcast_wide", ..wide }, rolled]
    }

    /// A variant whose threads own eight neighbouring channels loads their packed weights at once.
    fn loading_near(&self, variant: Variant) -> Variant {
        match self.format {
            Format::Packed(packing) if spec(&variant, "TN") == 8 => {
                loading(variant, packing.near_pieces())
            }
            _ => variant,
        }
    }

    /// Tiles through workgroup memory, the preferred first: a large one reads less memory a product
    /// and is worth it only where there are workgroups enough.
    fn shared(&self) -> Vec<Variant> {
        let grouped = is_row_grouped(self.format);
        let tiles = |side: u32| self.m.div_ceil(side) * self.n.div_ceil(side);
        let fits = |tile: &SharedTile| {
            let least = if tile.size == [4, 4] { 32 } else { 96 };
            // All channels of a workgroup keep the same columns of row-grouped weights.
            self.m >= least && self.n >= least && (tile.size == [4, 4] || !grouped)
        };
        let mut fitting: Vec<&SharedTile> = SHARED.iter().filter(|tile| fits(tile)).collect();
        fitting.sort_by_key(|tile| tiles(tile.side()) < tile.workgroups);
        let variant = |tile: &SharedTile| {
            let [tm, tn] = tile.size;
            let wx = if grouped { ROW_GROUP / tn } else { 16 };
            let variant = self.named(tile.name, 4).fragment(TILE, "lib/nt_shared.wgsl");
            let variant = variant.spec("TM", tm).spec("TN", tn).spec("WX", wx).spec("WY", 16);
            let needs = Needs { workgroup_bytes: tile.workgroup_bytes, ..Needs::default() };
            k_fast(variant, self.format).needs(needs).suits(Hardware::Gpu)
        };
        fitting.into_iter().map(variant).collect()
    }

    /// Integer products of activations rounded to int8, for the formats whose integers fit.
    fn int8(&self) -> Option<Variant> {
        let ints = match self.format {
            Format::Packed(packing) if packing.is_plain(8) => "lib/ints_q8.wgsl",
            Format::Packed(packing) if packing.is_plain(4) => "lib/ints_q4.wgsl",
            _ => return None,
        };
        let variant = self.named("int8", 4).fragment(TILE, "lib/nt_int8.wgsl");
        let rows = if self.m > 8 { 16 } else { self.m.next_power_of_two() };
        let variant = variant.fragment("lib/ints_q8.wgsl", ints).spec("TM", rows);
        Some(variant.suits(Hardware::Gpu).approximate())
    }

    /// Matrices that a subgroup multiplies together, of these sizes and numbers, in tiles of one or
    /// several subgroups. Row-grouped weights are expanded, because tiles of f16 gain nothing from
    /// fewer of them.
    fn cooperative(&self, kind: Cooperative) -> Vec<Variant> {
        let matrices = match kind {
            Cooperative::F16 => "lib/coop_f16.wgsl",
            Cooperative::F16Side8 => "lib/coop_f16_8.wgsl",
            Cooperative::F32Side8 => "lib/coop_f32.wgsl",
        };
        let tiles = COOPERATIVE.iter().filter(|tile| {
            let [rows, channels] = tile.size;
            let large = self.m > rows / 2 && self.n > channels / 2;
            tile.kind == kind && (large || tile.groups == [1, 1])
        });
        let variant = |tile: &CooperativeTile| {
            let ([rows, channels], [along_m, along_n]) = (tile.size, tile.groups);
            let variant = self.named(tile.name, 4).fragment(TILE, "lib/nt_cooperative.wgsl");
            let variant = variant.fragment("lib/coop_f16.wgsl", matrices).spec("ROWS", rows);
            let variant = variant.spec("CHANNELS", channels);
            let variant = variant.spec("GROUPS_M", along_m).spec("GROUPS_N", along_n);
            let variant = k_fast(variant, self.format).suits(Hardware::Gpu);
            let workgroup_bytes = tile.workgroup_bytes;
            let needs = Needs {
                f16: kind.is_f16(),
                cooperative: Some(kind),
                workgroup_bytes,
                ..Needs::default()
            };
            let found = portable(weight_variants(&variant, self.format, self.k));
            // The rounding of activations and weights to f16 is larger than the tolerance of f32.
            let rounded = |variant: Variant| {
                if kind.is_f16() { variant.approximate() } else { variant }
            };
            found.map(|variant| rounded(variant.needs(needs))).collect::<Vec<_>>()
        };
        tiles.flat_map(variant).collect()
    }

    /// All bodies that the call may use, the preferred first.
    pub(crate) fn variants(&self) -> Vec<Variant> {
        let grouped = is_row_grouped(self.format);
        // All bodies skip what row-grouped weights leave out.
        let weights = |variant: &Variant| {
            let variants = weight_variants(variant, self.format, self.k);
            if grouped { gathering(variants) } else { variants }
        };
        let mut variants = Vec::new();
        if self.m >= 32 && self.n >= 8 {
            let each = self.broadcast().into_iter().flat_map(|v| portable(weights(&v)));
            variants.extend(each.map(|variant| self.loading_near(variant)));
        }
        if self.m <= 4 && self.n >= 8 {
            let weights = |variant: &Variant| {
                let each = weights(variant).into_iter();
                each.map(|variant| picking(variant, self.format)).collect::<Vec<_>>()
            };
            let wide = self.subgroup_wide().into_iter().flat_map(|wide| weights(&wide));
            let wide = wide.map(|variant| wide_loads(variant, self.format));
            variants.extend(portable(wide.collect()));
            variants.extend(portable(weights(&self.subgroup())));
        }
        let mut add = |variant: Variant| variants.extend(portable(weights(&variant)));
        if self.m <= 8 && self.n >= 8 || self.n <= 16 && self.k >= 256 {
            add(self.gemv());
        }
        if (5..32).contains(&self.m) && self.n >= 64 {
            let variant = self.named("channel", 32).fragment(TILE, "lib/nt_channel.wgsl");
            let rows = if self.m <= 8 { 8 } else { 16 };
            add(variant.spec("TM", rows).suits(Hardware::Gpu));
        }
        self.shared().into_iter().for_each(&mut add);
        if let Some(variant) = self.int8() {
            add(variant);
        }
        if self.m >= 16 && self.n >= 16 {
            variants.extend(Cooperative::ALL.into_iter().flat_map(|kind| self.cooperative(kind)));
        }
        let tile = tile(self);
        variants.extend(weights(&self.sized("tile", tile, LANES).suits(Hardware::Software)));
        // Fewer registers, whole subgroups on any GPU.
        let lanes = if self.m <= 4 { 32 } else { 64 };
        let wide = weights(&self.sized("wide", (tile.0.min(4), 4), lanes));
        variants.extend(portable(wide));
        variants
    }

    /// Workgroups of a variant.
    pub(crate) fn grid(&self, variant: &Variant) -> [u32; 3] {
        let (rows, channels) = match variant.name {
            "gemv" => (spec(variant, "TM"), spec(variant, "CHANNELS") * spec(variant, "TN")),
            "subgroup" => (spec(variant, "TM"), LANES * 4),
            "subgroup_wide" => (spec(variant, "TM"), LANES * self.rows_at_once()),
            "channel" | "int8" => (spec(variant, "TM"), 64),
            name if name.starts_with("coop") => (spec(variant, "ROWS"), spec(variant, "CHANNELS")),
            _ => (
                spec(variant, "TM") * spec(variant, "WY"),
                spec(variant, "TN") * spec(variant, "WX"),
            ),
        };
        fold_grid(self.m.div_ceil(rows) * self.n.div_ceil(channels))
    }
}

/// A variant that loads weights 64 bits at a time.
fn wide_loads(variant: Variant, format: Format) -> Variant {
    let wide = match format {
        Format::Packed(packing) => {
            let pieces = packing.wide_pieces().into_iter();
            return pieces.fold(variant, |variant, (path, wide)| variant.replace(path, wide));
        }
        Format::F16 => "weights/f16_wide.wgsl",
        Format::Bf16 => "weights/bf16_wide.wgsl",
        Format::F32 => "weights/f32_wide.wgsl",
    };
    variant.replace(format.fragment(), wide)
}

/// A tile through workgroup memory.
struct SharedTile {
    name: &'static str,
    /// Rows and channels a thread.
    size: [u32; 2],
    /// From which on it is preferred.
    workgroups: u32,
    /// Of workgroup memory, where it is more than every device has.
    workgroup_bytes: u32,
}

impl SharedTile {
    /// Rows, and channels, of a workgroup.
    fn side(&self) -> u32 {
        16 * self.size[0]
    }
}

/// Numbers of workgroups are from an H200, which has 132 cores.
const SHARED: [SharedTile; 2] = [
    SharedTile { name: "shared_8x8", size: [8, 8], workgroups: 512, workgroup_bytes: 16512 },
    SharedTile { name: "shared", size: [4, 4], workgroups: 0, workgroup_bytes: 0 },
];

/// A way to divide a product among subgroups that multiply matrices.
struct CooperativeTile {
    kind: Cooperative,
    name: &'static str,
    /// Rows and channels of a workgroup.
    size: [u32; 2],
    /// Subgroups of a workgroup along both.
    groups: [u32; 2],
    /// Of workgroup memory, where it is more than every device has.
    workgroup_bytes: u32,
}

const COOPERATIVE: [CooperativeTile; 5] = {
    use Cooperative::{F16, F16Side8, F32Side8};
    const fn small(kind: Cooperative, name: &'static str) -> CooperativeTile {
        CooperativeTile { kind, name, size: [32, 32], groups: [1, 1], workgroup_bytes: 0 }
    }
    [
        CooperativeTile {
            name: "coop_f16_128",
            size: [128, 128],
            groups: [2, 4],
            workgroup_bytes: 30720,
            ..small(F16, "")
        },
        CooperativeTile { size: [64, 64], groups: [2, 2], ..small(F16, "coop_f16_64") },
        small(F16, "coop_f16"),
        small(F16Side8, "coop_f16_8"),
        small(F32Side8, "coop_f32"),
    ]
};

/// The body that the ops' files include, and variants replace.
const TILE: &str = "lib/nt_tile.wgsl";
