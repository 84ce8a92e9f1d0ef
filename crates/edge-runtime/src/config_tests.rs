//! Tests of `config.json`: defaults, what is refused, damaged files.

use edge_scheduler::Projection;
use serde_json::json;

use super::*;
use crate::testing::{message, shared, tiny_config_json};

fn with(key: &str, value: Value) -> Result<ModelConfig> {
    let mut config = tiny_config_json();
    config[key] = value;
    ModelConfig::from_value(&config, "config.json".as_ref())
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let config = crate::testing::tiny_config();
    assert_eq!((config.head_dim, config.rms_norm_eps), (2, 1e-6));
    assert_eq!((config.rope_theta, config.rope_scaling), (1e4, RopeScaling::None));
    assert_eq!((config.bos_token_id, config.eos_token_ids), (Some(1), vec![2]));
    assert!(!config.tie_word_embeddings && config.sliding_window.is_none());

    let mut keys = tiny_config_json();
    keys.as_object_mut().unwrap().remove("num_key_value_heads");
    let llama = ModelConfig::from_value(&keys, "c".as_ref()).unwrap();
    assert_eq!(llama.num_key_value_heads, 4);
    keys["architectures"] = json!(["MistralForCausalLM"]);
    keys["num_attention_heads"] = json!(16);
    keys["head_dim"] = json!(4);
    let mistral = ModelConfig::from_value(&keys, "c".as_ref()).unwrap();
    assert_eq!((mistral.num_key_value_heads, mistral.sliding_window), (8, Some(4096)));
    keys["sliding_window"] = Value::Null;
    let mistral = ModelConfig::from_value(&keys, "c".as_ref()).unwrap();
    assert_eq!((mistral.sliding_window, mistral.query_size()), (None, 64));
}

#[test]
fn rope_settings_are_read_in_both_forms() {
    let scaling = json!({
        "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32
    });
    let mut nested = scaling.clone();
    nested["rope_theta"] = json!(5e5);
    let new = with("rope_parameters", nested).unwrap();
    let mut old = tiny_config_json();
    old["rope_scaling"] = scaling;
    old["rope_theta"] = json!(500_000);
    assert_eq!(ModelConfig::from_value(&old, "c".as_ref()).unwrap(), new);
    assert!(matches!(new.rope_scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
    let linear = with("rope_scaling", json!({"rope_type": "linear", "factor": 2})).unwrap();
    assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for (key, value, expected) in [
        ("architectures", json!(["GPT2LMHeadModel"]), "LlamaForCausalLM, Mistral"),
        ("architectures", json!(null), "architectures"),
        ("quantization_config", json!({"quant_method": "gptq"}), "gptq"),
        ("quantization", json!({"group_size": 64, "bits": 4}), "MLX"),
        ("attention_bias", json!(true), "attention_bias"),
        ("mlp_bias", json!("yes"), "mlp_bias"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4}), "yarn"),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4}), "dynamic"),
        ("rope_scaling", json!({"type": "longrope"}), "longrope"),
        ("rope_scaling", json!({"type": "linear"}), "factor is missing"),
        ("rope_scaling", json!({"type": "linear", "factor": 0.0}), "factor is 0.0"),
        ("rope_parameters", json!({"full_attention": {}}), "full_attention"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
    ] {
        let error = message(with(key, value));
        assert!(error.contains(expected) && error.contains("config.json"), "{error}");
    }
}

#[test]
fn hostile_numbers_are_refused() {
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"] {
        let cases = [json!(0), json!(-1), json!(1.5), json!("8"), json!(null), json!(u64::MAX)];
        for value in cases {
            let error = message(with(key, value));
            assert!(error.contains(key), "{error}");
        }
    }
    for (key, value) in [
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(3)),
        ("rms_norm_eps", json!(0)),
        ("rope_theta", json!(-1)),
        ("max_position_embeddings", json!(0)),
        ("bos_token_id", json!(u64::MAX)),
        ("eos_token_id", json!(["a"])),
    ] {
        assert!(message(with(key, value.clone())).contains(key), "{key} {value}");
    }
    assert_eq!(with("eos_token_id", json!([5, 6])).unwrap().eos_token_ids, [5, 6]);
}

#[test]
fn broken_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(ModelConfig::load(dir.path())).contains("--model"));
    let whole = tiny_config_json().to_string();
    for len in 0..whole.len() {
        std::fs::write(dir.path().join("config.json"), &whole[..len]).unwrap();
        assert!(message(ModelConfig::load(dir.path())).contains("config.json"));
    }
    std::fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert!(message(ModelConfig::load(dir.path())).contains("no JSON object"));
    std::fs::write(dir.path().join("config.json"), &whole).unwrap();
    ModelConfig::load(dir.path()).unwrap();
    std::fs::write(dir.path().join("quantize_config.json"), "{}").unwrap();
    assert!(message(ModelConfig::load(dir.path())).contains("quantised by GPTQ"));
}

