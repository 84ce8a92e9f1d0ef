//! Tests of the tokenizer on real vocabularies and on a byte-level one made here.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::testing::{byte_tokenizer, message, shared, tiny_config};

fn streamed(tokenizer: &Tokenizer, context: &[u32], ids: &[u32]) -> String {
    let mut stream = tokenizer.stream(context).unwrap();
    let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

#[test]
fn special_tokens_follow_the_template_and_the_settings() {
    let (_dir, tokenizer) = byte_tokenizer(None);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.encode("A", true).unwrap(), [1, 68]);
    assert_eq!(tokenizer.encode("A", false).unwrap(), [68]);
    assert!(tokenizer.adds_bos() && tokenizer.bos_id() == Some(1) && tokenizer.eos_id().is_none());

    let tokens = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    let with = |bos: bool, eos: bool| {
        let mut settings = tokens.clone();
        settings["add_bos_token"] = json!(bos);
        settings["add_eos_token"] = json!(eos);
        let (_dir, tokenizer) = byte_tokenizer(Some(settings));
        tokenizer.unwrap().encode("A", true).unwrap()
    };
    assert_eq!(with(true, false), [1, 68]);
    assert_eq!(with(false, false), [68]);
    assert_eq!(with(false, true), [68, 2]);
    assert_eq!(with(true, true), [1, 68, 2]);
}

#[test]
fn wrong_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(message(Tokenizer::load(dir.path())).contains("tokenizer.json"));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(message(Tokenizer::load(dir.path())).contains("no tokenizer"));
    let (_dir, tokenizer) = byte_tokenizer(Some(json!({"bos_token": "<bos>"})));
    assert!(message(tokenizer).contains("<bos>"));
    let (_dir, tokenizer) = byte_tokenizer(Some(json!({"add_eos_token": true})));
    assert!(message(tokenizer).contains("add_eos_token"));
    let (_dir, tokenizer) = byte_tokenizer(None);
    let tokenizer = tokenizer.unwrap();
    tokenizer.check_vocab(259).unwrap();
    let error = message(tokenizer.check_vocab(258));
    assert!(error.contains("up to 258") && error.contains("vocab_size is 258"), "{error}");
}

#[test]
fn a_model_names_tokens_that_the_tokenizer_does_not() {
    let (dir, _) = byte_tokenizer(None);
    let mut model = tiny_config();
    assert!(message(Tokenizer::for_model(dir.path(), &model)).contains("vocab_size is 32"));
    model.vocab_size = 260;
    model.eos_token_ids = vec![999, 2];
    let tokenizer = Tokenizer::for_model(dir.path(), &model).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
}

#[test]
fn no_piece_of_a_stream_ends_inside_a_character() {
    let (_dir, tokenizer) = byte_tokenizer(None);
    let tokenizer = tokenizer.unwrap();
    let text = "aé€🦀";
    let mut stream = tokenizer.stream(&[]).unwrap();
    let mut pieces = Vec::new();
    for id in tokenizer.encode(text, false).unwrap() {
        pieces.push(stream.push(id).unwrap());
    }
    assert_eq!(pieces, ["a", "", "é", "", "", "€", "", "", "", "🦀"]);
    assert_eq!(stream.finish().unwrap(), "");
    // Bytes that are no UTF-8 are neither held back for ever nor an error.
    let broken = [0xFF + 3; 20];
    assert_eq!(streamed(&tokenizer, &[], &broken).chars().count(), 20);
    assert_eq!(streamed(&tokenizer, &[], &[0xE2 + 3]), "\u{FFFD}");
    let spoiled = streamed(&tokenizer, &[], &[68, 0xFF + 3, 69]);
    assert!(spoiled.starts_with('A') && spoiled.ends_with(['B', '\u{FFFD}']));
}

#[test]
fn vectors_of_llama_cpp_hold() {
    let Some(shared) = shared() else { return };
    let base = shared.join("assets/tokenizers");
    for (folder, vectors) in
        [("llama2", "llama-spm"), ("llama3", "llama-bpe"), ("qwen2.5", "qwen2")]
    {
        let tokenizer = Tokenizer::load(&base.join(folder)).unwrap();
        let read = |end: &str| {
            let name = format!("test-vectors/ggml-vocab-{vectors}.gguf.{end}");
            std::fs::read_to_string(base.join(name)).unwrap()
        };
        let (texts, ids) = (read("inp"), read("out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let ids: Vec<&str> = ids.lines().collect();
        assert!(ids.len() > 40 && texts.len() >= ids.len(), "{vectors}");
        for (text, line) in texts.iter().zip(&ids) {
            let want: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let got = tokenizer.encode(text, false).unwrap();
            assert_eq!(got, want, "{folder}: {text:?}");
            // The stream gives what decoding at once gives.
            assert_eq!(streamed(&tokenizer, &[], &got), tokenizer.decode(&got).unwrap());
        }
    }
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    let Some(shared) = shared() else { return };
    let tokenizer = Tokenizer::load(&shared.join("assets/tokenizers/llama2")).unwrap();
    assert!(tokenizer.adds_bos() && tokenizer.eos_id() == Some(2));
    let ids = tokenizer.encode("Once upon a time", true).unwrap();
    assert_eq!(streamed(&tokenizer, &ids[..3], &ids[3..]), " a time");
    let llama3 = Tokenizer::load(&shared.join("assets/tokenizers/llama3")).unwrap();
    assert!(llama3.adds_bos());
    assert_eq!(llama3.bos_id(), Some(128_000));
}

#[test]
fn a_whole_file_is_encoded_at_once() {
    let Some(shared) = shared() else { return };
    let path = shared.join("assets/datasets/tinyshakespeare/input.txt");
    let text = std::fs::read_to_string(path).unwrap();
    for model in ["stories260K", "mini12"] {
        let dir = shared.join("assets/models").join(model);
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let start = Instant::now();
        let ids = tokenizer.encode(&text, true).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{model}: {} bytes, {} tokens, {seconds:.2} s", text.len(), ids.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{model}");
        assert!(seconds < 60.0, "{model}: {seconds:.1} s, which is not linear in the text");
    }
}
