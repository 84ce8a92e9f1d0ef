//! What can be said of the options without running anything: the keys of a configuration file as a
//! JSON schema, completions for shells, man pages. All from the definition of the command line.

use std::any::TypeId;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Arg, ArgAction, Args, Command, CommandFactory};
use clap_complete::Shell;
use serde_json::{Map, Value, json};

use super::args::{Bits, ByteSize, Cli, TuneFlags};

/// Options of `completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Options of `man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Where the pages go; made if it is not there
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// How near a key must be to be suggested, by Jaro's measure; clap asks for as much.
const NEAR: f64 = 0.7;

/// The options that a file may have: the flags of a run.
fn keys() -> Vec<Arg> {
    let command = TuneFlags::augment_args(Command::new("tune"));
    command.get_arguments().cloned().collect()
}

/// The JSON schema of the value of an option; null stands for what is not given.
fn value_schema(arg: &Arg) -> Map<String, Value> {
    let of = arg.get_value_parser().type_id();
    let values = || arg.get_possible_values();
    let schema = if matches!(arg.get_action(), ArgAction::Append) {
        json!({"type": ["array", "null"], "items": {"type": "string"}})
    } else if of == TypeId::of::<bool>() {
        json!({"type": ["boolean", "null"]})
    } else if of == TypeId::of::<u64>() || of == TypeId::of::<usize>() {
        json!({"type": ["integer", "null"], "minimum": 0})
    } else if of == TypeId::of::<f64>() {
        json!({"type": ["number", "null"]})
    } else if of == TypeId::of::<ByteSize>() {
        json!({"type": ["integer", "string", "null"]})
    } else if of == TypeId::of::<Bits>() {
        let numbers = values().into_iter().filter_map(|value| value.get_name().parse().ok());
        let bits: Vec<Option<u32>> = numbers.map(Some).chain([None]).collect();
        json!({"enum": bits})
    } else if values().is_empty() {
        json!({"type": ["string", "null"]})
    } else {
        let names: Vec<String> = values().iter().map(|value| value.get_name().to_owned()).collect();
        json!({"enum": names.into_iter().map(Some).chain([None]).collect::<Vec<_>>()})
    };
    match schema {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The schema of a file for `--config`.
pub fn schema() -> Value {
    let mut properties = Map::new();
    for arg in keys() {
        let Some(name) = arg.get_long() else { continue };
        let mut value = value_schema(&arg);
        if let Some(help) = arg.get_help() {
            value.insert("description".into(), Value::String(help.to_string()));
        }
        properties.insert(name.to_owned(), Value::Object(value));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Options of edge-runtime tune",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

/// What is wrong with a file of options, with the key that one which does not exist is near to.
pub(crate) fn explain(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let Some((_, rest)) = text.split_once("unknown field `") else { return text };
    let Some((name, rest)) = rest.split_once('`') else { return text };
    let place = rest.rfind(" at line ").map_or("", |at| &rest[at..]);
    let keys = keys();
    let known = keys.iter().filter_map(Arg::get_long);
    let rated = known.map(|key| (strsim::jaro(name, key), key));
    let near = rated.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > NEAR);
    match near {
        Some((_, key)) => format!("there is no key `{name}`{place}, did you mean `{key}`?"),
        None => format!("there is no key `{name}`{place}, `edge-runtime schema` lists all"),
    }
}

pub(super) fn run() -> Result<()> {
    let text = serde_json::to_string_pretty(&schema()).context("laying out the schema")?;
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// Prints a shell's completions.
pub(super) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "edge-runtime", &mut text);
    std::io::stdout().lock().write_all(&text).context("cannot write to standard output")
}

/// Writes a man page for each command.
pub(super) fn man(args: &ManArgs) -> Result<()> {
    let shown = args.dir.display();
    let written = std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir));
    written.with_context(|| format!("cannot write to {shown}: give another folder"))?;
    eprintln!("written to {shown}: read them with man -l {shown}/edge-runtime-tune.1");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value of an option by its schema.
    fn sample(name: &str, schema: &Value) -> Value {
        if let Some(values) = schema["enum"].as_array() {
            return values[0].clone();
        }
        match (name, schema["type"][0].as_str().unwrap()) {
            ("targets", _) => json!("q_proj,v_proj"),
            ("columns", _) => json!("prompt=q"),
            ("window-shares", _) => json!("1,2"),
            ("plan", _) => json!("path=rows"),
            (_, "array") => json!(["a.txt"]),
            (_, "boolean") => json!(true),
            (_, "integer") => json!(3),
            (_, "number") => json!(0.5),
            (_, kind) => json!(kind),
        }
    }

    #[test]
    fn the_schema_says_what_a_file_may_have() {
        let schema = schema();
        let properties = schema["properties"].as_object().unwrap();
        assert!(properties.len() > 35, "{}", properties.len());
        for (name, property) in properties {
            let value = sample(name, property);
            let text = serde_norway::to_string(&json!({ name: value.clone() })).unwrap();
            let flags: TuneFlags = serde_norway::from_str(&text).expect(name);
            assert_ne!(flags, TuneFlags::default(), "{name}: {value} says nothing");
            assert!(property["description"].is_string(), "{name}");
            let nothing = format!("{name}: null\n");
            assert_eq!(
                serde_norway::from_str::<TuneFlags>(&nothing).unwrap(),
                TuneFlags::default()
            );
        }
        // And the other way round: what a run writes down is described.
        let options = TuneFlags::default().resolve().unwrap();
        let written = serde_json::to_value(&options).unwrap();
        for key in written.as_object().unwrap().keys() {
            assert!(properties.contains_key(key), "{key}");
        }
        assert_eq!(properties["bits"]["enum"], json!([2, 3, 4, 8, 16, null]));
        assert_eq!(properties["vote"]["enum"][0], "last");
    }

    #[test]
    fn keys_that_do_not_exist_are_corrected() {
        let error = "unknown field `batch_size`, expected one of `a`, `b` at line 2 column 1";
        let want = "there is no key `batch_size` at line 2 column 1, did you mean `batch-size`?";
        assert_eq!(explain(&error), want);
        assert!(explain(&"unknown field `rnak`, expected x").ends_with("did you mean `rank`?"));
        assert!(explain(&"unknown field `zzz`, expected x").ends_with("schema` lists all"));
        assert_eq!(explain(&"something else"), "something else");
    }

    #[test]
    fn every_command_has_a_man_page_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = format!("edge-runtime-{}.1", command.get_name());
            let page = std::fs::read_to_string(dir.path().join(&name)).expect(&name);
            assert!(page.contains(".SH NAME"), "{name}");
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "edge-runtime", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("early-stopping") && text.contains("watch"), "{shell}");
        }
    }
}
