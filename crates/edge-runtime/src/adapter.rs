//! LoRA adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use safetensors::View;
use safetensors::tensor::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::family::{self, Family, Fused};
use crate::run_dir::{write_atomically, write_tensors_atomically};
use crate::whole_file::{self, SETTINGS};

/// File name of the settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of the tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

pub use edge_scheduler::Projection;

/// Output and input width `[n, k]` of a layer of the checkpoint: the shape of its weight.
fn shape(layer: &Fused, config: &ModelConfig) -> [usize; 2] {
    let shape = config.shape();
    let rows = layer.parts.iter().map(|part| shape.projection(*part).0 as usize).sum();
    [rows, shape.projection(layer.parts[0]).1 as usize]
}

/// The linear layers that get adapters, in the order of [`Projection::ALL`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Targets(Vec<Projection>);

impl Targets {
    /// All linear layers.
    pub fn all() -> Self {
        Self(Projection::ALL.to_vec())
    }

    /// These layers.
    pub fn of(mut projections: Vec<Projection>) -> Self {
        projections.sort_unstable();
        projections.dedup();
        Self(projections)
    }

    /// The layers.
    pub fn projections(&self) -> &[Projection] {
        &self.0
    }
}

impl FromStr for Targets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all-linear" {
            return Ok(Self::all());
        }
        // Those that are one layer in some family can be named together for any.
        let known: Vec<Fused> = family::ALL.iter().flat_map(|family| family.layers()).collect();
        let parse = |name: &str| {
            let name = name.trim();
            let short = |layer: &&Fused| layer.name().strip_suffix("_proj") == Some(name);
            let found = known.iter().find(|layer| layer.name() == name || short(layer));
            found.map(|layer| layer.parts).ok_or_else(|| {
                let names = Projection::ALL.map(Projection::name).join(", ");
                format!("{name:?} is no linear layer: use all-linear or a list of {names}")
            })
        };
        let targets = text.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
        let mut targets = targets.concat();
        targets.sort_unstable();
        targets.dedup();
        Ok(Self(targets))
    }
}

impl TryFrom<String> for Targets {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == Projection::ALL {
            return f.write_str("all-linear");
        }
        let names: Vec<_> = self.0.iter().map(|projection| projection.name()).collect();
        f.write_str(&names.join(","))
    }
}

impl From<Targets> for String {
    fn from(targets: Targets) -> Self {
        targets.to_string()
    }
}

/// Settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// The product `B A` counts `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Layers with an adapter, in the order of [`Projection::ALL`].
    pub target_modules: Vec<Projection>,
    /// The model that it was trained on, as the user named it.
    pub base_model_name_or_path: Option<String>,
}

impl AdapterConfig {
    /// Factor of `B A x`.
    pub fn scale(&self) -> f32 {
        (self.lora_alpha / self.r as f64) as f32
    }
}

/// Tensors of an adapter by layer and projection: `A [r, k]` and `B [n, r]`, row-major. Projections
/// that are one layer of the checkpoint have the same `A`, and rows of its `B`.
pub type AdapterTensors = BTreeMap<(usize, Projection), (Vec<f32>, Vec<f32>)>;

/// Name of one of an adapter's tensors in PEFT's file, that of the layer which a projection is a
/// part of; `matrix` is `A` or `B`.
pub fn tensor_name(family: &Family, layer: usize, projection: Projection, matrix: char) -> String {
    let path = family.layer(projection).path;
    format!("base_model.model.model.layers.{layer}.{path}.lora_{matrix}.weight")
}

/// One of an adapter's tensors, read when it is written.
struct Written<'a, R> {
    name: String,
    shape: [usize; 2],
    layer: usize,
    /// `A` of the first part, or `B` of each.
    parts: &'static [Projection],
    matrix: char,
    read: &'a R,
    failed: &'a RefCell<Option<anyhow::Error>>,
}

impl<R: Fn(usize, Projection, char) -> Result<Vec<f32>>> View for Written<'_, R> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let parts = self.parts.iter().map(|part| (self.read)(self.layer, *part, self.matrix));
        let values = parts.collect::<Result<Vec<_>>>().and_then(|parts| {
            let values = parts.concat();
            ensure!(
                values.len() == self.shape[0] * self.shape[1],
                "tensor {} has {} values instead of {:?}: the adapter does not fit the model",
                self.name,
                values.len(),
                self.shape
            );
            Ok(values)
        });
        Cow::Owned(values.map_or_else(
            |error| {
                self.failed.borrow_mut().get_or_insert(error);
                vec![0; self.data_len()]
            },
            |values| bytemuck::cast_slice(&values).to_vec(),
        ))
    }

    fn data_len(&self) -> usize {
        4 * self.shape[0] * self.shape[1]
    }
}

