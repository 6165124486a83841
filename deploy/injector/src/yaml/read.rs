//! Reading one document at a time.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

use super::{YamlError, scalar};
use crate::limits;

/// The documents of a text, as they stand there, each with its `---` line.
///
/// By the standard a line of that kind is a marker wherever it is, in block scalars too.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = &str> {
    let is_marker = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t']))
    };
    let mut starts = vec![0];
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if at > 0 && is_marker(line) {
            starts.push(at);
        }
        at += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect::<Vec<_>>().into_iter()
}

/// The one document of a text; `None` if there is nothing but comments.
pub(crate) fn read(text: &str) -> Result<Option<Value>, YamlError> {
    let mut reader = Reader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    loop {
        match reader.next()?.0 {
            Event::StreamEnd => return Ok(None),
            Event::DocumentStart(_) => {
                let (event, line) = reader.next()?;
                let value = reader.value(event, line, 0)?.0;
                // What follows is read, too: it may be broken.
                while reader.next()?.0 != Event::StreamEnd {}
                return Ok(Some(value).filter(|value| !value.is_null()));
            }
            _ => {}
        }
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// By number, with how many values each stands for.
    anchors: HashMap<usize, (Value, usize)>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    /// The next event and its line.
    fn next(&mut self) -> Result<(Event<'a>, usize), YamlError> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(YamlError::Syntax(error.to_string())),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    /// The value that begins with `event`, and how many values it is made of.
    fn value(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<(Value, usize), YamlError> {
        if depth > limits::YAML_DEPTH_MAX {
            return Err(YamlError::TooDeep);
        }
        let before = self.nodes;
        self.count(1)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_string = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let plain = style == ScalarStyle::Plain && !is_string;
                let value = if plain { scalar::resolve(&text) } else { Some(text.into_owned().into()) };
                (value.ok_or(YamlError::NotFinite(line))?, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(depth)?, anchor),
            Event::Alias(anchor) => {
                let (value, nodes) = self.anchors.get(&anchor).cloned().unwrap_or((Value::Null, 0));
                self.count(nodes)?;
                (value, 0)
            }
            _ => return Err(YamlError::Syntax(format!("line {line}: a value is missing"))),
        };
        let nodes = self.nodes - before;
        if anchor > 0 {
            self.anchors.insert(anchor, (value.clone(), nodes));
        }
        Ok((value, nodes))
    }

    fn list(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut list = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Array(list)),
                (event, line) => list.push(self.value(event, line, depth + 1)?.0),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let (event, line) = self.next()?;
            let (key, plain) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, ..) => (text.into_owned(), style == ScalarStyle::Plain),
                Event::Alias(anchor) => match self.anchors.get(&anchor) {
                    Some((Value::String(text), _)) => (text.clone(), false),
                    _ => return Err(YamlError::Key(line)),
                },
                _ => return Err(YamlError::Key(line)),
            };
            let (event, at) = self.next()?;
            let value = self.value(event, at, depth + 1)?.0;
            if plain && key == "<<" {
                merged.extend(maps(value, line)?);
            } else if map.contains_key(&key) {
                return Err(YamlError::Twice { line, key });
            } else {
                map.insert(key, value);
            }
        }
        for (key, value) in merged.into_iter().flatten() {
            map.entry(key).or_insert(value);
        }
        Ok(Value::Object(map))
    }

    fn count(&mut self, nodes: usize) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > limits::YAML_NODES_MAX { Err(YamlError::TooMany) } else { Ok(()) }
    }
}

fn maps(value: Value, line: usize) -> Result<Vec<Map<String, Value>>, YamlError> {
    match value {
        Value::Object(map) => Ok(vec![map]),
        Value::Array(list) => {
            let each = list.into_iter().map(|item| match item {
                Value::Object(map) => Ok(map),
                _ => Err(YamlError::Merge(line)),
            });
            each.collect()
        }
        _ => Err(YamlError::Merge(line)),
    }
}
