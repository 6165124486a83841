//! YAML as Kubernetes has it: documents that stand for JSON.
//!
//! Plain scalars mean what they mean to `kubectl` (`yes` is a boolean, `0644` is 420), because a pod has to be read as the
//! API server will get it. What is written is quoted wherever any reader of YAML 1.1 or 1.2 could take it for something
//! else than a string. Comments do not survive; so a document that is not changed is not written anew.

mod read;
mod scalar;
mod write;

use thiserror::Error;

pub(crate) use read::{documents, read};
pub(crate) use write::write;

use crate::limits;

/// Why a document cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum YamlError {
    /// It is no YAML.
    #[error("{0}")]
    Syntax(String),
    /// Nested deeper than [`limits::YAML_DEPTH_MAX`].
    #[error("nested deeper than {max} levels", max = limits::YAML_DEPTH_MAX)]
    TooDeep,
    /// More nodes than [`limits::YAML_NODES_MAX`], with those that aliases stand for.
    #[error("more than {max} values", max = limits::YAML_NODES_MAX)]
    TooMany,
    /// A key that is a list or a map.
    #[error("line {0}: a key is no text")]
    Key(usize),
    /// A key twice in one map.
    #[error("line {line}: {key:?} is there twice")]
    Twice {
        /// Where.
        line: usize,
        /// The key.
        key: String,
    },
    /// A number that JSON does not have.
    #[error("line {0}: infinite, or no number")]
    NotFinite(usize),
    /// `<<` with something that is no map.
    #[error("line {0}: only maps can be merged")]
    Merge(usize),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn one(text: &str) -> Value {
        read(text).expect("valid").expect("a document")
    }

    #[test]
    fn scalars_mean_what_kubectl_takes_them_for() {
        let text = "{a: yes, b: 'yes', c: 0644, d: 1e3, e: ~, f: 10m, g: 0x1F, h: '', i: , j: 2026-01-31, k: off, l: 1.5, m: +7, n: .5, o: !!str 5}";
        let wanted = json!({"a": true, "b": "yes", "c": 420, "d": 1000.0, "e": null, "f": "10m", "g": 31, "h": "",
            "i": null, "j": "2026-01-31", "k": false, "l": 1.5, "m": 7, "n": 0.5, "o": "5"});
        assert_eq!(one(text), wanted);
    }

    #[test]
    fn anchors_and_merges_are_followed() {
        let text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: *b\n";
        assert_eq!(one(text)["one"], json!({"x": 1, "y": 3}));
        assert_eq!(one(text)["two"], json!({"x": 1, "y": 2}));
    }

    #[test]
    fn hostile_documents_end_early() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = level - 1;
            let list = vec![format!("*a{before}"); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert_eq!(read(&bomb), Err(YamlError::TooMany));
        assert_eq!(read(&format!("{}1{}", "[".repeat(200), "]".repeat(200))), Err(YamlError::TooDeep));
        assert_eq!(read("a: 1\na: 2\n"), Err(YamlError::Twice { line: 2, key: "a".to_owned() }));
        assert!(matches!(read("a: [1"), Err(YamlError::Syntax(_))));
        assert_eq!(read("a: .inf"), Err(YamlError::NotFinite(1)));
        assert_eq!(read("? [a]\n: b\n"), Err(YamlError::Key(1)));
    }

    #[test]
    fn documents_are_cut_at_their_markers_and_nowhere_else() {
        let text = "# head\na: |\n  ---\n---\nb: 1\n--- # two\nc: 2\n---\n# nothing\n";
        let parts: Vec<_> = documents(text).collect();
        assert_eq!(parts.concat(), text);
        let values: Vec<_> = parts.iter().map(|part| read(part).expect("valid")).collect();
        assert_eq!(values, [Some(json!({"a": "---\n"})), Some(json!({"b": 1})), Some(json!({"c": 2})), None]);
    }

    fn values() -> impl Strategy<Value = Value> {
        let words = prop::sample::select(vec![
            "yes",
            "n",
            "~",
            "1e3",
            "0x1",
            "a: b",
            "a #b",
            "-",
            "--x=1",
            "",
            " x",
            "x ",
            "null",
            "|",
            "012",
            "1_0",
            "é",
            "a\nb",
            "a\n\n",
            "\n",
            "\u{85}",
            "\u{feff}a",
            "%a",
            "@a",
            "'",
            "\"",
            "\t",
            "a\tb",
            "$(X)",
            "12:30:45",
            "=",
            "<<",
            "[]",
            "{}",
            "*a",
            "&a",
            "!a",
            "? a",
            "a:",
            "  a\nb",
            "a\n  b\n",
            "\r\n",
            "\u{7f}",
            "- a",
            "---",
            "---\na",
            "a\n---\nb\n",
            "...",
            "\n a",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9f64).prop_map(Value::from),
            words.clone().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(words.clone().prop_map(str::to_owned), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in values()) {
            let text = write(&value);
            prop_assert_eq!(documents(&text).count(), 1, "{}", text);
            let back = read(&text).map_err(|error| TestCaseError::fail(format!("{error}: {text:?}")))?;
            prop_assert_eq!(back.unwrap_or(Value::Null), value, "{}", text);
        }

        #[test]
        fn garbage_is_an_error_and_nothing_worse(text in "[-a:{}\\[\\]&*!|>'\"%#, \\n\\t0]{0,60}") {
            let _ = read(&text);
        }
    }
}