/// Writes both files into `dir`, each atomically. `read` gives `A` or `B` of a layer's projection
/// when it is written, so that one tensor is in memory at a time.
///
/// # Errors
/// Only a part of a layer has an adapter, a tensor cannot be read or has not the size that `model`
/// gives it, or a file cannot be written.
pub fn save(
    dir: &Path,
    config: &AdapterConfig,
    adapted: &[(usize, Projection)],
    model: &ModelConfig,
    read: &impl Fn(usize, Projection, char) -> Result<Vec<f32>>,
) -> Result<()> {
    ensure!(!adapted.is_empty(), "the adapter has no tensors: give --targets at least one layer");
    let failed = RefCell::new(None);
    let mut tensors = Vec::with_capacity(2 * adapted.len());
    model.check_targets(&config.target_modules)?;
    for &(layer, projection) in adapted {
        let module = model.family.layer(projection);
        if module.parts[0] != projection {
            continue;
        }
        let [n, k] = shape(&module, model);
        let matrices =
            [('A', &module.parts[..1], [config.r, k]), ('B', module.parts, [n, config.r])];
        for (matrix, parts, shape) in matrices {
            let name = tensor_name(model.family, layer, projection, matrix);
            let own = name.clone();
            let failed = &failed;
            let written = Written { name: own, shape, layer, parts, matrix, read, failed };
            tensors.push((name, written));
        }
    }
    let check = || failed.borrow_mut().take().map_or(Ok(()), Err);
    write_tensors_atomically(&dir.join(TENSORS_FILE), tensors, check)?;
    let mut layers: Vec<usize> = adapted.iter().map(|(layer, _)| *layer).collect();
    layers.dedup();
    let layers = (layers.len() < model.num_hidden_layers).then_some(layers);
    let text = serde_json::to_string_pretty(&peft_config(config, model, layers.as_deref()))?;
    write_atomically(&dir.join(CONFIG_FILE), text.as_bytes())
}

/// The keys that all releases of PEFT since 0.5 know: they refuse ones that they do not. `layers`
/// are those with an adapter where not all have one.
fn peft_config(config: &AdapterConfig, model: &ModelConfig, layers: Option<&[usize]>) -> Value {
    let used = |layer: &Fused| config.target_modules.contains(&layer.parts[0]);
    let modules = model.family.layers().into_iter().filter(used);
    let names: Vec<_> = modules.map(|layer| layer.name()).collect();
    let alpha = config.lora_alpha;
    // PEFT declares an integer; a whole number is written as one.
    let alpha = if alpha.fract() == 0.0 { json!(alpha as i64) } else { json!(alpha) };
    json!({
        "auto_mapping": null,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": layers,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.r,
        "revision": null,
        "target_modules": names,
        "task_type": "CAUSAL_LM"
    })
}

/// Reads an adapter for `model` from `dir`.
///
/// # Errors
/// A file is absent or damaged, uses what is not computed here (DoRA, ranks by layer, biases,
/// whole modules), or a tensor does not fit the model.
pub fn load(dir: &Path, model: &ModelConfig) -> Result<(AdapterConfig, AdapterTensors)> {
    let mut config = load_config(dir)?;
    let tensors = load_tensors(&dir.join(TENSORS_FILE), &config, model)?;
    // Which layers there are is what the tensors say: target_modules may be a pattern.
    let used = |module: &Projection| tensors.keys().any(|(_, other)| other == module);
    config.target_modules = Projection::ALL.into_iter().filter(used).collect();
    Ok((config, tensors))
}

/// Reads the settings of an adapter.
pub(crate) fn load_config(dir: &Path) -> Result<AdapterConfig> {
    let path = dir.join(CONFIG_FILE);
    let shown = path.display();
    let text = whole_file::text(&path, SETTINGS).with_context(|| {
        format!("cannot read {shown}: give --adapter a PEFT folder or a run directory")
    })?;
    let keys: Map<String, Value> = serde_json::from_str(&text)
        .with_context(|| format!("{shown} is no JSON object: save the adapter again"))?;
    interpret(&keys).with_context(|| format!("{shown} is not usable"))
}

