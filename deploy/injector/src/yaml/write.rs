//! Writing in block style, so that people can read it and `diff` can compare it.

use serde_json::{Map, Value};

use super::scalar;

/// A document, ending with a line end.
pub(crate) fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(&mut out, map, 0, false),
        Value::Array(list) if !list.is_empty() => items(&mut out, list, 0, false),
        other => {
            inline(&mut out, other, 0);
        }
    }
    out
}

/// `continues`: the first line stands behind something already.
fn entries(out: &mut String, map: &Map<String, Value>, indent: usize, continues: bool) {
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !continues {
            pad(out, indent);
        }
        out.push_str(&text(key));
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                entries(out, map, indent + 2, false);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                items(out, list, indent, false);
            }
            other => {
                out.push(' ');
                inline(out, other, indent + 2);
            }
        }
    }
}

fn items(out: &mut String, list: &[Value], indent: usize, continues: bool) {
    for (index, value) in list.iter().enumerate() {
        if index > 0 || !continues {
            pad(out, indent);
        }
        out.push_str("- ");
        match value {
            Value::Object(map) if !map.is_empty() => entries(out, map, indent + 2, true),
            Value::Array(list) if !list.is_empty() => items(out, list, indent + 2, true),
            other => inline(out, other, indent + 2),
        }
    }
}

/// What needs no lines of its own, or, as a block of text, lines that are indented so far.
fn inline(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(string) if is_block(string) => block(out, string, indent.max(2)),
        Value::String(string) => out.push_str(&text(string)),
        other => out.push_str(&other.to_string()),
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
}

fn text(string: &str) -> String {
    if is_plain(string) { string.to_owned() } else { quoted(string) }
}

/// Nobody can take it for anything else.
fn is_plain(string: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:@=+- ".contains(&byte);
    string.bytes().all(letter)
        && string.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_' || first == '/')
        && !string.ends_with([' ', ':'])
        && !string.contains(": ")
        && !scalar::is_ambiguous(string)
}

/// JSON's quotes are YAML's; what JSON lets stand and YAML does not is escaped as well.
fn quoted(string: &str) -> String {
    let json = Value::from(string).to_string();
    let odd = |letter: char| {
        matches!(letter, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    if !json.contains(odd) {
        return json;
    }
    let escape =
        |letter: char| if odd(letter) { format!("\\u{:04x}", u32::from(letter)) } else { letter.to_string() };
    json.chars().map(escape).collect()
}

/// Several lines of plain text, such as a script.
fn is_block(string: &str) -> bool {
    let lines = || string.strip_suffix('\n').unwrap_or(string).split('\n');
    let good = |line: &str| {
        line.bytes().all(|byte| (b' '..=b'~').contains(&byte))
            && !line.ends_with(' ')
            && !line.starts_with("---")
    };
    lines().count() > 1
        && lines().all(good)
        && lines().next().is_some_and(|first| !first.is_empty() && !first.starts_with(' '))
        && lines().next_back().is_some_and(|last| !last.is_empty())
}

fn block(out: &mut String, string: &str, indent: usize) {
    out.push_str(if string.ends_with('\n') { "|\n" } else { "|-\n" });
    for line in string.lines() {
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
        out.push('\n');
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}
