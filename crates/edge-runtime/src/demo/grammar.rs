//! English-like text from a seeded grammar with a closed vocabulary, in two styles.
//!
//! [`Style::Story`] is what the demo model is pre-trained on, [`Style::Log`] what it is adapted
//! to: the same people, animals and things in other sentences, so that a sample shows at a glance
//! which style the model speaks. A document is a handful of sentences about one small event; what
//! makes it more than noise to a model is what stays the same over several sentences: the hero,
//! the friend and their pronouns, the thing and its colour, sums of small numbers, the captain
//! that belongs to a ship.

use std::collections::BTreeSet;

use edge_kernels::util::SeededRng;
use rand::{RngExt, SeedableRng};

/// Which of the two languages to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Plain stories for children.
    Story,
    /// Entries of a ship's log, in an archaic diction.
    Log,
}

/// At least `bytes` bytes of documents: each one line, a blank line between two, ending at the end
/// of a document. The same on every platform for the same arguments.
pub fn text(style: Style, seed: u64, bytes: usize) -> String {
    let mut rng = SeededRng::seed_from_u64(seed);
    let mut text = String::with_capacity(bytes + 1024);
    while text.len() < bytes {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&document(style, &mut rng).join(" "));
        text.push('\n');
    }
    text
}

/// All words that [`text`] can write in this style, in lower case.
pub fn vocabulary(style: Style) -> BTreeSet<String> {
    let language = style.language();
    let people = language.ships.iter().flat_map(|&(ship, captain)| [ship, captain]);
    let phrases = TABLES.iter().chain(language.tables).flat_map(|(_, values)| values.iter());
    let steps = [language.opening, language.ending].into_iter().chain(language.plots.to_vec());
    let templates = steps.flatten().flat_map(|alternatives| alternatives.iter());
    let mut words = BTreeSet::new();
    let numbers = NUMBERS.iter().copied();
    let names = GIRLS.iter().chain(BOYS).copied().chain(PRONOUNS.into_iter().flatten());
    for text in phrases.chain(templates).copied().chain(people).chain(numbers).chain(names) {
        words.extend(words_of(text).filter(|word| !word.starts_with('{')));
    }
    words
}

/// Words of a text or template in lower case, without punctuation; slots keep their braces.
fn words_of(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace()
        .map(|word| word.trim_matches(|c| ".,!?\"".contains(c)).to_lowercase())
        .filter(|word| !word.is_empty())
}

/// A step of a document: one of these sentences, an empty one for none.
type Step = &'static [&'static str];

/// What the two styles differ in.
struct Language {
    /// Slots with a value each, drawn once for a document.
    tables: &'static [(&'static str, &'static [&'static str])],
    /// Ship and captain, slots `ship` and `captain`, drawn together; none where there is no ship.
    ships: &'static [(&'static str, &'static str)],
    opening: &'static [Step],
    plots: &'static [&'static [Step]],
    ending: &'static [Step],
}

impl Style {
    fn language(self) -> &'static Language {
        match self {
            Self::Story => &STORY,
            Self::Log => &LOG,
        }
    }
}

fn pick<T: Copy>(rng: &mut SeededRng, values: &[T]) -> T {
    // Not usize, whose ranges need not be drawn alike on all platforms.
    values[rng.random_range(0..values.len() as u32) as usize]
}

/// The sentences of one document.
fn document(style: Style, rng: &mut SeededRng) -> Vec<String> {
    let language = style.language();
    let scene = Scene::draw(language, rng);
    let plot = pick(rng, language.plots);
    let mut sentences = Vec::new();
    for step in language.opening.iter().chain(plot).chain(language.ending) {
        let template = pick(rng, step);
        if !template.is_empty() {
            sentences.push(scene.fill(template));
        }
    }
    sentences
}

/// The values of all slots in one document.
struct Scene(Vec<(&'static str, &'static str)>);

