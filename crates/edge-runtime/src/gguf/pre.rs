//! Pre-tokenizers by the names that GGUF files give them (`tokenizer.ggml.pre`): how a text is cut
//! before byte pairs are merged. Names and regular expressions are those of `llama-vocab.cpp`,
//! the latter as the models' own `tokenizer.json` have them.

use serde_json::{Value, json};

/// How texts are cut.
#[derive(Debug)]
pub struct Pre {
    /// The names that mean this; the first is written.
    pub names: &'static [&'static str],
    cut: Cut,
    /// Whether a piece that is a token is one, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether texts are brought into Unicode's composed form first.
    pub composed: bool,
    /// Whether a text starts with the beginning-of-sequence token where the file does not say.
    pub adds_bos: bool,
}

#[derive(Debug)]
enum Cut {
    /// GPT-2's own expression.
    Gpt2,
    /// Digits one by one, then GPT-2's expression.
    Digits,
    Expression(&'static str),
}

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

static KNOWN: [Pre; 6] = [
    Pre {
        names: &["gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "mellum", "olmo", "mpt"],
        cut: Cut::Gpt2,
        ignore_merges: false,
        composed: false,
        adds_bos: false,
    },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"],
        cut: Cut::Digits,
        ignore_merges: false,
        composed: false,
        adds_bos: false,
    },
    Pre {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        cut: Cut::Expression(LLAMA3),
        ignore_merges: true,
        composed: false,
        adds_bos: true,
    },
    Pre {
        names: &["smaug-bpe", "dbrx"],
        cut: Cut::Expression(LLAMA3),
        ignore_merges: false,
        composed: false,
        adds_bos: false,
    },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        cut: Cut::Expression(QWEN2),
        ignore_merges: false,
        composed: true,
        adds_bos: false,
    },
    Pre {
        names: &["tekken"],
        cut: Cut::Expression(TEKKEN),
        ignore_merges: true,
        composed: false,
        adds_bos: true,
    },
];

impl Pre {
    /// By its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|pre| pre.names.contains(&name))
    }

    /// The one that a `tokenizer.json` has.
    pub fn of(tokenizer: &Value) -> Option<&'static Self> {
        let model = &tokenizer["model"];
        let ignore_merges = model["ignore_merges"].as_bool().unwrap_or(false);
        let cut = simplified(&tokenizer["pre_tokenizer"]);
        let same = |pre: &&Pre| {
            pre.ignore_merges == ignore_merges && simplified(&pre.pre_tokenizer()) == cut
        };
        KNOWN.iter().find(same)
    }

    /// `pre_tokenizer` of a `tokenizer.json`.
    pub fn pre_tokenizer(&self) -> Value {
        let bytes = |use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": use_regex})
        };
        let list =
            |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
        match self.cut {
            Cut::Gpt2 => bytes(true),
            Cut::Digits => list(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            Cut::Expression(regex) => {
                let split = json!({"type": "Split", "pattern": {"Regex": regex},
                                   "behavior": "Isolated", "invert": false});
                list(split, bytes(false))
            }
        }
    }

    /// `normalizer` of a `tokenizer.json`.
    pub fn normalizer(&self) -> Value {
        if self.composed { json!({"type": "NFC"}) } else { Value::Null }
    }
}

/// The first name of each, for messages.
pub fn names() -> String {
    let names: Vec<&str> = KNOWN.iter().map(|pre| pre.names[0]).collect();
    names.join(", ")
}

/// A pre-tokenizer without what does not change where it cuts.
fn simplified(value: &Value) -> Value {
    match value {
        Value::Object(keys) => {
            let kept = keys.iter().filter(|(key, _)| *key != "trim_offsets");
            kept.map(|(key, value)| (key.clone(), simplified(value))).collect()
        }
        Value::Array(list) => list.iter().map(simplified).collect(),
        other => other.clone(),
    }
}
