//! Questions with several answers to choose from: the answer is the choice that the model gives
//! the largest probability behind the question, as `acc` of EleutherAI's lm-evaluation-harness.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::data::{Example, Stream};
use crate::evaluate::SequenceScores;
use crate::tokenizer::Tokenizer;
use crate::whole_file::{self, LARGE};

/// The names of choices that a question lists itself, in the lines `A. …`, `B. …`.
const LETTERS: [&str; 8] = ["A", "B", "C", "D", "E", "F", "G", "H"];

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    question: String,
    choices: Vec<String>,
    /// Which choice is right.
    answer: usize,
}

impl Item {
    /// From `{question, choices, answer}`, the answer being a number from 0, a letter or one of the
    /// choices; or from `{input, output}`, whose input lists choices by letter and whose output is
    /// the letter of one.
    fn read(value: &Value, place: &str) -> Result<Self> {
        let Value::Object(keys) = value else {
            bail!("{place} is no JSON object: write {{\"question\": …}}");
        };
        let string = |key: &str| match keys.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            _ => bail!("{place} has no text under \"{key}\": add it"),
        };
        let (question, answer_key) = match keys.contains_key("question") {
            true => (string("question")?, "answer"),
            false => (string("input")?, "output"),
        };
        let choices = match keys.get("choices") {
            Some(choices) => texts(choices, place)?,
            None => listed(&question),
        };
        ensure!(
            choices.len() >= 2,
            "{place} has {} choices: give \"choices\" two texts or more, or list them in the \
             question in lines A. …, B. …",
            choices.len()
        );
        let answer = answer(keys, answer_key, &choices, place)?;
        Ok(Self { question, choices, answer })
    }
}

fn texts(value: &Value, place: &str) -> Result<Vec<String>> {
    let Value::Array(items) = value else {
        bail!("the \"choices\" of {place} is no array: write [\"…\", \"…\"]");
    };
    let text = |item: &Value| match item.as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => bail!("{place} has a choice that is no text: put it in quotes"),
    };
    items.iter().map(text).collect()
}

/// The letters of the choices that a question lists.
fn listed(question: &str) -> Vec<String> {
    let lists = |letter: &&&str| {
        question.lines().any(|line| {
            line.strip_prefix(**letter).is_some_and(|rest| rest.starts_with(['.', ')', ':']))
        })
    };
    LETTERS.iter().take_while(lists).map(|letter| (*letter).to_owned()).collect()
}

fn answer(keys: &Map<String, Value>, key: &str, choices: &[String], place: &str) -> Result<usize> {
    let found = match keys.get(key) {
        Some(Value::Number(number)) => number.as_u64().map(|number| number as usize),
        Some(Value::String(text)) => {
            let text = text.trim();
            let choice = choices.iter().position(|choice| choice.trim() == text);
            choice.or_else(|| LETTERS.iter().position(|letter| *letter == text))
        }
        _ => None,
    };
    found.filter(|&index| index < choices.len()).with_context(|| {
        format!("the \"{key}\" of {place} names none of its choices: give its number from 0")
    })
}

/// Questions as sequences, one for each choice.
pub struct Choices {
    /// The sequences; the choice is answer.
    pub stream: Stream,
    /// Questions whose beginning was left out, because they are longer than a sequence.
    pub cut: usize,
    /// First sequence, number of choices, and the right one of each question.
    items: Vec<(usize, usize, usize)>,
}

impl Choices {
    /// Reads a JSONL file of questions, up to `limit` of them, for sequences of `seq_len` tokens.
    ///
    /// # Errors
    /// The file cannot be read, or a line is no question.
    pub fn load(
        path: &Path,
        tokenizer: &Tokenizer,
        seq_len: usize,
        limit: Option<usize>,
    ) -> Result<Self> {
        let shown = path.display();
        let text = whole_file::text(path, LARGE)
            .with_context(|| format!("cannot read {shown}: give --choices a JSONL file"))?;
        let mut sequences = Sequences::default();
        let (mut items, mut cut) = (Vec::new(), 0);
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (index, line) in lines.take(limit.unwrap_or(usize::MAX)) {
            let place = format!("{shown} line {}", index + 1);
            let value = serde_json::from_str(line)
                .with_context(|| format!("{place} is no JSON: mend or remove it"))?;
            let item = Item::read(&value, &place)?;
            items.push((sequences.examples.len(), item.choices.len(), item.answer));
            let mut any_cut = false;
            for choice in &item.choices {
                any_cut |= sequences
                    .push(&item.question, choice, tokenizer, seq_len)
                    .with_context(|| format!("{place} cannot be used"))?;
            }
            cut += usize::from(any_cut);
        }
        ensure!(!items.is_empty(), "{shown} has no questions: give --choices another file");
        let Sequences { ids, answers, examples } = sequences;
        let stream = Stream {
            examples: examples.into(),
            answers: answers.into(),
            ..Stream::text(ids, shown.to_string())
        };
        Ok(Self { stream, cut, items })
    }