impl Scene {
    fn draw(language: &Language, rng: &mut SeededRng) -> Self {
        let mut slots = Vec::new();
        let names: [&[&str]; 2] = [GIRLS, BOYS];
        let (hero, friend) = (rng.random_range(0..2_u32), rng.random_range(0..2_u32));
        let name = pick(rng, names[hero as usize]);
        slots.push(("name", name));
        let mut other = name;
        while other == name {
            other = pick(rng, names[friend as usize]);
        }
        slots.push(("friend", other));
        let [sub, obj, pos, child] = PRONOUNS[hero as usize];
        slots.extend([("sub", sub), ("obj", obj), ("pos", pos), ("child", child)]);
        let [sub, obj, pos, _] = PRONOUNS[friend as usize];
        slots.extend([("fsub", sub), ("fobj", obj), ("fpos", pos)]);
        for (slot, values) in TABLES.iter().chain(language.tables) {
            let value = loop {
                let value = pick(rng, values);
                // `spot` and `wrong`, `rank` and `rank2`, `beast` and `animal` share values.
                if slots.iter().all(|(_, taken)| *taken != value) {
                    break value;
                }
            };
            slots.push((slot, value));
        }
        let (a, b) = (rng.random_range(2..6_u32), rng.random_range(2..6_u32));
        let number = |n: u32| NUMBERS[n as usize - 2];
        slots.extend([("a", number(a)), ("b", number(b)), ("c", number(a + b))]);
        if !language.ships.is_empty() {
            let (ship, captain) = pick(rng, language.ships);
            slots.extend([("ship", ship), ("captain", captain)]);
        }
        Self(slots)
    }

    /// Replaces `{slot}` by its value, and `{Slot}` and what starts a sentence by the same with a
    /// capital letter.
    fn fill(&self, template: &str) -> String {
        let mut out = String::with_capacity(2 * template.len());
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) = after.split_once('}').expect("a closed slot");
            out.push_str(before);
            let wanted = slot.to_lowercase();
            let found = self.0.iter().find(|(name, _)| *name == wanted);
            let (_, value) = found.unwrap_or_else(|| panic!("{template}: no slot {slot}"));
            if slot == wanted {
                out.push_str(value);
            } else {
                out.push_str(&value[..1].to_uppercase());
                out.push_str(&value[1..]);
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }
}

const GIRLS: &[&str] =
    &["Anna", "Clara", "Ella", "Greta", "Ida", "Lily", "Mary", "Nora", "Rosa", "Sara"];
const BOYS: &[&str] =
    &["Ben", "David", "Felix", "Henry", "Jack", "Leo", "Max", "Oscar", "Paul", "Tom"];
