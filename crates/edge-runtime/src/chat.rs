//! Conversations as text: by the model's own chat template, or by a plain one.
//!
//! A chat template is a Jinja template that turns messages into the text that a model was tuned
//! with; Hugging Face keeps it in `tokenizer_config.json` or in `chat_template.jinja`.

use anyhow::{Context as _, Result, bail, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use serde::Serialize as _;
use serde_json::{Map, Value as Json};

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Instructions in front of a conversation.
    System,
    /// The person.
    User,
    /// The model, whose messages are trained.
    Assistant,
    /// What a tool that the model called gave back.
    Tool,
}

impl Role {
    /// The role of a name, in the manner of `{role, content}` or of `{from, value}`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" => Some(Self::Assistant),
            "tool" | "function" | "observation" => Some(Self::Tool),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: String,
    /// What else the data say of it, for templates: `tool_calls`, `name`, `reasoning_content`.
    pub(crate) more: Map<String, Json>,
}

impl Message {
    fn value(&self) -> Value {
        let mut keys = self.more.clone();
        keys.insert("role".into(), self.role.name().into());
        keys.insert("content".into(), self.content.as_str().into());
        Value::from(Serde(keys))
    }
}

/// Messages, and the tools that the model may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    /// JSON schemas of functions, as templates take them.
    pub(crate) tools: Option<Json>,
}

/// A part of a text, and whether it is an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) answer: bool,
}

impl Piece {
    pub(crate) fn new(text: impl Into<String>, answer: bool) -> Self {
        Self { text: text.into(), answer }
    }
}

/// A chat template of a model folder.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// The file, for messages.
    file: String,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";

/// What a template may do for one text: an instruction or 64 bytes of data each, so that neither a
/// loop nor a text that doubles goes on for ever. Templates of models take some hundred a message.
const FUEL: u64 = 1 << 18;

/// The stack of a thread that renders. A template can put a list into a list for each step that it
/// has, and what is nested so deep is dropped, compared and printed by recursion.
const STACK_BYTES: usize = 512 << 20;

/// Messages of a conversation at most. A conversation is written once for each answer, so that time
/// grows by the square.
const MOST_MESSAGES: usize = 4096;

/// The key of the calls of tools that a message of the assistant makes.
pub(crate) const CALLS: &str = "tool_calls";

impl ChatTemplate {
    /// Parses a template; `bos` and `eos` are the texts of the special tokens, or empty.
    ///
    /// # Errors
    /// It is no Jinja template; the file and the line in the template are named.
    pub(crate) fn new(source: &str, file: String, [bos, eos]: [String; 2]) -> Result<Self> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| anyhow::anyhow!("{error}"))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(|state, value, name, args| {
            method(state, value, name, args)
        });
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_filter("tojson", to_json);
        if let Err(error) = environment.add_template_owned(NAME, source.to_owned()) {
            bail!("the chat template of {file} cannot be read ({error}): download it again");
        }
        Ok(Self { environment, file, bos, eos })
    }

    /// The text of these messages; with `ask`, up to where the model is to go on.
    fn render(&self, messages: &[Message], tools: Option<&Json>, ask: bool) -> Result<String> {
        let values: Value = messages.iter().map(Message::value).collect();
        let tools = tools.map(|tools| Value::from(Serde(tools)));
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            template.render(context!(
                messages => values,
                tools => tools,
                add_generation_prompt => ask,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            ))
        });
        rendered.map_err(|error| {
            let file = &self.file;
            if error.kind() == ErrorKind::OutOfFuel {
                return anyhow::anyhow!(
                    "the chat template of {file} loops or grows without end (over {FUEL} steps): \
                     download it again, or shorten the conversation"
                );
            }
            anyhow::anyhow!(
                "the chat template of {file} refuses this conversation ({error}): correct or \
                 remove it"
            )
        })
    }

    /// The pieces of a conversation: of each message of the assistant what the template writes
    /// behind the words that ask for it is an answer. Where the template rewrites earlier answers
    /// as the conversation grows (it drops their reasoning, say), the last one alone is.
    ///
    /// # Errors
    /// The template refuses the conversation, or rewrites what it has asked, so that it cannot be
    /// told what is answer.
    pub(crate) fn pieces(&self, talk: &Conversation) -> Result<Vec<Piece>> {
        // Memory of a stack is taken when it is reached.
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
        std::thread::scope(|scope| {
            let rendering = builder
                .spawn_scoped(scope, || self.pieces_here(talk))
                .context("the system starts no thread for a chat template: try again")?;
            let done = rendering.join();
            done.unwrap_or_else(|_| bail!("the chat template of {} fails: correct it", self.file))
        })
    }

    fn pieces_here(&self, talk: &Conversation) -> Result<Vec<Piece>> {
        let answers: Vec<usize> = (0..talk.messages.len())
            .filter(|&index| talk.messages[index].role == Role::Assistant)
            .collect();
        if let Some(pieces) = self.pieces_of(talk, &answers)? {
            return Ok(pieces);
        }
        let last = &answers[answers.len().saturating_sub(1)..];
        self.pieces_of(talk, last)?.with_context(|| {
            format!(
                "the chat template of {} changes earlier messages as a conversation grows: write \
                 prompt and completion instead",
                self.file
            )
        })
    }

    /// The pieces with the messages `answers` as answers; none where one is rewritten later.
    fn pieces_of(&self, talk: &Conversation, answers: &[usize]) -> Result<Option<Vec<Piece>>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut done = String::new();
        for &index in answers {
            let render =
                |end: usize, ask| self.render(&talk.messages[..end], talk.tools.as_ref(), ask);
            let (asked, said) = (render(index, true)?, render(index + 1, false)?);
            match (asked.strip_prefix(&done), said.strip_prefix(&asked)) {
                (Some(given), Some(answer)) => {
                    pieces.extend([Piece::new(given, false), Piece::new(answer, true)]);
                }
                _ => return Ok(None),
            }
            done = said;
        }
        Ok(Some(pieces))
    }
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it, which is what transformers gives
/// templates: Jinja's own filter escapes for HTML.
fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::InvalidOperation, format!("no JSON: {error}"))
    };
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut paid = Paid { pay: &|steps| state.consume_fuel(steps), bytes: Vec::new() };
    let spaces = " ".repeat(indent.unwrap_or(0).min(16));
    let written = match indent {
        Some(_) => {
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut paid, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut paid, Spaced)),
    };
    // Where the fuel ran out while this was written, it is out now as well.
    state.consume_fuel(1)?;
    written.map_err(|error| failed(&error))?;
    String::from_utf8(paid.bytes).map_err(|error| failed(&error))
}