#[test]
fn published_configs_are_read() {
    let Some(shared) = shared() else { return };
    let load = |name: &str| ModelConfig::load(&shared.join(name));
    let llama = load("assets/configs/llama-3.2-1b").unwrap();
    assert_eq!((llama.head_dim, llama.key_value_size()), (64, 512));
    assert!(matches!(llama.rope_scaling, RopeScaling::Llama3 { factor: 32.0, .. }));
    for name in ["assets/models/mini12", "assets/models/stories260K", "golden/llama3-rope"] {
        assert!(load(name).unwrap().tie_word_embeddings, "{name}");
    }
    assert_eq!(load("golden/mistral").unwrap().family.name, "Mistral");
    assert_eq!(load("assets/configs/smollm2-135m").unwrap().rope_theta, 1e5);
    let qwen = load("assets/configs/qwen2.5-0.5b-instruct").unwrap();
    assert_eq!((qwen.head_dim, qwen.sliding_window, qwen.rope_theta), (64, None, 1e6));
    let phi = load("golden/phi3").unwrap();
    let place = phi.weight_place(2, Projection::V);
    assert_eq!((place.rows, place.whole), (128..160, 160));
    assert_eq!(place.name, "model.layers.2.self_attn.qkv_proj.weight");
    let gemma = load("golden/gemma3").unwrap();
    assert_eq!((gemma.rope_theta, gemma.local_rope_theta), (1e6, Some(1e4)));
    assert_eq!((gemma.sliding_window, &gemma.windowed[2..]), (Some(16), &[true, false][..]));
    assert!(gemma.tie_word_embeddings && gemma.embedding_scale == 96_f32.sqrt());
}

/// As published before transformers 5, which leaves out what is a default.
#[test]
fn gemma_and_qwen_in_their_older_form() {
    let mut keys = tiny_config_json();
    keys["architectures"] = json!(["Gemma3ForCausalLM"]);
    keys["num_hidden_layers"] = json!(12);
    keys["sliding_window"] = json!(512);
    keys["rope_local_base_freq"] = json!(5000);
    keys["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    keys["hidden_activation"] = json!("gelu_pytorch_tanh");
    let read = |keys: &Value| ModelConfig::from_value(keys, "config.json".as_ref());
    let gemma = read(&keys).unwrap();
    assert_eq!((gemma.head_dim, gemma.attention_scale), (256, 1.0 / 16.0));
    assert_eq!((gemma.rope_theta, gemma.local_rope_theta), (1e6, Some(5000.0)));
    assert_eq!(gemma.rope_scaling, RopeScaling::Linear { factor: 8.0 });
    let full: Vec<usize> = (0..12).filter(|block| !gemma.windowed[*block]).collect();
    assert_eq!(full, [5, 11]);
    for (key, value) in [
        ("final_logit_softcapping", json!(30.0)),
        ("attn_logit_softcapping", json!(50.0)),
        ("use_bidirectional_attention", json!(true)),
        ("hidden_activation", json!("silu")),
        ("layer_types", json!(["full_attention"])),
    ] {
        let mut wrong = keys.clone();
        wrong[key] = value;
        assert!(message(read(&wrong)).contains(key), "{key}");
    }

    let mut keys = tiny_config_json();
    keys["architectures"] = json!(["Qwen2ForCausalLM"]);
    keys["sliding_window"] = json!(16);
    keys["attention_bias"] = json!(true);
    assert_eq!(read(&keys).unwrap().sliding_window, None);
    keys["use_sliding_window"] = json!(true);
    keys["max_window_layers"] = json!(1);
    let qwen = read(&keys).unwrap();
    assert_eq!((qwen.sliding_window, qwen.windowed), (Some(16), vec![false, true]));
    assert_eq!((qwen.bos_token_id, qwen.eos_token_ids), (None, vec![]));
}

#[test]
fn adapters_are_on_whole_layers() {
    let mut keys = tiny_config_json();
    let all = [Projection::Q, Projection::K, Projection::V];
    let check = |keys: &Value, targets: &[Projection]| {
        ModelConfig::from_value(keys, "config.json".as_ref()).unwrap().check_targets(targets)
    };
    check(&keys, &all[..1]).unwrap();
    keys["architectures"] = json!(["Phi3ForCausalLM"]);
    check(&keys, &all).unwrap();
    let error = message(check(&keys, &all[..2]));
    assert!(error.contains("q_proj without v_proj") && error.contains("qkv_proj"), "{error}");
}