fn interpret(keys: &Map<String, Value>) -> Result<AdapterConfig> {
    ensure!(
        keys.get("peft_type").and_then(Value::as_str) == Some("LORA"),
        "peft_type is {} instead of \"LORA\": only LoRA adapters can be read",
        keys.get("peft_type").unwrap_or(&Value::Null)
    );
    for key in [
        "use_dora",
        "use_rslora",
        "use_qalora",
        "use_bdlora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
    ] {
        let unset = match keys.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Object(pattern)) => pattern.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        ensure!(unset, "{key} is set, which is not supported: use a plain LoRA adapter");
    }
    // With these PEFT takes the adapter's first product out of the base when it loads it.
    let init = keys.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    let changes = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    ensure!(
        !changes.iter().any(|name| init.to_lowercase().starts_with(name)),
        "init_lora_weights is {init:?}, with which the adapter belongs to a changed base: save it \
         with PEFT's path_initial_model_for_weight_conversion"
    );
    let given = |key: &str| keys.get(key).filter(|value| !value.is_null());
    let bias = given("bias").cloned().unwrap_or_else(|| json!("none"));
    ensure!(bias == "none", "bias is {bias}, and supported is \"none\": use a plain adapter");
    // What PEFT takes where a key is absent.
    let r = given("r").cloned().unwrap_or_else(|| json!(8));
    let r = r.as_u64().filter(|r| (1..=4096).contains(r)).with_context(|| {
        format!("r is {r} instead of a whole number in 1..=4096: correct the file")
    })?;
    let alpha = given("lora_alpha").cloned().unwrap_or_else(|| json!(8));
    let lora_alpha = alpha.as_f64().filter(|alpha| *alpha > 0.0 && *alpha < 1e9);
    let lora_alpha = lora_alpha.with_context(|| {
        format!("lora_alpha is {alpha} instead of a number above 0: correct the file")
    })?;
    let base = keys.get("base_model_name_or_path").and_then(Value::as_str);
    Ok(AdapterConfig {
        r: r as usize,
        lora_alpha,
        target_modules: Vec::new(),
        base_model_name_or_path: base.map(str::to_owned),
    })
}

fn load_tensors(
    path: &Path,
    config: &AdapterConfig,
    model: &ModelConfig,
) -> Result<AdapterTensors> {
    let file = Checkpoint::open_file(path)?;
    let shown = path.display();
    let mut places = BTreeMap::new();
    for name in file.names() {
        let (layer, projection, matrix) = parse_name(name, model.family).with_context(|| {
            let family = model.family.name;
            format!("tensor {name} in {shown} is no LoRA matrix of a {family} layer: remove it")
        })?;
        ensure!(
            layer < model.num_hidden_layers,
            "tensor {name} in {shown} belongs to layer {layer} and the model has {} layers: use \
             the adapter's own base model",
            model.num_hidden_layers
        );
        let place = places.entry((layer, projection)).or_insert((false, false));
        if matrix == 'A' { place.0 = true } else { place.1 = true }
    }
    ensure!(!places.is_empty(), "{shown} has no tensors: save the adapter again");
    let read = |name: String, shape: [usize; 2], there: bool| {
        ensure!(there, "tensor {name} is missing in {shown}: save the adapter again");
        let tensor = file.tensor(&name)?;
        ensure!(
            tensor.shape == shape,
            "tensor {name} in {shown} has shape {:?} instead of {shape:?} (from r {} and the \
             model's config.json): use the adapter's own base model",
            tensor.shape,
            config.r
        );
        tensor.to_f32()
    };
    let mut tensors = AdapterTensors::new();
    for ((layer, projection), (has_a, has_b)) in places {
        let module = model.family.layer(projection);
        let [n, k] = shape(&module, model);
        let name = |matrix| tensor_name(model.family, layer, projection, matrix);
        let a = read(name('A'), [config.r, k], has_a)?;
        let b = read(name('B'), [n, config.r], has_b)?;
        for part in module.parts {
            let rows = model.part_rows(*part);
            let b = b[rows.start * config.r..rows.end * config.r].to_vec();
            tensors.insert((layer, *part), (a.clone(), b));
        }
    }
    Ok(tensors)
}

/// Layer, first part and matrix of a tensor.
fn parse_name(name: &str, family: &Family) -> Result<(usize, Projection, char)> {
    let rest = name.strip_prefix("base_model.model.model.layers.").unwrap_or_default();
    for module in family.layers() {
        let projection = module.parts[0];
        for matrix in ['A', 'B'] {
            let end = format!(".{}.lora_{matrix}.weight", module.path);
            if let Some(Ok(layer)) = rest.strip_suffix(&end).map(str::parse::<usize>)
                && tensor_name(family, layer, projection, matrix) == name
            {
                return Ok((layer, projection, matrix));
            }
        }
    }
    bail!("unknown name")
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