/// Subject, object, possessive, and what a child is called.
const PRONOUNS: [[&str; 4]; 2] = [["she", "her", "her", "girl"], ["he", "him", "his", "boy"]];
/// From two to ten.
const NUMBERS: &[&str] = &["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];

/// Slots of both styles.
const TABLES: &[(&str, &[&str])] = &[
    ("color", &["blue", "brown", "golden", "green", "red", "silver", "white", "yellow"]),
    (
        "thing",
        &[
            "ball", "bell", "book", "box", "button", "cup", "drum", "flute", "hat", "key", "knife",
            "mirror", "ring", "shell", "whistle",
        ],
    ),
    ("elder", &["mother", "father", "grandmother", "grandfather", "sister", "uncle"]),
    ("animal", BEASTS),
    ("beast", BEASTS),
];

const BEASTS: &[&str] =
    &["bear", "cat", "cow", "dog", "duck", "fox", "goat", "hen", "horse", "mouse", "pig", "rabbit"];

const SPOTS: &[&str] = &[
    "under the old bridge",
    "behind the tall tree",
    "near the deep well",
    "in the long grass",
    "beside the stone wall",
    "in the dark barn",
    "behind the mill",
    "in the quiet garden",
    "at the edge of the forest",
    "on top of the hill",
];

static STORY: Language = Language {
    tables: &[
        (
            "trait",
            &["brave", "clever", "gentle", "kind", "little", "lonely", "merry", "quiet", "shy"],
        ),
        (
            "home",
            &[
                "in a small house by the sea",
                "on a farm near the forest",
                "in a village below the mountain",
                "in a town across the river",
                "in a cabin beside the lake",
            ],
        ),
        (
            "time",
            &[
                "one morning",
                "one evening",
                "one day",
                "one windy day",
                "one cold winter night",
                "one warm summer afternoon",
            ],
        ),
        ("food", &["apples", "berries", "cakes", "carrots", "eggs", "nuts", "pears", "plums"]),
        ("spot", SPOTS),
        ("wrong", SPOTS),
    ],
    ships: &[],
    opening: &[
        &[
            "Once there was a {trait} {child} named {name}.",
            "{name} was a {trait} {child}.",
            "There once was a {trait} {child}, and {pos} name was {name}.",
        ],
        &[
            "{Sub} lived {home} with {pos} {animal}.",
            "{Sub} lived {home} with {pos} {elder} and a {animal}.",
            "",
        ],
    ],
    plots: &[
        &[
            &[
                "{Sub} had a {color} {thing} and loved it very much.",
                "{Sub} had a {color} {thing} from {pos} {elder}.",
            ],
            &["{Time}, {sub} lost the {color} {thing}.", "{Time}, the {color} {thing} was gone."],
            &["{name} was so sad that {sub} began to cry.", "{name} did not know what to do.", ""],
            &[
                "\"Do not cry, {name},\" said {friend}.",
                "{friend} said, \"I will help you look for it.\"",
                "Then {pos} friend {friend} came to help {obj}.",
            ],
            &["They looked {wrong}, but the {thing} was not there.", ""],
            &[
                "At last {friend} found the {thing} {spot}.",
                "Then they went to look {spot}, and there was the {color} {thing}!",
            ],
            &[
                "\"Thank you, {friend},\" said {name}, and {sub} was happy again.",
                "{name} took {pos} {color} {thing} and danced.",
            ],
        ],
        &[
            &[
                "{Time}, {sub} made a {color} {thing} for {pos} friend {friend}.",
                "{Time}, {sub} bought a {color} {thing} for {friend}.",
            ],
            &["{Sub} carried it to {friend}, who was sitting {spot}."],
            &[
                "\"This {thing} is for you, {friend},\" {sub} said.",
                "{Sub} said, \"Look what I have for you!\"",
            ],
            &[
                "{friend} looked at the {color} {thing} and smiled.",
                "{friend} was so glad that {fsub} jumped up and down.",
            ],
            &["Then {fsub} gave {name} {a} {food} to say thank you.", ""],
        ],
        &[
            &["{Time}, {name} found a {color} {thing} {spot}."],
            &["\"Is this your {thing}?\" {sub} asked the {beast}."],
            &[
                "\"No, it is not mine,\" said the {beast}.",
                "The {beast} shook its head and went away.",
            ],
            &["Then {name} asked {friend}, and {fsub} began to laugh."],
            &[
                "\"Yes, that is my {thing},\" said {friend}.",
                "\"I lost my {color} {thing} and now I have it back!\" said {friend}.",
            ],
            &["{name} gave {fobj} the {color} {thing}, and {friend} was very glad."],
        ],
        &[
            &[
                "{Time}, {name} picked {a} {food} {spot}.",
                "{Time}, {name} took {a} {food} from the kitchen.",
            ],
            &["{friend} came along and gave {obj} {b} more."],
            &["Now {sub} had {c} {food}.", "{name} counted them, and there were {c}."],
            &[
                "They sat down {wrong} and ate the {food} together.",
                "They gave some of the {food} to the {animal} and ate the rest.",
            ],
        ],
        &[
            &["{Time}, there was a big storm, and the {animal} ran away."],
            &["{name} put on {pos} {color} coat and went out into the rain."],
            &[
                "{Sub} called and called, but the {animal} did not come.",
                "{Sub} looked {wrong}, but no one was there.",
            ],
            &["{friend} heard {obj} and came with a lamp."],
            &["They found the {animal} {spot}, and it was cold and wet."],
            &["{name} carried it home, where it slept by the fire."],
        ],
    ],
    ending: &[&[
        "From that day on, {name} and {friend} were the best of friends.",
        "That night {name} slept very well.",
        "{name} never forgot that day.",
        "And they all went home and were happy.",
    ]],
};

const SHIP_SPOTS: &[&str] = &[
    "beneath the great mast",
    "within the hold",
    "upon the lower deck",
    "behind the water casks",
    "beside the anchor",
    "among the ropes",
    "under the boat",
    "within the galley",
];

const RANKS: &[&str] =
    &["boatswain", "carpenter", "cook", "gunner", "helmsman", "surgeon", "sailmaker", "steward"];

static LOG: Language = Language {
    tables: &[
        ("rank", RANKS),
        ("rank2", RANKS),
        ("spot", SHIP_SPOTS),
        ("wrong", SHIP_SPOTS),
        (
            "day",
            &["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"],
        ),
        ("month", &["March", "April", "May", "June", "July", "August"]),
        ("wind", &["north", "south", "east", "west"]),
        ("sea", &["calm", "heavy", "rough", "smooth", "dark"]),
        ("stores", &["water", "salt", "bread", "wine", "fish"]),
    ],
    ships: &[
        ("Swallow", "Thorne"),
        ("Dolphin", "Hawke"),
        ("Fortune", "Drake"),
        ("Morning Star", "Wren"),
    ],
    opening: &[
        &["Log of the good ship {ship}, the {day} day of {month}."],
        &[
            "Wind from the {wind}, and the sea {sea}.",
            "The wind stood in the {wind}, and the sea was {sea}.",
        ],
    ],
    plots: &[
        &[
            &["This day did {name}, our {rank}, lose {pos} {color} {thing}."],
            &[
                "Great was {pos} sorrow, for it was the gift of {pos} {elder}.",
                "{Sub} wept sore, and would neither eat nor drink.",
            ],
            &["{friend} the {rank2} hath sworn to seek it by day and by night."],
            &["We sought it {wrong}, yet found it not.", ""],
            &["At {a} bells {friend} did find the {thing} {spot}."],
            &["Thereupon {name} wept for joy, and gave {friend} thanks."],
        ],
        &[
            &["This morn did {name}, our {rank}, find a {color} {thing} {spot}."],
            &["\"Whose {thing} is this?\" quoth {name}."],
            &["\"Verily, it is mine,\" quoth {friend} the {rank2}."],
            &[
                "Thus {name} hath rendered it unto {fobj}, as is right.",
                "Thereupon {sub} gave the {color} {thing} unto {friend}, and all hands were glad.",
            ],
        ],
        &[
            &["Our {rank}, {name}, hath counted {a} casks of {stores} within the hold."],
            &[
                "From the shore we took aboard {b} more.",
                "{friend} the {rank2} hath brought {b} more from the shore.",
            ],
            &["Thus have we {c} casks of {stores}, and want for nothing."],
            &["We took aboard a {beast} also, that we may not hunger.", ""],
        ],
        &[
            &["At {a} bells there came upon us a great storm."],
            &["{name}, our {rank}, did stand at the helm through all the night."],
            &["Alas, {friend} the {rank2} was cast into the sea."],
            &["But {name} threw {fobj} a rope, and drew {fobj} out of the deep."],
            &["Ere morn the wind fell, and all hands gave thanks."],
        ],
        &[
            &["At {a} bells we beheld a strange ship in the {wind}."],
            &["Her captain hath given unto {name}, our {rank}, a {color} {thing}."],
            &["{name} gave in return a {beast} and {b} casks of {stores}."],
            &["Verily, {pos} {color} {thing} is the wonder of all hands."],
        ],
    ],
    ending: &[&[
        "So ends this day, by the hand of captain {captain}.",
        "May fortune keep the {ship} and captain {captain}.",
        "Thus do I write, captain {captain} of the {ship}.",
    ]],
};

#[cfg(test)]
mod tests {
    use super::*;

    const STYLES: [Style; 2] = [Style::Story, Style::Log];

    #[test]
    fn the_same_everywhere() {
        let first = text(Style::Story, 1, 200);
        assert_eq!(first, text(Style::Story, 1, 200));
        assert_ne!(first, text(Style::Story, 2, 200));
        assert_ne!(first, text(Style::Log, 1, 200));
        assert!(text(Style::Story, 1, 5000).starts_with(&first));
        // A fixed text: other platforms must write these very words.
        assert_eq!(first.split_once(". ").expect("sentences").0, FIRST_STORY);
        assert_eq!(text(Style::Log, 1, 1).split_once(". ").expect("sentences").0, FIRST_LOG);
    }

    #[test]
    fn at_least_as_long_as_asked_and_whole_documents() {
        for style in STYLES {
            for bytes in [1, 1000, 60_000] {
                let text = text(style, 9, bytes);
                assert!(text.len() >= bytes && text.len() < bytes + 2000);
                assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
            }
        }
        assert_eq!(text(Style::Story, 9, 0), "");
    }

    #[test]
    fn closed_vocabulary() {
        let mut both = BTreeSet::new();
        for style in STYLES {
            let known = vocabulary(style);
            let used: BTreeSet<String> = words_of(&text(style, 4, 300_000)).collect();
            let unknown: Vec<_> = used.difference(&known).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
            assert!(used.len() + 3 > known.len(), "{:?}", known.difference(&used));
            both.extend(known);
        }
        assert!((250..=400).contains(&both.len()), "{} words", both.len());
    }

    #[test]
    fn styles_share_things_and_differ_in_words() {
        let (story, log) = (vocabulary(Style::Story), vocabulary(Style::Log));
        let shared = story.intersection(&log).count();
        assert!(shared > 80 && shared < story.len() && shared < log.len());
        for word in ["hath", "quoth", "unto", "casks"] {
            assert!(log.contains(word) && !story.contains(word), "{word}");
        }
        for word in ["once", "happy", "farm"] {
            assert!(story.contains(word) && !log.contains(word), "{word}");
        }
    }

    #[test]
    fn documents_are_sentences() {
        for style in STYLES {
            let mut rng = SeededRng::seed_from_u64(12);
            for _ in 0..3000 {
                let sentences = document(style, &mut rng);
                assert!((3..=10).contains(&sentences.len()), "{sentences:?}");
                for sentence in sentences {
                    let start = sentence.trim_start_matches('"').chars().next().expect("text");
                    assert!(start.is_ascii_uppercase(), "{sentence}");
                    let end = sentence.trim_end_matches('"');
                    assert!(end.ends_with(['.', '!', '?']), "{sentence}");
                    assert!(!sentence.contains("  ") && !sentence.contains(['{', '}']));
                    assert_eq!(sentence.matches('"').count() % 2, 0, "{sentence}");
                    assert!(sentence.is_ascii());
                }
            }
        }
    }

    #[test]
    fn sums_and_captains_are_right() {
        let value = |scene: &Scene, slot| {
            scene.0.iter().find(|(name, _)| *name == slot).map(|(_, value)| *value).expect("slot")
        };
        let mut rng = SeededRng::seed_from_u64(3);
        for _ in 0..500 {
            let scene = Scene::draw(&LOG, &mut rng);
            let number = |slot| {
                NUMBERS.iter().position(|n| *n == value(&scene, slot)).expect("a number") + 2
            };
            assert_eq!(number("a") + number("b"), number("c"));
            assert!(LOG.ships.contains(&(value(&scene, "ship"), value(&scene, "captain"))));
            assert_ne!(value(&scene, "name"), value(&scene, "friend"));
            let female = GIRLS.contains(&value(&scene, "name"));
            assert_eq!(value(&scene, "sub"), if female { "she" } else { "he" });
        }
    }

    const FIRST_STORY: &str = "Once there was a gentle boy named Tom";
    const FIRST_LOG: &str = "Log of the good ship Swallow, the fifth day of July";
}
