//! Conversations as text: by the model's own chat template, or by a plain one.
//!
//! A chat template is a Jinja template that turns messages into the text that a model was tuned
//! with; Hugging Face keeps it in `tokenizer_config.json` or in `chat_template.jinja`.

use anyhow::{Result, bail, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Instructions in front of a conversation.
    System,
    /// The person.
    User,
    /// The model, whose messages are trained.
    Assistant,
}

impl Role {
    /// The role of a name, in the manner of `{role, content}` or of `{from, value}`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "system" => Some(Self::System),
            "user" | "human" => Some(Self::User),
            "assistant" | "gpt" => Some(Self::Assistant),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: String,
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
        environment.set_unknown_method_callback(|_, value, name, args| method(value, name, args));
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, text))
        });
        if let Err(error) = environment.add_template_owned(NAME, source.to_owned()) {
            bail!("the chat template of {file} cannot be read ({error}): download it again");
        }
        Ok(Self { environment, file, bos, eos })
    }

    /// The text of these messages; with `ask`, up to where the model is to go on.
    fn render(&self, messages: &[Message], ask: bool) -> Result<String> {
        let message = |m: &Message| context!(role => m.role.name(), content => m.content.as_str());
        let values: Value = messages.iter().map(message).collect();
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            template.render(context!(
                messages => values,
                add_generation_prompt => ask,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            ))
        });
        rendered.map_err(|error| {
            let file = &self.file;
            anyhow::anyhow!(
                "the chat template of {file} refuses this conversation ({error}): correct or \
                 remove it"
            )
        })
    }

    /// The pieces of a conversation: of each message of the assistant what the template writes
    /// behind the words that ask for it is an answer.
    ///
    /// # Errors
    /// The template refuses the conversation, or rewrites its start as it grows, so that it cannot
    /// be told what is answer.
    pub(crate) fn pieces(&self, messages: &[Message]) -> Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut done = String::new();
        for (index, message) in messages.iter().enumerate() {
            if message.role != Role::Assistant {
                continue;
            }
            let asked = self.render(&messages[..index], true)?;
            let said = self.render(&messages[..=index], false)?;
            let (given, answer) = match (asked.strip_prefix(&done), said.strip_prefix(&asked)) {
                (Some(given), Some(answer)) => (given, answer),
                _ => bail!(
                    "the chat template of {} changes earlier messages as a conversation grows: \
                     write prompt and completion instead",
                    self.file
                ),
            };
            pieces.extend([Piece::new(given, false), Piece::new(answer, true)]);
            done = said;
        }
        Ok(pieces)
    }
}

/// The methods of Python's strings that templates call, which Jinja itself has not.
fn method(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
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
        ("replace", [from, to]) => text.replace(from, to).into(),
        ("upper", []) => text.to_uppercase().into(),
        ("lower", []) => text.to_lowercase().into(),
        _ => return Err(unknown()),
    })
}

/// The pieces of a conversation without a template of the model's own; `eos` is the text of its
/// end-of-sequence token, which ends each answer.
pub(crate) fn plain(messages: &[Message], eos: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, Message { role, content }) in messages.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n\n" };
        match role {
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
/// There is no message, an empty answer, or none.
pub(crate) fn check(messages: &[Message], place: &str) -> Result<()> {
    ensure!(!messages.is_empty(), "{place} has no message: remove the item");
    let mut answers = messages.iter().filter(|message| message.role == Role::Assistant).peekable();
    ensure!(
        answers.peek().is_some(),
        "{place} has no answer: add a message of the assistant, or remove the item"
    );
    ensure!(
        answers.all(|message| !message.content.is_empty()),
        "{place} has an empty answer: remove the message"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::message as refused;

    fn talk(said: &[(Role, &str)]) -> Vec<Message> {
        said.iter().map(|&(role, text)| Message { role, content: text.to_owned() }).collect()
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
            shown(&plain(&said, "</s>")),
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
        let text = template.render(&talk(&[(Role::User, " q "), (Role::Assistant, "a")]), false);
        assert!(text.unwrap().ends_with("[a]</s>"));
        let twice = [(Role::User, "q"), (Role::User, "q"), (Role::Assistant, "a")];
        let error = refused(template.pieces(&talk(&twice)));
        assert!(error.contains("t.json") && error.contains("roles must alternate"), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let error = refused(template("{% for %}"));
        assert!(error.contains("t.json") && error.contains("chat:1"), "{error}");
        let last = template("{{ messages | length }}{{ messages[-1].content }}").unwrap();
        let said = talk(&[(Role::User, "u"), (Role::Assistant, "a")]);
        assert!(refused(last.pieces(&said)).contains("changes earlier messages"));
        let unknown = template("{{ messages[0].content.swapcase() }}").unwrap();
        assert!(refused(unknown.pieces(&said)).contains("swapcase"));
        assert!(refused(check(&[], "a.json item 1")).contains("item 1 has no message"));
        assert!(refused(check(&said[..1], "x")).contains("no answer"));
        assert!(refused(check(&talk(&[(Role::Assistant, "")]), "x")).contains("empty answer"));
        check(&said, "x").unwrap();
    }
}
