//! Documents of JSON data: texts, and examples with a prompt and an answer.

use std::ops::Range;

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use crate::chat::{self, Conversation, Message, Piece, Role};
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
    /// What the assistant says is trained.
    Chat(Conversation),
}

impl Document {
    /// From `{text}`, `{prompt, completion}`, `{question, answer}`, `{instruction, input, output}`,
    /// `{messages}` or `{conversations}`, the last two with `tools`; `place` is for messages.
    pub(crate) fn read(value: &Value, place: &str) -> Result<Self> {
        let Value::Object(keys) = value else {
            bail!("{place} is no JSON object: write {{\"text\": …}}");
        };
        let string = |key: &str| string(keys, key, place);
        let has = |key: &str| keys.contains_key(key);
        if has("text") {
            return Ok(Self::Text(filled(string("text")?, "text", place)?.to_owned()));
        }
        let (key, prompt) = if has("messages") {
            return chat(keys, ["messages", "role", "content"], place);
        } else if has("conversations") {
            return chat(keys, ["conversations", "from", "value"], place);
        } else if has("prompt") && has("completion") {
            ("completion", string("prompt")?.to_owned())
        } else if has("question") && has("answer") {
            let question = filled(string("question")?, "question", place)?;
            ("answer", format!("Question: {question}\nAnswer: "))
        } else if has("instruction") && has("output") {
            let input = if has("input") { string("input")? } else { "" };
            ("output", alpaca(filled(string("instruction")?, "instruction", place)?, input))
        } else {
            let names: Vec<&str> = keys.keys().map(String::as_str).collect();
            bail!(
                "{place} has no \"text\" but [{}]: write the text under the key \"text\", or use \
                 prompt and completion, question and answer, instruction, input and output, \
                 messages or conversations, or name the keys with --columns",
                names.join(", ")
            );
        };
        Ok(Self::Example { prompt, answer: filled(string(key)?, key, place)?.to_owned() })
    }
}

/// A conversation under the key `all`, each message with a role and a content under these keys.
fn chat(
    keys: &Map<String, Value>,
    [all, role, content]: [&str; 3],
    place: &str,
) -> Result<Document> {
    let Value::Array(items) = &keys[all] else {
        bail!("the \"{all}\" of {place} is no array: write [{{\"{role}\": …}}]");
    };
    let message = |(index, item): (usize, &Value)| {
        let place = format!("{place} message {}", index + 1);
        let Value::Object(keys) = item else {
            bail!("{place} is no JSON object: write {{\"{role}\": …, \"{content}\": …}}");
        };
        let calls = keys.get(chat::CALLS).is_some_and(|calls| !calls.is_null());
        for key in [role, content] {
            ensure!(keys.contains_key(key) || calls, "{place} has no \"{key}\": add it");
        }
        let name = string(keys, role, &place)?;
        let Some(known) = Role::parse(name) else {
            bail!(
                "{place} has the unknown role {name:?}: use system, user or human, assistant or \
                 gpt, tool"
            );
        };
        let mut more = keys.clone();
        more.retain(|key, value| key != role && key != content && !value.is_null());
        if let Some(calls) = more.get_mut(chat::CALLS) {
            parse_arguments(calls);
        }
        Ok(Message { role: known, content: said(keys, content, calls, &place)?, more })
    };
    let messages: Vec<Message> = items.iter().enumerate().map(message).collect::<Result<_>>()?;
    chat::check(&messages, place)?;
    let tools = match keys.get("tools") {
        None | Some(Value::Null) => None,
        Some(Value::Array(tools)) if tools.is_empty() => None,
        Some(tools @ Value::Array(_)) => Some(tools.clone()),
        Some(_) => bail!("the \"tools\" of {place} is no array: write [{{\"type\": …}}]"),
    };
    Ok(Document::Chat(Conversation { messages, tools }))
}

/// The text of a message: a string, parts of which each is text, or, beside calls of tools, none.
fn said(keys: &Map<String, Value>, key: &str, calls: bool, place: &str) -> Result<String> {
    match keys.get(key) {
        None | Some(Value::Null) if calls => Ok(String::new()),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match part.get("text").and_then(Value::as_str) {
                Some(text) => Ok(text),
                None => bail!("{place} has a part that is no text: leave images and sounds out"),
            })
            .collect(),
        _ => Ok(string(keys, key, place)?.to_owned()),
    }
}

