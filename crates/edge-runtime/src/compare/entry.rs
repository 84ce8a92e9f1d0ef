//! What is compared: methods by name, each with options of its own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use serde_norway::{Mapping, Value};

use crate::cli::args::{Method, TuneFlags};
use crate::cli::schema::explain;
use crate::whole_file::{self, SETTINGS};

/// A method under a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name in tables and overrides.
    pub name: String,
    /// What is trained.
    pub method: Method,
}

/// Reads `lora,edge,edge-stacked=edge`.
///
/// # Errors
/// A method is unknown, or a name is given twice or is no name for a folder.
pub fn parse_entries(list: &[String]) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    for item in list {
        let (name, method) = item.split_once('=').unwrap_or((item, item));
        let (name, method) = (name.trim(), method.trim());
        let known = Method::value_variants().iter().map(|method| method.name());
        let known: Vec<&str> = known.collect();
        let method = Method::from_str(method, false).map_err(|_| {
            let known = known.join(", ");
            anyhow!("--methods has the unknown method {method:?}: give some of {known}")
        })?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        ensure!(
            !name.is_empty() && name.chars().all(plain),
            "--methods has the name {name:?}: use letters, digits, - and _"
        );
        ensure!(
            entries.iter().all(|entry| entry.name != name),
            "--methods has {name} twice: give the second another name, as in {name}-2={name}"
        );
        entries.push(Entry { name: name.to_owned(), method });
    }
    ensure!(!entries.is_empty(), "--methods is empty: give some, such as lora,edge");
    Ok(entries)
}

/// Reads `0,1,2`.
///
/// # Errors
/// Something is no whole number, or is there twice.
pub fn parse_seeds(list: &[String]) -> Result<Vec<u64>> {
    let mut seeds = Vec::new();
    for item in list {
        let seed = item.trim().parse::<u64>();
        let seed = seed.map_err(|_| {
            anyhow!("--seeds has {item:?}, which is no whole number: write them as 0,1,2")
        })?;
        ensure!(!seeds.contains(&seed), "--seeds has {seed} twice: give each once");
        seeds.push(seed);
    }
    ensure!(!seeds.is_empty(), "--seeds is empty: write them as 0,1,2");
    Ok(seeds)
}

/// Options that methods may not differ in: the comparison would be of something else, or it sets
/// them itself.
const COMMON: [&str; 18] = [
    "data",
    "valid",
    "val-fraction",
    "val-items",
    "columns",
    "train-on-prompt",
    "warmup-steps",
    "seq-len",
    "out",
    "device",
    "method",
    "seed",
    "steps",
    "epochs",
    "max-seconds",
    "max-tokens",
    "eval-every",
    "evals",
];

/// Options by the name of a method.
#[derive(Debug, Default)]
pub struct Overrides(BTreeMap<String, Mapping>);

impl Overrides {
    /// Adds `edge.lr=3e-3`, in place of what was there.
    ///
    /// # Errors
    /// It is not written like that.
    pub fn set(&mut self, text: &str) -> Result<()> {
        let parts = text.split_once('=').and_then(|(left, value)| {
            let (name, key) = left.split_once('.')?;
            Some((name.trim(), key.trim(), value.trim()))
        });
        let (name, key, value) = parts.with_context(|| {
            format!("--set {text:?} is no NAME.KEY=VALUE: write it as edge.lr=3e-3")
        })?;
        // What YAML has no reading for is text.
        let value = serde_norway::from_str(value).unwrap_or_else(|_| Value::from(value));
        let key = key.replace('_', "-");
        self.0.entry(name.to_owned()).or_default().insert(key.into(), value);
        Ok(())
    }

    /// The options of one entry.
    ///
    /// # Errors
    /// A key is unknown, common to all methods, or has a wrong value.
    pub fn of(&self, entry: &Entry) -> Result<TuneFlags> {
        let Some(mapping) = self.0.get(&entry.name) else { return Ok(TuneFlags::default()) };
        for key in COMMON {
            ensure!(
                !mapping.contains_key(key),
                "{}.{key} cannot be set: it is the same for all methods",
                entry.name
            );
        }
        // One by one, so that the sentence can name the key.
        let mut flags = TuneFlags::default();
        for (key, value) in mapping {
            let shown = key.as_str().unwrap_or("(no text)");
            let one: Mapping = [(key.clone(), value.clone())].into_iter().collect();
            let one = TuneFlags::deserialize(Value::Mapping(one)).map_err(|error| {
                let error = error.to_string();
                // The rest of that sentence is a list of every key.
                let error = error.split(", expected one of").next().unwrap_or_default();
                anyhow!("{}.{shown} is not usable ({error}): correct it", entry.name)
            })?;
            flags = flags.or(one);
        }
        Ok(flags)
    }

