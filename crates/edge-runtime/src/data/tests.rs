//! Reading of data: forms, parts, splits, columns, and both places that ids may lie in.

use tempfile::{TempDir, tempdir};

use super::*;
use crate::batch::{Batch, Sampler};
use crate::testing::{byte_tokenizer, message, shared};

/// Bytes are tokens `3 + byte`, `<s>` is 1 and starts each text, `</s>` is 2.
fn tokenizer() -> Tokenizer {
    let settings = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    byte_tokenizer(Some(settings)).1.unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn load(dir: &TempDir, name: &str, val_fraction: f64) -> Result<Dataset> {
    let data = vec![dir.path().join(name)];
    Dataset::load(&DataSpec { data, val_fraction, ..DataSpec::default() }, &tokenizer())
}

fn eval(dir: &TempDir, name: &str) -> Result<Stream> {
    let data = vec![dir.path().join(name)];
    load_eval(&DataSpec { data, ..DataSpec::default() }, &tokenizer())
}

/// `<` for the start, `>` for the end of a sequence.
fn shown(ids: &[u32]) -> String {
    let bytes = ids.iter().map(|id| match id {
        1 => b'<',
        2 => b'>',
        id => (id - 3) as u8,
    });
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn a_plain_text_is_cut_by_characters() {
    let dir = folder(&[("a.txt", "éé456789AB".as_bytes())]);
    let dataset = load(&dir, "a.txt", 0.25).unwrap();
    assert_eq!(shown(&dataset.train.ids), "<éé45678");
    assert_eq!(shown(&dataset.valid.unwrap().ids), "<9AB");
    assert!(load(&dir, "a.txt", 0.0).unwrap().valid.is_none());
    let tiny = folder(&[("a.md", b"x")]);
    assert!(message(load(&tiny, "a.md", 0.5)).contains("--val-fraction"));
    assert!(message(load(&tiny, "a.md", 1.0)).contains("--val-fraction"));
    let whole = eval(&dir, "a.txt").unwrap();
    assert_eq!(shown(&whole.ids), "<éé456789AB");
}

/// The count that came with mini12's published losses: all tokens of the text but the first.
#[test]
fn the_last_tenth_is_what_others_take() {
    let Some(shared) = shared() else { return };
    let assets = shared.join("assets");
    let tokenizer = Tokenizer::load(&assets.join("models/mini12")).unwrap();
    let data = vec![assets.join("datasets/tinyshakespeare/input.txt")];
    let spec = DataSpec { data, val_fraction: 0.1, ..DataSpec::default() };
    let valid = Dataset::load(&spec, &tokenizer).unwrap().valid.unwrap();
    assert_eq!(valid.ids.len() - 1, 47247);
    let batches = valid.eval_batches(256, 8, None).unwrap();
    let predicted: usize = batches.map(|batch| batch.trained_tokens).sum();
    // The first token of each window is given.
    assert_eq!(predicted, 47248 - 47248usize.div_ceil(256));
}

#[test]
fn documents_are_joined_by_separators() {
    let lines = b"{\"text\": \"ab\", \"id\": 1}\n\n{\"text\": \"c\"}\r\n{\"text\": \"d\"}\n";
    let array = b"\n[{\"text\": \"ab\"}, {\"text\": \"c\"}, {\"text\": \"d\"}]";
    let dir = folder(&[("a.jsonl", lines), ("a.json", array)]);
    for name in ["a.jsonl", "a.json"] {
        let dataset = load(&dir, name, 0.34).unwrap();
        assert_eq!(shown(&dataset.train.ids), "<ab");
        assert_eq!(shown(&dataset.valid.unwrap().ids), "<c><d");
    }
    let data = vec![dir.path().join("a.jsonl"), dir.path().join("a.json")];
    let spec = DataSpec { data, ..DataSpec::default() };
    let both = Dataset::load(&spec, &tokenizer()).unwrap();
    assert_eq!(shown(&both.train.ids), "<ab><c><d><ab><c><d");
}

#[test]
fn examples_are_sequences_of_their_own() {
    let lines = b"{\"prompt\": \"ab\", \"completion\": \"c\"}\n\
        {\"prompt\": \"d\", \"completion\": \"ef\"}\n\
        {\"prompt\": \"g\", \"completion\": \"h\"}";
    let dir = folder(&[("a.jsonl", lines), ("b.txt", b"text"), ("c.jsonl", lines)]);
    let data = vec![dir.path().join("a.jsonl")];
    let spec = DataSpec { data, val_items: Some(1), ..DataSpec::default() };
    let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
    assert_eq!(shown(&dataset.train.ids), "<abc><def>");
    let example = |start, len, prompt| Example { start, len, prompt };
    assert_eq!(dataset.train.examples[..], [example(0, 5, 3), example(5, 5, 2)]);
    let valid = dataset.valid.unwrap();
    assert_eq!((shown(&valid.ids).as_str(), valid.examples.len()), ("<gh>", 1));
    assert_eq!(dataset.train.answers[..5], [0, 0, 0, 1, 1]);
    let whole = DataSpec { train_on_prompt: true, ..spec.clone() };
    let whole = Dataset::load(&whole, &tokenizer()).unwrap();
    assert!(whole.train.answers.iter().all(|trained| *trained == 1));
    assert_eq!(whole.train.examples[1], example(5, 5, 0));
    assert_eq!(whole.valid.unwrap().answers[..], [0, 0, 1, 1]);
    let load = |spec: &DataSpec| message(Dataset::load(spec, &tokenizer()));
    assert!(load(&DataSpec { val_items: Some(3), ..spec.clone() }).contains("3 items"));
    let text = DataSpec { data: vec![dir.path().join("b.txt")], ..spec.clone() };
    assert!(load(&text).contains("--val-fraction instead"));
    let data = vec![dir.path().join("b.txt"), dir.path().join("c.jsonl")];
    assert!(load(&DataSpec { data, ..DataSpec::default() }).contains("one kind"));
}

#[test]
fn a_directory_has_its_parts() {
    let dir = folder(&[
        ("train.txt", b"train"),
        ("valid.jsonl", b"{\"text\": \"valid\"}"),
        ("test.txt", b"\xEF\xBB\xBFtest"),
    ]);
    let dataset = load(&dir, "", 0.5).unwrap();
    assert_eq!(shown(&dataset.train.ids), "<train");
    assert_eq!(shown(&dataset.valid.unwrap().ids), "<valid");
    let whole = eval(&dir, "").unwrap();
    assert_eq!(shown(&whole.ids), "<test");
    let data = vec![dir.path().to_owned()];
    let valid = Some(dir.path().join("test.txt"));
    let spec = DataSpec { data, valid, val_fraction: 0.5, ..DataSpec::default() };
    let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
    assert_eq!(shown(&dataset.train.ids), "<train");
    assert_eq!(shown(&dataset.valid.unwrap().ids), "<test");
    std::fs::write(dir.path().join("train.jsonl"), "").unwrap();
    assert!(message(load(&dir, "", 0.0)).contains("both"));
    let empty = tempdir().unwrap();
    assert!(message(load(&empty, "", 0.0)).contains("train.jsonl"));
    assert!(message(eval(&empty, "")).contains("valid"));
}

#[test]
fn bad_files_are_refused_with_the_place() {
    for (name, bytes, expected) in [
        ("a.txt", &b" \n"[..], "is empty"),
        ("a.jsonl", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.txt", b"abc\xFFdef", "not UTF-8 at byte 3, line 1"),
        ("a.jsonl", b"{\"text\": \"a\"}\n\xFF", "line 2: convert"),
        ("a.jsonl", b"{\"prompt\": \"a\", \"completion\": 1}", "of "),
        (
            "a.json",
            b"[{\"messages\": [{\"role\": \"bard\", \"content\": \"\"}]}]",
            "item 1 message 1 has the unknown role \"bard\"",
        ),
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": ", "line 2 is no JSON"),
        (
            "a.jsonl",
            b"{\"text\": \"a\"}\n\n{\"q\": 1, \"z\": 2}",
            "line 3 has no \"text\" but [q, z]",
        ),
        ("a.jsonl", b"{\"text\": 5}", "line 1 is no string"),
        ("a.jsonl", b"{\"text\": \"\"}", "line 1 has an empty"),
        ("a.jsonl", b"3", "line 1 is no JSON object"),
        ("a.json", b"[{\"text\": \"a\"}, {}]", "item 2 has no \"text\""),
        ("a.json", b"[{\"text\": \"a\"}", "is no JSON"),
        ("a.csv", b"text", ".jsonl"),
    ] {
        let dir = folder(&[(name, bytes)]);
        let error = message(load(&dir, name, 0.0));
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
    let dir = tempdir().unwrap();
    assert!(message(load(&dir, "absent.txt", 0.0)).contains("absent.txt"));
}

#[test]
fn many_ids_lie_in_a_file_and_are_the_same() {
    let talk = |at: usize| {
        let said = "x".repeat(1 + at * 7 % 23);
        serde_json::json!({"prompt": format!("p{at}"), "completion": said}).to_string() + "\n"
    };
    let lines: String = (0..200).map(talk).collect();
    let items = lines.trim_end().replace('\n', ",\n");
    let texts: String = (0..50).map(|at| format!("{{\"text\": \"t {at}\"}}\n")).collect();
    let dir = folder(&[
        ("a.jsonl", lines.as_bytes()),
        ("a.json", format!("[{items}]").as_bytes()),
        ("b.jsonl", texts.as_bytes()),
        ("c.txt", "a\u{e9} line\nbegins\n\n with\r\nbreaks\n".repeat(40).as_bytes()),
    ]);
    let tokenizer = tokenizer();
    for names in [&["a.jsonl"][..], &["a.json"], &["b.jsonl"], &["c.txt"], &["b.jsonl", "c.txt"]] {
        for (val_fraction, val_items) in [(0.0, None), (0.3, None), (0.0, Some(7))] {
            let data = names.iter().map(|name| dir.path().join(name)).collect();
            let spec = DataSpec { data, val_fraction, val_items, ..DataSpec::default() };
            if val_items.is_some() && names.contains(&"c.txt") {
                continue;
            }
            let memory = Dataset::load_by(&spec, &tokenizer, [usize::MAX; 2]).unwrap();
            let file = Dataset::load_by(&spec, &tokenizer, [8, 16]).unwrap();
            assert!(file.train.ids.is_mapped() && !memory.train.ids.is_mapped());
            assert_eq!(file.train, memory.train);
            assert_eq!(file.valid, memory.valid);
            assert_eq!(file.valid.is_some(), val_fraction > 0.0 || val_items.is_some());
            let batches = |data: &Dataset| {
                let mut sampler = Sampler::new(&data.train, 12, 5).unwrap();
                (0..9).map(|_| sampler.next_batch(&data.train, 3)).collect::<Vec<Batch>>()
            };
            assert_eq!(batches(&file), batches(&memory));
        }
    }
}

#[test]
fn columns_are_named_before_the_form_is_told() {
    let dir = folder(&[
        ("a.jsonl", b"{\"query\": \"ab\", \"reply\": \"c\", \"text\": \"t\"}\n"),
        ("b.txt", b"text"),
        ("c.jsonl", b"{\"text\": \"a\"}\n"),
    ]);
    let load = |name: &str, columns: &str| {
        let columns = Some(columns.parse().unwrap());
        let spec = DataSpec { data: vec![dir.path().join(name)], columns, ..DataSpec::default() };
        Dataset::load(&spec, &tokenizer())
    };
    let train = load("a.jsonl", "prompt=query,completion=reply").unwrap().train;
    assert_eq!((shown(&train.ids).as_str(), train.examples[0].prompt), ("<abc>", 3));
    let error = message(load("a.jsonl", "prompt=qeury,completion=reply"));
    assert!(error.contains("a.jsonl line 1 does not have a column \"qeury\""), "{error}");
    assert!(error.contains("did you mean \"query\"?"), "{error}");
    // Where the form is told all the same.
    let error = message(load("c.jsonl", "text=text").map(|_| ()).and(load("c.jsonl", "text=tXt")));
    assert!(error.contains("did you mean \"text\"?"), "{error}");
    let line = b"{\"instruction\": \"i\", \"output\": \"o\"}\n";
    std::fs::write(dir.path().join("c.jsonl"), line).unwrap();
    let error = message(load("c.jsonl", "input=zzz"));
    assert!(error.contains("no line of") && error.contains("a column \"zzz\" but ["), "{error}");
    let error = message(load("b.txt", "text=body"));
    assert!(error.contains("b.txt has no columns, since it is plain text"), "{error}");
}

#[test]
fn an_example_that_trains_nothing_is_refused_with_its_line() {
    // No end of sequence follows an answer, and waves are no tokens.
    let (files, _) = byte_tokenizer(None);
    let path = files.path().join("tokenizer.json");
    let mut file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["normalizer"] =
        serde_json::json!({"type": "Replace", "pattern": {"String": "~"}, "content": ""});
    std::fs::write(&path, file.to_string()).unwrap();
    let tokenizer = Tokenizer::load(files.path()).unwrap();
    let line = |said: &str| format!("{{\"prompt\": \"a\", \"completion\": \"{said}\"}}\n");
    let load = |lines: &[&str]| {
        let text: String = lines.iter().map(|said| line(said)).collect();
        let dir = folder(&[("a.jsonl", text.as_bytes())]);
        let data = vec![dir.path().join("a.jsonl")];
        Dataset::load(&DataSpec { data, ..DataSpec::default() }, &tokenizer)
    };
    assert_eq!(load(&["b", "~b"]).unwrap().train.examples.len(), 2);
    for (lines, place) in [(&["b", "b", "~"][..], "line 3 has no token"), (&["~~"], "line 1 has")] {
        let error = message(load(lines));
        assert!(error.contains(place) && error.contains("a.jsonl"), "{error}");
    }
}