/// Takes bytes that a template pays for: a list that holds another twice, and so on, is short in
/// memory and endless as text.
struct Paid<'a> {
    pay: &'a dyn Fn(u64) -> Result<(), Error>,
    bytes: Vec<u8>,
}

impl std::io::Write for Paid<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let steps = 1 + bytes.len() as u64 / 64;
        (self.pay)(steps).map_err(std::io::Error::other)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A space behind commas and colons.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(b": ")
    }
}

/// The methods of Python's strings that templates call, which Jinja itself has not.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || Error::new(ErrorKind::UnknownMethod, format!("no method {name} of a string"));
    let text = value.as_str().ok_or_else(unknown)?;
    let args: Option<Vec<&str>> = args.iter().map(Value::as_str).collect();
    let args = args.ok_or_else(unknown)?;
    Ok(match (name, &args[..]) {
        ("strip", []) => text.trim().into(),
        ("lstrip", []) => text.trim_start().into(),
        ("rstrip", []) => text.trim_end().into(),
        ("strip", [set]) => text.trim_matches(|c| set.contains(c)).into(),
        ("lstrip", [set]) => text.trim_start_matches(|c| set.contains(c)).into(),
        ("rstrip", [set]) => text.trim_end_matches(|c| set.contains(c)).into(),
        ("startswith", [part]) => text.starts_with(part).into(),
        ("endswith", [part]) => text.ends_with(part).into(),
        ("split", [at]) if !at.is_empty() => text.split(at).collect(),
        ("replace", [from, to]) => replaced(state, text, [from, to])?.into(),
        ("upper", []) => text.to_uppercase().into(),
        ("lower", []) => text.to_lowercase().into(),
        _ => return Err(unknown()),
    })
}

/// Python's `replace`, paid for before it is done: it can multiply a text's length.
fn replaced(state: &State, text: &str, [from, to]: [&str; 2]) -> Result<String, Error> {
    let grows = text.matches(from).count().saturating_mul(to.len()).saturating_add(text.len());
    state.consume_fuel(grows as u64 / 64)?;
    Ok(text.replace(from, to))
}

