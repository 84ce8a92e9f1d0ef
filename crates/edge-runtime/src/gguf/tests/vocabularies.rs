//! Tokenizers of real models, written to GGUF and read back: the same ids.

use serde_json::json;

use super::super::vocab::{self, Specials};
use super::*;
use crate::testing::byte_tokenizer;
use crate::tokenizer::Tokenizer;

/// A file with the tokenizer of a folder, and no more of a model than its table.
fn written(dir: &Path, folder: &Path, own: &Tokenizer) -> PathBuf {
    let bytes = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    let specials = Specials {
        bos: own.bos_id(),
        eos: own.eos_id(),
        adds_bos: own.adds_bos(),
        adds_eos: own.adds_eos(),
        template: own.chat_source().map(str::to_owned),
    };
    // Two rows more than tokens, as where tables are padded.
    let rows = own.vocab_len() + 2;
    let mut pairs = vocab::metadata(&value, &specials, rows, "tokenizer.json").unwrap();
    pairs.extend(sizes());
    file(dir, pairs, &[("token_embd.weight", &[rows, 1])])
}

fn read_back(path: &Path) -> Tokenizer {
    folder::tokenizer(&Gguf::open(path).unwrap()).unwrap()
}

/// Texts that no vector has: marks, text around them, spaces at both ends.
const FURTHER: [&str; 5] = ["", " ", "<|endoftext|>", "a<|im_end|>\n<|eot_id|>b </s> c", "  a  "];

#[test]
fn ids_are_those_of_the_original() {
    let Some(shared) = shared() else { return };
    let assets = shared.join("assets");
    let dir = tempfile::tempdir().unwrap();
    for (folder, vectors) in [
        ("tokenizers/llama2", "llama-spm"),
        ("tokenizers/llama3", "llama-bpe"),
        ("tokenizers/qwen2.5", "qwen2"),
        ("tokenizers/gpt2", "gpt-2"),
        ("tokenizers/smollm2", "gpt-2"),
        ("models/mini12", "gpt-2"),
        ("models/stories260K", "llama-spm"),
    ] {
        let folder = assets.join(folder);
        let own = Tokenizer::load(&folder).unwrap();
        let back = read_back(&written(dir.path(), &folder, &own));
        let vector = |end: &str| {
            let name = format!("tokenizers/test-vectors/ggml-vocab-{vectors}.gguf.{end}");
            std::fs::read_to_string(assets.join(name)).unwrap()
        };
        let texts = vector("inp");
        // Its marks are looked for in normalised text, which GGUF has no word for: llama.cpp and
        // newer tokenizers of the same model have them as they are written.
        let normalized = folder.ends_with("llama2");
        let further = FURTHER.into_iter().filter(|text| !normalized || !text.contains('<'));
        let texts = texts.split("\n__ggml_vocab_test__\n").chain(further);
        let mut count = 0;
        for text in texts {
            for special in [false, true] {
                let ids = own.encode(text, special).unwrap();
                let shown = folder.display();
                assert_eq!(back.encode(text, special).unwrap(), ids, "{shown}: {text:?}");
                assert_eq!(back.decode(&ids).unwrap(), own.decode(&ids).unwrap(), "{text:?}");
            }
            count += 1;
        }
        assert!(count > 40);
        assert_eq!((back.bos_id(), back.adds_bos()), (own.bos_id(), own.adds_bos()));
        assert_eq!((back.eos_id(), back.adds_eos()), (own.eos_id(), own.adds_eos()));
        assert_eq!(back.chat_source(), own.chat_source());
        assert_eq!(back.vocab_len(), own.vocab_len());
    }
}

#[test]
fn bytes_without_merges_go_both_ways() {
    let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ 1 }}",
                          "add_bos_token": false});
    let (dir, own) = byte_tokenizer(Some(settings));
    let own = own.unwrap();
    let away = tempfile::tempdir().unwrap();
    let path = written(away.path(), dir.path(), &own);
    let back = read_back(&path);
    let ids = own.encode("aé", true).unwrap();
    assert_eq!(back.encode("aé", true).unwrap(), ids);
    assert_eq!((back.bos_id(), back.eos_id(), back.adds_bos()), (Some(1), Some(2), false));
    assert_eq!(back.chat_source(), Some("{{ 1 }}"));
    // A tokenizer.json beside the file goes first, if it has the same tokens.
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(dir.path().join(name), away.path().join(name)).unwrap();
    }
    assert_eq!(read_back(&path).encode("aé", true).unwrap(), ids);
    let file = away.path().join("tokenizer.json");
    let other = std::fs::read_to_string(&file).unwrap().replace("<0x41>", "A");
    std::fs::write(&file, other).unwrap();
    // Bytes are no ordinary tokens, so that one is let pass; an ordinary one is not.
    read_back(&path);
    let mut pairs = sizes();
    let tokens = ["x", "y"].map(text).to_vec();
    let kind = gguf_rs_lib::format::types::GGUFValueType::String;
    let list = gguf_rs_lib::format::metadata::MetadataArray::new(kind, tokens).unwrap();
    pairs.push(("tokenizer.ggml.tokens".into(), MetadataValue::Array(Box::new(list))));
    let path = super::file(away.path(), pairs, &[("token_embd.weight", &[300, 1])]);
    let error = message(folder::tokenizer(&Gguf::open(&path).unwrap()));
    assert!(error.contains("token 0") && error.contains("tokenizer.json"), "{error}");
}

#[test]
fn tokenizers_that_gguf_has_no_name_for_are_refused() {
    let specials = Specials::default();
    let write = |value: &Value, rows| vocab::metadata(value, &specials, rows, "t.json");
    let model = |model: Value, cut: Value| json!({"model": model, "pre_tokenizer": cut});
    let bpe = json!({"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []});
    let whole = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    write(&model(bpe.clone(), whole.clone()), 2).unwrap();
    for (value, rows, part) in [
        (model(json!({"type": "Unigram"}), Value::Null), 2, "Unigram"),
        (model(bpe.clone(), json!({"type": "Whitespace"})), 2, "known are gpt-2"),
        (model(bpe, whole.clone()), 1, "no row"),
        (model(json!({"type": "BPE", "vocab": {}, "merges": [3]}), whole), 2, "merges"),
    ] {
        let error = message(write(&value, rows));
        assert!(error.contains("t.json") && error.contains(part), "{error}");
    }
}