/// Arguments that are JSON in a string, as OpenAI writes them, become the object that templates of
/// models expect.
fn parse_arguments(calls: &mut Value) {
    for call in calls.as_array_mut().into_iter().flatten() {
        let arguments = call.get_mut("function").and_then(|call| call.get_mut("arguments"));
        if let Some(arguments) = arguments
            && let Some(object @ Value::Object(_)) =
                arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = object;
        }
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

/// Ids of a document with answers, an end-of-sequence token behind the last, and which of them
/// are answer: a token that holds the end of a prompt and the start of an answer counts as answer.
///
/// # Errors
/// The tokenizer fails, or the model's chat template refuses the conversation.
pub(crate) fn encode(document: &Document, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<bool>)> {
    let pieces = match document {
        Document::Text(text) => vec![Piece::new(text, true)],
        Document::Example { prompt, answer } => {
            vec![Piece::new(prompt, false), Piece::new(answer, true)]
        }
        Document::Chat(talk) => match tokenizer.chat_template()? {
            Some(template) => template.pieces(talk)?,
            None => chat::plain(&talk.messages, &tokenizer.eos_text()),
        },
    };
    let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    let mut bounds = Vec::new();
    let mut end = 0;
    for piece in &pieces {
        let start = end;
        end += piece.text.len();
        if piece.answer {
            bounds.push(start..end);
        }
    }
    let (mut ids, spans) = tokenizer.encode_spans(&text)?;
    let inside = |span: &Range<usize>| {
        bounds.iter().any(|answer| span.start < answer.end && span.end > answer.start)
    };
    let mut answers: Vec<bool> = spans.iter().map(inside).collect();
    // Templates end an answer in a token of their own, sometimes with a line break behind it.
    let ended = |eos: &u32| ids.iter().rev().take(2).any(|id| id == eos);
    if let Some(eos) = tokenizer.eos_id().filter(|eos| !ended(eos)) {
        ids.push(eos);
        answers.push(true);
    }
    Ok((ids, answers))
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
            other => panic!("{other:?}"),
        };
        assert_eq!(read(json!({"text": "a", "output": 1})).unwrap(), Document::Text("a".into()));
        let (prompt, completion) = answer(json!({"prompt": "p", "completion": " c"}));
        assert_eq!((prompt.as_str(), completion.as_str()), ("p", " c"));
        let (prompt, said) = answer(json!({"question": "1 + 1?", "answer": "2"}));
        assert_eq!((prompt.as_str(), said.as_str()), ("Question: 1 + 1?\nAnswer: ", "2"));
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
            (json!({"instruction": "i"}), "[instruction]"),
            (json!({"messages": []}), "item 1 has no message"),
            (json!({"messages": {}}), "no array"),
            (json!({"messages": [3]}), "message 1 is no JSON object"),
            (json!({"messages": [{"role": "user"}]}), "message 1 has no \"content\""),
            (json!({"messages": [{"role": "u", "content": ""}]}), "unknown role \"u\""),
            (json!({"messages": [{"role": "user", "content": 1}]}), "message 1 is no string"),
            (json!({"messages": [{"role": "user", "content": "a"}]}), "has no answer"),
            (json!({"conversations": [{"from": "gpt", "value": ""}]}), "empty answer"),
            (json!({"question": "", "answer": "a"}), "empty \"question\""),
            (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "no text"),
            (json!({"tools": 3, "messages": [{"role": "assistant", "content": "a"}]}), "no array"),
            (json!({"conversations": [{"role": "gpt", "value": ""}]}), "no \"from\""),
        ] {
            assert!(message(read(value)).contains(part), "{part}");
        }
    }

    #[test]
    fn calls_of_tools_may_stand_alone() {
        let call = json!({"function": {"name": "f", "arguments": "{\"at\": 3}"}});
        let talk = json!({"tools": [{"type": "function"}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [call], "id": null}]});
        let Document::Chat(talk) = Document::read(&talk, "a.json item 1").unwrap() else {
            panic!("a conversation")
        };
        assert_eq!(talk.messages[0].content, "ab");
        let more = &talk.messages[1].more;
        assert_eq!(more["tool_calls"][0]["function"]["arguments"], json!({"at": 3}));
        assert!(!more.contains_key("id") && talk.tools.is_some());
    }

    #[test]
    fn the_answer_begins_where_the_prompt_ends() {
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let (_dir, tokenizer) = byte_tokenizer(Some(settings));
        let tokenizer = tokenizer.unwrap();
        let shown = |value: Value| -> String {
            let document = Document::read(&value, "a.json item 1").unwrap();
            let (ids, answers) = encode(&document, &tokenizer).unwrap();
            assert_eq!(ids.len(), answers.len());
            let show = |(id, answer): (&u32, &bool)| {
                let text = match id {
                    1 => "<s>".to_owned(),
                    2 => "</s>".to_owned(),
                    id => char::from((id - 3) as u8).to_string(),
                };
                if *answer { text.to_uppercase() } else { text }
            };
            ids.iter().zip(&answers).map(show).collect()
        };
        assert_eq!(shown(json!({"prompt": "ab", "completion": "c"})), "<s>abC</S>");
        // A character of several bytes is several tokens, all of the same piece.
        assert_eq!(shown(json!({"prompt": "\u{e9}", "completion": "c"})).len(), 12);
        let talk = json!({"conversations": [
            {"from": "human", "value": "q"}, {"from": "gpt", "value": "r"},
            {"from": "human", "value": "s"}, {"from": "gpt", "value": "t"}]});
        assert_eq!(
            shown(talk),
            "<s>### User:\nq\n\n### Assistant:\nR</S>\n\n### User:\ns\n\n### Assistant:\nT</S>"
        );
    }

    #[test]
    fn a_chat_template_writes_conversations() {
        let chatml = "{% for m in messages %}\
            {{ '|' + m.role + ':' + m.content + eos_token + '\n' }}{% endfor %}\
            {% if add_generation_prompt %}|assistant:{% endif %}";
        let settings = json!({"eos_token": "</s>", "chat_template": chatml});
        let tokenizer = byte_tokenizer(Some(settings)).1.unwrap();
        let talk = json!({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": "r"}]});
        let document = Document::read(&talk, "a.json item 1").unwrap();
        let (ids, answers) = encode(&document, &tokenizer).unwrap();
        let bytes = |text: &str| text.bytes().map(|b| 3 + u32::from(b)).collect::<Vec<_>>();
        let given = [&[1][..], &bytes("|user:q"), &[2], &bytes("\n|assistant:")].concat();
        assert_eq!(ids, [&given[..], &bytes("r"), &[2], &bytes("\n")].concat());
        assert_eq!(answers.iter().position(|answer| *answer), Some(given.len()));
        assert!(answers[given.len()..].iter().all(|answer| *answer));
    }
}
