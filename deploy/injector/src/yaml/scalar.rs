//! What a plain scalar means.

use serde_json::{Number, Value};

/// The meaning of an unquoted text; `None` for a number that JSON does not have.
pub(super) fn resolve(text: &str) -> Option<Value> {
    Some(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => true.into(),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => false.into(),
        ".nan" | ".NaN" | ".NAN" => return None,
        _ if is_infinite(text) => return None,
        _ => match number(text) {
            Some(number) => number,
            None => text.into(),
        },
    })
}

/// Whether a reader, old or new, could take the text for something else than a string.
pub(super) fn is_ambiguous(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let word = matches!(
        lower.as_str(),
        "" | "~" | "null" | "y" | "yes" | "on" | "true" | "n" | "no" | "off" | "false"
    );
    // Numbers, times and dates of every kind begin so.
    word || lower.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first))
}

fn is_infinite(text: &str) -> bool {
    matches!(text.trim_start_matches(['+', '-']), ".inf" | ".Inf" | ".INF")
}

fn number(text: &str) -> Option<Value> {
    if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain))
}

fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match digits.get(..2) {
        Some("0x") => (&digits[2..], 16),
        Some("0b") => (&digits[2..], 2),
        Some("0o") => (&digits[2..], 8),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    match negative {
        false => Some(value.into()),
        true => 0i64.checked_sub_unsigned(value).map(Value::from),
    }
}

fn float(text: &str) -> Option<Value> {
    let mantissa = text.trim_start_matches(['+', '-']);
    let shape = mantissa.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    if !shape || !mantissa.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Number::from_f64(text.parse().ok()?).map(Value::Number)
}
