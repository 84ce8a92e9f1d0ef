//! Tests of adapters: round trips, files of PEFT, damaged files.

use std::collections::BTreeSet;

use safetensors::tensor::TensorView;
use tempfile::tempdir;

use super::*;
use crate::testing::{message, shared, tiny_config};

fn sample(model: &ModelConfig) -> (AdapterConfig, AdapterTensors) {
    let config = AdapterConfig {
        r: 2,
        lora_alpha: 3.0,
        target_modules: vec![Projection::K, Projection::Down],
        base_model_name_or_path: Some("base".to_owned()),
    };
    let mut tensors = AdapterTensors::new();
    for layer in 0..2 {
        for projection in [Projection::K, Projection::Down] {
            let [n, k] = shape(&model.family.layer(projection), model);
            let fill = |len: usize, from: f32| (0..len).map(|i| from + i as f32).collect();
            tensors.insert((layer, projection), (fill(2 * k, layer as f32), fill(2 * n, -0.5)));
        }
    }
    (config, tensors)
}

fn save_all(
    dir: &Path,
    config: &AdapterConfig,
    tensors: &AdapterTensors,
    model: &ModelConfig,
) -> Result<()> {
    let read = |layer, projection, matrix| {
        let (a, b) = &tensors[&(layer, projection)];
        Ok(if matrix == 'A' { a.clone() } else { b.clone() })
    };
    save(dir, config, &tensors.keys().copied().collect::<Vec<_>>(), model, &read)
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempdir().unwrap();
    let model = tiny_config();
    let (config, tensors) = sample(&model);
    save_all(dir.path(), &config, &tensors, &model).unwrap();
    assert_eq!(load(dir.path(), &model).unwrap(), (config.clone(), tensors.clone()));
    assert_eq!(config.scale(), 1.5);
    let text = std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap();
    assert!(text.contains("\"lora_alpha\": 3,") && text.contains("\"peft_type\": \"LORA\""));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);

    let mut wrong = tensors;
    wrong.get_mut(&(1, Projection::K)).unwrap().1.pop();
    let error = message(save_all(dir.path(), &config, &wrong, &model));
    assert!(error.contains("layers.1.self_attn.k_proj.lora_B"), "{error}");
    assert!(
        message(save_all(dir.path(), &config, &AdapterTensors::new(), &model)).contains("no tens")
    );
}

#[test]
fn unsupported_settings_are_refused_by_name() {
    let dir = tempdir().unwrap();
    let model = tiny_config();
    let (config, tensors) = sample(&model);
    save_all(dir.path(), &config, &tensors, &model).unwrap();
    let good: Value = peft_config(&config, &model, None);
    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("rank_pattern", json!({"q_proj": 4})),
        ("alpha_pattern", json!({"q_proj": 4})),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("lora_alpha", json!(-1)),
    ] {
        let mut settings = good.clone();
        settings[key] = value;
        std::fs::write(dir.path().join(CONFIG_FILE), settings.to_string()).unwrap();
        let error = message(load(dir.path(), &model));
        assert!(error.contains(key) && error.contains(CONFIG_FILE), "{error}");
    }
    let mut pattern = good;
    pattern["target_modules"] = json!("all-linear");
    std::fs::write(dir.path().join(CONFIG_FILE), pattern.to_string()).unwrap();
    let read = load(dir.path(), &model).unwrap().0;
    assert_eq!(read.target_modules, [Projection::K, Projection::Down]);
    std::fs::write(dir.path().join(CONFIG_FILE), "{").unwrap();
    assert!(message(load(dir.path(), &model)).contains("no JSON"));
    std::fs::remove_file(dir.path().join(CONFIG_FILE)).unwrap();
    assert!(message(load(dir.path(), &model)).contains("--adapter"));
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let dir = tempdir().unwrap();
    let model = tiny_config();
    let (config, tensors) = sample(&model);
    save_all(dir.path(), &config, &tensors, &model).unwrap();
    let mut shallow = model.clone();
    shallow.num_hidden_layers = 1;
    assert!(message(load(dir.path(), &shallow)).contains("layers.1."));
    let mut narrow = model.clone();
    narrow.intermediate_size = 11;
    let error = message(load(dir.path(), &narrow));
    assert!(error.contains("down_proj.lora_A") && error.contains("[2, 12] instead of [2, 11]"));

    let file = dir.path().join(TENSORS_FILE);
    let whole = std::fs::read(&file).unwrap();
    for len in (0..whole.len()).step_by(7) {
        std::fs::write(&file, &whole[..len]).unwrap();
        assert!(message(load(dir.path(), &model)).contains(TENSORS_FILE), "{len}");
    }
    let write = |names: &[&str]| {
        let views = names
            .iter()
            .map(|name| (*name, TensorView::new(Dtype::F32, vec![2, 8], &[0; 64]).unwrap()));
        std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        message(load(dir.path(), &model))
    };
    let a = tensor_name(model.family, 0, Projection::Q, 'A');
    assert!(write(&[&a]).contains("q_proj.lora_B.weight is missing"));
    assert!(write(&[]).contains("no tensors"));
    for name in [
        "base_model.model.lm_head.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
    ] {
        assert!(write(&[name]).contains(&format!("tensor {name} ")));
    }
}

#[test]
fn target_lists_are_parsed() {
    let parse = |text: &str| text.parse::<Targets>();
    assert_eq!(parse("all-linear").unwrap(), Targets::all());
    let some = parse("down_proj, q,q_proj").unwrap();
    assert_eq!(some.projections(), [Projection::Q, Projection::Down]);
    assert_eq!(some.to_string(), "q_proj,down_proj");
    assert_eq!(parse(&some.to_string()), Ok(some));
    let parts = parse("gate_up_proj,qkv").unwrap();
    assert_eq!(parts.to_string(), "q_proj,k_proj,v_proj,gate_proj,up_proj");
    for bad in ["", "q_proj,", "lm_head", "all"] {
        assert!(parse(bad).unwrap_err().contains("all-linear"), "{bad}");
    }
}

#[test]
fn adapters_of_peft_are_read() {
    let Some(shared) = shared() else { return };
    for name in ["llama-untied", "llama3-rope", "mistral", "qwen2", "qwen3", "phi3", "gemma3"] {
        let dir = shared.join("golden").join(name);
        let model = ModelConfig::load(&dir).unwrap();
        let (config, tensors) = load(&dir.join("adapter"), &model).unwrap();
        assert_eq!((config.r, config.lora_alpha, config.scale()), (8, 16.0, 2.0));
        assert_eq!(config.target_modules, Projection::ALL);
        assert_eq!(tensors.len(), 7 * model.num_hidden_layers);
        // The key names written here are among those of PEFT's own file.
        let text = std::fs::read_to_string(dir.join("adapter").join(CONFIG_FILE)).unwrap();
        let theirs: Map<String, Value> = serde_json::from_str(&text).unwrap();
        let ours = peft_config(&config, &model, None);
        let ours = ours.as_object().unwrap();
        assert!(ours.keys().all(|key| theirs.contains_key(key)));
        let modules = |keys: &Map<String, Value>| {
            let list = keys["target_modules"].as_array().unwrap().iter();
            list.map(|module| module.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        assert_eq!(modules(ours), modules(&theirs), "{name}");
        // And so are the tensors, byte for byte.
        let copy = tempdir().unwrap();
        save_all(copy.path(), &config, &tensors, &model).unwrap();
        let read = |path: &Path| std::fs::read(path.join(TENSORS_FILE)).unwrap();
        assert!(read(copy.path()) == read(&dir.join("adapter")), "{name}");
    }
}
