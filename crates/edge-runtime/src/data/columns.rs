//! Names of columns: which name in a file stands for which name of ours.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The forms of an item with the names that they are told by.
const FORMS: [&[&str]; 6] = [
    &["text"],
    &["prompt", "completion"],
    &["question", "answer"],
    &["instruction", "input", "output"],
    &["messages", "tools"],
    &["conversations", "tools"],
];

/// How near a name must be to be suggested, by Jaro's measure.
const NEAR: f64 = 0.7;

/// `ours=theirs` pairs, written `prompt=question,completion=answer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Columns(Vec<(String, String)>);

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split(',') {
            let pair = part.split_once('=').map(|(ours, theirs)| (ours.trim(), theirs.trim()));
            let Some((ours, theirs)) = pair.filter(|(a, b)| !a.is_empty() && !b.is_empty()) else {
                return Err(format!(
                    "{part:?} is no pair of names: write it as prompt=question,completion=answer"
                ));
            };
            let known = || FORMS.iter().flat_map(|form| form.iter().copied());
            if !known().any(|name| name == ours) {
                let names: BTreeSet<&str> = known().collect();
                let names = names.into_iter().collect::<Vec<_>>().join(", ");
                return Err(match near(ours, known()) {
                    Some(name) => format!("there is no {ours:?} to fill, did you mean {name:?}?"),
                    None => format!("there is no {ours:?} to fill: use one of {names}"),
                });
            }
            for (a, b) in &pairs {
                if a == ours || b == theirs {
                    let twice = if a == ours { ours } else { theirs };
                    return Err(format!("{twice:?} is given twice: keep one of its pairs"));
                }
            }
            pairs.push((ours.to_owned(), theirs.to_owned()));
        }
        let of = |form: &&[&str]| pairs.iter().all(|(ours, _)| form.contains(&ours.as_str()));
        if !FORMS.iter().any(of) {
            let names: Vec<&str> = pairs.iter().map(|(ours, _)| ours.as_str()).collect();
            let names = names.join(", ");
            return Err(format!("{names} do not go together: fill the names of one form"));
        }
        Ok(Self(pairs))
    }
}

impl TryFrom<String> for Columns {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("columns: {error}"))
    }
}

impl From<Columns> for String {
    fn from(Columns(pairs): Columns) -> Self {
        let pairs: Vec<String> = pairs.iter().map(|(a, b)| format!("{a}={b}")).collect();
        pairs.join(",")
    }
}

impl Columns {
    /// An item with the names that are ours. Names of other forms are left out, so that a `text`
    /// beside the columns that are named is not taken for them.
    pub(crate) fn apply(&self, mut keys: Map<String, Value>) -> Map<String, Value> {
        let taken: Vec<_> =
            self.0.iter().map(|(ours, theirs)| (ours, keys.remove(theirs))).collect();
        let meant = |form: &&&[&str]| self.0.iter().all(|(a, _)| form.contains(&a.as_str()));
        let kept: Vec<&str> = FORMS.iter().filter(meant).flat_map(|form| form.to_vec()).collect();
        let ours = |key: &str| FORMS.iter().any(|form| form.contains(&key));
        keys.retain(|key, _| kept.contains(&key.as_str()) || !ours(key));
        for (ours, value) in taken {
            match value {
                Some(value) => keys.insert(ours.clone(), value),
                // The file's own column of that name is not what was asked for.
                None => keys.remove(ours),
            };
        }
        keys
    }

    /// Which of the pairs have their column in an item.
    pub(crate) fn present(&self, keys: &Map<String, Value>) -> Vec<bool> {
        self.0.iter().map(|(_, theirs)| keys.contains_key(theirs)).collect()
    }
}

/// Which columns were seen so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    found: Vec<bool>,
    /// Names of items that lack a column, for suggestions.
    names: BTreeSet<String>,
    items: usize,
}

/// Names that are kept for suggestions at most.
const NAMES: usize = 256;

impl Seen {
    /// Counts an item: which pairs have their column, and its names where one has none.
    pub(crate) fn add(&mut self, present: &[bool], names: Vec<String>) {
        self.items += 1;
        self.found.resize(present.len(), false);
        for (found, present) in self.found.iter_mut().zip(present) {
            *found |= present;
        }
        if self.names.len() < NAMES {
            self.names.extend(names);
        }
    }

    /// Refuses a column that no item had.
    ///
    /// # Errors
    /// There is one; the sentence names the near one.
    pub(crate) fn check(&self, columns: &Columns, source: &str) -> Result<()> {
        let found = self.found.iter().copied().chain(std::iter::repeat(false));
        let missing = columns.0.iter().zip(found).find(|(_, found)| !found);
        let Some(((_, theirs), _)) = missing else { return Ok(()) };
        if self.items == 0 {
            bail!("{source} has no columns, since it is plain text: leave --columns out");
        }
        bail!("no line of {source} has {}", absent(theirs, &self.names))
    }
}

/// The sentence of an item that cannot be told because a column is absent; none where all are
/// there.
pub(crate) fn absent_of(columns: &Columns, keys: &[String], present: &[bool]) -> Option<String> {
    let missing = columns.0.iter().zip(present).find(|(_, present)| !**present);
    let ((_, theirs), _) = missing?;
    Some(absent(theirs, &keys.iter().cloned().collect()))
}

fn absent(theirs: &str, names: &BTreeSet<String>) -> String {
    match near(theirs, names.iter().map(String::as_str)) {
        Some(name) => {
            format!("a column {theirs:?}, which --columns names: did you mean {name:?}?")
        }
        None => {
            let names = names.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("a column {theirs:?} but [{names}]: correct --columns")
        }
    }
}

fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.map(|known| (strsim::jaro(name, known), known));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(score, _)| *score > NEAR).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply(columns: &str, value: Value) -> Value {
        let Value::Object(keys) = value else { panic!("an object") };
        Value::Object(columns.parse::<Columns>().unwrap().apply(keys))
    }

    #[test]
    fn columns_take_the_names_that_are_ours() {
        let line = json!({"q": "a", "r": "b", "text": "c", "id": 3});
        assert_eq!(
            apply("prompt=q, completion=r", line),
            json!({"prompt": "a", "completion": "b", "id": 3})
        );
        // Names that are exchanged, and one that needs no pair.
        let line = json!({"answer": "q", "question": "a"});
        assert_eq!(
            apply("question=answer,answer=question", line),
            json!({"question": "q", "answer": "a"})
        );
        let line = json!({"prompt": "p", "response": "r"});
        assert_eq!(apply("completion=response", line), json!({"prompt": "p", "completion": "r"}));
        let line = json!({"prompt": "p", "completion": "r"});
        assert_eq!(apply("completion=response", line), json!({"prompt": "p"}));
        let columns: Columns = "text = b".parse().unwrap();
        assert_eq!(String::from(columns), "text=b");
    }

    #[test]
    fn wrong_pairs_are_refused_with_the_near_name() {
        for (text, part) in [
            ("promt=q", "did you mean \"prompt\"?"),
            ("zzz=q", "use one of answer, completion, conversations,"),
            ("prompt=a,prompt=b", "\"prompt\" is given twice"),
            ("prompt=a,completion=a", "\"a\" is given twice"),
            ("prompt", "write it as prompt=question"),
            ("prompt=", "write it as prompt=question"),
            ("", "write it as prompt=question"),
            ("prompt=a,output=b", "prompt, output do not go together"),
        ] {
            let error = text.parse::<Columns>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
