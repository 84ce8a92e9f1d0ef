//! Documents of JSON data: texts, and examples with a prompt and an answer.

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use crate::tokenizer::Tokenizer;

/// A document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// All of it is trained.
    Text(String),
    /// The answer is trained.
    Example {
        /// What is given.
        prompt: String,
        /// What is to be said.
        answer: String,
    },
}

impl Document {
    /// From `{text}`, `{prompt, completion}`, or `{instruction, input, output}`; `place` is for
    /// messages.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let Value::Object(keys) = value else {
            bail!("{place} is no JSON object: write {{\"text\": …}}");
        };
        let string = |key: &str| string(keys, key, place);
        let has = |key: &str| keys.contains_key(key);
        if has("text") {
            return Ok(Self::Text(filled(string("text")?, "text", place)?.to_owned()));
        }
        let (key, prompt) = if has("prompt") && has("completion") {
            ("completion", string("prompt")?.to_owned())
        } else if has("instruction") && has("output") {
            let input = if has("input") { string("input")? } else { "" };
            ("output", alpaca(filled(string("instruction")?, "instruction", place)?, input))
        } else {
            let names: Vec<&str> = keys.keys().map(String::as_str).collect();
            bail!(
                "{place} has no \"text\" but [{}]: write the text under the key \"text\", or use \
                 prompt and completion, or instruction, input and output",
                names.join(", ")
            );
        };
        Ok(Self::Example { prompt, answer: filled(string(key)?, key, place)?.to_owned() })
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }
}

fn string<'a>(keys: &'a Map<String, Value>, key: &str, place: &str) -> Result<&'a str> {
    match keys.get(key) {
        Some(Value::String(text)) => Ok(text),
        _ => bail!("the \"{key}\" of {place} is no string: put it in quotes"),
    }
}

fn filled<'a>(text: &'a str, key: &str, place: &str) -> Result<&'a str> {
    ensure!(!text.is_empty(), "{place} has an empty \"{key}\": remove the line");
    Ok(text)
}

/// The template of Stanford Alpaca (Taori et al. 2023), with and without input.
fn alpaca(instruction: &str, input: &str) -> String {
    match input {
        "" => format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
        _ => format!(
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
    }
}

/// Ids of prompt and answer with an end-of-sequence token behind them, and how many of them are
/// the prompt's: a token that holds the end of the prompt and the start of the answer counts as
/// answer.
pub(crate) fn encode(
    prompt: &str,
    answer: &str,
    tokenizer: &Tokenizer,
) -> Result<(Vec<u32>, usize)> {
    let mut ids = tokenizer.encode(&format!("{prompt}{answer}"), true)?;
    let prompt = tokenizer.encode(prompt, true)?;
    let same = ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
    if let Some(eos) = tokenizer.eos_id().filter(|eos| ids.last() != Some(eos)) {
        ids.push(eos);
    }
    Ok((ids, same))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{byte_tokenizer, message};

    #[test]
    fn forms_are_told_by_their_keys() {
        let read = |value: Value| Document::read(&value, "a.json item 1");
        let answer = |value| match read(value).unwrap() {
            Document::Example { prompt, answer } => (prompt, answer),
            Document::Text(text) => panic!("{text}"),
        };
        assert_eq!(read(json!({"text": "a", "output": 1})).unwrap(), Document::Text("a".into()));
        let (prompt, completion) = answer(json!({"prompt": "p", "completion": " c"}));
        assert_eq!((prompt.as_str(), completion.as_str()), ("p", " c"));
        let (plain, said) = answer(json!({"instruction": "i", "output": "o", "input": ""}));
        assert!(plain.ends_with("### Instruction:\ni\n\n### Response:\n") && said == "o");
        let (with, _) = answer(json!({"instruction": "i", "input": "x", "output": "o"}));
        assert!(
            with.ends_with("### Instruction:\ni\n\n### Input:\nx\n\n### Response:\n"),
            "{with}"
        );
        for (value, part) in [
            (json!({"prompt": "p", "completion": ""}), "empty \"completion\""),
            (json!({"instruction": "", "output": "o"}), "empty \"instruction\""),
            (json!({"instruction": "i", "output": 3}), "\"output\" of a.json item 1 is no string"),
            (json!({"messages": []}), "[messages]"),
        ] {
            assert!(message(read(value)).contains(part), "{part}");
        }
    }

    #[test]
    fn the_answer_begins_where_the_prompt_ends() {
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let (_dir, tokenizer) = byte_tokenizer(Some(settings));
        let (ids, prompt) = encode("ab", "c", &tokenizer.unwrap()).unwrap();
        assert_eq!((ids, prompt), (vec![1, 100, 101, 102, 2], 3));
    }
}
