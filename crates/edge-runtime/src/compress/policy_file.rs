//! A policy as a JSON file:
//!
//! ```json
//! {
//!   "version": 1,
//!   "policy": "luc",
//!   "group_size": 32,
//!   "layers": [
//!     {"name": "model.layers.0", "bits": 4, "sparsity": "2:4"},
//!     {"name": "model.layers.0.mlp.down_proj", "bits": 8, "sparsity": "dense"}
//!   ]
//! }
//! ```
//!
//! `group_size` (32), `zero_point` (false) and `dtype` ("bf16" or "f16": how dense layers of 16
//! bits are stored) may stand at the top for all layers and in a layer for itself. A projection
//! comes before its block. Every block must be named, or all of its projections.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use edge_kernels::{Format, Sparsity};
use edge_scheduler::policy::{Template, WIDTHS, bits};
use edge_scheduler::{Layer, Policy, Projection};
use serde::{Deserialize, Serialize};

use crate::run_dir::write_atomically;
use crate::whole_file::{self, SETTINGS};

/// File name in a compressed model folder.
pub const FILE: &str = "policy.json";

/// Version of the file that is written, and the only one that is read.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    version: u32,
    policy: String,
    #[serde(default = "default_group")]
    group_size: u32,
    #[serde(default, skip_serializing_if = "is_false")]
    zero_point: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<DenseDtype>,
    layers: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    bits: u32,
    sparsity: Kept,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group_size: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zero_point: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dtype: Option<DenseDtype>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum DenseDtype {
    #[serde(rename = "f16")]
    F16,
    #[serde(rename = "bf16")]
    Bf16,
}

impl DenseDtype {
    fn format(self) -> Format {
        match self {
            Self::F16 => Format::F16,
            Self::Bf16 => Format::Bf16,
        }
    }