/// The pieces of a conversation without a template of the model's own; `eos` is the text of its
/// end-of-sequence token, which ends each answer.
pub(crate) fn plain(messages: &[Message], eos: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, Message { role, content, .. }) in messages.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n\n" };
        match role {
            Role::Tool => pieces.push(Piece::new(format!("{gap}### Tool:\n{content}"), false)),
            Role::System => pieces.push(Piece::new(format!("{gap}{content}"), false)),
            Role::User => {
                pieces.push(Piece::new(format!("{gap}### User:\n{content}"), false));
            }
            Role::Assistant => {
                pieces.push(Piece::new(format!("{gap}### Assistant:\n"), false));
                pieces.push(Piece::new(format!("{content}{eos}"), true));
            }
        }
    }
    // What follows the last answer teaches nothing.
    let last = pieces.iter().rposition(|piece| piece.answer).map_or(0, |last| last + 1);
    pieces.truncate(last);
    pieces
}

/// Checks that a conversation has something to learn.
///
/// # Errors
/// There is no message, an empty answer, or none; or there are too many.
pub(crate) fn check(messages: &[Message], place: &str) -> Result<()> {
    ensure!(!messages.is_empty(), "{place} has no message: remove the item");
    ensure!(
        messages.len() <= MOST_MESSAGES,
        "{place} has {} messages, and {MOST_MESSAGES} are the most: cut the conversation",
        messages.len()
    );
    let mut answers = messages.iter().filter(|message| message.role == Role::Assistant).peekable();
    ensure!(
        answers.peek().is_some(),
        "{place} has no answer: add a message of the assistant, or remove the item"
    );
    ensure!(
        answers.all(|message| !message.content.is_empty() || message.more.contains_key(CALLS)),
        "{place} has an empty answer: remove the message"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message as refused;

    fn talk(said: &[(Role, &str)]) -> Conversation {
        let message =
            |&(role, text): &(Role, &str)| Message { role, content: text.into(), more: Map::new() };
        Conversation { messages: said.iter().map(message).collect(), tools: None }
    }

    fn shown(pieces: &[Piece]) -> String {
        let show = |piece: &Piece| match piece.answer {
            true => format!("[{}]", piece.text),
            false => piece.text.clone(),
        };
        pieces.iter().map(show).collect()
    }

    fn template(source: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(source, "t.json".into(), ["<s>".into(), "</s>".into()])
    }

    const CHATML: &str = "{{ bos_token }}{% for message in messages %}\
        {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn templates_that_do_not_end_are_stopped() {
        let said = talk(&[(Role::User, "q"), (Role::Assistant, "r")]);
        let doubles = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}\
            {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
        let nested = "{% for i in range(9999) %}{% for j in range(9999) %}\
            {% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        let calls = "{% macro f(x) %}{{ f(x + x) }}{% endmacro %}{{ f('ab') }}";
        let squares = "{% set ns = namespace(x='aaaa') %}{% for i in range(9) %}\
            {% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}";
        let twins = "{% set ns = namespace(x=1) %}{% for i in range(60) %}\
            {% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}";
        let deep = "{% set ns = namespace(x=1) %}{% for i in range(99999) %}\
            {% for j in range(100) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}";
        let opened = "[".repeat(30);
        let closed = "]".repeat(30);
        let deepest = format!(
            "{{% set ns = namespace(x=1) %}}{{% for i in range(9000) %}}\
             {{% set ns.x = {opened}ns.x{closed} %}}{{% endfor %}}"
        );
        let printed = format!("{deepest}{{{{ ns.x }}}}");
        let json = format!("{deepest}{{{{ ns.x | tojson }}}}");
        let equal = format!("{deepest}{{{{ ns.x == [ns.x] }}}}");
        for source in [&deepest, &printed, &json, &equal] {
            // Whatever comes of it, it comes to an end.
            let _ = template(source).unwrap().pieces(&said);
        }
        for (source, part) in [
            (doubles, "without end"),
            (nested, "without end"),
            (calls, "t.json"),
            (squares, "without end"),
            ("{{ 'ab' * 9999999 }}{{ 'ab' * 99999999 }}", "t.json"),
            (twins, "without end"),
            (deep, "without end"),
            ("{{ ['ab'] * 99999999 | join('x' * 99999) }}", "t.json"),
        ] {
            let error = refused(template(source).unwrap().pieces(&said));
            assert!(error.contains(part), "{source}: {error}");
        }
        let deep = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
        assert!(refused(template(&deep)).contains("t.json"));
        let many = talk(&vec![(Role::Assistant, "r"); MOST_MESSAGES + 1]);
        assert!(refused(check(&many.messages, "a.json item 1")).contains("4097 messages"));
    }

    #[test]
    fn answers_are_what_follows_the_generation_prompt() {
        let said = talk(&[
            (Role::System, "s"),
            (Role::User, "u"),
            (Role::Assistant, "a"),
            (Role::User, "v"),
            (Role::Assistant, "b"),
            (Role::User, "w"),
        ]);
        let chatml = template(CHATML).unwrap().pieces(&said).unwrap();
        assert_eq!(
            shown(&chatml),
            "<s><|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n\
             <|im_start|>assistant\n[a<|im_end|>\n]<|im_start|>user\nv<|im_end|>\n\
             <|im_start|>assistant\n[b<|im_end|>\n]"
        );
        assert_eq!(
            shown(&plain(&said.messages, "</s>")),
            "s\n\n### User:\nu\n\n### Assistant:\n[a</s>]\n\n### User:\nv\n\n### Assistant:\n\
             [b</s>]"
        );
    }

    #[test]
    fn what_templates_of_models_use_is_there() {
        let source = "{%- if messages[0]['role'] == 'system' %}{% set loop_messages = \
            messages[1:] %}{%- else %}{% set loop_messages = messages %}{%- endif %}\n\
            {% for message in loop_messages %}\n\
            {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n\
            {{ raise_exception('roles must alternate') }}\n{% endif %}\n\
            {{- '[' ~ message.content.strip() | trim ~ ']' -}}\n\
            {% if message.content.startswith('q') and not loop.last %}+{% endif %}\n\
            {% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}";
        let template = template(source).unwrap();
        let text = template.render(
            &talk(&[(Role::User, " q "), (Role::Assistant, "a")]).messages,
            None,
            false,
        );
        assert!(text.unwrap().ends_with("[a]</s>"));
        let twice = [(Role::User, "q"), (Role::User, "q"), (Role::Assistant, "a")];
        let error = refused(template.pieces(&talk(&twice)));
        assert!(error.contains("t.json") && error.contains("roles must alternate"), "{error}");
    }

    /// As templates of models that reason: earlier answers lose their thoughts.
    #[test]
    fn where_answers_are_rewritten_the_last_one_is_trained() {
        let source = "{% for m in messages %}<{{ m.role }}>\
            {% if m.role == 'assistant' and not loop.last %}\
            {{ m.content.split('|')[-1] }}{% else %}{{ m.content }}{% endif %}{% endfor %}\
            {% if add_generation_prompt %}<assistant>{% endif %}";
        let said = talk(&[
            (Role::User, "u"),
            (Role::Assistant, "hm|a"),
            (Role::User, "v"),
            (Role::Assistant, "so|b"),
        ]);
        let pieces = template(source).unwrap().pieces(&said).unwrap();
        assert_eq!(shown(&pieces), "<user>u<assistant>a<user>v<assistant>[so|b]");
    }

    #[test]
    fn tools_and_their_calls_reach_the_template() {
        let source = "{% if tools %}{{ tools[0] | tojson }}{% endif %}{% for m in messages %}\
            <{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}\
            {{ c.function.arguments | tojson(indent=1) }}{% endfor %}{% endfor %}\
            {% if add_generation_prompt %}<assistant>{% endif %}";
        let mut said = talk(&[(Role::User, "u"), (Role::Assistant, ""), (Role::Tool, "<3>")]);
        let calls = serde_json::json!([{"function": {"arguments": {"at": "ö"}}}]);
        said.messages[1].more.insert(CALLS.into(), calls);
        said.messages.push(talk(&[(Role::Assistant, "b")]).messages.remove(0));
        said.tools = Some(serde_json::json!([{"name": "f<", "n": 1}]));
        check(&said.messages, "x").unwrap();
        let pieces = template(source).unwrap().pieces(&said).unwrap();
        assert_eq!(
            shown(&pieces),
            "{\"name\": \"f<\", \"n\": 1}<user>u<assistant>[{\n \"at\": \"ö\"\n}]\
             <tool><3><assistant>[b]"
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let error = refused(template("{% for %}"));
        assert!(error.contains("t.json") && error.contains("chat:1"), "{error}");
        let last = template("{{ add_generation_prompt }}{{ messages[-1].content }}").unwrap();
        let said = talk(&[(Role::User, "u"), (Role::Assistant, "a")]);
        assert!(refused(last.pieces(&said)).contains("changes earlier messages"));
        let unknown = template("{{ messages[0].content.swapcase() }}").unwrap();
        assert!(refused(unknown.pieces(&said)).contains("swapcase"));
        assert!(refused(check(&[], "a.json item 1")).contains("item 1 has no message"));
        assert!(refused(check(&said.messages[..1], "x")).contains("no answer"));
        assert!(
            refused(check(&talk(&[(Role::Assistant, "")]).messages, "x")).contains("empty answer")
        );
        check(&said.messages, "x").unwrap();
    }
}