    /// Questions.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no questions.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Share of right answers by these log-probabilities of the sequences; of equal ones the first
    /// choice counts.
    pub fn accuracy(&self, log_p: &[f64]) -> f64 {
        let right = self.items.iter().filter(|(first, count, answer)| {
            let log_p = &log_p[*first..first + count];
            let best = (1..*count).fold(0, |best, i| if log_p[i] > log_p[best] { i } else { best });
            best == *answer
        });
        right.count() as f64 / self.items.len() as f64
    }

    /// Share of right answers of somebody who guesses.
    pub fn chance(&self) -> f64 {
        let shares = self.items.iter().map(|(_, count, _)| 1.0 / *count as f64);
        shares.sum::<f64>() / self.items.len() as f64
    }

    /// [`Choices::accuracy`] at every exit, and by every vote that was scored.
    pub fn accuracies(&self, scores: &SequenceScores) -> (Vec<f64>, Vec<f64>) {
        let all = |scores: &[Vec<f64>]| scores.iter().map(|log_p| self.accuracy(log_p)).collect();
        (all(&scores.exits), all(&scores.votes))
    }
}

/// The sequences of questions while they are read.
#[derive(Default)]
struct Sequences {
    ids: Vec<u32>,
    answers: Vec<u8>,
    examples: Vec<Example>,
}

impl Sequences {
    /// Adds a question with a choice behind it, cut from the left to `seq_len` tokens; returns
    /// whether it was cut.
    fn push(
        &mut self,
        question: &str,
        choice: &str,
        tokenizer: &Tokenizer,
        seq_len: usize,
    ) -> Result<bool> {
        let gap = if question.ends_with(char::is_whitespace) { "" } else { " " };
        let text = format!("{question}{gap}{choice}");
        let (ids, spans) = tokenizer.encode_spans(&text)?;
        // The space belongs to the choice, as in the tokens of most tokenizers.
        let answer = spans.iter().position(|span| span.end > question.len());
        let answer = answer.context("a choice has no tokens: leave it out")?;
        ensure!(
            answer > 0 && ids.len() - answer < seq_len,
            "a choice has {} tokens and a sequence {seq_len}: raise --seq-len",
            ids.len() - answer
        );
        let left_out = ids.len().saturating_sub(seq_len);
        let (start, prompt) = (self.ids.len(), answer - left_out);
        self.ids.extend(&ids[left_out..]);
        self.answers.extend((left_out..ids.len()).map(|index| u8::from(index >= answer)));
        self.examples.push(Example { start, len: ids.len() - left_out, prompt });
        Ok(left_out > 0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::message;

    #[test]
    fn questions_are_read_in_their_forms() {
        let read = |value: Value| Item::read(&value, "q.jsonl line 1");
        let two = json!({"question": "Is it?", "choices": ["yes", "no"], "answer": 1});
        let item = read(two).expect("an item");
        assert_eq!((item.answer, &item.choices[..]), (1, &["yes".to_owned(), "no".to_owned()][..]));
        for answer in ["no", "B"] {
            let value = json!({"question": "?", "choices": ["yes", "no"], "answer": answer});
            assert_eq!(read(value).expect("an item").answer, 1, "{answer}");
        }
        let mmlu = json!({"input": "Q\nA. 4\nB. 8\nC. 12\nD. 6\nAnswer:", "output": "C"});
        let item = read(mmlu).expect("an item");
        assert_eq!((item.answer, item.choices.join("")), (2, "ABCD".to_owned()));
        for (value, part) in [
            (json!([1]), "no JSON object"),
            (json!({"question": ""}), "\"question\""),
            (json!({"question": "?", "choices": ["a"], "answer": 0}), "1 choices"),
            (json!({"question": "?", "choices": "ab", "answer": 0}), "no array"),
            (json!({"question": "?", "choices": ["a", 2], "answer": 0}), "no text"),
            (json!({"question": "?", "choices": ["a", "b"], "answer": 2}), "number from 0"),
            (json!({"question": "?", "choices": ["a", "b"]}), "number from 0"),
            (json!({"input": "no list", "output": "A"}), "0 choices"),
        ] {
            let text = message(read(value));
            assert!(text.contains(part) && text.contains("q.jsonl line 1"), "{text}");
        }
    }

    #[test]
    fn the_most_probable_choice_is_the_answer() {
        let stream = Stream::text(Vec::new(), "q".into());
        let choices = Choices { stream, cut: 0, items: vec![(0, 2, 1), (2, 3, 0), (5, 2, 1)] };
        let log_p = [-2.0, -1.0, -1.0, -3.0, -1.5, -1.0, -1.0];
        assert_eq!(choices.accuracy(&log_p), 2.0 / 3.0);
        assert_eq!(choices.chance(), (0.5 + 1.0 / 3.0 + 0.5) / 3.0);
    }
}