    fn of(format: Format) -> Option<Self> {
        match format {
            Format::F16 => Some(Self::F16),
            Format::Bf16 => Some(Self::Bf16),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Kept {
    #[serde(rename = "dense")]
    Dense,
    #[serde(rename = "2:4")]
    TwoFour,
    #[serde(rename = "2:4 row-grouped")]
    RowGrouped,
}

/// How a format's sparsity is written.
pub fn sparsity_name(format: Format) -> &'static str {
    match format.packing().map_or(Sparsity::Dense, |packing| packing.kept()) {
        Sparsity::Dense => "dense",
        Sparsity::TwoFour => "2:4",
        Sparsity::RowGrouped => "2:4 row-grouped",
    }
}

fn default_group() -> u32 {
    Template::default().group_size
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// Reads a policy for a model of `num_blocks` blocks.
///
/// # Errors
/// The file is absent or no policy; a layer is unknown, named twice, missing, or has a format that
/// does not exist.
pub fn read(path: &Path, num_blocks: usize) -> Result<Policy> {
    let shown = path.display().to_string();
    let text = whole_file::text(path, SETTINGS)
        .with_context(|| format!("cannot read {shown}: correct the path of the policy"))?;
    parse(&text, &shown, num_blocks)
}

/// Reads a policy from its JSON; `shown` is what messages call the file.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str, shown: &str, num_blocks: usize) -> Result<Policy> {
    let file: PolicyFile = serde_json::from_str(text)
        .map_err(|error| anyhow::anyhow!("{shown} is no policy ({error}): correct that line"))?;
    ensure!(
        file.version == VERSION,
        "{shown} has version {}, and this program reads {VERSION}: use a program that fits",
        file.version
    );
    let mut seen = HashSet::new();
    let mut layers = Vec::with_capacity(file.layers.len());
    for entry in &file.layers {
        let name = &entry.name;
        let layer = Layer::from_name(name).with_context(|| {
            format!(
                "{shown}: {name:?} is no layer: write model.layers.0 or \
                 model.layers.0.mlp.down_proj"
            )
        })?;
        ensure!(
            (layer.block as usize) < num_blocks,
            "{shown}: the model has {num_blocks} blocks and no layer {name}: remove it"
        );
        ensure!(seen.insert(layer), "{shown}: layer {name} is named twice: remove one of them");
        layers.push((layer, vec![format(&file, entry, shown)?]));
    }
    for block in 0..num_blocks as u32 {
        let whole = Layer { block, projection: None };
        let has = |projection| seen.contains(&Layer { block, projection: Some(projection) });
        if seen.contains(&whole) || Projection::ALL.into_iter().all(has) {
            continue;
        }
        bail!("{shown}: layer {whole} is missing: give its bits and sparsity");
    }
    Ok(Policy::chosen(&file.policy, &layers, &vec![0; layers.len()]))
}

fn format(file: &PolicyFile, entry: &Entry, shown: &str) -> Result<Format> {
    let (name, bits) = (&entry.name, entry.bits);
    ensure!(
        WIDTHS.contains(&bits),
        "{shown}: layer {name} has {bits} bits, which do not exist: use 2, 3, 4, 8 or 16"
    );
    let group_size = entry.group_size.unwrap_or(file.group_size);
    ensure!(
        group_size == 32 || group_size == 64,
        "{shown}: layer {name} has group_size {group_size}: use 32 or 64"
    );
    if bits == 16 {
        let own = entry.zero_point == Some(true) || entry.group_size.is_some();
        ensure!(
            !own,
            "{shown}: layer {name} has 16 bits, which have no groups: remove its group_size and \
             zero_point"
        );
    }
    let (sparsity, sparse) = match entry.sparsity {
        Kept::Dense => (Sparsity::TwoFour, false),
        Kept::TwoFour => (Sparsity::TwoFour, true),
        Kept::RowGrouped => (Sparsity::RowGrouped, true),
    };
    let dtype = entry.dtype.or(file.dtype);
    let template = Template {
        group_size,
        zero_point: entry.zero_point.unwrap_or(file.zero_point),
        sparsity,
        dense_16: dtype.map_or(Template::default().dense_16, DenseDtype::format),
    };
    Ok(template.format(bits, sparse))
}

/// The JSON of a policy, on one line or one line a layer.
///
/// # Errors
/// A layer is stored in f32, which is no compression.
pub fn to_json(policy: &Policy, pretty: bool) -> Result<String> {
    let formats = policy.blocks.iter().flat_map(|block| block.formats().0);
    let formats: Vec<Format> = formats.collect();
    let grouped = formats.iter().find_map(|f| f.packing().filter(|p| p.group().is_some()));
    let mut file = PolicyFile {
        version: VERSION,
        policy: policy.name.clone(),
        group_size: grouped.and_then(|packing| packing.group()).unwrap_or(default_group()),
        zero_point: grouped.is_some_and(|packing| packing.has_zero_point()),
        dtype: formats.iter().find_map(|format| DenseDtype::of(*format)),
        layers: Vec::new(),
    };
    for (block, rule) in (0..).zip(&policy.blocks) {
        let layer = Layer { block, projection: None };
        file.layers.push(entry(&file, layer, rule.format)?);
        for (projection, own) in Projection::ALL.into_iter().zip(rule.overrides) {
            if let Some(own) = own.filter(|own| *own != rule.format) {
                let layer = Layer { block, projection: Some(projection) };
                file.layers.push(entry(&file, layer, own)?);
            }
        }
    }
    if !pretty {
        return Ok(serde_json::to_string(&file)?);
    }
    let layers = std::mem::take(&mut file.layers);
    let lines = layers.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let head = serde_json::to_string_pretty(&file)?;
    let list = format!("[\n    {}\n  ]", lines.join(",\n    "));
    Ok(head.replace("\"layers\": []", &format!("\"layers\": {list}")) + "\n")
}

fn entry(file: &PolicyFile, layer: Layer, format: Format) -> Result<Entry> {
    let kept = match format.packing().map_or(Sparsity::Dense, |packing| packing.kept()) {
        Sparsity::Dense => Kept::Dense,
        Sparsity::TwoFour => Kept::TwoFour,
        Sparsity::RowGrouped => Kept::RowGrouped,
    };
    ensure!(format != Format::F32, "layer {layer} is stored in f32: a policy has at most 16 bits");
    let packing = format.packing().filter(|packing| packing.group().is_some());
    let zero_point = packing.map(|packing| packing.has_zero_point());
    Ok(Entry {
        name: layer.to_string(),
        bits: bits(format),
        sparsity: kept,
        group_size: format.group().filter(|group| *group != file.group_size),
        zero_point: zero_point.filter(|zero_point| *zero_point != file.zero_point),
        dtype: DenseDtype::of(format).filter(|dtype| Some(*dtype) != file.dtype),
    })
}

/// Writes a policy as a file.
///
/// # Errors
/// As [`to_json`]; or the file cannot be written.
pub fn write(path: &Path, policy: &Policy) -> Result<()> {
    write_atomically(path, to_json(policy, true)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use edge_kernels::Packing;
    use edge_scheduler::BlockPolicy;
    use serde_json::json;

    use super::*;
    use crate::testing::message;

    /// Every format that a policy can name, each in a block and in a projection.
    fn everything() -> Policy {
        let packed = Packing::all().map(Packing::format);
        let formats: Vec<Format> = [Format::F16, Format::Bf16].into_iter().chain(packed).collect();
        let blocks = formats.iter().enumerate().map(|(i, &format)| {
            let mut block = BlockPolicy::uniform(format);
            block.overrides[i % 7] = Some(formats[(i + 5) % formats.len()]);
            block
        });
        Policy { name: "own".into(), blocks: blocks.collect() }
    }

    #[test]
    fn a_policy_is_the_same_after_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let policy = everything();
        write(&path, &policy).unwrap();
        assert_eq!(read(&path, policy.blocks.len()).unwrap(), policy);
        let text = to_json(&policy, false).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(parse(&text, "p", policy.blocks.len()).unwrap(), policy);
        let simple = Policy {
            name: "luc".into(),
            blocks: vec![BlockPolicy::uniform(Format::two_four(4)); 2],
        };
        let want = "{\n  \"version\": 1,\n  \"policy\": \"luc\",\n  \"group_size\": 32,\n  \
                    \"layers\": [\n    {\"name\":\"model.layers.0\",\"bits\":4,\
                    \"sparsity\":\"2:4\"},\n    {\"name\":\"model.layers.1\",\"bits\":4,\
                    \"sparsity\":\"2:4\"}\n  ]\n}\n";
        assert_eq!(to_json(&simple, true).unwrap(), want);
    }

    fn layer(name: &str, bits: u32) -> serde_json::Value {
        json!({"name": name, "bits": bits, "sparsity": "dense"})
    }

    fn refused(layers: &[serde_json::Value]) -> String {
        let text = json!({"version": 1, "policy": "own", "layers": layers}).to_string();
        message(parse(&text, "p.json", 2))
    }

    #[test]
    fn a_wrong_policy_is_refused_by_layer() {
        let (zero, one) = (layer("model.layers.0", 4), layer("model.layers.1", 4));
        let good = json!({"version": 1, "policy": "own", "layers": [zero, one]}).to_string();
        assert!(parse(&good, "p.json", 2).is_ok());
        for (layers, part) in [
            (vec![zero.clone()], "layer model.layers.1 is missing"),
            (vec![zero.clone(), one.clone(), one.clone()], "model.layers.1 is named twice"),
            (
                vec![zero.clone(), one.clone(), layer("model.layers.2", 4)],
                "no layer model.layers.2",
            ),
            (vec![layer("lm_head", 4)], "\"lm_head\" is no layer"),
            (vec![layer("model.layers.0.mlp.q_proj", 4)], "is no layer"),
            (vec![layer("model.layers.0", 5), one.clone()], "model.layers.0 has 5 bits"),
            (vec![layer("model.layers.0.mlp.up_proj", 4), one.clone()], "layers.0 is missing"),
        ] {
            let error = refused(&layers);
            assert!(error.starts_with("p.json") && error.contains(part), "{error}");
        }
        let mut wrong = zero.clone();
        wrong["group_size"] = json!(48);
        assert!(refused(&[wrong.clone(), one.clone()]).contains("group_size 48"));
        (wrong["bits"], wrong["group_size"]) = (json!(16), json!(32));
        assert!(refused(&[wrong.clone(), one.clone()]).contains("16 bits, which have no groups"));
        wrong["sparsity"] = json!("1:4");
        assert!(refused(&[wrong, one]).contains("1:4"));
        let unknown = good.replace("\"policy\"", "\n\"polizy\"");
        let error = message(parse(&unknown, "p.json", 2));
        assert!(error.contains("polizy") && error.contains("line 2"), "{error}");
        let error = message(parse(&good.replace("\"version\":1", "\"version\":2"), "p.json", 2));
        assert!(error.contains("version 2"), "{error}");
        let error = message(read("absent.json".as_ref(), 2));
        assert!(error.contains("absent.json"), "{error}");
    }

    #[test]
    fn a_block_may_be_named_by_its_projections() {
        let parts = Projection::ALL.map(|projection| {
            let bits = if projection == Projection::Down { 8 } else { 4 };
            layer(&Layer { block: 0, projection: Some(projection) }.to_string(), bits)
        });
        let text = json!({"version": 1, "policy": "own", "layers": parts}).to_string();
        let policy = parse(&text, "p.json", 1).unwrap();
        assert_eq!(policy.blocks[0].format, Format::Q4);
        assert_eq!(policy.blocks[0].get(Projection::Down), Format::Q8);
    }
}