    /// Refuses options of names that are not compared.
    ///
    /// # Errors
    /// There are some.
    pub fn check(&self, entries: &[Entry]) -> Result<()> {
        for name in self.0.keys() {
            let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
            ensure!(
                names.contains(&name.as_str()),
                "there are options for {name}, which --methods does not have: name one of {}",
                names.join(", ")
            );
        }
        Ok(())
    }
}

/// Reads a YAML file of options; `methods` in it has those of single methods.
///
/// # Errors
/// It is absent, no YAML, or has an unknown key or wrong value.
pub fn load_config(path: &Path) -> Result<(TuneFlags, Overrides)> {
    let shown = path.display();
    let text = whole_file::text(path, SETTINGS)
        .with_context(|| format!("cannot read {shown}: correct the path of --config"))?;
    let wrong = |error: &dyn std::fmt::Display| {
        anyhow!("{shown} is not usable ({}): correct that line", explain(error))
    };
    let value: Value = serde_norway::from_str(&text).map_err(|error| wrong(&error))?;
    let mut top = match value {
        Value::Null => Mapping::new(),
        Value::Mapping(top) => top,
        _ => return Err(wrong(&"it is no mapping of names to values")),
    };
    let mut overrides = Overrides::default();
    if let Some(methods) = top.remove("methods") {
        overrides.0 = BTreeMap::deserialize(methods).map_err(|error| {
            wrong(&format!("methods is no mapping of names to options: {error}"))
        })?;
    }
    let flags = TuneFlags::deserialize(Value::Mapping(top)).map_err(|error| wrong(&error))?;
    Ok((flags, overrides))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Semantics;
    use crate::testing::message;

    fn list(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn methods_have_names() {
        let entries = parse_entries(&list("lora, edge,edge-stacked=edge")).unwrap();
        let found: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.method)).collect();
        let edge = Method::Edge;
        assert_eq!(found, [("lora", Method::Lora), ("edge", edge), ("edge-stacked", edge)]);
        assert!(message(parse_entries(&list("lora,dora"))).contains("\"dora\""));
        assert!(message(parse_entries(&list("edge,edge"))).contains("edge-2=edge"));
        assert!(message(parse_entries(&list("a/b=edge"))).contains("a/b"));
    }

    #[test]
    fn seeds_are_different_numbers() {
        assert_eq!(parse_seeds(&list("0, 2,7")).unwrap(), [0, 2, 7]);
        assert!(message(parse_seeds(&list("0,one"))).contains("\"one\""));
        assert!(message(parse_seeds(&list("-1"))).contains("-1"));
        assert!(message(parse_seeds(&list("3,3"))).contains("3 twice"));
    }

    #[test]
    fn later_options_win_and_wrong_ones_are_named() {
        let entries = parse_entries(&list("lora,edge")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("compare.yaml");
        let text = "rank: 4\nmethods:\n  edge: {lr: 1e-3, windows: 4, targets: 'q_proj,v_proj'}\n";
        std::fs::write(&path, text).unwrap();
        let (flags, mut overrides) = load_config(&path).unwrap();
        assert_eq!(flags.rank, Some(4));
        for set in ["edge.lr=3e-3", "edge.semantics = progressive", "edge.window_shares=1,1,1,2"] {
            overrides.set(set).unwrap();
        }
        overrides.check(&entries).unwrap();
        let edge = overrides.of(&entries[1]).unwrap();
        assert_eq!((edge.lr, edge.windows), (Some(3e-3), Some(4)));
        assert_eq!(edge.semantics, Some(Semantics::Progressive));
        assert_eq!(edge.window_shares.unwrap().0, [1.0, 1.0, 1.0, 2.0]);
        assert_eq!(overrides.of(&entries[0]).unwrap(), TuneFlags::default());

        let refused = |set: &str| {
            let mut overrides = Overrides::default();
            overrides.set(set).and_then(|()| overrides.of(&entries[1]).map(|_| ()))
        };
        for set in ["edge", "edge.lr", "lr=3", "edge.rnak=3", "edge.lr=fast", "edge.seq-len=9"] {
            let error = message(refused(set));
            assert!(error.contains(set.split('=').next().unwrap()), "{error}");
            assert!(error.len() < 120, "{error}");
        }
        overrides.set("full.lr=1").unwrap();
        assert!(message(overrides.check(&entries)).contains("full"));
        std::fs::write(&path, "rnak: 4\n").unwrap();
        assert!(message(load_config(&path)).contains("rnak"));
        std::fs::write(&path, "methods: [edge]\n").unwrap();
        assert!(message(load_config(&path)).contains("methods"));
    }
}
